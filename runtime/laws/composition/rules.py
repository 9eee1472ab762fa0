"""Rules: rho of a composite from the multipliers of its parts. Each is a generator, and a use of constants.

A rule is f^-1(f(rho_1) + f(rho_2) + ...) with a decreasing f that is 0 at rho = 1 (the Archimedean copulas):
the order of parts does not matter, and a composite is never worth more than a part of it. Every generator has
one strength k. At k = 0 all are the product; the more k, the more of their losses the parts share. Parts that
are worth more than dense multiply outside of the rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations

import numpy as np

from ...errors import RequestError
from ..runs import Array

_LEAST = 1e-9  # a strength that stands for the limit 0
FAMILIES = ("sparse", "scalar")
OTHER = "any"


@dataclass(frozen=True)
class Generator:
    """f(rho, k) and its inverse, both on arrays, and the largest k that is searched."""

    formula: str
    forward: Callable[[Array, Array], Array]
    backward: Callable[[Array, Array], Array]
    most: float


def _damage(total: Array, k: Array) -> Array:
    """1/rho of parts whose damages 1/rho - 1 overlap by k."""
    return np.asarray(1 + np.expm1((1 - k) * total) / (1 - k))


PRODUCT = Generator(
    "rho = rho_1 rho_2", lambda r, k: -np.log(r) + 0 * k, lambda t, k: np.exp(-t) + 0 * k, 0.0
)
NORM = Generator(
    "(-log rho)^(1+k) = (-log rho_1)^(1+k) + (-log rho_2)^(1+k)",
    lambda r, k: (-np.log(r)) ** (1 + k),
    lambda t, k: np.exp(-(t ** (1 / (1 + k)))),
    4.0,
)
EXCESS = Generator(
    "rho^-k - 1 = (rho_1^-k - 1) + (rho_2^-k - 1)",
    lambda r, k: np.expm1(-k * np.log(r)) / k,
    lambda t, k: np.exp(-np.log1p(k * t) / k),
    4.0,
)
OVERLAP = Generator(
    "d = d_1 + d_2 + (1-k) d_1 d_2 with the damage d = 1/rho - 1",
    lambda r, k: np.log1p((1 - k) * (1 / r - 1)) / (1 - k),
    lambda t, k: 1 / _damage(t, k),
    1.0 - _LEAST,
)
FRANK = Generator(
    "e^(-k rho) - 1 = (e^(-k rho_1) - 1)(e^(-k rho_2) - 1)/(e^-k - 1)",
    lambda r, k: -np.log(np.expm1(-k * r) / np.expm1(-k)),
    lambda t, k: -np.log1p(np.exp(-t) * np.expm1(-k)) / k,
    10.0,
)
JOE = Generator(
    "1 - (1-rho)^(1+k) = (1 - (1-rho_1)^(1+k))(1 - (1-rho_2)^(1+k))",
    lambda r, k: -np.log(1 - (1 - r) ** (1 + k)),
    lambda t, k: 1 - (1 - np.exp(-t)) ** (1 / (1 + k)),
    4.0,
)


@dataclass(frozen=True)
class Rule:
    """A generator, and what its strength depends on.

    per: "nothing" when there is no constant, "all" for one constant, "family" for one per compression family
    (a composite takes the mean over its parts), "pair" for one per pair of families (the mean over pairs).
    What is not sparse counts as scalar.
    """

    name: str
    generator: Generator
    per: str

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the constants; a rule per pair keeps one for pairs that it has seen no table of."""
        pairs = (pair_name((a, b)) for i, a in enumerate(FAMILIES) for b in FAMILIES[i:])
        return {"nothing": (), "all": (OTHER,), "family": FAMILIES, "pair": (*pairs, OTHER)}[self.per]

    def strength(self, constants: Mapping[str, Array], families: Sequence[str]) -> Array:
        """k of a composite whose parts are of these families.

        Raises RequestError when the rule needs families and none, or not all, are given.
        """
        if self.per in ("nothing", "all"):
            return np.asarray(constants.get(OTHER, 0.0))
        names = [family if family in FAMILIES else "scalar" for family in families]
        if self.per == "pair":
            names = [pair_name(pair) for pair in combinations(names, 2)]
        if not names:
            raise RequestError(
                f"the {self.name} rule composes by family, and no families are given",
                advice="say of every part whether it is sparse or scalar, or compose by the product rule",
            )
        return np.asarray(np.mean([constants[name] for name in names], axis=0))

    def combine(self, parts: Array, strength: Array) -> Array:
        """rho of the composite of multipliers `[parts, ...]` at strengths that broadcast over the rest."""
        k = np.maximum(strength, _LEAST) if self.generator.most else np.zeros_like(strength)
        total = sum(self.generator.forward(part, k) for part in np.minimum(parts, 1.0))
        return np.asarray(self.generator.backward(np.asarray(total), k) * np.maximum(parts, 1.0).prod(axis=0))


def pair_name(families: Sequence[str]) -> str:
    """The constant of a pair of families, in either order."""
    return " x ".join(sorted(families, key=FAMILIES.index))


def _shared(name: str, generator: Generator) -> tuple[Rule, ...]:
    return tuple(Rule(f"{name}{end}", generator, per) for end, per in _WAYS.items())


_WAYS = {"": "all", " by family": "family", " by pair": "pair"}
RULES: tuple[Rule, ...] = (
    Rule("product", PRODUCT, "nothing"),
    *_shared("norm", NORM),
    *_shared("excess", EXCESS),
    *_shared("overlap", OVERLAP),
    *_shared("frank", FRANK),
    *_shared("joe", JOE),
)


def find_rule(name: str) -> Rule:
    """The rule of this name. Raises RequestError for an unknown one, with the nearest."""
    by_name = {rule.name: rule for rule in RULES}
    if name not in by_name:
        close = get_close_matches(name, by_name, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise RequestError(
            f"no rule of composition is called {name!r}", advice=f"{hint}(known: {', '.join(by_name)})"
        )
    return by_name[name]
