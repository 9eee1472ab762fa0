"""A product of two representations: a matrix as left times right, each factor with stages of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..errors import RequestError
from ..gaussian import Source
from ..given import Given, fields_of
from ..marchenko_pastur import REFERENCE_SHAPE, leftover
from ..representation import Representation
from ..sparsity import Groups
from ..stage import Fields, HandsOn, Sized, Stage
from . import parts
from .factors import best_factors, fitted_left, fitted_right
from .ones import Ones
from .precision import full_precision, wide
from .pursuit import Pursuit
from .sparsify import Sparsify

Side = Literal["left", "right"]


@dataclass(frozen=True)
class Product(Stage):
    """The tensor as a matrix `[rows, n]` (all but the last dimension are rows): left `[rows, rank]` times
    right `[rank, n]`, from its singular value decomposition.

    `rank` is the number of columns of left; unset, all of them: min(rows, n). A rank above that means that.
    `left` and `right` are the chains of the factors, dense unless given; each factor carries the square
    root of the singular values. `rounds` of alternating least squares follow: each factor is fitted anew to
    the other one as it decodes, which makes up for much of what the chains lose, and the best round is
    kept; with dense factors there is nothing to fit. With importance the decomposition is that of the
    columns times the root of their mean importance (weighted SVD).
    `block` makes vectors of so many neighbours of a row what is factored: right is `[rank, block]`, and left
    `[rows, n / block * rank]` has `rank` numbers for each vector.
    `solver` `pursuit` is for a left that begins with `sparsify` of `s:rank`: every vector is a sum of s
    atoms, the rows of right, of which there may be more than a vector has numbers; `rounds` alternate
    orthogonal matching pursuit with least squares for atoms of length 1 (QSWD, 2207.11048), importance
    aside. With s = 1 and `ones` behind, it is vector quantisation.
    `keep_params` gives the rank by the share of numbers that both factors keep together, below 1.
    `scope` says what has one right factor in common: `siblings`, linear layers that read one input (their
    weights below one another are factored, 2402.16319), or `network`, all weights with this representation;
    unset, every tensor has its own. `given` names that factor once it was fitted; specs leave it out.
    """

    rank: int | None = None
    left: Representation = parts.DENSE
    right: Representation = parts.DENSE
    rounds: int = 0
    block: int | None = None
    solver: Literal["pursuit"] | None = None
    keep_params: float | None = None
    scope: Literal["siblings", "network"] | None = None
    given: str | None = None
    kind: Literal["product"] = "product"

    def __post_init__(self) -> None:
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank must be positive, got {self.rank}")
        if not 0 <= self.rounds <= 100:
            raise ValueError(f"rounds must be between 0 and 100, got {self.rounds}")
        if self.rounds and self.dense_factors:
            raise ValueError(
                "rounds fit factors to what the other one lost, and both are dense; leave it out"
            )
        self._check_sizes()

    def _check_sizes(self) -> None:
        if self.block is not None and self.block < 1:
            raise ValueError(f"block must be positive, got {self.block}")
        if self.keep_params is not None:
            if self.rank is not None or self.block is not None:
                raise ValueError("keep_params gives the rank of whole rows; leave out rank and block")
            if not 0 < self.keep_params < 1:
                raise ValueError(
                    f"keep_params is a share of the numbers of a weight, between 0 and 1, got "
                    f"{self.keep_params}; at 1 factors are as many numbers as the weight"
                )
        if self.scope is not None and self.rank is None and self.keep_params is None:
            raise ValueError("factors in common have one rank; give rank or keep_params")
        if self.solver is not None and self._pursuit is None:
            raise ValueError(
                "solver 'pursuit' needs a rank and a left that begins with sparsify of s:rank, got rank "
                f"{self.rank} and left {self.left}; leave it out for singular values"
            )

    @property
    def hands_on(self) -> HandsOn:
        return "nothing"

    @property
    def dense_factors(self) -> bool:
        """Whether the factors lose nothing, but for rounding."""
        return not (self.left.lossy or self.right.lossy)

    @property
    def scale_free(self) -> bool:
        left = self.left.stages[:-1] if self._unit else self.left.stages
        return all(stage.scale_free for stage in left) and self.right.scale_free

    @property
    def shared_fields(self) -> tuple[str, ...]:
        return () if self.scope is None else ("right.",)

    @property
    def shared_names(self) -> tuple[str, ...]:
        return () if self.scope is None else (str(self.given or ""),)

    @property
    def named(self) -> Stage:
        return self if self.given is None else replace(self, given=str(self.given))

    @cached_property
    def _pursuit(self) -> Pursuit | None:
        """What finds sparse factors; None where left is not sparse in the way that it takes."""
        first = self.left.stages[0] if self.left.stages else None
        pattern = first.pattern if isinstance(first, Sparsify) else None
        if not isinstance(pattern, Groups) or pattern.vector != 1 or pattern.m != self.rank:
            return None
        ones = self._unit
        return Pursuit(self.rank, pattern.n, ones) if pattern.n == 1 or not ones else None

    @property
    def _unit(self) -> bool:
        return bool(self.left.stages) and isinstance(self.left.stages[-1], Ones)

    def check(self, shape: tuple[int, ...]) -> None:
        for factor, factor_shape in zip((self.left, self.right), self.shapes(shape), strict=True):
            factor.check(factor_shape)

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        return parts.nothing(x), self._fields(x, None)

    def encode_weighted(self, x: Tensor, importance: Tensor) -> tuple[Tensor, Fields, Tensor | None]:
        if x.is_meta or not x.numel() or self.solver is not None or self.block is not None:
            return *self.encode(x), None
        columns = importance.expand(x.shape).reshape(self._matrix_shape(tuple(x.shape))).mean(0)
        columns = columns.to(wide(x.dtype))
        return parts.nothing(x), self._fields(x, columns.clamp_min(columns.max() * 1e-6)), None

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        shape = tuple(carry.shape[1:])
        left_shape, right_shape = self.shapes(shape)
        left = parts.restored("left", self.left, fields, left_shape, carry.dtype)
        right = parts.restored("right", self.right, fields, right_shape, carry.dtype)
        blocks = 1 if self.block is None else shape[-1] // self.block
        with full_precision(left.device):
            return (left.reshape(left_shape[0] * blocks, right_shape[0]) @ right).reshape(shape)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        left, right = self.shapes(x.shape)
        fields = parts.part_layout("left", self.left, left, x.dtype)
        return parts.nothing_sized(x), fields | parts.part_layout("right", self.right, right, x.dtype)

    def widths(self) -> dict[str, int]:
        return {**parts.part_widths("left", self.left), **parts.part_widths("right", self.right)}

    def shared_over(self, tensors: Sequence[Tensor]) -> Stage:
        """With the right factor of all tensors below one another, where they have it in common."""
        parts.refuse_sharing("product", self.left, self.right)
        if self.scope is None:
            return self
        alone = self.ranked([tuple(tensor.shape) for tensor in tensors])
        dtype = tensors[0].dtype
        rows = torch.cat([t.detach().reshape(-1, alone.shapes(tuple(t.shape))[1][1]) for t in tensors])
        _, fields = replace(alone, scope=None, block=None).encode(rows)
        found = {name: field for name, field in fields.items() if name.startswith("right.")}
        assert rows.dtype == dtype, "weights that share a factor are of one dtype"
        return replace(alone, given=Given.of(found))

    def ranked(self, shapes: Sequence[tuple[int, ...]]) -> Product:
        """This stage with the rank that `keep_params` gives for tensors of these shapes, which share right.

        Raises RequestError where their inputs differ in number, or factors would be no fewer numbers than
        they are.
        """
        matrices = [self._matrix_shape(shape) for shape in shapes]
        columns = {count if self.block is None else self.block for _, count in matrices}
        if len(columns) > 1:
            raise RequestError(
                f"weights with {' and '.join(map(str, sorted(columns)))} inputs have no factor in common",
                advice="use a block, or scope: siblings",
            )
        rows, count = sum(size for size, _ in matrices), columns.pop()
        if self.keep_params is not None:
            return replace(self, rank=self._kept_rank(rows, count), keep_params=None)
        kept = None if self.rank is None or self.block is not None else self.rank * (rows + count)
        if kept is not None and kept >= rows * count:
            raise RequestError(
                f"rank {self.rank} of [{rows}, {count}] is {kept:,} numbers in factors, and {rows * count:,} "
                f"without; the break-even rank is {rows * count / (rows + count):.1f}",
                advice="choose a lower rank, or keep_params: 0.8",
            )
        return self

    def resized(self, rows: int, columns: int) -> Product:
        left, right = (parts.resized(factor, rows, columns) for factor in (self.left, self.right))
        if self.rank is None or self.block is not None or self.solver is not None:
            return replace(self, left=left, right=right)
        share = min(rows, columns) / min(REFERENCE_SHAPE)
        return replace(self, rank=max(1, round(self.rank * share)), left=left, right=right)

    def gaussian(self, source: Source) -> tuple[Source, float] | None:
        """With dense factors, what a rank leaves over of a large Gaussian matrix of the reference's shape."""
        if source.keeps or not self.dense_factors or self.block is not None:
            return None
        rank = self.rank if self.keep_params is None else self._kept_rank(*REFERENCE_SHAPE)
        return source, 0.0 if rank is None else leftover(rank)

    def _matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int]:
        return math.prod(shape[:-1]), shape[-1] if shape else 1

    def _kept_rank(self, rows: int, columns: int) -> int:
        assert self.keep_params is not None
        rank = int(self.keep_params * rows * columns / max(rows + columns, 1))
        if rank < 1:
            raise RequestError(
                f"keep_params {self.keep_params} of [{rows}, {columns}] is less than one rank, which takes "
                f"{rows + columns} numbers",
                advice="keep more, or leave this tensor out with `ignore`",
            )
        return rank

    def shapes(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of the factors of a tensor of this shape."""
        rows, columns = self._matrix_shape(shape)
        blocks, left_over = (1, 0) if self.block is None else divmod(columns, self.block)
        if left_over:
            raise RequestError(
                f"rows of {columns} numbers are not made of blocks of {self.block}",
                advice="choose a block that divides the inputs, or leave this tensor out with `ignore`",
            )
        columns = columns if self.block is None else self.block
        if self.rank is not None and (self.solver is not None or self.scope is not None):
            return (rows, blocks * self.rank), (self.rank, columns)
        rank = min(rows * blocks, columns)
        if self.keep_params is not None:
            rank = min(rank, self._kept_rank(rows, columns))
        rank = rank if self.rank is None else min(self.rank, rank)
        return (rows, blocks * rank), (rank, columns)

    def _fields(self, x: Tensor, columns: Tensor | None) -> Fields:
        left_shape, (rank, size) = self.shapes(tuple(x.shape))
        if x.is_meta or not x.numel():
            left, right = x.new_zeros(left_shape), x.new_zeros(rank, size)
            return self._coded("left", left)[0] | self._coded("right", right)[0]
        vectors = x.detach().contiguous().reshape(-1, size).to(wide(x.dtype))
        with full_precision(x.device):
            if self.given is not None:
                return self._onto_given(vectors, left_shape, x.dtype)
            if self.solver is not None:
                return self._pursued(vectors, left_shape, x.dtype)
            return self._factored(vectors, left_shape, columns, x.dtype)

    def _onto_given(self, vectors: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Fields:
        """The fields of the left factor for the right one that is given."""
        fields = fields_of(self.given or "", vectors.device)
        assert self.rank is not None
        if fields is None:
            raise RequestError(
                f"the factor {self.given!r} is a name here, without its numbers",
                advice="leave `given` out: it names what was fitted to other weights",
            )
        right = parts.restored("right", self.right, fields, (self.rank, vectors.shape[1]), dtype)
        right = right.to(vectors.dtype)
        if self._pursuit is not None and self.solver is not None:
            left = self._pursuit.coefficients(vectors, right)
        else:
            left = fitted_left(right, vectors)
        return self._encoded("left", left, shape, dtype)[0] | fields

    def _pursued(self, vectors: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> Fields:
        assert self._pursuit is not None
        left, right = self._pursuit.fitted(
            vectors,
            lambda factor: self._encoded("left", factor, shape, dtype),
            lambda factor: self._encoded("right", factor, None, dtype),
            self.rounds,
        )
        return left | right

    def _factored(
        self, matrix: Tensor, shape: tuple[int, int], columns: Tensor | None, dtype: torch.dtype
    ) -> Fields:
        rank = shape[1] * shape[0] // len(matrix)
        left, right = best_factors(matrix, rank, columns)
        best, left = self._encoded("left", left, shape, dtype)
        right_fields, right = self._encoded("right", right, None, dtype)
        best |= right_fields
        if not self.rounds:
            return best
        least = _error(matrix, left, right, columns)
        for _ in range(self.rounds):
            # right for left as it decodes, left for that right, and right once more for that left
            _, right = self._encoded("right", fitted_right(left, matrix), None, dtype)
            fields, left = self._encoded("left", fitted_left(right, matrix, columns), shape, dtype)
            right_fields, right = self._encoded("right", fitted_right(left, matrix), None, dtype)
            error = _error(matrix, left, right, columns)
            if error < least:
                best, least = fields | right_fields, error
        return best

    def _encoded(
        self, side: Side, factor: Tensor, shape: tuple[int, int] | None, dtype: torch.dtype
    ) -> tuple[Fields, Tensor]:
        """The fields of a factor of vectors, stored in a shape, and what they decode to as it is."""
        stored = factor if shape is None else factor.reshape(shape)
        fields, decoded = self._coded(side, stored.to(dtype))
        return fields, decoded.reshape(factor.shape)

    def _coded(self, side: Side, factor: Tensor) -> tuple[Fields, Tensor]:
        """The fields of a factor, and what they decode to in the precision of the computation."""
        representation = self.left if side == "left" else self.right
        code = representation.encode(factor)
        return parts.code_fields(side, code), representation.restore(code).to(wide(factor.dtype))


def _error(matrix: Tensor, left: Tensor, right: Tensor, columns: Tensor | None) -> float:
    squares = (matrix - left @ right).double().square_().sum(0)
    return float((squares if columns is None else squares * columns).sum())
