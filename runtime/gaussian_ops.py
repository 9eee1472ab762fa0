"""Gaussian weights as operators, of which torch.compile traces nothing: `rhoc::gaussian_weight` and its
gradient. The backward pass draws the same noise again, from the same seed, instead of keeping it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .stages.precision import wide


def _noise(seed: Tensor, like: Tensor) -> Tensor:
    generator = torch.Generator(like.device).manual_seed(int(seed))
    return torch.randn(like.shape, generator=generator, dtype=wide(like.dtype), device=like.device)


def _gaussian(
    mean: Tensor, deviation: Tensor, seed: Tensor, floor: float, below: float, pull: float
) -> Tensor:
    noise = _noise(seed, mean)
    return noise.mul_(deviation.clamp_min(floor)).add_(mean).to(mean.dtype)


def _gaussian_fake(
    mean: Tensor, deviation: Tensor, seed: Tensor, floor: float, below: float, pull: float
) -> Tensor:
    return torch.empty_like(mean, memory_format=torch.contiguous_format)


def _to_deviation(
    grad: Tensor, deviation: Tensor, seed: Tensor, floor: float, below: float, pull: float
) -> Tensor:
    slope = _noise(seed, grad).mul_(grad).mul_(deviation >= floor)
    return slope.sub_((deviation < below).to(slope.dtype), alpha=pull).to(deviation.dtype)


def _to_deviation_fake(
    grad: Tensor, deviation: Tensor, seed: Tensor, floor: float, below: float, pull: float
) -> Tensor:
    return torch.empty_like(deviation, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, deviation, seed, *ctx.rest = inputs
    ctx.save_for_backward(deviation, seed)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    deviation, seed = ctx.saved_tensors
    to_deviation = _TO_DEVIATION(grad, deviation, seed, *ctx.rest) if ctx.needs_input_grad[1] else None
    return grad, to_deviation, None, None, None, None


GAUSSIAN = torch.library.custom_op("rhoc::gaussian_weight", _gaussian, mutates_args=())
"""mean + max(deviation, floor) noise. `below` and `pull` are for the gradient of deviations."""
GAUSSIAN.register_fake(_gaussian_fake)
GAUSSIAN.register_autograd(_differentiate, setup_context=_save)
_TO_DEVIATION = torch.library.custom_op("rhoc::gaussian_weight_backward", _to_deviation, mutates_args=())
_TO_DEVIATION.register_fake(_to_deviation_fake)
