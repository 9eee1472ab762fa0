"""Gradients of a fused linear with a fixed weight: to the input and the bias, through the decoded weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .dense_product import dense_linear, product_dtype

Compute = Callable[[Tensor, Tensor | None], Tensor]
Decode = Callable[[], Tensor]


def with_gradient(compute: Compute, decode: Decode, x: Tensor, bias: Tensor | None) -> Tensor:
    """`compute(x, bias)`, a linear with the weight that `decode` returns `[n, k]`, and its gradients.

    The weight is decoded in the backward pass only.
    """
    wanted = x.requires_grad or (bias is not None and bias.requires_grad)
    if not (wanted and torch.is_grad_enabled()):
        return compute(x, bias)
    result: Tensor = _FixedWeight.apply(x, bias, compute, decode)  # type: ignore[no-untyped-call]
    return result


class _FixedWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, compute: Compute, decode: Decode) -> Tensor:
        ctx.decode = decode
        return compute(x, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        (grad,) = grads
        wants_x, wants_bias, *_ = ctx.needs_input_grad
        to_x = dense_linear(grad, ctx.decode().to(product_dtype(grad)).T) if wants_x else None
        to_bias = grad.reshape(-1, grad.shape[-1]).sum(0) if wants_bias else None
        return to_x, to_bias, None, None
