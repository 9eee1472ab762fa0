"""Figures: the data behind each one exactly, and what drawing puts on the axes."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rhoc.compiler import plots
from rhoc.compiler.plots import (
    CapacityPoint,
    Factor,
    FittedLaw,
    FormatRow,
    PredictionRow,
    ResidualRow,
    RunRow,
    Style,
)
from rhoc.compiler.plots.data import representations
from rhoc.compiler.plots.legend import Entry, columns, entry, rows
from rhoc.compiler.plots.style import DASHES, count_axis, theme
from rhoc.compiler.plots.svg import inline_svg
from rhoc.compiler.plots.text import clean, decimals, interval, label, short_count, significant
from rhoc.runtime.errors import RequestError

# With alpha = 1 and beta = 1/2 the law can be worked out by hand: L = 1 + 1000/(N rho) + 100/sqrt(D).
PARAMETERS = {"E": 1.0, "A": 1000.0, "alpha": 1.0, "B": 100.0, "beta": 0.5}
DOCUMENT = {
    "law": "decoupled",
    "parameters": PARAMETERS,
    "rho": {
        "dense": {"value": 1.0, "interval": [1.0, 1.0], "standard_error": 0.0},
        "int2": {"value": 0.5, "interval": [0.4, None], "standard_error": 0.05},
        "sparse": {"value": 0.8},
    },
}
LAW = FittedLaw.from_document(DOCUMENT)


def run(name: str, params: int, tokens: int, loss: float = 2.0, **more: object) -> RunRow:
    return RunRow(f"{name}-{params}-{tokens}", name, params, tokens, loss, **more)  # type: ignore[arg-type]


def axes_of(count: int = 1) -> list[Axes]:
    figure = Figure()
    return list(figure.subplots(1, count, squeeze=False, sharex=True, sharey=True).flat)


def lines(axes: Axes) -> list[tuple[list[float], list[float]]]:
    return [
        ([float(x) for x in line.get_xdata()], [float(y) for y in line.get_ydata()]) for line in axes.lines
    ]


# --- the fitted law ---


def test_law_gives_the_loss_worked_out_by_hand() -> None:
    assert LAW.loss("dense", 1000, 10_000) == pytest.approx(1 + 1 + 1)
    assert LAW.loss("int2", 1000, 10_000) == pytest.approx(1 + 2 + 1)
    assert LAW.loss("unseen", 1000, 10_000) is None


def test_intervals_of_a_document_may_be_open_or_absent() -> None:
    assert LAW.rho_interval == {"dense": (1.0, 1.0), "int2": (0.4, math.inf)}


def test_a_law_without_multipliers_treats_every_run_as_dense() -> None:
    law = FittedLaw.from_document({"law": "chinchilla", "parameters": PARAMETERS, "rho": {}})
    assert law.loss("anything", 1000, 10_000) == pytest.approx(3)
    predicted = PredictionRow("int2", 1, 1, 1.0, None, rho=0.5)
    assert law.with_predicted([predicted]).loss("int2", 1000, 10_000) == pytest.approx(3)


def test_predicted_multipliers_fill_gaps_and_replace_nothing() -> None:
    rows = [PredictionRow("new", 1, 1, 1.0, None, rho=0.25), PredictionRow("int2", 1, 1, 1.0, None, rho=0.1)]
    law = LAW.with_predicted(rows)
    assert law.loss("new", 1000, 10_000) == pytest.approx(1 + 4 + 1)
    assert law.loss("int2", 1000, 10_000) == pytest.approx(4)


def test_an_unknown_law_is_named() -> None:
    with pytest.raises(RequestError, match="no law is called 'decuopled'"):
        FittedLaw.from_document({"law": "decuopled", "parameters": {}})


# --- loss curves ---


def test_curves_drop_the_start_and_average_what_is_left() -> None:
    # 100 steps of 10 tokens: 5% of 1000 tokens is 50, so steps 5 to 100 stay: 96 points in 40 bins of 2 or 3.
    curve = tuple((step, 10 * step, float(step)) for step in range(1, 101))
    (panel,) = plots.loss_curves([run("int2", 8000, 1000, 2.5, train_curve=curve)])
    (only,) = panel.curves
    assert (panel.representation, panel.held_out) == ("int2", False)
    assert (only.params, only.end_tokens, only.end_loss) == (8000, 1000, 2.5)
    assert len(only.loss) == 40
    assert only.loss[0] == 5.5  # steps 5 and 6
    assert only.loss[-1] == 99.0  # steps 98, 99 and 100
    assert only.tokens == tuple(10 * loss for loss in only.loss)


def test_short_curves_stay_as_they_are() -> None:
    (panel,) = plots.loss_curves([run("dense", 8, 20, train_curve=((1, 10, 3.0), (2, 20, 2.0)))])
    assert (panel.curves[0].tokens, panel.curves[0].loss) == ((10.0, 20.0), (3.0, 2.0))


def test_panels_are_ordered_and_runs_without_curves_left_out() -> None:
    curve = ((1, 10, 3.0),)
    runs = [
        run("int2", 900, 10, train_curve=curve),
        run("int2", 100, 10, train_curve=curve),
        run("imported", 100, 10),
        run("dense", 100, 10, train_curve=curve),
        run("mix", 100, 10, train_curve=curve, held_out=True),
    ]
    panels = plots.loss_curves(runs)
    assert [panel.representation for panel in panels] == ["dense", "int2", "mix"]
    assert [curve.params for curve in panels[1].curves] == [100, 900]
    assert [panel.held_out for panel in panels] == [False, False, True]


def test_drawn_curves_have_units_and_larger_models_thicker_lines() -> None:
    curve = ((1, 1000, 3.0), (2, 2000, 2.0))
    panels = plots.loss_curves([run("dense", n, 2000, train_curve=curve) for n in (100, 900)])
    (axes,) = axes_of()
    plots.draw_loss_curves([axes], panels, plots.styles(["dense"]))
    assert axes.get_xlabel() == "training tokens"
    assert axes.get_ylabel() == "loss (nats per token)"
    assert axes.get_title() == "dense"
    assert [line.get_linewidth() for line in axes.lines[::2]] == [pytest.approx(0.8), pytest.approx(2.4)]
    assert lines(axes)[1] == ([2000.0], [2.0])


# --- loss against size ---


def test_runs_of_equal_tokens_share_a_panel_with_the_laws_curves() -> None:
    runs = [
        run(name, n, d, 3.0) for name in ("int2", "dense") for n in (1000, 2000) for d in (10_000, 40_000)
    ]
    small, large = plots.loss_by_size(runs, LAW)
    assert (small.label, large.label) == ("D = 10k tokens", "D = 40k tokens")
    assert small.points == {"dense": ((1000.0, 3.0), (2000.0, 3.0)), "int2": ((1000.0, 3.0), (2000.0, 3.0))}
    assert small.held_out == {}
    assert small.runs == 4
    for name, rho in (("dense", 1.0), ("int2", 0.5)):
        assert large.curves[name][0][0] == pytest.approx(1000 / 1.15)
        assert large.curves[name][-1][0] == pytest.approx(2000 * 1.15)
        for n, loss in large.curves[name]:
            assert loss == pytest.approx(1 + 1000 / (n * rho) + 0.5)


def test_runs_of_equal_tokens_per_parameter_share_a_panel_when_that_covers_more() -> None:
    runs = [run("dense", n, 100 * n) for n in (1000, 2000, 4000, 8000)]
    (panel,) = plots.loss_by_size(runs, LAW)
    assert panel.label == "D/N = 100 tokens"
    for n, loss in panel.curves["dense"]:
        assert loss == pytest.approx(1 + 1000 / n + 100 / math.sqrt(100 * n))


def test_the_commonest_budgets_are_shown() -> None:
    runs = [run("dense", n, d + n // 20) for d in (100, 200, 300) for n in (10, 20)]  # 101 counts as 100
    runs += [run("dense", 10, d) for d in (400, 500)]
    panels = plots.loss_by_size(runs, None)
    assert [panel.label for panel in panels] == ["D = 100 tokens", "D = 200 tokens", "D = 300 tokens"]
    assert [dict(panel.points)["dense"] for panel in panels] == [((10.0, 2.0), (20.0, 2.0))] * 3
    assert sum(panel.runs for panel in panels) == 6
    assert all(panel.curves == {} for panel in panels)


def test_held_out_runs_are_stars_and_their_predicted_curve_is_dashed() -> None:
    runs = [run("dense", 1000, 10_000), run("mix", 1000, 10_000, 4.5, held_out=True)]
    law = LAW.with_predicted([PredictionRow("mix", 1000, 10_000, 5.0, None, rho=0.25)])
    (panel,) = plots.loss_by_size(runs, law)
    assert panel.points.keys() == {"dense"}
    assert panel.held_out == {"mix": ((1000.0, 4.5),)}
    assert all(loss == pytest.approx(1 + 1000 / (n * 0.25) + 1) for n, loss in panel.curves["mix"])
    (axes,) = axes_of()
    plots.draw_loss_by_size([axes], [panel], plots.styles(["dense", "mix"]))
    by_marker = {line.get_marker(): line for line in axes.lines}
    assert list(by_marker["*"].get_ydata()) == [4.5]
    dashed = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 1
    assert dashed[0].get_color() == plots.styles(["dense", "mix"])["mix"].colour


def test_no_runs_no_panels() -> None:
    assert plots.loss_by_size([], LAW) == ()
    assert plots.loss_curves([]) == ()


# --- rho against error ---


def test_published_curve_goes_through_the_published_values() -> None:
    # arXiv 2506.01863: F = .41, C = 1.39, L = 1 at the Gaussian error of INT1, 2, 3, 4 and 8
    errors = (0.36338, 0.118846, 0.0374397, 0.0115429, 8.7686e-5)
    expected = (0.1796, 0.4445, 0.6696, 0.8196, 0.9890)
    assert [plots.published_rho(error) for error in errors] == pytest.approx(expected, abs=1e-4)


def test_capacity_takes_the_rows_rho_first_and_the_fits_second() -> None:
    formats = [
        FormatRow("dense", "", "dense", 16, 0.0),
        FormatRow("int2", "", "", 2, 0.12),
        FormatRow("sparse", "", "", 8, 0.07, rho=0.6, rho_interval=(0.5, 0.7)),
        FormatRow("a2", "", "", 16, 0.0, rho=0.4, gmse_input=0.12),
        FormatRow("int2-a2", "", "", 2, 0.12, rho=0.2, gmse_input=0.12),
        FormatRow("unknown", "", "", 2, 0.3),
    ]
    data = plots.capacity_points(formats, LAW)
    assert data.points == (
        CapacityPoint("int2", 0.12, 0.5, (0.4, math.inf), "weights"),
        CapacityPoint("sparse", 0.07, 0.6, (0.5, 0.7), "weights"),
        CapacityPoint("a2", 0.12, 0.4, None, "inputs"),
    )
    assert data.two_errors == ("int2-a2",)
    assert data.fitted == ()
    assert all(rho == pytest.approx(math.tanh(0.41 * -math.log2(g) / 2) ** 1.39) for g, rho in data.published)
    assert [point.name for point in plots.capacity_points(formats, None).points] == ["sparse", "a2"]


def test_capacity_shows_the_fitted_curve_of_a_law_that_has_one() -> None:
    document = {
        "law": "representation",
        "parameters": {**PARAMETERS, "F": 0.5, "C": 2.0},
        "rho": DOCUMENT["rho"],
    }
    data = plots.capacity_points([FormatRow("int2", "", "", 2, 0.12)], FittedLaw.from_document(document))
    assert all(rho == pytest.approx(math.tanh(0.5 * -math.log2(g) / 2) ** 2) for g, rho in data.fitted)
    assert len(data.fitted) > 50


def test_drawn_capacity_has_gaussian_bits_above_and_starts_at_zero() -> None:
    data = plots.capacity_points([FormatRow("int2", "", "", 2, 0.12)], LAW)
    (axes,) = axes_of()
    plots.draw_capacity(axes, data, plots.styles(["int2"]))
    assert axes.get_ylim()[0] == 0.0
    assert axes.get_ylim()[1] >= 1.0
    (above,) = axes.child_axes
    ticks = dict(zip((t.get_text() for t in above.get_xticklabels()), above.get_xticks(), strict=True))
    assert ticks["0"] == 1.0
    assert ticks["2"] == 1 / 16


# --- predicted and measured ---


def test_agreement_pairs_runs_with_the_law_and_predictions_with_measurements() -> None:
    runs = [
        run("dense", 1000, 10_000, 3.1),
        run("int2", 1000, 10_000, 3.9),
        run("mix", 1000, 10_000, 5, held_out=True),
    ]
    rows = [
        PredictionRow("mix", 1000, 10_000, 5.2, (4.8, 5.6), measured=5.0, factors=(Factor("int2", 0.5),)),
        PredictionRow("mix", 2000, 10_000, 4.2, (3.8, 4.6)),
    ]
    points = plots.agreement(runs, rows, LAW)
    found = [(p.representation, p.measured, round(p.predicted, 9), p.interval, p.held_out) for p in points]
    assert found == [
        ("dense", 3.1, 3.0, None, False),
        ("int2", 3.9, 4.0, None, False),
        ("mix", 5.0, 5.2, (4.8, 5.6), True),
    ]
    assert [p.representation for p in plots.agreement(runs, rows, None)] == ["mix"]


def test_residuals_are_per_cent_of_the_laws_loss() -> None:
    runs = [run("int2", 1000, 10_000, 4.04), run("dense", 1000, 10_000, 2.97), run("int2", 1000, 10_000, 3.6)]
    rows = [PredictionRow("mix", 1000, 10_000, 5.0, None, measured=5.5)]
    found = plots.residual_rows(plots.agreement(runs, rows, LAW))
    assert found == (
        ResidualRow("int2", (pytest.approx(1.0), pytest.approx(-10.0)), ()),
        ResidualRow("dense", (pytest.approx(-1.0),), ()),
        ResidualRow("mix", (), (pytest.approx(10.0),)),
    )


def test_drawn_agreement_has_the_identity_line_and_the_interval() -> None:
    rows = [PredictionRow("mix", 1000, 10_000, 5.2, (4.8, math.inf), measured=5.0)]
    points = plots.agreement([run("dense", 1000, 10_000, 3.1)], rows, LAW)
    (axes,) = axes_of()
    plots.draw_agreement(axes, points, plots.styles(["dense", "mix"]))
    identity, dense, bar, star = lines(axes)
    assert identity[0] == identity[1]
    assert dense == ([3.1], [pytest.approx(3.0)])
    assert bar == ([5.0, 5.0], [4.8, math.inf])
    assert star == ([5.0], [5.2])
    assert axes.get_xlim() == axes.get_ylim()


def test_drawn_residuals_name_every_row() -> None:
    (axes,) = axes_of()
    rows = [ResidualRow("dense", (0.5, -0.5), ()), ResidualRow("mix", (), (2.0,))]
    plots.draw_residuals(axes, rows, plots.styles(["dense", "mix"]))
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["dense", "mix"]
    assert "per cent" in axes.get_xlabel()
    assert axes.get_xlim() == (pytest.approx(-2.3), pytest.approx(2.3))


@pytest.mark.parametrize(
    ("measured", "ends", "hit"),
    [
        (2.0, (1.9, 2.1), True),
        (1.9, (1.9, 2.1), True),
        (2.2, (1.9, 2.1), False),
        (None, (1.9, 2.1), None),
        (2.0, None, None),
        (math.nan, (1.9, 2.1), False),
    ],
)
def test_a_hit_is_inside_the_interval(
    measured: float | None, ends: tuple[float, float] | None, hit: bool | None
) -> None:
    assert PredictionRow("mix", 1, 1, 2.0, ends, measured=measured).hit is hit


# --- style ---


def test_styles_do_not_repeat_and_dense_is_the_colour_of_text() -> None:
    names = [f"format{i}" for i in range(42)]
    look = plots.styles([*names, "dense"])
    assert len(set(look.values())) == 43
    assert look["dense"] == plots.styles(["dense", "int2"])["dense"]
    assert all(style.marker != "*" for style in look.values()), "the star is for what was held back"
    assert plots.styles(["a", "b"])["a"] == plots.styles(["dense", "a", "b"])["a"]


def test_the_first_six_formats_differ_in_colour_and_in_marker() -> None:
    look = [plots.styles([f"f{i}" for i in range(6)])[f"f{i}"] for i in range(6)]
    assert len({style.marker for style in look}) == 6
    assert len({style.colour for style in look}) == 6


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (2e4, 2e6, ["30k", "100k", "300k", "1M"]),
        (7e3, 7e4, ["10k", "20k", "50k"]),
        (1e4, 1e9, ["10k", "100k", "1M", "10M", "100M", "1B"]),
        (2.2e4, 5.4e4, ["30k", "40k", "50k"]),
        (2.2e4, 2.4e4, ["23k"]),
    ],
)
def test_count_axes_have_few_ticks_and_never_none(low: float, high: float, ticks: list[str]) -> None:
    (axes,) = axes_of()
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    count_axis(axes.xaxis)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ticks
    assert len(axes.get_xticks(minor=True)) == 0


def test_representations_put_dense_first_and_keep_order() -> None:
    formats = [FormatRow(name, "", "", 1, 0) for name in ("int2", "dense", "int3")]
    assert representations(formats, [run("other", 1, 1), run("int2", 1, 1)]) == (
        "dense",
        "int2",
        "int3",
        "other",
    )


def entries(*texts: str) -> list[Entry]:
    return [Entry(text, Style("#000000", "o")) for text in texts]


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["dense"], (1, 1)),
        (["dense", "int2", "int3"], (3, 1)),
        (["dense", "int2", "int3", "int4"], (4, 1)),
        (["dense", "int2", "int3", "int4", "int5", "int6"], (3, 2)),  # two rows of three, not of four and two
        (["x" * 26] * 3, (2, 2)),
        (["x" * 50] * 3, (1, 3)),
    ],
)
def test_legends_have_as_many_columns_as_names_leave_room_for(
    texts: list[str], expected: tuple[int, int]
) -> None:
    assert (columns(entries(*texts)), rows(entries(*texts))) == expected


def test_what_was_held_back_is_named_so_in_a_legend() -> None:
    style = Style("#000000", "s")
    held = entry("_mix", style, held_out=True, line=True)
    assert held.text == " _mix, held back"
    handle = held.handle()
    assert (handle.get_marker(), handle.get_linestyle()) == ("*", "--")
    seen = entry("int2", style).handle()
    assert (seen.get_marker(), seen.get_linestyle()) == ("s", "None")


# --- text ---


def test_numbers_as_people_read_them() -> None:
    assert [short_count(value) for value in (8192, 1_638_400, 3e9, 999_999.9999999, 12)] == [
        *("8.19k", "1.64M", "3B", "1M", "12")
    ]
    assert [
        significant(v) for v in (0.0115429, 2.0, 86.41, 12345.6, 3.4952e-7, 0.0, -1.5, math.inf, None)
    ] == [*("0.01154", "2.000", "86.41", "1.235e+04", "3.495e-07", "0", "−1.500", "∞", "")]
    assert significant(math.nan) == "not a number"
    assert decimals(-0.12345, 3) == "−0.123"
    assert interval((1.0, math.inf), 2) == "1.00 to ∞"


def test_hostile_names_become_harmless_labels() -> None:
    assert label("_hidden") == " _hidden"
    assert label("a\nb") == "a b"
    assert label("   ") == "(no name)"
    assert label("x" * 40) == "x" * 25 + "…"
    assert clean("a\x00b\ud800c\ufffed\te") == "a\ufffdb\ufffdc\ufffdd\te"


# --- SVG ---


def draw_named(name: str) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([1, 2], [1, 2], "o-", label=label(name))
        axes.set_title(label(name))
        axes.legend()

    return inline_svg(draw, ident="one", title=name)


@pytest.mark.parametrize(
    "name",
    [
        "int2",
        "<script>alert(1)</script>",
        "$\\frac$",
        "a$b$c",
        "_hidden",
        "漢字🙂",
        "a\x00b",
        '"quoted" & more',
    ],
)
def test_any_name_makes_a_well_formed_figure_that_shows_it(name: str) -> None:
    root = ET.fromstring(draw_named(clean(name)))
    texts = [element.text for element in root.iter("text")]
    assert texts.count(label(name)) == 2
    assert root.get("role") == "img"
    assert root.get("aria-label") == clean(name)


def test_figures_refer_to_nothing_outside_and_take_the_pages_colour() -> None:
    written = draw_named("int2")
    root = ET.fromstring(written)
    ids = {element.get("id") for element in root.iter() if element.get("id")}
    targets = {v[1:] for e in root.iter() for k, v in e.attrib.items() if k == "href"}
    targets |= {part.split(")")[0] for part in written.split("url(#")[1:]}
    assert targets == ids
    assert all(name.startswith("one-") for name in ids if name)
    assert "http" not in written
    assert "currentColor" in written
    assert {"style", "script", "metadata"}.isdisjoint({element.tag for element in root.iter()})


def test_drawing_leaves_matplotlibs_settings_alone() -> None:
    import matplotlib

    with matplotlib.rc_context({"lines.linewidth": 7.0, "svg.fonttype": "path"}):
        before = draw_named("int2")
        assert matplotlib.rcParams["lines.linewidth"] == 7.0
        assert matplotlib.rcParams["svg.fonttype"] == "path"
    assert draw_named("int2") == before, "a user's settings change nothing in the figure"


def test_theme_reads_dollar_signs_as_dollar_signs() -> None:
    with theme():
        assert Figure().text(0, 0, "$x$").get_parse_math() is False


def test_dashes_are_a_line_style_matplotlib_takes() -> None:
    (axes,) = axes_of()
    (line,) = axes.plot([0, 1], [0, 1], linestyle=DASHES)
    assert line.get_linestyle() == "--"
