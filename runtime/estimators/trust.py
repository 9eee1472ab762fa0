"""Trust: the gradient passes where a number moved by at most half a cell (QuEST 2502.05003, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..representation import Representation
from ..stage import Sphere
from ..view import View
from .base import Estimator, bare

OUTER_ROTATED, OUTER_PLAIN = 1.30, 1.25  # QuEST's s* for one bit, with and without a Hadamard rotation


@dataclass(frozen=True)
class Trust(Estimator):
    """M = |R(x) - x| <= factor * T, with T half the grid's widest cell, in the rotated domain.

    A grid of two levels has no inner cell, so its outer region is bounded instead: |x| <= s * level with
    s = 1.30 after a rotation and 1.25 without. A zeroed number of a sparse chain passes if it lies within T
    of zero. `factor` widens the bound.

    Of a codebook whole vectors pass, those within a sphere: |v|^2 <= R^2 (2506.01863, algorithms 1 and 2,
    which do not print R). R = N + factor * T, with N the largest norm of a vector of the codebook times its
    scale, and T half the distance of that vector from the nearest other one: for vectors of one number and
    equal cells this is the rule above. Codebooks that are summed have the sum of their N, and the last one's
    T. Zeroed numbers of a sparse chain pass. `radius` gives R instead, in units of the scale.
    """

    factor: float = 1.0
    radius: float | None = None
    kind: Literal["trust"] = "trust"

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise ValueError(f"factor must be positive, got {self.factor}")
        if self.radius is not None and not self.radius > 0:
            raise ValueError(f"radius must be positive, got {self.radius}")

    def check(self, representation: Representation) -> None:
        if not representation.stages:
            return
        kinds = {stage.kind for stage in representation.unwrapped}
        if not kinds & {"quantize", "codebook"}:
            raise ValueError(f"'trust' needs a grid, and {representation} has none; use 'ste' or 'banded'")
        if self.radius is not None and "codebook" not in kinds:
            raise ValueError(f"radius of 'trust' is for codebooks, and {representation} has none; use factor")
        inner = bare(representation).core.stages
        if "codebook" in kinds and any("orthogonal" in stage.tags for stage in inner):
            raise ValueError(f"'trust' cannot see the vectors of {representation}; put rotations first")

    def trained(self, representation: Representation) -> Representation:
        return bare(representation)

    def mask(self, view: View) -> Tensor | None:
        if view.cell is None:
            return None if view.sphere is None else view.placed(self._within(view.handed, view.sphere), 1.0)
        if view.cell.num_levels == 2:
            outer = OUTER_ROTATED if view.rotated else OUTER_PLAIN
            return view.latent.abs().le_(view.cell.outermost * (outer * self.factor))
        return (view.projected - view.latent).abs_().le_(view.cell.half_width * self.factor)

    def _within(self, x: Tensor, sphere: Sphere) -> Tensor:
        """1 for every number of a vector in the sphere, else 0."""
        size = x.shape[-1]
        scaled = torch.where(sphere.scale == 0, 0.0, x / sphere.scale)
        padded = F.pad(scaled, (0, -size % sphere.size))
        vectors = padded.reshape(*x.shape[:-1], padded.shape[-1] // sphere.size, sphere.size)
        radius = sphere.outermost + self.factor * sphere.reach if self.radius is None else self.radius
        passes: Tensor = vectors.square().sum(-1).sqrt() <= radius
        return passes.to(scaled.dtype).repeat_interleave(sphere.size, -1)[..., :size]
