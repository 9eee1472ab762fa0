"""Banded: numbers in a band beside the pruning threshold get no gradient (RBBM, 2506.01863, section 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

from ..representation import Representation
from ..view import View
from .base import Estimator

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Banded(Estimator):
    """The root-mean-square banded backward mask of a sparse stage; exactly one of `p` and `area` is given.

    T_k is the pruning threshold. b-rms (`p` in [0, 0.5)): T_p = RMS(x) ppf(0.5 + p), and entries between
    min(T_p, T_k) and max(T_p, T_k) get no gradient; p = 0 is the fixed mask (survivors only). a-b-rms
    (`area` a in [0, 1]): T_a = RMS(x) ppf(0.5 + (1 - a)(cdf(T_k / RMS(x)) - 0.5)), and entries between T_a
    and T_k get none; a = 0 leaves no band (straight-through), a = 1 is the fixed mask. (The paper's prose has
    the end points of the second the other way round; this is its formula.)
    """

    p: float | None = None
    area: float | None = None
    kind: Literal["banded"] = "banded"

    def __post_init__(self) -> None:
        if (self.p is None) == (self.area is None):
            raise ValueError("banded takes either p (b-rms) or area (a-b-rms)")
        if self.p is not None and not 0 <= self.p < 0.5:
            raise ValueError(f"p must be in [0, 0.5), got {self.p}")
        if self.area is not None and not 0 <= self.area <= 1:
            raise ValueError(f"area must be in [0, 1], got {self.area}")

    def check(self, representation: Representation) -> None:
        if representation.stages and not any("sparse" in stage.tags for stage in representation.unwrapped):
            raise ValueError(
                f"'banded' needs a sparse stage, and {representation} has none; use 'ste' or 'trust'"
            )

    def mask(self, view: View) -> Tensor | None:
        if view.kept is None or self.area == 0 or not view.kept.numel():
            return None
        magnitude = view.latent.abs()
        magnitude = magnitude.to(torch.promote_types(magnitude.dtype, torch.float32))
        # T_k is taken as the largest magnitude that was pruned, so that |x| > T_k is the forward mask.
        threshold = torch.where(view.kept, 0.0, magnitude).amax()
        rms = magnitude.square().mean().sqrt()
        inner = rms * self._inner_quantile() if self.p is not None else self._inner_by_area(threshold, rms)
        below_band = view.kept | (magnitude < inner)
        above_band = ~view.kept | (magnitude > inner)
        return torch.where(inner <= threshold, below_band, above_band)

    def _inner_quantile(self) -> float:
        return _NORMAL.inv_cdf(0.5 + (self.p or 0.0))

    def _inner_by_area(self, threshold: Tensor, rms: Tensor) -> Tensor:
        scaled = threshold / rms.clamp_min(torch.finfo(rms.dtype).tiny)
        inside = 0.5 * torch.erf(scaled / math.sqrt(2)) * (1 - (self.area or 0.0))
        return torch.minimum(rms * torch.special.ndtri((0.5 + inside).clamp_max(1 - 1e-7)), threshold)
