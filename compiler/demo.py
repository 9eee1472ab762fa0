"""The main job on this machine: formats in YAML, a sweep, a law, a prediction, and the run that tests it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from .. import specs
from ..runtime.errors import RequestError, WorkError
from ..runtime.executors import Processes
from ..runtime.laws.result import Fit
from ..runtime.store import RunStore
from .compile import compile
from .duration import duration
from .grid import load_grid, spec_path
from .report import write_report
from .spec import Spec
from .study import HeldOut, fit_plan, format_row, predict_held_out, report_data
from .sweep import Cell, Plan, plan_sweep
from .sweep_run import Hire, SweepListener, run_sweep

_SCHEMA = "rhoc.schema.json"
_SCHEMA_LINE = f"# yaml-language-server: $schema={_SCHEMA}\n"

Headings = tuple[str | tuple[str, int], ...]
"""Headings of a table; a number beside one is the decimals of the column under it."""


@dataclass(frozen=True)
class Voice:
    """How the demo speaks: lines, tables, and who listens while cells of a plan are trained."""

    say: Callable[[str], None]
    show: Callable[[Headings, list[tuple[object, ...]]], None]
    progress: Callable[[Plan, Sequence[Cell]], AbstractContextManager[SweepListener]]


@dataclass(frozen=True)
class Outcome:
    """What the demo came to. `trained` is how many runs were not in the folder's store already."""

    fit: Fit
    held_out: tuple[HeldOut, ...]
    report: Path
    trained: int
    seconds: float


def run_demo(
    folder: Path, *, workers: int, voice: Voice, grid: str = "demo", hire: Hire = Processes
) -> Outcome:
    """Carry the demo out in a folder. Runs that the folder's store has are not trained again.

    Raises:
        RequestError: the folder cannot be made, or what was changed in it is wrong.
        WorkError: a run failed; running again goes on from what is finished.
    """
    started = time.monotonic()
    copied = lay_out(folder, grid)
    loaded, beside = load_grid(copied)
    place = str(folder / "runs.db")
    with RunStore(place) as store:
        stage = _Stages(folder, place, store, beside, voice, hire)
        voice.say(f"1. Formats, each a few lines of YAML; those of this sweep are in {folder}/formats")
        plan = plan_sweep(loaded, beside, store, workers=workers)
        todo = len(plan.missing)
        _show_formats(plan, voice)
        voice.say("2. Compile the language model with each")
        _show_compiled(plan, voice)
        voice.say("3. Sweep: train sizes and formats on real text")
        plan = stage.train(plan, held_out=False)
        voice.say("4. Fit a law to the losses")
        fitted = fit_plan(plan)
        _show_fit(fitted, voice)
        voice.say("5. Predict what was not in the sweep, then train it")
        predicted = predict_held_out(plan, fitted)
        for held in predicted:
            voice.say("   " + told(held))
        plan = stage.train(plan, held_out=True)
    cells = {cell.id: cell for cell in plan.cells}
    held_out = tuple(replace(held, cell=cells[held.cell.id]) for held in predicted)
    report = folder / "report.html"
    commands = (
        "rhoc demo",
        f"rhoc sweep run {copied} --store {place}",
        f"rhoc report {copied} --store {place} --out {report}",
        f"rhoc runs export runs.csv --store {place}",
    )
    write_report(report_data(plan, fitted, held_out, commands, _notes(held_out)), report)
    return Outcome(fitted, held_out, report, todo, time.monotonic() - started)


def lay_out(folder: Path, grid: str) -> Path:
    """Copy a shipped grid and its formats into a folder, where the user may change them; the grid's path.

    Files that are there already are kept, so that a changed grid or format is the one that runs.
    Raises RequestError when the folder cannot be made or written to.
    """
    (source,) = (path for path in specs.sweeps() if path.stem == grid)
    loaded, beside = load_grid(source)
    names = {name for block in (*loaded.runs, *loaded.held_out) for name in block.specs}
    texts = {folder / source.name: source.read_text(encoding="utf-8")}
    for path in (spec_path(name, beside) for name in sorted(names)):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        own = [_SCHEMA_LINE if "$schema=" in line else line for line in lines]
        texts[folder / "formats" / path.name] = "".join(own)
    texts[folder / "formats" / _SCHEMA] = (beside.parent / _SCHEMA).read_text(encoding="utf-8")
    try:
        (folder / "formats").mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            if not path.exists():
                path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(
            f"the demo cannot be laid out here: {error.strerror}",
            where=str(folder),
            advice="give another --folder",
        ) from error
    return folder / source.name


def verdict(held: HeldOut) -> str:
    """Prediction and measurement of a held-back run in one line that says whether they agree."""
    measured, interval = held.measured, held.prediction.loss_interval
    if measured is None:
        return f"{told(held)}; not measured"
    off = measured - held.prediction.loss
    ends = "" if interval is None else f" [{interval[0]:.4f}, {interval[1]:.4f}]"
    numbers = (
        f"{held.cell.experiment.spec.name}, N = {held.cell.params:,}, D = {held.prediction.tokens:,.0f}: "
        f"predicted loss {held.prediction.loss:.4f}{ends}, measured {measured:.4f} ({off:+.4f})"
    )
    if held.hit is None:
        return f"{numbers}: the fit has no interval to judge by"
    if held.hit:
        return f"{numbers}: inside the 95 % interval"
    missed = f"{numbers}: MISSED the 95 % interval"
    if held.rule_interval is None:
        return missed
    by = "no more" if held.within_rule else "more"
    return f"{missed}, by {by} than the product rule's published error explains"


def told(held: HeldOut) -> str:
    """What was predicted of a held-back run, and from which multipliers."""
    prediction = held.prediction
    rho = prediction.composition.multiplier.value
    product = " x ".join(f"{f.representation} {f.rho:.3f}" for f in held.factors)
    composed = f"{product} = {rho:.3f}" if len(held.factors) > 1 else f"{rho:.3f}"
    interval = prediction.loss_interval
    ends = "" if interval is None else f" [{interval[0]:.4f}, {interval[1]:.4f}]"
    return (
        f"{held.cell.experiment.spec.name} at N = {held.cell.params:,}, D = {prediction.tokens:,.0f}: "
        f"rho = {composed}, so loss {prediction.loss:.4f}{ends}"
    )


@dataclass(frozen=True)
class _Stages:
    """The trainings of a demo in one folder."""

    folder: Path
    place: str
    store: RunStore
    beside: Path
    voice: Voice
    hire: Hire

    def train(self, plan: Plan, *, held_out: bool) -> Plan:
        """Train what is missing of one kind; the plan as it then is. Raises WorkError when a run failed."""
        missing = tuple(cell for cell in plan.missing if cell.held_out == held_out)
        if not missing:
            self.voice.say("   every run is finished already")
            return plan
        count = "1 run" if len(missing) == 1 else f"{len(missing)} runs"
        workers = min(plan.workers, len(missing))
        side = "1 core" if workers == 1 else f"{workers} cores"
        self.voice.say(f"   {count} to train, about {duration(plan.seconds(missing) or 0.0)} on {side}")
        with self.voice.progress(plan, missing) as listener:
            failures = run_sweep(plan, missing, self.place, self.folder / "checkpoints", listener, self.hire)
        if failures:
            count = "a run" if len(failures) == 1 else f"{len(failures)} runs"
            raise WorkError(
                f"{count} failed: {failures[0].error}", where=failures[0].cell.label,
                advice="run again when it is mended; finished runs are kept",
            )  # fmt: skip
        again = plan_sweep(plan.grid, self.beside, self.store, workers=plan.workers, timed=False)
        return replace(again, seconds_each=plan.seconds_each)


def _specs(plan: Plan) -> list[Spec]:
    return list({cell.experiment.spec.name: cell.experiment.spec for cell in plan.cells}.values())


def _show_formats(plan: Plan, voice: Voice) -> None:
    rows = [format_row(spec) for spec in _specs(plan)]
    voice.show(
        ("format", ("bits/weight", 4), "GMSE of weights", "GMSE of inputs", "what it is"),
        [(r.name, r.bits_per_weight, r.gmse, r.gmse_input, r.summary) for r in rows],
    )


def _show_compiled(plan: Plan, voice: Voice) -> None:
    largest = max(plan.cells, key=lambda cell: cell.params).experiment.model
    rows: list[tuple[object, ...]] = []
    for spec in _specs(plan):
        explained = compile(largest.build(), spec).explain()
        changed = [
            p
            for p in explained.parameters
            if p.representation != "dense" or p.input_representation != "dense"
        ]
        smaller = explained.dense_bytes / max(explained.total_bytes, 1)
        rows.append((spec.name, len(changed), explained.total_bytes, smaller))
    voice.show(("format", "matrices represented", "bytes", ("times smaller", 2)), rows)


def _show_fit(fitted: Fit, voice: Voice) -> None:
    values = ", ".join(f"{name} = {value:.4g}" for name, value in fitted.values.items())
    voice.say(f"   {fitted.law.formula}")
    voice.say(f"   {values}; rms error of log loss {fitted.rms_log_error:.4f} on {fitted.num_runs} runs")
    rows: list[tuple[object, ...]] = [
        (name, e.value, "" if e.interval is None else f"{e.interval[0]:.3f} to {e.interval[1]:.3f}")
        for name, e in fitted.rho.items()
    ]
    voice.show(("format", ("rho", 3), "95 % interval"), rows)
    voice.say(f"   {fitted.outcome.value}: {fitted.message}")


def _notes(held_out: tuple[HeldOut, ...]) -> tuple[str, ...]:
    off = max((held.prediction.composition.published_residual for held in held_out), default=0.0)
    notes = ["The interval holds bootstrap draws of the fit and its residual noise."]
    if off:
        notes[0] += (
            f" The product rule itself was off by up to {off} in rho in the published tables"
            " (2506.01863 v1, Fig. 2b, 6, 7, 9)."
        )
    return (*notes, *(verdict(held) for held in held_out))
