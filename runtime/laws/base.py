"""What a law is: named, bounded parameters, and a formula that is linear in some of them.

Every law here predicts

    loss = sum over terms of  coefficient * exp(log basis),      coefficients >= 0,

where the log basis of a term depends on a handful of *outer* parameters (exponents, shapes) and the
coefficients enter linearly (E, A, B, one A per representation). That split is what makes the global optimum
findable: for fixed outer parameters the best coefficients are a non-negative least squares problem with one
minimum, so that only the outer parameters, two to four of them, have to be searched.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .runs import Array, Runs

Integers = NDArray[np.intp]
Number: TypeAlias = float | Array


@dataclass(frozen=True)
class Parameter:
    """A named parameter of a law with its bounds, what it means and its unit."""

    name: str
    low: float
    high: float
    meaning: str
    unit: str = ""


@dataclass(frozen=True)
class Axis:
    """A grid for the search over an outer parameter: `points` values, evenly spaced in the logarithm."""

    parameter: Parameter
    points: int

    @property
    def values(self) -> Array:
        """The grid values, from the lower bound to the upper, [points]."""
        return np.geomspace(self.parameter.low, self.parameter.high, self.points)


@dataclass(frozen=True)
class Basis:
    """Log basis functions at a batch of outer parameters, with exact derivatives.

    value: [batch, runs, terms]; gradient: [batch, runs, terms, outer]; hessian: [batch, runs, terms, outer,
    outer], or None where it is zero.
    """

    value: Array
    gradient: Array
    hessian: Array | None


@dataclass(frozen=True)
class Reading:
    """Named values of a batch of solutions, each an array [batch]: parameters, and rho by representation."""

    parameters: dict[str, Array]
    rho: dict[str, Array]


class Terms(Protocol):
    """A law set up for a set of runs: which coefficient and which basis function each run uses."""

    @property
    def index(self) -> Integers:
        """The coefficient that each term of each run multiplies, [runs, terms]."""

    @property
    def coefficients(self) -> tuple[str, ...]:
        """Names of the linear coefficients."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Outer parameters and their search grids; the first two are the axes of the reported map."""

    def basis(self, outer: Array) -> Basis:
        """Log basis functions at outer parameters [batch, outer]."""

    def read(self, coefficients: Array, outer: Array) -> Reading:
        """Named parameters and multipliers of solutions [batch, coefficients] and [batch, outer]."""


class Law(ABC):
    """A declared formula for the loss of a run. Leaves are frozen dataclasses; their fields are conventions.

    name: what the command line calls it; formula: as text; source: paper and equation; columns: what runs
    must have beside params, tokens, loss and representation.
    To add a law: one file with one class, one line in the tuple LAWS.
    """

    name: ClassVar[str]
    formula: ClassVar[str]
    source: ClassVar[str]
    columns: ClassVar[tuple[str, ...]]

    @property
    @abstractmethod
    def parameters(self) -> tuple[Parameter, ...]:
        """The parameters a fit reports, in order; multipliers come on top."""

    @property
    @abstractmethod
    def conventions(self) -> Mapping[str, str | bool]:
        """The fields of this law by name, so that a saved fit says under which conventions it was made."""

    @abstractmethod
    def terms(self, runs: Runs) -> Terms:
        """The law set up for these runs. Raises RequestError when the runs cannot support it."""

    @abstractmethod
    def loss(self, parameters: Mapping[str, Number], params: float, tokens: float, rho: Number) -> Number:
        """Predicted loss in nats per token at N, D and multiplier rho; parameters and rho may be arrays."""

    @abstractmethod
    def price(self, parameters: Mapping[str, Number], features: Mapping[str, float]) -> Number:
        """rho of a representation that is known by its features alone (`gmse_weight`, `gmse_input`).

        Raises RequestError when the law prices only the representations it was fitted to.
        """
