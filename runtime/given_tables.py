"""A codebook under tables that are given, where nothing is fitted: what training between refreshes sees."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .representation import Representation
from .stage import Fields, Sphere, Stage
from .stages.codebook import Codebook


@dataclass(frozen=True, eq=False)
class GivenTables(Stage):
    """A k-means `codebook` whose tables `[groups of rows, num_codebooks, 2^bits, size]` are these.

    Codes are the best under them; decoding is that of the codebook, bit for bit.
    """

    stage: Codebook
    tables: Tensor
    kind: str = "codebook"

    @property
    def unwrapped(self) -> tuple[Stage, ...]:
        return (self.stage,)

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        return self.stage.encode_under(x, self.tables)

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        return self.stage.decode(carry, fields)

    def sphere(self, fields: Fields, x: Tensor) -> Sphere:
        return self.stage.sphere(fields, x)


def under_tables(representation: Representation, numbers: Tensor) -> Representation:
    """A chain that ends in a k-means codebook, under tables given as all their numbers in a row."""
    *before, last = representation.bound_stages
    assert isinstance(last, Codebook)
    given = GivenTables(last, numbers.reshape(-1, *last.books_shape))
    found = Representation((*before, given))
    found.__dict__["bound_stages"] = found.stages  # which they are: nothing to bind in every forward pass
    return found
