"""rho against Gaussian error: what one parameter is worth, and how much of it the format's error explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullLocator

from ...runtime.laws.representation import rho_of_gmse
from .data import FormatRow, Interval
from .fitted import FittedLaw
from .style import DASHES, INK, Style

# Panferov et al., Unified Scaling Laws for Compressed Representations, arXiv 2506.01863, NeurIPS 2025
# camera-ready: Eq. 3 with the constants of Table 3, column Llama / C4.
PUBLISHED_L, PUBLISHED_F, PUBLISHED_C = 1.0, 0.41, 1.39
PUBLISHED_SOURCE = "Panferov et al., arXiv 2506.01863, camera-ready Table 3, Llama on C4"


Line = tuple[tuple[float, float], ...]


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
    """Points of the figure; curves as (GMSE, rho); and formats that a single error does not describe.

    published: the published curve; fitted: that of the fit, when its law has one, else empty.
    """

    points: tuple[CapacityPoint, ...]
    published: Line
    fitted: Line
    two_errors: tuple[str, ...]


def published_rho(gmse: float) -> float:
    """rho = L tanh(F log_{1/4} GMSE)^C for 0 < GMSE < 1, with the published constants."""
    return float(rho_of_gmse(gmse, PUBLISHED_F, PUBLISHED_C, PUBLISHED_L))


def capacity_points(formats: Sequence[FormatRow], law: FittedLaw | None) -> CapacityData:
    """Formats that have a multiplier, from their row or else from the fit, and one tensor with an error.

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
    span = [float(error) for error in np.geomspace(min(lowest / 3, 3e-3), 0.98, 120)]
    published = tuple((error, published_rho(error)) for error in span)
    return CapacityData(tuple(points), published, _fitted(law, span), tuple(two))


def draw_capacity(axes: Axes, data: CapacityData, look: Mapping[str, Style]) -> None:
    """Points with 95% intervals over the published curve, and over the fitted one where there is one."""
    axes.plot(*zip(*data.published, strict=True), color=INK, linestyle=DASHES, linewidth=1.2, alpha=0.75)
    if data.fitted:
        axes.plot(*zip(*data.fitted, strict=True), color=INK, linewidth=1.2)
    for point in data.points:
        style = look[point.name]
        low, high = point.interval or (point.rho, point.rho)
        error = [[max(0.0, point.rho - low)], [max(0.0, high - point.rho)]]
        axes.errorbar(
            [point.gmse],
            [point.rho],
            yerr=error,
            fmt=style.marker,
            color=style.colour,
            capsize=4,
            markersize=8,
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("GMSE: squared error on Gaussian data of variance 1")
    axes.set_ylabel("ρ: dense parameters per parameter")
    axes.set_ylim(0.0, max(1.05, *axes.get_ylim()))  # with 1, the dense parameter, in view
    _bits_above(axes)


def _bits_above(axes: Axes) -> None:
    """The same axis read in Gaussian bits: whole bits b stand at errors of 4^-b."""
    low, high = axes.get_xlim()
    bits = [b for b in range(17) if low <= 4.0**-b <= high]
    above = axes.secondary_xaxis("top")
    above.set_xticks([4.0**-b for b in bits], [str(b) for b in bits])
    above.xaxis.set_minor_locator(NullLocator())
    above.set_xlabel("Gaussian bits: −½ log₂ GMSE")


def _multiplier(row: FormatRow, law: FittedLaw | None) -> tuple[float | None, Interval | None]:
    if row.rho is not None or law is None:
        return row.rho, row.rho_interval
    return law.rho.get(row.name), law.rho_interval.get(row.name)


def _fitted(law: FittedLaw | None, span: Sequence[float]) -> Line:
    """The curve of a fit whose law gives rho as a function of error."""
    if law is None or not {"F", "C"} <= law.parameters.keys():
        return ()
    slope, curvature, ceiling = law.parameters["F"], law.parameters["C"], law.parameters.get("L", 1.0)
    return tuple((error, float(rho_of_gmse(error, slope, curvature, ceiling))) for error in span)
