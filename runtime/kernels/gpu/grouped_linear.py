"""Linears of experts on CUDA: rows of the input, in the order of experts, in one launch over all of them.

The weight `[E, N, K]` is read as it is stored. Inputs on a grid are multiplied as codes, as in `int8_linear`;
others as floats with codes that are unpacked in registers. `decode_grouped` is what it computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from ...entering import enter
from ...interpreted import interpreted
from ..base import Call, Kernel
from ..stored import StoredMatrix, stored_matrix
from .coded_launch import Given, block_group, cut_for, float8_form, plane_of, processors, product
from .coded_linear import Parts, operands, parts_of, refuse_device
from .coded_weight import Weight, float_weight
from .quantize_input import quantize_input

OFFSETS = "offsets"
_SHORTEST = 16


class GroupedLinear(Kernel):
    """`grouped_linear`: rows up to offsets[0] with the first matrix, and so on; zeros past the last."""

    name: ClassVar[str] = "gpu_grouped_linear"
    operation: ClassVar[str] = "grouped_linear"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    def refuse(self, call: Call) -> str | None:
        reason = refuse_device(call)
        if reason is not None:
            return reason
        if len(call.shape) != 3 or 0 in call.shape:
            return f"the weight has shape {list(call.shape)}, not that of experts"
        matrix = stored_matrix(call.representation, call.shape)
        if isinstance(matrix, str):
            return matrix
        if matrix.pattern is not None:
            return "the matrices are sparse"
        group = block_group(matrix, matrix.columns)
        if group < matrix.columns and group % _SHORTEST:
            return f"groups of {group} are no multiple of {_SHORTEST}"
        return None

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        matrix = stored_matrix(call.representation, call.shape)
        assert isinstance(matrix, StoredMatrix), "a call was refused"
        experts, columns, size = call.shape
        if not len(x):
            return x.new_empty(0, columns)
        parts = parts_of(call)
        weight, given, group = (
            _floats(call, matrix, x) if isinstance(parts, str) else _codes(call, parts, x, stored)
        )
        given = replace(given, offsets=stored[OFFSETS].to(torch.int32))
        # Rows of a tile belong to one expert: tiles are as high as an expert's share of the rows.
        least = _SHORTEST if given.form == "float" else None
        cut = cut_for(-(-len(x) // experts), columns, size, group, weight.per, processors(x.device), least)
        return product(matrix, weight, stored, given, replace(cut, splits=1))


def _floats(call: Call, matrix: StoredMatrix, x: Tensor) -> tuple[Weight, Given, int]:
    entered = enter(x, call.input, call.rotation)
    rows = entered.float() if interpreted() else entered
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    group = block_group(matrix, matrix.columns)
    given = Given(rows, rows.stride(0), matrix.columns, call.dtype, "float")
    return float_weight(matrix), given, group


def _codes(call: Call, parts: Parts, x: Tensor, stored: Mapping[str, Tensor]) -> tuple[Weight, Given, int]:
    weight = parts.weight
    codes = quantize_input(x, call.input, parts.form, weight.per, plane_of(parts.matrix, weight))
    form = float8_form(x.device) if parts.form.float8 else "int8"
    given = operands(call, parts, codes, form, stored, None)
    return weight, given, block_group(parts.matrix, codes.group)
