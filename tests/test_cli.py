"""The command line as a person and as a program meet it: commands, flags, JSON, exit codes, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.main import get_command

import rhoc
from rhoc.compiler.cli import app
from rhoc.compiler.cli.output import Column, number, table
from rhoc.compiler.cli.parameters import joined
from rhoc.compiler.duration import duration
from rhoc.compiler.experiment import carry_out
from rhoc.compiler.grid import load_grid
from rhoc.compiler.sweep import plan_sweep
from rhoc.runtime.load import load_packed
from rhoc.runtime.store import RunStore

from .command_line import LLAMA, TINY_TRAINING, CommandLine, grid_text, single_threaded

COMMANDS = {
    "design": (
        "RUNS.csv --baseline --count --error --figure --fit --flops --formats --json --law --loss-at --of --parameter"
        " --per --rho"
    ),
    "laws ls": "--json",
    "laws show": "NAME --json",
    "laws published": "--json",
    "rank": "[SPEC...] --bits --cost --figure --fit --json --model --per --source",
    "search": "[SPEC...] --bits --figure --fit --inputs --json --out --rotate --source",
    "plan": "[SPEC...] --bytes --column --cost --figure --fit --flops --json --params --served --source --tokens",
    "crossover": (
        "FIRST SECOND --bytes --column --cost --figure --fit --flops --from --json --over --params --served --source --to"
        " --tokens"
    ),
    "demo": "--folder --json --workers",
    "passes": "SPEC --json --why",
    "report": "GRID --json --law --out --store",
    "doctor": "--copies --json --spec --tune",
    "specs ls": "--json --sort",
    "specs plot": "--json --out",
    "specs show": "NAME --json",
    "specs cp": "NAME FILE --json",
    "validate": "FILE... --json",
    "schema": "--json",
    "capacity": "SPEC... --json --on --precision",
    "explain": "SPEC --json --model",
    "compile": "SPEC --json --model --out --show --weights",
    "export": "DIR_OR_SPEC --json --model --out --to --weights",
    "import": "DIR --json --out",
    "generate": (
        "SPEC --batch --cache --checkpoint --json --model --prompt --seed --temperature --tokens --top-k --weights"
    ),
    "train": (
        "SPEC --accumulation --autocast --batch-size --blocks --clip --compile --context --data --decay-fraction "
        "--decay-shape --ema --eval-every --eval-tokens --final-fraction --json --latent-decay --learned-rate "
        "--learning-rate --learning-rate-schedule --model --on-nonfinite --optimizer --optimizer-option --oscillation --seed "
        "--skip-limit --step-limit --store --task --teacher --teacher-weight --temperature --tokens "
        "--warmup-fraction --weight-decay"
    ),
    "sweep plan": "GRID --json --store --workers",
    "sweep status": "GRID --json --store",
    "sweep run": "GRID --json --store --workers",
    "sweep table": "GRID --figure --json --store",
    "runs ls": "--json --store",
    "runs show": "RUN --json --store",
    "runs export": "FILE.csv --json --store",
    "runs import": "FILE.csv --json --store",
    "fit": (
        "[RUNS.csv] --baseline --bootstraps --check-published --delta --figure --json --law --out"
        " --resampling --residuals --store"
    ),
    "predict": "SPEC --column --factors --fit --json --params --rule --source --tokens",
}


def commands(command: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every command that can be called, by its words."""
    inner = getattr(command, "commands", None)
    if inner is None:
        return {" ".join(path): command}
    return {
        words: leaf for name, sub in inner.items() for words, leaf in commands(sub, (*path, name)).items()
    }


FOUND = commands(get_command(app))


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a grid of four tiny runs and a store in which they are finished."""
    folder = tmp_path_factory.mktemp("swept")
    runs = [{"specs": ["dense", "int2"], "sizes": {"width": 16}, "tokens": 640, "seeds": [0, 1]}]
    (folder / "grid.yaml").write_text(grid_text(runs=runs))
    grid, beside = load_grid(folder / "grid.yaml")
    place = str(folder / "runs.db")
    with RunStore(place) as store:
        plan = plan_sweep(grid, beside, store, workers=1, timed=False)
        for cell in plan.cells:
            store.ensure(cell.request)
            carry_out(cell.experiment, place, cell.id, str(folder / "checkpoints"))
    return folder


# What there is


def test_commands_and_flags_are_as_promised() -> None:
    flags = {}
    for words, found in FOUND.items():
        arguments = [p.metavar or p.name for p in found.params if p.param_type_name == "argument"]
        options = sorted(p.opts[-1] for p in found.params if p.param_type_name == "option")
        flags[words] = " ".join([*arguments, *options])
    assert flags == COMMANDS


@pytest.mark.parametrize("words", COMMANDS)
def test_help_has_an_example_that_names_the_command(command: CommandLine, words: str) -> None:
    said = command(*words.split(), "--help")
    assert said.code == 0
    _, _, example = said.out.partition("Example")
    assert f"rhoc {words}" in " ".join(example.split())


def test_examples_use_flags_that_exist() -> None:
    for words, found in FOUND.items():
        known = {opt for p in found.params for opt in p.opts}
        for example in [part for part in (found.help or "").split("`") if part.startswith(f"rhoc {words}")]:
            assert {word for word in example.split() if word.startswith("--")} <= known, example


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from rhoc.compiler.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
heavy = {"torch", "scipy", "numpy", "pydantic", "networkx", "matplotlib", "sqlalchemy", "yaml", "safetensors"}
print("loaded:", sorted(heavy & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=single_threaded()
    )
    assert "Usage" in result.stdout
    assert result.stdout.rstrip().endswith("loaded: []")


# JSON

MODEL_ROW = {"path", "op", "shape", "representation", "bits_per_weight", "gmse", "kernel", "reason"}
EXPLAINED = {"parameters", "total_bytes", "dense_bytes", "effective_parameters"}
SWEEP = {"runs", "done", "missing", "failed", "running", "tokens", "flops", "seconds", "cells"}
RUN = {"id", "state", "params", "tokens", "loss", "representation"}
CAPACITY = {
    "spec", "tensor", "gmse", "gmse_standard_error", "gaussian_bits", "bits_per_weight", "shannon_efficiency",
    "rho", "rho_interval", "rho_source",
}  # fmt: skip
PREDICTED = {"loss", "loss_interval", "rho", "effective_parameters", "extrapolation"}
JSON_KEYS: dict[str, tuple[tuple[object, ...], set[str]]] = {
    "specs ls": ((), {"name", "summary", "bits_per_weight", "gmse"}),
    "specs show": (("int4",), {"version", "name", "rules", "digest"}),
    "specs cp": (("int4", "mine.yaml"), {"name", "file"}),
    "schema": ((), {"$schema", "properties"}),
    "capacity": (("int4", "int2-a2", "sparse50"), CAPACITY),
    "explain": (("int4", "--model", LLAMA), EXPLAINED),
    "compile": (("int4", "--model", LLAMA, "--out", "packed"), EXPLAINED | {"seconds", "capture"}),
    "sweep plan": (("grid.yaml", "--store", "runs.db"), SWEEP),
    "sweep status": (("grid.yaml", "--store", "runs.db"), SWEEP),
    "sweep run": (("grid.yaml", "--store", "runs.db"), SWEEP | {"failures"}),
    "sweep table": (
        ("grid.yaml", "--store", "runs.db"),
        {"spec", "params", "loss_mean", "loss_std", "seeds"},
    ),
    "runs ls": (("--store", "runs.db"), RUN),
    "runs export": (("out.csv", "--store", "runs.db"), {"file", "runs"}),
    "predict": (("int4", "--params", "1e9", "--tokens", "2e10"), PREDICTED),
    "doctor": ((), {"rhoc", "device", "checks", "ready"}),
    "report": (("grid.yaml", "--store", "runs.db", "--out", "r.html"), {"report", "runs", "missing"}),
}


@pytest.mark.parametrize("words", JSON_KEYS)
def test_json_has_the_keys_of_the_contract(
    command: CommandLine, swept: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, keys = JSON_KEYS[words]
    for written in ("mine.yaml", "packed", "out.csv", "r.html"):  # writes go to the test's own folder
        arguments = tuple(str(command.folder / a) if a == written else a for a in arguments)
    monkeypatch.chdir(swept)
    said = command(*words.split(), *arguments, "--json")
    assert said.code == 0, said.err
    rows = said.document if isinstance(said.document, list) else [said.document]
    assert rows
    for row in rows:
        assert keys <= set(row)


def test_rows_of_explain_have_the_keys_of_the_contract(command: CommandLine) -> None:
    document = command("explain", "int4", "--model", LLAMA, "--json").document
    model = rhoc.compiler.model_reference.ModelReference.parse(LLAMA).build()  # type: ignore[attr-defined]
    assert [row["path"] for row in document["parameters"]] == [name for name, _ in model.named_parameters()]
    assert all(set(row) >= MODEL_ROW for row in document["parameters"])
    assert document["dense_bytes"] == sum(p.numel() * 4 for p in model.parameters())


def test_validate_reports_every_mistake_with_its_place(command: CommandLine) -> None:
    (command.folder / "three.yaml").write_text(
        "version: 1\nrules:\n  - target: [Linear]\n    weights: {kind: quantise, num_bits: 4}\nsumary: x\n"
    )
    said = command("validate", "three.yaml", "--json")
    assert said.code == 2
    assert all(set(row) == {"file", "line", "column", "message", "hint"} for row in said.document)
    assert [(row["line"], row["column"]) for row in said.document] == [(3, 5), (3, 5), (4, 21), (5, 1)]
    plain = command("validate", "three.yaml")
    assert plain.out.count("three.yaml:") == 4


def test_validate_takes_grids_too(command: CommandLine) -> None:
    (command.folder / "grid.yaml").write_text(
        "version: 1\nmodel: a.b:c\nruns:\n  - {specs: int22, tokens: 5}\n"
    )
    said = command("validate", "grid.yaml")
    assert said.code == 2
    assert said.out.startswith("grid.yaml:4:13: no spec is called 'int22'; did you mean 'int2'?")
    assert command("validate", Path(rhoc.specs.__file__).parent / "sweeps" / "demo.yaml").code == 0  # type: ignore[attr-defined]


def test_json_is_one_document_and_words_go_to_standard_error(command: CommandLine) -> None:
    arguments = (
        "dense",
        "--model",
        LLAMA,
        "--tokens",
        256,
        "--context",
        32,
        "--batch-size",
        2,
        "--store",
        "r.db",
    )
    first = command("train", *arguments, "--json")
    assert {"run", "loss", "params", "tokens"} <= set(first.document)
    assert "validation loss" in first.err
    again = command("train", *arguments, "--json")
    assert again.document == first.document
    assert "is finished already" in again.err


def test_infinite_numbers_are_null_in_json(command: CommandLine) -> None:
    (dense,) = command("capacity", "dense", "--json").document
    assert (dense["gmse"], dense["gaussian_bits"]) == (0.0, None)


# What it does


def test_a_copied_format_is_the_users_own(command: CommandLine) -> None:
    assert command("specs", "cp", "int4", "mine.yaml").code == 0
    assert command("validate", "mine.yaml").code == 0
    mine, shipped = rhoc.load_spec("mine.yaml"), rhoc.load_spec("int4")
    assert (mine.name, mine.digest) == ("mine", shipped.digest)
    assert "$schema" not in Path("mine.yaml").read_text()


def test_compile_writes_what_the_runtime_loads(command: CommandLine) -> None:
    from rhoc.runtime.llama import llama

    torch.manual_seed(5)
    model = llama(width=16)
    save_file({name: t.clone() for name, t in model.state_dict().items()}, "weights.safetensors")
    said = command("compile", "int4", "--model", LLAMA, "--weights", "weights.safetensors", "--out", "packed")
    assert said.code == 0, said.err
    packed = load_packed("packed", llama(width=16))
    tokens = torch.arange(24).reshape(2, 12)
    reference = rhoc.compile(model, "int4").reference()
    torch.testing.assert_close(packed(tokens), reference(tokens), rtol=1e-4, atol=1e-5)


def test_compile_shows_graphs(command: CommandLine) -> None:
    shown = command("compile", "int4", "--model", LLAMA, "--show", "project")
    before, _, after = shown.out.partition("\n# the model after Project\n%tokens = input")
    assert before.startswith("# the model before Project\n%tokens = input")
    assert "project" in after
    assert "project(" not in before
    assert "hadamard(128) >> quantize(int4, midrise, channel, rms)" in shown.out
    document = command("compile", "int4", "--model", LLAMA, "--show", "pack", "--json").document
    assert [listing["pass"] for listing in document["listings"]] == ["Pack"]


def test_explain_puts_alike_layers_on_one_line(command: CommandLine) -> None:
    shown = command("explain", "int4", "--model", LLAMA).out
    assert "layers.0-1.self_attn.q_proj.weight   2" in shown
    assert shown.count("q_proj") == 1
    assert max(map(len, shown.splitlines())) <= 125


def test_layers_are_joined_only_when_every_one_is_alike() -> None:
    def row(path: str, bits: float = 4.0) -> dict[str, Any]:
        return {
            "path": path,
            "op": "linear",
            "shape": [2, 2],
            "bits_per_weight": bits,
            "kernel": "k",
            "reason": "",
        }

    rows = [
        row("a.0.w"),
        row("a.1.w"),
        row("a.3.w"),
        row("a.2.w", 2.0),
        row("b.0.0.w"),
        row("b.1.1.w"),
        row("c.w"),
    ]
    assert [(path, count) for path, count, _ in joined(rows)] == [
        ("a.0,1,3.w", 3), ("a.2.w", 1), ("b.0.0.w", 1), ("b.1.1.w", 1), ("c.w", 1),
    ]  # fmt: skip


def test_runs_are_listed_shown_exported_and_imported(
    command: CommandLine, swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = swept / "runs.db"
    runs = command("runs", "ls", "--store", store, "--json").document
    assert sorted(run["representation"] for run in runs) == ["dense", "dense", "int2", "int2"]
    listed = command("runs", "ls", "--store", store).out
    assert all(f"{run['loss']:.4f}" in listed for run in runs)
    shown = command("runs", "show", runs[0]["id"][:6], "--store", store)
    assert "train_curve" not in shown.out
    assert f"id        {runs[0]['id']}" in shown.out
    exact = command("runs", "show", runs[0]["id"], "--store", store, "--json").document
    assert exact["result"]["loss"] == runs[0]["loss"]
    command("runs", "export", "runs.csv", "--store", store)
    assert command("runs", "import", "runs.csv", "--store", "n.db", "--json").document["imported"] == 4
    assert command("runs", "import", "runs.csv", "--store", "n.db", "--json").document["imported"] == 0
    again = command("runs", "ls", "--store", "n.db", "--json").document
    assert sorted(run["loss"] for run in again) == sorted(run["loss"] for run in runs)


def test_the_store_may_be_named_by_the_environment(
    command: CommandLine, swept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RHOC_STORE", str(swept / "runs.db"))
    assert len(command("runs", "ls", "--json").document) == 4


def test_a_sweep_table_says_mean_spread_and_seeds(command: CommandLine, swept: Path) -> None:
    rows = command("sweep", "table", swept / "grid.yaml", "--store", swept / "runs.db", "--json").document
    assert [(row["spec"], row["seeds"], row["tokens"]) for row in rows] == [
        ("dense", 2, 640),
        ("int2", 2, 640),
    ]
    for row in rows:
        one, other = row["losses"].values()
        assert row["loss_mean"] == pytest.approx((one + other) / 2, rel=1e-15)
        assert row["loss_std"] == pytest.approx(abs(one - other) / 2**0.5, rel=1e-9)
    shown = command("sweep", "table", swept / "grid.yaml", "--store", swept / "runs.db").out
    assert f"{rows[0]['loss_mean']:.4f}" in shown


def test_plan_of_a_sweep_writes_nothing(command: CommandLine) -> None:
    Path("grid.yaml").write_text(grid_text())
    said = command("sweep", "plan", "grid.yaml", "--store", "new.db")
    assert said.code == 0
    assert "0 of 1 runs are finished; 1 to do (640 tokens, " in said.out
    assert not Path("new.db").exists()


# How it looks


def test_tables_fold_long_text_and_cut_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    prose = (
        "a [bold] text with brackets that is rather long and goes on for more than the width of the screen"
    )
    rows = [("short", 4.00390625, None, prose), ("a longer name", 16.0, None, "")]
    table(("name", Column("bits/weight", 4), "empty", "what it is"), rows)
    lines = capsys.readouterr().out.splitlines()
    assert "empty" not in lines[0]
    assert max(map(len, lines)) <= 60
    assert "4.0039" in lines[2]
    assert "16.0000" in lines[-1]
    folded = " ".join(line[30:].strip() for line in lines[2:-1])
    assert folded.strip() == prose


def test_numbers_read_well() -> None:
    assert [number(n) for n in (8272, 1.23456789, 8.76862e-05, float("inf"), None, True, "x")] == [
        "8,272", "1.23457", "8.76862e-05", "inf", "", "True", "x",
    ]  # fmt: skip
    assert [duration(s) for s in (3.2, 99.4, 100, 5990, 7200)] == ["3 s", "99 s", "2 min", "100 min", "2.0 h"]


@pytest.mark.parametrize(
    "words",
    [
        "specs ls",
        "capacity int4 2of4-int4 int2-a2 sparse50",
        "sweep plan demo.yaml",
        "predict int4 --params 1e9 --tokens 2e10",
    ],
)
def test_output_fits_a_hundred_columns(command: CommandLine, words: str) -> None:
    runs = [{"specs": ["dense", "sparse50-int4"], "sizes": {"width": 16}, "tokens": 640}]
    held = [{"specs": "int2-a2", "product_of": ["dense", "dense"], "sizes": {"width": 16}, "tokens": 640}]
    Path("demo.yaml").write_text(grid_text(runs=runs, held_out=held))
    said = command(*words.split())
    assert said.code == 0, said.err
    table_lines = [line for line in said.out.splitlines() if not line.startswith("speaks from")]
    assert max(map(len, table_lines)) <= 100


def test_shipped_sweeps_are_valid(command: CommandLine) -> None:
    for path in rhoc.specs.sweeps():  # type: ignore[attr-defined]
        grid, _ = load_grid(path)
        assert grid.name == path.stem
    assert json.loads(grid_text())["training"] == TINY_TRAINING
