"""Scale and zero point of asymmetric codes: x is near (q - z) s for codes q from 0 to 2^b - 1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import by_rows

_SHRINKS = 16  # ranges that `mse` tries, down to _SMALLEST of the whole
_SMALLEST = 0.4
_HQQ_ROUNDS, _HQQ_NORM, _HQQ_BETA, _HQQ_GROWTH = 20, 0.7, 10.0, 1.01  # as published by its authors


@dataclass(frozen=True)
class Codes:
    """Asymmetric codes: the largest one, and what may be stored as their zero point."""

    top: int
    integer: bool  # zero points are codes themselves
    precision: float  # the relative spacing of zero points, 0 for integers

    def zero(self, low: Tensor, scale: Tensor) -> Tensor:
        """The zero point that makes code 0 stand for `low`; 0 where there is no scale."""
        zero = torch.where(scale == 0, 0.0, -low / torch.where(scale == 0, 1.0, scale))
        return zero.round().clamp(0, self.top) if self.integer else zero


class AffineRule(ABC):
    """A scale and the value of code 0 for each row of a matrix of numbers. Rows are never empty."""

    @abstractmethod
    def line(self, blocks: Tensor, codes: Codes) -> Tensor:
        """`[m, 2]`: scale and lowest value of each row of blocks `[m, k]`."""

    def zero(self, blocks: Tensor, scale: Tensor, low: Tensor, codes: Codes) -> Tensor:
        """Zero points `[m, 1]` for the scales as they are stored."""
        return codes.zero(low, scale)


class MinMax(AffineRule):
    """From the smallest number to the largest; with an integer zero point, zero lies in between."""

    def line(self, blocks: Tensor, codes: Codes) -> Tensor:
        if blocks.is_meta:
            return blocks.new_empty(len(blocks), 2)
        return by_rows(lambda part: torch.cat(_whole(part, codes), -1), blocks)


class AffineMse(AffineRule):
    """The best of a few ranges, each shrunk from the whole one, and with a real zero point refitted."""

    def line(self, blocks: Tensor, codes: Codes) -> Tensor:
        if blocks.is_meta:
            return blocks.new_empty(len(blocks), 2)
        return by_rows(lambda part: self._searched(part, codes), blocks)

    def _searched(self, blocks: Tensor, codes: Codes) -> Tensor:
        whole, low = _whole(blocks, codes)
        middle = torch.zeros_like(low) if codes.integer else low + whole * (codes.top / 2)
        best, least = torch.cat((whole, low), -1), torch.full_like(low, torch.inf)
        for number in range(_SHRINKS):
            shrink = 1 - (1 - _SMALLEST) * number / (_SHRINKS - 1)
            line = torch.cat((whole * shrink, middle + (low - middle) * shrink), -1)
            if not codes.integer:
                line = _refitted(blocks, line, codes)
            error = _error(blocks, line, codes)
            best, least = torch.where(error < least, line, best), torch.minimum(error, least)
        return best


class Hqq(MinMax):
    """Half-quadratic quantisation (Badri and Shaji 2023): the zero point that an l_p norm of errors likes.

    The scale is that of `absmax`. Rounds alternate between errors e that an l_0.7 norm prefers (a soft
    threshold that moves large errors into e) and the mean zero point that explains the rest. Errors are in
    steps of the grid here, so that the rule does not depend on the size of the numbers.
    """

    def zero(self, blocks: Tensor, scale: Tensor, low: Tensor, codes: Codes) -> Tensor:
        start = super().zero(blocks, scale, low, codes)
        if blocks.is_meta:
            return start

        def rounds(blocks: Tensor, scale: Tensor, start: Tensor) -> Tensor:
            return self._rounds(blocks, scale, start, codes)

        return by_rows(rounds, blocks, scale, start)

    @staticmethod
    def _rounds(blocks: Tensor, scale: Tensor, start: Tensor, codes: Codes) -> Tensor:
        safe = torch.where(scale == 0, torch.inf, scale)
        scaled, beta = blocks / safe, _HQQ_BETA
        zero, best, least = start, start, torch.full_like(start, torch.inf)
        for _ in range(_HQQ_ROUNDS):
            levels = (scaled + zero).round_().clamp_(0, codes.top)
            error = torch.sub(scaled, levels).add_(zero)
            size = error.abs().clamp_min_(1e-12)
            slope = size.pow(_HQQ_NORM - 1)
            cost = (slope * size).sum(-1, keepdim=True)
            best, least = torch.where(cost < least, zero, best), torch.minimum(cost, least)
            shrunk = size.sub_(slope.div_(beta)).clamp_min_(0)
            moved = shrunk.mul_(error.sign_())
            zero = levels.sub_(scaled).add_(moved).mean(-1, keepdim=True)
            beta *= _HQQ_GROWTH
        return best


def _whole(blocks: Tensor, codes: Codes) -> tuple[Tensor, Tensor]:
    """Scale and lowest value of the whole range of each row.

    A real zero point has few digits, so the scale is kept from being too small a part of the numbers; that
    gives rows of equal numbers a scale, too.
    """
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    if codes.integer:
        low, high = low.clamp_max(0), high.clamp_min(0)
    scale = (high - low) / codes.top
    return torch.maximum(scale, torch.maximum(low.abs(), high.abs()) * codes.precision), low


def _levels(blocks: Tensor, line: Tensor, codes: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """Codes as numbers, zero points and scales of a line."""
    scale, low = line[:, :1], line[:, 1:]
    zero = codes.zero(low, scale)
    safe = torch.where(scale == 0, torch.inf, scale)
    return (blocks / safe).add_(zero).round_().clamp_(0, codes.top), zero, scale


def _error(blocks: Tensor, line: Tensor, codes: Codes) -> Tensor:
    levels, zero, scale = _levels(blocks, line, codes)
    return levels.sub_(zero).mul_(scale).sub_(blocks).square_().sum(-1, keepdim=True)


def _refitted(blocks: Tensor, line: Tensor, codes: Codes) -> Tensor:
    """The least-squares line through the numbers for the codes that a line gives them."""
    levels, _, scale = _levels(blocks, line, codes)
    mean_code, mean = levels.mean(-1, keepdim=True), blocks.mean(-1, keepdim=True)
    centred = levels.sub_(mean_code)
    spread = centred.square().sum(-1, keepdim=True)
    slope = (centred * blocks).sum(-1, keepdim=True) / torch.where(spread == 0, 1.0, spread)
    slope = torch.where(slope > mean.abs() * codes.precision, slope, scale)
    return torch.cat((slope, mean - slope * mean_code), -1)


AFFINE_RULES: dict[str, AffineRule] = {"absmax": MinMax(), "mse": AffineMse(), "hqq": Hqq()}
