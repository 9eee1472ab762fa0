"""What a packed model takes: bytes of its file, and of a process that loads it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rhoc
from rhoc.runtime.checkpoint import DOCUMENT, TENSORS, read_packed, save_packed
from rhoc.runtime.digest import digest_bytes, digest_file
from rhoc.runtime.errors import WorkError
from rhoc.runtime.generation.memory import LiveBytes, held_bytes
from rhoc.runtime.tensor_file import read_tensors

from .bench.gpt2_shape import Gpt2
from .command_line import single_threaded
from .loading import SMALL
from .models import mlp

ROOT = Path(__file__).parents[1]
INT8 = {"kind": "quantize", "num_bits": 8, "strategy": "channel", "scale_dtype": "float16"}
INT4 = {"kind": "quantize", "num_bits": 4, "strategy": "group", "group_size": 128, "scale_dtype": "float16"}
SPEC = {
    "version": 1,
    "rules": [{"targets": "Embedding", "weights": INT8}, {"targets": ["Linear", "Conv1D"], "weights": INT4}],
}
MIDDLE = {"layers": 4, "width": 512, "heads": 8, "vocabulary": 8000}
WHOLE = {"layers": 12}
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Taken:
    """Bytes: of the model in bfloat16, of the files, and what loading took of a process."""

    dense: int
    files: int
    tensors: int
    resident: int
    peak: int


def taken(arguments: dict[str, int], folder: Path) -> Taken:
    """Save a model in the shape of GPT-2, and load it in a process of its own."""
    torch.manual_seed(0)
    model = Gpt2(**arguments).bfloat16()
    dense = held_bytes(model)
    rhoc.compile(model, SPEC).save(folder / "packed")
    rhoc.compile(Gpt2(**SMALL).bfloat16(), SPEC).save(folder / "small")
    del model
    call = [sys.executable, "-m", "tests.loading", folder / "packed", json.dumps(arguments), folder / "small"]
    run = subprocess.run(call, capture_output=True, text=True, cwd=ROOT, env=single_threaded(), check=False)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    files = sum((folder / "packed" / name).stat().st_size for name in (TENSORS, DOCUMENT))
    return Taken(dense, files, found["tensors"], found["resident"], found["peak"])


@pytest.mark.skipif(sys.platform != "linux", reason="the process is asked through /proc")
def test_a_loaded_model_takes_the_bytes_that_are_stored(tmp_path: Path) -> None:
    """Nothing is held twice: not while it loads, and not after."""
    found = taken(MIDDLE, tmp_path)
    embeddings, weights = (8000 + 1024) * 512, 4 * 12 * 512 * 512
    vectors = 4 * (2 * 2 + 3 + 1 + 4 + 1) * 512 + 2 * 512
    assert found.tensors == embeddings + 2 * (8000 + 1024) + weights // 2 + 2 * weights // 128 + 2 * vectors
    assert found.tensors < found.files < found.tensors + 0.02 * found.dense
    assert abs(found.resident - found.tensors) < MEGABYTE
    assert abs(found.peak - found.tensors) < MEGABYTE


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the process is asked through /proc")
def test_124_million_parameters_in_a_third_of_their_bytes(tmp_path: Path) -> None:
    found = taken(WHOLE, tmp_path)
    assert found.dense == 2 * 124_439_808
    assert found.files <= 0.345 * found.dense
    assert found.resident <= 0.345 * found.dense
    assert found.peak <= 0.345 * found.dense


def test_saving_makes_no_copies(tmp_path: Path) -> None:
    """Every tensor goes to the file from where it is."""
    model = rhoc.compile(Gpt2(**SMALL), SPEC).packed()
    live = LiveBytes((*model.parameters(), *model.buffers()))
    before = live.peak
    with live:
        save_packed(tmp_path / "packed", model, {}, "")
    assert before == held_bytes(model)
    assert live.peak == before


def test_tensors_that_share_memory_are_saved_each(tmp_path: Path) -> None:
    class Views(nn.Module):
        """A buffer, a part of it, and one whose columns are its rows."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("whole", torch.arange(12.0).reshape(3, 4))
            self.register_buffer("part", self.whole[1])  # type: ignore[index]
            self.register_buffer("turned", self.whole.T)  # type: ignore[operator, union-attr]
            self.register_buffer("nothing", torch.empty(0, 3))
            self.register_buffer("one", torch.tensor(2.5))

    model = Views()
    save_packed(tmp_path / "packed", model, {}, "")
    tensors = read_packed(tmp_path / "packed")[1]
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())


def test_every_dtype_comes_back(tmp_path: Path) -> None:
    model = nn.Module()
    for name in ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32",
                 "float64", "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "uint16"):  # fmt: skip
        dtype = getattr(torch, name)
        raw = torch.arange(5 * dtype.itemsize, dtype=torch.uint8) % 2
        model.register_buffer(f"of_{name}", raw.view(dtype))
    save_packed(tmp_path / "packed", model, {}, "")
    tensors = read_packed(tmp_path / "packed")[1]
    for name, value in model.state_dict().items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name].view(torch.uint8), value.view(torch.uint8))
        assert tensors[name].data_ptr() % 16 == 0


def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000  # more than is read at once
    (tmp_path / "file").write_bytes(content)
    assert digest_file(tmp_path / "file") == digest_bytes(content)


HEADERS = {
    "no json": b"{]",
    "a list": b"[]",
    "an unknown dtype": b'{"a":{"dtype":"F5","shape":[1],"data_offsets":[0,1]}}',
    "bytes that do not fit": b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}',
    "beyond the end": b'{"a":{"dtype":"U8","shape":[9],"data_offsets":[0,9]}}',
    "a negative size": b'{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}',
    "no offsets": b'{"a":{"dtype":"U8","shape":[1]}}',
    "before the start": b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[-99,-98]}}',
}


@pytest.mark.parametrize("name", HEADERS)
def test_what_is_no_file_of_tensors(name: str, tmp_path: Path) -> None:
    """Its digest may be right: then it was written like this."""
    rhoc.compile(mlp(), "int4").save(tmp_path / "packed")
    file, document = (tmp_path / "packed" / part for part in (TENSORS, DOCUMENT))
    file.write_bytes(len(HEADERS[name]).to_bytes(8, "little") + HEADERS[name] + b"\0")
    with pytest.raises(ValueError, match=r"."):
        read_tensors(file)
    written = json.loads(document.read_text()) | {"tensors_digest": digest_file(file)}
    document.write_text(json.dumps(written))
    with pytest.raises(WorkError, match=r"model\.safetensors: .*; save the model again"):
        read_packed(tmp_path / "packed")
