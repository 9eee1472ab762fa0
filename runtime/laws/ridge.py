"""Along which ridge a parameter trades off against others, and which two runs would break it.

What differs between the two ends of a parameter's profile, which fit the runs equally well, is the ridge. The
runs to add are those that tell most about all parameters together, judged in the middle of the ridge: judged
at the optimum, or for one parameter alone, they depend on where on the ridge the noise has put the optimum.
"""

from __future__ import annotations

import numpy as np

from .candidates import best_additions, candidates
from .information import extended, information, one_run_variance
from .newton import minimise
from .objective import Objective
from .runs import Array, Runs

_STEPS = 8  # from the optimum to an end of the profile
_NAMED = 3  # parameters that are named beside the one asked for, at most
_MOVED = 0.01  # relative change of a parameter that is worth a word
_TELLING = 2.0  # standard deviations of a run between the ends, below which two runs do not decide
_SILENT = 0.1  # and below which they say nothing


def along(objective: Objective, point: Array, position: int, low: float, high: float) -> Array:
    """The best points with one parameter at its low end, in the middle and at its high end, [3, size]."""
    middle = float(np.sqrt(low * high)) if low > 0 else 0.5 * (low + high)
    found = []
    for end in (low, middle, high):
        at = point[None].copy()
        for value in np.linspace(point[position], end, _STEPS + 1)[1:]:
            at = _held(objective, at, position, float(value))
        found.append(at[0])
    return np.stack(found)


def ridge(objective: Objective, position: int, between: Array) -> str:
    """What changes from one end to the other when the parameter rises; empty where nothing moves along.

    Named are parameters whose change the runs would notice by itself: searched ones first, with their values.
    """
    low, high = between[0], between[-1]
    slopes = np.square(objective.jacobian(between)).mean(axis=(0, 1))
    effect = np.abs(high - low) * np.sqrt(slopes)
    felt = effect > 2 * _noise(objective, between[1]) / np.sqrt(len(objective.loss))
    felt &= np.abs(high - low) > _MOVED * np.maximum(np.abs(low), np.abs(high))
    felt[position] = False
    count = len(objective.terms.coefficients)
    moves: dict[str, str] = {}
    for i in sorted(np.flatnonzero(felt), key=lambda i: (i < count, -effect[i])):
        name = objective.names[i].partition(" of ")[0]
        told = f"{name} {'rises' if high[i] > low[i] else 'falls'}"
        moves.setdefault(name, told if i < count else f"{told} from {low[i]:.3g} to {high[i]:.3g}")
    if not moves:
        return ""
    return f"as {objective.names[position]} rises, {_listed(list(moves.values())[:_NAMED])}"


def cure(runs: Runs, objective: Objective, between: Array) -> str:
    """The two runs, within the compute of the largest one, that would tell most, in words, with the losses
    that the ends of the ridge put there; empty where no kind of run that there is tells anything.

    Runs of the baseline, where those tell the ends apart.
    """
    law, every = objective.terms.law, candidates(runs, objective.terms.law)
    plain = every.select(np.array([name == law.baseline for name in every.representation]))
    tried = [_pair(objective, between, offered) for offered in (plain, every) if len(offered)]
    told, apart = next((pair for pair in tried if pair[1] >= _TELLING), tried[0])
    if apart < _SILENT:
        return ""
    weak = ", which differ by less than the noise: it takes more such runs, or larger ones"
    return told + (weak if apart < _TELLING else "")


def _pair(objective: Objective, between: Array, offered: Runs) -> tuple[str, float]:
    """Two runs in words, and how far apart the ends are there, in standard deviations of a run."""
    chosen = best_additions(information(objective, between[1], offered), np.eye(objective.size), 2)
    losses = []
    for end in (between[0], between[-1]):
        wide, moved = extended(objective, end, offered)
        losses.append(wide.predict(moved[None])[0][-len(offered) :][list(chosen)])
    told = [
        f"(N {offered.params[i]:.2g}, D {offered.tokens[i]:.2g}, {offered.representation[i]}:"
        f" a loss of {min(pair):.4g} to {max(pair):.4g})"
        for i, pair in zip(chosen, zip(*losses, strict=True), strict=True)
    ]
    apart = np.abs(np.log(losses[1] / losses[0])).max() / max(_noise(objective, between[1]), 1e-300)
    return _listed(told), float(apart)


def _held(objective: Objective, at: Array, position: int, value: float) -> Array:
    """The best points, [1, size], with one parameter at a value."""
    fixed = np.zeros(at.shape, dtype=bool)
    fixed[:, position] = True
    start = at.copy()
    start[:, position] = value
    weights = np.ones((1, len(objective.loss)))
    return minimise(objective, start, weights, fixed=fixed, tolerance=1e-7, iterations=100).points


def _noise(objective: Objective, point: Array) -> float:
    return float(np.sqrt(one_run_variance(objective, point)))


def _listed(words: list[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
