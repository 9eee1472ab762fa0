"""YAML to data with places, and documents that were damaged at random."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from rhoc import specs
from rhoc.compiler.documents import parse_document
from rhoc.compiler.plain import Document
from rhoc.compiler.spec import load_spec, validate_file
from rhoc.runtime.errors import RequestError
from rhoc.runtime.stages import Sparsify


def test_yaml_is_read_as_editors_read_it(tmp_path: Path) -> None:
    file = tmp_path / "unquoted.yaml"
    file.write_text(
        "version: 1\nrules:\n  targets: Linear\n  weights: {kind: sparsify, sparsity_structure: 2:4}\n"
    )
    assert load_spec(file).rules[0].weights == (Sparsify(sparsity_structure="2:4"),)
    text = "a: [yes, 010, 0o10, 0x10, 1e-3, 1_000, 2001-01-01, ~, True, .5, '4', null]\n"
    assert parse_document(text.encode(), "f").data == {
        "a": ["yes", 10, 8, 16, 0.001, "1_000", "2001-01-01", None, True, 0.5, "4", None]
    }


def test_marks_hold_the_place_of_every_key_and_value() -> None:
    document = parse_document(b"a: 1\nbc:\n  - x: [2, &q {y: 3}]\n  - *q\n", "f.yaml")
    places = {path: (mark.key, mark.value) for path, mark in document.marks.items()}
    assert places == {
        (): ((1, 1), (1, 1)),
        ("a",): ((1, 1), (1, 4)),
        ("bc",): ((2, 1), (3, 3)),
        ("bc", 0): ((3, 5), (3, 5)),
        ("bc", 0, "x"): ((3, 5), (3, 8)),
        ("bc", 0, "x", 0): ((3, 9), (3, 9)),
        ("bc", 0, "x", 1): ((3, 12), (3, 12)),
        ("bc", 0, "x", 1, "y"): ((3, 16), (3, 19)),
        ("bc", 1): ((3, 12), (3, 12)),
        ("bc", 1, "y"): ((3, 16), (3, 19)),
    }
    assert document.where(("bc", 0, "left out", "x")) == "f.yaml:3:8"
    assert Document({"a": [{"b": 1}]}).where(("a", 0, "b")) == "a[0].b"


FRAGMENTS = (
    *(
        "{",
        "}",
        "[",
        "]",
        ":",
        "- ",
        "\n",
        "\t",
        "  ",
        "'",
        '"',
        "#",
        "&a ",
        "*a",
        "!!set ",
        "|",
        ">",
        "? ",
        "%",
    ),
    *(
        "\x00",
        "\ud7ff",
        "é",
        "9" * 400,
        "1e999",
        ".nan",
        "~",
        "true",
        "2:4",
        "re:((",
        "dense",
        "int4",
        "<<: *a",
    ),
    *(
        "kind: quantize",
        "num_bits: 99",
        "rules:",
        "extends: int4\n",
        "version: 2\n",
        "[" * 60,
        "---\n",
        "...",
    ),
)


def damaged(seed: int) -> str:
    """A shipped spec after a few random cuts, repetitions and insertions."""
    chance = random.Random(seed)
    text = specs.path(chance.choice(specs.names())).read_text()
    for _ in range(chance.randint(1, 6)):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice([0, 0, 1, 3, 20]))
        filling = chance.choice([*FRAGMENTS, text[start:end] * 3, ""])
        text = text[:start] + filling + text[end:]
    return text


@pytest.mark.parametrize("block", range(4))
def test_damage_is_refused_in_words(block: int, tmp_path: Path) -> None:
    file = tmp_path / "damaged.yaml"
    outcomes = set()
    for seed in range(125 * block, 125 * block + 125):
        file.write_bytes(damaged(seed).encode())
        problems = validate_file(file)  # anything but a refusal in words would come through
        assert all(p.message and p.line >= 1 and p.column >= 1 for p in problems), seed
        if not problems:
            loaded = load_spec(file)
            assert load_spec(loaded.to_document()) == loaded, seed
        outcomes.add(bool(problems))
    assert outcomes == {True, False}


def test_grown_documents_are_refused() -> None:
    """Texts that would take forever without bounds: depth, aliases, long numbers, long texts."""
    bomb = "\n".join(["a0: &a0 [1]", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 60))])
    grown = [
        "[" * 5000,
        "{a: " * 5000,
        "- " * 5000,
        bomb,
        "9" * 200_000,
        "0x" + "f" * 200_000,
        "1:" * 100_000,
    ]
    for text in [*grown, *(f"version: 1\nrules: {text}\n" for text in grown)]:
        with pytest.raises(RequestError):
            load_spec(parse_document(text.encode(), "grown.yaml").data)
