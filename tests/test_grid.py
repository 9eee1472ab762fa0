"""Grids of sweeps: what they say, and what is wrong with them at line and column."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from rhoc import specs
from rhoc.compiler.documents import read_document
from rhoc.compiler.grid import Block, Grid, find_data, find_spec, is_grid, load_grid, validate_grid
from rhoc.runtime.errors import InvalidDocument, RequestError

HEAD = "version: 1\nmodel: rhoc.runtime.llama:llama\n"
RUNS = "runs:\n  - {specs: [dense, int2], tokens: 1000}\n"


def grid(folder: Path, text: str) -> Grid:
    (folder / "sweep.yaml").write_text(text)
    return load_grid(folder / "sweep.yaml")[0]


def problems(folder: Path, text: str) -> list[str]:
    """What is wrong with a grid, as `line:column: message; hint`."""
    (folder / "sweep.yaml").write_text(text)
    return [str(p).removeprefix(f"{folder / 'sweep.yaml'}:") for p in validate_grid(folder / "sweep.yaml")]


def test_a_block_is_a_product(tmp_path: Path) -> None:
    loaded = grid(
        tmp_path,
        HEAD
        + "runs:\n  - {specs: [dense, int2], sizes: [{width: 16}, {width: 32}], tokens: [1e6, 2000], seeds: [0, 3]}\n",
    )
    (block,) = loaded.runs
    cells = list(block.cells())
    assert len(cells) == len({(spec, str(size), tokens, seed) for spec, size, tokens, seed in cells}) == 16
    assert ("int2", {"width": 32}, 1_000_000, 3) in cells
    assert all(isinstance(tokens, int) for _, _, tokens, _ in cells)


def test_scalars_stand_for_lists_and_defaults_are_stated(tmp_path: Path) -> None:
    loaded = grid(tmp_path, HEAD + "runs: {specs: dense, tokens: 1000}\n")
    assert loaded.runs == [Block(specs=["dense"], sizes=[{}], tokens=[1000], seeds=[0])]
    assert (loaded.name, loaded.data, loaded.held_out, loaded.checkpoint_seconds) == (
        "sweep",
        "stdlib",
        [],
        30.0,
    )


@pytest.mark.parametrize("name", ["demo", "trainers"])
def test_shipped_grids_are_found_by_name(name: str) -> None:
    loaded, folder = load_grid(name)
    assert loaded.name == name
    assert loaded.question
    for block in (*loaded.runs, *loaded.held_out):
        for spec in block.specs:
            assert find_spec(spec, folder).name == Path(spec).stem


def test_specs_are_looked_for_beside_the_grid_then_in_formats_then_among_the_shipped(tmp_path: Path) -> None:
    def summary(name: str) -> str:
        return find_spec(name, tmp_path).summary

    shipped = summary("int2")
    (tmp_path / "formats").mkdir()
    text = specs.path("int2").read_text()
    (tmp_path / "formats" / "int2.yaml").write_text(text.replace("summary: ", "summary: in formats, "))
    assert summary("int2") == f"in formats, {shipped}"
    (tmp_path / "int2").write_text(text.replace("summary: ", "summary: beside, "))
    assert summary("int2") == f"beside, {shipped}"
    with pytest.raises(RequestError, match="no spec is called 'int22'"):
        find_spec("int22", tmp_path)


def test_data_is_looked_for_beside_the_grid(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "stdlib").mkdir()
    assert find_data("texts", tmp_path) == str(tmp_path / "texts")
    assert find_data("elsewhere", tmp_path) == "elsewhere"
    assert find_data("stdlib", tmp_path) == "stdlib"


def test_what_a_held_out_spec_is_predicted_from(tmp_path: Path) -> None:
    (tmp_path / "formats").mkdir()
    shutil.copy(Path(specs.__file__).parent / "sweeps" / "formats" / "a2.yaml", tmp_path / "formats")
    loaded = grid(
        tmp_path,
        HEAD
        + "runs:\n  - {specs: [int2, formats/a2.yaml], tokens: 1000}\n"
        + "held_out:\n  - {specs: int2-a2, product_of: [int2, a2], tokens: 1}\n"
        + "  - {specs: int2-a2, product_of: [int2, formats/a2.yaml], tokens: 1}\n  - {specs: int2, tokens: 9}\n",
    )
    factors = [loaded.factors(block, block.specs[0]) for block in loaded.held_out]
    assert factors == [("int2", "formats/a2.yaml"), ("int2", "formats/a2.yaml"), ("int2",)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD, ["1:1: runs is missing; add runs:"]),
        (HEAD + RUNS + "chekpoint_seconds: 3\n", ["5:1: unknown key 'chekpoint_seconds'; did you mean 'checkpoint_seconds'?"]),
        (HEAD + RUNS + "checkpoint_seconds: 0\n", ["5:21: checkpoint_seconds must be greater than 0, got 0"]),
        (HEAD.replace("1", "2", 1) + RUNS, ["1:10: version must be 1, got 2"]),
        (HEAD + "runs: []\n", ["3:7: "]),
        (HEAD + "runs: [{specs: dense, tokens: 1.5}]\n", ["3:31: an entry of tokens must be a whole number, got 1.5"]),
        (HEAD + "runs: [{specs: dense, tokens: [5, -3]}]\n", ["3:35: an entry of tokens must be greater than 0, got -3"]),
        (HEAD + "runs: [{specs: dense, tokens: many}]\n", ["3:31: an entry of tokens must be a whole number, got 'many'"]),
        (HEAD + "runs: [{specs: dense, tokens: 5, sizes: 16}]\n", ["3:41: an entry of sizes must be a mapping, got 16"]),
        (HEAD + "runs: [{spec: dense, tokens: 5}]\n", ["3:8: specs is missing; add specs:", "3:9: unknown key 'spec'; did you mean 'specs'?"]),
        ("version: 1\nmodel: llama\n" + RUNS, ["2:8: 'llama' is not a model reference; write package.module:factory"]),
        (HEAD + "training: {contxt: 3}\n" + RUNS, ["3:12: training has no setting 'contxt'; did you mean 'context'?"]),
        (HEAD + "training: {seed: 3}\n" + RUNS, ["3:12: seed is no setting of training; write seeds: in the entries of runs"]),
        (HEAD + "training: {batch_size: four}\n" + RUNS, ["3:24: batch_size must be a whole number, got 'four'"]),
        (HEAD + "training: {batch_size: 0}\n" + RUNS, ["3:24: batch_size must be positive, got 0"]),
        (HEAD + "training: {clip: high}\n" + RUNS, ["3:18: clip must be a number, got 'high'"]),
        (HEAD + "runs:\n  - specs: dense\n    tokens: 5\n    training: {learning_rate: -1}\n", ["6:31: learning_rate must be positive, got -1"]),
        (HEAD + "runs:\n  - {specs: [dense, int22], tokens: 5}\n", ["4:21: no spec is called 'int22'; did you mean 'int2'?"]),
        (HEAD + "runs:\n  - {specs: [formats/x.yaml], tokens: 5}\n", ["4:14: there is no file 'formats/x.yaml'; a spec's path is relative"]),
        (HEAD + RUNS + "held_out:\n  - {specs: int2-a2, product_of: [int2, a2], tokens: 5}\n", ["6:41: no entry of runs has the spec 'a2'"]),
        (HEAD + RUNS + "held_out:\n  - {specs: int2-a2, tokens: 5}\n", ["6:5: nothing says what the held-out int2-a2 is predicted from; add product_of"]),
        (HEAD + "runs:\n  - {specs: dense, tokens: 5, product_of: [dense]}\n", ["4:31: product_of is for entries of held_out; take it out"]),
    ],
)  # fmt: skip
def test_every_mistake_has_its_place(tmp_path: Path, text: str, expected: list[str]) -> None:
    found = problems(tmp_path, text)
    assert len(found) == len(expected), found
    for problem, start in zip(found, expected, strict=True):
        assert problem.startswith(start)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = "version: 1\nmodel: llama\ntraining: {contxt: 3, clip: 0}\nruns:\n  - {specs: nope, tokens: 5}\n"
    assert [p.split(": ")[0] for p in problems(tmp_path, text)] == ["2:8", "3:12", "3:29", "5:13"]
    with pytest.raises(InvalidDocument) as refused:
        load_grid(tmp_path / "sweep.yaml")
    assert len(refused.value.problems) == 4


def test_a_grid_that_cannot_be_read_is_a_problem_too(tmp_path: Path) -> None:
    (problem,) = validate_grid(tmp_path / "none.yaml")
    assert (problem.file, problem.message) == (str(tmp_path / "none.yaml"), "there is no such file")


def test_grids_and_specs_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(HEAD + RUNS)
    assert is_grid(read_document(tmp_path / "sweep.yaml"))
    assert not is_grid(read_document(specs.path("int4")))
