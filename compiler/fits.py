"""Fits of laws to runs: made, chosen, saved and read. Nothing here needs torch."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path

from ..runtime.errors import RequestError
from ..runtime.laws import Law
from ..runtime.laws.fit import fit as fit_law
from ..runtime.laws.objective import Residual
from ..runtime.laws.result import Fit
from ..runtime.laws.runs import Runs
from ..runtime.laws.select import Selection, select
from .law_files import load_law
from .runs_csv import read_runs


def fit_runs(
    runs: Runs | str | Path,
    law: Law | str = "decoupled",
    *,
    baseline: str | None = None,
    delta: float = 1e-3,
    bootstraps: int = 1000,
    seed: int = 0,
    residuals: str = "log",
    resampling: str = "case",
) -> Fit:
    """Fit a law, named, declared or in a YAML file, to runs or to a CSV of them.

    baseline: the representation whose multipliers are 1, for laws that have one; residuals: log or linear.

    Raises RequestError (InvalidDocument for a CSV with errors). How the fit ended is its `outcome`.
    """
    if isinstance(law, str):
        law = load_law(law, baseline)
    loaded = runs if isinstance(runs, Runs) else read_runs(runs)
    if residuals not in list(Residual):
        raise RequestError(f"residuals are {residuals!r}", advice="they are log or linear")
    kind = Residual(residuals)
    return fit_law(
        loaded, law, delta=delta, bootstraps=bootstraps, seed=seed, residuals=kind, resampling=resampling
    )


def select_law(
    runs: Runs | str | Path, *, delta: float = 1e-3, bootstraps: int = 1000, residuals: str = "log"
) -> Selection:
    """The law to believe on these runs, with its fit and the others (`runtime/laws/select.py`)."""
    loaded = runs if isinstance(runs, Runs) else read_runs(runs)
    return select(loaded, delta=delta, bootstraps=bootstraps, residuals=Residual(residuals))


def save_fit(fit: Fit, path: str | Path) -> None:
    """Write a fit as JSON, draws and all. Raises RequestError for one with infinite parameters."""
    endless = [name for name, value in fit.values.items() if not isfinite(value)]
    if endless:
        raise RequestError(
            f"{', '.join(endless)} of this fit are beyond all numbers, so it can predict nothing",
            where=fit.data,
            advice="fit another law to these runs",
        )
    Path(path).write_text(json.dumps(fit.to_document(), allow_nan=False) + "\n", encoding="utf-8")


def load_fit(path: str | Path) -> Fit:
    """The fit in a JSON file. Raises RequestError when it is none."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RequestError(
            f"not a saved fit ({error})", where=str(path), advice="make one with rhoc fit"
        ) from error
    if not isinstance(document, dict):
        raise RequestError("not a saved fit", where=str(path), advice="make one with rhoc fit")
    return Fit.from_document(document, str(path))
