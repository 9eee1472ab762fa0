"""The differentiable projection: forward decodes what was encoded, backward is the estimators' choice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .estimators.base import Estimator
from .representation import Representation
from .view import View


def project_with_gradient(
    x: Tensor,
    representation: Representation,
    estimators: tuple[Estimator, ...],
    *,
    keep_rotated: bool = False,
) -> Tensor:
    """`representation.project(x)`, with dL/dx = P^T (M * P dL/dR(x)).

    P is the leading rotation, M the estimators' mask. With `keep_rotated` the result is P R(x) instead: a
    product of two tensors under the same rotation needs neither to be rotated back.
    """
    if representation.is_dense:
        return x
    masking = estimators if torch.is_grad_enabled() else ()  # without gradients nothing is worth masking
    result: Tensor = _Projection.apply(x, representation, masking, keep_rotated)  # type: ignore[no-untyped-call]
    return result


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        representation: Representation,
        estimators: tuple[Estimator, ...],
        keep_rotated: bool,
    ) -> Tensor:
        rotation = representation.rotation
        view = representation.view(x)
        ctx.rotation, ctx.keep_rotated = rotation, keep_rotated
        mask = _mask(view, estimators) if ctx.needs_input_grad[0] else None
        ctx.save_for_backward(*([] if mask is None else [mask]))
        return (view.projected if keep_rotated else _unrotate(rotation, view.projected)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad,) = grads
        if not ctx.saved_tensors:
            return (_unrotate(ctx.rotation, grad) if ctx.keep_rotated else grad), None, None, None
        (mask,) = ctx.saved_tensors
        rotated = grad if ctx.keep_rotated else _rotate(ctx.rotation, grad)
        return _unrotate(ctx.rotation, rotated * mask), None, None, None


def _mask(view: View, estimators: tuple[Estimator, ...]) -> Tensor | None:
    """The product of the estimators' masks; None when the gradient passes everywhere."""
    product: Tensor | None = None
    for estimator in estimators:
        mask = estimator.mask(view)
        if mask is not None:
            product = mask if product is None else product * mask
    return product


def _rotate(rotation: Representation, x: Tensor) -> Tensor:
    for stage in rotation.bound_stages:
        x, _ = stage.encode(x)
    return x


def _unrotate(rotation: Representation, rotated: Tensor) -> Tensor:
    for stage in reversed(rotation.bound_stages):
        rotated = stage.decode(rotated, {})
    return rotated


class Project(nn.Module):
    """The projection as a module without parameters, so that a graph can call it and print its name."""

    def __init__(
        self, representation: Representation, estimators: tuple[Estimator, ...], *, keep_rotated: bool = False
    ) -> None:
        super().__init__()
        for estimator in estimators:
            estimator.check(representation)
        self.representation = representation
        self.estimators = estimators
        self.keep_rotated = keep_rotated

    def forward(self, x: Tensor) -> Tensor:
        """The projection of `x`, same shape and dtype; still rotated with `keep_rotated`."""
        return project_with_gradient(x, self.representation, self.estimators, keep_rotated=self.keep_rotated)

    def extra_repr(self) -> str:
        names = "+".join(estimator.kind for estimator in self.estimators)
        return f"{self.representation}, {names or 'ste'}{', rotated' if self.keep_rotated else ''}"
