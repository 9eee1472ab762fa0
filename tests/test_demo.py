"""The demo: everything it promises in a few seconds, and that a miss is called a miss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rhoc import specs
from rhoc.compiler.demo import Outcome, Voice, lay_out, run_demo, told, verdict
from rhoc.compiler.experiment import Experiment
from rhoc.compiler.grid import load_grid
from rhoc.compiler.model_reference import ModelReference
from rhoc.compiler.plots.data import Factor
from rhoc.compiler.spec import load_spec
from rhoc.compiler.study import HeldOut, fit_plan, predict_held_out, prediction_row
from rhoc.compiler.sweep import Cell, Plan, plan_sweep
from rhoc.compiler.sweep_run import Ended, Hire, SweepEvent, SweepListener
from rhoc.runtime.errors import RequestError, WorkError
from rhoc.runtime.executors import Inline
from rhoc.runtime.laws.compose import Composition
from rhoc.runtime.laws.multiplier import Multiplier, Origin
from rhoc.runtime.laws.predict import Extrapolation, Prediction
from rhoc.runtime.store import Run, RunStore
from rhoc.runtime.train import TrainSettings

from .command_line import CommandLine, grid_text

RUNS = [
    {"specs": "dense", "sizes": [{"width": 16}, {"width": 32}], "tokens": [640, 1280, 2560]},
    {"specs": ["int2", "a2"], "sizes": {"width": 16}, "tokens": [640, 2560]},
]
HELD = [{"specs": "int2-a2", "product_of": ["int2", "a2"], "sizes": {"width": 16}, "tokens": 1280}]


@dataclass
class Audience:
    """What the demo said, in order: lines, tables, and runs that ended."""

    lines: list[str] = field(default_factory=list)
    tables: list[tuple[tuple[object, ...], list[tuple[object, ...]]]] = field(default_factory=list)
    ended: list[Ended] = field(default_factory=list)

    @property
    def voice(self) -> Voice:
        return Voice(self.lines.append, lambda head, rows: self.tables.append((head, rows)), self.progress)

    @contextmanager
    def progress(self, plan: Plan, cells: Sequence[Cell]) -> Iterator[SweepListener]:
        def listen(event: SweepEvent) -> None:
            if isinstance(event, Ended):
                self.ended.append(event)

        yield listen


def here(workers: int, hear: object) -> Inline:
    """An executor that trains in this process."""
    return Inline(hear)  # type: ignore[arg-type]


HERE: Hire = here


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Audience, Outcome]:
    """The demo with a tiny grid of the user's in its folder."""
    folder, audience = tmp_path_factory.mktemp("demo"), Audience()
    (folder / "demo.yaml").write_text(
        grid_text(name="demo", question="what is it worth?", runs=RUNS, held_out=HELD)
    )
    return folder, audience, run_demo(folder, workers=1, voice=audience.voice, hire=HERE)


def test_it_shows_formats_plan_fit_prediction_and_measurement(shown: tuple[Path, Audience, Outcome]) -> None:
    _, audience, outcome = shown
    headings = [[h[0] if isinstance(h, tuple) else h for h in head] for head, _ in audience.tables]
    formats, compiled, multipliers = (rows for _, rows in audience.tables)
    assert [row[0] for row in formats] == ["dense", "int2", "a2", "int2-a2"]
    assert headings[0][:3] == ["format", "bits/weight", "GMSE of weights"]
    assert formats[1][1:3] == (pytest.approx(2 + 16 / 4096), pytest.approx(0.118846, rel=1e-5))
    assert {row[0]: row[1] for row in compiled} == {"dense": 0, "int2": 14, "a2": 14, "int2-a2": 14}
    assert {row[0] for row in multipliers} == {"dense", "int2", "a2"}
    said = "\n".join(audience.lines)
    for start in ("1. Formats", "2. Compile", "3. Sweep", "4. Fit", "5. Predict"):
        assert start in said
    assert "10 runs to train, about " in said
    assert "1 run to train, about " in said
    assert outcome.fit.law.formula in said
    (held,) = outcome.held_out
    assert told(held) in said
    assert outcome.trained == len(audience.ended) == 11


def test_the_prediction_was_made_before_the_measurement(shown: tuple[Path, Audience, Outcome]) -> None:
    folder, audience, outcome = shown
    assert audience.ended[-1].cell.held_out
    assert audience.ended[-1].cell.experiment.spec.name == "int2-a2"
    (held,) = outcome.held_out
    with RunStore(folder / "runs.db") as store:
        assert store.get(held.cell.id).loss == held.measured
        grid, beside = load_grid(folder / "demo.yaml")
        plan = plan_sweep(grid, beside, store, workers=1, timed=False)
    fitted = fit_plan(plan)
    assert fitted.num_runs == 10
    assert fitted.values == outcome.fit.values
    (again,) = predict_held_out(plan, fitted)
    assert again.prediction.loss == held.prediction.loss
    assert held.prediction.composition.multiplier.value == pytest.approx(
        outcome.fit.rho["int2"].value * outcome.fit.rho["a2"].value
    )


def test_the_report_is_written(shown: tuple[Path, Audience, Outcome]) -> None:
    folder, _, outcome = shown
    page = outcome.report.read_text()
    assert outcome.report == folder / "report.html"
    for words in ("what is it worth?", "int2-a2", "rhoc sweep run", "product of int2 and a2"):
        assert words in page


def test_asked_again_it_trains_nothing_and_says_the_same(
    shown: tuple[Path, Audience, Outcome], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _, outcome = shown
    monkeypatch.setattr("rhoc.compiler.sweep_run.carry_out", lambda *_, **__: pytest.fail("it trains again"))
    said = CommandLine(capsys, folder)("demo", "--folder", folder)
    assert said.code == 0, said.err
    assert said.out.count("every run is finished already") == 2
    (held,) = outcome.held_out
    assert verdict(held) in " ".join(said.out.split())
    assert f"report: {folder}/report.html" in said.out
    assert max(len(line) for line in said.out.splitlines() if "/" not in line) <= 100


def test_its_json_is_one_document(
    shown: tuple[Path, Audience, Outcome], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, outcome = shown
    said = CommandLine(capsys, folder)("demo", "--folder", folder, "--json")
    (prediction,) = said.document["predictions"]
    assert prediction["measured"] == outcome.held_out[0].measured
    assert prediction["hit"] is outcome.held_out[0].hit
    assert said.document["fit"]["parameters"] == pytest.approx(outcome.fit.values)


# Where it works


def test_the_folder_gets_the_grid_and_formats_of_the_demo(tmp_path: Path) -> None:
    written = lay_out(tmp_path / "new", "demo")
    shipped, _ = load_grid("demo")
    copied, beside = load_grid(written)
    assert copied == shipped
    used = {name for block in (*shipped.runs, *shipped.held_out) for name in block.specs}
    there = {path.stem for path in (beside / "formats").glob("*.yaml")}
    assert there == {Path(name).stem for name in used}
    for path in (beside / "formats").glob("*.yaml"):
        assert "$schema=rhoc.schema.json" in path.read_text()
    assert (beside / "formats" / "rhoc.schema.json").is_file()


def test_what_the_user_changed_is_kept_and_counts(tmp_path: Path) -> None:
    grid = lay_out(tmp_path, "demo")
    text = specs.path("int2").read_text().replace("num_bits: 2", "num_bits: 3")
    (tmp_path / "formats" / "int2.yaml").write_text(text)
    lay_out(tmp_path, "demo")
    loaded, beside = load_grid(grid)
    plan = plan_sweep(loaded, beside, None, workers=1, timed=False)
    (int2,) = {c.experiment.spec.digest for c in plan.cells if c.experiment.spec.name == "int2"}
    assert int2 == load_spec("int3").digest


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="the demo cannot be laid out here"):
        run_demo(tmp_path / "file" / "demo", workers=1, voice=Audience().voice, hire=HERE)


def test_a_failed_run_ends_the_demo_and_keeps_what_is_finished(tmp_path: Path) -> None:
    fine = {"specs": "dense", "sizes": {"width": 16}, "tokens": 640}
    diverges = {**fine, "tokens": 1280, "training": {"learning_rate": 1e38}}
    (tmp_path / "demo.yaml").write_text(grid_text(runs=[fine, diverges]))
    with pytest.raises(WorkError, match="a run failed: train: the loss became") as failed:
        run_demo(tmp_path, workers=1, voice=Audience().voice, hire=HERE)
    assert "D=1,280" in failed.value.where
    with RunStore(tmp_path / "runs.db") as store:
        assert [run.tokens for run in store.runs("finished")] == [640]
        assert len(store.runs("failed")) == 1


# Verdicts


def held_out(
    measured: float | None,
    interval: tuple[float, float] | None = (2.9, 3.1),
    rule: tuple[float, float] | None = (2.8, 3.2),
    factors: Sequence[str] = ("int2", "a2"),
) -> HeldOut:
    """A prediction of 3.0 and what was measured."""
    model = ModelReference.parse("rhoc.runtime.llama:llama(width=16)")
    settings = TrainSettings(tokens=640, batch_size=2, context=32)
    experiment = Experiment(load_spec("int2-a2"), model, "stdlib", settings)
    run = None
    if measured is not None:
        run = Run(
            id="0", state="finished", request={}, result={}, environment={}, progress=None, error=None, loss=measured,
            params=8272.0, tokens=640.0, seconds=1.0, worker=None, heartbeat=None, created=0.0, started=0.0, finished=1.0,
        )  # fmt: skip
    cell = Cell(experiment, {}, 8272, run, "planned" if run is None else "finished", True, tuple(factors))
    origin = Origin("fit 1", "decoupled", {}, "parameters", "runs")
    composition = Composition(Multiplier("int2-a2", 0.125, origin), ())
    prediction = Prediction(
        params=8272, tokens=640, loss=3.0, loss_interval=interval, effective_parameters=1034,
        effective_parameters_interval=None, extrapolation=Extrapolation(0.0, 0.0, 0.0), composition=composition,
        note="",
    )  # fmt: skip
    return HeldOut(cell, prediction, tuple(Factor(name, 0.5) for name in factors), rule)


NUMBERS = "int2-a2, N = 8,272, D = 640: predicted loss 3.0000 [2.9000, 3.1000], measured "


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (3.05, "3.0500 (+0.0500): inside the 95 % interval"),
        (2.9, "2.9000 (-0.1000): inside the 95 % interval"),
        (3.15, "3.1500 (+0.1500): MISSED the 95 % interval, by no more than the product rule's published error explains"),
        (2.85, "2.8500 (-0.1500): MISSED the 95 % interval, by no more than the product rule's published error explains"),
        (3.25, "3.2500 (+0.2500): MISSED the 95 % interval, by more than the product rule's published error explains"),
    ],
)  # fmt: skip
def test_a_miss_is_called_a_miss(measured: float, words: str) -> None:
    assert verdict(held_out(measured)) == NUMBERS + words


def test_a_miss_without_a_product_has_no_excuse() -> None:
    assert verdict(held_out(3.25, rule=None, factors=["int2-a2"])).endswith("MISSED the 95 % interval")


def test_without_interval_or_measurement_nothing_is_claimed() -> None:
    without = verdict(held_out(3.25, interval=None))
    assert without.endswith(
        "predicted loss 3.0000, measured 3.2500 (+0.2500): the fit has no interval to judge by"
    )
    unmeasured = verdict(held_out(None))
    assert unmeasured == (
        "int2-a2 at N = 8,272, D = 640: rho = int2 0.500 x a2 0.500 = 0.125, so loss 3.0000 [2.9000, 3.1000]; not measured"
    )


def test_the_report_is_told_the_same() -> None:
    row = prediction_row(held_out(3.25))
    assert (row.predicted, row.interval, row.measured, row.hit) == (3.0, (2.9, 3.1), 3.25, False)
    assert row.rule == "product of int2 and a2"
    assert prediction_row(held_out(3.0, factors=["int2"])).rule == "int2"
