"""Per-channel scales: rows or columns brought to one size, before a stage that treats all numbers alike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import RequestError
from ..gaussian import Source
from ..stage import Fields, Sized, Stage
from .precision import wide

_BIAS, _LEAST, _LARGEST = 127, -126, 127  # of e8m0, without the power that is subnormal in float32


@dataclass(frozen=True)
class Scale(Stage):
    """Divide every row or column by its own scale and hand on the numbers, now of one size.

    The tensor is read as a matrix: its last dimension `n` are the columns, all others the rows. Two in a
    chain, columns and then rows, balance both. `along` says what has a scale: `columns` (field `scale` of
    `[n]`) or `rows` (one for each vector along the last dimension). `rule` is what becomes 1: `rms`, the
    root mean square, or `absmax`, the largest magnitude; a row or column of zeros has the scale 1.
    `scale_dtype` is how scales are stored, rounded before anything is divided; unset means the tensor's own
    dtype, and `e8m0` the nearest power of two in a byte (biased by 127), which makes the division exact.
    """

    along: Literal["columns", "rows"] = "columns"
    rule: Literal["rms", "absmax"] = "rms"
    scale_dtype: Literal["float32", "float16", "bfloat16", "e8m0"] | None = None
    kind: Literal["scale"] = "scale"

    tags: ClassVar[frozenset[str]] = frozenset({"elementwise", "lossless"})

    @property
    def scale_free(self) -> bool:
        return self.scale_dtype != "e8m0"

    def check(self, shape: tuple[int, ...]) -> None:
        if not shape or (self.along == "columns" and len(shape) < 2):
            what = "a single number" if not shape else "a vector, each of whose columns is a single number"
            advice = "leave it out with `ignore`" + (", or use along: rows" if shape else "")
            raise RequestError(f"{self} cannot scale {what}", advice=advice)

    def encode(self, x: Tensor) -> tuple[Tensor, Fields]:
        self.check(tuple(x.shape))
        return self.encode_with(x, self._sizes(x.to(wide(x.dtype))))

    def encode_with(self, x: Tensor, sizes: Tensor) -> tuple[Tensor, Fields]:
        """`encode` with given scales, `[n]` of columns or `[...]` of rows, rounded as they are stored."""
        numbers = x.to(wide(x.dtype))
        scale = self._stored(sizes, x.dtype)
        carry = numbers / self.factors(scale).to(numbers.dtype)
        return carry.to(x.dtype), {"scale": scale}

    def encode_weighted(self, x: Tensor, importance: Tensor) -> tuple[Tensor, Fields, Tensor | None]:
        carry, fields = self.encode(x)
        factors = self.factors(fields["scale"]).to(wide(importance.dtype))
        return carry, fields, importance * factors.square()  # an error grows by the scale when decoded

    def decode(self, carry: Tensor, fields: Fields) -> Tensor:
        numbers = carry.to(wide(carry.dtype))
        return numbers * self.factors(fields["scale"]).to(numbers.dtype)

    def layout(self, x: Sized) -> tuple[Sized, dict[str, Sized]]:
        self.check(x.shape)
        shape = x.shape[-1:] if self.along == "columns" else x.shape[:-1]
        return x, {"scale": Sized(shape, self._dtype(x.dtype))}

    def gaussian(self, source: Source) -> tuple[Source, float] | None:
        """Nothing changes where rows and columns are long: all scales are equal, and divide nothing out."""
        return source, 0.0

    def _sizes(self, numbers: Tensor) -> Tensor:
        """What each row or column is to be divided by, before it is rounded to be stored."""
        vectors = numbers.flatten(0, -2) if self.along == "columns" else numbers
        dim = 0 if self.along == "columns" else -1
        if not vectors.shape[dim]:
            return vectors.new_ones(vectors.sum(dim).shape)
        largest = vectors.abs().amax(dim)
        sizes = largest
        if self.rule == "rms":  # of numbers below one: their squares neither overflow nor vanish
            unit = torch.where(largest > 0, largest, 1).unsqueeze(dim)
            sizes = (vectors / unit).square().mean(dim).sqrt() * unit.squeeze(dim)
        return torch.where(largest > 0, sizes, 1)

    def _dtype(self, dtype: torch.dtype) -> torch.dtype:
        if self.scale_dtype == "e8m0":
            return torch.uint8
        return getattr(torch, self.scale_dtype) if self.scale_dtype else dtype

    def _stored(self, sizes: Tensor, dtype: torch.dtype) -> Tensor:
        """Scales as they are stored, within what their dtype can hold."""
        if self.scale_dtype == "e8m0":
            fraction, exponent = torch.frexp(sizes)  # sizes = fraction * 2^exponent, fraction in [1/2, 1)
            nearest = torch.where(fraction < math.sqrt(0.5), exponent - 1, exponent)
            return (nearest.clamp(_LEAST, _LARGEST) + _BIAS).to(torch.uint8)
        stored = self._dtype(dtype)
        info = torch.finfo(stored)
        return sizes.clamp(info.tiny, info.max).to(stored)

    def factors(self, scale: Tensor) -> Tensor:
        """What stored scales stand for, shaped to multiply the tensor."""
        if self.scale_dtype == "e8m0":
            one = torch.ones(scale.shape, dtype=torch.float32, device=scale.device)
            scale = torch.ldexp(one, scale.to(torch.int32) - _BIAS)
        return scale if self.along == "columns" else scale.unsqueeze(-1)
