"""The bench on CUDA without a device: what is measured next, processes that die, clocks, bars, tiny sizes interpreted."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rhoc.compiler.spec import load_spec
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Sparsify

BENCH = Path(__file__).parent / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[Callable[[str], Any]]:
    """The modules of the bench by name. They are scripts, which find each other in their folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module


# What is measured next.


def test_rows_are_kept_and_gone_on_with(bench: Callable[[str], Any], tmp_path: Path) -> None:
    results, path = bench("gpu_results").Results, tmp_path / "table" / "gpu.json"
    first = results.at(path, "one", {"gpu": "none"})
    first.measured_at({"copy": 4e12})
    first.add("a|l|1", {"us": 1.0})
    first.add("a|l|4", {"failure": "it failed"})
    assert [each.name for each in path.parent.iterdir()] == ["gpu.json"]
    units = [["b|l|1"], ["a|l|1", "a|l|4", "a|l|16"]]
    again = results.at(path, "one", {"gpu": "none"})
    assert again.missing(units) == [["b|l|1"], ["a|l|16"]]
    assert again.rows["a|l|1"]["rates"] == 0
    assert again.rates == [{"copy": 4e12}]
    newer = results.at(path, "two", {"gpu": "none"})
    newer.add("b|l|1", {"us": 2.0})
    assert newer.missing(units) == [["a|l|16"], ["a|l|1", "a|l|4"]]
    assert {item: row["code"] for item, row in json.loads(path.read_text())["rows"].items()} == {
        "a|l|1": "one", "a|l|4": "one", "b|l|1": "two",
    }  # fmt: skip


def test_a_write_that_is_cut_off_leaves_the_table(
    bench: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, path = bench("gpu_results"), tmp_path / "gpu.json"
    results = module.Results.at(path, "one", {})
    results.add("a|l|1", {"us": 1.0})
    before = path.read_text()

    def full(self: Path, text: str) -> int:
        with self.open("w") as stream:
            stream.write(text[:20])
        raise OSError("no space is left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space"):
        results.add("a|l|4", {"us": 1.0})
    assert path.read_text() == before


def test_the_code_version_follows_kernels(
    bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = bench("gpu_results")
    known = module.code_version()
    assert module.code_version() == known
    monkeypatch.setattr(module, "_version", lambda package: "another")
    assert module.code_version() != known


# Processes that measure. What an item does is its variant.

CHILD = """
import json, os, sys, time
warm, (file, *items) = "--warm" in sys.argv, [a for a in sys.argv[1:] if a != "--warm"]
lines = open(file, "a")
def say(**message):
    print(json.dumps(message), file=lines, flush=True)
if any("never" in item for item in items):
    raise SystemExit("it does not begin")
say(rates={"copy": 1.0})
unit = None
for item in items:
    name, _, does = item.rpartition("|")
    if name != unit:
        unit = name
        say(item=item, building=True)
        if "unbuilt" in name:
            os.abort()
    say(item=item)
    if does == "dies":
        os.abort()
    if does == "exits":
        raise SystemExit("said last")
    if does == "hangs":
        time.sleep(60)
    if does == "poisons":
        say(item=item, row={"failure": "illegal memory access"})
        sys.exit(3)
    print("a library prints")
    row = {} if warm else {"us": 1.0, "times": 2.0, "share": 0.5, "captured": True}
    say(item=item, row={"kernel": "k", **row})
"""


@pytest.fixture
def children(bench: Callable[[str], Any], tmp_path: Path) -> Callable[..., Any]:
    """What runs the child above."""
    script = tmp_path / "child.py"
    script.write_text(CHILD)

    def made(patience: float = 30.0, seconds: float = 60.0) -> Any:
        command = [sys.executable, "-I", str(script)]
        return bench("gpu_children").Children(command, tmp_path, patience, time.monotonic() + seconds)

    return made


def heard(children: Any, *lanes: list[str]) -> tuple[bool, dict[str, str]]:
    """Whether all was worked on, and what came of each item: "" where it was measured."""
    found: dict[str, str] = {}

    def hear(message: dict[str, Any]) -> None:
        if "row" in message:
            assert message["item"] not in found
            found[message["item"]] = message["row"].get("failure", "")

    return children.work([], lanes, hear), found


def test_a_process_that_dies_loses_one_item(children: Callable[..., Any]) -> None:
    items = ["a|l|1", "a|l|dies", "a|l|4", "b|l|exits", "b|l|1", "c|l|poisons", "c|l|1"]
    done, found = heard(children(), items)
    assert done
    assert list(found) == items
    assert [item for item, failure in found.items() if failure] == ["a|l|dies", "b|l|exits", "c|l|poisons"]
    assert found["a|l|dies"].startswith("ended by SIGABRT")
    assert found["b|l|exits"].endswith("said last")
    assert found["c|l|poisons"] == "illegal memory access"


def test_a_unit_that_cannot_be_built_is_lost_whole(children: Callable[..., Any]) -> None:
    done, found = heard(children(), ["unbuilt|l|1", "unbuilt|l|4", "b|l|1"], ["c|l|1"])
    assert done
    assert {item for item, failure in found.items() if failure} == {"unbuilt|l|1", "unbuilt|l|4"}
    assert len(found) == 4


def test_a_process_that_does_not_begin_is_not_started_again(children: Callable[..., Any]) -> None:
    made = children()
    done, found = heard(made, ["never|l|1", "a|l|1"])
    assert done
    assert made.count == 1
    assert all("it does not begin" in failure for failure in found.values())


def test_a_process_that_hangs_is_ended(children: Callable[..., Any]) -> None:
    done, found = heard(children(patience=1.5), ["a|l|1", "a|l|hangs", "a|l|4"])
    assert done
    assert [item for item, failure in found.items() if failure] == ["a|l|hangs"]


def test_the_limit_ends_all_processes(children: Callable[..., Any]) -> None:
    done, found = heard(children(seconds=1.5), ["a|l|1", "a|l|hangs", "a|l|4"], ["b|l|hangs"])
    assert not done
    assert found == {"a|l|1": ""}


def test_a_later_run_goes_on(
    bench: Callable[[str], Any],
    children: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What fails when it is compiled is not timed; what hangs at the limit is the next run's."""
    gpu, results = bench("gpu"), bench("gpu_results").Results
    units, path = [["a|l|1", "a|l|dies"], ["b|l|1"], ["c|l|1", "c|l|4"]], tmp_path / "gpu.json"
    first = results.at(path, "one", {})
    gpu.Bench(first, children(), 1).run(first.missing(units[:2]))
    assert first.missing(units) == [["c|l|1", "c|l|4"]]
    second = results.at(path, "one", {})
    made = children()
    gpu.Bench(second, made, 2).run(second.missing(units))
    assert made.count == 2  # one that compiles, one that times
    assert second.missing(units) == []
    rows = json.loads(path.read_text())["rows"]
    assert {item for item, row in rows.items() if "us" in row} == {"a|l|1", "b|l|1", "c|l|1", "c|l|4"}
    assert rows["a|l|dies"]["failure"].startswith("ended by SIGABRT")
    assert "a|l|dies" in capsys.readouterr().out


# The clock.


def test_calls_of_a_graph(bench: Callable[[str], Any]) -> None:
    timing = bench("timing")
    case = timing.Case("", {}, turns=24)
    assert timing.calls_for(2e-6, case) == 96
    assert timing.calls_for(1e-4, case) == 50
    assert timing.calls_for(2.5e-3, case) == 24  # all copies have their turn
    launched = timing.Case("", {}, capture=False, turns=24)
    assert [timing.calls_for(seconds, launched) for seconds in (2e-6, 1e-3, 1.0)] == [20, 5, 1]


@pytest.mark.parametrize("capture", [True, False])
def test_seconds_of_a_call_on_cuda(
    bench: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capture: bool
) -> None:
    """With a clock that calls move, and graphs that are their calls."""
    timing, now, turns = bench("timing"), [0.0], []

    def taking(seconds: float) -> Callable[[int], None]:
        def method(call: int) -> None:
            now[0] += seconds
            turns.append(call)

        return method

    def by_fake_events(run: Callable[[], object], repeats: int) -> float:
        run()
        start = now[0]
        for _ in range(repeats):
            run()
        return now[0] - start

    monkeypatch.setattr(timing, "_cuda_seconds", by_fake_events)
    monkeypatch.setattr(timing, "_captured", timing._launches)
    methods = {"baseline": taking(4e-4), "method": taking(1e-4)}
    case = timing.Case("", methods, capture=capture, turns=30)
    found = timing.measure(case, cuda=True, rounds=3, seconds=0.01)
    assert found["baseline"].median == pytest.approx(4e-4)
    assert found["method"].minimum == pytest.approx(1e-4)
    assert max(turns) >= 29 if capture else max(turns) == 19


# Bars.


def row(times: float, share: float = 0.5) -> dict[str, Any]:
    return {"times": times, "share": share, "kernel": "k", "code": "one"}


def test_bars(bench: Callable[[str], Any]) -> None:
    told = bench("gpu_bars").told
    rows = {
        "int4-g128|4096x4096|1": row(2.31, 0.9),
        "int4-g128|4096x14336|1": row(2.0),
        "int4-g128|8192x28672|1": row(2.39, 0.1),
        "gemlite int4|4096x4096|1": row(2.0),
        "int8-channel|4096x14336|1": {"failure": "illegal memory access", "code": "one"},
        "w8a8|4096x4096|1024": row(1.4),
        "w8a8|4096x4096|4096": row(1.6),
        "fp8-dynamic|8192x28672|4096": row(1.6),
    }
    lines = told(rows).splitlines()
    of_int4 = [line for line in lines if "int4 in groups" in line and "accept" in line]
    assert [line.split("  ")[0].strip() for line in of_int4] == ["goal met", "accepted", "missed"]
    (missed,) = (line for line in lines if "int8 inputs" in line and "4096x4096, 1024" in line)
    assert missed.startswith("missed")
    assert "1.40" in missed
    (half,) = (line for line in lines if "fp8 inputs" in line and "8192x28672" in line)
    assert half.startswith("not measured")
    assert "1 of 2 not measured" in half
    (ahead,) = (line for line in lines if "int4 ahead of gemlite" in line and "6 of 7" in line)
    assert re.search(r"1\.1[56]", ahead)
    assert lines[lines.index("furthest from their rooflines:") + 1].strip().startswith("10%")
    assert "illegal memory access" in lines[-1]


def test_bars_are_of_what_is_measured(bench: Callable[[str], Any]) -> None:
    """Every bar names items of the table, and what has a bar is measured first."""
    bars, units = bench("gpu_bars"), bench("gpu_units").units()
    items = {item for unit in units.values() for item in unit.items}
    layers = [f"{outputs}x{inputs}" for outputs, inputs in bars.LAYERS]
    assert layers == ["4096x4096", "4096x14336", "8192x28672"]
    for bar in bars.BARS:
        assert {f"{n}|{layer}|{m}" for n in bar.formats for layer in layers for m in bar.rows} <= items
        assert len(bar.goal) in (1, 3)
        if len(bar.formats) == 1:
            assert all(units[f"{bar.formats[0]}|{layer}"].importance == 0 for layer in layers)
    assert [unit.importance for unit in units.values()] == sorted(unit.importance for unit in units.values())
    assert sum(len(unit.items) for unit in units.values()) == len(items)


def test_copies_are_past_the_cache_and_in_memory(bench: Callable[[str], Any]) -> None:
    copies = bench("gpu_unit").copies
    for nbytes in (2_100_000, 8_650_752, 470_000_000):
        assert 200e6 <= copies(nbytes, False) * nbytes <= 200e6 + nbytes


def test_weights_of_all_formats_can_be_repeated(bench: Callable[[str], Any]) -> None:
    """Fields of some rows, time after time, are those of the whole weight."""
    linear, names = bench("linear_gpu"), set()
    for name in (*linear.WEIGHTS, *linear.INPUTS):
        core = load_spec(name).rules[0].weight_representation.core
        for shape in linear.LAYERS:
            some, times = linear.repeats(core, shape)
            nbytes = sum(f.nbytes * times[n] for n, f in core.layout(some, torch.bfloat16).items())
            assert nbytes == core.nbytes(shape, torch.bfloat16)
        names.add(name)
    assert len(names) == 50
    with pytest.raises(ValueError, match="time after time"):
        linear.repeats(Representation((Sparsify(0.9, storage="csr"),)).core, (4096, 4096))


# Tiny sizes, interpreted.


def tiny(folder: Path, only: str) -> dict[str, Any]:
    """The table of items that match."""
    command = [sys.executable, "-W", "error", str(BENCH / "gpu.py"), "--tiny", "--lanes", "1"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, "--results", str(folder), "--only", only], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 items are left" in run.stdout
    table: dict[str, Any] = json.loads((folder / "gpu-tiny.json").read_text())
    return table


def test_the_bench_runs_interpreted(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    rows = tiny(tmp_path, r"^(int4-g128|w8a8)\|")["rows"]
    assert len(rows) == 4
    for found in rows.values():
        assert "failure" not in found, found
        assert found["error"] < 0.02
        assert found["times"] > 0
        assert found["share"] >= 0
    assert rows["w8a8|128x256|18"]["kernel"] == "gpu_int8_linear"
    assert rows["w8a8|128x256|18"]["products"] == "int8"


@pytest.mark.slow
def test_every_item_runs_interpreted(tmp_path: Path) -> None:
    rows = tiny(tmp_path, "")["rows"]
    assert {item: found["failure"] for item, found in rows.items() if "failure" in found} == {}
