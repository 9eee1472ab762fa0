"""The rounds in which the numbers of all weights of a network become values of one palette."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from .estimators.fix_values import FIXED, ROUNDS, FixValues
from .estimators.gaussian_weights import DEVIATION, gaussian_of
from .estimators.step_rule import Beside, Stepping
from .power_sums import PowerSums, join
from .projection import Project
from .stages.palette import Palette


@dataclass(frozen=True)
class _Member:
    """A weight, and what is kept beside it."""

    weight: nn.Parameter
    beside: Beside
    gaussian: bool

    @property
    def fixed(self) -> Tensor:
        return self.beside[FIXED]

    @property
    def moved(self) -> list[Tensor]:
        """What an optimiser moves: the weight, and its deviations."""
        return [self.weight, self.beside[DEVIATION]] if self.gaussian else [self.weight]


@final
class ValueFixing(Stepping):
    """`FixValues` at work on the weights of a network. What it knows lies beside them, in the model's state.

    Load a state before it is attached: what is fixed is put back after each step to what it was before.
    """

    def __init__(self, rule: FixValues, sums: PowerSums, members: Sequence[_Member]) -> None:
        self.rule, self.sums, self.members = rule, sums, tuple(members)
        self._before: list[list[Tensor]] = []

    @classmethod
    def of(cls, rule: FixValues, weight: nn.Parameter, projection: Project, beside: Beside) -> ValueFixing:
        """On one weight."""
        (palette,) = projection.representation.unwrapped
        assert isinstance(palette, Palette)
        gaussian = gaussian_of(projection.estimators) is not None
        return cls(rule, palette.sums, [_Member(weight, beside, gaussian)])

    @classmethod
    def all_of(cls, each: Sequence[ValueFixing]) -> ValueFixing:
        """The weights of several, together."""
        return cls(each[0].rule, each[0].sums, [member for one in each for member in one.members])

    @torch.no_grad()
    def at(self, step: int, steps: int) -> None:
        due = self.rule.rounds(step, steps)
        if due > int(self.members[0].beside[ROUNDS]):
            self._fix(self.rule.shares[due - 1])
            for member in self.members:
                member.beside[ROUNDS].fill_(due)
        self._before = [[tensor.detach().clone() for tensor in m.moved] for m in self.members] if due else []

    @torch.no_grad()
    def before(self) -> None:
        for member in self.members if self._before else ():
            for tensor in member.moved:
                if tensor.grad is not None:
                    tensor.grad.masked_fill_(member.fixed, 0)

    @torch.no_grad()
    def after(self) -> None:
        for member, before in zip(self.members, self._before, strict=False):
            for tensor, was in zip(member.moved, before, strict=True):
                tensor.copy_(torch.where(member.fixed, was, tensor))

    def detach(self) -> None:
        return

    def _fix(self, share: float) -> None:
        """Cluster all numbers anew, and fix a share of them."""
        numbers = self._gathered([member.weight for member in self.members])
        reach = [m.beside[DEVIATION] if m.gaussian else m.weight.detach().abs() for m in self.members]
        quota = round(share * len(numbers))
        found = join(numbers, self._gathered(reach), quota, self.rule.delta, self.sums)
        start = 0
        for member in self.members:
            here = slice(start, start + member.weight.numel())
            start = here.stop
            new = found.values[here], found.deviations[here]
            chosen = found.chosen[here].view(member.weight.shape).to(member.weight.device)
            member.fixed.copy_(chosen)
            for tensor, values in zip(member.moved, new, strict=False):
                tensor.copy_(torch.where(chosen, values.view(tensor.shape).to(tensor), tensor))

    def _gathered(self, tensors: Sequence[Tensor]) -> Tensor:
        device = tensors[0].device
        return torch.cat([tensor.detach().flatten().to(device, torch.float64) for tensor in tensors])
