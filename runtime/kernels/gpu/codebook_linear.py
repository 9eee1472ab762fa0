"""Weight-only linear on vector codebooks, on CUDA: k-means, lattices, Gaussian tables, residual, additive,
product.

Tables are read through the first cache, where small ones stay; entries are packed as the tensor cores take
them. E8P is worked out from its 256 sizes and signs, never from 65536 rows. For one row of input and tables
of up to 256 entries the sum goes the other way round: each part of the input is multiplied with all vectors
of the table once, in a program for many outputs, and a code then fetches a number instead of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from ...codebooks import e8p as e8p_points
from ...interpreted import interpreted
from ...stage import CARRY, Fields
from ...stages.codebook import Codebook
from ..base import Call
from .e8p_text import e8p_text
from .reading import OPERANDS
from .tiled import Coded, Share, TiledLinear, share, whole_units, working

TABLE = "gpu.table"  # a prepared field: float32 [groups of rows, codebooks, entries, size]
COLUMNS = "gpu.columns"  # the tables as the products with one row take them, by dtype
SIZES = "gpu.sizes"  # of E8P
_PACKED = {1: torch.int16, 2: torch.int32, 4: torch.int64}
_LEAST, _WIDEST = 8, 32  # numbers of a unit
_GATHERED_SIZES = (4, 8)  # numbers that an entry stands for: enough for a gather to issue less
_TOGETHER = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # by codebooks of bytes
_WIDE = 16  # of what tensor cores take at once
_GATHERED_VECTORS = 16
_GATHERED_ROWS = 512


class CodebookLinear(TiledLinear):
    """Neighbours as vectors of tables, all sources and compositions whose vectors have 1, 2, 4, ...
    numbers."""

    name: ClassVar[str] = "codebook_linear"

    def refuse_weight(self, call: Call) -> str | None:
        stages = call.representation.bound_stages
        if len(stages) != 1 or not isinstance(stages[0], Codebook):
            return f"{call.representation} is not one codebook"
        stage = stages[0]
        if stage.source == "e8p" and stage.num_codebooks > 2:
            return f"{stage.num_codebooks} codebooks of e8p are added up, more than 2"
        count = _numbers(stage)
        if count is None:
            return f"vectors of {stage.in_group_size} numbers have no units of bytes"
        if stage.scaled and not whole_units(stage.group_size or call.shape[1], call.shape[1], count):
            return f"groups of {stage.group_size} hold no whole units of {count}"
        return None

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return {**stored, **_prepared(_stage(call), stored)}

    def coded(self, call: Call, stored: Mapping[str, Tensor], dtype: torch.dtype) -> Coded:
        stage, (rows, columns) = _stage(call), call.shape
        ready = stored if TABLE in stored or SIZES in stored else {**stored, **_prepared(stage, stored)}
        codes = stored[CARRY].contiguous()
        count, word = _units(stage, codes, columns)
        codes = codes if word == 8 else codes.view(torch.int32)
        scale, shared = _scales(stage, stored, (rows, columns), count)
        if stage.source == "e8p":
            return _e8p(stage, codes, ready[SIZES], (rows, columns), (scale, shared), dtype, (count, word))
        from .codebook_linear_triton import vectors

        size, book_bits = _size(stage), stage.nbits_per_codebook
        vectors_in_unit = count // stage.in_group_size
        words = vectors_in_unit * stage.num_codebooks * book_bits // word
        packed = 0 if dtype == torch.float32 else min(4, size)
        table = ready[TABLE]
        book_row = table.shape[1] * table.shape[2] * table.shape[3]
        if packed:
            name = f"{TABLE}.{dtype}"
            table = ready[name] if name in ready else _packed(table, packed, dtype)
        return Coded(
            (rows, columns), vectors,
            (codes, table, codes.shape[-1], stage.rows_per_codebook or rows, book_row),
            (
                vectors_in_unit, size, packed, stage.num_codebooks, book_bits,
                stage.composition == "product", words, count, word,
            ),
            count // 2, (scale, scale), shared, stages=2 if stage.num_codebooks > 1 else 3,
        )  # fmt: skip

    def few(
        self, call: Call, rows: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None
    ) -> Tensor | None:
        if len(rows) != 1 or not gathers(_stage(call)):
            return None
        return gathered(call, rows, stored, bias)


def gathers(stage: Codebook) -> bool:
    """Whether one row goes by products with whole tables: codes are bytes, and an entry stands for enough
    numbers."""
    return (
        stage.source != "e8p"
        and stage.nbits_per_codebook == 8
        and stage.rows_per_codebook is None
        and _size(stage) in _GATHERED_SIZES
        and (not stage.scaled or stage.group_size is None)
    )


def gathered(call: Call, row: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
    """The product with one row `[1, K]` by sums of products that are looked up."""
    from .codebook_linear_triton import gathered as kernel  # imports Triton
    from .linear_triton import finish

    stage, (count, columns) = _stage(call), call.shape
    dtype = working(row.dtype)
    ready = stored if TABLE in stored else {**stored, **_prepared(stage, stored)}
    points = ready[f"{COLUMNS}.{dtype}"]
    codes = stored[CARRY].contiguous()
    vectors = codes.shape[-1] // stage.num_codebooks
    together = stage.num_codebooks in _TOGETHER and codes.data_ptr() % stage.num_codebooks == 0
    codes = codes.view(_TOGETHER[stage.num_codebooks]) if together else codes
    scale, shared = _scales(stage, stored, (count, columns), 1)
    programs = -(-count // _GATHERED_ROWS)
    blocks = -(-vectors // _GATHERED_VECTORS)
    parts = max(1, min(2 * _processors(row) // programs, blocks))
    out = torch.empty((parts, count), dtype=torch.float32 if parts > 1 else dtype, device=row.device)
    with torch.cuda.device_of(row):  # type: ignore[no-untyped-call]
        kernel[(programs, parts)](
            row, codes, points, scale, scale, row if bias is None else bias, out, 1.0,
            count, columns, vectors, codes.shape[-1], -(-blocks // parts),
            HAS_BIAS=bias is not None and parts == 1, FLOAT32=dtype == torch.float32,
            TOGETHER=together, **gathered_constants(stage, shared), num_warps=4, num_stages=2,
        )  # fmt: skip
        if parts == 1:
            return out.to(row.dtype)
        result = torch.empty((1, count), dtype=dtype, device=row.device)
        finish[(-(-count // 256),)](
            out, row if bias is None else bias, result, parts, 1, count,
            HAS_BIAS=bias is not None, ACTIVATION="", BLOCK=256,
        )  # fmt: skip
    return result.to(row.dtype)


def gathered_constants(stage: Codebook, shared: Share) -> dict[str, object]:
    """The constants of the kernel that looks products up."""
    return {
        "SHARE": shared.constants(),
        "SIZE": _size(stage),
        "BOOKS": stage.num_codebooks,
        "PRODUCT": stage.composition == "product",
        "ENTRIES": 1 << stage.nbits_per_codebook,
        "WIDE": _WIDE,
        "BLOCK_N": _GATHERED_ROWS,
        "BLOCK_V": _GATHERED_VECTORS,
        "STAGES": 2,
    }


def _e8p(
    stage: Codebook,
    codes: Tensor,
    sizes: Tensor,
    shape: tuple[int, int],
    scales: tuple[Tensor, Share],
    dtype: torch.dtype,
    unit: tuple[int, int],
) -> Coded:
    from .codebook_linear_triton import e8p

    assert stage.factors is not None
    first, *others = stage.factors
    scale, shared = scales
    count, word = unit
    vectors = count // e8p_points.DIMENSIONS
    words = vectors * stage.num_codebooks * e8p_points.BITS // word
    operand = OPERANDS.get(dtype)
    text = e8p_text(operand) if operand is not None and not interpreted() else ("", "")
    return Coded(
        shape, e8p, (codes, sizes, codes.shape[-1]),
        (vectors, stage.num_codebooks, *text, others[0] / first if others else 0.0, word, words),
        count // 2, (scale, scale), shared, first / 4,
    )  # fmt: skip


def _numbers(stage: Codebook, word: int = 8) -> int | None:
    """How many numbers are a unit: whole vectors whose codes are whole words of so many bits."""
    vector = stage.in_group_size
    if vector & (vector - 1) or _size(stage) & (_size(stage) - 1):
        return None
    count = max(vector, _LEAST)
    while count <= _WIDEST:
        if count // vector * stage.num_codebooks * stage.nbits_per_codebook % word == 0:
            return count
        count *= 2
    return None


def _units(stage: Codebook, codes: Tensor, columns: int) -> tuple[int, int]:
    """The numbers of a unit, and the bits of the words that its codes are read by."""
    wide, shared = _numbers(stage, 32), stage.group_size or columns
    if wide is not None and columns % wide == 0 and shared % wide == 0 and codes.data_ptr() % 4 == 0:
        return wide, 32
    narrow = _numbers(stage)
    assert narrow is not None, "the call was refused"
    return narrow, 8


def _size(stage: Codebook) -> int:
    """Numbers of a table's vectors."""
    return stage.in_group_size // (stage.num_codebooks if stage.composition == "product" else 1)


def _scales(
    stage: Codebook, stored: Mapping[str, Tensor], shape: tuple[int, int], count: int
) -> tuple[Tensor, Share]:
    if not stage.scaled:
        return stored[CARRY], Share()
    rows = shape[0] if stage.strategy == "tensor" else 1
    return stored["0.scale"].contiguous(), share(
        "float", rows, stage.group_size or shape[1], shape, count, 128
    )


def _prepared(stage: Codebook, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tables of all groups of rows in float32, or the sizes of E8P."""
    device = stored[CARRY].device
    if stage.source == "e8p":
        return {SIZES: _sizes(device)}
    fields: Fields = {name[2:]: tensor for name, tensor in stored.items() if name.startswith("0.")}
    like = torch.empty(0, dtype=torch.float32, device=device)
    table = torch.stack(stage.tables(fields, like)).contiguous()
    packed = min(4, table.shape[-1])
    found = {TABLE: table, **{f"{TABLE}.{dtype}": _packed(table, packed, dtype) for dtype in OPERANDS}}
    if gathers(stage):
        found |= {f"{COLUMNS}.{dtype}": _columns(table[0], dtype) for dtype in (torch.float32, *OPERANDS)}
    return found


def _columns(table: Tensor, dtype: torch.dtype) -> Tensor:
    """Tables `[codebooks, entries, size]` as columns of a dtype, above what rounding to it left, above
    zeros."""
    near = table.to(dtype)
    rest = (table - near.to(table.dtype)).to(dtype)
    both = torch.cat([near, rest], -1)
    return torch.nn.functional.pad(both, (0, _WIDE - both.shape[-1])).transpose(1, 2).contiguous()


def _packed(table: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """The table as operands, `count` of them in an integer."""
    return table.to(dtype).contiguous().view(_PACKED[count])


@lru_cache(maxsize=4)
def _sizes(device: torch.device) -> Tensor:
    """The 256 vectors of sizes as nibbles of what is above 1/2 in quarters, number 2 p in nibble p and 2 p
    + 1 in p + 4; the lowest bit says whether their sum is odd."""
    sizes = e8p_points.magnitudes()
    nibbles = ((sizes - 0.5) * 4).long()
    place = torch.tensor([i // 2 + i % 2 * 4 for i in range(e8p_points.DIMENSIONS)])
    words = (nibbles << (4 * place)).sum(1) | (sizes.sum(1) % 2 == 1).long()
    return torch.where(words < 1 << 31, words, words - (1 << 32)).to(torch.int32).to(device)


def _processors(x: Tensor) -> int:
    return torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1


def _stage(call: Call) -> Codebook:
    (stage,) = call.representation.bound_stages
    assert isinstance(stage, Codebook)
    return stage
