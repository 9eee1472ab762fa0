"""Figures of fits and of choices among laws: the data behind each, and what drawing puts on the axes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhoc.compiler import plots
from rhoc.compiler.fits import fit_runs
from rhoc.compiler.plots.fit_sketches import (
    checks_sketches,
    fit_sketches,
    forecasts_sketch,
    profile_sketch,
    selection_sketch,
)
from rhoc.compiler.plots.forecasts import draw_forecasts, forecast_data
from rhoc.compiler.plots.frontier import frontier, thinned
from rhoc.compiler.plots.intervals import (
    IntervalRow,
    checked_rows,
    draw_ratios,
    draw_rho,
    parameter_rows,
    rho_rows,
)
from rhoc.compiler.plots.profile import draw_profile, levels_of, profile_data
from rhoc.compiler.plots.selection import draw_selection, law_rows
from rhoc.compiler.plots.sketch import write_sketches
from rhoc.compiler.plots.style import log_axis
from rhoc.compiler.plots.svg import inline_svg
from rhoc.compiler.plots.text import greek, power_of_ten
from rhoc.compiler.questions.cost_model import cost_model
from rhoc.compiler.questions.plan import cases_of
from rhoc.compiler.report import ReportData, render_report
from rhoc.runtime.errors import RequestError
from rhoc.runtime.laws.result import Fit

from .drawn import axes_of, dots, lines
from .simulated import simulated

EQUAL = cost_model("flops")


@pytest.fixture(scope="module")
def fit() -> Fit:
    return fit_runs(simulated(0, rho={"dense": 1.0, "int4": 0.85, "int2": 0.45}), "decoupled", bootstraps=60)


@pytest.fixture(scope="module")
def document(fit: Fit) -> dict[str, Any]:
    """As it is saved: through JSON."""
    return json.loads(json.dumps(fit.to_document(draws=False)))  # type: ignore[no-any-return]


# --- the profile map ---


def test_the_map_is_relative_to_the_optimum_and_has_its_valley(fit: Fit, document: dict[str, Any]) -> None:
    data = profile_data(document)
    assert data is not None
    assert data.names == ("alpha", "beta")
    assert data.best == (fit.values["alpha"], fit.values["beta"])
    assert data.lowest
    cells = np.array(fit.certificate.objective)
    np.testing.assert_allclose(np.array(data.ratio) * fit.objective, cells)
    assert np.array(data.ratio).min() >= 1
    for row, best in zip(cells, data.valley, strict=True):
        assert row[fit.certificate.beta.index(best)] == row.min()
    assert data.intervals[0] == fit.parameters["alpha"].interval


def test_a_document_without_a_map_has_no_figure_of_it(document: dict[str, Any]) -> None:
    certificate = document["certificate"]
    assert profile_data({key: value for key, value in document.items() if key != "certificate"}) is None
    assert profile_data({**document, "objective": 0.0}) is None
    assert profile_data({**document, "certificate": {**certificate, "beta": [1.0]}}) is None


def test_axes_of_the_map_are_those_that_the_law_searches_first() -> None:
    parameters = dict.fromkeys(("a", "b", "c", "alpha", "B", "beta", "E"), 1.0)
    certificate = {
        "alpha": [0.5, 1.0],
        "beta": [0.1, 0.2, 0.3],
        "objective": [[2.0, 4.0, 8.0], [3.0, 2.5, 9.0]],
        "below_every_cell": True,
    }
    data = profile_data(
        {"law": "sparse", "parameters": parameters, "objective": 2.0, "certificate": certificate}
    )
    assert data is not None
    assert data.names == ("b", "alpha")  # the first coefficients of the law are a and c
    assert data.ratio == ((1.0, 2.0, 4.0), (1.5, 1.25, 4.5))
    assert data.valley == (0.1, 0.2)
    assert data.intervals == (None, None)


def test_shades_widen_until_some_cells_are_inside(document: dict[str, Any]) -> None:
    data = profile_data(document)
    assert data is not None
    flat = replace(data, ratio=tuple((1.05,) * len(row) for row in data.ratio))
    steep = replace(data, ratio=tuple((50.0,) * len(row) for row in data.ratio))
    assert levels_of(flat)[-1] == 4.0
    assert levels_of(steep)[-1] == 100.0


def test_the_drawn_map_marks_the_optimum_inside_what_is_shown(document: dict[str, Any]) -> None:
    data = profile_data(document)
    assert data is not None
    (axes,) = axes_of()
    draw_profile(axes, data)
    assert dots(axes, "o") == [data.best]
    assert axes.get_xlim()[0] < data.best[0] < axes.get_xlim()[1]
    assert axes.get_ylim()[0] < data.best[1] < axes.get_ylim()[1]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("α", "β")
    valley = next(y for x, y in lines(axes) if len(x) == len(data.first))
    inside = [row for row, ratio in zip(valley, data.ratio, strict=True) if min(ratio) <= levels_of(data)[-1]]
    assert not any(math.isnan(value) for value in inside)
    sketch = profile_sketch(document)
    assert sketch is not None
    assert "below every cell" in sketch.lead
    certificate = {**document["certificate"], "below_every_cell": False}
    wrong = profile_sketch({**document, "certificate": certificate})
    assert wrong is not None
    assert "NOT below" in wrong.lead


# --- intervals ---


def test_rows_are_the_fits_numbers(fit: Fit, document: dict[str, Any]) -> None:
    assert {row.name: (row.value, row.interval) for row in parameter_rows(document)} == {
        name: (estimate.value, estimate.interval) for name, estimate in fit.parameters.items()
    }
    assert [row.name for row in rho_rows(document)] == ["dense", "int4", "int2"]
    assert all(row.interval == fit.rho[row.name].interval for row in rho_rows(document))


def test_checks_have_intervals_in_the_logarithm_and_published_values() -> None:
    cell = {"published": 0.34, "ours": 0.5, "standard_error": 0.1, "distance": -1.6}
    check = {
        "fit": "someone",
        "constants": {"alpha": cell, "E": {**cell, "ours": 0.0}},
        "multipliers": {
            "rho[dense]": {**cell, "standard_error": 0.0},
            "rho[x]": {**cell, "standard_error": None},
        },
    }
    alpha, floor, other = checked_rows(check)
    assert (alpha.name, alpha.value, alpha.published) == ("alpha", 0.5, 0.34)
    assert alpha.interval == pytest.approx((0.5 * math.exp(-0.392), 0.5 * math.exp(0.392)))
    assert (floor.name, floor.interval) == ("E", None)
    assert (other.name, other.interval) == ("rho[x]", None)
    assert [sketch.title for sketch in checks_sketches([check])] == ["Published constants of someone"]
    assert checks_sketches([{**check, "constants": {}, "multipliers": {}}]) == []


def test_drawn_ratios_are_relative_cut_off_far_away_and_say_what_is_at_zero() -> None:
    rows = (
        IntervalRow("alpha", 0.4, (0.2, 0.8), published=0.6),
        IntervalRow("B", 10.0, (-1.0, 1e9)),
        IntervalRow("E", 0.0, (0.0, 0.1)),
    )
    (axes,) = axes_of()
    draw_ratios(axes, rows)
    assert ([0.5, 2.0], [0.0, 0.0]) in lines(axes)
    assert dots(axes, "*") == [(pytest.approx(1.5), 0.0)]
    assert dots(axes, "<") == [(pytest.approx(1 / 30), 1.0)]
    assert dots(axes, ">") == [(pytest.approx(30.0), 1.0)]
    assert dots(axes, "o") == [(1.0, 0.0), (1.0, 1.0)]
    assert [text.get_text() for text in axes.texts] == ["0, at its bound"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["α = 0.4000", "B = 10.00", "E = 0"]


def test_drawn_multipliers_have_their_whiskers(document: dict[str, Any]) -> None:
    (axes,) = axes_of()
    rows = rho_rows(document)
    draw_rho(axes, rows, plots.styles(document["rho"]))
    for place, row in enumerate(rows):
        assert (list(row.interval or ()), [place, place]) in lines(axes)
    assert axes.get_xlim()[0] == 0.0
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["dense", "int4", "int2"]


# --- backtests and selections ---

FORECAST = {"cut": 1e18, "bias": 0.0, "kept": 20, "runs": 5}
BACKTEST = {
    "params": [1e7, 1e9], "tokens": [1e8, 1e10], "product": [1e15, 1e19],
    "forecasts": [
        {**FORECAST, "by": "size", "distance": 0.9, "error": 0.03, "expected": 0.01},
        {**FORECAST, "by": "budget", "distance": 0.3, "error": 0.004, "expected": 0.005},
    ],
}  # fmt: skip


def test_forecasts_are_in_per_cent_and_the_nearest_first() -> None:
    data = forecast_data(BACKTEST)
    assert data is not None
    assert [(p.by, p.distance, p.error, p.noise) for p in data.points] == [
        ("budget", 0.3, pytest.approx(0.4), pytest.approx(0.5)),
        ("size", 0.9, pytest.approx(3.0), pytest.approx(1.0)),
    ]
    distances, allowed = zip(*data.allowed, strict=True)
    slopes = np.array(allowed) / np.array(distances)
    np.testing.assert_allclose(slopes, slopes[0])
    assert slopes[0] > 0
    assert distances[-1] > 0.9
    (axes,) = axes_of()
    draw_forecasts(axes, data)
    assert dots(axes, "o") == [(0.3, pytest.approx(0.4))]
    assert dots(axes, "^") == [(0.9, pytest.approx(3.0))]
    sketch = forecasts_sketch({"backtest": BACKTEST})
    assert sketch is not None
    assert sketch.lead.startswith("1 of 2 forecasts missed")


def test_no_backtest_no_figure() -> None:
    assert forecast_data(None) is None
    assert forecast_data({**BACKTEST, "forecasts": []}) is None
    assert forecasts_sketch({}) is None


SELECTION = {
    "law": "gamma",
    "reason": "gamma, by the least BIC",
    "laws": [
        {"law": "gamma", "forecast": 0.009, "forecast_errors": [0.01, 0.008], "weight": 0.4},
        {"law": "chinchilla", "forecast": 0.008, "forecast_errors": [0.005, 0.01], "weight": 0.6},
        {"law": "kaplan", "forecast": None, "forecast_errors": [], "weight": 0.0},
    ],
    "steps": [{"runs_left_out": 4}, {"runs_left_out": 8}],
}


def test_laws_are_in_order_of_their_forecasts_and_the_chosen_one_stands_out() -> None:
    rows = law_rows(SELECTION)
    assert [(row.law, row.chosen) for row in rows] == [
        ("chinchilla", False),
        ("gamma", True),
        ("kaplan", False),
    ]
    assert rows[0].steps == (pytest.approx(0.5), pytest.approx(1.0))
    assert rows[2].error is None
    (axes,) = axes_of()
    draw_selection(axes, rows)
    assert dots(axes, "o") == [(pytest.approx(0.8), 0.0), (pytest.approx(0.9), 1.0)]
    assert [text.get_text() for text in axes.texts] == ["too few runs to test it"]
    colours = {line.get_color() for line in axes.lines if line.get_ydata()[0] == 1}
    assert colours.isdisjoint(line.get_color() for line in axes.lines if line.get_ydata()[0] == 0)
    assert fit_sketches({"law": "gamma", "parameters": {}, "selection": SELECTION})[0].title.startswith(
        "Laws by"
    )
    assert selection_sketch(SELECTION).lead == "Chosen: gamma, by the least BIC."


# --- writing ---


def test_files_follow_from_their_numbers(document: dict[str, Any], tmp_path: Path) -> None:
    for path in (tmp_path / "a.svg", tmp_path / "b.svg"):
        write_sketches(fit_sketches(document), path)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    text = (tmp_path / "a.svg").read_text()
    for sketch in fit_sketches(document):
        assert sketch.lead[:40] in text
    with pytest.raises(RequestError, match=r"no picture format is called '\.gif'"):
        write_sketches(fit_sketches(document), tmp_path / "a.gif")
    with pytest.raises(RequestError, match="nothing to draw"):
        write_sketches([], tmp_path / "a.svg")


def test_axes_in_powers_of_ten_have_few_ticks() -> None:
    (axes,) = axes_of()
    axes.set_xscale("log")
    axes.set_xlim(1e10, 1e30)
    log_axis(axes.xaxis, power_of_ten)
    shown = [tick.get_text() for tick in axes.get_xticklabels()]
    assert shown[0] == "10¹⁰"
    assert len(shown) <= 8
    assert [power_of_ten(value) for value in (1e-3, 3e19, 1.0)] == ["10⁻³", "3·10¹⁹", "10⁰"]
    assert [greek(name) for name in ("rho[int4]", "alpha", "E")] == ["ρ[int4]", "α", "E"]


def test_the_report_takes_every_figure_that_it_has_data_for(fit: Fit, document: dict[str, Any]) -> None:
    found = frontier(cases_of((), EQUAL, thinned(fit, 20), None)[0])
    data = ReportData(fit={**document, "backtest": BACKTEST}, frontier=found, selection=SELECTION)
    page = render_report(data)
    for title in (
        "How sure the numbers are", "Which law", "The best size for a budget", "How far ahead the law holds",
    ):  # fmt: skip
        assert f"<h2>{title}</h2>" in page
    assert page == render_report(data)
    bare = {key: document[key] for key in ("law", "parameters", "rho")}
    assert 'aria-label="Profile map' not in render_report(ReportData(fit=bare))


def test_shades_of_the_map_take_the_pages_blue(document: dict[str, Any]) -> None:
    sketch = profile_sketch(document)
    assert sketch is not None
    written = inline_svg(sketch.draw, ident="map", title=sketch.title)
    assert "var(--blue, #0072b2)" in written
    assert "data:" not in written, "no picture inside the picture: the page's policy would not show it"
