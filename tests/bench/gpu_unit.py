"""What the bench on CUDA measures at a time: a unit, its variants, and the job that each of them is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from timing import Method
from torch import Tensor

COLD = 200e6  # bytes that copies of a weight take together: three times the L2 of 60 MB
BETWEEN = "|"


@dataclass(frozen=True)
class Work:
    """Bytes that have to be moved, and operations of the products of a `kind`, at the least."""

    moved: float
    operations: float = 0.0
    kind: str = "bfloat16"

    def seconds(self, rates: Mapping[str, float]) -> float:
        """The least time at the device's own rates of copies and products."""
        return max(self.moved / rates["copy"], self.operations / rates.get(self.kind, rates["bfloat16"]))


@dataclass(frozen=True)
class Job:
    """A method, what it is compared with, and the work of either.

    `checked` gives what the method has to give and what it gave; `turns` is how many calls walk through all
    copies of weights; `capture` says whether a CUDA graph can hold the methods. Without work there is no roofline.
    """

    kernel: str
    method: Method
    baseline: Method
    work: Work | None = None
    baseline_work: Work | None = None
    checked: Callable[[], tuple[Tensor, Tensor]] | None = None
    turns: int = 1
    capture: bool = True


Build = Callable[[str, bool], Callable[[str], Job]]
"""For a device, and whether it is tiny: what makes the job of a variant."""


@dataclass(frozen=True)
class Unit:
    """A format or an operation on one layer; `importance` 0 is measured first."""

    name: str
    layer: str
    variants: tuple[str, ...]
    importance: int
    build: Build

    @cached_property
    def items(self) -> tuple[str, ...]:
        """The names of its jobs, under which results are kept."""
        return tuple(BETWEEN.join((self.name, self.layer, variant)) for variant in self.variants)


def unit_of(item: str) -> str:
    """The part of an item's name that its unit has."""
    return item.rpartition(BETWEEN)[0]


def copies(nbytes: int, tiny: bool) -> int:
    """How many copies of a weight are more than the L2 holds."""
    return 1 if tiny else -(-int(COLD) // nbytes)
