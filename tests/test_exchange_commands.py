"""`rhoc export` and `rhoc import`: what they write, what they say, and how they refuse."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import rhoc
from rhoc.compiler.model_reference import ModelReference
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import packed_weights

from .command_line import LLAMA, CommandLine

SEEDED = "seeded.py:build"
FACTORY = """
import torch
from rhoc.runtime.llama import llama

def build():
    torch.manual_seed(0)
    return llama(width=16)
"""
SPEC = "version: 1\nrules:\n  - {targets: Linear, ignore: lm_head, weights: %s}\n"


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(SPEC % '"quantize(int4, group=16)"')
    (tmp_path / "seeded.py").write_text(FACTORY)
    (tmp_path / "sparse.yaml").write_text(SPEC % '"sparsify(2:4) >> quantize(int4, group=8)"')
    return CommandLine(capsys, tmp_path)


def test_out_and_in_again_and_the_model_runs_the_same(command: CommandLine) -> None:
    said = command(
        "export", "mine.yaml", "--model", SEEDED, "--to", "compressed-tensors", "--out", "out", "--json"
    )
    assert said.code == 0
    document = said.document
    assert document.keys() == {"out", "to", "notes", "layers", "bytes", "seconds"}
    assert document["layers"] == len(
        [n for n in load_file("out/model.safetensors") if n.endswith("weight_packed")]
    )
    assert document["bytes"] == Path("out/model.safetensors").stat().st_size
    said = command("import", "out", "--out", "packed", "--json")
    assert said.code == 0
    assert said.document["spec"]["rules"][0]["targets"] == ["Linear"]
    model = ModelReference.parse(SEEDED).build()
    reference = rhoc.compile(model, "mine.yaml").reference().state_dict()
    loaded = packed_weights(load_packed("packed", model))
    assert len(loaded) == document["layers"]
    assert all(torch.equal(weight.decode(), reference[path]) for path, weight in loaded.items())
    said = command("export", "packed", "--to", "compressed-tensors", "--out", "again")
    assert said.code == 0
    assert (
        said.err
        == f"wrote again: {document['layers']} represented weights, {document['bytes']:,} bytes in all\n"
    )
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()


def test_sparse_and_dense(command: CommandLine) -> None:
    assert command("export", "sparse.yaml", "--model", SEEDED, "--to", "sparse", "--out", "out").code == 0
    assert command("import", "out", "--out", "packed").code == 0
    assert command("export", "packed", "--to", "sparse", "--out", "again").code == 0
    assert Path("again/model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()
    assert command("export", "packed", "--to", "dense", "--out", "dense").code == 0
    model = ModelReference.parse(SEEDED).build()
    reference = rhoc.compile(model, "sparse.yaml").reference().state_dict()
    dense = load_file("dense/model.safetensors")
    assert dense.keys() == reference.keys()
    assert all(torch.equal(dense[name], tensor) for name, tensor in reference.items())


def test_weights_are_those_of_the_file(command: CommandLine) -> None:
    trained = ModelReference.parse(SEEDED).build()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(-1.5)
    save_file(trained.state_dict(), "trained.safetensors")
    given = ("--model", SEEDED, "--weights", "trained.safetensors")
    assert command("export", "mine.yaml", *given, "--to", "dense", "--out", "dense").code == 0
    expected = rhoc.compile(trained, "mine.yaml").reference().state_dict()
    dense = load_file("dense/model.safetensors")
    assert all(torch.equal(dense[name], tensor) for name, tensor in expected.items())
    save_file({"a": torch.zeros(1)}, "other.safetensors")
    given = ("--model", SEEDED, "--weights", "other.safetensors")
    said = command("export", "mine.yaml", *given, "--to", "dense", "--out", "o")
    assert (said.code, Path("o").exists()) == (2, False)
    assert said.err.startswith("error: other.safetensors: the file lacks ")
    rhoc.compile(trained, "mine.yaml").save("packed")
    said = command("export", "packed", *given, "--to", "dense", "--out", "o")
    assert (said.code, said.err) == (
        2,
        "error: packed: a packed model has its own weights; leave --weights out\n",
    )


def test_what_is_to_be_known_is_said(command: CommandLine) -> None:
    said = command(
        "export",
        "mxfp4",
        "--model",
        "rhoc.runtime.llama:llama(width=32)",
        "--to",
        "compressed-tensors",
        "--out",
        "out",
    )
    assert said.code == 0
    assert said.err.startswith(
        "note: mxfp4-pack-quantized is decompressed to bfloat16, and this model is in another"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "int4", "--model", LLAMA, "--to", "compressed-tensors", "--out", "o"), "error: layers.0.self_attn.q_proj.weight: grid midrise of "),
        (("export", "mine.yaml", "--to", "dense", "--out", "o"), "error: mine.yaml is a spec, and needs a model; give --model"),
        (("export", "nothing", "--model", LLAMA, "--to", "dense", "--out", "o"), "error: no spec is called"),
        (("export", ".", "--to", "dense", "--out", "o"), "error: .: no packed model here; `rhoc import` reads other checkpoints"),
        (("export", "mine.yaml", "--model", LLAMA, "--to", "dense", "--out", "."), "error: {folder} exists and is not empty; choose an empty directory"),
        (("export", "mine.yaml", "--model", LLAMA, "--to", "sparse", "--out", "o"), "error: layers.0.self_attn.q_proj.weight: quantize(int4, twos, group=16, absmax) is not one sparsify stage"),
        (("import", "nowhere", "--out", "o"), "error: nowhere: there is no config.json here"),
    ],
)  # fmt: skip
def test_refusals_are_one_line_and_write_nothing(
    command: CommandLine, arguments: tuple[str, ...], said: str
) -> None:
    result = command(*arguments)
    assert result.code == 2
    assert result.err.startswith(said.format(folder=command.folder))
    assert result.err.count("\n") == 1
    assert result.out == ""
    assert not Path("o").exists()


def test_damaged_files_fail(command: CommandLine) -> None:
    command("export", "mine.yaml", "--model", LLAMA, "--to", "compressed-tensors", "--out", "out")
    file = Path("out/model.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    result = command("import", "out", "--out", "o")
    assert result.code == 1
    assert "model.safetensors: cannot be read" in result.err
    config = json.loads(Path("out/config.json").read_text())
    config["quantization_config"]["quant_method"] = "awq"
    Path("out/config.json").write_text(json.dumps(config))
    result = command("import", "out", "--out", "o")
    assert result.code == 2
    assert "`rhoc import` reads compressed-tensors and sparse-pack-quantized" in result.err


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
@pytest.mark.filterwarnings("ignore")
def test_hf_needs_a_model_of_transformers(command: CommandLine) -> None:
    result = command("export", "mine.yaml", "--model", LLAMA, "--to", "hf", "--out", "o")
    assert result.code == 2
    assert result.err == "error: Llama is no model of transformers; save it with `compiled.save(DIR)`\n"
