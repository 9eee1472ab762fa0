"""Seeds of random numbers that follow from one seed."""

from __future__ import annotations

_WORD = 2**64 - 1


def derived(seed: int, *places: int) -> int:
    """A seed for each place under a seed, from 0 up to 2^63: splitmix64 (Steele, Lea, Flood 2014) of both.

    Seeds that follow each other give numbers that have nothing to do with each other.
    """
    state = _mixed(seed)
    for place in places:
        state = _mixed(state ^ _mixed(place + 1))
    return state >> 1


def _mixed(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) & _WORD
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _WORD
    return state ^ (state >> 31)
