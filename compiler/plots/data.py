"""What figures and tables are made from: rows about formats, runs and predictions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Interval = tuple[float, float]
CurvePoint = tuple[int, int, float]
"""Step, tokens or examples seen, loss."""


@dataclass(frozen=True)
class FormatRow:
    """One format: its name, what it is, what it costs and what it is worth.

    representation: text form of how weights are stored. bits_per_weight counts every stored field.
    gmse: Gaussian error of the weights (0: they stay dense); gmse_input: of input activations, None likewise.
    gaussian_bits: log_{1/4} of gmse, None or infinite for dense.
    rho and its 95% interval: what one parameter is worth in dense ones; None takes the fitted value, if any.
    """

    name: str
    summary: str
    representation: str
    bits_per_weight: float
    gmse: float
    gaussian_bits: float | None = None
    rho: float | None = None
    rho_interval: Interval | None = None
    gmse_input: float | None = None


@dataclass(frozen=True)
class RunRow:
    """One finished training run.

    params: N; tokens: D; loss: validation loss at the end; seconds: of training.
    train_curve and eval_curve: (step, tokens, loss); empty for runs that were imported without them.
    held_out: true for a run that no fit on this page has seen.
    """

    id: str
    representation: str
    params: int
    tokens: int
    loss: float
    seed: int | None = None
    seconds: float | None = None
    train_curve: tuple[CurvePoint, ...] = ()
    eval_curve: tuple[CurvePoint, ...] = ()
    held_out: bool = False


@dataclass(frozen=True)
class StoredPoint:
    """A packed model: stored bits for each represented number, and its validation loss.

    loss is the mean over seeds, spread its standard deviation (None: one seed). how: `as it is`, `trained` in
    the format, or so from `scratch`.
    """

    name: str
    bits: float
    loss: float
    spread: float | None
    how: str


@dataclass(frozen=True)
class Factor:
    """One multiplier of a product: the representation it belongs to, its rho and the 95% interval."""

    representation: str
    rho: float
    interval: Interval | None = None


@dataclass(frozen=True)
class PredictionRow:
    """A loss that was predicted before it was measured.

    Losses: predicted, its 95% prediction interval (None: the fit has no draws), and measured
    (None: not trained yet).
    rule: how rho came about, in words ("product of int2 and a2"); factors: what was multiplied.
    """

    representation: str
    params: int
    tokens: int
    predicted: float
    interval: Interval | None
    measured: float | None = None
    rho: float | None = None
    rho_interval: Interval | None = None
    rule: str = ""
    factors: tuple[Factor, ...] = ()

    @property
    def hit(self) -> bool | None:
        """Whether the measured loss is inside the interval, ends included; None when either is missing."""
        if self.measured is None or self.interval is None:
            return None
        return self.interval[0] <= self.measured <= self.interval[1]


def representations(formats: Iterable[FormatRow], runs: Iterable[RunRow]) -> tuple[str, ...]:
    """Every name once: formats in their order, then those that only runs mention; dense comes first."""
    names = dict.fromkeys([row.name for row in formats] + [run.representation for run in runs])
    return tuple(sorted(names, key=lambda name: name != "dense"))
