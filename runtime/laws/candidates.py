"""Runs that could be trained next, and the choice among them by what they would tell."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from ..errors import RequestError
from .base import Law
from .information import Information
from .runs import Array, Runs

_SIZES, _TOKENS = 9, 11  # values of N and of D
_BEYOND = 3.0  # how far N and D may lie outside of what has been trained
_LEAST_SPAN = 10.0  # of N and of D, however little the runs span
_KINDS = 24  # kinds of runs beyond which one per representation has to do
_ROUNDS = 20  # of exchanges, at most


def candidates(
    runs: Runs, law: Law, *, flops: float | None = None, formats: Sequence[str] = (), beyond: float = _BEYOND
) -> Runs:
    """A grid over N and D of at most `flops` = 6 N D each, in every kind of run that there is.

    flops: by default what the largest run took; formats: representations, by default all that have runs;
    beyond: how many times N and D may lie outside of the runs. Numbers have two digits.
    Raises RequestError when nothing is that cheap, or for a representation without runs.
    """
    limit = float((6 * runs.params * runs.tokens).max()) * 1.1 if flops is None else flops
    sizes, tokens = (_spread(c, n, beyond) for c, n in ((runs.params, _SIZES), (runs.tokens, _TOKENS)))
    pairs = [(n, d) for n, d in product(sizes, tokens) if 6 * n * d <= limit]
    if not pairs:
        least = 6 * min(sizes) * min(tokens)
        raise RequestError(
            f"no run of at most {limit:.3g} FLOPs is near these runs",
            where=runs.data,
            advice=f"the cheapest candidate takes {least:.3g}",
        )
    kinds = _kinds(runs, law, formats)
    cells = [(n, d, row) for row in kinds for n, d in pairs]
    of = [row for _, _, row in cells]
    return Runs(
        params=np.array([n for n, _, _ in cells]),
        tokens=np.array([d for _, d, _ in cells]),
        loss=np.ones(len(cells)),
        representation=tuple(runs.representation[row] for row in of),
        columns={name: tuple(values[row] for row in of) for name, values in runs.columns.items()},
        data=runs.data,
    )


def best_additions(
    known: Information, gradients: Array, count: int, *, flops: Array | None = None
) -> tuple[int, ...]:
    """Which of the extra runs to train so that the quantities with these gradients, [quantities, size], are
    known best: the log-determinant of their covariance falls most.

    One quantity: the c-optimal runs; all parameters: the D-optimal ones. Chosen one after another, then
    exchanged one by one as long as that gains. flops: choose what gains most per FLOP, with no exchange.
    The same run may be chosen twice.
    """
    chosen: list[int] = []
    for _ in range(count):
        gains = _gains(known, gradients, chosen)
        chosen.append(int(np.argmax(gains if flops is None else gains / flops)))
    if flops is not None:
        return tuple(chosen)
    for _ in range(_ROUNDS):
        before = list(chosen)
        for place in range(count):
            rest = [c for i, c in enumerate(chosen) if i != place]
            gains = _gains(known, gradients, rest)
            if gains.max() > gains[chosen[place]] + 1e-9:
                chosen[place] = int(np.argmax(gains))
        if chosen == before:
            break
    return tuple(chosen)


def _gains(known: Information, gradients: Array, chosen: Sequence[int]) -> Array:
    """By how much each extra run lowers the log-determinant, [extra].

    With S = C V C', a run x takes u u'/(1 + x'V x) from S, where u = C V x (Sherman and Morrison).
    """
    inverse = known.inverse(chosen)
    rows, wanted = known.rows / known.scale, gradients / known.scale
    wanted = wanted / np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-300)
    seen = rows @ inverse
    own = (seen * rows).sum(axis=1)
    together = wanted @ seen.T
    covariance = wanted @ inverse @ wanted.T
    covariance += 1e-14 * np.trace(covariance) * np.eye(len(covariance))
    share = (together * np.linalg.solve(covariance, together)).sum(axis=0) / (1 + own)
    return np.asarray(-np.log(np.clip(1 - share, 1e-15, 1.0)))


def _spread(column: Array, count: int, beyond: float) -> list[float]:
    low, high = float(column.min()), float(column.max())
    widen = max(beyond, (_LEAST_SPAN * low / high) ** 0.5)
    return sorted({float(f"{value:.1e}") for value in np.geomspace(low / widen, high * widen, count)})


def _kinds(runs: Runs, law: Law, formats: Sequence[str]) -> list[int]:
    """A run of every kind: representation, and what the law reads besides."""
    for name in formats:
        if name not in runs.names:
            raise RequestError(
                f"no run is of the representation {name!r}",
                where=runs.data,
                advice=f"representations with runs: {', '.join(runs.names)}",
            )
    read = [runs.columns[c.name] for c in law.every_column if c.name in runs.columns]
    first: dict[tuple[str, ...], int] = {}
    for row, name in enumerate(runs.representation):
        if not formats or name in formats:
            first.setdefault((name, *(cells[row] for cells in read)), row)
    if len(first) <= _KINDS:
        return list(first.values())
    single: dict[str, int] = {}
    for key, row in first.items():
        single.setdefault(key[0], row)
    return list(single.values())
