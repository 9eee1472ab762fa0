"""Figures of answers: the data behind each, what drawing puts on the axes, and `--figure`."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

from rhoc.compiler import plots
from rhoc.compiler.composition import evidence
from rhoc.compiler.fits import fit_runs, save_fit
from rhoc.compiler.plots.answer_sketches import design_sketch, rank_sketch
from rhoc.compiler.plots.band import Band, band_of
from rhoc.compiler.plots.composed import composed_data, draw_composed
from rhoc.compiler.plots.crossing import crossing, draw_crossing
from rhoc.compiler.plots.designed import design_data, draw_design
from rhoc.compiler.plots.front import draw_front, front_data
from rhoc.compiler.plots.frontier import MOST_LINES, draw_frontier, frontier, thinned
from rhoc.compiler.plots.ranking import MOST_ROWS, RankRow, draw_rank, rank_data
from rhoc.compiler.questions.cost_model import cost_model
from rhoc.compiler.questions.crossover import crossover
from rhoc.compiler.questions.optimum import Budget
from rhoc.compiler.questions.plan import cases_of, plan
from rhoc.compiler.questions.search import search
from rhoc.runtime.laws.composition import find_rule
from rhoc.runtime.laws.result import Fit

from .command_line import CommandLine
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


# --- the frontier and the crossover ---


def test_the_frontier_is_the_plan_at_every_budget(fit: Fit) -> None:
    cases, _ = cases_of((), EQUAL, fit, None)
    found = frontier(cases, at=3e19)
    known = fit.range
    assert found.data == (
        6 * known.params[0] * known.tokens[0],
        pytest.approx(6 * known.params[1] * known.tokens[1]),
    )
    assert found.flops[0] <= found.data[0]
    assert found.flops[-1] >= 10 * found.data[1] * 0.999
    place = 9
    rows = {row["format"]: row for row in plan((), Budget(flops=found.flops[place]), EQUAL, fit=fit).rows}
    assert [line.name for line in found.lines] == ["dense", "int4", "int2"]
    for line in found.lines:
        row = rows[line.name]
        assert line.loss.value[place] == pytest.approx(row["loss"], rel=1e-9)
        assert line.params.value[place] == pytest.approx(row["params"], rel=1e-5)
        assert [line.params.low[place], line.params.high[place]] == pytest.approx(
            row["params_interval"], rel=1e-5
        )
        assert line.loss.low[place] < line.loss.value[place] < line.loss.high[place]


def test_of_many_formats_the_frontier_keeps_dense_and_both_ends() -> None:
    rho = {"dense": 1.0} | {f"f{i}": 0.1 * i for i in range(1, 10)}
    fitted = fit_runs(simulated(0, rho=rho), "decoupled", bootstraps=0)
    cases, _ = cases_of((), EQUAL, fitted, None)
    found = frontier(cases)
    names = [line.name for line in found.lines]
    assert len(names) == MOST_LINES
    assert (names[0], names[1], names[-1]) == ("dense", "f9", "f1")
    assert {*names, *found.left_out} == set(rho)
    assert all(line.loss.low == () for line in found.lines), "no draws, no bands"


def test_a_law_without_multipliers_has_a_frontier_of_its_own() -> None:
    fitted = fit_runs(simulated(0, rho={"dense": 1.0}), "chinchilla", bootstraps=30)
    found = frontier(cases_of((), EQUAL, fitted, None)[0])
    (line,) = found.lines
    values, flops = fitted.values, found.flops[5]
    alpha, beta = values["alpha"], values["beta"]
    ratio = (alpha * values["A"] / (beta * values["B"])) ** (1 / (alpha + beta))
    best = ratio * (flops / 6) ** (beta / (alpha + beta))  # Hoffmann et al. 2022, eq. 4
    assert (line.name, len(line.params.low)) == ("dense", len(found.flops))
    assert line.params.value[5] == pytest.approx(best, rel=1e-5)


def test_thinned_fits_keep_their_numbers_and_fewer_draws(fit: Fit) -> None:
    few = thinned(fit, 7)
    assert few.values == fit.values
    assert len(few.draws) == 7
    np.testing.assert_array_equal(few.draws.column("alpha"), fit.draws.column("alpha")[:7])


def test_the_drawn_frontier_shades_the_data_and_marks_the_budget(fit: Fit) -> None:
    found = frontier(cases_of((), EQUAL, thinned(fit, 20), None)[0], at=1e19)
    left, right = axes_of(2)
    draw_frontier([left, right], found, plots.styles(["dense", "int4", "int2"]))
    assert len(left.lines) == 1 + 3
    assert lines(left)[0][0] == [1e19, 1e19]
    assert len(left.patches) == 1
    assert len(left.collections) == 3, "one band for each format"
    assert left.get_ylabel() == "least loss (nats per token)"
    assert right.get_ylabel() == "best N (parameters)"
    assert "10¹⁹" in [tick.get_text() for tick in left.get_xticklabels()]


def test_bands_are_quantiles_of_the_draws_and_gaps_where_nothing_is_finite() -> None:
    rows = np.concatenate([[[5.0, 1.0]], np.arange(101.0)[:, None] * [1.0, 2.0]])
    assert band_of(rows) == Band((5.0, 1.0), (2.5, 5.0), (97.5, 195.0))
    gap = band_of(np.array([[1.0, np.inf]]))
    assert gap.value[0] == 1.0
    assert math.isnan(gap.value[1])
    assert gap.low == ()


def test_the_crossing_is_where_the_difference_changes_sign(fit: Fit) -> None:
    fast = cost_model("speed-ups")
    rho = {"dense": 1.0, "int4-a4": 0.7}
    fitted = fit_runs(simulated(0, rho=rho), "decoupled", bootstraps=40)
    found = crossover("int4-a4", "dense", Budget(params=1e8), fast, fit=fitted)
    assert found.at is not None
    data = crossing(found, cases_of(("int4-a4", "dense"), fast, fitted, None)[0])
    amounts, gap = np.array(data.amounts), np.array(data.gap.value)
    np.testing.assert_allclose(gap, np.array(data.losses[0].value) - np.array(data.losses[1].value))
    assert set(np.sign(gap[amounts < found.at])) == {-1.0}
    assert set(np.sign(gap[amounts > found.at])) == {1.0}
    drawn = {name: np.asarray(column) for name, column in fitted.drawn.items()}
    tokens = amounts[20] / (6e8 * np.array([0.75, 1.0]))  # a forward pass of 4-bit products takes a quarter
    few, many = drawn["B"] * tokens[:, None] ** -drawn["beta"]
    worse = fitted.draws.column("rho[int4-a4]") ** -drawn["alpha"] - 1
    expected = np.quantile(drawn["A"] * 1e8 ** -drawn["alpha"] * worse + few - many, [0.025, 0.975])
    assert [data.gap.low[20], data.gap.high[20]] == pytest.approx(list(expected), rel=1e-5)
    above, below = axes_of(2)
    draw_crossing([above, below], data, plots.styles(data.names))
    assert ([found.at, found.at], [0.0, 1.0]) in lines(above)
    assert len(above.lines) == 2 + 1
    assert below.get_xlabel() == "training compute (16-bit FLOPs)"


# --- rankings and searches ---


def ranking(worths: list[float], level: list[str]) -> dict[str, Any]:
    rows = [
        {"format": f"f{i}", "worth": worth, "worth_interval": [worth - 0.1, worth + 0.2] if i else None}
        for i, worth in enumerate(worths)
    ]
    return {"formats": rows, "level_with_best": level, "unit": "dense parameters per bit"}


def test_rows_of_a_ranking_say_which_may_be_first() -> None:
    data = rank_data(ranking([0.5, 0.4, 0.1], ["f1"]))
    assert data.rows == (
        RankRow("f0", 0.5, None, level=True),
        RankRow("f1", 0.4, (pytest.approx(0.3), pytest.approx(0.6)), level=True),
        RankRow("f2", 0.1, (0.0, pytest.approx(0.3)), level=False),
    )
    assert data.tied
    (axes,) = axes_of()
    draw_rank(axes, data)
    assert len(axes.patches) == 2, "two rows are shaded"
    assert dots(axes, "o") == [(0.5, 0.0), (0.4, 1.0), (0.1, 2.0)]
    assert axes.get_xlabel() == "dense parameters per bit"
    assert axes.get_ylim()[0] > axes.get_ylim()[1], "the best is on top"


def test_one_winner_is_not_shaded_and_long_rankings_are_cut() -> None:
    data = rank_data(ranking([1 / (i + 1) for i in range(MOST_ROWS + 4)], []))
    assert (len(data.rows), data.hidden, data.tied) == (MOST_ROWS, 4, False)
    (axes,) = axes_of()
    draw_rank(axes, data)
    assert not axes.patches
    assert "4 more formats are worth less" in rank_sketch(ranking([1.0] * (MOST_ROWS + 4), [])).key


def test_a_search_shows_every_candidate_below_its_front() -> None:
    found = search(1.3, source="panferov-fig7")
    data = front_data(found)
    assert len(data.measured) + len(data.ruled_out) > 20
    assert data.winner.rho == max(point.rho for point in data.front)
    for bits, rho in (*data.measured, *data.ruled_out):
        reached = max(point.rho for point in data.front if point.bits <= bits + 1e-9)
        assert rho <= reached + 1e-12
        assert bits <= 1.3 + 1e-9
    (axes,) = axes_of()
    draw_front(axes, data)
    assert dots(axes, "*") == [(data.winner.bits, data.winner.rho)]
    assert data.winner.name[:20] in axes.get_title(loc="right")


# --- composition ---


def test_products_of_the_margins_are_what_the_product_rule_predicts() -> None:
    tables = evidence()
    data = composed_data(find_rule("product"), tables)
    expected = [float(a * b) for table in tables for a, b in table.parts.T]
    assert [point.predicted for point in data.points] == pytest.approx(expected)
    assert [point.measured for point in data.points] == [float(m) for t in tables for m in t.measured]
    assert data.largest == pytest.approx(0.096, abs=5e-4)  # arXiv 2506.01863 v1, Fig. 9
    (axes,) = axes_of()
    draw_composed([axes], [data], plots.styles([table.name for table in tables]))
    assert lines(axes)[0] == ([0.0, 1.0], [0.0, 1.0])
    assert sum(len(x) for x, _ in lines(axes)[1:]) == len(data.points)
    assert axes.get_title() == "product: off by 0.096 at most"


def test_a_design_shows_the_error_now_and_after_each_run() -> None:
    run = {"params": 1e8, "tokens": 2e9, "representation": "int4", "flops": 1.2e18}
    design = {
        "target": "rho[int4]",
        "standard_error": 0.02,
        "runs": [{**run, "standard_error": 0.015}, {**run, "standard_error": 0.01}],
    }
    data = design_data(design)
    assert data is not None
    assert (data.before, [row.error for row in data.rows]) == (0.02, [0.015, 0.01])
    assert data.rows[0].run == "+ int4, N 100M, D 2B, 1.2·10¹⁸ FLOPs"
    (axes,) = axes_of()
    draw_design(axes, data)
    assert dots(axes, "o") == [(0.02, 0.0), (0.015, 1.0), (0.01, 2.0)]
    assert axes.get_xlabel() == "expected standard error of rho[int4]"
    assert design_sketch({**design, "runs": [{**run, "standard_error": None}]}) is None
    open_now = design_data({**design, "standard_error": None})
    assert open_now is not None
    assert open_now.before is None


# --- the command line ---


def test_answers_are_drawn_where_a_file_is_named(command: CommandLine, fit: Fit) -> None:
    save_fit(fit, command.folder / "fit.json")
    calls: dict[str, tuple[object, ...]] = {
        "rank.svg": ("rank", "int4", "int2", "--fit", "fit.json"),
        "plan.svg": ("plan", "--flops", "1e19", "--fit", "fit.json"),
        "cross.svg": ("crossover", "int4", "int2", "--params", "1e8", "--fit", "fit.json"),
        "search.svg": ("search", "--bits", "1.1"),
    }
    for name, call in calls.items():
        said = command(*call, "--figure", name, "--json")
        assert (said.code, f"wrote {name}" in said.err) == (0, True), said.err
        assert (command.folder / name).read_text().startswith("<?xml")


def test_figures_that_cannot_be_drawn_are_refused(command: CommandLine, fit: Fit) -> None:
    said = command("rank", "int4", "--figure", "rank.gif")
    assert (said.code, "no picture format is called '.gif'" in said.err) == (2, True)
    save_fit(fit, command.folder / "fit.json")
    limits = ("plan", "--tokens", "1e9", "--params", "1e8", "--fit", "fit.json")
    said = command(*limits, "--figure", "plan.svg")
    assert said.code == 2
    assert "compute along its axis" in said.err
    said = command("rank", "int4", "int2", "--fit", "fit.json", "--figure", "absent/rank.svg")
    assert (said.code, "cannot be written" in said.err) == (2, True)
