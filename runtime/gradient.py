"""Output gradients in a representation, in the two matrix products of a backward pass (Quartet, 2505.14669).

For y = x W^T the backward pass computes dL/dx = G W, a sum over output features, and dL/dW = G^T x, a sum
over tokens, with G = dL/dy. Stages work along what a product sums over, so G is projected once along each.
Other operations that are linear in the input and in the weight are treated alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import RequestError
from .operations import LINEAR, Operation
from .representation import Representation


def with_represented_gradient(
    function: Callable[..., Any],
    operation: Operation,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    rank: int,
    representation: Representation,
) -> Any:
    """`function(*args, **kwargs)`, whose backward pass reads its output gradient in `representation`.

    The gradient of a bias is a sum without a product, and stays exact.
    """
    if not torch.is_grad_enabled() or operation.input is None:
        return function(*args, **kwargs)
    x, weight = args[operation.input], args[operation.weight]
    bias = args[operation.bias] if operation.bias is not None and len(args) > operation.bias else None
    if operation is LINEAR:
        result: Any = _Linear.apply(x, weight, representation)  # type: ignore[no-untyped-call]
        return result if bias is None else result + bias.to(result.dtype)  # as it is under autocast
    call = _Call(function, operation, tuple(args), dict(kwargs), operation.features_of(rank), representation)
    result = _Bilinear.apply(x, weight, call)  # type: ignore[no-untyped-call]
    return result if bias is None else result + call.broadcast(bias).to(result.dtype)


def _project_tokens(representation: Representation, grad: Tensor) -> Tensor:
    """`grad` [..., features, tokens] projected along tokens, of which a batch may have any number.

    Zeros, which add nothing to the sum over tokens, make it a number that the representation takes.
    """
    shape, count = tuple(grad.shape[:-1]), grad.shape[-1]
    for multiple in _MULTIPLES:
        padded = -(-count // multiple) * multiple
        if _fits(representation, (*shape, padded)):
            return representation.project(F.pad(grad, (0, padded - count)))[..., :count]
    return representation.project(grad)  # which says what is wrong


_MULTIPLES = tuple(2**power for power in range(13))


def _fits(representation: Representation, shape: tuple[int, ...]) -> bool:
    try:
        representation.check(shape)
    except RequestError:
        return False
    return True


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, representation: Representation) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.representation = representation
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        grad = grads[0]
        x, weight = (tensor.to(grad.dtype) for tensor in ctx.saved_tensors)  # autocast ran the product lower
        to_input = to_weight = None
        if ctx.needs_input_grad[0]:
            to_input = ctx.representation.project(grad) @ weight
        if ctx.needs_input_grad[1]:
            tokens = grad.flatten(0, -2).mT  # [out, tokens]: the product sums over tokens
            to_weight = _project_tokens(ctx.representation, tokens) @ x.flatten(0, -2)
        return to_input, to_weight, None


class _Call:
    """An operation that is linear in its input and in its weight, without its bias."""

    def __init__(
        self,
        function: Callable[..., Any],
        operation: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        features: int,
        representation: Representation,
    ) -> None:
        self.function, self.operation, self.kwargs = function, operation, kwargs
        self.features, self.representation = features, representation
        self.args = [None if isinstance(a, Tensor) else a for a in args]
        self.adds = operation.bias == 0  # addmm and baddbmm take what they add first

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        given = list(self.args)
        assert self.operation.input is not None
        given[self.operation.input], given[self.operation.weight] = x, weight
        if self.adds:
            result = torch.matmul(x, weight) * self.kwargs.get("alpha", 1)
        else:
            result = self.function(*given, **self.kwargs)
        return cast(Tensor, result)

    def broadcast(self, bias: Tensor) -> Tensor:
        """The bias as it is added to the result."""
        if self.adds:
            scaled: Tensor = bias * self.kwargs.get("beta", 1)
            return scaled
        return bias.reshape(-1, *(1 for _ in range(-self.features - 1)))


class _Bilinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, call: _Call) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.call = call
        return call(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight = (tensor.detach().requires_grad_() for tensor in ctx.saved_tensors)
        call, grad = ctx.call, grads[0]
        features = max(call.features, -grad.dim())  # a vector has one dimension only
        moved = grad.movedim(features, -1)
        by_features = call.representation.project(moved).movedim(-1, features)
        batched = call.operation.name == "matmul" and weight.dim() > 2  # each has tokens of its own
        tokens = (moved if batched else moved.flatten(0, -2)).mT
        by_tokens = _project_tokens(call.representation, tokens).mT.reshape(moved.shape).movedim(-1, features)
        with torch.enable_grad():
            result = call(x, weight)
        by_features, by_tokens = by_features.to(result.dtype), by_tokens.to(result.dtype)
        to_input = to_weight = None
        if ctx.needs_input_grad[0]:
            (to_input,) = torch.autograd.grad(result, x, by_features, retain_graph=True)
        if ctx.needs_input_grad[1]:
            (to_weight,) = torch.autograd.grad(result, weight, by_tokens)
        return to_input, to_weight, None


class RepresentedGradient(nn.Module):
    """An operation whose output gradient is read in a representation, as a module that a graph can call."""

    def __init__(
        self, function: Callable[..., Any], operation: Operation, rank: int, representation: Representation
    ) -> None:
        super().__init__()
        self.function, self.operation, self.rank = function, operation, rank
        self.representation = representation

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives."""
        return with_represented_gradient(
            self.function, self.operation, args, kwargs, self.rank, self.representation
        )

    def extra_repr(self) -> str:
        return f"{self.operation.name}, gradient {self.representation}"
