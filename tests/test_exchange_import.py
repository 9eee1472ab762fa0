"""Checkpoints of others as packed models: the same weights to the bit, and one clear error for damage."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rhoc
from rhoc.compiler.exchange.compressed_tensors import export_compressed_tensors
from rhoc.compiler.exchange.folder import TENSORS
from rhoc.compiler.exchange.reading import Imported, import_compressed_tensors
from rhoc.compiler.exchange.skeleton import saved_skeleton
from rhoc.compiler.exchange.source import source_of
from rhoc.runtime.checkpoint import DOCUMENT, save_packed
from rhoc.runtime.errors import RequestError, RhocError, WorkError
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import packed_weights

from .safetensors_numpy import E2M1, e2m1
from .test_exchange_layouts import A8, BF16, CASES, F16, F32, exported, net, packed, spec

Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def saved(imported: Imported, directory: Path) -> Path:
    save_packed(directory, imported.model, imported.spec.to_document(), imported.spec.digest)
    return directory


@pytest.mark.parametrize(("weights", "dtype", "form"), CASES)
def test_what_was_exported_comes_back(weights: str, dtype: torch.dtype, form: str, tmp_path: Path) -> None:
    model = packed(weights, dtype)
    exported(tmp_path / "out", model)
    imported = import_compressed_tensors(tmp_path / "out")
    (before,), (after,) = packed_weights(model).values(), packed_weights(imported.model).values()
    decoded = before.decode()
    assert torch.equal(after.decode().to(dtype), decoded)
    assert form != "nvfp4-pack-quantized" or "tensor_group" in str(after.representation)
    rule = imported.spec.rules[0]
    assert rule.targets == ("Linear",)
    assert rule.ignore == ("1",)
    assert str(rule.weight_representation) == str(after.representation)
    if before.encoded_dtype == after.encoded_dtype:
        exported_again(imported, model, tmp_path)


def exported_again(imported: Imported, model: nn.Module, tmp_path: Path) -> None:
    """Export, import, save, export writes the same bytes as the first export."""
    skeleton, of = saved_skeleton(saved(imported, tmp_path / "packed"))
    assert of == imported.spec
    export_compressed_tensors(tmp_path / "again", source_of(skeleton, of, net(BF16)))
    first, again = load_file(tmp_path / "out" / TENSORS), load_file(tmp_path / "again" / TENSORS)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[n].view(torch.uint8), again[n].view(torch.uint8)) for n in first)


def test_an_imported_model_runs_in_its_architecture(tmp_path: Path) -> None:
    of = spec("hadamard(32) >> quantize(int4, group=32)", "0", A8)
    model = nn.Sequential(nn.Linear(96, 20), nn.ReLU(), nn.Linear(20, 4))
    compiled = rhoc.compile(model, of)
    compiled.save(tmp_path / "before")
    before = load_packed(tmp_path / "before", model)
    exported(tmp_path / "out", compiled.packed(), of)
    loaded = load_packed(saved(import_compressed_tensors(tmp_path / "out"), tmp_path / "packed"), model)
    x = torch.randn(5, 96)
    with torch.no_grad():
        assert torch.equal(loaded(x), before(x))
    (weight,) = packed_weights(loaded).values()
    assert str(weight.input) == str(before[0].weight.input)
    assert not load_packed(tmp_path / "packed", model).training


def test_symmetric_codes_of_one_bit_have_a_zero_point_here(tmp_path: Path) -> None:
    write(tmp_path, {"num_bits": 1, "strategy": "channel"}, {
        "0.weight_packed": torch.tensor([[0b0110], [0b1001]], dtype=torch.int32),
        "0.weight_scale": torch.tensor([[0.5], [2.0]]),
        "0.weight_shape": torch.tensor([2, 4]),
    })  # fmt: skip
    (weight,) = packed_weights(import_compressed_tensors(tmp_path).model).values()
    assert weight.decode().tolist() == [[-0.5, 0, 0, -0.5], [0, -2, -2, 0]]


def write(directory: Path, weights: dict[str, Any], tensors: dict[str, torch.Tensor], **changed: Any) -> None:
    group = {"targets": ["Linear"], "weights": weights}
    quantization = {
        "quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"group_0": group},
    } | changed  # fmt: skip
    (directory / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    save_file(tensors, directory / TENSORS)


def test_any_global_scale_of_nvfp4_is_taken_exactly(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i, factor in enumerate([1.0, 3.0, 1 / 7, 1234.567, *rng.uniform(1, 5e4, 12).tolist()]):
        codes = rng.integers(0, 256, (64, 32), dtype=np.uint8)
        scales = torch.from_numpy(rng.uniform(0.02, 448, (64, 4))).to(torch.float8_e4m3fn)
        directory = tmp_path / str(i)
        directory.mkdir()
        write(directory, {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}, {
            "0.weight_packed": torch.from_numpy(codes),
            "0.weight_scale": scales,
            "0.weight_global_scale": torch.tensor([factor]),
        }, format="nvfp4-pack-quantized")  # fmt: skip
        (weight,) = packed_weights(import_compressed_tensors(directory).model).values()
        numbers = e2m1(np.stack([codes & 15, codes >> 4], -1).reshape(64, 64))
        scale = (scales.to(torch.float32).numpy() / np.float32(factor)).repeat(16, 1)
        expected = torch.from_numpy(numbers.astype(np.float32) * scale).to(torch.bfloat16)
        assert torch.equal(weight.decode(), expected), factor
    assert E2M1[-1] == 6


def test_scales_of_a_cache_are_left_out_and_said(tmp_path: Path) -> None:
    exported(tmp_path / "out", packed("quantize(int4, group=32)"))
    file, weights = tmp_path / "out" / "config.json", tmp_path / "out" / TENSORS
    config = json.loads(file.read_text())
    config["quantization_config"]["kv_cache_scheme"] = {"num_bits": 8, "type": "float", "dynamic": False}
    file.write_text(json.dumps(config))
    scales = {f"1.{name}_scale": torch.ones(1) for name in "kv"}
    save_file(load_file(weights) | scales, weights)
    imported = import_compressed_tensors(tmp_path / "out")
    assert imported.notes == ("kv_cache_scheme is not taken over: attention runs on dense keys and values",)
    assert not any(name.endswith(("k_scale", "v_scale")) for name in imported.model.state_dict())


def test_static_inputs_keep_their_step(tmp_path: Path) -> None:
    of = spec("quantize(int8, channel)", "0", "quantize(int8, step=0.03125)")
    model = rhoc.compile(net(BF16), of).packed()
    exported(tmp_path / "out", model, of)
    assert load_file(tmp_path / "out" / TENSORS)["0.input_scale"].tolist() == [0.03125]
    (weight,) = packed_weights(import_compressed_tensors(tmp_path / "out").model).values()
    assert weight.input.stages[0].step == 0.03125


def test_shards_are_read_through_their_index(tmp_path: Path) -> None:
    model = packed("quantize(int4, group=32)")
    exported(tmp_path / "out", model)
    tensors = load_file(tmp_path / "out" / TENSORS)
    (tmp_path / "out" / TENSORS).unlink()
    names, weight_map = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2])):
        save_file({name: tensors[name] for name in part}, tmp_path / "out" / f"model-{i}.safetensors")
        weight_map |= dict.fromkeys(part, f"model-{i}.safetensors")
    (tmp_path / "out" / f"{TENSORS}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (weight,) = packed_weights(import_compressed_tensors(tmp_path / "out").model).values()
    assert torch.equal(weight.decode(), next(iter(packed_weights(model).values())).decode())
    (tmp_path / "out" / "model-1.safetensors").unlink()
    with pytest.raises(RequestError, match=r"model-1\.safetensors is missing"):
        import_compressed_tensors(tmp_path / "out")


def group(config: dict[str, Any]) -> dict[str, Any]:
    return config["quantization_config"]["config_groups"]["group_0"]


def without(name: str) -> Change:
    return lambda config, tensors: tensors.__delitem__(name)


def other(name: str, value: torch.Tensor) -> Change:
    return lambda config, tensors: tensors.__setitem__(name, value)


def said_otherwise(key: str, value: object) -> Change:
    return lambda config, tensors: group(config)["weights"].__setitem__(key, value)


def top(key: str, value: object) -> Change:
    return lambda config, tensors: config["quantization_config"].__setitem__(key, value)


def no_config(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    del config["quantization_config"]


DAMAGES: list[tuple[Change, str]] = [
    (without("0.weight_shape"), r"0: weight_shape is missing; copy"),
    (without("0.weight_packed"), r"0: weight_packed is missing; copy"),
    (without("0.weight_zero_point"), r"0: weight_zero_point is missing; copy"),
    (other("0.weight_packed", torch.zeros(20, 8, dtype=torch.int32)), r"weight_packed has shape \[20, 8\], and its format needs \[20, 9\]"),
    (other("0.weight_packed", torch.zeros(20, 9, dtype=torch.int64)), r"weight_packed holds int64, and its format has int32"),
    (other("0.weight_scale", torch.zeros(20, 4)), r"weight_scale has shape \[20, 4\], .* needs \[20, 3\]"),
    (other("0.weight_scale", torch.zeros(20, 3, dtype=torch.int8)), r"weight_scale holds int8, .* a float"),
    (other("0.weight_shape", torch.tensor([20, -96])), r"weight_shape is \[20, -96\], not that of a matrix"),
    (said_otherwise("num_bits", 4), r"weight_packed has shape \[20, 9\], and its format needs \[20, 12\]"),
    (said_otherwise("num_bits", 16), r"num_bits is 16, and rhoc reads 1 to 8; was it written by a later version"),
    (said_otherwise("strategy", "attn_head"), r"strategy is 'attn_head', and rhoc reads"),
    (said_otherwise("group_size", 48), r"weight_scale has shape \[20, 3\], .* needs \[20, 2\]"),
    (said_otherwise("actorder", "group"), r"actorder is 'group'"),
    (top("format", "marlin-24"), r"format 'marlin-24' is not known \(known: int-quantized"),
    (top("config_groups", {}), r"config\.json: there are no config_groups"),
    (top("config_groups", {"W4A16": ["Linear"]}), r"config group 'W4A16' has no weights written out"),
    (top("quant_method", "gptq"), r"config\.json: its quantization_config is not compressed-tensors'"),
    (top("transform_config", {"config_groups": {"u": {"type": "random-matrix", "apply": [{"targets": ["Linear"], "location": "output"}]}}}), r"a transform of type 'random-matrix' at output is not known here"),
    (said_otherwise("actorder", True), r"actorder is True, and rhoc reads weight"),
    (said_otherwise("symmetric", None), r"symmetric is None"),
    (said_otherwise("dynamic", "always"), r"dynamic is 'always'"),
    (said_otherwise("group_size", True), r"group_size is True"),
    (top("config_groups", "Linear"), r"config\.json: config_groups is not a mapping; is config"),
    (top("config_groups", {"group_0": {"targets": [1], "weights": {}, "format": "pack-quantized"}}), r"config\.json: targets is not a list of names"),
    (top("ignore", 3), r"config\.json: ignore is not a list of names"),
    (top("format", ["pack-quantized"]), r"config\.json: format is not a name"),
    (top("sparsity_config", "2:4"), r"config\.json: sparsity_config is not a mapping"),
    (top("transform_config", {"config_groups": [1]}), r"config\.json: config_groups is not mappings"),
    (top("transform_config", {"config_groups": {"u": {"type": "hadamard", "head_dim": "x"}}}), r"head_dim is 'x', no size"),
    (no_config, r"its quantization_config is not compressed-tensors'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), DAMAGES)
def test_damage_is_one_clear_error(change: Change, said: str, tmp_path: Path) -> None:
    exported(tmp_path / "out", packed("quantize(int3, asymmetric, group=32)"))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tensors = load_file(tmp_path / "out" / TENSORS)
    group(config).pop("format")  # that of the whole checkpoint holds
    change(config, tensors)
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "out" / TENSORS)
    with pytest.raises(RequestError, match=said) as caught:
        import_compressed_tensors(tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "out") in str(caught.value)


def test_files_that_are_no_files_of_their_kind(tmp_path: Path) -> None:
    exported(tmp_path / "out", packed("quantize(int4, group=32)"))
    file = tmp_path / "out" / TENSORS
    content = file.read_bytes()
    for broken in (content[:-7], content[:5], b"", struct.pack("<Q", 1 << 40) + content[8:]):
        file.write_bytes(broken)
        with pytest.raises(WorkError, match=r"model\.safetensors: cannot be read \(.*; truncated or changed"):
            import_compressed_tensors(tmp_path / "out")
    file.unlink()
    with pytest.raises(RequestError, match=r"model\.safetensors is missing; copy"):
        import_compressed_tensors(tmp_path / "out")
    (tmp_path / "out" / "config.json").write_text("{")
    with pytest.raises(WorkError, match=r"config\.json: not valid JSON"):
        import_compressed_tensors(tmp_path / "out")
    with pytest.raises(RequestError, match=r"there is no config\.json here"):
        import_compressed_tensors(tmp_path / "nowhere")


def test_a_saved_model_with_another_spec_is_found_out(tmp_path: Path) -> None:
    directory = tmp_path / "packed"
    rhoc.compile(net(F32), spec("quantize(int4, group=32)")).save(directory)
    file = directory / DOCUMENT
    document = json.loads(file.read_text())
    document["spec"]["rules"][0]["weights"][0]["num_bits"] = 5
    file.write_text(json.dumps(document))
    with pytest.raises(RequestError, match=r"the spec in rhoc\.json is not the one that it was written with"):
        saved_skeleton(directory)
    document["version"] = 99
    file.write_text(json.dumps(document))
    with pytest.raises(RhocError, match="version 99, and this rhoc reads"):
        saved_skeleton(directory)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "packed"
    rhoc.compile(net(F16), spec("quantize(int4, group=32)")).save(directory)
    skeleton, of = saved_skeleton(directory)
    with pytest.raises(
        RequestError, match=r"^0\.weight: a weight of shape \[20, 96\] .* one of shape \[20, 95\]"
    ):
        source_of(skeleton, of, nn.Sequential(nn.Linear(95, 20)))
    with pytest.raises(RequestError, match=r"^0\.weight: .* the model has none"):
        source_of(skeleton, of, nn.Sequential(nn.ReLU()))
