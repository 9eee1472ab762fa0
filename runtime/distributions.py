"""What random numbers are drawn from when the error of a representation is estimated; all of variance 1."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import RequestError


class Distribution(ABC):
    """Independent random numbers of mean 0 and variance 1."""

    @abstractmethod
    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """A float32 tensor of draws."""


@dataclass(frozen=True)
class Normal(Distribution):
    """Standard normal."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32)


@dataclass(frozen=True)
class Laplace(Distribution):
    """Laplace of variance 1: scale 1/sqrt(2)."""

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64) - 0.5
        magnitude = -torch.log1p(-2 * uniform.abs().clamp_max(0.5 - 1e-12))
        return (uniform.sign() * magnitude / math.sqrt(2)).float()


@dataclass(frozen=True)
class StudentT(Distribution):
    """Student's t with `degrees` of freedom, above 2, scaled to variance 1."""

    degrees: float = 5.0

    def __post_init__(self) -> None:
        if not 2 < self.degrees < math.inf:
            raise ValueError(f"degrees of freedom must be finite and above 2, got {self.degrees:g}")

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        from scipy.special import gammaincinv  # torch's sampler of chi-squared numbers takes no generator

        normal = torch.randn(shape, generator=generator, dtype=torch.float64)
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
        chi_squared = 2 * torch.from_numpy(gammaincinv(self.degrees / 2, uniform.numpy()))
        return (normal * torch.sqrt((self.degrees - 2) / chi_squared)).float()


NORMAL = Normal()


def distribution(name: str) -> Distribution:
    """The distribution of a name: `normal`, `laplace`, `student-t` or `student-t:DEGREES`.

    Raises:
        RequestError: another name, or degrees that are no number above 2.
    """
    kind, _, parameter = name.partition(":")
    if kind == "student-t":
        try:
            return StudentT(float(parameter)) if parameter else StudentT()
        except ValueError as error:
            raise RequestError(f"{name!r}: {error}", advice="for example student-t:5") from None
    known = {"normal": NORMAL, "laplace": Laplace()}
    if name not in known:
        raise RequestError(
            f"no distribution is called {name!r}", advice="known: normal, laplace, student-t:DEGREES"
        )
    return known[name]
