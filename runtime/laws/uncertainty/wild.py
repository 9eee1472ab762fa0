"""Wild cluster bootstrap: the errors of all runs of one cluster change sign and size together.

It holds where the noise differs from run to run and where runs of one size err together, which resampling run
by run does not see. Errors are enlarged by 1/(1 - leverage), as in HC3 (MacKinnon and White, Journal of
Econometrics 29, 1985).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..bootstrap import refit
from ..objective import Objective
from ..runs import Array, Runs
from .noise import leverage, measured_with

_FEW = 12  # clusters up to which signs alone have too few combinations (Webb, Queen's Working Paper 1315)
_PER_PARAMETER = 3
_WEBB = np.array([-np.sqrt(1.5), -1.0, -np.sqrt(0.5), np.sqrt(0.5), 1.0, np.sqrt(1.5)])
_SIGNS = np.array([-1.0, 1.0])


def wild(runs: Runs, objective: Objective, point: Array, draws: int, seed: int) -> tuple[Array, int]:
    """Optima of `draws` resamplings, and how many did not converge.

    Clusters are the sizes N where there are at least three for every parameter; a law that has as many
    parameters as there are sizes follows what sizes have in common, and then every run is its own.
    """
    sizes = runs.params.tolist()
    clusters = sizes if len(set(sizes)) >= _PER_PARAMETER * objective.degrees else range(len(sizes))
    return wild_by(clusters, objective, point, draws, seed)


def wild_by(
    clusters: Sequence[object], objective: Objective, point: Array, draws: int, seed: int
) -> tuple[Array, int]:
    """The same for clusters of one's own, one label per run."""
    labels = {label: i for i, label in enumerate(dict.fromkeys(clusters))}
    of = np.array([labels[label] for label in clusters], dtype=np.intp)
    values = _WEBB if len(labels) <= _FEW else _SIGNS
    factors = np.random.default_rng(seed).choice(values, size=(draws, len(labels)))[:, of]
    errors = -objective.residual(point[None])[0] / (1 - leverage(objective, point))
    return refit(
        objective, point, np.ones((draws, len(of))), measured_with(objective, point, errors * factors)
    )
