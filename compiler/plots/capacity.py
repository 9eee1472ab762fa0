"""rho against Gaussian error: what one parameter is worth, and how much of it the format's error explains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from .data import FormatRow, Interval
from .fitted import FittedLaw
from .style import INK, Style
from .text import label

# Panferov et al., Unified Scaling Laws for Compressed Representations, arXiv 2506.01863, NeurIPS 2025 camera-ready:
# Eq. 3 with the constants of Table 3, column Llama / C4.
PUBLISHED_L, PUBLISHED_F, PUBLISHED_C = 1.0, 0.41, 1.39
PUBLISHED_SOURCE = "Panferov et al., arXiv 2506.01863, camera-ready Table 3, Llama on C4"


@dataclass(frozen=True)
class CapacityPoint:
    """A format by the Gaussian error of the one tensor it represents, and its multiplier."""

    name: str
    gmse: float
    rho: float
    interval: Interval | None
    tensor: str


@dataclass(frozen=True)
class CapacityData:
    """Points of the figure; the published curve as (GMSE, rho); and formats that a single error does not describe."""

    points: tuple[CapacityPoint, ...]
    published: tuple[tuple[float, float], ...]
    two_errors: tuple[str, ...]


def published_rho(gmse: float, *, f: float = PUBLISHED_F, c: float = PUBLISHED_C, ceiling: float = PUBLISHED_L) -> float:
    """rho = L tanh(F log_{1/4} GMSE)^C for 0 < GMSE <= 1 (arXiv 2506.01863, Eq. 3), by default with published constants."""
    return ceiling * math.tanh(f * math.log(gmse) / math.log(0.25)) ** c


def capacity_points(formats: Sequence[FormatRow], law: FittedLaw | None) -> CapacityData:
    """Formats that have a multiplier, from their row or else from the fit, and exactly one tensor with an error.

    Dense is left out: its error is 0, which a logarithmic axis cannot show, and its rho is 1 by definition.
    """
    points, two = [], []
    for row in formats:
        rho, interval = _multiplier(row, law)
        errors = {"weights": row.gmse, "inputs": row.gmse_input or 0.0}
        present = {tensor: error for tensor, error in errors.items() if error > 0}
        if rho is None or not present:
            continue
        if len(present) == 2:
            two.append(row.name)
            continue
        ((tensor, error),) = present.items()
        points.append(CapacityPoint(row.name, error, rho, interval, tensor))
    lowest = min((point.gmse for point in points), default=1e-3)
    span = np.geomspace(min(lowest / 3, 3e-3), 0.98, 120)
    return CapacityData(tuple(points), tuple((float(g), published_rho(float(g))) for g in span), tuple(two))


def draw_capacity(axes: Axes, data: CapacityData, look: Mapping[str, Style]) -> None:
    """Points with 95 % intervals over the published curve; each point carries its name."""
    axes.plot(*zip(*data.published, strict=True), color=INK, linestyle=(0, (5, 3)), linewidth=1.2, alpha=0.75)
    for point in data.points:
        style = look[point.name]
        low, high = point.interval or (point.rho, point.rho)
        error = [[max(0.0, point.rho - low)], [max(0.0, high - point.rho)]]
        axes.errorbar(
            [point.gmse], [point.rho], yerr=error, fmt=style.marker, color=style.colour, capsize=4, markersize=8
        )
        axes.annotate(
            label(point.name), (point.gmse, point.rho), xytext=(9, 0), textcoords="offset points", va="center"
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("GMSE: mean squared error on Gaussian data, variance 1 (lower is closer to dense)")
    axes.set_ylabel("ρ: dense parameters per parameter")
    axes.set_ylim(bottom=0.0)
    above = axes.secondary_xaxis("top", functions=(_bits, _error))
    above.set_xlabel("Gaussian bits, −½ log₂ GMSE")


def _multiplier(row: FormatRow, law: FittedLaw | None) -> tuple[float | None, Interval | None]:
    if row.rho is not None or law is None:
        return row.rho, row.rho_interval
    return law.rho.get(row.name), law.rho_interval.get(row.name)


def _bits(error: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(error, 1e-300)) / math.log(0.25)


def _error(bits: np.ndarray) -> np.ndarray:
    return np.asarray(0.25**bits)
