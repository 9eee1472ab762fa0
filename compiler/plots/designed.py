"""A design: the standard error of what is asked, before any new run and after each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes

from .style import DASHES, INK
from .text import label, power_of_ten, short_count

_COLOUR = "#0072B2"


@dataclass(frozen=True)
class DesignRow:
    """A run in words, and the expected standard error once it and those above it are trained."""

    run: str
    error: float


@dataclass(frozen=True)
class DesignData:
    """target: what is asked, in words; before: its standard error now, None where the runs leave it open."""

    target: str
    before: float | None
    rows: tuple[DesignRow, ...]


def design_data(design: Mapping[str, Any]) -> DesignData | None:
    """The document of a design; None where it is for all parameters, which have no single error."""
    found = [
        DesignRow(_run(run), run["standard_error"])
        for run in design["runs"]
        if run["standard_error"] is not None
    ]
    return DesignData(design["target"], design["standard_error"], tuple(found)) if found else None


def draw_design(axes: Axes, data: DesignData) -> None:
    """Bars that shrink: the first row is now, each further one adds a run."""
    now = [] if data.before is None else [("now", data.before)]
    shown = [*now, *((row.run, row.error) for row in data.rows)]
    for place, (_, error) in enumerate(shown):
        colour = INK if place < len(now) else _COLOUR
        axes.plot([0.0, error], [place, place], color=colour, linewidth=2.0, alpha=0.6)
        axes.plot([error], [place], "o", color=colour)
    if data.before is not None:
        axes.axvline(data.before, color=INK, linestyle=DASHES, linewidth=1.0, alpha=0.75)
    axes.set_yticks(range(len(shown)), [name for name, _ in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(0.0, None)
    axes.set_xlabel(f"expected standard error of {label(data.target, 50)}")


def _run(run: Mapping[str, Any]) -> str:
    size, tokens = short_count(run["params"]), short_count(run["tokens"])
    flops = power_of_ten(float(f"{run['flops']:.1e}"))
    return f"+ {label(run['representation'], 18)}, N {size}, D {tokens}, {flops} FLOPs"
