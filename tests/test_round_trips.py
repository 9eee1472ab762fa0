"""Random tensors in random representations, encoded, packed, saved and loaded: the same bits come back."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from rhoc.runtime.checkpoint import DOCUMENT, save_packed
from rhoc.runtime.errors import RequestError
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import Packed
from rhoc.runtime.plain import from_plain, to_plain
from rhoc.runtime.text_parser import from_text

from .strategies import Case, cases, repeatable


class Holder(nn.Module):
    """One parameter."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)


def held(packed: Packed) -> nn.Module:
    """A model of this one weight."""
    model = nn.Module()
    model.add_module("weight", packed)
    return model


def bits(tensor: Tensor) -> bytes:
    flat = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def round_trip(case: Case) -> None:
    """Straight through the stages on one side, over the disk on the other."""
    representation, x = case.representation, case.x
    expected = representation.decode(representation.encode(x))
    packed = Packed.of(x, representation)
    model = held(packed)
    assert bits(packed.decode()) == bits(expected)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "packed"
        save_packed(directory, model, {"name": "random"}, "")
        loaded = load_packed(directory, Holder(torch.empty(x.shape, dtype=x.dtype, device="meta")))
    weight = loaded.weight
    assert isinstance(weight, Packed)
    assert weight.representation == representation
    assert weight.decode().dtype == x.dtype
    assert bits(weight.decode()) == bits(expected)
    stored, again = packed.fields(), weight.fields()
    assert {name: (t.dtype, bits(t)) for name, t in stored.items()} == {
        name: (t.dtype, bits(t)) for name, t in again.items()
    }


@settings(repeatable, max_examples=300)
@given(cases())
def test_what_is_loaded_is_what_was_encoded(case: Case) -> None:
    round_trip(case)


@pytest.mark.slow
@settings(repeatable, max_examples=10_000)
@given(cases())
def test_ten_thousand_times(case: Case) -> None:
    round_trip(case)


@settings(repeatable, max_examples=200)
@given(cases())
def test_representations_come_back_from_plain_data(case: Case) -> None:
    plain = json.loads(json.dumps(to_plain(case.representation)))
    assert from_plain(plain) == case.representation


def test_a_document_of_the_first_version_is_still_read(tmp_path: Path) -> None:
    """It knew neither outputs nor arrangements."""
    x = torch.linspace(-1, 1, 12).reshape(3, 4)
    chain = from_text("quantize(int4, channel)")
    save_packed(tmp_path / "packed", held(Packed.of(x, chain)), {}, "")
    file = tmp_path / "packed" / DOCUMENT
    document = json.loads(file.read_text()) | {"version": 1}
    del document["weights"]["weight"]["output"], document["weights"]["weight"]["arrangement"]
    file.write_text(json.dumps(document))
    loaded = load_packed(tmp_path / "packed", Holder(x))
    assert isinstance(loaded.weight, Packed)
    assert bits(loaded.weight.decode()) == bits(chain.project(x))


@pytest.mark.parametrize("version", [0, 7, "2", None])
def test_documents_of_other_versions_are_not(version: object, tmp_path: Path) -> None:
    save_packed(tmp_path / "packed", Holder(torch.ones(2)), {}, "")
    file = tmp_path / "packed" / DOCUMENT
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": version}))
    with pytest.raises(RequestError, match=r"rhoc\.json: version .*, and this rhoc reads 6; use the version"):
        load_packed(tmp_path / "packed", Holder(torch.ones(2)))
