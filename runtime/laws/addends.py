"""A formula as a sum of products: which coefficient each term has, and what its logarithm is made of.

A power of a product is the product of powers, a product with a sum of coefficients the sum of products; all
that is raised to a power is taken as positive. One sum may stand as a whole under a power, as in
`(A/N^alpha + B/D^beta)^gamma + E`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import RequestError
from .base import Law, Parameter
from .formula import ONE, Name, Node, Number, Product, Sum, names_in

Factor: TypeAlias = tuple[Node, Node]  # base, exponent


@dataclass(frozen=True)
class Term:
    """sign * coefficient * (multiplier per entry of a column)^exponent * product of factors.

    coefficient: its parameter, or None for 1; multiplier: the name whose entries share out the coefficient,
    or None; inside: whether it stands under the formula's power.
    """

    sign: float
    coefficient: Parameter | None
    multiplier: Name | None
    exponent: Node
    factors: tuple[Factor, ...]
    inside: bool


@dataclass(frozen=True)
class Separated:
    """The terms of a law, and the power that those inside stand under (None when none do)."""

    terms: tuple[Term, ...]
    power: Node | None


def separate(law: Law) -> Separated:
    """The terms of a law. Raises RequestError, naming the law, when a coefficient is no plain factor."""
    by_name = {parameter.name: parameter for parameter in law.every_parameter}
    counts = Counter(name.name for name in names_in(law.tree))
    terms: list[Term] = []
    power: Node | None = None
    for sign, factors in _addends(law.tree, by_name):
        wrapped = _wrapped(factors, by_name)
        if wrapped is None:
            terms.append(_term(law, sign, factors, counts, by_name, inside=False))
            continue
        if power is not None or sign < 0:
            raise RequestError("only one sum may stand under a power, with a plus", where=f"law {law.name}")
        inner, power = wrapped
        terms += [_term(law, s, f, counts, by_name, inside=True) for s, f in _addends(inner, by_name)]
    return Separated(tuple(terms), power)


def _wrapped(factors: tuple[Factor, ...], by_name: dict[str, Parameter]) -> tuple[Node, Node] | None:
    """The sum of coefficients and its power, where an addend is nothing else."""
    if len(factors) == 1 and isinstance(factors[0][0], Sum) and _has_coefficient(factors[0][0], by_name):
        return factors[0]
    return None


def _addends(node: Node, by_name: dict[str, Parameter]) -> list[tuple[float, tuple[Factor, ...]]]:
    if isinstance(node, Sum):
        return [
            (sign * inner, factors)
            for sign, part in node.addends
            for inner, factors in _addends(part, by_name)
        ]
    factors = _factors(node)
    for i, (base, exponent) in enumerate(factors):
        if isinstance(base, Sum) and exponent == ONE and _has_coefficient(base, by_name):
            rest = factors[:i] + factors[i + 1 :]
            parts = [(sign, Product((*rest, (part, ONE)))) for sign, part in base.addends]
            return [(s * inner, f) for s, part in parts for inner, f in _addends(part, by_name)]
    return [(1.0, tuple(factors))]


def _factors(node: Node) -> list[Factor]:
    if not isinstance(node, Product):
        return [(node, ONE)]
    return [
        (base, _times(inner, exponent)) for part, exponent in node.factors for base, inner in _factors(part)
    ]


def _times(first: Node, second: Node) -> Node:
    if first == ONE or second == ONE:
        return second if first == ONE else first
    if isinstance(first, Number) and isinstance(second, Number):
        return Number(first.value * second.value)
    return Product(((first, ONE), (second, ONE)))


def _has_coefficient(node: Node, by_name: dict[str, Parameter]) -> bool:
    return any(name.name in by_name and by_name[name.name].is_coefficient for name in names_in(node))


def _term(
    law: Law,
    sign: float,
    factors: tuple[Factor, ...],
    counts: Counter[str],
    by_name: dict[str, Parameter],
    *,
    inside: bool,
) -> Term:
    coefficient: Parameter | None = None
    multiplier: Name | None = None
    exponent: Node = ONE
    rest: list[Factor] = []
    for base, power in factors:
        parameter = by_name.get(base.name) if isinstance(base, Name) else None
        alone = parameter is not None and counts[parameter.name] == 1
        if (
            parameter is not None
            and parameter.is_coefficient
            and power == ONE
            and alone
            and coefficient is None
        ):
            coefficient = parameter
            multiplier = base if isinstance(base, Name) and base.column else multiplier
        elif (
            parameter is not None
            and parameter.column
            and parameter.baseline == 1.0
            and alone
            and not multiplier
        ):
            assert isinstance(base, Name)
            multiplier, exponent = base, power
        elif _has_coefficient(base, by_name) or _has_coefficient(power, by_name):
            name = next(
                n.name for part in (base, power) for n in names_in(part) if _has_coefficient(n, by_name)
            )
            raise RequestError(
                f"{name} is bounded like a coefficient, 0 to infinity, but is no plain factor of one term",
                where=f"law {law.name}",
                advice="give it finite bounds, or write the formula with another constant in its place",
            )
        else:
            rest.append((base, power))
    return Term(sign, coefficient, multiplier, exponent, tuple(rest), inside)
