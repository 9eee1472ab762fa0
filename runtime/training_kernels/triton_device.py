# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""The parts of the fused projection on a GPU: rotation, sparsity, scale, grid and mask of a tile.

Shapes: a tile is M lines of W neighbours along the last dimension, float32. LINES lines make a segment, which
has one scale, or a line holds GROUPS groups of numbers with one scale each. Nothing here is fused behind our
back (`enable_fp_fusion` is off): results are those of the stages, operation by operation.
"""

from __future__ import annotations

import triton
import triton.language as tl

_HALF_EVEN = tl.constexpr(
    12582912.0
)  # 1.5 * 2^23: what is added to it is rounded to an integer, ties to even


@triton.jit
def rounded(x, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """Float32 numbers rounded to a dtype and back, by hand where the interpreter would cut bfloat16 off."""
    if DTYPE == "float16":
        x = x.to(tl.float16).to(tl.float32)
    elif DTYPE == "bfloat16" and INTERPRETED:
        pattern = x.to(tl.int32, bitcast=True)
        even = (pattern + 0x7FFF + ((pattern >> 16) & 1)) >> 16 << 16
        x = tl.where(x == x, even.to(tl.float32, bitcast=True), x)
    elif DTYPE == "bfloat16":
        x = x.to(tl.bfloat16).to(tl.float32)
    return x


@triton.jit
def tile_rounded(x, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """`rounded`, two numbers in an instruction: for tiles, of which every thread has some."""
    if DTYPE == "bfloat16" and not INTERPRETED:
        pairs = tl.inline_asm_elementwise(
            "cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [x], dtype=tl.bfloat16, is_pure=True, pack=2
        )
        return pairs.to(tl.float32)
    else:
        return rounded(x, DTYPE, INTERPRETED)


@triton.jit
def high_part(x):
    """Float32 numbers cut off after eight significant bits, so that bfloat16 holds them."""
    return ((x.to(tl.int32, bitcast=True) >> 16) << 16).to(tl.float32, bitcast=True)


@triton.jit
def product(x, turn, TERMS: tl.constexpr, INTERPRETED: tl.constexpr):
    """x [M, W] times a matrix [W, W] of zeros and signs, added up in float32.

    TERMS is how many bfloat16 numbers it takes to add up to a number of x exactly: 1 to 3.
    """
    if INTERPRETED:
        total = tl.dot(x, turn, input_precision="ieee")
    else:
        high = x if TERMS == 1 else high_part(x)
        total = tl.dot(high.to(tl.bfloat16), turn)
        if TERMS > 1:
            rest = x - high
            middle = rest if TERMS == 2 else high_part(rest)
            total = tl.dot(middle.to(tl.bfloat16), turn, total)
            if TERMS > 2:
                total = tl.dot((rest - middle).to(tl.bfloat16), turn, total)
    return total


@triton.jit
def exchanged(x, DISTANCE: tl.constexpr, M: tl.constexpr, W: tl.constexpr):
    """Every number of x [M, W] replaced by the one whose place differs in the bit DISTANCE."""
    pairs = tl.permute(tl.reshape(x, (M, W // (2 * DISTANCE), 2, DISTANCE)), (0, 1, 3, 2))
    first, second = tl.split(pairs)
    return tl.reshape(tl.permute(tl.join(second, first), (0, 1, 3, 2)), (M, W))


@triton.jit
def beaten(keys, partners, DISTANCE: tl.constexpr, W: tl.constexpr):
    """1 where a partner is larger, or equal and earlier."""
    place = tl.arange(0, W)[None, :]
    earlier = (place ^ DISTANCE) < place
    return ((partners > keys) | ((partners == keys) & earlier)).to(tl.int32)


@triton.jit
def largest(x, KEPT: tl.constexpr, OF: tl.constexpr, M: tl.constexpr, W: tl.constexpr):
    """True at the KEPT largest magnitudes of every OF neighbours (4 or 8); of equal ones the first stay."""
    keys = magnitude_bits(x)
    one = exchanged(keys, 1, M, W)
    two = exchanged(keys, 2, M, W)
    three = exchanged(one, 2, M, W)
    times = beaten(keys, one, 1, W) + beaten(keys, two, 2, W) + beaten(keys, three, 3, W)
    if OF == 8:
        times += beaten(keys, exchanged(keys, 4, M, W), 4, W)
        times += beaten(keys, exchanged(one, 4, M, W), 5, W)
        times += beaten(keys, exchanged(two, 4, M, W), 6, W)
        times += beaten(keys, exchanged(three, 4, M, W), 7, W)
    return times < KEPT


@triton.jit
def magnitude_bits(x):
    """Integers in the order of the magnitudes; NaN is the largest, so that it is never lost."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def over_lines(
    x, SUM: tl.constexpr, LINES: tl.constexpr, GROUPS: tl.constexpr, M: tl.constexpr, W: tl.constexpr
):
    """Sums or maxima of x [M, W] over what shares a scale: [M / LINES], or [M, GROUPS] with groups."""
    if GROUPS > 1:
        x = tl.reshape(x, (M, GROUPS, W // GROUPS))
        return tl.sum(x, axis=2) if SUM else tl.max(x, axis=2)
    else:
        each = tl.sum(x, axis=1) if SUM else tl.max(x, axis=1)
        if LINES > 1:
            each = tl.reshape(each, (M // LINES, LINES))
            each = tl.sum(each, axis=1) if SUM else tl.max(each, axis=1)
        return each


@triton.jit
def spread(x, LINES: tl.constexpr, GROUPS: tl.constexpr, M: tl.constexpr, W: tl.constexpr):
    """What `over_lines` gave, at every number [M, W], or [M, 1] where lines have one value."""
    if GROUPS > 1:
        wide = tl.broadcast_to(x[:, :, None], (M, GROUPS, W // GROUPS))
        return tl.reshape(wide, (M, W))
    else:
        if LINES > 1:
            x = tl.reshape(tl.broadcast_to(x[:, None], (M // LINES, LINES)), (M,))
        return x[:, None]


@triton.jit
def gathered(
    x,
    STATISTIC: tl.constexpr,
    LINES: tl.constexpr,
    GROUPS: tl.constexpr,
    M: tl.constexpr,
    W: tl.constexpr,
):
    """The sum or maximum that a statistic starts from, as `over_lines` gives it."""
    if STATISTIC == "rms":
        found = over_lines(x * x, True, LINES, GROUPS, M, W)
    elif STATISTIC == "absmean":
        found = over_lines(tl.abs(x), True, LINES, GROUPS, M, W)
    else:
        top = over_lines(magnitude_bits(x), False, LINES, GROUPS, M, W)
        found = top.to(tl.float32, bitcast=True)
        if STATISTIC == "signed":
            positive = tl.maximum(x.to(tl.int32, bitcast=True), 0)  # negative numbers are negative integers
            found = tl.where(over_lines(positive, False, LINES, GROUPS, M, W) == top, found, -found)
    return found


@triton.jit
def finished(found, count, STATISTIC: tl.constexpr):
    """The statistic from the sum or maximum of `count` numbers."""
    if STATISTIC == "rms":
        found = tl.sqrt_rn(tl.div_rn(found, count))
    elif STATISTIC == "absmean":
        found = tl.div_rn(found, count)
    return found


@triton.jit
def power_of_two(biased):
    """2^(e - 127) for integers e from 0 to 254; 0 gives a subnormal number."""
    return tl.where(biased == 0, 0x00400000, biased << 23).to(tl.float32, bitcast=True)


@triton.jit
def shared_exponent(maximum, border, offset, FROM_BORDER: tl.constexpr):
    """2^e of a largest magnitude f 2^k: `Plan` says how e follows from f and k."""
    small = maximum < 1.1754943508222875e-38
    pattern = tl.where(small, maximum * 16777216.0, maximum).to(tl.int32, bitcast=True)
    fraction = ((pattern & 0x007FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)
    reached = fraction >= border if FROM_BORDER else fraction > border
    biased = (pattern >> 23) - tl.where(small, 24, 0) + offset + reached.to(tl.int32) - 1
    biased = tl.where(maximum > 0.0, biased, 0)
    return power_of_two(tl.minimum(tl.maximum(biased, 0), 254))


@triton.jit
def stored(scale, least, most, SCALE_DTYPE: tl.constexpr, SIGNED: tl.constexpr, INTERPRETED: tl.constexpr):
    """Scales as `Floating` and `PowerOfTwo` store them. NaN stays NaN in a floating dtype."""
    if SCALE_DTYPE == "e8m0":
        pattern = scale.to(tl.int32, bitcast=True)
        biased = pattern >> 23
        half = tl.where(biased == 0, 0x005A827A, 0x003504F3)  # the square root of 1/2, as fractions are coded
        biased += ((pattern & 0x007FFFFF) >= half).to(tl.int32)
        scale = power_of_two(tl.minimum(tl.where(scale > 0.0, biased, 0), 254))
    else:
        if SIGNED:
            scale = tl.where(tl.abs(scale) < least, least, scale)
            scale = tl.where(scale < -most, -most, scale)
        else:
            scale = tl.where(scale < least, least, scale)
        scale = rounded(tl.where(scale > most, most, scale), SCALE_DTYPE, INTERPRETED)
    return scale


@triton.jit
def divided(x, scale, INTERPRETED: tl.constexpr):
    """x / scale, rounded as division rounds: times 1 / scale, and corrected once (Markstein 1990)."""
    if INTERPRETED:
        return x / scale
    else:
        inverse = tl.div_rn(1.0, scale)
        near = x * inverse
        return tl.fma(tl.fma(-near, scale, x), inverse, near)


@triton.jit
def to_grid(x, least, fraction, table, ROUNDING: tl.constexpr, LEVELS: tl.constexpr):
    """The nearest level of numbers in units of the scale that lie within the grid, but for rounding errors.

    `fraction` is the spacing of floats in a binade over its start; `table` holds LEVELS levels, then borders.
    """
    if ROUNDING == "nearest":
        level = (x + _HALF_EVEN) - _HALF_EVEN  # which is +0.0, never -0.0
    elif ROUNDING == "floor":
        level = tl.floor(x)  # a level, but for the shift
    elif ROUNDING == "float":
        binade = (x.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        rounder = tl.maximum(binade, least) * (fraction * _HALF_EVEN)
        level = (x + rounder) - rounder
    else:
        level = tl.zeros_like(x) + tl.load(table)
        for step in tl.static_range(1, LEVELS):
            level = tl.where(x > tl.load(table + LEVELS + step - 1), tl.load(table + step), level)
        level = tl.where(x == x, level, x)
    return level


@triton.jit
def packed(passes, PACK: tl.constexpr, M: tl.constexpr, W: tl.constexpr):
    """Bits of passes [M, W], PACK neighbours in an integer, the first in the lowest bit: [M, W / PACK]."""
    bit = (1 << tl.arange(0, PACK))[None, None, :]
    return tl.sum(tl.where(tl.reshape(passes, (M, W // PACK, PACK)), bit, 0), axis=2)


@triton.jit
def unpacked(words, PACK: tl.constexpr, M: tl.constexpr, W: tl.constexpr):
    """The inverse of `packed`: true where a bit is set [M, W]."""
    each = words.to(tl.int32)[:, :, None] << (31 - tl.arange(0, PACK))[None, None, :]
    return tl.reshape(each, (M, W)) < 0  # the bit is that of the sign now
