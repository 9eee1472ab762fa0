"""MS-EDEN: rounding to nearest, and scales that make up for it on average (Quartet II, 2601.22813)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...stage import Fields
from ..grids import FloatGrid
from ..precision import cast
from .base import Rule, Setting, by_rows
from .statistics import largest
from .stochastic import between
from .storage import Storage

_CLIP = 0.93 * 17 / 16  # of the absmax scale; 17/16 is what rounding a scale to e4m3 may take off it
_MOST = 256.0  # the largest stored scale: the correction has room up to 448
_SCALES = FloatGrid(4, 3)
_CODES, _WHOLE = "scale.carry", "scale.0.scale"  # the fields of scales in e4m3 under one of the tensor


class MsEden(Rule):
    """Scales of NVFP4 whose rounding is unbiased under a random rotation (Quartet II, section 3).

    The largest magnitude goes to 6 (16/17) / 0.93 and may be clipped, and numbers are rounded to nearest:
    Q(x). Then the scale of every group of 16 is multiplied with S = <x, x> / <x, Q(x)>, as EDEN (2108.08842,
    theorem 1) corrects a rotated vector, and S s is rounded to e4m3 stochastically, which keeps its mean. So
    <x, SQ(x)> = <x, x> on average, and a rotation uniform over all of them makes every direction's error
    vanish; that of a random-sign Hadamard matrix in blocks of 128 nearly does. Without a seed S s is rounded
    to nearest. Groups whose scale is too small for e4m3 become zeros.
    """

    corrects: ClassVar[bool] = True
    random: ClassVar[bool] = True

    def scale(self, blocks: Tensor, setting: Setting, importance: Tensor | None = None) -> Tensor:
        return by_rows(largest, blocks) * (_CLIP / setting.top)

    def stored(self, scale: Tensor, storage: Storage, own: torch.dtype) -> Fields:
        """As the storage does it, the largest scale at 256 instead of 448."""
        fields = storage.store(scale, own)
        if scale.is_meta or not scale.numel():
            return fields
        whole = cast(scale.amax() / _MOST, torch.float32).clamp_min(torch.finfo(torch.float32).tiny)
        return {
            _CODES: _SCALES.encode(scale / whole).reshape(fields[_CODES].shape),
            _WHOLE: whole.reshape(fields[_WHOLE].shape),
        }

    def correction(self, blocks: Tensor, projected: Tensor) -> Tensor:
        """S of each row `[m, 1]`; 1 where nothing is left to correct."""
        square = by_rows(lambda x: x.square().sum(-1, keepdim=True), blocks)
        product = by_rows(lambda x, q: (x * q).sum(-1, keepdim=True), blocks, projected)
        return torch.where(product > 0, square / torch.where(product > 0, product, 1.0), 1.0)

    def corrected(self, fields: Fields, factor: Tensor, generator: torch.Generator | None) -> Fields:
        """Stored scales times factors of their shape, rounded stochastically where a generator is given."""
        scale = _SCALES.decode(fields[_CODES], factor.dtype) * factor.reshape(fields[_CODES].shape)
        if generator is not None:
            scale = between(_SCALES, scale, generator)
        return {**fields, _CODES: _SCALES.encode(scale)}
