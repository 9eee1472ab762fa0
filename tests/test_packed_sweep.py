"""Sweeps of a task of one's own whose runs start from dense models and whose packed models are measured."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rhoc
from rhoc.compiler.experiment import carry_out, perform
from rhoc.compiler.grid import load_grid, validate_grid
from rhoc.compiler.packed_quality import quality
from rhoc.compiler.packed_size import packed_size
from rhoc.compiler.packed_table import PackedRow, Seeds, packed_table, stored_points
from rhoc.compiler.plots.data import StoredPoint
from rhoc.compiler.plots.stored import stored_data
from rhoc.compiler.report import ReportData, answer, render_report, tables
from rhoc.compiler.sweep import Cell, Plan, plan_sweep
from rhoc.compiler.sweep_run import run_sweep
from rhoc.runtime.errors import RequestError
from rhoc.runtime.executors import Inline, OnReport
from rhoc.runtime.llama import llama
from rhoc.runtime.packed import Packed
from rhoc.runtime.store import RunStore

from . import digits_runs
from .command_line import CommandLine
from .test_tasks import FILE
from .tiny_task import dense, task

SWEEPS = digits_runs.ROOT / "tests" / "bench" / "sweeps"
METRICS = """
def metrics(model, batch): return {"accuracy": (model(batch[0]).argmax(-1) == batch[1]).double().mean()}
def inputs(batch): return (batch[0],)
"""
TRAINING = {"learning_rate": 0.01, "weight_decay": 0}
ROWS = {"kind": "quantize", "num_bits": 2, "strategy": "channel"}


def grid_of(**changed: object) -> str:
    """A grid of four runs as JSON: dense and int2 from a dense start, int2 from scratch, and a pass."""
    runs = [
        {"specs": ["dense", "rows.yaml", "passed.yaml"], "tokens": 60},
        {"specs": "rows.yaml", "tokens": 180, "scratch": True},
    ]
    grid: dict[str, object] = {
        "version": 1,
        "name": "corners",
        "model": "corners.py:net",
        "task": "corners.py",
    }
    grid |= {"training": TRAINING, "start": {"tokens": 120, "training": {"learning_rate": 0.02}}}
    return json.dumps(grid | {"packed": True, "runs": runs} | changed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid with its files, all of whose runs are finished."""
    path = tmp_path_factory.mktemp("packed")
    (path / "corners.py").write_text(FILE + METRICS)
    rule = {"targets": "Linear", "weights": ROWS}
    (path / "rows.yaml").write_text(json.dumps({"version": 1, "name": "rows", "rules": [rule]}))
    passed = {"version": 1, "name": "passed", "rules": [rule], "passes": ["correct_bias"]}
    (path / "passed.yaml").write_text(json.dumps(passed))
    (path / "grid.yaml").write_text(grid_of())
    plan = planned(path)
    with RunStore(path / "runs.db"):
        failures = run_sweep(
            plan, plan.missing, str(path / "runs.db"), path / "runs.checkpoints", lambda event: None, inline
        )
    assert not failures
    return path


def inline(workers: int, hear: OnReport) -> Inline:
    """An executor in this process."""
    return Inline(hear)


def planned(folder: Path) -> Plan:
    grid, beside = load_grid(folder / "grid.yaml")
    with RunStore(folder / "runs.db") as store:
        return plan_sweep(grid, beside, store, workers=1, timed=False)


def result_of(cell: Cell) -> dict[str, Any]:
    return dict(cell.finished.result or {})


def cell_of(folder: Path, name: str, scratch: bool = False) -> Cell:
    (found,) = [c for c in planned(folder).cells if (c.experiment.spec.name, c.scratch) == (name, scratch)]
    return found


def test_runs_start_where_the_dense_model_ended(folder: Path) -> None:
    cell = cell_of(folder, "dense")
    assert cell.experiment.start is not None
    before = result_of(cell)["packed_start"]["quality"]["loss"]
    started, model = perform(cell.experiment.start)
    assert before == pytest.approx(started.loss, rel=1e-6)
    after, found = result_of(cell), perform(cell.experiment)[1]
    assert after["packed"]["quality"]["loss"] == pytest.approx(after["loss"], rel=1e-6)
    moved = [(found.state_dict()[name] - value).abs().max() for name, value in model.state_dict().items()]
    assert 0 < float(max(moved)) < 0.2  # five more steps from there, not from the seed


def test_what_is_measured_is_the_packed_model(folder: Path) -> None:
    cell = cell_of(folder, "rows")
    assert cell.experiment.start is not None
    _, model = perform(cell.experiment.start)
    built = cell.experiment.model.build()
    built.load_state_dict(model.state_dict())
    by_hand = rhoc.compile(built, cell.experiment.spec).packed()
    assert result_of(cell)["packed_start"]["quality"] == quality(by_hand, cell.experiment.training_task())
    trained = result_of(cell)
    assert trained["packed"]["quality"]["loss"] == pytest.approx(trained["loss"], rel=1e-5)
    assert 0 <= trained["packed"]["quality"]["accuracy"] <= 1


def test_a_start_that_is_kept_and_one_trained_again_give_the_same_bits(folder: Path, tmp_path: Path) -> None:
    assert not (folder / "runs.checkpoints").exists()  # a finished sweep leaves nothing but its records
    cell, store = cell_of(folder, "rows"), str(tmp_path / "runs.db")
    losses = []
    for attempt in (1, 2):  # the second finds the weights of the first
        with RunStore(store) as opened:
            opened.ensure(cell.request)
        run, here = carry_out(cell.experiment, store, cell.id, str(tmp_path / "checkpoints"))
        assert here
        losses.append(run.loss)
        Path(store).unlink()
        assert (tmp_path / "checkpoints" / "starts").exists(), attempt
    assert losses == [cell.loss, cell.loss]


def test_passes_look_at_the_batches_of_the_task(folder: Path) -> None:
    cell = cell_of(folder, "passed")
    before = result_of(cell)["packed_start"]["quality"]["loss"]
    plain = result_of(cell_of(folder, "rows"))["packed_start"]["quality"]["loss"]
    assert (
        before != plain
    )  # biases are corrected with what the task shows; the model has no example of its own


def test_what_a_run_starts_from_is_part_of_what_it_is(folder: Path) -> None:
    cell = cell_of(folder, "rows")
    start = cell.experiment.start
    assert start is not None
    longer = replace(start, settings=replace(start.settings, tokens=240))
    requests = [replace(cell.experiment, start=each).request() for each in (start, longer, None)]
    assert len({json.dumps(request, sort_keys=True) for request in requests}) == 3
    unmeasured = replace(cell.experiment, start=None, packed=False).request()
    assert "start" not in unmeasured
    assert "packed" not in unmeasured


def test_bytes_are_those_of_the_stored_tensors() -> None:
    model = rhoc.compile(dense(), {"version": 1, "rules": [{"targets": "Linear", "weights": ROWS}]}).packed()
    size = packed_size(model)
    codes, scales, biases = (8 * 16 + 16 * 4) * 2 // 8, (16 + 4) * 4, (16 + 4) * 4
    assert (size.weights, size.field_bytes) == (8 * 16 + 16 * 4, codes + scales)
    assert size.total_bytes == codes + scales + biases
    assert size.coded_bytes <= size.field_bytes
    assert size.to_document()["bits"] == 8 * (codes + scales) / size.weights
    plain = packed_size(rhoc.compile(dense(), "dense").packed())
    assert plain.to_document()["bits"] is None
    assert plain.total_bytes == 4 * sum(parameter.numel() for parameter in dense().parameters())


def test_coded_bytes_are_near_the_entropy_of_the_codes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 128, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(128, 512) ** 3)  # most codes are near zero
    rule = {"targets": "Linear", "weights": {"kind": "quantize", "num_bits": 4, "strategy": "tensor"}}
    packed = rhoc.compile(model, {"version": 1, "rules": [rule]}).packed()
    (weight,) = [module for module in packed.modules() if isinstance(module, Packed)]
    _, counts = np.unique(weight.decode().numpy(), return_counts=True)
    share = counts / counts.sum()
    entropy = float(-(share * np.log2(share)).sum()) * weight.shape.numel() / 8
    assert entropy < packed_size(packed).coded_bytes < 1.02 * entropy + 64
    assert packed_size(packed).coded_bytes < 0.6 * packed_size(packed).field_bytes


def test_what_weights_share_is_counted_once() -> None:
    factors = {"kind": "product", "keep_params": 0.5, "scope": "siblings"}
    model = llama(width=16)
    rule = {"targets": ["re:.*(q_proj|k_proj)"], "weights": factors}
    packed = rhoc.compile(model, {"version": 1, "rules": [rule]}).packed()
    size = packed_size(packed)
    apart = sum(module.nbytes for module in packed.modules() if isinstance(module, Packed))
    assert size.field_bytes < apart
    kept = {(t.data_ptr(), t.nbytes) for t in packed.state_dict().values() if t.numel()}
    assert size.total_bytes == sum(nbytes for _, nbytes in kept)


def test_the_table_has_a_row_for_each_spec_and_way_of_training(folder: Path) -> None:
    rows = packed_table(planned(folder))
    assert [(row.spec, row.scratch) for row in rows] == [
        *(("passed", False), ("rows", False), ("rows", True)),
        ("dense", False),
    ]
    start, scratch, plain = rows[1], rows[2], rows[3]
    assert plain.bits == 32
    assert 2 < start.bits < 32
    assert list(start.before) == list(start.after) == ["loss", "accuracy"]
    assert not scratch.before
    assert start.after["loss"].mean == result_of(cell_of(folder, "rows"))["packed"]["quality"]["loss"]
    assert start.after["loss"].deviation is None  # one seed
    hows = [(point.name, point.how) for point in stored_points(rows)]
    assert (
        hows.count(("rows", "as it is")) == hows.count(("rows", "trained")) == hows.count(("rows", "scratch"))
    )


def test_mean_and_deviation_over_seeds(tmp_path: Path, folder: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    runs = [{"specs": "dense", "tokens": 60, "seeds": [0, 1, 2]}]
    (tmp_path / "grid.yaml").write_text(grid_of(runs=runs))
    plan = planned(tmp_path)
    assert len(plan.missing) == 2
    run_sweep(plan, plan.missing, str(tmp_path / "runs.db"), tmp_path / "c", lambda event: None, inline)
    (row,) = packed_table(planned(tmp_path))
    losses = [result_of(cell)["packed_start"]["quality"]["loss"] for cell in planned(tmp_path).cells]
    assert row.before["loss"].mean == pytest.approx(np.mean(losses))
    assert row.before["loss"].deviation == pytest.approx(np.std(losses, ddof=1))


def points() -> tuple[StoredPoint, ...]:
    return (
        StoredPoint("dense", 32, 1.0, 0.1, "trained"),
        StoredPoint("a", 4, 1.1, 0.1, "as it is"),
        StoredPoint("b", 4, 1.2, None, "as it is"),
        StoredPoint("c", 2, 1.5, None, "as it is"),
        StoredPoint("d", 2, 1.05, 0.2, "trained"),
        StoredPoint("e", 1, 9.0, None, "trained"),
    )


def test_the_figure_names_what_nothing_beats() -> None:
    data = stored_data(points())
    assert data is not None
    assert [point.name for point in data.best] == ["c", "a", "d"]
    assert (data.dense, data.hidden) == (1.0, 1)
    assert stored_data(points()[:1]) is None


def test_the_page_shows_what_was_measured() -> None:
    data = ReportData(question="Which?", stored=points())
    page = render_report(data)
    assert "Quality against stored bits" in page
    assert 'id="stored' in page
    (table,) = [table for table in tables(data) if table.title == "Packed models"]
    assert [row[0] for row in table.rows] == ["e", "c", "d", "a", "b", "dense"]
    assert answer(data).startswith(
        "The least loss of a packed model: within 32 bits d, trained (1.050 in 2.00); within 1 bit e, "
    )
    assert "Quality against stored bits" not in render_report(ReportData(question="Which?"))


def test_table_and_figure_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = CommandLine(capsys, folder)
    said = command(
        "sweep", "table", folder / "grid.yaml", "--store", folder / "runs.db", "--figure", folder / "f.svg"
    )
    assert said.code == 0
    assert "rows (from scratch)" in said.out
    assert "accuracy as it is" in said.out
    assert (folder / "f.svg").read_text().startswith("<?xml")
    rows = command("sweep", "table", folder / "grid.yaml", "--store", folder / "runs.db", "--json").document
    assert {"spec", "scratch", "bits", "bits_before", "coded_bits", "bytes", "before", "after"} <= set(
        rows[0]
    )
    page = folder / "r.html"
    said = command("report", folder / "grid.yaml", "--store", folder / "runs.db", "--out", page)
    assert said.code == 0
    assert "Quality against stored bits" in page.read_text()


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"training": {"batch_size": 2}}, "a task decides that itself"),
        ({"task": "nowhere.py"}, "there is no such file"),
        ({"start": None}, "every run starts from random weights"),
        ({"start": {"tokens": 0}}, "greater than 0"),
        ({"start": {"tokens": 9, "training": {"clip": -1}}}, "clip must be positive"),
    ],
)
def test_grids_that_make_no_sense(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    (tmp_path / "corners.py").write_text(FILE)
    (tmp_path / "rows.yaml").write_text(
        json.dumps({"version": 1, "rules": [{"targets": "Linear", "weights": ROWS}]})
    )
    (tmp_path / "passed.yaml").write_text((tmp_path / "rows.yaml").read_text())
    (tmp_path / "grid.yaml").write_text(grid_of(**changed))
    problems = validate_grid(tmp_path / "grid.yaml")
    assert [words in problem.message for problem in problems] == [True], problems
    assert problems[0].line == 1


def test_functions_that_answer_something_else() -> None:
    for name, what in (("metrics", "float"), ("inputs", "list")):
        found = task(**{name: lambda *given: 0.5 if len(given) == 2 else [given]})
        with pytest.raises(RequestError, match=f"{name}.* gave {what}"):
            found.metrics(nn.Identity(), None) if name == "metrics" else found.inputs(None)
    assert task().metrics(nn.Identity(), None) == {}
    assert task().inputs(None) is None


def test_metrics_are_means_over_examples() -> None:
    def first(model: nn.Module, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        return {"size": torch.tensor(float(len(batch[0])))}

    found = quality(dense().eval(), task(metrics=first))
    assert found["size"] == pytest.approx((20 * 20 + 10 * 10) / 30)


def test_a_figure_needs_packed_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = CommandLine(capsys, tmp_path)
    (tmp_path / "corners.py").write_text(FILE)
    runs = [{"specs": "dense", "tokens": 60}]
    (tmp_path / "grid.yaml").write_text(grid_of(runs=runs, packed=False))
    RunStore(tmp_path / "runs.db").close()
    said = command(
        *("sweep", "table", tmp_path / "grid.yaml", "--store", tmp_path / "runs.db"),
        *("--figure", tmp_path / "f.svg"),
    )
    assert said.code == 2
    assert "packed models were not measured" in said.err


@pytest.mark.parametrize("grid", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_grids_of_the_bench_are_in_order(grid: Path) -> None:
    assert validate_grid(grid) == []


@pytest.mark.parametrize("format_", sorted((SWEEPS / "formats").glob("*.yaml")), ids=lambda path: path.stem)
def test_formats_of_the_bench_take_a_model_of_digits(format_: Path) -> None:
    model = digits_runs.model("mlp", 0)
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    compiled = rhoc.compile(model, format_, (images,))
    with torch.no_grad():
        gap = compiled.packed()(images) - compiled.trainable().eval()(images)
    assert float(gap.abs().max()) < 1e-5
    assert 0 < packed_size(compiled.packed()).to_document()["bits"] <= 9  # type: ignore[operator]


def test_rows_name_the_optimiser_that_is_not_the_others() -> None:
    row = PackedRow("a", "", {"optimizer": {"name": "sgd"}}, False, 1, 1.0, 1.0, 1.0, 1.0, None, {}, {})
    assert row.name == "a, sgd"


def test_a_format_may_store_other_bits_once_it_is_trained() -> None:
    loss = {"loss": Seeds((2.0, 4.0))}
    row = PackedRow("a", "", {}, False, 1, 1.5, 1.0, 9.0, 8.0, 4.0, loss, loss)
    assert [(point.how, point.bits, point.loss) for point in stored_points([row])] == [
        ("as it is", 4.0, 3.0),
        ("trained", 1.5, 3.0),
    ]
