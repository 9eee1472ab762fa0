"""Move what is hard to quantise from inputs into weights, or from one weight into the next, by channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx

from .base import Fact, Keeps, Pass
from .equalize_rules import Rule, group_scales
from .facts import ASSIGNED
from .fold_norms import NORMS_FOLDED
from .fold_rotations import ROTATIONS_FOLDED
from .output_error import asks, group_error
from .reach import Reach, note
from .record_ranges import RANGES
from .rescale import Ledger
from .scalable import Group, Member, scalable

_STILL = 1e-6  # relative change of every factor at which balancing weights has converged


@dataclass(frozen=True)
class Equalize(Pass):
    """Divide the input of weights by s per channel and multiply their columns: Y = (X / s)(s W).

    What produces the input takes 1 / s: a norm, the weight before, a vector (see `scalable`). All readers of
    a tensor share one s. Recorded ranges follow, so that they describe the inputs as they then are. Values
    stay right in train() too: only parameters change, and a batch norm takes factors in its scale and bias.

    `rule` is how s follows from inputs and weights (see `equalize_rules`): `smoothquant`, `aweq`, `awq` (a
    search that needs samples), `weights` (data-free, between two weights, repeated over the whole model).
    `strength` is the exponent of the input's size, 0 to 1: 0 makes all columns equal, 1 all inputs.
    `only_if_better` leaves a group as it is unless its output error on recorded samples becomes smaller.
    `limit` bounds s to [1 / limit, limit].
    `rounds` is how often `weights` may visit every group.
    Groups whose readers were all given dense representations are left alone.
    """

    rule: Rule = "smoothquant"
    strength: float = 0.5
    only_if_better: bool = False
    limit: float = 1e3
    rounds: int = 100
    kind: Literal["equalize"] = "equalize"

    breaks: ClassVar[frozenset[Fact]] = frozenset({NORMS_FOLDED})
    follows: ClassVar[frozenset[Fact]] = frozenset({NORMS_FOLDED, ROTATIONS_FOLDED})
    keeps: ClassVar[Keeps] = "values"

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength {self.strength} is not between 0 and 1; 0.5 is usual")
        if not 1 <= self.limit < float("inf"):
            raise ValueError(f"limit {self.limit} is not a number of at least 1; 1000 is usual")
        if self.rounds < 1:
            raise ValueError(f"rounds {self.rounds} must be at least 1; 100 is usual")
        if self.rule == "weights" and self.only_if_better:
            raise ValueError("rule weights settles all groups together; leave only_if_better out")
        if self.rule in ("weights", "awq") and self.strength != 0.5:
            raise ValueError(f"rule {self.rule} finds its own strength; leave strength out")

    @property
    def requires(self) -> frozenset[Fact]:  # type: ignore[override]
        """Recorded ranges unless the rule is data-free; assignments where output errors are compared."""
        if self.rule == "weights":
            return frozenset()
        return frozenset({RANGES, ASSIGNED} if self.rule == "awq" or self.only_if_better else {RANGES})

    def rewrite(self, gm: fx.GraphModule) -> bool:
        groups, left = scalable(gm)
        ledger = Ledger(gm)
        found = self._balance(ledger, groups) if self.rule == "weights" else self._each(ledger, groups)
        ledger.write()
        note(gm, self.name, (*found, *left))
        return any(reach.reached for reach in found)

    def scales(self, ledger: Ledger, group: Group) -> Tensor:
        """The factor of each key of a group, float64 `[keys]`."""
        return group_scales(self.rule, self.strength, self.limit, ledger, group)

    def _each(self, ledger: Ledger, groups: tuple[Group, ...]) -> list[Reach]:
        found = []
        for group in groups:
            reason, scales = _nobody(group), torch.ones(group.producer.count, dtype=torch.float64)
            if not reason:
                scales = self.scales(ledger, group)
                reason = self._worse(ledger, group, scales)
            if not reason:
                ledger.scale(group, scales)
                ledger.write()
            found += reach_of(group, scales, reason)
        return found

    def _worse(self, ledger: Ledger, group: Group, scales: Tensor) -> str:
        """Why a group is left as it is, or nothing."""
        if not self.only_if_better:
            return ""
        before = group_error(ledger, group, torch.ones_like(scales))
        after = group_error(ledger, group, scales)
        return "" if after < before else f"its output error {before:.3g} would become {after:.3g}"

    def _balance(self, ledger: Ledger, groups: tuple[Group, ...]) -> list[Reach]:
        """Visit all groups until no factor changes."""
        reasons = [_nobody(group) or _no_rows(group) for group in groups]
        totals = [torch.ones(group.producer.count, dtype=torch.float64) for group in groups]
        largest = 0.0
        for _ in range(self.rounds):
            largest = 0.0
            for number, group in enumerate(groups):
                if reasons[number]:
                    continue
                old = totals[number]
                totals[number] = (old * self.scales(ledger, group)).clamp(1 / self.limit, self.limit)
                step = totals[number] / old
                largest = max(largest, float((step - 1).abs().max()))
                ledger.scale(group, step)
            if largest < _STILL:
                break
        more = f", still moving after {self.rounds} rounds" if largest >= _STILL else ""
        done = zip(groups, totals, reasons, strict=True)
        return [reach for group, total, why in done for reach in reach_of(group, total, why, more)]


def reach_of(group: Group, scales: Tensor, reason: str, more: str = "") -> list[Reach]:
    """What became of each reader of a group that was scaled, or left for a reason."""
    if reason:
        return [Reach(member.site.path, False, reason) for member in group.members]
    return [Reach(m.site.path, True, _text(group, m, scales) + more) for m in group.members]


def _text(group: Group, member: Member, scales: Tensor) -> str:
    factors = member.factors(scales)
    free = int(group.free[member.keys[member.keys >= 0]].sum())
    some = "" if free == len(factors) else f"{free} of {len(factors)} channels of "
    return (
        f"{some}its input divided by {float(factors.min()):.3g} to {float(factors.max()):.3g}, "
        f"taken by {group.producer.path}"
    )


def _nobody(group: Group) -> str:
    asking = any(asks(member.site) for member in group.members)
    return "" if asking else "no weight that reads this input has a representation"


def _no_rows(group: Group) -> str:
    weight = group.producer.channels is not None
    return (
        "" if weight else f"{group.producer.path}, which makes its input, is no weight with rows to balance"
    )
