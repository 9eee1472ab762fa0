# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The device code of products of coded inputs with packed weights, and of grouped products.

Shapes: M rows of inputs, N columns of the output, K numbers in a row. FORM is what is multiplied: `int8` or
`float8` codes of inputs, `half` (float8 codes where tensor cores do not know them), `float` inputs as they
are. A byte of a packed row holds PER codes; the codes of inputs lie in PER planes, so that plane p of a block
of bytes is multiplied with plane p of the inputs, and nothing is ever put in order. With TABLE codes are of
any width, in order, and stand for the numbers of a table.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .coded_triton import codes_at, completed, in_order, read, scaled, signed_planes


@triton.jit
def halves(codes):
    """e4m3 codes as float16 numbers over 256, subnormal numbers included."""
    pattern = codes.to(tl.int16)
    return (((pattern & 0x80) << 8) | ((pattern & 0x7F) << 7)).to(tl.float16, bitcast=True)


@triton.jit
def multiplied(x, w, total, FORM: tl.constexpr):
    """total + x w^T."""
    if FORM == "int8":
        return tl.dot(x, tl.trans(w), total, out_dtype=tl.int32)
    elif FORM == "float8":
        left, right = x.to(tl.float8e4nv, bitcast=True), w.to(tl.float8e4nv, bitcast=True)
        return tl.dot(left, tl.trans(right), total)
    elif FORM == "half":
        return tl.dot(halves(x), tl.trans(halves(w)), total)
    else:
        return tl.dot(x, tl.trans(w), total, input_precision="ieee")


@triton.jit
def group_of(tile, offsets, EXPERTS: tl.constexpr, EXPERTS_UP: tl.constexpr, BLOCK_M: tl.constexpr):
    """Of a tile of sorted rows: its expert, its first row and where its expert's rows end (0 for none)."""
    each = tl.arange(0, EXPERTS_UP)
    known = each < EXPERTS
    ends = tl.load(offsets + each, mask=known, other=0)
    starts = tl.load(offsets + each - 1, mask=known & (each > 0), other=0)
    tiles = tl.cumsum((tl.where(known, ends - starts, 0) + BLOCK_M - 1) // BLOCK_M, 0)
    expert = tl.sum((tiles <= tile).to(tl.int32), 0)
    mine = each == expert
    before = tl.sum(tl.where(each == expert - 1, tiles, 0), 0)
    first = tl.sum(tl.where(mine, starts, 0), 0) + (tile - before) * BLOCK_M
    return tl.minimum(expert, EXPERTS - 1), first, tl.sum(tl.where(mine & known, ends, 0), 0)


@triton.jit
def block_product(
    found,
    added,
    x_rows,
    word_rows,
    levels,
    block,
    x_plane,
    row_bytes,
    K,
    known,
    BITS: tl.constexpr,
    PER: tl.constexpr,
    FORM: tl.constexpr,
    TABLE: tl.constexpr,
    SHIFTED: tl.constexpr,
    EVEN: tl.constexpr,
    PLAIN: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """`found` and the sums `added` of inputs, with those of one block of k."""
    BYTES: tl.constexpr = BLOCK_K // PER
    KIND: tl.constexpr = added.dtype
    k = block * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    place = block * BYTES + tl.arange(0, BYTES)[None, :]
    if TABLE:
        planes = (tl.load(levels + codes_at(word_rows, k, (k < K) & known, row_bytes, BITS)),)
    else:
        packed = read(word_rows + place, place < row_bytes, EVEN, True)
        if FORM == "int8":
            planes = signed_planes(packed, BITS, PLAIN)
        elif FORM == "float":
            planes = (in_order(packed.to(tl.int32), 0, 1, PER, BITS).to(x_rows.dtype.element_ty),)
        else:
            planes = (packed,)
    at = place if FORM == "int8" and not TABLE else k
    for p in tl.static_range(PER if FORM == "int8" else 1):
        inputs = read(x_rows + p * x_plane + at, at < (K if TABLE else x_plane), EVEN, False)
        found = multiplied(inputs, planes[p], found, FORM)
        if SHIFTED:
            added += tl.sum(inputs.to(KIND), 1)
    return found, added


@triton.jit
def product(
    x,
    x_scale,
    words,
    levels,
    scale,
    scale_table,
    factor,
    zero,
    row_sums,
    bias,
    offsets,
    out,
    M,
    N,
    K,
    x_row,
    x_plane,
    x_group,
    x_groups,
    row_bytes,
    unit,
    share_rows,
    share_columns,
    scale_columns,
    zero_row,
    shift,
    zero_times,
    multiplier,
    blocks_each,
    BITS: tl.constexpr,
    PER: tl.constexpr,
    FORM: tl.constexpr,
    TABLE: tl.constexpr,
    SCALE: tl.constexpr,
    FACTOR: tl.constexpr,
    ZERO: tl.constexpr,
    ZERO_FLAT: tl.constexpr,
    SHIFTED: tl.constexpr,
    GROUPED: tl.constexpr,
    X_GROUPED: tl.constexpr,
    HALF: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    EXPERTS: tl.constexpr,
    EXPERTS_UP: tl.constexpr,
    EVEN: tl.constexpr,
    PLAIN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """out[part, m, n] = the product over the part's `blocks_each` blocks of k, times scales.

    A weight is (number + shift - zero `zero_times`) times its scale and `multiplier`; SHIFTED says whether
    shift or zero is there (through sums of inputs). GROUPED: scales change along k, by whole blocks, those
    of inputs with X_GROUPED. HALF: inputs are half more than their codes, and `row_sums` holds the sums of
    rows of the weight. With EXPERTS rows of x belong to matrices of N rows of the weight each, as `offsets`
    say.
    """
    tile = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(2)
    expert = 0
    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    end = M
    if EXPERTS:
        expert, first, end = group_of(tile, offsets, EXPERTS, EXPERTS_UP, BLOCK_M)
        row = first + tl.arange(0, BLOCK_M)
    if (not EXPERTS) or tl.min(row, 0) < end:
        # What lies past the last row or column reads the last one again; it is not stored.
        near = tl.minimum(row, M - 1).to(tl.int64)
        of_weight = expert * N + tl.minimum(column, N - 1).to(tl.int64)
        x_rows = x + near[:, None] * x_row
        word_rows = words + of_weight[:, None] * row_bytes
        scale_row = (of_weight // share_rows)[None, :]
        there = scale_row >= 0
        fields = (scale, scale_table, factor, zero)
        sizes = (unit, scale_columns, zero_row, shift, zero_times)
        KIND: tl.constexpr = tl.int32 if FORM == "int8" else tl.float32
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32 if GROUPED else KIND)
        sums = tl.zeros((BLOCK_M,), KIND)
        for block in range(part * blocks_each, tl.minimum((part + 1) * blocks_each, tl.cdiv(K, BLOCK_K))):
            if GROUPED:
                found, added = tl.zeros((BLOCK_M, BLOCK_N), KIND), tl.zeros((BLOCK_M,), KIND)
            else:
                found, added = total, sums
            found, added = block_product(
                found,
                added,
                x_rows,
                word_rows,
                levels,
                block,
                x_plane,
                row_bytes,
                K,
                (column < N)[:, None],
                BITS,
                PER,
                FORM,
                TABLE,
                SHIFTED,
                EVEN,
                PLAIN,
                BLOCK_K,
            )
            if GROUPED:
                at = block * BLOCK_K // share_columns
                value, added = found.to(tl.float32), added[:, None]
                value = scaled(
                    value, added, scale_row, at, there, fields, sizes, SCALE, FACTOR, ZERO, ZERO_FLAT, SHIFTED
                )
                if X_GROUPED:
                    value *= tl.load(x_scale + near * x_groups + block * BLOCK_K // x_group)[:, None]
                total += value
            else:
                total, sums = found, added
        result, half = total.to(tl.float32), 0.0
        if not GROUPED:
            added = sums[:, None]
            result = scaled(
                result, added, scale_row, 0, there, fields, sizes, SCALE, FACTOR, ZERO, ZERO_FLAT, SHIFTED
            )
        if FORM != "float" and not X_GROUPED:
            each = tl.load(x_scale + near)[:, None]
            result *= each
            half = tl.where(part == 0, each * 0.5, 0.0)
        result = completed(
            result * multiplier, of_weight[None, :], half, row_sums, bias, HALF, HAS_BIAS, ACTIVATION
        )
        place = (part * M + row).to(tl.int64)[:, None] * N + column[None, :]
        stored = (row < end)[:, None] & (column < N)[None, :]
        tl.store(out + place, result.to(out.dtype.element_ty), mask=stored)


@triton.jit
def finish(
    sums,
    x_sums,
    x_scale,
    row_sums,
    scale,
    scale_table,
    factor,
    bias,
    out,
    M,
    N,
    unit,
    share_rows,
    shift,
    multiplier,
    SCALE: tl.constexpr,
    FACTOR: tl.constexpr,
    SHIFTED: tl.constexpr,
    HALF: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """out = what `product` makes of whole sums of products [M, N], under scales of rows."""
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    near, of_weight = tl.minimum(row, M - 1), tl.minimum(column, N - 1)[None, :]
    inside = (row < M)[:, None] & (column < N)[None, :]
    place = row.to(tl.int64)[:, None] * N + column[None, :]
    result, added = tl.load(sums + place, mask=inside, other=0).to(tl.float32), 0.0
    if SHIFTED:
        added = tl.load(x_sums + near)[:, None]
    fields, sizes = (scale, scale_table, factor, scale), (unit, 1, 0, shift, 1.0)
    there, scale_row = of_weight >= 0, of_weight // share_rows
    result = scaled(result, added, scale_row, 0, there, fields, sizes, SCALE, FACTOR, -1, 0, SHIFTED)
    each = tl.load(x_scale + near)[:, None]
    result = completed(
        result * each * multiplier, of_weight, each * 0.5, row_sums, bias, HALF, HAS_BIAS, ACTIVATION
    )
    tl.store(out + place, result.to(out.dtype.element_ty), mask=inside)
