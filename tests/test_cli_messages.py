"""What the command line says to a wrong request: one clear message, an exit code, and nothing is left behind."""

from __future__ import annotations

import importlib.metadata
import sqlite3
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rhoc.runtime.store import RunStore

from .command_line import LLAMA, CommandLine, grid_text

SPECS = {
    "malformed.yaml": "version: 1\nrules: [{targets: Linear, weights: [{kind: quantize, num_bits: four}]}]\n",
    "pattern.yaml": "version: 1\nrules: [{targets: Linear, ignore: lm_head, weights: {kind: sparsify, sparsity_structure: '3:7'}}]\n",
    "nothing.yaml": "version: 1\nrules: [{targets: Conv2d, weights: int4}]\n",
    "grid.yaml": grid_text(),
    "bad_model.yaml": grid_text(model="nosuch.module:build"),
    "bad_data.yaml": grid_text(data="nowhere"),
    "bad_size.yaml": grid_text(runs=[{"specs": "dense", "sizes": {"width": 17}, "tokens": 640}]),
    "broken.py": "def build():\n    return 1 / 0\n",
    "shape.py": "import torch\n\ndef build():\n    return torch.nn.Linear(4, 4)\n",
    "notes.db": "this is no database\n",
    "runs.csv": "params,tokens,loss,representation\n8000,many,3.0,dense\n",
}
TRAIN = ("--tokens", 640, "--context", 32, "--store", "x.db")
REFUSED: dict[str, tuple[tuple[object, ...], int, str]] = {
    "malformed spec": (("capacity", "malformed.yaml"), 2, "malformed.yaml:2:64: num_bits must be a whole number"),
    "unknown spec": (("capacity", "int44"), 2, "no spec is called 'int44'; did you mean 'int4'?"),
    "unknown shipped spec": (("specs", "show", "./int4.yaml"), 2, "no shipped format is called"),
    "missing corpus": (("train", "int4", "--model", LLAMA, "--data", "nowhere", *TRAIN), 2, "nowhere: there is no such corpus"),
    "shape and pattern": (("explain", "pattern.yaml", "--model", LLAMA), 2, "3:7"),
    "no target": (("explain", "nothing.yaml", "--model", LLAMA), 2, "Conv2d"),
    "unknown module": (("explain", "int4", "--model", "nosuch.module:build"), 2, "there is no module 'nosuch.module'"),
    "unknown factory": (("explain", "int4", "--model", "torch.nn:Lineer"), 2, "did you mean 'Linear'?"),
    "no reference": (("explain", "int4", "--model", "llama"), 2, "'llama' is not a model reference"),
    "bad argument": (("explain", "int4", "--model", "rhoc.runtime.llama:llama(wide=1)"), 2, "unexpected keyword argument 'wide'"),
    "bad width": (("explain", "int4", "--model", "rhoc.runtime.llama:llama(width=31)"), 2, "the nearest widths are 16 and 32"),
    "factory raises": (("train", "int4", "--model", "broken.py:build", *TRAIN), 2, "ZeroDivisionError: division by zero; look at broken.py:2"),
    "no language model": (("train", "int4", "--model", "shape.py:build", *TRAIN), 2, "the model does not take int64 tokens"),
    "negative budget": (("train", "int4", "--model", LLAMA, "--tokens", -5), 2, "tokens must be positive"),
    "missing store": (("runs", "ls", "--store", "none.db"), 2, "none.db: there is no such store"),
    "missing store, status": (("sweep", "status", "grid.yaml", "--store", "none.db"), 2, "none.db: there is no such store"),
    "foreign store": (("runs", "ls", "--store", "notes.db"), 2, "notes.db: not a store of runs"),
    "foreign database": (("sweep", "run", "grid.yaml", "--store", "other.sqlite"), 2, "this file holds something else (tables places)"),
    "folder as store": (("runs", "ls", "--store", "."), 2, "this is a folder"),
    "no such backend": (("runs", "ls", "--store", "nosuch://host/x"), 2, "not an address of a database"),
    "unknown run": (("runs", "show", "feed", "--store", "empty.db"), 2, "there is no run 'feed'"),
    "nothing to export": (("runs", "export", "o.csv", "--store", "empty.db"), 2, "there are no runs to write"),
    "export to no CSV": (("runs", "export", "o.parquet", "--store", "empty.db"), 2, "not .parquet"),
    "bad CSV": (("runs", "import", "runs.csv", "--store", "n.db"), 2, "runs.csv:2:6: tokens is 'many', not a number"),
    "unknown grid": (("sweep", "plan", "dmeo"), 2, "no grid is called 'dmeo'; did you mean 'demo'?"),
    "grid without model": (("sweep", "run", "bad_model.yaml"), 2, "there is no module 'nosuch.module'"),
    "grid without data": (("sweep", "run", "bad_data.yaml"), 2, "nowhere: there is no such corpus"),
    "grid with a bad size": (("sweep", "plan", "bad_size.yaml"), 2, "width 17 is not a positive multiple of 16"),
    "nothing to do": (("compile", "int4", "--model", LLAMA), 2, "give --out DIR"),
    "unknown pass": (("compile", "int4", "--model", LLAMA, "--show", "shrink"), 2, "no pass is called 'shrink'"),
    "no weights": (("compile", "int4", "--model", LLAMA, "--weights", "grid.yaml", "--out", "p"), 2, "not a file of weights"),
    "other weights": (("compile", "int4", "--model", LLAMA, "--weights", "other.safetensors", "--out", "p"), 2, "it has besides"),
    "copy onto a file": (("specs", "cp", "int4", "grid.yaml"), 2, "this file exists"),
    "copy to nowhere": (("specs", "cp", "int4", "no/where.yaml"), 2, "no/where.yaml: cannot be written"),
    "report to nowhere": (("report", "grid.yaml", "--store", "empty.db", "--out", "no/r.html"), 2, "no/r.html"),
    "unknown law": (("report", "grid.yaml", "--store", "empty.db", "--out", "r.html", "--law", "moore"), 2, "moore"),
    "no server": (("runs", "ls", "--store", "postgresql://nobody@127.0.0.1:1/none"), 1, "the database does not answer"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_request_gets_one_clear_message(command: CommandLine, case: str) -> None:
    if case == "no server":
        pytest.importorskip("psycopg")
    for name, text in SPECS.items():
        (command.folder / name).write_text(text)
    with sqlite3.connect("other.sqlite") as other:
        other.execute("CREATE TABLE places (name TEXT)")
    other.close()
    RunStore("empty.db").close()
    save_file({"weight": torch.zeros(2)}, "other.safetensors")
    before = {path.name for path in command.folder.iterdir()}
    arguments, code, words = REFUSED[case]

    said = command(*arguments)

    assert said.code == code, said
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert words in said.err
    assert "Traceback" not in said.err
    assert "None" not in said.err
    made = {path.name for path in command.folder.iterdir()} - before
    assert not {name for name in made if not name.endswith((".db", "-wal", "-shm", "__pycache__"))}


def test_usage_mistakes_exit_with_2(command: CommandLine) -> None:
    assert command("nosuch").code == 2
    assert command("train", "int4").code == 2
    assert command("sweep", "run", "demo", "--workers", "0").code == 2


def test_a_refused_train_leaves_no_run_behind(command: CommandLine) -> None:
    assert command("train", "int4", "--model", "torch.nn:Flatten", *TRAIN).code == 2
    assert not Path("x.db").exists()


def test_an_interruption_says_that_nothing_is_lost(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rhoc.compiler.doctor.examine", interrupted)
    said = command("doctor")
    assert said.code == 130
    assert "the same command goes on from there" in said.err


def test_doctor_without_torch_says_how_to_get_it(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:

    version = importlib.metadata.version

    def without_torch(name: str) -> str:
        if name == "torch":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(importlib.metadata, "version", without_torch)
    said = command("doctor")
    assert said.code == 1
    assert "pip install torch" in said.out
    assert "torch does not import" in said.out


def test_doctor_prints_square_brackets(command: CommandLine) -> None:
    extras = [c for c in command("doctor", "--json").document["checks"] if "[" in c["advice"]]
    shown = command("doctor").out
    assert all(check["advice"] in shown for check in extras)
