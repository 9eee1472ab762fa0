"""A sum of representations: each encodes what those before it left over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from ..gaussian import Source
from ..marchenko_pastur import leftover
from ..representation import Representation
from ..stage import Fields, HandsOn, Sized, Stage
from ..text import sum_text
from . import parts
from .precision import wide
from .product import Product


@dataclass(frozen=True)
class Sum(Stage):
    """The first term encodes the tensor, every next one what the terms before it left over.

    Residual vector quantisation, low rank plus quantised, quantised plus sparse outliers. `terms` are chains
    of stages, two or more; a term decodes to the tensor's shape, and the decoded terms are added in order in
    float32 at least. What is left over is rounded to the tensor's own dtype before it is encoded. Fields are
    named `<term>.<name>`.
    """

    terms: tuple[Representation, ...]
    kind: Literal["sum"] = "sum"

    def __post_init__(self) -> None:
        first = self.terms[0].stages if self.terms else ()
        if len(first) == 1 and isinstance(first[0], Sum):  # (a + b) + c is a + b + c
            object.__setattr__(self, "terms", (*first[0].terms, *self.terms[1:]))
        if len(self.terms) < 2:
            raise ValueError(f"terms must be at least two chains, got {len(self.terms)}")
        for position, term in enumerate(self.terms[:-1]):
            if not term.lossy:
                raise ValueError(
                    f"terms[{position}] loses nothing, so the terms after it have nothing to encode"
                )

    @property
    def hands_on(self) -> HandsOn:
        return "nothing"

    @property
    def scale_free(self) -> bool:
        return all(term.scale_free for term in self.terms)

    def check(self, shape: tuple[int, ...]) -> None:
        for term in self.terms:
            term.check(shape)

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        return self._encode(x, None)

    def encode_weighted(self, x: Tensor, importance: Tensor) -> tuple[Tensor, Fields, Tensor | None]:
        return (*self._encode(x, importance), None)

    def _encode(self, x: Tensor, importance: Tensor | None) -> tuple[Tensor, Fields]:
        fields: Fields = {}
        rest = x.contiguous()  # sums of squares must not depend on strides
        for position, term in enumerate(self.terms):
            code = term.encode(rest, importance)
            fields |= parts.code_fields(str(position), code)
            if position < len(self.terms) - 1:
                rest = (rest.to(wide(x.dtype)) - term.restore(code)).to(x.dtype)
        return parts.nothing(x), fields

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        shape = tuple(carry.shape[1:])
        terms = (
            parts.restored(str(i), term, fields, shape, carry.dtype) for i, term in enumerate(self.terms)
        )
        return reduce(torch.add, terms)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        fields: dict[str, Sized] = {}
        for position, term in enumerate(self.terms):
            fields |= parts.part_layout(str(position), term, x.shape, x.dtype)
        return parts.nothing_sized(x), fields

    def widths(self) -> dict[str, int]:
        return {n: b for i, term in enumerate(self.terms) for n, b in parts.part_widths(str(i), term).items()}

    def shared_over(self, tensors: Sequence[Tensor]) -> Stage:
        terms, rest = [], list(tensors)
        for term in self.terms:
            terms.append(term.shared_over(rest))
            rest = [x - terms[-1].project(x) for x in rest]
        return Sum(tuple(terms))

    @property
    def shared_fields(self) -> tuple[str, ...]:
        return tuple(f"{i}.{name}" for i, term in enumerate(self.terms) for name in term.shared_fields)

    @property
    def shared_names(self) -> tuple[str, ...]:
        return tuple(name for term in self.terms for name in term.shared_names)

    @property
    def named(self) -> Stage:
        return Sum(tuple(term.named for term in self.terms))

    def resized(self, rows: int, columns: int) -> Sum:
        return Sum(tuple(parts.resized(term, rows, columns) for term in self.terms))

    def gaussian(self, source: Source) -> tuple[Source, float] | None:
        """Dense products in front, and at most one term after them.

        What the products leave over is known: together they are the best approximation of their ranks' sum.
        Its entries are nearly Gaussian, a sum of many singular vectors, and so the last term loses its own
        share of them. After any other term the leftover is of another kind, and its error is for Monte Carlo.
        """
        ranks = [_dense_rank(term) for term in self.terms]
        products = next((i for i, rank in enumerate(ranks) if rank is None), len(ranks))
        after = self.terms[products:]
        if source.keeps or not products or len(after) > 1 or any(map(parts.has_rank, after)):
            return None
        left = leftover(sum(rank for rank in ranks[:products] if rank is not None))
        share = parts.quadrature(after[0]) if after else 1.0
        return None if share is None else (source, left * share)

    def __str__(self) -> str:
        return sum_text(self.terms)


def _dense_rank(term: Representation) -> int | None:
    """The rank of a term that is a product of dense factors, if need be after a rotation; None of another."""
    product = term.core.stages[0] if len(term.core.stages) == 1 else None
    return product.rank if isinstance(product, Product) and product.dense_factors else None
