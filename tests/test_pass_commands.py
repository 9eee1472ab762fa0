"""Passes and budgets as documents and on the command line: what is written, read, printed and refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rhoc.compiler.spec import load_spec, validate_file
from rhoc.passes.catalog import PASSES, kind_of
from rhoc.passes.equalize import Equalize
from rhoc.passes.fold_norms import FoldNorms

from .command_line import LLAMA, CommandLine

RULES = "version: 1\nrules: {targets: Linear, ignore: lm_head, weights: 'quantize(int4, channel)'}\n"
LISTED = RULES + "passes: [calibrate, equalize, {kind: fold_rotations, add: hadamard}]\n"
BUDGET = RULES + "budget: {limit: 4 bits, candidates: [int2, int4, int8]}\n"
PLACE = "¶"  # stands in a case before what is to be blamed


def written(command: CommandLine, text: str = LISTED) -> str:
    (command.folder / "mine.yaml").write_text(text)
    return "mine.yaml"


# Documents


def test_passes_are_written_down_with_their_options() -> None:
    short = load_spec({"version": 1, "rules": {"targets": "Linear", "weights": "int4"}, "passes": "equalize"})
    assert short.passes == (Equalize(),)
    document = short.to_document()
    assert document["passes"] == [
        {
            "kind": "equalize",
            "rule": "smoothquant",
            "strength": 0.5,
            "only_if_better": False,
            "limit": 1000.0,
            "rounds": 100,
        }
    ]
    assert load_spec(document) == short


@pytest.mark.parametrize("declared", PASSES, ids=kind_of)
def test_every_pass_can_be_listed_by_its_name(declared: Any) -> None:
    document = {
        "version": 1,
        "rules": {"targets": "Linear", "weights": "int4"},
        "passes": [kind_of(declared)],
    }
    loaded = load_spec(document)
    assert loaded.passes == (declared(),)
    assert load_spec(loaded.to_document()) == loaded


def test_digests_change_with_what_decides() -> None:
    rules: dict[str, Any] = {"version": 1, "rules": {"targets": "Linear", "weights": "int4"}}
    budget = {"limit": "4 bits", "candidates": ["int2", "int4"]}
    documents: list[dict[str, Any]] = [
        rules,
        rules | {"passes": ["equalize"]},
        rules | {"passes": [{"kind": "equalize", "strength": 0.7}]},
        rules | {"passes": ["equalize", "calibrate"]},
        rules | {"budget": budget},
        rules | {"budget": budget | {"limit": "5 bits"}},
        rules | {"budget": budget | {"measure": "weight_error"}},
    ]
    digests = [load_spec(document).digest for document in documents]
    assert len(set(digests)) == len(documents)
    assert load_spec(rules | {"passes": []}).digest == digests[0]
    assert load_spec(rules | {"passes": [{"kind": "equalize", "strength": 0.5}]}).digest == digests[1]
    assert load_spec(rules | {"name": "another"}).digest == digests[0]
    assert load_spec("int4").digest == load_spec(load_spec("int4").to_document()).digest


def test_what_extends_inherits_passes_and_budget(tmp_path: Path) -> None:
    (tmp_path / "parent.yaml").write_text(LISTED + "budget: {limit: 4 bits, candidates: [int2, int4]}\n")
    (tmp_path / "child.yaml").write_text("version: 1\nextends: parent.yaml\n")
    (tmp_path / "other.yaml").write_text("version: 1\nextends: parent.yaml\npasses: fold_norms\n")
    parent, child, other = (load_spec(tmp_path / f"{name}.yaml") for name in ("parent", "child", "other"))
    assert (child.passes, child.budget) == (parent.passes, parent.budget)
    assert (other.passes, other.budget) == ((FoldNorms(),), parent.budget)


WRONG = {
    "passes: [¶equalise]": "no pass is called 'equalise'; did you mean 'equalize'?",
    "passes: [{kind: ¶fold}]": "no pass is called 'fold'",
    "passes: [¶{add: hadamard}]": "a pass needs a kind",
    "passes: [{kind: equalize, ¶power: 2}]": "unknown key 'power'",
    "passes: [{kind: equalize, strength: ¶2}]": "strength 2.0 is not between 0 and 1; 0.5 is usual",
    "passes: [{kind: equalize, rule: ¶smooth}]": "rule must be",
    "passes: [{kind: calibrate, damping: ¶1.5}]": "damping 1.5 is not from 0 to 1; 0.01 is usual",
    "passes: ¶3": "passes must be a list, got 3",
    "budget: {limit: ¶4 potatoes, candidates: int4}": "'potatoes' is no unit of a budget",
    "budget: {limit: 4 bits, candidates: int4, ¶candidate: int4}": "unknown key 'candidate'; did you mean 'candidates'?",
    "budget: {limit: 4 bits, candidates: int4, measure: ¶fisher}": "measure must be",
    "budget: ¶{candidates: int4}": "limit is missing; add limit:",
    "budget: ¶3": "budget must be a mapping, got 3",
    "budget: {limit: 4 bits, candidates: [int4, ¶int44]}": "no spec is called 'int44'; did you mean 'int4'?",
    "budget: {limit: 4 bits, candidates: ['dense', ¶'quantize(int4']}": "quantize(int4",
    "budget: {limit: 4 bits, candidates: ¶[]}": "",
    "budget: {limit: ¶[4 bits, 5 bits], candidates: int4}": "bits_per_weight is limited twice; give each limit once",
}


@pytest.mark.parametrize("line", WRONG)
def test_wrong_documents_have_an_address(line: str, tmp_path: Path) -> None:
    content = RULES + line + "\n"
    before, mark, after = content.partition(PLACE)
    assert mark
    file = tmp_path / "case.yaml"
    file.write_text(before + after)
    problems = validate_file(file)
    assert [(p.line, p.column) for p in problems] == [(3, len(before.rpartition("\n")[2]) + 1)], problems
    assert WRONG[line] in str(problems[0])


# Commands


def test_the_passes_that_there_are(command: CommandLine) -> None:
    said = command("passes")
    assert said.code == 0
    assert all(kind_of(each) in said.out for each in PASSES)
    rows = command("passes", "--json").document
    assert [row["kind"] for row in rows] == [kind_of(each) for each in PASSES]
    assert {row["keeps"] for row in rows} == {"values", "shapes"}
    for row in rows:
        assert row["summary"]
        assert not row["summary"].endswith((".", "Eq"))
    (equalize,) = [row for row in rows if row["kind"] == "equalize"]
    assert equalize["options"].startswith("rule='smoothquant', strength=0.5")


def test_the_passes_of_a_spec_in_their_order(command: CommandLine) -> None:
    said = command("passes", written(command))
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[:9] == [
        "  1. Assign (over the whole model; keeps bits)",
        "  2. RaiseNorms (over the whole model; keeps values, added for what it establishes)",
        "  3. FoldNorms (over the whole model; keeps values, added for what it establishes)",
        "  4. FoldRotations (over the whole model; keeps values)",
        "  5. RecordRanges (over the whole model; keeps bits, added for what it establishes)",
        "  6. Equalize (over the whole model; keeps values)",
        "  7. Assign (over the whole model; keeps bits)",
        "  8. GiveBatches (over the whole model; keeps bits, added for what it establishes)",
        "  9. Calibrate (over the whole model; keeps shapes)",
    ]
    why = command("passes", "mine.yaml", "--why").out
    assert (
        "  4. FoldRotations (over the whole model; keeps values)\n     after Assign, which establishes 'assigned'"
        in why
    )
    assert "     after FoldNorms, which establishes 'norms folded'" in why
    assert "     after RecordRanges, which establishes 'ranges'" in why
    assert "     after what keeps values, for it rounds" in why
    rows = command("passes", "mine.yaml", "--json").document
    assert [row["pass"] for row in rows][:3] == ["Assign", "RaiseNorms", "FoldNorms"]
    assert [row["listed"] for row in rows][:4] == [True, False, False, True]
    assert all(row["why"] for row in rows)


def test_a_spec_without_passes_has_those_of_its_forms(command: CommandLine) -> None:
    rows = command("passes", "int4", "--json").document
    assert {row["stage"] for row in rows} == {
        "in the train form",
        "in the packed form",
        "in the reference form",
    }


def test_the_order_is_the_one_that_is_run(command: CommandLine) -> None:
    rows = command("passes", written(command), "--json").document
    run = command("compile", "mine.yaml", "--model", LLAMA, "--show", "assign", "--json").document["passes"]
    assert [row["name"] for row in run] == [
        row["pass"] for row in rows if row["stage"] == "over the whole model"
    ]


def test_a_graph_before_and_after_a_pass(command: CommandLine) -> None:
    said = command("compile", written(command), "--model", LLAMA, "--show", "fold_rotations")
    assert said.code == 0, said.err
    before, _, after = said.out.partition("# the model after FoldRotations\n")
    assert before.startswith("# the model before FoldRotations\n%args_0 = input")
    assert after.startswith("%args_0 = input")
    document = command("compile", "mine.yaml", "--model", LLAMA, "--show", "Calibrate", "--json").document
    (shown,) = document["listings"]
    assert (shown["part"], shown["pass"]) == ("", "Calibrate")
    assert shown["before"].startswith("%args_0 = input")


def test_chains_lose_what_was_folded(command: CommandLine) -> None:
    text = RULES.replace("'quantize", "'hadamard(16) >> quantize") + "passes: fold_rotations\n"
    listing = command(
        "compile", written(command, text), "--model", LLAMA, "--show", "fold_rotations", "--json"
    )
    (shown,) = listing.document["listings"]
    chain = "hadamard(16) >> quantize(int4, twos, channel, absmax)"
    assert shown["before"].count(chain) == 14
    assert shown["graph"].count(chain) == 2  # of what reads the hidden features of an MLP
    assert shown["graph"].count("quantize(int4, twos, channel, absmax)") == 14


def test_explain_says_what_passes_did(command: CommandLine) -> None:
    said = command("explain", written(command), "--model", LLAMA)
    assert "FoldRotations on the model: changed the graph or its weights, " in said.out
    rows = command("explain", "mine.yaml", "--model", LLAMA, "--json").document["passes"]
    assert "Calibrate" in [row["name"] for row in rows]


def test_explain_says_what_a_budget_chose(command: CommandLine) -> None:
    said = command("explain", written(command, BUDGET), "--model", LLAMA)
    assert said.code == 0, said.err
    assert "allocated by gaussian (optimal, gap " in said.out
    found = command("explain", "mine.yaml", "--model", LLAMA, "--json").document["allocation"]
    assert found["bits_per_weight"] <= 4
    assert {choice["candidate"] for choice in found["choices"]} <= {"int2", "int4", "int8"}


REFUSED = {
    "unknown pass": (
        ("compile", "mine.yaml", "--model", LLAMA, "--show", "fold_norm"),
        "no pass is called 'fold_norm'; did you mean 'fold_norms'?",
    ),
    "no example": (
        ("explain", "mine.yaml", "--model", "torch.nn:Linear(in_features=8, out_features=8)"),
        "looks across layers, and the graph for that is made with example inputs; give example_inputs",
    ),
    "unknown spec": (("passes", "nosuch"), "no spec is called 'nosuch'"),
    "budget": (("explain", "tight.yaml", "--model", LLAMA), "budget"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_request_gets_one_line(command: CommandLine, case: str) -> None:
    written(command, LISTED if case != "no example" else LISTED.replace("ignore: lm_head, ", ""))
    (command.folder / "tight.yaml").write_text(BUDGET.replace("4 bits", "1 bits"))
    arguments, words = REFUSED[case]
    said = command(*arguments)
    assert (said.code, said.out) == (2, "")
    assert words in said.err
    assert "Traceback" not in said.err
    assert len(said.err.strip().splitlines()) == 1
