"""The operations that read a weight, in every spelling: which argument it is, and what it is summed over.

One entry covers torch's functions, tensor methods, Python's operators and ATen overloads, so that a graph and
a call that is intercepted while it runs are understood alike. A new operation costs one entry.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .arrangement import PLAIN, Arrangement, summed_over
from .equation import Equation, equation_of

Shape = tuple[int, ...]
Arrange = Callable[[Shape, Sequence[Any]], Arrangement]
"""From the weight's shape and the positional arguments of the call."""


@dataclass(frozen=True)
class Operation:
    """How one function reads a weight.

    `names` are its leading parameters in order; `weight`, `input` and `bias` positions among them. `channel`
    is the dimension of the input that is summed over; `features` that of the result which the weight's rows
    give.
    """

    name: str
    names: tuple[str, ...]
    weight: int
    input: int | None
    bias: int | None = None
    channel: int = -1
    features: int = -1
    arrange: Arrange = lambda shape, args: PLAIN

    def channel_of(self, rank: int) -> int:
        """`channel`, counted from the end, for a weight of `rank` dimensions."""
        return _from_the_end(self.channel, rank)

    def features_of(self, rank: int) -> int:
        """`features`, counted from the end."""
        return _from_the_end(self.features, rank)

    def positional(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """A call with those of its named parameters that follow each other made positional."""
        given, rest = list(args), dict(kwargs)
        while len(given) < len(self.names) and self.names[len(given)] in rest:
            given.append(rest.pop(self.names[len(given)]))
        return given, rest


def _from_the_end(dimension: int, rank: int) -> int:
    """The channels of a convolution come before as many dimensions as its kernel has."""
    return 1 - rank if dimension == 1 else dimension


def _transposed(shape: Shape, args: Sequence[Any]) -> Arrangement:
    """[..., in, out]"""
    return summed_over(len(shape), (-2,))


def _convolution(shape: Shape, args: Sequence[Any]) -> Arrangement:
    """[out, in / groups, *kernel]"""
    return Arrangement(columns=len(shape) - 1)


def _groups_at(position: int) -> Arrange:
    def arrange(shape: Shape, args: Sequence[Any]) -> Arrangement:
        """[in, out / groups, *kernel]"""
        groups = args[position] if len(args) > position else 1
        kernel = range(3, len(shape) + 1)
        view = (groups, shape[0] // groups, *shape[1:])
        return Arrangement(view, (0, 2, 1, *kernel), 1 + len(kernel))

    return arrange


def _einsum(weight: int) -> Arrange:
    def arrange(shape: Shape, args: Sequence[Any]) -> Arrangement:
        """What is not in the result is summed over."""
        equation = equation_of(args[0])
        return PLAIN if equation is None else summed_over(len(shape), equation.summed(weight - 1, len(shape)))

    return arrange


def _of_equation(operation: Operation, equation: Equation | None) -> Operation | None:
    """An einsum that is a product with the weight, with its dimensions; None for every other."""
    if equation is None:
        return None
    channel, features = equation.channel(2 - operation.weight), equation.features(operation.weight - 1)
    if channel is None or features is None:
        return None
    return replace(operation, channel=channel, features=features)


def _aten_convolution(shape: Shape, args: Sequence[Any]) -> Arrangement:
    transposed = len(args) > 6 and bool(args[6])
    return _groups_at(8)(shape, args) if transposed else _convolution(shape, args)


_XW, _BXW = ("input", "weight"), ("input", "weight", "bias")
_CONV = (*_BXW, "stride", "padding", "dilation", "groups")
_CONV_T = (*_BXW, "stride", "padding", "output_padding", "groups", "dilation")
_MATMUL = (
    Operation("matmul", ("input", "other"), 1, 0, arrange=_transposed),
    Operation("matmul", ("input", "other"), 0, 1, channel=-2, features=-2),
)
_BMM = tuple(
    Operation(o.name, ("input", "mat2"), o.weight, o.input, None, o.channel, o.features, o.arrange)
    for o in _MATMUL
)
_aten = torch.ops.aten

LINEAR = Operation("linear", _BXW, 1, 0, 2)
ADDMM = Operation("linear", ("input", "mat1", "mat2"), 2, 1, 0, arrange=_transposed)
BADDBMM = Operation("matmul", ("input", "batch1", "batch2"), 2, 1, 0, arrange=_transposed)
EMBEDDING = Operation(
    "embedding", (*_XW, "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"), 1, None
)
CONV = Operation("conv", _CONV, 1, 0, 2, 1, 1, _convolution)
CONV_TRANSPOSE = Operation("conv_transpose", _CONV_T, 1, 0, 2, 1, 1, _groups_at(6))
GROUPED_MATMUL = Operation("grouped_matmul", ("mat_a", "mat_b"), 1, 0, arrange=_transposed)
"""Rows of the input are multiplied with one of several matrices `[experts, in, out]`, row by row."""
_GROUPED = tuple(
    found
    for owner, name in ((torch, "_grouped_mm"), (F, "grouped_mm"))
    if (found := getattr(owner, name, None)) is not None
)

OPERATIONS: dict[Any, tuple[Operation, ...]] = {
    F.linear: (LINEAR,),
    _aten.linear.default: (LINEAR,),
    **dict.fromkeys((torch.addmm, Tensor.addmm), (ADDMM,)),
    _aten.addmm.default: (ADDMM,),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm, _aten.baddbmm.default), (BADDBMM,)),
    F.embedding: (EMBEDDING,),
    _aten.embedding.default: (Operation("embedding", ("weight", "indices"), 0, None),),
    F.embedding_bag: (Operation("embedding_bag", _XW, 1, None),),
    F.bilinear: (Operation("bilinear", ("input1", "input2", "weight", "bias"), 2, 1, 3),),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), (CONV,)),
    **dict.fromkeys(
        (
            _aten.conv1d.default,
            _aten.conv2d.default,
            _aten.conv3d.default,
            _aten.conv1d.padding,
            _aten.conv2d.padding,
            _aten.conv3d.padding,
        ),
        (CONV,),
    ),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), (CONV_TRANSPOSE,)),
    **dict.fromkeys(
        (_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input),
        (CONV_TRANSPOSE,),
    ),
    _aten.convolution.default: (Operation("conv", _CONV, 1, 0, 2, 1, 1, _aten_convolution),),
    **dict.fromkeys(
        (
            torch.matmul,
            operator.matmul,
            Tensor.matmul,
            Tensor.__matmul__,
            torch.mm,
            Tensor.mm,
            _aten.matmul.default,
            _aten.mm.default,
        ),
        _MATMUL,
    ),
    **dict.fromkeys(_GROUPED, (GROUPED_MATMUL,)),
    **dict.fromkeys((torch.bmm, Tensor.bmm, _aten.bmm.default), _BMM),
    torch.einsum: tuple(
        Operation("einsum", ("equation", "first", "second"), w, 3 - w, arrange=_einsum(w)) for w in (2, 1)
    ),
}
"""By function: the operations it may be, one for each argument that may be the weight."""


def writes(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is a lookup with `max_norm`, which writes to its weight."""
    limit = args[3:4] or (kwargs.get("max_norm"),)
    return function in (F.embedding, F.embedding_bag) and limit[0] is not None


def operation_on(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], is_weight: Callable[[Any], bool]
) -> Operation | None:
    """The operation that a call is on one of its arguments for which `is_weight` holds, or None.

    A lookup that writes to its weight is none of ours.
    """
    if writes(function, args, kwargs):
        return None
    for operation in OPERATIONS.get(function, ()):
        given, _ = operation.positional(args, kwargs)
        if len(given) > operation.weight and is_weight(given[operation.weight]):
            einsum = operation.name == "einsum"
            return _of_equation(operation, equation_of(given[0])) if einsum else operation
    return None
