"""Sweeps: only what is missing is run, each run once, and killing changes no bit."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from rhoc.compiler.experiment import carry_out, perform
from rhoc.compiler.grid import load_grid
from rhoc.compiler.sweep import Cell, Plan, plan_sweep
from rhoc.compiler.sweep_run import Advanced, Ended, Hire, SweepEvent, run_sweep
from rhoc.compiler.sweep_table import seed_table
from rhoc.runtime.errors import RequestError
from rhoc.runtime.executors import Inline, Processes
from rhoc.runtime.store import RunStore

from .command_line import grid_text, process

FAILING = """
from rhoc.runtime.llama import llama

def sometimes(width=16):
    return llama(width=width)
"""


def planned(folder: Path, timed: bool = False, workers: int = 1, **changed: object) -> Plan:
    """The plan of a grid in `folder` against the store there."""
    (folder / "grid.yaml").write_text(grid_text(**changed))
    grid, beside = load_grid(folder / "grid.yaml")
    with RunStore(folder / "runs.db") as store:
        return plan_sweep(grid, beside, store, workers=workers, timed=timed)


def block(
    specs: object = "dense", tokens: object = 640, seeds: object = 0, width: object = 16, **more: object
) -> Any:
    """One entry of a grid."""
    return {"specs": specs, "sizes": {"width": width}, "tokens": tokens, "seeds": seeds, **more}


def carry(folder: Path, cells: Sequence[Cell]) -> None:
    """Train cells in this process."""
    with RunStore(folder / "runs.db") as store:
        for cell in cells:
            store.ensure(cell.request)
            carry_out(cell.experiment, str(folder / "runs.db"), cell.id, str(folder / "checkpoints"))


# Plans


def test_a_plan_states_what_is_missing_and_what_it_costs(tmp_path: Path) -> None:
    runs = [block(["dense", "int2"], [640, 1280]), block("dense", 640, seeds=[0, 1])]
    plan = planned(tmp_path, timed=True, runs=runs)
    document = plan.to_document()
    assert document["runs"] == document["missing"] == 5  # one of six is there twice
    assert document["tokens"] == 640 * 3 + 1280 * 2
    assert document["flops"] == 6 * plan.cells[0].params * document["tokens"]
    seconds = [cell["seconds"] for cell in document["cells"]]
    assert min(seconds) > 0
    assert document["seconds"] == pytest.approx(sum(seconds), abs=0.06)
    with RunStore(tmp_path / "runs.db") as store:
        assert store.runs() == []  # looking makes no runs

    carry(tmp_path, plan.cells[:2])
    after = planned(tmp_path, runs=runs).to_document()
    assert (after["done"], after["missing"], after["seconds"]) == (2, 3, None)
    assert after["tokens"] == document["tokens"] - sum(cell["tokens"] for cell in document["cells"][:2])


def test_a_plan_needs_no_store(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(grid_text())
    grid, beside = load_grid(tmp_path / "grid.yaml")
    plan = plan_sweep(grid, beside, None, workers=2, timed=False)
    assert [cell.state for cell in plan.cells] == ["planned"]
    with RunStore(tmp_path / "runs.db") as store:
        assert store.ensure(plan.cells[0].request).id == plan.cells[0].id


def test_the_longest_run_comes_first(tmp_path: Path) -> None:
    plan = planned(tmp_path, runs=[block("dense", [640, 2560, 1280])])
    assert [cell.tokens for cell in plan.missing] == [2560, 1280, 640]
    costs = {cell.id: 2.0 if cell.tokens == 640 else 1.0 for cell in plan.cells}
    assert replace(plan, seconds_each=costs).missing[0].tokens == 640


def test_states_of_cells(tmp_path: Path) -> None:
    runs = [block(seeds=list(range(5)))]
    cells = planned(tmp_path, runs=runs).cells
    carry(tmp_path, cells[:1])
    with RunStore(tmp_path / "runs.db") as store, RunStore(tmp_path / "runs.db") as dead:
        for cell in cells[1:4]:
            store.ensure(cell.request)
        assert store.claim(cells[1].id)
        assert store.claim(cells[2].id)
        store.fail(cells[2].id, "it broke")
        dead._worker = dead._worker.replace(f":{os.getpid()}:", ":4194304:")  # beyond the largest process id
        assert dead.claim(cells[3].id)
        found = planned(tmp_path, runs=runs)
    assert [cell.state for cell in found.cells] == ["finished", "running", "failed", "interrupted", "planned"]
    document = found.to_document()
    assert [document[state] for state in ("done", "running", "failed", "interrupted", "missing")] == [
        1,
        1,
        1,
        1,
        4,
    ]
    assert [cell["error"] for cell in document["cells"]] == [None, None, "it broke", None, None]


def test_a_label_tells_neighbours_apart(tmp_path: Path) -> None:
    runs = [block(["dense", "int2"], [640, 1280], [0, 1]), block(width=32)]
    cells = planned(tmp_path, runs=runs).cells
    assert len({cell.label for cell in cells}) == len(cells) == 9
    assert cells[0].label == f"dense width=16 N={cells[0].params:,} D=640 seed 0"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": "rhoc.runtime.llama:lama"}, "there is no factory 'lama'"),
        ({"data": "nowhere"}, "there is no such corpus"),
        ({"runs": [block(width=17)]}, "not a positive multiple of 16"),
        ({"held_out": [block("dense")]}, "both in the sweep and held out"),
        ({"runs": [block("dense"), block("other.yaml")]}, "two different specs are called 'dense'"),
    ],
)
def test_what_cannot_be_planned_is_refused(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    (tmp_path / "other.yaml").write_text(
        "version: 1\nname: dense\nrules: [{targets: Linear, weights: int4}]\n"
    )
    with pytest.raises(RequestError, match=words):
        planned(tmp_path, **changed)


def test_a_spec_that_does_not_fit_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    rule = {"kind": "sparsify", "sparsity_structure": "3:7"}
    spec = {"version": 1, "rules": [{"targets": "Linear", "ignore": "lm_head", "weights": rule}]}
    (tmp_path / "sevenths.yaml").write_text(json.dumps(spec))
    with pytest.raises(RequestError, match="3:7"):
        planned(tmp_path, timed=True, runs=[block("sevenths.yaml")])


# Tables


def test_seeds_are_summed_up_and_settings_kept_apart(tmp_path: Path) -> None:
    runs = [
        block(["dense", "int2"], seeds=[0, 1, 2], training={"learning_rate": 0.01}),
        block("dense", seeds=[0], training={"learning_rate": 0.02}),
    ]
    plan = planned(tmp_path, runs=runs)
    carry(tmp_path, [cell for cell in plan.cells if cell.experiment.settings.seed < 2])
    rows = seed_table(planned(tmp_path, runs=runs))
    assert [(row.spec, row.settings["learning_rate"], len(row.losses), row.missing) for row in rows] == [
        ("dense", 0.01, 2, (2,)), ("int2", 0.01, 2, (2,)), ("dense", 0.02, 1, ()),
    ]  # fmt: skip
    assert rows[2].deviation is None
    assert rows[2].mean == rows[2].losses[0]
    low, high = sorted(rows[0].losses.values())
    assert rows[0].mean == pytest.approx((low + high) / 2)
    assert rows[0].deviation == pytest.approx((high - low) / 2**0.5)


# Running, in worker processes


def swept(
    folder: Path, plan: Plan, cells: Sequence[Cell] | None = None, hire: Hire = Processes
) -> tuple[list[Ended], list[SweepEvent]]:
    """Run a plan and say what failed and what was heard."""
    heard: list[SweepEvent] = []
    todo = plan.missing if cells is None else cells
    failures = run_sweep(plan, todo, str(folder / "runs.db"), folder / "runs.checkpoints", heard.append, hire)
    return failures, heard


def test_only_what_is_missing_is_run_and_failures_are_tried_again(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(FAILING)
    runs = [block(seeds=[0, 1])]
    first = planned(tmp_path, model="model.py:sometimes", runs=runs)
    carry(tmp_path, first.cells[:1])
    plan = planned(tmp_path, model="model.py:sometimes", runs=runs)
    assert [cell.id for cell in plan.missing] == [first.cells[1].id]
    (tmp_path / "model.py").write_text("raise RuntimeError('out of luck')\n")

    failures, heard = swept(tmp_path, plan)  # in worker processes

    assert [failure.cell.id for failure in failures] == [first.cells[1].id]
    assert "importing it raised RuntimeError: out of luck; look at model.py:1" in failures[0].error
    assert [type(event) for event in heard] == [Ended]
    (tmp_path / "model.py").write_text(FAILING)
    failed = planned(tmp_path, model="model.py:sometimes", runs=runs)
    assert [cell.state for cell in failed.cells] == ["finished", "failed"]
    assert failed.to_document()["cells"][1]["error"] == failures[0].error
    carry(tmp_path, failed.missing)
    after = planned(tmp_path, model="model.py:sometimes", runs=runs)
    assert (after.missing, after.to_document()["failed"]) == ((), 0)
    assert swept(tmp_path, after) == ([], [])


def test_runs_of_another_process_are_waited_for_and_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rhoc.compiler.sweep_run._LOOK_SECONDS", 0.05)
    plan = planned(tmp_path, runs=[block("int2", 1_280), block("dense")])
    lost, done = plan.cells
    with RunStore(tmp_path / "runs.db") as other:
        for cell in plan.cells:
            other.ensure(cell.request)
            assert other.claim(cell.id)

        def meanwhile(event: SweepEvent) -> None:
            heard.append(event)
            if len(heard) == 1:  # they are waited for: finish one, let go of the other
                other.finish(done.id, {"loss": 1.25, "params": 1.0, "tokens": 1.0})
                other.release(lost.id)

        heard: list[SweepEvent] = []
        failures = run_sweep(
            plan, plan.missing, str(tmp_path / "runs.db"), tmp_path / "checkpoints", meanwhile
        )
    ends = {event.cell.id: event for event in heard if isinstance(event, Ended)}
    assert failures == []
    assert (ends[done.id].loss, ends[done.id].here) == (1.25, False)
    assert (ends[lost.id].loss, ends[lost.id].here) == (perform(lost.experiment)[0].loss, True)
    assert [event.left for event in heard if isinstance(event, Ended)] == [1, 0]
    shares = [event.share for event in heard if isinstance(event, Advanced)]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 1  # it was heard of while it went on
    assert not (tmp_path / "checkpoints").exists()


def test_a_killed_sweep_goes_on_in_two_processes_at_once_and_ends_on_the_same_bits(tmp_path: Path) -> None:
    grid: dict[str, object] = {"runs": [block("int2", [12_800, 3_200])], "checkpoint_seconds": 0.05}
    long, short = planned(tmp_path, **grid).cells
    call = ("sweep", "run", "grid.yaml", "--store", "runs.db", "--workers", 1)

    with process(*call, folder=tmp_path) as first:
        saved = wait_for_checkpoint(tmp_path)
        os.killpg(first.pid, signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    wait_until(tmp_path, lambda store: all(map(store.is_abandoned, store.runs("running"))))
    killed = planned(tmp_path, **grid)
    assert saved.parent.name == long.id
    assert [cell.state for cell in killed.cells] == ["interrupted", "planned"]
    done = steps_done(saved)
    assert done > 0

    with process(*call, folder=tmp_path) as again:
        wait_until(tmp_path, lambda store: not store.is_abandoned(store.get(long.id)))
        failures, heard = swept(tmp_path, killed, [short, long], hire=lambda _, hear: Inline(hear))
        said = again.communicate()[1]

    assert (failures, again.returncode) == ([], 0), said
    here = {event.cell.id: event.here for event in heard if isinstance(event, Ended)}
    assert here == {short.id: True, long.id: False}  # each was trained once, by one of the two
    there = [line for line in said.splitlines() if "/2  loss " in line]
    assert ["(by another process)" in line for line in there] == [False, True]
    with RunStore(tmp_path / "runs.db") as store:
        losses = {run.id: run.loss for run in store.runs("finished")}
        progress = store.get(long.id).progress
    assert progress is not None
    assert progress["resumed"] >= done
    assert losses == {cell.id: perform(cell.experiment)[0].loss for cell in (long, short)}


def wait_until(folder: Path, holds: Callable[[RunStore], bool]) -> None:
    """Until something holds of the store in a folder, for half a minute at most."""
    with RunStore(folder / "runs.db") as store:
        for _ in range(3000):
            if holds(store):
                return
            time.sleep(0.01)
    pytest.fail("it did not come about within half a minute")


def wait_for_checkpoint(folder: Path) -> Path:
    """The first whole checkpoint of a sweep that was just begun."""
    for _ in range(6000):
        found = list((folder / "runs.checkpoints").glob("*/checkpoint.safetensors"))
        if found:
            return found[0]
        time.sleep(0.01)
    pytest.fail("no checkpoint within a minute")


def steps_done(checkpoint: Path) -> int:
    with safe_open(checkpoint, framework="pt") as file:
        return int(json.loads(file.metadata()["record"])["step"])
