"""Factors on grids that are trained: numbers in the place of codes, rounded to the grid on every use.

Of a product, a factor whose chain ends in `quantize` has codes on a grid. Trained, it has numbers there, and
the steps of the grid and all places (of a sparse factor) stay as they were found: the support is frozen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from torch import Tensor

from .representation import Representation
from .stages.product import Product
from .stages.quantize import Quantize
from .stages.sum import Sum


@dataclass(frozen=True)
class Grid:
    """The grid of one factor: the name of its codes among the fields of the whole, and how the names of its
    own fields begin."""

    carry: str
    prefix: str
    stage: Quantize

    def codes(self, numbers: Tensor, named: Mapping[str, Tensor]) -> Tensor:
        """The codes of numbers under the steps in these fields."""
        shape = tuple(numbers.shape)
        return self.stage.encode_with(numbers, self.stage.steps(self._fields(named), shape)).reshape(shape)

    def numbers(self, codes: Tensor, named: Mapping[str, Tensor]) -> Tensor:
        """What codes stand for."""
        return self.stage.decode(codes, self._fields(named))

    def _fields(self, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
        start = self.prefix
        return {name.removeprefix(start): t for name, t in named.items() if name.startswith(start)}


@lru_cache(maxsize=256)
def grids_of(representation: Representation) -> tuple[Grid, ...]:
    """The grids of all factors in a representation."""
    return tuple(_grids(representation, ""))


def _grids(representation: Representation, prefix: str) -> Iterator[Grid]:
    for position, stage in enumerate(representation.bound_stages):
        if isinstance(stage, Sum):
            for number, term in enumerate(stage.terms):
                yield from _grids(term, f"{prefix}{position}.{number}.")
        for side in ("left", "right") if isinstance(stage, Product) else ():
            factor: Representation = getattr(stage, side)
            last = factor.bound_stages[-1] if factor.stages else None
            if isinstance(last, Quantize):
                start = f"{prefix}{position}.{side}."
                yield Grid(f"{start}carry", f"{start}{len(factor.stages) - 1}.", last)


@lru_cache(maxsize=256)
def without_grids(representation: Representation) -> Representation:
    """The representation with the numbers of such factors as they are: the same decoding of other fields."""

    def chain(factor: Representation) -> Representation:
        on_grid = bool(factor.stages) and isinstance(factor.stages[-1], Quantize)
        return Representation(factor.stages[:-1]) if on_grid else factor

    stages = []
    for stage in representation.stages:
        if isinstance(stage, Sum):
            stage = Sum(tuple(without_grids(term) for term in stage.terms))
        elif isinstance(stage, Product):
            stage = replace(stage, left=chain(stage.left), right=chain(stage.right), rounds=0)
        stages.append(stage)
    return Representation(tuple(stages))


def coded(representation: Representation, named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fields with codes in the place of trained numbers, which are told by their dtype."""
    found = dict(named)
    for grid in grids_of(representation):
        if named[grid.carry].is_floating_point():
            found[grid.carry] = grid.codes(named[grid.carry], named)
    return found


def opened(
    representation: Representation, named: Mapping[str, Tensor]
) -> tuple[Representation, dict[str, Tensor]]:
    """The representation and the fields with what trained numbers are rounded to, and no grid: what the
    derivative is taken of."""
    grids = [g for g in grids_of(representation) if named[g.carry].is_floating_point()]
    if not grids:
        return representation, dict(named)
    found = {name: t for name, t in named.items() if not name.startswith(tuple(g.prefix for g in grids))}
    for grid in grids:
        found[grid.carry] = grid.numbers(grid.codes(named[grid.carry], named), named)
    return without_grids(representation), found
