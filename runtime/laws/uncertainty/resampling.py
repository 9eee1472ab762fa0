"""Bootstraps by name: what they draw, as draws of everything that a law reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from ...errors import RequestError
from ..bootstrap import Draws, refit, resampled, strata
from ..objective import Objective
from ..runs import Array, Runs
from .parametric import parametric
from .quantities import quantities
from .wild import wild

_LARGEST = float(np.finfo(np.float32).max)
Resampling: TypeAlias = Callable[[Runs, Objective, Array, int, int], tuple[Array, int]]


def case(runs: Runs, objective: Objective, point: Array, draws: int, seed: int) -> tuple[Array, int]:
    """Optima of `draws` resamplings of whole runs within representations; and how many did not converge."""
    groups = strata(runs, objective.terms.index)
    return refit(objective, point, resampled(groups, len(runs), draws, seed))


RESAMPLINGS: Mapping[str, Resampling] = MappingProxyType(
    {"case": case, "wild": wild, "parametric": parametric}
)


def resample(
    runs: Runs, objective: Objective, point: Array, bootstraps: int, seed: int, resampling: str = "case"
) -> Draws:
    """`bootstraps` draws of a named kind around the optimum `point` [size]; deterministic for a seed.

    Raises RequestError for an unknown name.
    """
    if resampling not in RESAMPLINGS:
        raise RequestError(
            f"no resampling is called {resampling!r}", advice=f"known: {', '.join(RESAMPLINGS)}"
        )
    names = tuple(quantities(objective, point[None]))
    if not bootstraps:
        return Draws(names, np.empty((0, len(names)), dtype=np.float32), seed)
    points, discarded = RESAMPLINGS[resampling](runs, objective, point, bootstraps, seed)
    columns = np.stack(list(quantities(objective, points).values()), axis=1)
    kept = np.clip(columns, -_LARGEST, _LARGEST).astype(np.float32)
    return Draws(names, kept, seed, discarded)
