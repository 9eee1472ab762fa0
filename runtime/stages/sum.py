"""A sum of representations: each encodes what those before it left over."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from ..representation import Representation
from ..stage import Fields, HandsOn, Sized, Stage
from ..text import sum_text
from .parts import code_fields, nothing, nothing_sized, part_layout, part_widths, restored


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
        if len(self.terms) < 2:
            raise ValueError(f"terms must be at least two chains, got {len(self.terms)}")
        for position, term in enumerate(self.terms[:-1]):
            if not term.lossy:
                raise ValueError(f"terms[{position}] loses nothing, so the terms after it have nothing to encode")

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
        rest = x
        for position, term in enumerate(self.terms):
            code = term.encode(rest, importance)
            fields |= code_fields(str(position), code)
            if position < len(self.terms) - 1:
                rest = (rest.to(_wide(x.dtype)) - term.restore(code)).to(x.dtype)
        return nothing(x), fields

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        shape = tuple(carry.shape[1:])
        parts = (restored(str(i), term, fields, shape, carry.dtype) for i, term in enumerate(self.terms))
        return reduce(torch.add, parts)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        fields: dict[str, Sized] = {}
        for position, term in enumerate(self.terms):
            fields |= part_layout(str(position), term, x.shape, x.dtype)
        return nothing_sized(x), fields

    def widths(self) -> dict[str, int]:
        return {n: b for i, term in enumerate(self.terms) for n, b in part_widths(str(i), term).items()}

    def __str__(self) -> str:
        return sum_text(self.terms)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
