"""Packed models in transformers: saved and loaded packed after one `import rhoc`. Skipped without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rhoc
from rhoc.runtime.errors import RequestError, RhocError, WorkError
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import Packed

pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")
TOKENS = torch.arange(12)[None]


def llama(dtype: torch.dtype = torch.float32, **changed: Any) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, **changed,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, torch_dtype=dtype).eval()


def loaded(directory: Path, **changed: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, torch_dtype="auto", **changed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "spec", ["int4-g128", "2of4-int4", "nvfp4", "w8a8", "nf4-double", "int8-huffman", "kmeans4", "dense"]
)
def test_it_loads_packed_with_the_same_logits(spec: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = llama(dtype)
    compiled = rhoc.compile(model, spec)
    rhoc.as_pretrained(compiled.packed(), compiled.spec).save_pretrained(
        tmp_path / "hf", max_shard_size="60KB"
    )
    compiled.save(tmp_path / "own")
    again, own = loaded(tmp_path / "hf"), load_packed(tmp_path / "own", model)
    with torch.no_grad():
        logits = again(TOKENS).logits
        assert torch.equal(logits, own(TOKENS).logits)
        fused = compiled.packed()(TOKENS).logits  # its kernels may take several layers at once
        assert torch.allclose(logits, fused, atol=1e-5 if dtype == torch.float32 else 2e-2)
    before, after = own.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(before[n].dtype == after[n].dtype and torch.equal(before[n], after[n]) for n in before)
    again.save_pretrained(tmp_path / "twice")
    with torch.no_grad():
        assert torch.equal(loaded(tmp_path / "twice")(TOKENS).logits, logits)


def test_tied_packed_embeddings_stay_tied(tmp_path: Path) -> None:
    rule = {"targets": ["Linear", "Embedding"], "weights": "int8-channel"}
    compiled = rhoc.compile(llama(tie_word_embeddings=True), {"version": 1, "rules": [rule]})
    rhoc.as_pretrained(compiled.packed(), compiled.spec).save_pretrained(tmp_path)
    assert not any(name.startswith("lm_head") for name in load_file(tmp_path / "model.safetensors"))
    again = loaded(tmp_path)
    assert isinstance(again.lm_head.weight, Packed)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    assert torch.equal(again.lm_head.weight.decode(), compiled.packed().lm_head.weight.decode())
    with torch.no_grad():
        assert again.generate(TOKENS, max_new_tokens=3, do_sample=False).shape == (1, 15)


def test_a_dtype_that_is_asked_for_is_what_it_computes_in(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    compiled = rhoc.compile(llama(torch.bfloat16), "int4-g128")
    rhoc.as_pretrained(compiled.packed(), compiled.spec).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, torch_dtype=torch.float16)
    assert again.model(TOKENS).last_hidden_state.dtype == torch.float16
    weight = again.model.layers[0].mlp.up_proj.weight
    assert weight.fields()["0.scale"].dtype == torch.bfloat16  # stored as it was
    assert torch.equal(weight.decode(), compiled.packed().model.layers[0].mlp.up_proj.weight.decode().half())


def saved(tmp_path: Path) -> Path:
    compiled = rhoc.compile(llama(), "int4-g128")
    rhoc.as_pretrained(compiled.packed(), compiled.spec).save_pretrained(tmp_path)
    return tmp_path


def test_config_json_says_how_it_is_packed(tmp_path: Path) -> None:
    quantization = json.loads((saved(tmp_path) / "config.json").read_text())["quantization_config"]
    assert quantization["quant_method"] == "rhoc"
    assert rhoc.load_spec(quantization["spec"]).digest == quantization["spec_digest"]
    assert quantization["weights"]["model.layers.1.mlp.up_proj.weight"]["shape"] == [128, 64]


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_damaged_weights_are_found_out(damage: str, tmp_path: Path) -> None:
    file = saved(tmp_path) / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight.carry"
    if damage == "missing":
        del tensors[name]
    else:
        tensors[name] = tensors[name] ^ 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        WorkError, match=r"the packed weights are not those that were saved: truncated, changed or"
    ):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("version", 99, r"quantization_config: version 99, and this rhoc reads"),
        ("weights", {"model.norm.w": {"stages": []}}, r"quantization_config: 'input' is missing or of the wrong kind"),
        ("weights", {"model.nowhere.weight": {"stages": [], "input": [], "shape": [1], "dtype": "float32"}}, r"model\.nowhere\.weight: .*, the model no such parameter"),
    ],
)  # fmt: skip
def test_a_wrong_config_is_one_clear_error(key: str, value: object, said: str, tmp_path: Path) -> None:
    file = saved(tmp_path) / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"][key] = value
    file.write_text(json.dumps(config))
    with pytest.raises(RhocError, match=said):
        loaded(tmp_path)


def test_other_models_are_refused() -> None:
    with pytest.raises(RequestError, match="Linear is no model of transformers; save it with"):
        rhoc.as_pretrained(torch.nn.Linear(2, 2), rhoc.load_spec("int4"))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"targets": "LlamaAttention", "weights": "dense", "kv_cache": "quantize(int8, token, dynamic)"}, "kv_cache"),
        ({"targets": "lm_head", "weights": "dense", "input_activations": "int8-a8"}, "input_activations of dense"),
    ],
)  # fmt: skip
def test_what_config_json_has_no_place_for_is_refused(rule: dict[str, Any], said: str) -> None:
    spec = {"version": 1, "rules": [rule, {"targets": "Linear", "weights": "int8-channel"}]}
    compiled = rhoc.compile(llama(), spec, {"input_ids": TOKENS})
    with pytest.raises(RequestError, match=f"^spec .*: {said}.*there is no place for it"):
        rhoc.as_pretrained(compiled.packed(), compiled.spec)


@pytest.mark.parametrize("first", ["rhoc", "transformers.quantizers.auto"])
def test_one_import_in_either_order_registers(first: str) -> None:
    code = (
        f"import {first}, rhoc, sys; import transformers.quantizers.auto as auto;"
        "print(auto.AUTO_QUANTIZER_MAPPING['rhoc'].__name__, auto.AUTO_QUANTIZATION_CONFIG_MAPPING['rhoc'].__name__);"
        "print([f for f in sys.meta_path if type(f).__name__ == 'AfterImport'])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == ["RhocQuantizer RhocConfig", "[]"]
