"""Ten thousand documents at random: each is a valid spec or one clear error, quickly and in little memory."""

from __future__ import annotations

import gc
import resource
import time
from pathlib import Path

import pytest
import torch

from rhoc.compiler.documents import parse_document
from rhoc.compiler.spec import Spec, _load, load_spec
from rhoc.runtime.errors import InvalidDocument, Problem, RequestError
from rhoc.runtime.representation import Representation
from rhoc.runtime.text_parser import from_text

from .fuzzed import documents

_SLOWEST, _MOST_MEMORY = 1.0, 500_000  # seconds of processor time; kilobytes more than before


def load(text: str) -> Spec | list[Problem]:
    """The spec in a document, or everything that is wrong with it."""
    try:
        return _load(parse_document(text.encode("utf-8", "surrogatepass"), "fuzzed.yaml"), Path(), ())
    except InvalidDocument as error:
        return error.problems


def check(text: str) -> bool:
    """Whether a document is a valid spec; anything but a clear error otherwise is a failure."""
    loaded = load(text)
    if not isinstance(loaded, Spec):
        assert loaded
        for problem in loaded:
            assert problem.message
            assert problem.line >= 1
            assert len(str(problem)) < 2000
            assert "Traceback" not in str(problem)
        return False
    spec = loaded
    assert load_spec(spec.to_document()) == spec
    for rule in spec.rules:
        for representation in (rule.weight_representation, rule.input_representation):
            assert from_text(str(representation)) == representation
            sizes(representation)
    return True


def sizes(representation: Representation) -> None:
    """Stored bits of a matrix, or a clear refusal."""
    try:
        bits = representation.bits_per_weight((64, 128), torch.bfloat16)
    except RequestError:
        return
    assert bits >= 0


def fuzz(count: int, seed: int) -> tuple[int, int]:
    """Valid and refused documents among `count`; memory and time are watched."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    valid = refused = 0
    gc.collect()
    gc.freeze()  # a walk over what all tests before have left takes a second, and is no document's
    for text in documents(count, seed):
        started = time.process_time()
        if check(text):
            valid += 1
        else:
            refused += 1
        assert time.process_time() - started < _SLOWEST, text[:500]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < _MOST_MEMORY
    return valid, refused


@pytest.mark.parametrize("seed", range(4))
def test_documents_at_random(seed: int) -> None:
    valid, refused = fuzz(300, seed)
    assert valid > 5, "mutations that leave a spec valid are among them"
    assert refused > 150


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_ten_thousand_documents_at_random(seed: int) -> None:
    valid, refused = fuzz(1000, seed)
    assert valid > 20
    assert refused > 500
