"""A stored matrix as the arguments of device code that reads its codes, scales and zero points."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...stage import CARRY
from ..stored import ScaleField, StoredMatrix


def whole_rows(matrix: StoredMatrix, stored: Mapping[str, Tensor]) -> Tensor:
    """The packed codes as bytes `[rows, bytes of a row]`."""
    found: Tensor = stored[CARRY].contiguous().view(matrix.rows, -1)
    return found


def arguments(matrix: StoredMatrix, stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """What device code is told of scales and zero points; places are counted in numbers `[R, C]`.

    A value that does not exist stands as the codes themselves, which nothing reads then.
    """
    none = stored[CARRY]
    found: dict[str, Any] = {
        "scale": none,
        "scale_table": none,
        "factor": none,
        "zero": none,
        "unit": 1.0,
        "share_rows": matrix.rows,
        "share_columns": matrix.columns,
        "scale_columns": 1,
        "zero_row": 0,
        "SCALE": "none",
        "FACTOR": False,
        "ZERO": -1,
        "ZERO_FLAT": 0,
    }
    if matrix.scale is None:
        return found
    found |= _scales(matrix.scale, stored)
    return found if matrix.zero is None else found | _zeros(matrix, stored)


def _scales(field: ScaleField, stored: Mapping[str, Tensor]) -> dict[str, Any]:
    scale, sharing = stored[field.name].contiguous(), field.sharing
    found: dict[str, Any] = {
        "scale": scale,
        "unit": field.unit,
        "share_rows": sharing.rows,
        "share_columns": sharing.columns,
        "scale_columns": sharing.shape[1],
        "SCALE": "float",
    }
    if field.table is not None:
        found |= {"scale": scale.view(torch.uint8), "scale_table": table_of(field.table, scale.device)}
        found["SCALE"] = "table"
    if field.factor is not None:
        found |= {"factor": stored[field.factor], "FACTOR": True}
    return found


def _zeros(matrix: StoredMatrix, stored: Mapping[str, Tensor]) -> dict[str, Any]:
    """Floats, or codes in rows of bits: along columns, or where scales are those of rows along these.

    ZERO_FLAT: 0 along columns, -1 along all rows, else along so many, the rows of an expert.
    """
    assert matrix.zero is not None
    assert matrix.scale is not None
    zero, bits = stored[matrix.zero.name].contiguous(), matrix.zero.bits
    shape, groups = stored[matrix.scale.name].shape, matrix.scale.sharing.shape[1]
    if not bits:
        flat, row = 0, groups
    elif len(shape) == 1:
        flat, row = -1, 0
    else:
        flat, row = shape[-1] if groups == 1 else 0, 8 * zero.shape[-1]
    return {"zero": zero, "zero_row": row, "ZERO": bits, "ZERO_FLAT": flat}


@lru_cache(maxsize=64)
def table_of(values: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A small table of numbers on a device, made once."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
