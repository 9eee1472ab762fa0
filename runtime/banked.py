"""The projection of inputs under learned steps that an index chooses, sample by sample."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from .bank import Bank, by_sample, nearest_known
from .estimators import Estimator
from .learned import LearnedProject
from .learned_ops import start
from .program import Program, program_of
from .projection import project_with_gradient
from .representation import Representation


class BankedProject(LearnedProject):
    """A learned projection that is called with the parameters of a whole bank, `[T]` each.

    Samples take those of their row, in one call, and gradients go back there. A row that is NaN starts with
    the samples of it in the first batch in train() that has any; until then it takes those of the nearest
    row that is known, and where none is, inputs are measured.
    """

    def __init__(
        self, bank: Bank, representation: Representation, estimators: tuple[Estimator, ...], **options: Any
    ) -> None:
        super().__init__(Representation((by_sample(representation),)), estimators, starts=False, **options)
        self.bank, self.representation = bank, representation
        self.whole = program_of(representation, estimators)

    @property
    def key(self) -> Hashable:
        return super().key, self.bank

    def along(
        self, x: Tensor, dimension: int, parameter: Tensor | None = None, offset: Tensor | None = None
    ) -> Tensor:
        """The projection of samples `x` `[B, ...]`; what shares a step has no direction."""
        assert parameter is not None, "a bank has parameters"
        return self._learned(x, parameter, offset)

    def _learned(self, x: Tensor, parameter: Tensor, offset: Tensor | None) -> Tensor:
        rows, flat = self.bank.rows(x), x.reshape(x.shape[0], -1)
        if not torch.compiler.is_compiling() and bool(parameter.isnan().any()):
            if self.training:
                _start(self.whole, flat.detach(), parameter, offset, rows)
            if bool(parameter.isnan().all()):
                return project_with_gradient(x, self.representation, self.estimators)
            rows = nearest_known(parameter.detach())[rows]
        own = None if offset is None else offset.index_select(0, rows)
        return super()._learned(flat, parameter.index_select(0, rows), own).reshape(x.shape)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.bank.size} by {self.bank.index}"


@torch.no_grad()
def _start(program: Program, flat: Tensor, parameter: Tensor, offset: Tensor | None, rows: Tensor) -> None:
    """Set the NaN rows of a bank that have samples here."""
    for row in sorted(set(rows.tolist())):
        if bool(parameter[row].isnan()):
            at = slice(row, row + 1)
            own = flat.new_empty(0) if offset is None else offset.data[at]
            fresh = torch.zeros((), dtype=torch.uint8)
            start(program, flat[rows == row].reshape(1, -1), parameter.data[at], own, fresh, True)
