"""`rhoc specs ls`, `rhoc specs plot` and `rhoc capacity`: tables, pictures, and whatever can be named."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rhoc import specs
from rhoc.compiler.plots.picture import rate_picture
from rhoc.compiler.plots.rate import rate_points
from rhoc.compiler.spec import load_spec

from .command_line import CommandLine

LISTED = {
    "name", "summary", "kind", "bits_per_weight", "bits_per_input", "gmse", "gmse_standard_error",
    "gaussian_bits", "shannon_efficiency", "rho", "digest", "group",
}  # fmt: skip
FEW = ["2of4-int4", "dense", "fp4", "int2", "int4", "int4-a4", "int8", "mxfp4", "sparse50"]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A library of few formats, all of known error."""
    monkeypatch.setattr(specs, "names", lambda: FEW)
    monkeypatch.setattr(specs, "systems", list)
    return FEW


def row(name: str, bits: float, gaussian: float, kind: str = "integer") -> dict[str, Any]:
    return {
        "name": name, "kind": kind, "bits_per_weight": bits, "gaussian_bits": gaussian, "gmse": 4**-gaussian,
    }  # fmt: skip


# specs ls


def test_the_list_has_every_format_with_its_numbers(command: CommandLine, few: list[str]) -> None:
    rows = command("specs", "ls", "--json").document
    assert sorted(found["name"] for found in rows) == few
    assert all(set(found) == LISTED for found in rows)
    (int4,) = (found for found in rows if found["name"] == "int4")
    assert int4["gmse"] == pytest.approx(0.0115429, rel=1e-5)
    assert int4["gaussian_bits"] == pytest.approx(-math.log(0.0115429, 4), rel=1e-5)
    assert int4["bits_per_weight"] == pytest.approx(4 + 16 / 4096, rel=1e-9)
    assert int4["shannon_efficiency"] == pytest.approx(int4["gaussian_bits"] / int4["bits_per_weight"])
    assert int4["digest"] == load_spec("int4").digest


@pytest.mark.parametrize(
    ("sort", "key", "best_is_most"),
    [
        ("name", "name", False),
        ("bits", "bits_per_weight", False),
        ("gmse", "gmse", False),
        ("efficiency", "shannon_efficiency", True),
        ("rho", "rho", True),
    ],
)
def test_the_list_is_sorted_as_asked(
    command: CommandLine, few: list[str], sort: str, key: str, best_is_most: bool
) -> None:
    rows = command("specs", "ls", "--sort", sort, "--json").document
    found = [item[key] for item in rows]
    known = [value for value in found if value is not None]
    assert known == sorted(known, reverse=best_is_most)
    assert found == known + [None] * (len(found) - len(known)), "what has no such number comes last"
    for first, second in pairwise(rows):
        assert first[key] != second[key] or first["name"] < second["name"]
    shown = command("specs", "ls", "--sort", sort).out.splitlines()
    names = [
        line.split()[0] for line in shown if line[:1].strip() and line.split()[0] in few
    ]  # not what is folded
    assert names == [item["name"] for item in rows]


def test_the_list_goes_by_bits_unless_told(command: CommandLine, few: list[str]) -> None:
    assert command("specs", "ls").out == command("specs", "ls", "--sort", "bits").out
    refused = command("specs", "ls", "--sort", "size")
    assert refused.code == 2
    assert "efficiency" in refused.err


def test_systems_are_a_group_of_their_own(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(specs, "names", lambda: ["int4", "sparse75"])
    monkeypatch.setattr(specs, "systems", lambda: ["systems/powerpropagation", "systems/aweq"])
    rows = {row["name"]: row for row in command("specs", "ls", "--json").document}
    assert list(rows) == ["int4", "sparse75", "systems/powerpropagation", "systems/aweq"]
    assert [row["group"] for row in rows.values()] == ["formats"] * 2 + ["systems"] * 2
    whole = load_spec("systems/powerpropagation").rules[-1].weight_representation
    assert rows["systems/powerpropagation"]["bits_per_weight"] == whole.bits_per_weight((4096, 4096))
    shown = command("specs", "ls").out.split("published systems")
    assert ["aweq " in part for part in shown] == [False, True]
    assert command("specs", "show", "systems/aweq").code == 0
    assert "did you mean 'systems/aweq'" in command("specs", "show", "systems/awek").err


# specs plot


def test_what_nothing_beats_is_named() -> None:
    """By the definition, all against all: as few bits and as many Gaussian bits, and more of one."""
    chance = torch.Generator().manual_seed(0)
    bits = (torch.rand(60, generator=chance) * 16).round().div(2).tolist()  # many ties, some past the end
    gaussian = (torch.rand(60, generator=chance) * 8).round().div(2).tolist()
    rows = [row(f"f{i:02}", b, g) for i, (b, g) in enumerate(zip(bits, gaussian, strict=True))]
    rows += [row("whole", 16.0, math.inf) | {"gmse": 0.0}, row("wide", 9.0, 8.0)]
    shown = [r for r in rows if r["bits_per_weight"] <= 8.5 and r["gmse"] > 0]

    def beats(one: dict[str, Any], other: dict[str, Any]) -> bool:
        ours = (-one["bits_per_weight"], one["gaussian_bits"])
        theirs = (-other["bits_per_weight"], other["gaussian_bits"])
        first = ours == theirs and one["name"] < other["name"]
        return first or (ours != theirs and all(a >= b for a, b in zip(ours, theirs, strict=True)))

    expected = {r["name"] for r in shown if not any(beats(other, r) for other in shown)}
    data = rate_points(rows)
    assert {point.name for point in data.points} == {r["name"] for r in shown}
    assert {point.name for point in data.points if point.best} == expected
    assert 3 <= len(expected) < 20
    assert [p.bits for p in data.points] == sorted(p.bits for p in data.points)


def test_of_formats_with_equal_numbers_the_first_is_named() -> None:
    rows = [row("int4-a4", 4.0, 3.2), row("int4", 4.0, 3.2), row("worse", 4.0, 3.1), row("more", 4.5, 3.2)]
    assert [p.name for p in rate_points(rows).points if p.best] == ["int4"]


@pytest.mark.parametrize(("suffix", "opening"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".PDF", b"%PDF")])
def test_the_picture_is_of_the_kind_that_its_name_says(tmp_path: Path, suffix: str, opening: bytes) -> None:
    file = tmp_path / f"picture{suffix}"
    best = rate_picture(
        [row("a", 1.0, 0.7), row("b", 2.0, 0.6, "sparse"), row("c$x$", 4.0, 3.4, "float")], file
    )
    assert best == ["a", "c$x$"]
    assert file.read_bytes().startswith(opening)
    if suffix == ".svg":
        text = file.read_text()
        assert "c$x$" in text
        assert "sparse" in text, "the legend"
        assert "stored bits per weight" in text


def test_the_picture_of_the_library(command: CommandLine, few: list[str]) -> None:
    said = command("specs", "plot", "--out", "library.svg", "--json")
    assert said.document == {"file": "library.svg", "pareto": ["int2", "int4", "int8"]}
    assert "int2" in Path("library.svg").read_text()
    words = command("specs", "plot")
    assert words.out == ""
    assert words.err == "wrote specs.svg; nothing shipped beats int2, int4, int8\n"
    assert Path("specs.svg").read_bytes() == Path("library.svg").read_bytes(), "the same picture every time"


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("table.xlsx", "no picture format is called '.xlsx'"),
        ("none", "''"),
        ("no/where.svg", "cannot be written"),
    ],
)
def test_other_pictures_are_refused(command: CommandLine, few: list[str], out: str, words: str) -> None:
    said = command("specs", "plot", "--out", out)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith(f"error: {out}: ")
    assert words in said.err
    assert list(command.folder.iterdir()) == []


# capacity


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ("hadamard(128) >> quantize(int4, midrise, channel, rms)", "int4"),
        ("sparsify(2:4)", "2of4"),
        ("MXFP4A16", "mxfp4"),
        ("mxfp4", "MXFP4A16"),
    ],
)
def test_a_format_by_its_text_or_another_name(command: CommandLine, written: str, means: str) -> None:
    (first,), (second,) = (command("capacity", name, "--json").document for name in (written, means))
    assert {k: v for k, v in first.items() if k != "spec"} == {k: v for k, v in second.items() if k != "spec"}


def test_names_stand_inside_texts(command: CommandLine) -> None:
    (found,) = command("capacity", "sparsify(0.5) >> nf4", "--json", "--precision", "0.1").document
    assert found["representation"].startswith("sparsify(0.5) >> quantize(nf4, group=64")


def test_other_numbers(command: CommandLine) -> None:
    said = command("capacity", "int4", "--on", "laplace")
    assert said.code == 0
    assert "rho of int4: rho follows from the error on Gaussian numbers" in said.out
    rotated, plain = "int4", "quantize(int4, midrise, channel, rms)"
    laplace, again = (command("capacity", rotated, plain, "--on", "laplace", "--json").document for _ in "12")
    (normal,) = command("capacity", "int4", "--json").document
    assert laplace == again, "the same digits every time"
    laplace, tails = laplace
    assert laplace["gmse"] == pytest.approx(normal["gmse"], rel=0.03), "a rotation makes them nearly normal"
    assert tails["gmse"] > 1.5 * normal["gmse"]
    assert (normal["gmse_method"], laplace["gmse_method"]) == ("quadrature", "monte carlo")


def test_estimated_anew_to_a_precision(command: CommandLine) -> None:
    (exact,) = command("capacity", "int3", "--json").document
    (found,) = command("capacity", "int3", "--precision", "0.002", "--json").document
    assert found["gmse_method"] == "monte carlo"
    assert 0 < found["gmse_standard_error"] <= 0.002 * found["gmse"]
    assert abs(found["gmse"] - exact["gmse"]) < 4 * found["gmse_standard_error"]
    assert found["rho"] == exact["rho"]


def test_a_tensor_in_a_file(command: CommandLine) -> None:
    weight = torch.tensor([[3.0, -1.0, 2.0, 0.5], [0.0, 4.0, -4.0, 1.0]], dtype=torch.bfloat16)
    save_file({"only": weight}, "one.safetensors")
    save_file({"a.weight": weight, "b:c": 2 * weight}, "two.safetensors")
    expected = (1 + 0.25 + 0 + 1) / (9 + 1 + 4 + 0.25 + 16 + 16 + 1)
    for named in (
        "one.safetensors",
        "one.safetensors:only",
        "two.safetensors:a.weight",
        "two.safetensors:b:c",
    ):
        (found,) = command("capacity", "sparsify(2:4)", "--on", named, "--json").document
        assert found["gmse"] == pytest.approx(expected, rel=1e-12)
        assert found["gmse_method"] == "this tensor"
        assert found["rho"] is None
        assert found["bits_per_weight"] == 8 * (4 * 2 + 2 * 1) / 8, (
            "two of four in 16 bits, a bit for each place"
        )


REFUSED = {
    "missing.safetensors": "missing.safetensors: cannot be read",
    "text.safetensors": "text.safetensors: cannot be read",
    "two.safetensors": "it holds 2 tensors, and one is needed; write two.safetensors:NAME; it holds a, b",
    "two.safetensors:c": "no tensor is called 'c'; known: a, b",
    "two.safetensors:a": "two.safetensors:a: int32 is no floating-point type; name a weight",
    "bad.safetensors": "bad.safetensors:w: some of its numbers are NaN or infinite; find where training diverged",
    "none.safetensors": "it holds 0 tensors, and one is needed; choose another file",
    "odd.safetensors": "3:7",
    "cauchy": "no distribution is called 'cauchy'; known: normal, laplace, student-t:DEGREES",
    "student-t:1": "'student-t:1': degrees of freedom must be finite and above 2, got 1",
}


@pytest.mark.parametrize("named", REFUSED)
def test_numbers_that_there_are_not(command: CommandLine, named: str) -> None:
    save_file({"a": torch.ones(3, 7, dtype=torch.int32), "b": torch.ones(3, 7)}, "two.safetensors")
    save_file({"w": torch.tensor([[1.0, float("nan")]])}, "bad.safetensors")
    save_file({"w": torch.ones(3, 8)}, "odd.safetensors")
    save_file({}, "none.safetensors")
    Path("text.safetensors").write_text("hello")
    said = command("capacity", "sparsify(3:7)", "--on", named)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert REFUSED[named] in said.err


def test_formats_that_there_are_not(command: CommandLine) -> None:
    for text, words in {
        "hadamard(128) >> quantise(int4)": "'quantise' is no stage",
        "quantize(int4) >> sparsify(0.5)": "cannot follow",
        "quantize(int4": "expected ','",
        "int44": "did you mean 'int4'?",
    }.items():
        said = command("capacity", text)
        assert (said.code, said.out) == (2, "")
        assert words in said.err
        assert said.err.count("\n") == 1
    save_file({"w": torch.ones(2, 8)}, "w.safetensors")
    both = command("capacity", "int4", "--on", "w.safetensors", "--precision", "0.1")
    assert both.code == 2
    assert "leave the precision out" in both.err
    assert command("capacity", "int4", "--precision", "0").code == 2
