"""Attention over a packed cache on CUDA: codes of keys and values are read once, the length in parts.

Flash-decoding (Dao et al., 2023): each program takes some slots of a head, and what the parts found is put
together by their maxima.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...interpreted import interpreted
from ...stage import CARRY
from ..base import Call, Kernel
from ..cache_attention import DecodeCacheAttention, token_matrix
from ..composed import named
from ..stored import StoredMatrix
from .coded_launch import processors
from .coded_linear import refuse_device
from .stored_fields import table_of

_WIDEST, _ROWS, _SLOTS = 256, 16, 32  # features, queries and slots of a program at once


class PackedCacheAttention(Kernel):
    """Keys and values of scalar codes under scales of tokens or of groups of features."""

    name: ClassVar[str] = "gpu_cache_attention"
    operation: ClassVar[str] = "cache_attention"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    def refuse(self, call: Call) -> str | None:
        reason = refuse_device(call)
        if reason is not None:
            return reason
        if call.shape[1] > _WIDEST:
            return f"heads of {call.shape[1]} features are wider than {_WIDEST}"
        matrix = token_matrix(call)
        return matrix if isinstance(matrix, str) else None

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return DecodeCacheAttention().run(call, x, stored, bias)
        return _launch(call, x, named(stored, "keys"), named(stored, "values"), stored["positions"])


def _launch(
    call: Call, x: Tensor, keys: Mapping[str, Tensor], values: Mapping[str, Tensor], positions: Tensor
) -> Tensor:
    from .cache_attention_triton import attend  # imports Triton

    matrix = token_matrix(call)
    assert isinstance(matrix, StoredMatrix), "a call was refused"
    (batch, _, count, features), heads = x.shape, call.shape[0]
    rows, slots = x.shape[1] // heads * count, keys[CARRY].shape[2]
    queries = (x.float() if interpreted() else x).reshape(batch * heads, rows, features).contiguous()
    blocks, tiles = -(-slots // _SLOTS), batch * heads * -(-rows // _ROWS)
    splits = max(1, min(2 * processors(x.device) // tiles, blocks // 2))
    mixed = torch.empty(splits, batch * heads, rows, features, dtype=torch.float32, device=x.device)
    maxima, sums = torch.empty(2, splits, batch * heads, rows, dtype=torch.float32, device=x.device)
    line = matrix.line if matrix.zero is None else (0.0, 1.0)
    with torch.cuda.device_of(x):  # type: ignore[no-untyped-call]
        attend[(batch * heads, -(-rows // _ROWS), splits)](
            queries=queries,
            positions=positions.to(torch.int32).contiguous(),
            levels=table_of(matrix.levels, x.device),
            out=mixed,
            maxima=maxima,
            sums=sums,
            heads=heads,
            rows=rows,
            count=count,
            slots=slots,
            features=features,
            query_head=rows * features,
            first=0.0 if line is None else line[0],
            step=1.0 if line is None else line[1],
            root=features**-0.5,
            blocks_each=-(-blocks // splits),
            LINE=line is not None,
            D=max(16, 1 << (features - 1).bit_length()),
            BLOCK_R=_ROWS,
            BLOCK_S=_SLOTS,
            **_stored(matrix, keys, values),
        )
    highest = maxima.amax(0)
    share = (maxima - highest).exp()[..., None]
    result: Tensor = (mixed * share).sum(0) / (sums[..., None] * share).sum(0)
    return result.to(x.dtype).reshape(x.shape)


def _stored(matrix: StoredMatrix, keys: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of both, and the steps from one sequence, head and slot to the next, which are the same."""
    field, zero = matrix.scale, matrix.zero
    assert field is not None
    found: dict[str, Any] = {
        "scale_table": keys[CARRY],
        "row_bytes": keys[CARRY].shape[-1],
        "group": field.sharing.columns,
        "unit": field.unit,
        "BITS": matrix.bits,
        "SCALE": "float" if field.table is None else "table",
        "ZERO": -1 if zero is None else zero.bits,
        "GROUPED": not field.sharing.by_row,
    }
    if field.table is not None:
        found["scale_table"] = table_of(field.table, keys[CARRY].device)
    places = {"": CARRY, "_scale": field.name, "_zero": CARRY if zero is None else zero.name}
    for role, name in places.items():
        key, value = _bytes(keys[name]), _bytes(values[name])
        if key.stride() != value.stride() or key.stride(-1) != 1:
            key, value = key.contiguous(), value.contiguous()
        found |= {f"{'key' if role else 'keys'}{role}": key, f"{'value' if role else 'values'}{role}": value}
        steps = dict(zip(("batch", "head", "slot"), key.stride()[:3], strict=True))
        found |= {f"{role.removeprefix('_') or 'word'}_{name}": step for name, step in steps.items()}
    return found


def _bytes(tensor: Tensor) -> Tensor:
    """Small floats as the bytes that a table is asked for."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor
