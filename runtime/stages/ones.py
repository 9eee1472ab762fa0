"""Nothing but places: what an earlier stage kept decodes to ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..gaussian import Source
from ..stage import Fields, HandsOn, Sized, Stage
from . import parts


@dataclass(frozen=True)
class Ones(Stage):
    """Every number becomes 1, which takes no bits.

    Behind `sparsify` only places are stored. `"1:k"` in the left factor of a product makes every row of it
    one of k unit vectors: the product is then vector quantisation with the right factor as its codebook.
    """

    kind: Literal["ones"] = "ones"

    tags: ClassVar[frozenset[str]] = frozenset({"elementwise", "idempotent"})

    @property
    def hands_on(self) -> HandsOn:
        return "nothing"

    @property
    def scale_free(self) -> bool:
        return False

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        return parts.nothing(x), {}

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        return carry.new_ones(carry.shape[1:])

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        return parts.nothing_sized(x), {}

    def gaussian(self, source: Source) -> tuple[Source, float] | None:
        return None
