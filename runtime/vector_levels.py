"""Codebooks of a chain under tables that are kept: what an activation is encoded with, level by level.

Multi-codebooks (groups of channels with a codebook each) and cascades (each level encodes what the levels
before it left over) as in McQuic (Zhu et al., arXiv 2203.10897) and residual product quantisation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from .codebooks.books import Books
from .coded_bytes import symbols_of
from .errors import RequestError
from .representation import Representation
from .stages.codebook import Codebook
from .stages.sum import Sum


@dataclass(frozen=True)
class Levels:
    """The codebooks of a representation, the first one first; all read vectors of `size` neighbours.

    Shapes: a tensor is `[..., n]`, n a multiple of `size`; its codes are `[..., n / size * count]`, those of
    a vector together. Tables are one for each stage, `[num_codebooks, vectors, dimensions]`.
    """

    stages: tuple[Codebook, ...]

    @property
    def size(self) -> int:
        """Neighbours that are encoded together."""
        return self.stages[0].in_group_size

    @property
    def count(self) -> int:
        """Codes of a vector."""
        return sum(stage.num_codebooks for stage in self.stages)

    @property
    def bits(self) -> int:
        """Bits of the codes of a vector."""
        return sum(stage.num_codebooks * stage.nbits_per_codebook for stage in self.stages)

    @property
    def nbytes(self) -> int:
        """What tables and the frequencies of their vectors take as they are stored."""
        return sum(
            torch.Size(stage.books_shape).numel() * getattr(torch, stage.codebook_dtype).itemsize
            + 2 * stage.num_codebooks * symbols_of(stage.nbits_per_codebook)
            for stage in self.stages
        )

    @cached_property
    def alphabets(self) -> tuple[int, ...]:
        """Bits of each code of a vector."""
        return tuple(s.nbits_per_codebook for s in self.stages for _ in range(s.num_codebooks))

    def check(self, features: int) -> None:
        """Raise RequestError when a tensor with so many numbers along the last dimension has no codes."""
        if features % self.size:
            raise RequestError(
                f"{features} outputs are not a multiple of in_group_size {self.size}",
                advice="choose an in_group_size that divides the outputs",
            )

    def first(self) -> list[Tensor]:
        """Tables before training: normal numbers of variance 2 / (5 d), as McQuic's authors draw them."""
        found = []
        for position, stage in enumerate(self.stages):
            generator = torch.Generator().manual_seed(stage.seed + position)
            drawn = torch.randn(stage.books_shape, generator=generator)
            found.append(drawn * (2 / (5 * stage.books_shape[2])) ** 0.5)
        return found

    def stored(self, tables: Sequence[Tensor]) -> list[Tensor]:
        """Tables with the numbers that are stored, in float32."""
        pairs = zip(self.stages, tables, strict=True)
        return [t.detach().to(getattr(torch, stage.codebook_dtype)).float() for stage, t in pairs]

    def rounded(self, tables: Sequence[Tensor]) -> list[Tensor]:
        """The same for training: gradients pass straight through."""
        pairs = zip(tables, self.stored(tables), strict=True)
        return [table.float() + (kept - table.float()).detach() for table, kept in pairs]

    def encode(self, x: Tensor, tables: Sequence[Tensor]) -> Tensor:
        """The codes of a tensor under float32 tables, int64: level by level the nearest vectors."""
        rest = x.detach().float().reshape(-1, self.size)
        codes = []
        for books in self._books(tables):
            codes.append(_nearest(rest, books))
            rest = rest - books.decode(codes[-1])
        return torch.cat(codes, 1).reshape(*x.shape[:-1], -1)

    def decode(self, codes: Tensor, tables: Sequence[Tensor]) -> Tensor:
        """The float32 tensor of codes."""
        rows = torch.split(codes.reshape(-1, self.count).long(), [s.num_codebooks for s in self.stages], 1)
        parts = [books.decode(own) for books, own in zip(self._books(tables), rows, strict=True)]
        restored = parts[0]
        for part in parts[1:]:
            restored = restored + part
        return restored.reshape(*codes.shape[:-1], -1)

    def steps(self, tables: Sequence[Tensor]) -> list[Tensor]:
        """Tables `[groups, vectors, dimensions of a group]`, one for each step of encoding."""
        found: list[Tensor] = []
        for stage, table in zip(self.stages, tables, strict=True):
            found += [table] if stage.composition == "product" else list(table.unsqueeze(1))
        return found

    def _books(self, tables: Sequence[Tensor]) -> list[Books]:
        return [Books(table, stage.composition) for stage, table in zip(self.stages, tables, strict=True)]


def _nearest(x: Tensor, books: Books) -> Tensor:
    if not torch.compiler.is_compiling():
        return books.encode(x)
    codes, rest = [], x
    for book, points in enumerate(books.points):
        part = books.slice(rest, book)
        codes.append((points.square().sum(1) - 2 * part @ points.T).argmin(1))
        if books.composition != "product":
            rest = rest - points[codes[-1]]
    return torch.stack(codes, 1)


@lru_cache(maxsize=256)
def levels_of(representation: Representation) -> Levels:
    """The levels of a representation. Raises ValueError where it is not made of codebooks whose tables can be
    kept."""
    terms = [representation]
    if len(representation.stages) == 1 and isinstance(representation.stages[0], Sum):
        terms = list(representation.stages[0].terms)
    found: list[Codebook] = []
    for term in terms:
        stage = term.stages[0] if len(term.stages) == 1 else None
        if not isinstance(stage, Codebook):
            raise ValueError(f"keeps tables of codebooks or sums of them, and {term} is something else")
        if why := _refusal(stage):
            raise ValueError(f"keeps tables, and {stage} {why}")
        found.append(stage)
    if len({stage.in_group_size for stage in found}) > 1:
        raise ValueError("needs the same in_group_size in all terms of a sum")
    return Levels(tuple(found))


def _refusal(stage: Codebook) -> str:
    if stage.source != "kmeans" or stage.scope != "tensor":
        return "has others; use source: kmeans and scope: tensor"
    if stage.scaled:
        return "has scales; use observer: none"
    return "searches codes together; use composition: residual or product" * (stage.composition == "additive")
