"""Sparsity: some numbers stay, and their places are stored beside them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import RequestError
from ..gaussian import Source
from ..sparsity import (
    Bitmask,
    Blocks,
    Columns,
    Csr,
    GroupIndex,
    Groups,
    PackedIndex,
    Pattern,
    Rank,
    Rows,
    Storage,
    Unstructured,
)
from ..sparsity.select import largest, masked, positions
from ..stage import Fields, Sized, Stage
from ..text import value_text

_MOST_PLACES = 2**31  # positions are stored in at most 31 bits


@dataclass(frozen=True)
class Sparsify(Stage):
    """Keep the largest numbers of a tensor and hand them on; the rest decode to zero.

    Shapes: of a tensor `[..., n]`, `unstructured` hands on the survivors in order as one vector `[k]`, or as
    `[..., k]` by row; `"n:m"` as `[..., n * kept / m]`; blocks one after the other as `[k]`; rows as `[k, n]`
    (leading dimensions count as rows); columns as `[..., k]`. Counts are exact: of equal numbers the first
    stay.

    `sparsity` is the fraction that is zeroed (of numbers, blocks, rows or columns), rounded to the nearest
    whole number of them (0 keeps all, as where a schedule starts); left out for n:m, which says it itself.
    `sparsity_structure` says what stays together: `unstructured` any numbers; `"n:m"` n of every m neighbours
    along the last dimension; `"block:RxC"` blocks of the last two dimensions; `row` or `column` whole lines
    of the matrix, these and blocks by their L2 norm. `vector` makes n:m keep or drop so many neighbours
    together, by their energy: `"4:8"` with `vector: 2` keeps 2 pairs of every 4 (the 2:4 of INT4 hardware;
    QuEST 2502.05003).
    `granularity` says among which numbers the unstructured pattern chooses: the whole `tensor`, or each
    `row`. `scores` says what is large: `magnitude`, or `given`, |x| times the root of the importance that
    calibration gives (Wanda, 2306.11695). `storage` says how places are stored: `bitmask` one bit each;
    `index` the position of each survivor in ceil(log2) bits (for 2:4 these are the metadata of sparse tensor
    cores); `csr` row offsets and column indices; `rank` of n:m the number of the choice, ceil(log2 C(m, n))
    bits a group. Unset means `index` for n:m and `bitmask` for the rest.
    """

    sparsity: float | None = None
    sparsity_structure: str = "unstructured"
    vector: int = 1
    granularity: Literal["tensor", "row"] = "tensor"
    scores: Literal["magnitude", "given"] = "magnitude"
    storage: Literal["bitmask", "index", "csr", "rank"] | None = None
    kind: Literal["sparsify"] = "sparsify"

    tags: ClassVar[frozenset[str]] = frozenset({"sparse", "idempotent"})
    family: ClassVar[str] = "sparse"

    def __post_init__(self) -> None:
        pattern = self._parsed()
        if isinstance(pattern, Groups):
            implied = 1 - pattern.n / pattern.m
            if self.sparsity is not None and not math.isclose(self.sparsity, implied):
                raise ValueError(f"{self.sparsity_structure} is {implied:g} sparse; leave `sparsity` out")
        elif self.sparsity is None or not 0 <= self.sparsity < 1:
            word = self.sparsity_structure.partition(":")[0]
            raise ValueError(f"{word} sparsity must be a fraction between 0 and 1, got {self.sparsity}")
        self._check_options(pattern)

    def _check_options(self, pattern: Pattern) -> None:
        """Options that mean nothing for this pattern."""
        if self.vector != 1 and not isinstance(pattern, Groups):
            raise ValueError("vector belongs to an n:m structure; leave it out")
        if self.granularity == "row" and not isinstance(pattern, Unstructured):
            raise ValueError("granularity: row belongs to the unstructured pattern; leave it out")
        if self.storage == "rank" and not isinstance(pattern, Groups):
            raise ValueError("storage: rank belongs to an n:m structure; use index or bitmask")
        matrix = isinstance(pattern, Blocks) or (isinstance(pattern, Unstructured) and not pattern.by_row)
        if self.storage == "csr" and not matrix:
            raise ValueError("storage: csr is for survivors that differ in number by row; use index")
        if isinstance(pattern, Groups) and self.storage == "rank":
            rank = Rank(pattern.n // pattern.vector, pattern.m // pattern.vector)
            if rank.bits > 31:
                raise ValueError(
                    f"the ranks of {self.sparsity_structure} have {rank.bits} bits; use storage: index"
                )

    def _parsed(self) -> Pattern:
        """The pattern; a missing fraction is taken as zero until it is refused."""
        text, fraction = self.sparsity_structure, float(self.sparsity or 0.0)
        if text == "unstructured":
            return Unstructured(fraction, self.granularity == "row")
        if text in ("row", "column"):
            return Rows(fraction) if text == "row" else Columns(fraction)
        if block := re.fullmatch(r"block:(\d{1,4})x(\d{1,4})", text):
            rows, columns = int(block[1]), int(block[2])
            if rows * columns < 2:
                raise ValueError(f"blocks need more than one number, got {text}; use unstructured")
            return Blocks(fraction, rows, columns)
        if group := re.fullmatch(r"(\d{1,9}):(\d{1,9})", text):
            return self._groups(int(group[1]), int(group[2]))
        known = "'unstructured', 'n:m', 'block:RxC', 'row' or 'column'"
        raise ValueError(f"sparsity_structure must be {known}, got {text!r}")

    def _groups(self, kept: int, group: int) -> Groups:
        if not 0 < kept < group <= 256:
            raise ValueError(f"n:m needs 0 < n < m <= 256, got {self.sparsity_structure}")
        if self.vector < 1 or kept % self.vector or group % self.vector:
            raise ValueError(
                f"vector must divide both numbers of {self.sparsity_structure}, got {self.vector}"
            )
        return Groups(kept, group, self.vector)

    @cached_property
    def pattern(self) -> Pattern:
        """Which numbers stay."""
        return self._parsed()

    @cached_property
    def places(self) -> Storage:
        """How their places are stored."""
        pattern = self.pattern
        if self.storage == "csr":
            return Csr()
        if self.storage == "bitmask" or (self.storage is None and not isinstance(pattern, Groups)):
            return Bitmask()
        if not isinstance(pattern, Groups):
            return PackedIndex()
        kept, units = pattern.n // pattern.vector, pattern.m // pattern.vector
        return Rank(kept, units) if self.storage == "rank" else GroupIndex(kept, units)

    @property
    def structured(self) -> bool:
        """Whether every row is pruned by itself, because groups of neighbours are."""
        return isinstance(self.pattern, Groups)

    def check(self, shape: tuple[int, ...]) -> None:
        if not shape and self.granularity == "row":
            raise RequestError("a single number has no row", advice="use granularity: tensor")
        if math.prod(shape) >= _MOST_PLACES:
            raise RequestError(
                f"sparsity places at most {_MOST_PLACES - 1} numbers, and this tensor has {math.prod(shape)}",
                advice="split the tensor, or leave it out with `ignore`",
            )
        self.pattern.check(shape)

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        carry, kept, _ = self._encode(x, self._given(None))
        return carry, kept

    def encode_weighted(self, x: Tensor, importance: Tensor) -> tuple[Tensor, Fields, Tensor | None]:
        carry, kept, places = self._encode(x, self._given(importance))
        everywhere = importance.expand(x.shape)
        return carry, kept, self.pattern.take_importance(everywhere, places) if not x.is_meta else None

    def _given(self, importance: Tensor | None) -> Tensor | None:
        """The importance that numbers are ranked by; None for magnitude alone."""
        if self.scores == "magnitude":
            return None
        if importance is None:
            raise RequestError(
                f"{self} ranks numbers by importance, and none was given",
                advice="encode with the importance from calibration, or use scores: magnitude",
            )
        return importance

    def _encode(self, x: Tensor, importance: Tensor | None) -> tuple[Tensor, Fields, Tensor]:
        """The carry, the fields, and the places of the units that stay."""
        shape = tuple(x.shape)
        self.check(shape)
        if x.is_meta:
            return *_empty(self.layout(Sized(shape, x.dtype))), x.new_empty(0)
        mask = self._mask(x, importance)
        places = positions(mask)
        return *self._kept_at(x, mask, places), places

    def encode_with(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Fields]:
        """`encode` of a given choice: one bool per unit, as many of every pool as the pattern keeps."""
        return self._kept_at(x, mask, positions(mask))

    def _kept_at(self, x: Tensor, mask: Tensor, places: Tensor) -> tuple[Tensor, Fields]:
        stored = self.places.encode(mask, places, self.pattern.pools(tuple(x.shape)))
        return self.pattern.take(x, places), stored | self._shape_field(x)

    def _mask(self, x: Tensor, importance: Tensor | None) -> Tensor:
        """One bool per unit."""
        magnitude = x.abs()
        if importance is not None:
            compute = torch.promote_types(x.dtype, torch.float32)
            magnitude = magnitude.to(compute) * importance.to(compute).sqrt()
        return self.choose(magnitude)

    def choose(self, magnitude: Tensor) -> Tensor:
        """One bool per unit of a tensor of magnitudes: true for those that stay."""
        pools = self.pattern.pools(tuple(magnitude.shape))
        scores = self.pattern.scores(magnitude).reshape(pools.shape)
        return largest(scores, pools.kept).reshape(pools.mask)

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        shape = self._tensor_shape(fields)
        if carry.is_meta:
            return carry.new_empty(shape)
        whole = carry.expand(self.pattern.carry_shape(shape))  # what survivors share, such as a scale, is one
        return self.pattern.put(whole, self._places(fields, shape), shape)

    def hand_on(self, x: Tensor) -> tuple[Tensor, Fields]:
        if x.is_meta:
            return self.encode(x)
        importance = self._given(None)
        self.check(tuple(x.shape))
        places = positions(self._mask(x, importance))
        return self.pattern.take(x, places), {"places": places, "shape": self._recorded(x)}

    def project(self, x: Tensor) -> tuple[Tensor, Fields]:
        importance = self._given(None)
        self.check(tuple(x.shape))
        if x.is_meta:
            return torch.empty_like(x), {
                "mask": x.new_empty(self.pattern.pools(tuple(x.shape)).mask, dtype=torch.bool)
            }
        mask = self._mask(x, importance)
        kept = self.pattern.spread(mask, tuple(x.shape))
        return masked(x, kept), {"mask": mask, "shape": self._recorded(x)}

    def kept(self, fields: Fields) -> Tensor:
        shape = self._tensor_shape(fields)
        pools = self.pattern.pools(shape)
        mask = fields.get("mask")
        if mask is None:
            mask = torch.zeros(
                math.prod(pools.mask), dtype=torch.bool, device=next(iter(fields.values())).device
            )
            mask = mask.index_fill_(0, self._places(fields, shape), True).reshape(pools.mask)
        return self.pattern.spread(mask, shape)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        self.check(x.shape)
        stored = self.places.layout(self.pattern.pools(x.shape))
        if not self._places_tell_shape:
            stored["shape"] = Sized((0, *x.shape), torch.bool)
        return Sized(self.pattern.carry_shape(x.shape), x.dtype), stored

    def widths(self) -> dict[str, int]:
        return dict(self.places.widths())

    def gaussian(self, source: Source) -> tuple[Source, float] | None:
        """Error of the zeroed numbers, E[x^2 (1 - keep(|x|))], in the limit of many units.

        Exact for n:m. None for a pattern of neighbours after another, which are not independent draws. Given
        scores are taken as equal importance, which Gaussian data has.
        """
        keep = self.pattern.survival(source)
        if keep is None:
            return None
        survivors = source.then(keep)
        return survivors, source.power - survivors.power

    def kept_count(self, size: int) -> int:
        """How many of `size` numbers stay."""
        return math.prod(self.pattern.carry_shape((size,)))

    @property
    def _places_tell_shape(self) -> bool:
        """Whether the tensor's shape can be told from the fields of the places."""
        tells = self.pattern.tensor_shape((1,)) is not None
        return tells and isinstance(self.places, Bitmask | GroupIndex | Rank)

    def _shape_field(self, x: Tensor) -> Fields:
        return {} if self._places_tell_shape else {"shape": self._recorded(x)}

    def _recorded(self, x: Tensor) -> Tensor:
        """A tensor of no elements, and no bytes: its own shape, after a leading zero, is that of `x`."""
        return torch.empty((0, *x.shape), dtype=torch.bool, device=x.device)

    def _tensor_shape(self, fields: Fields) -> tuple[int, ...]:
        if "shape" in fields:
            return tuple(fields["shape"].shape[1:])
        mask = self.places.mask_shape(fields)
        shape = self.pattern.tensor_shape(mask) if mask is not None else None
        assert shape is not None, "a shape field was stored"
        return shape

    def _places(self, fields: Fields, shape: tuple[int, ...]) -> Tensor:
        """The places of units; a projection's fields hold them as they are, or else the mask."""
        if "places" in fields:
            return fields["places"]
        if "mask" in fields:
            return positions(fields["mask"])
        return self.places.decode(fields, self.pattern.pools(shape))

    def __str__(self) -> str:
        argument = self.sparsity_structure if self.structured else value_text(self.sparsity)
        shown = {"kind", "sparsity", *(["sparsity_structure"] if self.structured else [])}
        rest = [f for f in fields(self) if f.name not in shown and getattr(self, f.name) != f.default]
        return f"sparsify({', '.join([argument, *(f'{f.name}={getattr(self, f.name)}' for f in rest)])})"


def _empty(layout: tuple[Sized, dict[str, Sized]]) -> tuple[Tensor, Fields]:
    """Meta tensors of a layout."""
    carry, stored = layout
    made = {n: torch.empty(s.shape, dtype=s.dtype, device="meta") for n, s in {"": carry, **stored}.items()}
    return made.pop(""), made
