"""The scale with the least squared error: tried from the largest magnitude downwards, then least squares."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from ...determinism import one_thread
from ...gaussian import Source, optimal_scale
from ..grids import FloatGrid, Grid
from . import rounding
from .base import CHUNK, Rule, Setting, by_rows
from .statistics import largest

_TRIES = 6  # and one for each bit: scales tried between the widest and the narrowest
_BESIDE = (-2 / 3, -1 / 3, 1 / 3, 2 / 3)  # tried around the best of these, in steps of theirs
_NARROWEST = 0.7  # of the clip that is best for Gaussian numbers, in root mean squares
_WIDEST = 1.1  # of the absmax scale
_WIDEST_FLOAT = 1.3  # the same for minifloats, whose levels repeat in octaves


class Mse(Rule):
    """The scale whose rounding has the least squared error.

    Once every number has its level q, the best scale is sum(x q) / sum(q^2), and what it explains of sum(x^2)
    is sum(x q)^2 / sum(q^2). So a few scales are tried between that of the largest magnitude and one that
    clips more than Gaussian numbers need; each is judged by what its rounding explains, and the best one's
    is rounded and fitted again. Powers of two are tried as they are, down to a quarter.
    """

    signed: ClassVar[bool] = True  # on levels that lie mostly on one side of zero

    def scale(self, blocks: Tensor, setting: Setting, importance: Tensor | None = None) -> Tensor:
        if blocks.is_meta:
            return blocks[:, :1].abs()

        def search(part: Tensor, importance: Tensor | None) -> Tensor:
            if setting.power_of_two:
                return _best_power(part, setting, importance)
            return _searched(part, setting, importance)

        with one_thread():  # a long row's sums are then the same on any number of them
            return by_rows(search, blocks, importance)

    def limit(self, setting: Setting, source: Source) -> float | None:
        return None if setting.power_of_two else optimal_scale(setting.grid.levels, source)


def _searched(blocks: Tensor, setting: Setting, importance: Tensor | None) -> Tensor:
    tiny = torch.finfo(blocks.dtype).tiny
    tries = _TRIES + setting.grid.bits
    factor = _WIDEST_FLOAT if isinstance(setting.grid, FloatGrid) else _WIDEST
    widest = (largest(blocks) * (factor / setting.absmax_level)).clamp_min(tiny)
    rms = blocks.square().mean(-1, keepdim=True).sqrt_()
    clip = optimal_scale(setting.grid.levels, Source()) * _NARROWEST
    step = (rms * clip / widest).clamp(1e-3, 0.8).pow_(1 / (tries - 1))
    found = _Best(_Moments(blocks, setting.grid, importance), widest)
    for number in range(tries):
        found.attempt(widest * step**number)
    centre = found.tried
    for beside in _BESIDE:
        found.attempt(centre * step**beside)
    found.attempt(found.fitted.clamp_min(tiny))
    return found.fitted


class _Best:
    """The best scale so far of each row: as it was tried, and as least squares fitted it."""

    def __init__(self, moments: _Moments, start: Tensor) -> None:
        self.moments, self.tried, self.fitted = moments, start, start
        self.explained = torch.full_like(start, -1.0)

    def attempt(self, scale: Tensor) -> None:
        fitted, explained = self.moments(scale)
        better = explained > self.explained
        self.tried = torch.where(better, scale, self.tried)
        self.fitted = torch.where(better, fitted, self.fitted)
        self.explained = torch.where(better, explained, self.explained)


def _best_power(blocks: Tensor, setting: Setting, importance: Tensor | None) -> Tensor:
    """The best of the power of two that just does not saturate, its half and its quarter."""
    widest = largest(blocks) / setting.top
    fraction, exponent = torch.frexp(widest)
    exponent = exponent - (fraction == 0.5).to(exponent.dtype)  # the smallest power not below
    best, least = torch.ldexp(torch.ones_like(widest), exponent), torch.full_like(widest, torch.inf)
    for down in range(3):
        scale = torch.ldexp(torch.ones_like(widest), exponent - down)
        error = rounding.error(setting.grid, blocks, scale, importance)
        best, least = torch.where(error < least, scale, best), torch.minimum(error, least)
    return torch.where(widest > 0, best, 0.0)


class _Moments:
    """What the rounding under a scale explains of the numbers, row by row."""

    def __init__(self, blocks: Tensor, grid: Grid, importance: Tensor | None) -> None:
        self.blocks, self.grid, self.importance = blocks, grid, importance

    def __call__(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """(the least-squares scale for the rounding under `scale`, what it explains of sum(x^2))."""
        product, square = torch.zeros_like(scale), torch.zeros_like(scale)
        for start in range(0, self.blocks.shape[-1], CHUNK):
            part = slice(start, start + CHUNK)
            blocks = self.blocks[:, part]
            levels = self.grid.project(blocks / scale)
            weighted = levels if self.importance is None else levels * self.importance[:, part]
            product = product + (weighted * blocks).sum(-1, keepdim=True)
            square = square + levels.mul_(weighted).sum(-1, keepdim=True)
        square = square.clamp_min(torch.finfo(scale.dtype).tiny)
        return product / square, product * product / square
