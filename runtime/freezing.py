"""A weight that becomes its code while it is trained: when that is, and what its tables are before."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from .code_fields import FROZEN, FreezingProject, field_names, first_fields
from .errors import RequestError
from .estimators.freeze_codes import FreezeCodes
from .estimators.step_rule import Beside, Stepping
from .given_tables import under_tables
from .stages.codebook import Codebook


@final
class Freezing(Stepping):
    """`FreezeCodes` at work on one weight.

    All that it knows lies beside the weight, in the model's state: tables, codes, and whether these count. A
    run that is resumed finds the same.
    """

    def __init__(
        self,
        weight: nn.Parameter,
        projection: FreezingProject,
        optimizer: torch.optim.Optimizer,
        rule: FreezeCodes,
        beside: Beside,
    ) -> None:
        self.weight, self.projection, self.optimizer, self.rule = weight, projection, optimizer, rule
        self.beside, self._step = beside, 0

    @torch.no_grad()
    def at(self, step: int, steps: int) -> None:
        self._step = step
        if self.rule.is_due(step, steps) and not self._is_frozen:
            self._freeze()
        self.projection.frozen = self._is_frozen

    def before(self) -> None:
        return

    @torch.no_grad()
    def after(self) -> None:
        every = self.rule.refresh
        if every is not None and (self._step + 1) % every == 0 and not self._is_frozen:
            self._refresh()

    def detach(self) -> None:
        self.projection.frozen = None

    @property
    def _is_frozen(self) -> bool:
        return bool(self.beside[FROZEN])

    def _freeze(self) -> None:
        """Encode the weight, have its code count from now on, and the optimiser forget what was before."""
        representation = self.projection.representation
        if self.rule.refresh is not None:
            self._refresh()
            representation = under_tables(representation, self._tables)
        try:
            code = representation.encode(self._matrix())
        except RequestError as error:
            raise error.at(self.beside.path) from error
        found = first_fields(self.projection.representation, code, trained=False)
        for field, new in zip(self._fields(), found.values(), strict=True):
            field.copy_(new)
            self.optimizer.state.pop(field, None)
        self.optimizer.state.pop(self.weight, None)
        self.weight.grad = None
        self.beside[FROZEN].fill_(1)

    def _refresh(self) -> None:
        """Move the tables on towards the best for the weight as it is."""
        *before, last = self.projection.representation.bound_stages
        assert isinstance(last, Codebook)
        carry = self._matrix().contiguous()
        for stage in before:
            carry, _ = stage.encode(carry)
        if bool(torch.isfinite(carry).all()):
            self._tables.copy_(last.moved_on(carry, self._tables))

    def _matrix(self) -> Tensor:
        """The weight as its representation meets it."""
        latent, weight = self.projection.latent, self.weight.detach()
        return self.projection.arrangement.matrix(weight if latent is None else latent.weight(weight))

    def _fields(self) -> list[Tensor]:
        representation, matrix = self.projection.representation, self._matrix()
        names = field_names(representation, tuple(matrix.shape), matrix.dtype)
        return [self.beside[name] for name in names.values()]

    @property
    def _tables(self) -> Tensor:
        return self.projection.tables(self._fields())
