"""Numbers that carry exact first and second derivatives: forward-mode differentiation for formulas.

Only derivatives that are not zero are kept, so that a term like B/D^beta costs what it would by hand. Values
broadcast: parameters are [batch, 1], columns of runs [1, runs].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .runs import Array

Slopes = Mapping[int, Array]
Curves = Mapping[tuple[int, int], Array]


@dataclass(frozen=True, eq=False)
class Jet:
    """A value with its derivatives by parameter number: slopes[i], and curves[i, j] for i <= j."""

    __array_ufunc__ = None  # numpy leaves arithmetic with arrays to the methods below

    value: Array
    slopes: Slopes = field(default_factory=dict)
    curves: Curves = field(default_factory=dict)

    @classmethod
    def variable(cls, value: Array, number: int) -> Jet:
        """The parameter of this number."""
        return cls(value, {number: np.ones((1, 1))})

    def chained(self, value: Any, slope: Any, curve: Any) -> Jet:
        """f(self) from f, f' and f'' at the value."""
        slopes = {i: slope * s for i, s in self.slopes.items()}
        curves = {key: slope * c for key, c in self.curves.items()}
        for i, first in self.slopes.items():
            for j, second in self.slopes.items():
                if i <= j:
                    curves[i, j] = curves.get((i, j), 0.0) + curve * (first * second)
        return Jet(np.asarray(value), slopes, curves)

    def mapped(self, linear: Callable[[Array], Array]) -> Jet:
        """A linear map of the value, which is one of all derivatives too."""
        slopes = {i: linear(s) for i, s in self.slopes.items()}
        return Jet(linear(self.value), slopes, {key: linear(c) for key, c in self.curves.items()})

    def __add__(self, other: Any) -> Jet:
        """Sum with a jet, an array or a number."""
        if not isinstance(other, Jet):
            return Jet(self.value + other, self.slopes, self.curves)
        return Jet(
            self.value + other.value, _added(self.slopes, other.slopes), _added(self.curves, other.curves)
        )

    __radd__ = __add__

    def __mul__(self, other: Any) -> Jet:
        """Product with a jet, an array or a number."""
        if not isinstance(other, Jet):
            return self.chained(self.value * other, other, 0.0) if self.curves else self._scaled(other)
        slopes = _added(
            {i: other.value * s for i, s in self.slopes.items()},
            {i: self.value * s for i, s in other.slopes.items()},
        )
        curves = _added(
            {key: other.value * c for key, c in self.curves.items()},
            {key: self.value * c for key, c in other.curves.items()},
        )
        for i, first in self.slopes.items():
            for j, second in other.slopes.items():
                key, twice = (min(i, j), max(i, j)), 2.0 if i == j else 1.0
                curves[key] = curves.get(key, 0.0) + twice * (first * second)
        return Jet(self.value * other.value, slopes, curves)

    __rmul__ = __mul__

    def __neg__(self) -> Jet:
        """The negative."""
        return self._scaled(-1.0)

    def __sub__(self, other: Any) -> Jet:
        """Difference."""
        difference: Jet = self + (-other)
        return difference

    def __rsub__(self, other: Any) -> Jet:
        """Difference from an array or a number."""
        difference: Jet = -self + other
        return difference

    def __pow__(self, exponent: Any) -> Jet:
        """Power; the base is positive where the exponent is no whole number."""
        if isinstance(exponent, Jet):
            from .functions import exp, log

            power: Jet = exp(exponent * log(self))
            return power
        base, e = self.value, exponent
        return self.chained(base**e, e * base ** (e - 1), e * (e - 1) * base ** (e - 2))

    def __rpow__(self, base: Any) -> Jet:
        """A positive array or number to the power of this."""
        logarithm = np.log(base)
        value = np.exp(self.value * logarithm)
        return self.chained(value, value * logarithm, value * logarithm**2)

    def __truediv__(self, other: Any) -> Jet:
        """Quotient."""
        quotient: Jet = self * (other**-1.0)
        return quotient

    def __rtruediv__(self, other: Any) -> Jet:
        """Quotient of an array or a number by this."""
        quotient: Jet = (self**-1.0) * other
        return quotient

    def _scaled(self, factor: Any) -> Jet:
        return Jet(
            self.value * factor,
            {i: s * factor for i, s in self.slopes.items()},
            {key: c * factor for key, c in self.curves.items()},
        )


def as_jet(value: Any) -> Jet:
    """A jet, or a number or an array as one without derivatives."""
    return value if isinstance(value, Jet) else Jet(np.asarray(value, dtype=np.float64))


def where(condition: Any, first: Any, second: Any) -> Any:
    """numpy.where for jets too."""
    if not isinstance(first, Jet) and not isinstance(second, Jet):
        return np.where(condition, first, second)
    one, two = as_jet(first), as_jet(second)
    return Jet(
        np.where(condition, one.value, two.value),
        _chosen(condition, one.slopes, two.slopes),
        _chosen(condition, one.curves, two.curves),
    )


def _chosen(condition: Any, first: Mapping[Any, Array], second: Mapping[Any, Array]) -> dict[Any, Array]:
    return {
        key: np.where(condition, first.get(key, 0.0), second.get(key, 0.0)) for key in {**first, **second}
    }


def _added(first: Mapping[Any, Array], second: Mapping[Any, Array]) -> dict[Any, Array]:
    total = dict(first)
    for key, value in second.items():
        total[key] = total[key] + value if key in total else value
    return total
