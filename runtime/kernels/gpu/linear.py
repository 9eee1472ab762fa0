"""Weight-only linear on packed codes, on CUDA: y = x R^T + b without the dense R, and its activation.

Three regimes by rows M of the input. Up to 16, where reading the weight takes all the time, `few`: warps
share K, tiles are as high as the rows. Up to 511 `tile`. Above, the weight is decoded once to the dtype of
the input, and multiplied by torch.

Inputs in float32 are read number by number for up to 16 rows (`elements_triton`), and decoded above. So are
formats whose rows are not whole 32-bit words, whose groups are no multiple of a unit, or whose levels are
neither a line nor a float nor a table of 16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...interpreted import interpreted
from ...stage import CARRY
from ..base import Call, Kernel
from ..fixed_weight import with_gradient
from ..neighbours import ACTIVATIONS
from ..stored import StoredMatrix, stored_matrix
from .linear_plan import FEW_ROWS, TILE_ROWS
from .reading import LEVELS, tables

_OLDEST = (8, 0)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def reference(call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """What the kernels compute, in torch: decode the weight, then the dense product and the activation."""
    weight = call.representation.decode(call.representation.unpack(stored, call.shape, call.dtype))
    return _activated(call, F.linear(x, weight, bias))


def run(call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """The result by the regime that its rows are in."""
    from . import linear_launch as launch  # imports Triton

    matrix = _matrix(call)
    stored = _ready(matrix, stored)
    rows = x.reshape(-1, matrix.columns)
    rows = rows if rows.stride(-1) == 1 else rows.contiguous()
    if not len(rows):
        result = rows.new_empty(0, matrix.rows)
    elif len(rows) > TILE_ROWS:
        result = _activated(call, F.linear(rows, launch.decoded(matrix, stored, x.dtype), bias))
    else:
        bias = None if bias is None else bias.contiguous()
        fused = launch.few if len(rows) <= FEW_ROWS else launch.tiles
        found = fused(matrix, rows, stored, bias, call.activation)
        if found is None and len(rows) <= FEW_ROWS:
            found = launch.by_elements(matrix, rows, stored, bias, call.activation)
        if found is None:
            found = _activated(call, F.linear(rows, launch.decoded(matrix, stored, x.dtype), bias))
        result = found
    return result.reshape(*x.shape[:-1], matrix.rows)


def decoded(call: Call, stored: Mapping[str, Tensor]) -> Tensor:
    """The dense weight by the kernels that decode."""
    from .linear_launch import decoded

    matrix = _matrix(call)
    return decoded(matrix, _ready(matrix, stored), call.dtype)


def _ready(matrix: StoredMatrix, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The fields with the small tables that `prepare` adds."""
    return stored if LEVELS in stored else {**stored, **tables(matrix, stored[CARRY].device)}


def _activated(call: Call, result: Tensor) -> Tensor:
    return ACTIVATIONS[call.activation](result) if call.activation else result


class TritonLinear(Kernel):
    """Every matrix of scalar codes under scales and zero points, without a pattern, on CUDA."""

    name: ClassVar[str] = "triton_linear"
    operation: ClassVar[str] = "linear"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    @property
    def layout(self) -> str:
        return "triton_linear"

    def refuse(self, call: Call) -> str | None:
        if find_spec("triton") is None:
            return "Triton is not installed"
        if call.device != "cuda" and not interpreted():
            return f"the device is {call.device}, and it needs cuda"
        if (
            call.device == "cuda"
            and torch.cuda.is_available()
            and torch.cuda.get_device_capability() < _OLDEST
        ):
            return "its instructions need compute capability 8.0"
        if call.dtype not in _DTYPES:
            return f"inputs are {str(call.dtype).removeprefix('torch.')}, not float32, float16 or bfloat16"
        if len(call.shape) != 2 or 0 in call.shape:
            return f"the weight has shape {list(call.shape)}, not a matrix's"
        matrix = stored_matrix(call.representation, call.shape)
        if isinstance(matrix, str):
            return matrix
        return None if matrix.pattern is None else f"{call.representation} is stored without its zeros"

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return _ready(_matrix(call), stored)

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        return with_gradient(
            lambda x, bias: run(call, x, stored, bias), lambda: decoded(call, stored), x, bias
        )


class TritonLinearActivation(TritonLinear):
    """The same with an activation of the result, which is computed before it is rounded."""

    operation: ClassVar[str] = "linear_activation"

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        wanted = x.requires_grad or (bias is not None and bias.requires_grad)
        if wanted and torch.is_grad_enabled():
            alone = replace(call, operation="linear", activation="")
            return _activated(call, TritonLinear().run(alone, x, stored, bias))
        return run(call, x, stored, bias)


def _matrix(call: Call) -> StoredMatrix:
    matrix = stored_matrix(call.representation, call.shape)
    assert isinstance(matrix, StoredMatrix)
    return matrix
