"""Vector codebooks: neighbours together become the nearest vector of a table. Names are those of AQLM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ..codebooks import fixed
from ..codebooks.books import Books, Composition
from ..codebooks.fit import fit, move_on
from ..codebooks.reach import reach
from ..codebooks.scales import Observer, Scales, Strategy
from ..errors import RequestError
from ..gaussian import Source, grid_error
from ..stage import CARRY, Fields, Sized, Sphere, Stage
from . import codebook_options as options

Origin = Literal["kmeans", "gaussian", "e8p", "d4", "e8", "table"]
FloatDtype = Literal["float32", "float16", "bfloat16"]

_SHARED_SAMPLE = 1 << 22  # vectors of all tensors together that one table is fitted to


@dataclass(frozen=True)
class Codebook(Stage):
    """Replace every few neighbours by the nearest vector of a codebook, or by a sum of vectors of several.

    Shapes: the tensor is `[..., n]`; a row has `ceil(n / in_group_size)` vectors, the last one filled up with
    zeros, and `num_codebooks` codes for each: the carry is `[..., vectors * num_codebooks]`. The fields are
    `codebook` `[groups of rows, num_codebooks, 2^nbits_per_codebook, size]` for k-means, `scale` where there
    is one, and `tail`, which holds no numbers: its shape `[0, zeros filled in]` says where a row ends.

    `in_group_size` is how many neighbours along the last dimension form a vector.
    `num_codebooks` is how many codebooks there are, and codes for each vector.
    `nbits_per_codebook` is the bits of a code, so a codebook has 2^nbits vectors.
    `source` is where the vectors come from: `kmeans` fits them to each tensor and stores them with it;
    `gaussian` is the table that is optimal for normal numbers (HIGGS, 2411.17525); `e8p` is that of QuIP#
    (2402.04396); `d4` and `e8` are the shortest vectors of a lattice; `table` is what `table` says.
    `composition` is how several codebooks work together: `residual` (each encodes what the earlier ones
    left), `additive` (the same sum, codes found together by beam search, k-means tables by least squares),
    `product` (each has its own part of the vector).
    `beam_size` is how many sums the beam search of `additive` carries on.
    `scope` says what shares k-means codebooks: `tensor`; `group`, every `rows_per_codebook` rows; `network`,
    all weights of a model that have this representation (a tensor alone is a network of one).
    `rows_per_codebook` is the rows of a group; the last group may have fewer.
    `codebook_dtype` is how k-means codebooks are stored.
    `init` is how k-means begins: `kmeans++`, `gaussian`, or `auto`, the better of the two on a sample.
    `seed` decides the samples and draws of k-means.
    `observer` is the rule of the scale: `rms`, `absmax` or `none`; unset means `none` for tables that were
    fitted to numbers (`kmeans`, `table`) and `rms` for the others.
    `strategy` says what shares a scale: `tensor`, `channel` (a vector along the last dimension) or `group`.
    `group_size` is the neighbours along the last dimension that share a scale; the last may be fewer.
    `scale_dtype` is how scales are stored; unset means the tensor's own dtype.
    `factors` multiply the known tables, one for each codebook, in units of the rms; unset means the best for
    Gaussian data as the chain hands it on.
    `table` holds the numbers of the codebooks one after the other, for `source: table`.
    """

    in_group_size: int = 2
    num_codebooks: int = 1
    nbits_per_codebook: int = 8
    source: Origin = "kmeans"
    composition: Composition = "residual"
    beam_size: int = 4
    scope: Literal["tensor", "group", "network"] = "tensor"
    rows_per_codebook: int | None = None
    codebook_dtype: FloatDtype = "float16"
    init: Literal["auto", "kmeans++", "gaussian"] = "auto"
    seed: int = 0
    observer: Observer | None = None
    strategy: Strategy = "tensor"
    group_size: int | None = None
    scale_dtype: FloatDtype | None = None
    factors: tuple[float, ...] | None = None
    table: tuple[float, ...] | None = None
    kind: Literal["codebook"] = "codebook"

    family: ClassVar[str] = "vector"

    @property
    def sample_rows(self) -> int:
        return 1024 if self.source == "kmeans" and self.scope == "tensor" else 64

    def __post_init__(self) -> None:
        options.check(self)

    @property
    def scaled(self) -> bool:
        """Whether a scale is stored."""
        return self._observer != "none"

    @property
    def scale_free(self) -> bool:
        return self.scaled or self.source == "kmeans"

    @property
    def _observer(self) -> Observer:
        return self.observer or ("rms" if self._known else "none")

    @property
    def _known(self) -> bool:
        """Whether the vectors follow from the options alone, up to factors."""
        return self.source not in ("kmeans", "table")

    @property
    def _parts(self) -> int:
        """Parts of a vector with codebooks of their own."""
        return self.num_codebooks if self.composition == "product" else 1

    @property
    def _size(self) -> int:
        """Dimensions of the vectors of one codebook."""
        return self.in_group_size // self._parts

    @property
    def books_shape(self) -> tuple[int, int, int]:
        """Codebooks, vectors of each, dimensions of these."""
        return self.num_codebooks, 1 << self.nbits_per_codebook, self._size

    @property
    def _scales(self) -> Scales:
        return Scales(self.strategy, self.group_size, self._observer)

    def check(self, shape: tuple[int, ...]) -> None:
        if not shape:
            raise RequestError(
                "a codebook encodes neighbours along the last dimension, and a single number has none",
                advice="leave this tensor out with `ignore`",
            )

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        return self._encode(x, None)

    def encode_under(self, x: Tensor, tables: Tensor) -> tuple[Tensor, Fields]:
        """`encode` under k-means tables `[groups of rows, *books_shape]` instead of ones fitted to `x`."""
        return self._encode(x, None, tables)

    def encode_weighted(self, x: Tensor, importance: Tensor) -> tuple[Tensor, Fields, Tensor | None]:
        """The nearest vectors, and k-means, under weighted errors; e8p searches by plain distance."""
        return *self._encode(x, importance.expand_as(x)), None

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        vectors = carry.shape[-1] // self.num_codebooks
        size = vectors * self.in_group_size - (fields["tail"].shape[-1] if "tail" in fields else 0)
        like = fields.get("codebook", fields.get("scale", carry.new_empty(0, dtype=torch.float32)))
        like = like.new_empty(0, dtype=torch.promote_types(like.dtype, torch.float32))
        if "scale" in fields:
            like = like.to(torch.promote_types(like.dtype, fields["scale"].dtype))
        if not carry.numel():
            return like.new_zeros(*carry.shape[:-1], size)
        groups = self._row_groups(carry.reshape(-1, vectors, self.num_codebooks))
        books = self._stored_books(fields, like)
        parts = [book.decode(rows.flatten(0, 1)) for book, rows in zip(books, groups, strict=True)]
        restored = (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(*carry.shape[:-1], -1)
        if restored.shape[-1] > size:
            restored = restored[..., :size].contiguous()
        if "scale" in fields:
            restored = restored * self._scales.spread(fields["scale"].to(like.dtype), size)
        return restored

    def spread(self, fields: Fields, size: int, like: Tensor) -> Tensor:
        """Scales so shaped that they multiply a tensor whose last dimension is `size`; 1 where none are."""
        stored = fields.get("scale")
        return like.new_ones(()) if stored is None else self._scales.spread(stored.to(like.dtype), size)

    def tables(self, fields: Fields, like: Tensor) -> list[Tensor]:
        """The codebooks `[num_codebooks, 2^nbits, size]` of each group of rows, in the dtype of `like`."""
        return [books.points for books in self._stored_books(fields, like)]

    def sphere(self, fields: Fields, x: Tensor) -> Sphere:
        like = x.new_empty(0, dtype=torch.promote_types(x.dtype, torch.float32))
        scale = self.spread(fields, x.shape[-1], like)
        if not x.numel():
            return Sphere(self._size, scale, like.new_zeros(()), like.new_zeros(()))
        found = [reach(books) for books in self._stored_books(fields, like)]
        norms, reaches = (self._over(torch.stack(each), x) for each in zip(*found, strict=True))
        return Sphere(self._size, scale, norms, reaches)

    def _over(self, sizes: Tensor, x: Tensor) -> Tensor:
        """`[groups of rows, parts of a vector]` so that they broadcast to vectors `[..., ceil(n / size)]`."""
        if self.rows_per_codebook is not None:
            rows = math.prod(x.shape[:-1])
            sizes = sizes.repeat_interleave(self.rows_per_codebook, 0)[:rows].reshape(*x.shape[:-1], -1)
        else:
            sizes = sizes[0]
        vectors = -(-x.shape[-1] // self._size)
        turns = -(-vectors // sizes.shape[-1])
        return torch.cat([sizes] * turns, -1)[..., :vectors] if self._parts > 1 else sizes

    def encode_with(
        self, vectors: Tensor, fields: Fields, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Codes `[rows, num_codebooks]` of vectors `[rows, in_group_size]` over their scales, under the
        codebooks in these fields, and the vectors of these codes. `weights` as in `Books.encode`."""
        books = self._stored_books(fields, vectors.new_empty(0))
        groups = self._row_groups(vectors)
        many = self._weight_groups(None if weights is None else weights.unsqueeze(1), len(groups))
        parts = zip(books, groups, many, strict=True)
        codes = [book.encode(part, weight) for book, part, weight in parts]
        values = [book.decode(code) for book, code in zip(books, codes, strict=True)]
        return torch.cat(codes), torch.cat(values)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        self.check(x.shape)
        vectors = -(-x.shape[-1] // self.in_group_size)
        code = torch.uint8 if self.nbits_per_codebook <= 8 else torch.int32
        fields = {}
        if self.source == "kmeans":
            shape = (self._num_groups(math.prod(x.shape[:-1])), *self.books_shape)
            fields["codebook"] = Sized(shape, getattr(torch, self.codebook_dtype))
        if self.scaled:
            stored = getattr(torch, self.scale_dtype) if self.scale_dtype else x.dtype
            fields["scale"] = Sized(self._scales.shape(x.shape), stored)
        if tail := vectors * self.in_group_size - x.shape[-1]:
            fields["tail"] = Sized((0, tail), torch.uint8)
        return Sized((*x.shape[:-1], vectors * self.num_codebooks), code), fields

    def widths(self) -> dict[str, int]:
        return {CARRY: self.nbits_per_codebook}

    def bound(self, source: Source) -> Codebook:
        """With the factors of known tables filled in, the best for Gaussian data as the chain hands it on."""
        if not self._known or self.factors is not None:
            return self
        best = fixed.optimal_factors(
            self.source, self._size, self.nbits_per_codebook, self.num_codebooks, self.composition, source
        )
        unit = 1.0 if self.scaled else source.rms
        return replace(self, factors=tuple(factor * unit for factor in best))

    def gaussian(self, source: Source) -> tuple[Source, float] | None:
        """Integral over the cells of one known scalar table; None for vectors, groups and what is fitted."""
        scalar = self._size == 1 and (self.num_codebooks == 1 or self.composition == "product")
        if not scalar or not self._known or self.strategy == "group" or self._observer == "absmax":
            return None
        factors = self.factors or self.bound(source).factors or ()
        levels = np.sort(fixed.points(self.source, 1, self.nbits_per_codebook).double().numpy().ravel())
        unit = source.rms if self.scaled else 1.0
        return source, grid_error(levels, factors[0] * unit, source)

    def refit(self, x: Tensor, carry: Tensor, fields: Fields, importance: Tensor | None = None) -> Fields:
        """The fields with k-means codebooks of least squared error on `x`, codes and scales held fixed."""
        if self.source != "kmeans":
            raise RequestError(
                f"a codebook from {self.source} is not fitted to the tensor",
                advice="only source: kmeans can be refitted",
            )
        compute = torch.promote_types(x.dtype, torch.float32)
        vectors, weights = self._vectors(x.to(compute), fields.get("scale"), importance)
        codes = self._row_groups(carry.reshape(*vectors.shape[:2], self.num_codebooks))
        books = self._stored_books(fields, vectors.new_empty(0))
        new = [
            book.refit(rows.flatten(0, 1), code.flatten(0, 1), weight, sweeps=3)
            for book, rows, code, weight in zip(
                books, self._row_groups(vectors), codes, self._weight_groups(weights, len(books)), strict=True
            )
        ]
        return {**fields, "codebook": self._to_stored(torch.stack(new), x)}

    def shared(self, tensors: Sequence[Tensor]) -> Codebook:
        """This stage with one table fitted to all these tensors, written in it and not stored with each.

        Table numbers are rounded to float16. Raises `RequestError` when the table would hold more than 4096.
        """
        if math.prod(self.books_shape) > options.LARGEST_TABLE:
            raise RequestError(
                f"a shared table holds at most {options.LARGEST_TABLE} numbers, and these options make "
                f"{math.prod(self.books_shape)}",
                advice="lower nbits_per_codebook, in_group_size or num_codebooks",
            )
        if self.source != "kmeans" or not tensors:
            raise RequestError("a shared table is fitted by source: kmeans to one tensor or more")
        found = []
        for tensor in tensors:
            self.check(tuple(tensor.shape))
            wide = tensor.detach().to(torch.float32)
            vectors, _ = self._vectors(wide, self._scale_of(wide, tensor.dtype), None)
            every = max(1, vectors[..., 0].numel() * len(tensors) // _SHARED_SAMPLE)
            found.append(vectors.flatten(0, 1)[::every].cpu())
        points = self._fit(torch.cat(found), None)
        numbers = points.to(torch.float16).double().flatten().tolist()
        return replace(self, source="table", table=tuple(numbers), scope="tensor", rows_per_codebook=None)

    def shared_over(self, tensors: Sequence[Tensor]) -> Stage:
        return self.shared(tensors) if self.scope == "network" else self

    def moved_on(self, x: Tensor, tables: Tensor) -> Tensor:
        """k-means tables, as stored, a few rounds on from `tables` towards the best for `x`."""
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32)).contiguous()
        vectors, _ = self._vectors(wide, self._scale_of(wide, x.dtype), None)
        pairs = zip(self._row_groups(vectors), tables.to(wide), strict=True)
        new = [
            move_on(rows.flatten(0, 1), points, self.composition, self.beam_size) for rows, points in pairs
        ]
        return self._to_stored(torch.stack(new), x)

    def _encode(
        self, x: Tensor, importance: Tensor | None, tables: Tensor | None = None
    ) -> tuple[Tensor, Fields]:
        carry, layout = self.layout(Sized(tuple(x.shape), x.dtype))
        if x.is_meta or not x.numel():
            return _zeros(carry, x), {name: _zeros(field, x) for name, field in layout.items()}
        wide = x.detach().to(torch.promote_types(x.dtype, torch.float32)).contiguous()
        fields: Fields = {}
        scale = self._scale_of(wide, x.dtype)
        vectors, weights = self._vectors(wide, scale, importance)
        rows = self._row_groups(vectors)
        row_weights = self._weight_groups(weights, len(rows))
        if self.source == "kmeans":
            if tables is None:
                pairs = zip(rows, row_weights, strict=True)
                tables = torch.stack([self._fit(part.flatten(0, 1), weight) for part, weight in pairs])
            fields["codebook"] = self._to_stored(tables.to(x.device), x)
        if scale is not None:
            fields["scale"] = scale
        if "tail" in layout:
            fields["tail"] = _zeros(layout["tail"], x)
        books = self._stored_books(fields, vectors.new_empty(0))
        codes = torch.cat(
            [
                book.encode(part.flatten(0, 1), weight).to(carry.dtype)
                for book, part, weight in zip(books, rows, row_weights, strict=True)
            ]
        )
        return codes.reshape(carry.shape), fields

    def _scale_of(self, wide: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The scales as stored; None when there are none."""
        if not self.scaled:
            return None
        unit = 1.0
        if self._observer == "absmax" and self._known:
            reach = fixed.points(self.source, self._size, self.nbits_per_codebook).abs().max()
            unit = float(reach) * self._bound_factors[0]
        stored: torch.dtype = getattr(torch, self.scale_dtype) if self.scale_dtype else dtype
        return _narrowed(self._scales.of(wide, unit), stored, wide, "scale_dtype")

    def _vectors(
        self, wide: Tensor, scale: Tensor | None, importance: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The numbers over their scales as `[rows, vectors, in_group_size]`, and what their errors count."""
        size = wide.shape[-1]
        weights = None if importance is None else importance.to(wide)
        if scale is not None:
            spread = self._scales.spread(scale.to(wide.dtype), size)
            wide = torch.where(spread == 0, 0.0, wide / torch.where(spread == 0, 1.0, spread))
            if self.strategy != "tensor":
                weights = (spread.square() if weights is None else weights * spread.square()).expand_as(wide)
        tail = -size % self.in_group_size
        vectors = _in_vectors(wide, tail, self.in_group_size)
        if weights is None:
            return vectors, None
        weights = _in_vectors(weights, tail, self.in_group_size)
        alike = importance is None and (self.group_size or 0) % self.in_group_size == 0
        return vectors, weights[..., :1] if alike else weights

    def _fit(self, vectors: Tensor, weights: Tensor | None) -> Tensor:
        """Codebooks for vectors `[n, in_group_size]`; of NaN when not all numbers are finite."""
        if not bool(torch.isfinite(vectors).all()):
            return vectors.new_full(self.books_shape, torch.nan)
        count = 1 << self.nbits_per_codebook
        return fit(
            vectors, self.num_codebooks, count, self.composition, self.beam_size, weights,
            seed=self.seed, init=self.init,
        )  # fmt: skip

    def _to_stored(self, points: Tensor, x: Tensor) -> Tensor:
        return _narrowed(points, getattr(torch, self.codebook_dtype), x, "codebook_dtype")

    def _stored_books(self, fields: Fields, like: Tensor) -> list[Books]:
        """The codebooks as decoding sees them, one for each group of rows, in the dtype of `like`."""
        if self.source == "kmeans":
            stored = fields["codebook"].to(like.dtype)
            return [Books(points, self.composition, self.beam_size) for points in stored]
        if self.table is not None:
            points = torch.tensor(self.table, dtype=like.dtype, device=like.device)
            return [Books(points.reshape(self.books_shape), self.composition, self.beam_size)]
        factors = self._bound_factors
        bits, beam = self.nbits_per_codebook, self.beam_size
        return [fixed.books(self.source, self._size, bits, factors, self.composition, beam, like)]

    @property
    def _bound_factors(self) -> tuple[float, ...]:
        if self.factors is None:
            raise RequestError(
                "a known table needs its factors", advice="call encode through a Representation"
            )
        return self.factors

    def _num_groups(self, rows: int) -> int:
        return 1 if self.rows_per_codebook is None else -(-rows // self.rows_per_codebook)

    def _row_groups(self, rows: Tensor) -> list[Tensor]:
        """Rows that share a codebook."""
        return [rows] if self.rows_per_codebook is None else list(torch.split(rows, self.rows_per_codebook))

    def _weight_groups(self, weights: Tensor | None, groups: int) -> list[Tensor] | list[None]:
        """Weights `[n, 1 or in_group_size]` of the rows that share a codebook; one for each group."""
        if weights is None:
            return [None] * groups
        return [part.flatten(0, 1) for part in self._row_groups(weights)]


def _in_vectors(x: Tensor, tail: int, size: int) -> Tensor:
    """`[..., n]` to `[rows, vectors, size]`, filled up with zeros."""
    if tail:
        x = torch.nn.functional.pad(x, (0, tail))
    return x.reshape(-1, x.shape[-1] // size, size)


def _zeros(field: Sized, x: Tensor) -> Tensor:
    return torch.zeros(field.shape, dtype=field.dtype, device=x.device)


def _narrowed(numbers: Tensor, dtype: torch.dtype, x: Tensor, option: str) -> Tensor:
    """Numbers in the dtype they are stored in; an error when they become infinite, or all of them zero."""
    stored = numbers.to(dtype)
    lost = not bool(torch.isfinite(stored).all()) or (not bool(stored.any()) and bool(numbers.any()))
    if lost and bool(torch.isfinite(x).all()):
        raise RequestError(
            f"numbers up to {float(numbers.abs().max()):.3g} do not suit {option} {str(dtype)[6:]}",
            advice=f"choose {option}: bfloat16 or float32",
        )
    return stored
