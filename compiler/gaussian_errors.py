"""The Gaussian error of a representation at once: by quadrature, or as computed long before and shipped.

What quadrature does not reach (codebooks, trellises, sums) takes minutes to estimate to four digits. The
values for shipped specs lie in `specs/gaussian_errors.json`, each with its standard error, a digest of all
options and the error on one small fixed tensor. When a default has changed, or a stage no longer gives that
error there, the value is stale: it is then estimated anew, roughly, and the answer says so.
`make gaussian-errors` computes all that are missing or stale.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch

from .. import specs
from ..runtime.capacity import MONTE_CARLO, GaussianError, by_quadrature, error_on, monte_carlo
from ..runtime.determinism import one_thread
from ..runtime.digest import digest
from ..runtime.errors import RequestError
from ..runtime.plain import to_plain
from ..runtime.representation import Representation
from .spec import load_spec

COMMAND = "make gaussian-errors"
SHIPPED = "monte carlo, shipped"
_ROUNDS, _SECONDS = (4, 4096), 40.0  # rounds of a shipped value, and the processor time they may take
_PROBE_ROWS, _FITTED_ROWS, _PROBE_COLUMNS = 4, 16, 512  # more rows for what is fitted to the tensor
_UNFITTED = 64  # sample rows of a stage that fits nothing
_SAME = 1e-4


@lru_cache(maxsize=512)
def gaussian_error(representation: Representation, *, verify: bool = True) -> GaussianError:
    """Gaussian error of a representation: quadrature, else the shipped value, else Monte Carlo.

    Without `verify` a shipped value is taken as it is; with it, a small tensor is encoded first.
    """
    exact = by_quadrature(representation)
    if exact is not None:
        return exact
    representation = _unrotated(representation)
    entry = shipped().get(str(representation))
    if entry is None:
        return monte_carlo(representation)
    if verify and _stale(representation, entry):
        method = f"{MONTE_CARLO}; the shipped value is stale, `{COMMAND}` renews it"
        return replace(monte_carlo(representation), method=method)
    return GaussianError(entry["value"], entry["standard_error"], SHIPPED, entry["at_unit"])


@lru_cache(maxsize=1)
def shipped() -> dict[str, Any]:
    """Shipped values by the text of the representation."""
    if not specs.GAUSSIAN_ERRORS.exists():
        return {}
    document: dict[str, Any] = json.loads(specs.GAUSSIAN_ERRORS.read_text(encoding="utf-8"))
    return dict(document["errors"])


def probe(representation: Representation) -> float | None:
    """The error on one small fixed tensor; None when the representation does not take it."""
    rows = [stage.sample_rows for stage in representation.all_stages()]
    fitted = any(count > _UNFITTED for count in rows)
    shape = (_FITTED_ROWS if fitted else min([_PROBE_ROWS, *rows]), _PROBE_COLUMNS)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    try:
        with one_thread():
            return error_on(representation, x)
    except RequestError:
        return None


def needed() -> dict[str, Representation]:
    """Every representation of the shipped specs and systems that quadrature does not reach, by its text.

    Their parts stand beside them: rho is a product over the stages that lose something.
    """
    found = {}
    names = (*specs.names(), *specs.systems())
    for rule in (rule for name in names for rule in load_spec(name).rules):
        for whole in (rule.weight_representation, rule.input_representation):
            lossy = [stage for stage in whole.unwrapped if "lossless" not in stage.tags]
            for representation in (whole, *(Representation((stage,)) for stage in lossy)):
                if by_quadrature(representation) is None:
                    unrotated = _unrotated(representation)
                    found[str(unrotated)] = unrotated
    return dict(sorted(found.items()))


def stale() -> Iterator[str]:
    """Texts of needed representations whose shipped value is missing or no longer theirs."""
    for text, representation in needed().items():
        entry = shipped().get(text)
        if entry is None or _stale(representation, entry):
            yield text


def renew(only: tuple[str, ...] = ()) -> None:
    """Compute what is missing or stale (or only what is named), and write the file after each value.

    Raises:
        RequestError: a name that is not needed.
    """
    representations = needed()
    for text in only:
        if text not in representations:
            raise RequestError(f"no shipped spec needs a value for {text!r}", advice="leave it out")
    errors = {
        text: {"digest": _digest(representations[text])} | entry
        for text, entry in shipped().items()
        if text in representations
    }
    _write(errors)
    for text in only or tuple(stale()):
        errors[text] = _computed(representations[text])
        _write(errors)
        value, deviation = errors[text]["value"], errors[text]["standard_error"]
        print(f"{value:.6g} +- {deviation:.1g}  {text}", file=sys.stderr, flush=True)


def _computed(representation: Representation) -> dict[str, Any]:
    """An entry of the file, from as many rounds as there is time for."""
    started = time.process_time()
    monte_carlo(representation, rounds=2)
    affordable = int(_SECONDS / (time.process_time() - started) * 2)
    rounds = max(_ROUNDS[0], min(_ROUNDS[1], affordable))
    error = monte_carlo(representation, rounds=rounds)
    return {
        "digest": _digest(representation),
        "value": error.value,
        "standard_error": error.standard_error,
        "at_unit": error.at_unit,
        "rounds": rounds,
        "probe": probe(representation),
    }


def _write(errors: dict[str, Any]) -> None:
    document = {"command": COMMAND, "errors": dict(sorted(errors.items()))}
    specs.GAUSSIAN_ERRORS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    shipped.cache_clear()


def _digest(representation: Representation) -> str:
    """Hash of every option, those that were left to their defaults too."""
    return digest(to_plain(representation))


def _unrotated(representation: Representation) -> Representation:
    """Without leading rotations, under which Gaussian numbers stay what they are."""
    return Representation(representation.stages[len(representation.rotation.stages) :])


def _stale(representation: Representation, entry: dict[str, Any]) -> bool:
    """Whether an option or the error on the small tensor is another than when the value was computed."""
    if entry.get("digest") != _digest(representation):
        return True
    now = probe(representation)
    before: float | None = entry["probe"]
    if now is None or before is None:
        return (now is None) != (before is None)
    return abs(now - before) > _SAME * before


if __name__ == "__main__":
    renew(tuple(sys.argv[1:]))
