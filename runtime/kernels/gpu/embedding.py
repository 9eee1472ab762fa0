"""Lookup of packed rows on CUDA: only the rows that are asked for are read, and decoded on the way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ...interpreted import interpreted
from ..base import Call, Kernel
from ..stored import StoredMatrix, stored_matrix
from .coded_linear import decoded, refuse_device
from .stored_fields import arguments, table_of, whole_rows

_BLOCK = 1024


def reference(call: Call, x: Tensor, stored: Mapping[str, Tensor]) -> Tensor:
    """What the kernel computes, in torch: every row is decoded, and rows are gathered."""
    return F.embedding(x, decoded(call, stored, call.dtype))


class PackedEmbedding(Kernel):
    """Every matrix of scalar codes; a token that has no row gives NaN."""

    name: ClassVar[str] = "gpu_embedding"
    operation: ClassVar[str] = "embedding"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)

    def refuse(self, call: Call) -> str | None:
        reason = refuse_device(call)
        if reason is not None:
            return reason
        if len(call.shape) != 2:
            return f"the weight has shape {list(call.shape)}, not a matrix's"
        matrix = stored_matrix(call.representation, call.shape)
        if isinstance(matrix, str):
            return matrix
        return None if matrix.pattern is None else "the matrix is sparse"

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        from .embedding_triton import gather  # imports Triton

        matrix = stored_matrix(call.representation, call.shape)
        assert isinstance(matrix, StoredMatrix), "a call was refused"
        tokens, words = x.reshape(-1).contiguous(), whole_rows(matrix, stored)
        # The interpreter cuts float32 off instead of rounding to bfloat16: torch rounds there.
        dtype = torch.float32 if interpreted() else call.dtype
        out = torch.empty(len(tokens), matrix.columns, dtype=dtype, device=x.device)
        if out.numel():
            with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
                gather[(len(tokens), -(-matrix.columns // _BLOCK))](
                    tokens=tokens,
                    words=words,
                    levels=table_of(matrix.levels, words.device),
                    out=out,
                    N=matrix.rows,
                    K=matrix.columns,
                    row_bytes=words.shape[1],
                    BITS=matrix.bits,
                    BLOCK_K=min(_BLOCK, 1 << (matrix.columns - 1).bit_length()),
                    **arguments(matrix, stored),
                )
        return out.to(call.dtype).reshape(*x.shape, matrix.columns)
