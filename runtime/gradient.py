"""What the two matrix products of a backward pass read, in representations (Quartet, 2505.14669).

For y = x W^T the backward pass computes dL/dx = G W, a sum over output features, and dL/dW = G^T x, a sum
over tokens, with G = dL/dy. Stages work along what a product sums over, so G is projected once along each;
W and x, where they are represented anew, along the sum that each is part of. Other operations that are
linear in the input and in the weight are treated alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arrangement import Arrangement
from .errors import RequestError
from .operations import LINEAR, Operation
from .program import program_of, program_of_key
from .representation import Representation
from .seeds import NO_SEED, derived, fresh_seed

_FEATURES, _TOKENS = 0, 1  # the two products, by what they sum over


@dataclass(frozen=True)
class Backward:
    """Representations of what the backward pass of an operation reads.

    `grad_output` is that of G in both products, `weights` that of W in dL/dx and `inputs` that of x in dL/dW,
    both as the forward pass read them. What is random is drawn anew for each backward pass, from a seed that
    the forward pass takes from torch's generator: the two factors of a product share the signs of their
    leading rotations, which then cancel, and nothing else is shared.
    """

    grad_output: Representation = field(default_factory=Representation)
    weights: Representation = field(default_factory=Representation)
    inputs: Representation = field(default_factory=Representation)
    keys: tuple[str, str, str] = field(init=False, compare=False, repr=False)
    is_random: bool = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        chains = (self.grad_output, self.weights, self.inputs)
        keys = tuple("" if chain.is_dense else program_of(chain).key for chain in chains)
        object.__setattr__(self, "keys", keys)  # at once: under torch.compile nothing here is traced
        object.__setattr__(self, "is_random", any(chain.is_random for chain in chains))

    @property
    def is_dense(self) -> bool:
        """Whether everything is read as it is."""
        return not any(self.keys)

    def check(self, features: int) -> None:
        """Raise `RequestError` when a chain takes no sum over so many features; tokens are filled up."""
        for chain in (self.grad_output, self.weights):
            chain.check((1, features))

    def __str__(self) -> str:
        named = {"weights": self.weights, "inputs": self.inputs}
        more = [f"{name} {chain}" for name, chain in named.items() if not chain.is_dense]
        return ", ".join([str(self.grad_output), *more])


def with_represented_gradient(
    function: Callable[..., Any],
    operation: Operation,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    rank: int,
    backward: Backward,
) -> Any:
    """`function(*args, **kwargs)`, whose backward pass reads what it multiplies as `backward` says.

    The gradient of a bias is a sum without a product, and stays exact.
    """
    if not torch.is_grad_enabled() or operation.input is None:
        return function(*args, **kwargs)
    x, weight = args[operation.input], args[operation.weight]
    if not (x.requires_grad or weight.requires_grad):
        return function(*args, **kwargs)
    bias = args[operation.bias] if operation.bias is not None and len(args) > operation.bias else None
    seed = fresh_seed() if backward.is_random else NO_SEED
    if operation is LINEAR:
        result: Any = _Linear.apply(x, weight, seed, backward.keys)  # type: ignore[no-untyped-call]
        return result if bias is None else result + bias.to(result.dtype)  # as it is under autocast
    call = _Call(function, operation, tuple(args), dict(kwargs), rank)
    result = _Bilinear.apply(x, weight, seed, call, backward.keys)  # type: ignore[no-untyped-call]
    return result if bias is None else result + call.broadcast(bias).to(result.dtype)


def _represent(factors: Sequence[Tensor], seed: Tensor, keys: str, product: int) -> list[Tensor]:
    """Factors of a product projected along their last dimension, in new memory.

    `keys` names the programs of both, an empty one for a factor that is left out. Both are done at once: they
    share a seed, which the compiler may draw once for each operator that it moves to another pass.
    """
    named = [(place, key) for place, key in enumerate(keys.split(",")) if key]
    start = int(seed) if seed.numel() else None
    found = []
    for (place, key), factor in zip(named, factors, strict=True):
        representation = program_of_key(key).representation
        count = factor.shape[-1]
        size = _takes(representation, tuple(factor.shape)) if product == _TOKENS else count
        if start is not None:
            representation = representation.drawn(derived(start, product, place), derived(start, product))
        projected = representation.project(factor if size == count else F.pad(factor, (0, size - count)))
        projected = projected[..., :count].to(factor.dtype)
        shared = projected.data_ptr() == factor.data_ptr()
        found.append(projected.clone() if shared else projected.contiguous())
    return found


def _represent_fake(factors: Sequence[Tensor], seed: Tensor, keys: str, product: int) -> list[Tensor]:
    return [torch.empty_like(factor, memory_format=torch.contiguous_format) for factor in factors]


def _takes(representation: Representation, shape: tuple[int, ...]) -> int:
    """The next number of tokens that the representation takes; zeros add nothing to the sum over them."""
    for multiple in _MULTIPLES:
        padded = -(-shape[-1] // multiple) * multiple
        if _fits(representation, (*shape[:-1], padded)):
            return padded
    return shape[-1]  # for which the representation says what is wrong


_MULTIPLES: tuple[int, ...] = tuple(2**power for power in range(13))


def _fits(representation: Representation, shape: tuple[int, ...]) -> bool:
    try:
        representation.check(shape)
    except RequestError:
        return False
    return True


_OPERATOR = torch.library.custom_op("rhoc::represent", _represent, mutates_args=())
_OPERATOR.register_fake(_represent_fake)


def _read(
    gradient: Tensor, operand: Tensor, seed: Tensor, keys: tuple[str, str], product: int
) -> tuple[Tensor, Tensor]:
    """Both factors of a product as it reads them along their last dimension.

    An operator where a compiler looks on: nothing of a representation is traced.
    """
    factors = [factor for factor, key in zip((gradient, operand), keys, strict=True) if key]
    if not factors:
        return gradient, operand
    represent = _OPERATOR if torch.compiler.is_compiling() else _represent
    found = represent(factors, seed, ",".join(keys), product)
    return (found[0] if keys[0] else gradient), (found[-1] if keys[1] else operand)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, seed: Tensor, keys: tuple[str, str, str]) -> Tensor:
        ctx.save_for_backward(x, weight, seed)
        ctx.keys = keys
        return F.linear(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad = grads[0]
        x, weight, seed = ctx.saved_tensors
        x, weight = x.to(grad.dtype), weight.to(grad.dtype)  # autocast ran the product in the lower dtype
        of_gradient, of_weight, of_input = ctx.keys
        to_input = to_weight = None
        if ctx.needs_input_grad[0]:  # [..., out] and [in, out]: the product sums over output features
            g, w = _read(grad, weight.mT, seed, (of_gradient, of_weight), _FEATURES)
            to_input = g @ w.mT
        if ctx.needs_input_grad[1]:  # [out, tokens] and [in, tokens]: the product sums over tokens
            rows = grad.flatten(0, -2).mT, x.flatten(0, -2).mT
            g, entered = _read(*rows, seed, (of_gradient, of_input), _TOKENS)
            to_weight = g @ entered.mT
        return to_input, to_weight, None, None


class _Call:
    """An operation that is linear in its input and in its weight, without its bias."""

    def __init__(
        self,
        function: Callable[..., Any],
        operation: Operation,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        rank: int,
    ) -> None:
        self.function, self.operation, self.kwargs = function, operation, kwargs
        self.features, self.channel = operation.features_of(rank), operation.channel_of(rank)
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

    def batched(self, weight: Tensor) -> bool:
        """Whether every matrix of a batch has tokens of its own."""
        return self.operation.name == "matmul" and weight.dim() > 2

    def arrangement(self, weight: Tensor) -> Arrangement:
        """How the weight is a matrix `[..., features, channels]`."""
        return self.operation.arrange(tuple(weight.shape), self.args)


class _Bilinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, seed: Tensor, call: _Call, keys: tuple[str, str, str]
    ) -> Tensor:
        ctx.save_for_backward(x, weight, seed)
        ctx.call, ctx.keys = call, keys
        return call(x, weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        call, grad = ctx.call, grads[0]
        x, weight, seed = ctx.saved_tensors
        x, weight = x.to(grad.dtype), weight.to(grad.dtype)  # autocast ran the product in the lower dtype
        of_gradient, of_weight, of_input = ctx.keys
        to_input = to_weight = None
        if ctx.needs_input_grad[0]:
            arrangement = call.arrangement(weight)
            matrix, features = arrangement.matrix(weight), max(call.features, -grad.dim())
            g, w = _read(grad.movedim(features, -1), matrix.mT, seed, (of_gradient, of_weight), _FEATURES)
            g, w = g.movedim(-1, features), arrangement.restore(w.mT, tuple(weight.shape))
            (to_input,) = torch.func.vjp(lambda given: call(given, w), x)[1](g)
        if ctx.needs_input_grad[1]:
            by_tokens = _Tokens(call.features, grad, call.batched(weight))
            entering = _Tokens(call.channel, x, call.batched(weight))
            g, entered = _read(by_tokens.rows, entering.rows, seed, (of_gradient, of_input), _TOKENS)
            g, entered = by_tokens.back(g), entering.back(entered)
            (to_weight,) = torch.func.vjp(lambda given: call(entered, given), weight)[1](g)
        return to_input, to_weight, None, None, None


class _Tokens:
    """A tensor as the sum over tokens reads it: over all dimensions but one (a vector has one only), or one
    matrix of a batch at a time."""

    def __init__(self, dimension: int, x: Tensor, batched: bool) -> None:
        self.dimension = max(dimension, -x.dim())
        moved = x.movedim(self.dimension, -1)
        self.shape = tuple(moved.shape)
        self.rows = (moved if batched else moved.flatten(0, -2)).mT

    def back(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return rows.mT.reshape(self.shape).movedim(-1, self.dimension)


class RepresentedGradient(nn.Module):
    """An operation whose backward pass reads what it multiplies in representations, for a graph to call."""

    def __init__(
        self, function: Callable[..., Any], operation: Operation, rank: int, backward: Backward
    ) -> None:
        super().__init__()
        self.function, self.operation, self.rank = function, operation, rank
        self.backward = backward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the function gives."""
        return with_represented_gradient(
            self.function, self.operation, args, kwargs, self.rank, self.backward
        )

    def extra_repr(self) -> str:
        return f"{self.operation.name}, gradient {self.backward}"
