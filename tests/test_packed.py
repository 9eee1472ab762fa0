"""Packed models on disk: what is written, what comes back, what is said of a damaged directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import rhoc
from rhoc.runtime.checkpoint import DOCUMENT, TENSORS, read_packed, save_packed
from rhoc.runtime.errors import RequestError, RhocError, WorkError
from rhoc.runtime.llama import llama
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import Packed
from rhoc.runtime.plain import from_plain, to_plain

from .models import CASES, mlp
from .test_forms import on


@pytest.mark.parametrize("model", CASES)
@pytest.mark.parametrize("spec", ["dense", "int3-a3", "fp8", "2of4-int4"])
def test_a_saved_model_comes_back_to_the_bit(model: str, spec: str, tmp_path: Path) -> None:
    case = CASES[model]
    compiled = rhoc.compile(case.model(), on(model, spec))
    student = compiled.trainable()
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.01
    compiled.save(tmp_path / "out", student)
    architecture = case.make().double()
    before = {key: value.clone() for key, value in architecture.state_dict().items()}
    loaded, packed = load_packed(tmp_path / "out", architecture), compiled.packed(student)
    with torch.no_grad():
        assert torch.equal(loaded(case.inputs(3)), packed(case.inputs(3)))
    assert loaded.state_dict().keys() == packed.state_dict().keys()
    assert all(torch.equal(value, packed.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert all(torch.equal(value, before[key]) for key, value in architecture.state_dict().items())
    assert not any(isinstance(module, Packed) for module in architecture.modules())
    held = {tensor.data_ptr() for tensor in (*architecture.parameters(), *architecture.buffers())}
    assert held.isdisjoint(
        tensor.data_ptr() for tensor in (*loaded.parameters(), *loaded.buffers()) if tensor.numel()
    )


def saved(tmp_path: Path, model: nn.Module | None = None, spec: str = "int4-a4") -> Path:
    torch.manual_seed(0)
    directory = tmp_path / "packed"
    rhoc.compile(mlp() if model is None else model, spec).save(directory)
    return directory


def test_what_is_written(tmp_path: Path) -> None:
    directory = saved(tmp_path)
    assert sorted(entry.name for entry in directory.iterdir()) == [TENSORS, DOCUMENT]
    tensors = load_file(directory / TENSORS)
    assert {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()} == {
        "0.bias": ((32,), torch.float32),
        "0.weight.carry": ((32, 8), torch.uint8),
        "0.weight.1.scale": ((32,), torch.float32),
        "3.weight.carry": ((8, 16), torch.uint8),
        "3.weight.1.scale": ((8,), torch.float32),
    }
    document = json.loads((directory / DOCUMENT).read_text())
    assert document["format"] == "rhoc packed model"
    assert document["spec_digest"] == rhoc.load_spec("int4-a4").digest
    assert document["spec_digest"] == rhoc.load_spec(document["spec"]).digest
    assert document["weights"]["3.weight"]["shape"] == [8, 32]
    assert [entry.name for entry in tmp_path.iterdir()] == ["packed"]


def test_it_loads_and_runs_without_the_compiler(tmp_path: Path) -> None:
    directory = saved(tmp_path, CASES["llama"].make())
    code = (
        "import sys, torch; from rhoc.runtime.load import load_packed; from rhoc.runtime.llama import llama;"
        f"model = load_packed({str(directory)!r}, llama(16, vocabulary=32, context=16));"
        "print(tuple(model(torch.zeros(2, 5, dtype=torch.int64)).shape));"
        "print([n for n in sys.modules if n.startswith(('rhoc.compiler', 'rhoc.passes', 'pydantic'))])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["(2, 5, 32)", "[]"]


def test_weights_of_the_architecture_are_not_needed(tmp_path: Path) -> None:
    directory = saved(tmp_path)
    with torch.device("meta"):
        empty = mlp()
    x = torch.randn(3, 16)
    assert torch.equal(load_packed(directory, empty)(x), load_packed(directory, mlp())(x))
    with torch.device("meta"):
        rotary = CASES["llama"].make()
    directory = saved(tmp_path, CASES["llama"].make())
    with pytest.raises(RequestError, match=r"a non-persistent buffer .* on the meta device, .*; build"):
        load_packed(directory, rotary)


def test_tied_tensors_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    directory = tmp_path / "packed"
    rhoc.compile(CASES["tied"].make(), on("tied", "int4")).save(directory)
    assert not any(name.startswith("head.") for name in load_file(directory / TENSORS))
    loaded = load_packed(directory, CASES["tied"].make())
    assert loaded.head.weight is loaded.embed.weight
    dense = tmp_path / "dense"
    rhoc.compile(CASES["tied"].make(), "dense").save(dense)
    loaded = load_packed(dense, CASES["tied"].make())
    assert loaded.head.weight is loaded.embed.weight


@pytest.mark.parametrize("target", ["nothing", "embed"])
def test_files_that_keep_tied_tensors_once_are_loaded_into_models_that_tie_them(
    target: str, tmp_path: Path
) -> None:
    """Those of others: nothing in them says what is tied."""
    spec = {"version": 1, "rules": [{"targets": target, "weights": "int4"}]} if target == "embed" else "dense"
    compiled = rhoc.compile(CASES["tied"].make(), spec)
    compiled.save(tmp_path)
    file = tmp_path / DOCUMENT
    file.write_text(json.dumps(json.loads(file.read_text()) | {"aliases": {}}))
    loaded = load_packed(tmp_path, CASES["tied"].make())
    assert loaded.head.weight is loaded.embed.weight
    tokens = torch.arange(6)[None]
    assert torch.equal(loaded(tokens), compiled.packed()(tokens))


@pytest.mark.parametrize("spec", ["dense", {"version": 1, "rules": [{"targets": "head", "weights": "int4"}]}])
def test_tensors_that_differ_are_not_loaded_as_one(spec: object, tmp_path: Path) -> None:
    untied = CASES["tied"].make()
    untied.head.weight = nn.Parameter(untied.embed.weight.detach() + 1)
    rhoc.compile(untied, spec).save(tmp_path)  # type: ignore[arg-type]
    with pytest.raises(
        RequestError, match=r"embed.weight and head.weight are one tensor in this model, and two"
    ):
        load_packed(tmp_path, CASES["tied"].make())
    with torch.no_grad():
        untied.head.weight.copy_(untied.embed.weight)
    if spec == "dense":
        rhoc.compile(untied, "dense").save(tmp_path)
        assert torch.equal(load_packed(tmp_path, CASES["tied"].make()).head.weight, untied.embed.weight)


def test_an_earlier_packed_model_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    directory = saved(tmp_path)
    saved(tmp_path, spec="int8")
    assert read_packed(directory)[0].spec["name"] == "int8"
    (tmp_path / "empty").mkdir()
    rhoc.compile(mlp(), "int4").save(tmp_path / "empty")
    (directory / "notes.txt").write_text("mine")
    with pytest.raises(RequestError, match=r"exists and is no packed model; choose an empty directory"):
        saved(tmp_path)
    assert (directory / "notes.txt").read_text() == "mine"
    with pytest.raises(RequestError, match="exists and is no packed model"):
        rhoc.compile(mlp(), "int4").save(directory / "notes.txt")


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkError, match=r"cannot write .*inside: Not a directory"):
        rhoc.compile(mlp(), "int4").save(tmp_path / "file" / "inside")


def test_an_interrupted_save_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = saved(tmp_path)
    compiled = rhoc.compile(mlp(), "int8")

    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rhoc.runtime.checkpoint.os.fsync", full)
    with pytest.raises(WorkError, match="No space left on device"):
        compiled.save(directory)
    assert read_packed(directory)[0].spec["name"] == "int4-a4"
    assert [entry.name for entry in tmp_path.iterdir()] == ["packed"]


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"step": 1}

        def set_extra_state(self, state: dict[str, int]) -> None:
            pass

    with pytest.raises(RequestError, match=r"_extra_state is no tensor and cannot be saved; keep it out"):
        save_packed(tmp_path / "out", Extra(4, 4), {}, "")


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        document = json.loads((directory / DOCUMENT).read_text())
        change(document)
        (directory / DOCUMENT).write_text(json.dumps(document))

    return apply


def truncate(directory: Path) -> None:
    content = (directory / TENSORS).read_bytes()
    (directory / TENSORS).write_bytes(content[: len(content) // 2])


DAMAGE: dict[str, tuple[Callable[[Path], object], type[RhocError], str]] = {
    "nothing there": (shutil.rmtree, RequestError, r"packed: no packed model here; `rhoc compile"),
    "no tensors": (
        lambda directory: (directory / TENSORS).unlink(),
        RequestError,
        r"packed: model\.safetensors is missing",
    ),
    "truncated": (truncate, WorkError, r"model\.safetensors: not the file that rhoc\.json was written for"),
    "no json": (
        lambda directory: (directory / DOCUMENT).write_text("{"),
        WorkError,
        r"rhoc\.json: not valid JSON \(.*\); save the model again",
    ),
    "not text": (
        lambda directory: (directory / DOCUMENT).write_bytes(b"\xff\xfe\x00"),
        WorkError,
        r"rhoc\.json: not valid JSON",
    ),
    "foreign": (
        lambda directory: (directory / DOCUMENT).write_text('{"model_type": "llama"}'),
        RequestError,
        r"rhoc\.json: not the document of a packed rhoc model; was it written by another tool\?",
    ),
    "a list": (
        lambda directory: (directory / DOCUMENT).write_text("[]"),
        RequestError,
        r"rhoc\.json: not the document of a packed rhoc model",
    ),
    "newer": (
        edit(lambda document: document.update(version=7)),
        RequestError,
        r"version 7, and this rhoc reads 6; use the version of rhoc that wrote it",
    ),
    "key gone": (
        edit(lambda document: document.pop("weights")),
        RequestError,
        r"'weights' is missing or of the wrong kind; save the model again",
    ),
    "unknown stage": (
        edit(lambda document: document["weights"]["0.weight"]["stages"][0].update(kind="wavelet")),
        RequestError,
        r"no stage is called 'wavelet' \(known: .*\); it was written by another version",
    ),
    "unknown option": (
        edit(lambda document: document["weights"]["0.weight"]["stages"][0].update(block=42)),
        RequestError,
        r"hadamard: block must be a power of two, .* got 42",
    ),
    "unknown dtype": (
        edit(lambda document: document["weights"]["0.weight"].update(dtype="float5")),
        RequestError,
        r"no dtype is called 'float5'",
    ),
    "another representation": (
        edit(lambda document: document["weights"]["0.weight"]["stages"][1].update(num_bits=8)),
        RequestError,
        r"0\.weight\.carry is missing or of the wrong shape; save the model again",
    ),
    "alias to nowhere": (
        edit(lambda document: document.update(aliases={"x": "y"})),
        RequestError,
        r"rhoc\.json: x is said to be y, which is not there; save the model again",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_and_named(name: str, tmp_path: Path) -> None:
    damage, kind, message = DAMAGE[name]
    directory = saved(tmp_path)
    damage(directory)
    with pytest.raises(kind, match=message):
        load_packed(directory, mlp())


def stack(first: int, bias: bool, *middle: nn.Module, last_bias: bool = False) -> nn.Module:
    """A relative of the model that was saved."""
    modules = middle or (nn.ReLU(), nn.ReLU())
    return nn.Sequential(nn.Linear(16, first, bias=bias), *modules, nn.Linear(32, 8, bias=last_bias))


OTHERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "shorter": (
        lambda: nn.Sequential(nn.Linear(16, 32)),
        r"the model has no parameter 3\.weight; load it into",
    ),
    "narrower": (
        lambda: stack(16, True),
        r"0\.weight has shape \(16, 16\) in this model and \(32, 16\) in the saved",
    ),
    "bias more": (
        lambda: stack(32, True, last_bias=True),
        r"it was saved without 3\.bias, unlike this model",
    ),
    "bias less": (lambda: stack(32, False), r"it was saved with 0\.bias, unlike this model"),
    "norm more": (lambda: stack(32, True, nn.LayerNorm(4), nn.ReLU()), r"without 1\.bias, 1\.weight, unlike"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture_is_refused(name: str, tmp_path: Path) -> None:
    directory = saved(tmp_path)
    make, message = OTHERS[name]
    with pytest.raises(RequestError, match=message) as error:
        load_packed(directory, make())
    assert str(error.value).startswith(f"{directory}: ")


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_are_for_whom_the_umask_says(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        directory = saved(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (directory, *directory.iterdir())}
    files = 0o666 & ~umask
    assert modes == {"packed": 0o777 & ~umask, TENSORS: files, DOCUMENT: files}


class Normed(nn.Module):
    """A residual stream with layer norms, which rotations are folded around."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.norm = nn.Embedding(20, 32), nn.LayerNorm(32)
        self.up, self.down = nn.Linear(32, 64, bias=False), nn.Linear(64, 32, bias=False)
        self.last, self.head = nn.LayerNorm(32), nn.Linear(32, 20, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = self.embedding(x)
        stream = stream + self.down(torch.relu(self.up(self.norm(stream))))
        return self.head(self.last(stream))  # type: ignore[no-any-return]


def test_norms_that_were_centred_for_rotations_come_back_so(tmp_path: Path) -> None:
    chain = "hadamard(16) >> quantize(int8, group=16)"
    rule = {"targets": "Linear", "ignore": "head", "weights": chain}
    x = torch.arange(20)[None]
    spec = {"version": 1, "rules": [rule], "passes": ["fold_rotations"]}
    compiled = rhoc.compile(Normed().eval(), spec, (x,))
    compiled.save(tmp_path / "packed")
    loaded = load_packed(tmp_path / "packed", Normed())
    with torch.no_grad():
        assert torch.equal(loaded(x), compiled.packed()(x))
        torch.testing.assert_close(loaded(x), Normed()(x), rtol=0, atol=0.02)
    other = Normed()
    other.norm = nn.RMSNorm(32)  # type: ignore[assignment]
    other.norm.register_parameter("bias", nn.Parameter(torch.zeros(32)))
    with pytest.raises(RequestError, match=r"no layer norm norm; load it into the architecture"):
        load_packed(tmp_path / "packed", other)
    file = tmp_path / "packed" / DOCUMENT
    document = json.loads(file.read_text())
    assert document.pop("centred") == ["norm", "last"]
    file.write_text(json.dumps(document | {"version": 3}))
    assert isinstance(load_packed(tmp_path / "packed", Normed()).norm, nn.LayerNorm)  # as it was before


def test_plain_data_and_back() -> None:
    for name in ("int4-a4", "2of4-int4", "sparse50", "fp8"):
        representation = rhoc.load_spec(name).rules[0].weight_representation
        assert from_plain(json.loads(json.dumps(to_plain(representation)))) == representation


@pytest.mark.parametrize(
    "rule",
    [
        {"weights": "dense", "input_activations": "int4-a4"},
        {"weights": "int4", "output_activations": "quantize(int8, token)"},
        {"weights": "dense", "output_activations": "quantize(int4, token)"},
    ],
    ids=["dense weights, inputs", "outputs", "dense weights, outputs"],
)
def test_what_is_done_around_weights_comes_back(rule: dict[str, Any], tmp_path: Path) -> None:
    model = mlp().double()
    spec = {"version": 1, "summary": "around", "rules": {"targets": "Linear", **rule}}
    compiled = rhoc.compile(model, spec)
    compiled.save(tmp_path / "out")
    loaded = load_packed(tmp_path / "out", model)
    with torch.no_grad():
        width = next(model.parameters()).shape[-1]
        x = torch.randn(3, width, dtype=torch.float64)
        assert torch.equal(loaded(x), compiled.packed()(x))
        assert not torch.equal(loaded(x), model(x))
    save_packed(tmp_path / "again", loaded, {}, "")
    with torch.no_grad():
        assert torch.equal(load_packed(tmp_path / "again", model)(x), loaded(x))


def test_represented_keys_and_values_come_back(tmp_path: Path) -> None:
    model = llama(width=32).double()
    rule = {"targets": "Attention", "kv_cache": "quantize(int4, token)"}
    compiled = rhoc.compile(model, {"version": 1, "summary": "cache", "rules": rule}, model.example_inputs)
    compiled.save(tmp_path / "out")
    loaded = load_packed(tmp_path / "out", model)
    with torch.no_grad():
        (tokens,) = model.example_inputs
        assert torch.equal(loaded(tokens), compiled.packed()(tokens))
        assert not torch.equal(loaded(tokens), model(tokens))
    edit(lambda document: document["caches"].update({"layers.9": []}))(tmp_path / "out")
    with pytest.raises(RequestError, match=r"the model has no module layers\.9"):
        load_packed(tmp_path / "out", model)
