"""NormalFloat, and the four-bit tables of bitsandbytes."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

from .levels import LevelGrid, symmetric

# QLoRA (2305.14314), appendix E; the digits are those of bitsandbytes, to the last bit of float32.
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


@lru_cache(maxsize=8)
def normal_float(bits: int) -> LevelGrid:
    """NF of 2 to 8 bits: levels from -1 to 1 at quantiles of the normal distribution, with an exact zero.

    Four bits is the published table (QLoRA 2305.14314, appendix E). Other widths follow the construction that
    bitsandbytes made it by (`create_normal_map`), with its offset written for b bits as in LQ-LoRA
    (2311.12023, section 3): delta = (1 / 2^(b+1) + 1 / (2^(b+1) - 2)) / 2; 2^(b-1) positive levels at evenly
    spaced probabilities from 1 - delta down to 1/2 (left out), one negative level less likewise, and zero;
    all over the largest. Levels are rounded to twelve decimals, so that machines agree on them.

    Raises:
        ValueError: one bit, where no negative level is left.
    """
    if bits < 2:
        raise ValueError(f"grid nf needs 2 to 8 bits, got {bits}; use grid: binary")
    if bits == 4:
        return LevelGrid(_NF4, 4)
    count = 1 << bits
    offset = 1 - (1 / (2 * count) + 1 / (2 * count - 2)) / 2
    positive, negative = _quantiles(offset, count // 2), _quantiles(offset, count // 2 - 1)
    values = (*(-value for value in reversed(negative)), 0.0, *positive)
    return LevelGrid(tuple(round(value / positive[-1], 12) for value in values), bits)


def bitsandbytes_fp4() -> LevelGrid:
    """The `fp4` table of bitsandbytes: 0, 1/192 and 1/6 to 1 in e2m1-like steps, with either sign.

    Not e2m1: one magnitude, 1/16 where the largest is 12, stands in for the subnormal one. Codes ascend here;
    bitsandbytes numbers them by sign and bits.
    """
    return symmetric([value / 12 for value in (0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)], 4)


def _quantiles(offset: float, count: int) -> list[float]:
    """Ascending quantiles at `count` probabilities from above 1/2 to `offset`, evenly spaced."""
    step = (offset - 0.5) / count
    return [NormalDist().inv_cdf(0.5 + step * k) for k in range(1, count + 1)]
