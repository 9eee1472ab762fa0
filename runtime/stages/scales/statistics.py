"""Scales that are a statistic of the numbers times a constant."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ...errors import RequestError
from ...gaussian import Array, Source
from . import rounding
from .base import OfMaximum, Rule, Setting, by_rows, mean_magnitude


class Absmax(Rule):
    """The largest magnitude to the grid's end (or where `absmax_rule` puts it)."""

    def scale(self, blocks: Tensor, setting: Setting, importance: Tensor | None = None) -> Tensor:
        return by_rows(largest, blocks) / setting.absmax_level

    def of_maximum(self, setting: Setting) -> OfMaximum:
        def scale(maximum: Array) -> Array:
            return maximum / setting.absmax_level

        return OfMaximum(scale)


class SignedAbsmax(Rule):
    """The number of largest magnitude, with its sign, to the lowest level: scales may be negative.

    llama.cpp's q4_0, q5_0 and q2_K-like formats: the largest number is reproduced exactly.
    """

    signed: ClassVar[bool] = True

    def scale(self, blocks: Tensor, setting: Setting, importance: Tensor | None = None) -> Tensor:
        return by_rows(self._signed, blocks) / setting.grid.levels[0]

    @staticmethod
    def _signed(blocks: Tensor) -> Tensor:
        low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
        return torch.where(-low > high, low, high)

    def of_maximum(self, setting: Setting) -> OfMaximum:
        def scale(maximum: Array) -> Array:
            return maximum / -setting.grid.levels[0]

        return OfMaximum(scale, signs=(-1.0,))  # the other sign is its mirror image, scale and all


class Rms(Rule):
    """Root mean square times `clip`, over the largest level (QuEST 2502.05003, section 3.1)."""

    def scale(self, blocks: Tensor, setting: Setting, importance: Tensor | None = None) -> Tensor:
        if setting.clip is None:
            raise RequestError("an rms scale needs its clip", advice="call encode through a Representation")
        factor = setting.clip / setting.top
        return by_rows(lambda part: part.square().mean(-1, keepdim=True), blocks).sqrt_().mul_(factor)

    def limit(self, setting: Setting, source: Source) -> float | None:
        return None if setting.clip is None else setting.clip * source.rms / setting.top


class Absmean(Rule):
    """The mean magnitude itself: with the ternary grid, BitNet b1.58 (2402.17764, equation 3)."""

    def scale(self, blocks: Tensor, setting: Setting, importance: Tensor | None = None) -> Tensor:
        return by_rows(lambda part: part.abs().mean(-1, keepdim=True), blocks)

    def limit(self, setting: Setting, source: Source) -> float:
        return mean_magnitude(source)


class Learned(Absmean):
    """LSQ's first value, 2 E|x| / sqrt(largest level) (1902.08153, section 2.1), which training moves."""

    signed: ClassVar[bool] = True  # once it has moved

    def scale(self, blocks: Tensor, setting: Setting, importance: Tensor | None = None) -> Tensor:
        return super().scale(blocks, setting, importance) * (2 / math.sqrt(setting.top))

    def limit(self, setting: Setting, source: Source) -> float:
        return mean_magnitude(source) * 2 / math.sqrt(setting.top)


class ThreeSigma(Rule):
    """max(|mu - 3 sigma|, |mu + 3 sigma|) / 2^(b-1), where LSQ+ starts weights (2004.09576, section 3.2)."""

    def scale(self, blocks: Tensor, setting: Setting, importance: Tensor | None = None) -> Tensor:
        half = 2.0 ** (setting.grid.bits - 1)
        return by_rows(self._reach, blocks) / half

    @staticmethod
    def _reach(blocks: Tensor) -> Tensor:
        mean = blocks.mean(-1, keepdim=True)
        deviation = (blocks - mean).square_().mean(-1, keepdim=True).sqrt_()
        return mean.abs() + 3 * deviation

    def limit(self, setting: Setting, source: Source) -> float:
        return float(3 * source.rms / 2.0 ** (setting.grid.bits - 1))


class Percentile(Rule):
    """The magnitude that `percentile` % of the numbers stay below (interpolated) to the grid's end."""

    def scale(self, blocks: Tensor, setting: Setting, importance: Tensor | None = None) -> Tensor:
        share = (setting.percentile or 100.0) / 100
        return by_rows(lambda part: _quantile(part.abs(), share), blocks) / setting.absmax_level

    def limit(self, setting: Setting, source: Source) -> float | None:
        share = (setting.percentile or 100.0) / 100
        return source.quantile(share) / setting.absmax_level if share < 1 else None


class FourOverSix(Rule):
    """The better of mapping the largest magnitude to 6 or to 4, block by block (2512.02010). For e2m1."""

    _ENDS = (6.0, 4.0)

    def scale(self, blocks: Tensor, setting: Setting, importance: Tensor | None = None) -> Tensor:
        def better(blocks: Tensor, importance: Tensor | None) -> Tensor:
            maximum = largest(blocks)
            six, four = (maximum / end for end in self._ENDS)
            errors = [rounding.error(setting.grid, blocks, scale, importance) for scale in (six, four)]
            return torch.where(errors[1] < errors[0], four, six)

        return by_rows(better, blocks, importance)

    def alternative(self, blocks: Tensor, scale: Tensor, setting: Setting) -> Tensor:
        maximum = by_rows(largest, blocks)
        six, four = (maximum / end for end in self._ENDS)
        return torch.where(scale == six, four, six)

    def refusal(self, setting: Setting) -> str | None:
        if setting.top == 6.0 and 4.0 in setting.grid.levels:
            return None
        return "observer 'four_over_six' needs grid: e2m1, whose two largest levels are 4 and 6"


def largest(blocks: Tensor) -> Tensor:
    """The largest magnitude of each row `[m, 1]`."""
    return blocks.abs().amax(-1, keepdim=True)  # faster than aminmax, which is not vectorised along rows


def _quantile(magnitude: Tensor, share: float) -> Tensor:
    """A quantile of each row, linearly interpolated between order statistics."""
    place = share * (magnitude.shape[-1] - 1)
    below = min(int(place), magnitude.shape[-1] - 1)
    if magnitude.is_meta:
        return magnitude[:, :1]
    low = magnitude.kthvalue(below + 1, dim=-1, keepdim=True).values
    if place == below:
        return low
    high = magnitude.kthvalue(below + 2, dim=-1, keepdim=True).values
    return torch.lerp(low, high, place - below)
