"""Texts of representations: what is refused and where, and that nothing crashes the parser."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from rhoc.runtime.errors import RequestError
from rhoc.runtime.representation import Representation
from rhoc.runtime.stage import Stage
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify
from rhoc.runtime.text_parser import from_text

from .strategies import repeatable


def chain(*stages: Stage) -> Representation:
    return Representation(stages)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a stage, a name or a number, at 'the end' (character 1)"),
        ("hadamrd(8)", "'hadamrd' is no stage"),
        ("hadamard(8) >>", "expected a stage, a name or a number, at 'the end' (character 15)"),
        ("hadamard(8) hadamard(8)", "expected >>, + or the end, at 'hadamard(8)' (character 12)"),
        ("hadamard(8", "expected ',', at 'the end' (character 11)"),
        ("hadamard(8, block=8)", "hadamard: block is given twice, at '(8, block=8)' (character 9)"),
        ("hadamard(sie=8)", "hadamard: unknown option 'sie' (known: block, signs)"),
        ("hadamard(block=x)", "hadamard: block cannot be x"),
        ("hadamard(block=6)", "hadamard: block must be a power of two"),
        ("hadamard(full, dense)", "hadamard: dense fits no option (known: block, signs)"),
        ("sparsify(0.5) >> (quantize(8)", "expected ')', at 'the end'"),
        ("quantize(8) >> hadamard(8)", "which hands on integer codes; put it before"),
        ("dense + quantize(8)", "terms[0] loses nothing"),
        ("sparsify(0.5) @", "expected a stage, a name or a number"),
        ("product(rank=2, left=3)", "'3' is no stage and no shipped spec"),
        ("split(0.1, rest=[1, 2])", "expected a stage, a name or a number, at '[1, 2])'"),
        ("§", "this character means nothing here, at '§' (character 1)"),
        ("hadamard(8) ?", "this character means nothing here"),
        ("(" * 40 + "dense" + ")" * 40, "too many parentheses inside each other"),
        ("split(0.1, rest=" * 40 + "dense" + ")" * 40, "too many parentheses inside each other"),
        ("split(" + "[" * 2000, "too many"),
        ("dense" + " " * 10_000, "a representation of 10005 characters is too long"),
    ],
)
def test_text_errors_say_where(text: str, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        from_text(text)
    assert message in str(caught.value)
    assert caught.value.advice
    assert caught.value.exit_code == 2


PIECES = [
    *("hadamard", "quantize", "sparsify", "product", "split", "dense", "rank", "left", "rest", "group"),
    *("(", ")", "[", "]", ",", "=", ">>", "+", "@", "-", "2:4", "0.5", "8", "int4", "1e400", "--", " ", "é"),
]


@repeatable
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=40))
def test_garbage_is_refused_and_never_crashes(text: str) -> None:
    try:
        found = from_text(text)
    except RequestError:
        return
    assert from_text(str(found)) == found


def test_the_longest_text_that_is_read() -> None:
    terms = " + ".join(["sparsify(0.5)"] * 600)
    assert len(from_text(terms).stages[0].terms) == 600  # type: ignore[attr-defined]
    operands = " >> ".join(["hadamard(8)"] * 600)
    assert len(from_text(operands).stages) == 600


def test_names_may_stand_for_chains() -> None:
    known = {"mine": chain(Hadamard(8), Quantize(4, strategy="channel", observer="rms"))}
    assert from_text("mine + sparsify(0.5)", known.get) == known["mine"] + chain(Sparsify(0.5))
    with pytest.raises(RequestError, match="'yours' is no stage"):
        from_text("yours", known.get)
