"""The shape of laws in which a representation scales the model size: E + A (N rho)^-alpha + B D^-beta."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .base import Axis, Basis, Integers, Number, Parameter, Reading
from .runs import Array, Runs

ALPHA = Parameter("alpha", 0.01, 2.0, "exponent of the size term")
BETA = Parameter("beta", 0.01, 2.0, "exponent of the data term")
PARAMETERS = (
    Parameter("E", 0.0, float("inf"), "loss that neither size nor data removes", "nats per token"),
    Parameter("A", 0.0, float("inf"), "weight of the size term", "nats per token times N^alpha"),
    ALPHA,
    Parameter("B", 0.0, float("inf"), "weight of the data term", "nats per token times D^beta"),
    BETA,
)
RHO = Parameter("rho", 1e-4, 1e2, "dense parameters that one represented parameter is worth")


@dataclass(frozen=True)
class Shape:
    """log rho of every run as a function of shape parameters, with exact derivatives.

    value: [batch, runs]; gradient: [batch, runs, shape]; hessian: [batch, runs, shape, shape].
    """

    value: Array
    gradient: Array
    hessian: Array


ShapeFunction = Callable[[Array], Shape]
ReadRho = Callable[[Array, Array], dict[str, Array]]


def loss(parameters: Mapping[str, Number], params: float, tokens: float, rho: Number) -> Number:
    """E + A (N rho)^-alpha + B D^-beta (Hoffmann et al. 2022, eq. 10, with N replaced by N rho)."""
    p = parameters
    return p["E"] + p["A"] * (params * rho) ** -p["alpha"] + p["B"] * tokens ** -p["beta"]


@dataclass(frozen=True)
class SizeTerms:
    """Terms E, A_g N^-alpha rho(shape)^-alpha and B D^-beta, with log N and log D centred.

    groups: which A each run uses; group_names: names of the A's, the first being the dense baseline;
    shape_axes, shape: the parameters of rho and log rho as their function; read_rho: multipliers of
    solutions; points: grid per exponent. Centring at the mean of log N and log D makes every coefficient the
    size of a loss: without it the condition number of this problem is 1e11.
    """

    runs: Runs
    groups: Integers
    group_names: tuple[str, ...]
    shape_axes: tuple[Axis, ...]
    shape: ShapeFunction | None
    read_rho: ReadRho
    points: int

    @cached_property
    def index(self) -> Integers:
        """E is coefficient 0, B is 1, the A's follow."""
        zero = np.zeros(len(self.runs), dtype=np.intp)
        return np.stack([zero, zero + 1, self.groups + 2], axis=1)

    @cached_property
    def coefficients(self) -> tuple[str, ...]:
        """E, B and one A per group."""
        return ("E", "B", *(f"A of {name}" for name in self.group_names))

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """alpha, beta and the shape parameters."""
        return (Axis(ALPHA, self.points), Axis(BETA, self.points), *self.shape_axes)

    def basis(self, outer: Array) -> Basis:
        """Log basis of E (zero), B (-beta log D) and A (-alpha (log N + log rho))."""
        batch, count = outer.shape
        size, data = self._centred
        value = np.zeros((batch, len(self.runs), 3))
        gradient = np.zeros((*value.shape, count))
        value[:, :, 1] = -outer[:, 1, None] * data
        gradient[:, :, 1, 1] = -data
        exponent = outer[:, 0, None]
        if self.shape is None:
            value[:, :, 2] = -exponent * size
            gradient[:, :, 2, 0] = -size
            return Basis(value, gradient, None)
        shape = self.shape(outer[:, 2:])
        value[:, :, 2] = -exponent * (size + shape.value)
        gradient[:, :, 2, 0] = -(size + shape.value)
        gradient[:, :, 2, 2:] = -exponent[..., None] * shape.gradient
        hessian = np.zeros((*gradient.shape, count))
        hessian[:, :, 2, 0, 2:] = hessian[:, :, 2, 2:, 0] = -shape.gradient
        hessian[:, :, 2, 2:, 2:] = -exponent[..., None, None] * shape.hessian
        return Basis(value, gradient, hessian)

    def read(self, coefficients: Array, outer: Array) -> Reading:
        """Undo the centring: A = A_dense exp(alpha mean log N), B likewise."""
        alpha, beta = outer[:, 0], outer[:, 1]
        parameters = {
            "E": coefficients[:, 0],
            "A": coefficients[:, 2] * np.exp(alpha * np.log(self.runs.params).mean()),
            "alpha": alpha,
            "B": coefficients[:, 1] * np.exp(beta * np.log(self.runs.tokens).mean()),
            "beta": beta,
        }
        parameters |= {axis.parameter.name: outer[:, 2 + i] for i, axis in enumerate(self.shape_axes)}
        return Reading(parameters, self.read_rho(coefficients, outer))

    @cached_property
    def _centred(self) -> tuple[Array, Array]:
        size, data = np.log(self.runs.params), np.log(self.runs.tokens)
        return size - size.mean(), data - data.mean()
