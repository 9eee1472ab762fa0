"""Parametric bootstrap: the fitted law with normal noise of the fitted size.

The noise is robust (`noise`), so that an outlier does not widen every interval. It needs no more runs of a
representation than one, and is the sharpest of the three where every run is equally noisy.
"""

from __future__ import annotations

import numpy as np

from ..bootstrap import refit
from ..objective import Objective
from ..runs import Array, Runs
from .noise import measured_with, noise


def parametric(runs: Runs, objective: Objective, point: Array, draws: int, seed: int) -> tuple[Array, int]:
    """Optima of `draws` simulated sets of runs; and how many did not converge."""
    spread = noise(objective, point).deviation / np.sqrt(np.broadcast_to(objective.counts, len(runs)))
    errors = np.random.default_rng(seed).normal(0.0, 1.0, (draws, len(runs))) * spread
    return refit(objective, point, np.ones((draws, len(runs))), measured_with(objective, point, errors))
