"""The contract of trained tables: activations are encoded with codebooks that are parameters of the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..representation import Representation
from ..view import View
from .base import Estimator


class Chosen(NamedTuple):
    """What a step of encoding chose: the nearest codes `[N, groups]`, which are counted, the vectors that go
    on `[N, groups, d]`, and what is to be minimised besides the loss, a scalar."""

    codes: Tensor
    vectors: Tensor
    penalty: Tensor | None = None


@dataclass(frozen=True)
class KeptTables(Estimator):
    """How activations are trained together with the codebooks that encode them.

    Tables are parameters beside the weight whose outputs they encode: started from a seed, stored once, never
    fitted to a batch. How often vectors are chosen is followed as a moving average over steps, and those that
    no one chooses are put in the place of others. Needs `attach(model, optimizer, steps)`.

    `ema` is the share of the average that stays at every step.
    `reassign` is after how many steps dead vectors become copies of the most chosen ones; unset means never.
    `below` is the frequency under which a vector is dead.
    """

    ema: float = 0.9
    reassign: int | None = 200
    below: float = 1e-6

    masks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {self.ema}")
        if self.reassign is not None and self.reassign < 1:
            raise ValueError(f"reassign is a number of steps, at least 1, got {self.reassign}")
        if not 0 <= self.below < 1:
            raise ValueError(f"below is a frequency, in [0, 1), got {self.below}")

    def check(self, representation: Representation) -> None:
        from ..vector_levels import levels_of  # which knows stages that hold others

        if not representation.stages:
            return
        try:
            levels_of(representation)
        except ValueError as error:
            raise ValueError(f"{self.kind!r} {error}") from None

    def mask(self, view: View) -> Tensor | None:
        return None

    @property
    def first_temperature(self) -> float | None:
        """Where the inverse temperature of each codebook starts that is learned; None: there is none."""
        return None

    @abstractmethod
    def choose(self, x: Tensor, table: Tensor, temperature: Tensor | None) -> Chosen:
        """Codes for `x` `[N, groups, d]` under a table `[groups, k, d]` in training; `temperature` `[groups]`
        where there is one. Random numbers are drawn from torch's global generator."""

    @abstractmethod
    def left(self, x: Tensor, vectors: Tensor) -> Tensor:
        """What the next level encodes."""

    @abstractmethod
    def passed(self, x: Tensor, vectors: Tensor) -> Tensor:
        """What goes on in the place of `x`, given all levels' vectors."""


def squared_distances(x: Tensor, table: Tensor) -> Tensor:
    """|x - c|^2, `[N, groups, k]`, by the expanded form; k last, over which softmax is stable."""
    with torch.autocast(x.device.type, enabled=False):
        products = torch.einsum("ngd,gkd->ngk", x, table)
        return x.square().sum(-1, keepdim=True) - 2 * products + table.square().sum(-1)


def kept_tables_of(estimators: Sequence[Estimator]) -> KeptTables | None:
    """The estimator among these that keeps tables, or None."""
    return next((e for e in estimators if isinstance(e, KeptTables)), None)
