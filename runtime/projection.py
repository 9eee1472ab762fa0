"""The differentiable projection: forward decodes what was encoded, backward is the estimators' choice."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from .arrangement import PLAIN, Arrangement
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


def project_along(
    x: Tensor, dimension: int, representation: Representation, estimators: tuple[Estimator, ...]
) -> Tensor:
    """`project_with_gradient` along a dimension of `x`, counted from the end; a vector has one only."""
    dimension = max(dimension, -x.dim())
    if representation.is_dense or dimension == -1:
        return project_with_gradient(x, representation, estimators)
    return project_with_gradient(x.movedim(dimension, -1), representation, estimators).movedim(-1, dimension)


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
        grad = grads[0].to_dense()  # lookups may ask for sparse ones
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
    """The projection as a module without parameters, so that a graph can call it and print its name.

    A weight is projected as its `arrangement` sees it, an activation along `dimension`.
    """

    def __init__(
        self,
        representation: Representation,
        estimators: tuple[Estimator, ...],
        *,
        keep_rotated: bool = False,
        arrangement: Arrangement = PLAIN,
        dimension: int = -1,
    ) -> None:
        super().__init__()
        for estimator in estimators:
            estimator.check(representation)
        self.representation = representation
        self.estimators = estimators
        self.keep_rotated = keep_rotated
        self.arrangement, self.dimension = arrangement, dimension

    @property
    def key(self) -> Hashable:
        """What it does: modules with equal keys do the same."""
        return self.representation, self.estimators, self.keep_rotated, self.arrangement, self.dimension

    def forward(self, x: Tensor) -> Tensor:
        """The projection of `x`, same shape and dtype; still rotated with `keep_rotated`."""
        if self.arrangement.is_plain:
            dimension = max(self.dimension, -x.dim())  # a vector has one only
            return self._project(x if dimension == -1 else x.movedim(dimension, -1)).movedim(-1, dimension)
        return self.arrangement.restore(self._project(self.arrangement.matrix(x)), tuple(x.shape))

    def _project(self, x: Tensor) -> Tensor:
        return project_with_gradient(x, self.representation, self.estimators, keep_rotated=self.keep_rotated)

    def extra_repr(self) -> str:
        names = "+".join(estimator.kind for estimator in self.estimators)
        return f"{self.representation}, {names or 'ste'}{', rotated' if self.keep_rotated else ''}"
