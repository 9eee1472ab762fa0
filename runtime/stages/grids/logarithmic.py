"""Levels that are powers of two, and sums of them: multiplication by shifts."""

from __future__ import annotations

import itertools

from .levels import LevelGrid, symmetric


def logarithmic(bits: int, base: float) -> LevelGrid:
    """Zero and +-base^-k for k = 0 to 2^(bits-1) - 2, the largest level 1 (Miyashita et al. 1603.01025).

    With base 2 these are the levels of e(bits-1)m0 over the largest. Numbers go to the nearest level, not to
    the nearest exponent.

    Raises:
        ValueError: one bit, which has no room for zero and two signs.
    """
    if bits < 2:
        raise ValueError(f"a logarithmic grid needs 2 to 8 bits, got {bits}; use grid: binary")
    return symmetric([base**-k for k in range((1 << (bits - 1)) - 2, -1, -1)], bits)


def additive_powers_of_two(bits: int) -> LevelGrid:
    """Sums of powers of two with a sign, the largest level 1 (APoT, 1909.13144, equation 5).

    Of the bits - 1 bits of a magnitude each pair chooses one of 0 and three powers of 1/2, a single bit left
    over 0 or one. The powers 1/2, 1/4, ... are dealt to the pairs in turn, three to each; the single one
    comes after the second round, as in the authors' code.

    Raises:
        ValueError: one bit, which has no room for zero and two signs.
    """
    if bits < 2:
        raise ValueError(f"grid apot needs 2 to 8 bits, got {bits}; use grid: binary")
    pairs, single = divmod(bits - 1, 2)
    terms = [
        (0.0, *(2.0 ** -(turn * pairs + pair + single * (turn == 2)) for turn in range(3)))
        for pair in range(1, pairs + 1)
    ]
    terms += [(0.0, 2.0 ** -(2 * pairs + 1))] * single
    sums = sorted(sum(chosen) for chosen in itertools.product(*terms))
    return symmetric([value / sums[-1] for value in sums[1:]], bits)
