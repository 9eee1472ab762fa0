"""Hadamard matrices: Sylvester's, Paley's, and their Kronecker products.

A Hadamard matrix of order n has entries +1 and -1 and orthogonal rows: H H^T = n I. Sylvester's doubling
gives every power of two. Paley's two constructions (Paley 1933, "On orthogonal matrices", J. Math. Phys. 12)
give q + 1 for prime powers q = 3 mod 4, and 2 (q + 1) for q = 1 mod 4, from the squares of the field of q
elements. Products of the two reach the sizes of most models: 768 = 64 * 12, 11008 = 32 * 344, 14336 = 512 *
28.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

Signs = NDArray[np.int8]

_LARGEST_CORE = 2048  # a core is held and multiplied as a dense matrix


def sylvester(order: int) -> Signs:
    """The symmetric matrix `[order, order]` of signs whose order is a power of two."""
    matrix = np.ones((1, 1), np.int8)
    while len(matrix) < order:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


@lru_cache(maxsize=256)
def core_order(size: int) -> int | None:
    """The order of the smallest matrix that a Hadamard matrix of `size` is a power of two times.

    1 for powers of two, else an order of Paley's; None when neither construction reaches the size.
    """
    if size < 1:
        return None
    odd = size // (size & -size)
    if odd == 1:
        return 1
    order = 4 * odd
    while size % order == 0 and order <= _LARGEST_CORE:
        if _paley_field(order) is not None:
            return order
        order *= 2
    return None


def paley(order: int) -> Signs:
    """Paley's matrix `[order, order]` of signs, for an order that `core_order` gave."""
    field = _paley_field(order)
    if field is None:
        raise ValueError(f"Paley's constructions give no matrix of order {order}")
    characters = _differences(*field)
    q = len(characters)
    symmetric = q % 4 == 1
    conference = np.ones((q + 1, q + 1), np.int8)
    conference[0, 0] = 0
    conference[1:, 1:] = characters
    if symmetric:
        spread = np.array([[1, 1], [1, -1]], np.int8)
        diagonal = np.array([[1, -1], [-1, -1]], np.int8)
        return np.kron(conference, spread) + np.kron(np.eye(q + 1, dtype=np.int8), diagonal)
    conference[1:, 0] = -1
    return conference + np.eye(q + 1, dtype=np.int8)


def _paley_field(order: int) -> tuple[int, int] | None:
    """The prime and the exponent of the field that gives a matrix of this order; None when no field does."""
    if order % 4:
        return None
    first, second = _prime_power(order - 1), _prime_power(order // 2 - 1)
    if first is not None:  # order - 1 = 3 mod 4
        return first
    return second if (order // 2 - 1) % 4 == 1 else None


def _prime_power(q: int) -> tuple[int, int] | None:
    """(p, k) with p^k = q and p prime; None when q is no prime power."""
    if q < 2:
        return None
    p = next((d for d in range(2, int(q**0.5) + 1) if q % d == 0), q)
    exponent = 0
    while q % p == 0:
        q, exponent = q // p, exponent + 1
    return (p, exponent) if q == 1 else None


def _differences(p: int, exponent: int) -> Signs:
    """The quadratic characters of a - b for all a, b of the field with p^exponent elements: 1 for a square,
    -1 for none, 0 for zero. Elements are in the order of their base-p digits."""
    powers = _generated(p, exponent)
    places = p ** np.arange(exponent)
    character = np.zeros(p**exponent, np.int8)
    character[np.array(powers) @ places] = np.where(np.arange(len(powers)) % 2, -1, 1)
    elements = np.arange(p**exponent)[:, None] // places % p
    difference = (elements[:, None] - elements) % p
    return np.asarray(character[difference @ places])


def _generated(p: int, exponent: int) -> list[tuple[int, ...]]:
    """All nonzero elements as powers of a generator: polynomials modulo the first that makes x one."""
    one = (1, *[0] * (exponent - 1))
    for modulus in product(range(p), repeat=exponent):
        powers, element = [one], _times_x(one, modulus, p)
        while element != one and any(element) and len(powers) < p**exponent:
            powers.append(element)
            element = _times_x(element, modulus, p)
        if len(powers) == p**exponent - 1 and element == one:
            return powers
    raise ValueError(f"{p} is not a prime")


def _times_x(element: tuple[int, ...], modulus: tuple[int, ...], p: int) -> tuple[int, ...]:
    """x times a polynomial of the field; x^exponent is minus the modulus."""
    shifted = (0, *element[:-1])
    return tuple((s - element[-1] * m) % p for s, m in zip(shifted, modulus, strict=True))
