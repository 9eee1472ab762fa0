"""What a chain does to a weight before it loses anything, and what the inputs are to what is left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..stage import Fields, Stage
from ..stages import Scale


@dataclass(frozen=True)
class Inputs:
    """Inputs of a weight `[..., out, in]`: `hessian` `[b, in, in]` in float64, `size` `[in]`.

    b is 1, or the number of matrices where each has inputs of its own. `size` is the mean magnitude of every
    channel, or after a rotation its root mean square.
    """

    hessian: Tensor
    size: Tensor

    def turned(self, rotation: Stage) -> Inputs:
        """Those of a weight after a rotation of its rows, W P: P^T H P."""
        half = rotation.encode(self.hessian)[0].transpose(-1, -2).contiguous()
        hessian = rotation.encode(half)[0]
        rms = hessian.diagonal(dim1=-2, dim2=-1).mean(0).clamp_min(0).sqrt()
        return Inputs(hessian, rms)

    def scaled(self, factors: Tensor) -> Inputs:
        """Those of a weight whose columns `[in]` were divided by factors."""
        return Inputs(self.hessian * factors.unsqueeze(-1) * factors, self.size * factors)


@dataclass(frozen=True)
class Leading:
    """A weight after the leading stages of a chain: rotations, and scales of rows or columns.

    `carry` `[..., out, in]` is what the next stage is handed, `fields` are those of the leading stages, and
    `rest` the stages that follow. `inputs` are what the columns of the carry are multiplied with; an error of
    a row counts by `rows` `[..., out, 1]`, None where all rows count the same.
    """

    carry: Tensor
    fields: tuple[Fields, ...]
    rest: tuple[Stage, ...]
    inputs: Inputs
    rows: Tensor | None = None


def leading_stages(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages that only rotate or scale, before all others."""
    count = next((i for i, s in enumerate(stages) if not _is_leading(s)), len(stages))
    return stages[:count]


def led(
    stages: tuple[Stage, ...], weight: Tensor, inputs: Inputs, sizes: Mapping[int, Tensor] | None = None
) -> Leading:
    """A weight after the leading ones of bound stages; `sizes` gives scales by their position."""
    carry, fields, rows = weight.contiguous(), [], None
    leading = leading_stages(stages)
    for position, stage in enumerate(leading):
        if not isinstance(stage, Scale):
            carry, kept = stage.encode(carry)
            inputs = inputs.turned(stage)
        else:
            given = (sizes or {}).get(position)
            carry, kept = stage.encode(carry) if given is None else stage.encode_with(carry, given)
            width = carry.shape[-1] if stage.along == "columns" else 1
            like = inputs.hessian.new_ones(width).expand(*carry.shape[:-1], width)
            factors = stage.decode(like, kept)
            if stage.along == "rows":
                rows = factors if rows is None else rows * factors
            else:
                inputs = inputs.scaled(factors.reshape(-1, width)[0])
        fields.append(kept)
    return Leading(carry, tuple(fields), stages[len(leading) :], inputs, rows)


def _is_leading(stage: Stage) -> bool:
    return isinstance(stage, Scale) or "orthogonal" in stage.tags


def output_error(change: Tensor, inputs: Inputs) -> float:
    """tr(D H D^T), summed over matrices: the mean squared error of outputs for a change D of the weight.

    Products are in the dtype of the change: float32 is good for comparisons, and twice as fast.
    """
    d = change.reshape(len(inputs.hessian), -1, change.shape[-1])
    products = torch.matmul(d, inputs.hessian.to(d.dtype)).mul_(d)
    return float(products.sum(-1).double().sum())
