"""What torch's operations do on a packed weight: kernels of linears and lookups compute them where they can,
with matrices from either side, in batches and by groups too; all others get the decoded weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .kernels.decode_grouped import DecodeGrouped
from .operations import Operation
from .tensor_like import decoded

if TYPE_CHECKING:
    from .packed import Packed


def operate(
    weight: Packed,
    func: Callable[..., Any],
    operation: Operation,
    given: list[Any],
    rest: Mapping[str, Any],
) -> Any:
    """`func(*given, **rest)` with everything done around it that the weight's slots say.

    `given` and `rest` are the arguments, positional as far as the operation names them.
    """
    if weight.slots.rows is not None and operation.input is not None:
        given[operation.input] = weight.slots.rows.project(given[operation.input])
    shape = tuple(weight.shape)
    arranged = operation.arrange(shape, given) == weight.arrangement
    same = arranged and not rest
    if operation.name == "linear" and same:
        bias = given[operation.bias] if operation.bias is not None and len(given) > operation.bias else None
        return weight.slots.projected_output(weight.entered_linear(given[operation.input or 0], bias), -1)
    if func is F.embedding and same:
        return weight.embedding(given[0])
    other = _product(weight, operation, given, rest) if arranged else None
    if other is not None:
        return weight.slots.projected_output(other, operation.features_of(len(shape)))
    given[operation.weight] = weight.decode()
    slots = weight.slots if weight.slots.rows is None else replace(weight.slots, rows=None)
    return slots.run(func, operation, decoded(given), rest, len(shape))


def _product(
    weight: Packed, operation: Operation, given: Sequence[Any], rest: Mapping[str, Any]
) -> Tensor | None:
    """The result of an operation that sums over what the weight's rows are; None where it must be decoded."""
    found = _PRODUCTS.get(operation.name)
    x = None if operation.input is None else given[operation.input]
    if found is None or not isinstance(x, Tensor):
        return None
    return found(weight, operation, x, [*given[2:], *(value for value in rest.values() if value is not None)])


def _matmul(weight: Packed, operation: Operation, x: Tensor, others: Sequence[Any]) -> Tensor | None:
    """With one matrix from either side, or with a batch of matrices, an input for each."""
    if others or operation.names[0] != "input" or len(operation.names) > 2:
        return None
    if len(weight.shape) == 2:
        if not weight.has_kernel or x.dim() < 2:
            return None
        return weight.entered_linear(x) if operation.weight == 1 else weight.entered_linear(x.mT).mT
    experts = _experts(weight) if x.dim() == 3 and operation.weight == 1 else []
    if not experts or len(experts) != len(x):
        return None
    return torch.stack([expert.entered_linear(rows) for expert, rows in zip(experts, x, strict=True)])


def _grouped(weight: Packed, operation: Operation, x: Tensor, others: Sequence[Any]) -> Tensor | None:
    """Rows of the input, in order, each with the matrix of its group; the offsets say where groups end."""
    offsets = others[0] if len(others) == 1 else None
    if not isinstance(offsets, Tensor) or x.dim() != 2:
        return None
    if len(weight.shape) == 3 and len(offsets) == weight.shape[0] and not torch.compiler.is_compiling():
        together = _together(weight, x, offsets)
        if together is not None:
            return together
    experts = _experts(weight)
    ends = offsets.tolist()
    if not experts or len(ends) != len(experts):
        return None
    parts = [
        expert.entered_linear(x[first:last])
        for expert, (first, last) in zip(experts, pairwise([0, *ends]), strict=True)
    ]
    return torch.cat([*parts, x.new_zeros(len(x) - ends[-1], parts[0].shape[-1])])


def _together(weight: Packed, x: Tensor, offsets: Tensor) -> Tensor | None:
    """The same in one kernel; None where none takes it, or a gradient is wanted."""
    if torch.is_grad_enabled() and x.requires_grad:
        return None
    call, selection = weight.chosen("grouped_linear", x.dtype, x.device)
    if selection.kernel.name == DecodeGrouped.name:
        return None
    stored = weight.prepared(call, selection)
    return selection.kernel.run(call, x, {**stored, "offsets": offsets}, None)


def _experts(weight: Packed) -> list[Packed]:
    """Every matrix of a weight as a packed weight; none where they are stored together or decoded anyway."""
    found = [weight.expert(index) for index in range(weight.shape[0])] if len(weight.shape) == 3 else []
    single = [expert for expert in found if expert is not None]
    return single if len(single) == len(found) and single and single[0].has_kernel else []


_PRODUCTS: Mapping[str, Callable[[Packed, Operation, Tensor, Sequence[Any]], Tensor | None]] = {
    "matmul": _matmul,
    "grouped_matmul": _grouped,
}
"""By the name of the operation."""
