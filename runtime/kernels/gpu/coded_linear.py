"""What kernels on coded inputs share: input and weight are taken together, or refused together."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...entering import enter, undo_rotation
from ..base import Call, Kernel
from ..fixed_weight import with_gradient
from ..neighbours import ACTIVATIONS
from ..stored import StoredMatrix, stored_matrix
from .coded_launch import (
    Given,
    Multiplied,
    block_group,
    cut_for,
    one_row,
    plane_of,
    processors,
    product,
    takes_one_row,
)
from .coded_weight import Weight, coded
from .quantize_input import Codes, Form, input_form, quantize_input

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SUMS = "gpu.row_sums"


def reference(call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """What the kernels compute, in torch: the input enters, the weight is decoded, the dense product."""
    entered = enter(x, call.input, call.rotation)
    result = F.linear(entered, decoded(call, stored, call.dtype), bias)
    return ACTIVATIONS[call.activation](result) if call.activation else result


def decoded(call: Call, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    """The weight, still rotated."""
    return call.representation.decode(call.representation.unpack(stored, call.shape, dtype))


def refuse_device(call: Call) -> str | None:
    """Why Triton cannot run here on inputs of this dtype."""
    if find_spec("triton") is None:
        return "Triton is not installed"
    if call.dtype not in DTYPES:
        return f"inputs are {str(call.dtype).removeprefix('torch.')}, not float32, float16 or bfloat16"
    return None


@dataclass(frozen=True)
class Parts:
    """How inputs are coded, and how the weight becomes what they are multiplied with."""

    form: Form
    matrix: StoredMatrix
    weight: Weight


@lru_cache(maxsize=1024)
def parts_of(call: Call) -> Parts | str:
    """Both operands of a call, or why one of them is none."""
    form = input_form(call)
    if isinstance(form, str):
        return form
    matrix = stored_matrix(call.representation, call.shape)
    if isinstance(matrix, str):
        return matrix
    if matrix.pattern is not None:
        return "the matrix is sparse"
    x = stored_matrix(call.input.core, (1, call.shape[-1]))
    assert isinstance(x, StoredMatrix)
    group = x.columns if x.scale is None else x.scale.sharing.columns
    if form.half and group < x.columns:
        return f"inputs of {call.input.core} are half more than a byte, in groups"
    weight = coded(form, matrix, block_group(matrix, group))
    return weight if isinstance(weight, str) else Parts(form, matrix, weight)


def row_sums(call: Call, stored: Mapping[str, Tensor]) -> Tensor:
    """The sum of each row of the weight, float32."""
    if SUMS in stored:
        return stored[SUMS]
    with torch.no_grad():
        return decoded(call, stored, torch.float32).reshape(-1, call.shape[-1]).sum(1, dtype=torch.float32)


class CodedLinear(Kernel):
    """A product of inputs on a grid with a packed weight, without either in floating point."""

    float8: ClassVar[bool]

    @property
    def layout(self) -> str:
        return "coded_linear"

    def refuse(self, call: Call) -> str | None:
        reason = refuse_device(call)
        if reason is not None:
            return reason
        if len(call.shape) != 2:
            return f"the weight has shape {list(call.shape)}, not a matrix's"
        parts = parts_of(call)
        if isinstance(parts, str):
            return parts
        if parts.form.float8 != self.float8:
            return "inputs are e4m3 numbers" if parts.form.float8 else "inputs are no e4m3 numbers"
        return None

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """With the sums of the weight's rows, where inputs are half more than their codes."""
        return {**stored, SUMS: row_sums(call, stored)} if _parts(call).form.half else stored

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        if not x.numel():
            return x.new_empty(*x.shape[:-1], call.shape[0])
        wanted = x.requires_grad or (bias is not None and bias.requires_grad)
        after = call.activation if wanted and torch.is_grad_enabled() else ""
        inner = replace(call, activation="") if after else call

        def compute(x: Tensor, bias: Tensor | None) -> Tensor:
            result = self._run(inner, x.reshape(-1, call.shape[1]), stored, bias)
            return result.reshape(*x.shape[:-1], call.shape[0])

        def weight() -> Tensor:
            return undo_rotation(call.rotation, decoded(call, stored, x.dtype))

        result = with_gradient(compute, weight, x, bias)
        return ACTIVATIONS[after](result) if after else result

    def _run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        parts = _parts(call)
        found = self.by_torch(call, parts, x, stored, bias)
        if found is not None:
            return found
        matrix, weight = parts.matrix, parts.weight
        codes = quantize_input(x, call.input, parts.form, weight.per, plane_of(matrix, weight))
        given = operands(call, parts, codes, self.multiplied(x.device), stored, bias)
        if takes_one_row(matrix, weight, given):
            return one_row(matrix, weight, stored, given)
        group = block_group(matrix, codes.group)
        columns, size = call.shape
        cut = cut_for(len(x), columns, size, group, weight.per, processors(x.device))
        return product(matrix, weight, stored, given, cut)

    @abstractmethod
    def multiplied(self, device: torch.device) -> Multiplied:
        """What tensor cores multiply on a device."""

    @abstractmethod
    def by_torch(
        self, call: Call, parts: Parts, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None
    ) -> Tensor | None:
        """The result by torch's own product, for many rows; None where that does not take it."""


def operands(
    call: Call,
    parts: Parts,
    codes: Codes,
    form: Multiplied,
    stored: Mapping[str, Tensor],
    bias: Tensor | None,
) -> Given:
    """What is multiplied with the weight."""
    _, planes, plane = codes.codes.shape
    sums = row_sums(call, stored) if parts.form.half else None
    flat = codes.codes.flatten(1)
    return Given(flat, planes * plane, plane, call.dtype, form, codes, bias, call.activation, sums=sums)


def _parts(call: Call) -> Parts:
    parts = parts_of(call)
    assert isinstance(parts, Parts), "a call was refused"
    return parts
