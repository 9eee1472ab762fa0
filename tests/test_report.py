"""The report page: what it says, what it never contains, and that it is the same every time."""

from __future__ import annotations

import hashlib
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rhoc.compiler.report import (
    Column,
    ReportData,
    Table,
    answer,
    render_report,
    tables,
    verdict,
    write_report,
)
from rhoc.compiler.report.fit_text import formula_markup
from rhoc.compiler.report.markup import Markup, element, words
from rhoc.compiler.report.words import formula_with_numbers, missing
from rhoc.runtime.errors import RequestError
from rhoc.runtime.laws import find_law
from rhoc.runtime.laws.fit import fit as fit_law
from rhoc.runtime.laws.runs import Runs
from rhoc.runtime.units import Units

from . import report_case
from .report_case import RHO, Reader, fit, formats, full, page, prediction, sweep, visible

# --- the page as a document ---


def test_the_page_is_balanced_and_has_every_section_in_order() -> None:
    reader = Reader(page())
    assert reader.tags.count("html") == reader.tags.count("main") == reader.tags.count("h1") == 1
    assert re.findall(r"<h2>(.*?)</h2>", page()) == [
        "Formats",
        "The sweep",
        "The fitted law",
        "How sure the numbers are",
        "Worth against error",
        "Loss against model size",
        "Predicted against measured",
        "Residuals by format",
        "The held-back combination",
        "Notes",
        "Environment",
        "Reproduce it",
    ]
    assert reader.tags.count("figure") == reader.tags.count("svg") == reader.tags.count("figcaption") == 8


def test_the_page_is_self_contained() -> None:
    reader = Reader(page())
    assert {"script", "link", "img", "iframe", "object", "embed", "a", "form", "base"}.isdisjoint(reader.tags)
    names = {name for _, name, _ in reader.attributes}
    assert not {name for name in names if name.startswith("on")}, "no event handlers"
    assert {"src", "srcset", "action", "xlink:href"}.isdisjoint(names)
    assert all(value.startswith("#") for _, name, value in reader.attributes if name == "href")
    assert not re.search(r"https?:|//\w|@import|javascript:|url\((?!#)", page())
    assert "default-src 'none'" in page()


def test_ids_are_unique_and_references_resolve() -> None:
    reader = Reader(page())
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    targets = {value[1:] for _, name, value in reader.attributes if name == "href"}
    targets |= set(re.findall(r"url\(#([^)]+)\)", page()))
    assert targets == set(ids)


def test_equal_data_give_equal_bytes_in_another_process_too() -> None:
    assert render_report(full()) == page()
    code = (
        "import hashlib, runpy, sys; made = runpy.run_path(sys.argv[1]); "
        "print(hashlib.sha256(made['page']().encode()).hexdigest())"
    )
    other = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(report_case.__file__)],
        env={**os.environ, "PYTHONHASHSEED": "12345", "TZ": "Asia/Tokyo"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == hashlib.sha256(page().encode()).hexdigest()


def test_the_page_has_no_date_and_no_version_of_the_drawing_library() -> None:
    assert not re.search(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}|[Mm]atplotlib", page())


# --- what it says ---


def test_the_answer_comes_first_and_names_prediction_interval_and_measurement() -> None:
    row = full().predictions[0]
    assert row.interval is not None
    assert row.measured is not None
    assert answer(full()) == (
        "Before it was trained, the law gave int2-a2 at N = 61,440 parameters and D = 1,638,400 tokens "
        f"a loss of {row.predicted:.3f} (95% interval {row.interval[0]:.3f} to {row.interval[1]:.3f}); "
        f"training it gave {row.measured:.3f}, inside the interval: the prediction holds."
    )
    text = visible(page())
    assert text.index(answer(full())) < text.index("Formats")


def test_every_number_that_matters_is_on_the_page() -> None:
    text, data = visible(page()), full()
    numbers = ["16.000", "2.004", "3.004", "9.000", "0.1188", "0.03744", "0.07133", "1.536", "2.370", "1.905"]
    numbers += [
        "1.250",
        "5.200",
        "0.3100",
        "260.0",
        "0.4700",
        "0.1000",
        "1.062 to 1.475",
        "45",
        "0.31%",
        "−512.25",
    ]
    numbers += [f"{run.loss:.4f}" for run in data.runs] + [run.id[:8] for run in data.runs]
    for name, rho in RHO.items():
        ends = (1.0, 1.0) if name == "dense" else (rho * 0.94, rho * 1.07)
        numbers += [f"{rho:.3f}", f"{ends[0]:.3f} to {ends[1]:.3f}"]
    row = data.predictions[0]
    assert row.interval is not None
    numbers += [
        f"{row.predicted:.4f}",
        f"{row.interval[0]:.4f} to {row.interval[1]:.4f}",
        f"{row.measured:.4f}",
    ]
    numbers += ["0.218", "0.190 to 0.250", "product of int2 and a2", "61,440", "1,638,400"]
    numbers += ["2.13.0+cpu", "machine.cores", "rhoc fit --law decoupled", "Inputs are rounded per token."]
    assert [number for number in numbers if number not in text] == []


def test_the_law_is_written_with_its_numbers_and_outcome() -> None:
    assert "L = E + A/(N ρ<sub>R</sub>)<sup>α</sup> + B/D<sup>β</sup>" in page()
    assert "L = 1.25 + 5.20/(N ρ<sub>R</sub>)<sup>0.310</sup> + 260/D<sup>0.470</sup>" in page()
    text = visible(page())
    assert "Outcome: converged. The data pin the parameters down" in text
    assert "The optimum lies below every cell of the profile map. Compare laws by bic." in text
    assert "Hoffmann et al." in text
    assert "loss that neither size nor data removes" in text


def test_figures_say_what_to_see_and_label_units() -> None:
    text = visible(page())
    for said in (
        "training tokens",
        "loss (nats per token)",
        "N (parameters)",
        "ρ: dense parameters per parameter",
        "Gaussian bits: −½ log₂ GMSE",
        "measured loss (nats per token)",
        "measured minus law (per cent of the law's loss)",
        "published, not fitted here",
        "Panferov et al., arXiv 2506.01863, camera-ready Table 3, Llama on C4",
        "ρ = tanh(0.41 b)^1.39",
        "int2-a2, held back",
        "Stars were predicted before they were trained",
        "A line is dashed where the law has not seen the format.",
    ):
        assert said in text, said


@pytest.mark.parametrize(
    ("measured", "words_of_it", "sentence"),
    [
        (2.5, "miss: 0.63 above the interval", "outside the interval: the prediction misses."),
        (1.5, "miss: 0.30 below the interval", "outside the interval: the prediction misses."),
        (1.84, "hit: inside the interval", "inside the interval: the prediction holds."),
        (None, "not measured yet", "it has not been trained, so nothing has tested this yet."),
    ],
)
def test_hit_and_miss_in_words(measured: float | None, words_of_it: str, sentence: str) -> None:
    row = prediction(measured)
    assert verdict(row) == words_of_it
    assert answer(ReportData(predictions=(row,))).endswith(sentence)
    text = visible(render_report(ReportData(predictions=(row,))))
    assert words_of_it in text
    assert "int2-a2 : ρ is the product of int2 and a2; predicted loss" in text


def test_several_predictions_are_counted() -> None:
    rows = (prediction(1.84), prediction(2.5), prediction(None))
    assert answer(ReportData(predictions=rows)) == (
        "1 of 2 held-back runs ended inside the 95% interval predicted for them."
    )


def test_a_prediction_without_an_interval_is_no_hit_and_no_miss() -> None:
    row = replace(prediction(1.84), interval=None)
    assert verdict(row) == "no interval to judge by"
    assert "(95%" not in answer(ReportData(predictions=(row,)))


def test_without_predictions_the_answer_is_what_formats_are_worth() -> None:
    data = ReportData(fit=fit())
    assert answer(data) == (
        "Of 4 compressed formats, sparse50 keeps most: one of its parameters is worth 0.71 dense ones, "
        "one of int2 0.45."
    )
    doubtful = ReportData(fit={**fit(), "outcome": "not_identified", "message": "E is not identified"})
    assert answer(doubtful).endswith("0.45 (outcome of the fit: not identified, see below).")
    text = visible(render_report(doubtful))
    assert "Outcome: not identified. The data leave at least one parameter open" in text
    assert "E is not identified." in text
    alone = ReportData(fit={**fit(), "law": "chinchilla", "rho": {}})
    assert answer(alone) == "The chinchilla law is fitted to 45 runs."


def test_the_document_of_a_real_fit_makes_a_report() -> None:
    runs = [run for run in sweep() if not run.held_out]
    fitted = fit_law(
        Runs(
            params=np.array([run.params for run in runs], dtype=float),
            tokens=np.array([run.tokens for run in runs], dtype=float),
            loss=np.array([run.loss for run in runs]),
            representation=tuple(run.representation for run in runs),
            data="a synthetic sweep",
        ),
        find_law("decoupled"),
        bootstraps=20,
    )
    document = fitted.to_document(draws=False)
    text = visible(render_report(ReportData(formats=formats(), runs=tuple(runs), fit=document)))
    for name, estimate in fitted.rho.items():
        assert estimate.interval is not None
        low, high = estimate.interval
        assert f"{name} {estimate.value:.3f}" in text
        assert f"{low:.3f} to {high:.3f}" in text
    assert "Fitted to 45 runs (a synthetic sweep); typical error 0." in text
    assert f"Outcome: {fitted.outcome.value.replace('_', ' ')}." in text


# --- what may be missing ---


def test_an_empty_report_says_what_is_missing_and_how_to_get_it() -> None:
    text = visible(render_report(ReportData()))
    assert "There are no runs yet, so there is nothing to answer from." in text
    assert "What is each format worth?" in text
    assert "Not on this page" in text
    for sentence in missing(ReportData()):
        assert sentence.replace("`", "") in re.sub(r"\s+([.,])", r"\1", text)
    assert re.findall(r"<h2>(.*?)</h2>", render_report(ReportData())) == ["Not on this page"]
    assert "<svg" not in render_report(ReportData())


def test_runs_alone_give_curves_and_points_but_no_law() -> None:
    data = ReportData(runs=tuple(run for run in sweep()[:12] if not run.held_out))
    made = render_report(data)
    assert re.findall(r"<h2>(.*?)</h2>", made) == ["The sweep", "Loss against model size", "Not on this page"]
    assert answer(data) == "On record: 12 runs of 2 formats; no law has been fitted yet."
    assert "There are no lines, because no law has been fitted." in visible(made)


def test_imported_runs_have_no_curves_and_the_page_says_so() -> None:
    runs = tuple(replace(run, train_curve=(), seed=None, seconds=None) for run in sweep()[:9])
    made = render_report(ReportData(runs=runs, fit=fit(), formats=formats()))
    assert "The runs came without training curves" in visible(made)
    assert 'aria-label="Loss curves by format"' not in made
    assert 'aria-label="Residuals by format"' in made


def test_held_out_runs_without_a_prediction_are_mentioned() -> None:
    assert "Runs were held back, but nothing was predicted for them. `rhoc predict` does it." in missing(
        ReportData(runs=sweep(), fit=fit(), formats=formats())
    )
    assert missing(full()) == ()


def test_open_intervals_and_absent_errors_are_shown() -> None:
    rho = {"int2": {"value": 0.45, "interval": [0.4, None], "standard_error": None}}
    document = {**fit(), "rho": rho, "standard_error": {}, "interval": {"E": [None, 1.4]}, "bic": None}
    text = visible(render_report(ReportData(formats=formats(), fit=document)))
    assert "0.400 to ∞" in text
    assert "−∞ to 1.400" in text
    assert "BIC" not in text


# --- hostile input ---

HOSTILE = "<img src=x onerror=alert(1)>\"'&`$x_1$\x00</style></svg>"


def hostile() -> ReportData:
    """The full report with every text replaced by one that tries to become a tag."""
    data, name = full(), {name: f"{HOSTILE}{name}" for name in (*RHO, "int2-a2") if name != "dense"}
    name["dense"] = "dense"
    document = fit()
    document |= {key: HOSTILE for key in ("formula", "unit_of_params", "source", "data")}
    document["message"] = f"{HOSTILE}; {HOSTILE}"
    document["rho"] = {name[key]: value for key, value in document["rho"].items()}
    return ReportData(
        question=HOSTILE,
        formats=tuple(
            replace(row, name=name[row.name], summary=HOSTILE, representation=HOSTILE) for row in data.formats
        ),
        runs=tuple(replace(run, id=HOSTILE, representation=name[run.representation]) for run in data.runs),
        fit=document,
        predictions=tuple(
            replace(
                row,
                representation=name[row.representation],
                rule=HOSTILE,
                factors=tuple(replace(f, representation=name[f.representation]) for f in row.factors),
            )
            for row in data.predictions
        ),
        environment={HOSTILE: HOSTILE, **{key: HOSTILE for key in "abc"}},
        commands=(HOSTILE, HOSTILE, HOSTILE),
        notes=(HOSTILE,),
    )


def document_tags(reader: Reader) -> list[str]:
    """Tags of a page in order, without those that depend on the length of names or on the formula."""
    drawn = {"g", "use", "path", "text", "defs", "rect", "clippath", "sub", "sup"}
    return [tag for tag in reader.tags if tag not in drawn]


def test_hostile_names_stay_text() -> None:
    made = render_report(hostile())
    reader = Reader(made)
    assert document_tags(reader) == document_tags(Reader(page()))
    assert not [name for _, name, _ in reader.attributes if name.startswith("on")]
    assert "\x00" not in made
    assert HOSTILE.replace("\x00", "\ufffd") not in made
    assert HOSTILE.replace("\x00", "\ufffd") in " ".join(reader.pieces)


def test_markup_is_escaped_unless_it_is_markup() -> None:
    assert (
        element("p", "<b>", Markup("<br>"), attributes={"title": '"<'})
        == '<p title="&quot;&lt;">&lt;b&gt;<br></p>'
    )
    assert words("run `a <b>` now") == "run <code>a &lt;b&gt;</code> now"
    assert words("one ` quote") == "one ` quote"


# --- units ---


@pytest.mark.parametrize("loss", ["nats per image", ""])
def test_units_are_those_of_the_task(loss: str) -> None:
    text = visible(render_report(replace(full(), units=Units(loss, "images"))))
    assert "token" not in text.replace("Inputs are rounded per token.", "")  # a note of the user's
    assert "nats" not in text.replace(loss or "-", "")
    assert "D (images)" in text or "D images" in text
    assert text.count("nats per image") > 5 if loss else "that of the loss times N^alpha" in text
    assert "nats per token times N^alpha" in visible(page())


def test_multipliers_that_the_runs_leave_open_are_not_an_answer() -> None:
    document = fit()
    for entry in document["rho"].values():
        entry["interval"] = [0.0001, 100.0]
    said = answer(ReportData(fit=document))
    assert said == "These runs do not tell what a parameter of these formats is worth."


# --- formulas and tables ---


def test_formulas_take_numbers_for_parameters_and_keep_left_hand_sides() -> None:
    formula = "L = E + A/(N rho)^alpha, rho = L tanh(F log_{1/4} GMSE)^C"
    parameters = {"E": 1.2345, "A": 10.0, "alpha": 0.5, "L": 0.9, "F": 0.41, "C": 1.39}
    filled = formula_with_numbers(formula, parameters)
    assert filled == "L = 1.23 + 10.0/(N rho)^0.500, rho = 0.900 tanh(0.410 log_{1/4} GMSE)^1.39"
    assert formula_markup(filled) == (
        "L = 1.23 + 10.0/(N ρ)<sup>0.500</sup>, ρ = 0.900 tanh(0.410 log<sub>1/4</sub> GMSE)<sup>1.39</sup>"
    )


def test_terminal_tables_hold_the_numbers_of_the_page() -> None:
    by_title = {table.title: table for table in tables(full())}
    assert list(by_title) == [
        "Formats",
        "Fitted parameters",
        "Fitted multipliers",
        "Predicted and measured loss",
    ]
    shown = by_title["Formats"]
    assert shown.headings[:4] == ("format", "what it is", "stored (bits per weight)", "GMSE of weights")
    assert shown.terminal_rows[1] == (
        *("int2", "weights in 2 bits, rotated", 2.004, 0.1188, 0.0, 1.536, 0.452, "0.425 to 0.484"),
    )
    assert [row[0] for row in by_title["Fitted multipliers"].rows] == [
        "dense",
        "sparse50",
        "int3",
        "a2",
        "int2",
    ]
    assert by_title["Fitted parameters"].text_rows[2][0] == "α (alpha)"
    assert by_title["Predicted and measured loss"].text_rows[0][-1] == "hit: inside the interval"
    assert tables(ReportData()) == ()


def test_columns_show_cells_by_their_kind() -> None:
    column = Column("loss", "nats", 2)
    shown = [column.show(cell) for cell in ("text", 12_345, 1.239, (0.1, math.inf), None)]
    assert shown == ["text", "12,345", "1.24", "0.10 to ∞", ""]
    assert Column("x").show((0.012345, 2.0)) == "0.01235 to 2.000"
    assert Table("t", (column, Column("y")), ((1.0, "a"), (None, "b"))).is_numeric(0)
    assert not Table("t", (column, Column("y")), ((1.0, "a"),)).is_numeric(1)


# --- writing ---


def test_the_report_is_written_as_it_is_rendered(tmp_path: Path) -> None:
    path = write_report(ReportData(question="é ρ"), tmp_path / "report.html")
    assert path.read_bytes() == render_report(ReportData(question="é ρ")).encode()


def test_a_path_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the report cannot be written here") as caught:
        write_report(ReportData(), tmp_path / "absent" / "report.html")
    assert caught.value.where.endswith("report.html")
    assert "existing folder" in caught.value.advice
