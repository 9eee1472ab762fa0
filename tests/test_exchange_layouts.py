"""Checkpoints in compressed-tensors' layouts: read by numpy from the bytes, weights must be ours to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rhoc
from rhoc.compiler.exchange.coded import core_fields
from rhoc.compiler.exchange.compressed_tensors import export_compressed_tensors
from rhoc.compiler.exchange.layouts import LAYOUTS
from rhoc.compiler.exchange.source import source_of
from rhoc.compiler.exchange.words import from_words, to_words
from rhoc.runtime.errors import RequestError
from rhoc.runtime.packed import Packed, packed_weights

from .safetensors_numpy import bits, read, rounded, weight

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
_DTYPES = {BF16: "BF16", F16: "F16", F32: "F32"}
A8 = "quantize(int8, token, dynamic)"


def net(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Sequential(
        nn.Linear(96, 20), nn.Linear(20, 96, bias=False), nn.Embedding(7, 96), nn.LayerNorm(96)
    )
    return layers.to(dtype)


def spec(weights: str, targets: object = "0", inputs: str = "dense") -> rhoc.Spec:
    rule = {"targets": targets, "weights": weights, "input_activations": inputs}
    return rhoc.load_spec({"version": 1, "rules": [rule]})


def packed(
    weights: str, dtype: torch.dtype = BF16, targets: object = "0", inputs: str = "dense"
) -> nn.Module:
    torch.manual_seed(3)
    return rhoc.compile(net(dtype), spec(weights, targets, inputs)).packed()


def exported(directory: Path, model: nn.Module, of: rhoc.Spec | None = None) -> list[str]:
    return export_compressed_tensors(directory, source_of(model, of or spec("int4")))


def stored(weight: Packed) -> torch.Tensor:
    """What is decoded before rotations are undone."""
    core = weight.representation.core
    return core.decode(core.unpack(core_fields(weight), tuple(weight.shape), weight.encoded_dtype))


def check(directory: Path, model: nn.Module) -> dict[str, object]:
    config, tensors, _ = read(directory)
    quantization = config["quantization_config"]
    seen = {}
    for group in quantization["config_groups"].values():
        for path, each in packed_weights(model).items():
            name = path.removesuffix(".weight")
            if name in group["targets"] or (
                group["targets"] == ["Linear"] and name not in quantization["ignore"]
            ):
                own, dtype = stored(each), _DTYPES[each.encoded_dtype]
                bits_of = own.view(torch.int32 if dtype == "F32" else torch.int16).numpy()
                found = rounded(weight(tensors, name, group["format"], group["weights"]), dtype)
                assert np.array_equal(found, bits_of.view(found.dtype)), path
                seen[path] = group["format"]
    assert seen.keys() == packed_weights(model).keys()
    return quantization


CASES = [
    *[(f"quantize(int{b}, group=32)", BF16, "pack-quantized") for b in range(2, 9)],
    *[(f"quantize(int{b}, asymmetric, group=32)", BF16, "pack-quantized") for b in range(1, 9)],
    ("quantize(int4, channel)", F16, "pack-quantized"),
    ("quantize(int3)", F32, "pack-quantized"),
    ("quantize(int5, asymmetric, channel)", F32, "pack-quantized"),
    ("quantize(int5, asymmetric)", F16, "pack-quantized"),
    ("quantize(int4, group=32, scale_dtype=float16)", F32, "pack-quantized"),
    ("quantize(int4, midtread, group=32)", BF16, "pack-quantized"),
    ("quantize(int2, ternary, channel, rms)", BF16, "pack-quantized"),
    ("quantize(int8, group=32, mx)", BF16, "pack-quantized"),
    ("quantize(int4, channel, absmax_rule=signed)", BF16, "pack-quantized"),
    ("quantize(e4m3, channel)", BF16, "float-quantized"),
    ("quantize(e4m3)", F16, "float-quantized"),
    ("quantize(e4m3, group=32)", F32, "float-quantized"),
    ("quantize(e4m3, block=8x32)", BF16, "float-quantized"),
    ("nvfp4", BF16, "nvfp4-pack-quantized"),
    ("nvfp4-4over6", BF16, "nvfp4-pack-quantized"),
    ("quantize(e2m1, group=16, scale_dtype=e4m3)", BF16, "nvfp4-pack-quantized"),
    ("mxfp4", BF16, "mxfp4-pack-quantized"),
    ("mxfp4", F32, "mxfp4-pack-quantized"),
    ("mxfp6", BF16, "mxfp6-pack-quantized"),
    ("mxfp8", F16, "mxfp8-quantized"),
]  # fmt: skip


@pytest.mark.parametrize(("weights", "dtype", "form"), CASES)
def test_numpy_reads_our_weights_from_the_bytes(
    weights: str, dtype: torch.dtype, form: str, tmp_path: Path
) -> None:
    model = packed(weights, dtype)
    exported(tmp_path / "out", model)
    quantization = check(tmp_path / "out", model)
    assert quantization["format"] == form
    _, tensors, _ = read(tmp_path / "out")
    assert {"0.bias", "1.weight", "2.weight", "3.weight", "3.bias"} <= tensors.keys()


def test_inputs_of_8_bits_make_it_int_quantized(tmp_path: Path) -> None:
    for i, weights in enumerate(("quantize(int8, channel)", "quantize(int8, asymmetric, group=32)")):
        model = packed(weights, inputs=A8)
        exported(tmp_path / str(i), model)
        quantization = check(tmp_path / str(i), model)
        assert quantization["format"] == "int-quantized"
        group = quantization["config_groups"]["group_0"]
        assert group["input_activations"] == {
            "num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "group_size": None,
            "block_structure": None, "dynamic": True,
        }  # fmt: skip


def test_tensors_of_a_layer_are_those_of_its_format(tmp_path: Path) -> None:
    exported(tmp_path / "out", packed("quantize(int3, asymmetric, group=32)"))
    _, tensors, dtypes = read(tmp_path / "out")
    found = {
        name: (tensor.shape, dtypes[name]) for name, tensor in tensors.items() if name.startswith("0.weight")
    }
    assert found == {
        "0.weight_packed": ((20, 9), "I32"),
        "0.weight_scale": ((20, 3), "BF16"),
        "0.weight_shape": ((2,), "I64"),
        "0.weight_zero_point": ((2, 3), "I32"),
    }
    exported(tmp_path / "nvfp4", packed("nvfp4"))
    _, tensors, dtypes = read(tmp_path / "nvfp4")
    found = {
        name: (tensor.shape, dtypes[name]) for name, tensor in tensors.items() if name.startswith("0.weight")
    }
    assert found == {
        "0.weight_packed": ((20, 48), "U8"),
        "0.weight_scale": ((20, 6), "F8_E4M3"),
        "0.weight_global_scale": ((1,), "F32"),
    }


def test_groups_of_several_formats_are_mixed_precision(tmp_path: Path) -> None:
    rules = [
        {"targets": "0", "weights": "quantize(int4, group=32)"},
        {"targets": "Linear", "weights": "quantize(e4m3, channel)"},
        {"targets": "Embedding", "weights": "mxfp4"},
    ]
    of = rhoc.load_spec({"version": 1, "rules": rules})
    model = rhoc.compile(net(BF16), of).packed()
    exported(tmp_path / "out", model, of)
    quantization = check(tmp_path / "out", model)
    assert quantization["format"] == "mixed-precision"
    groups = {tuple(g["targets"]): g["format"] for g in quantization["config_groups"].values()}
    assert groups == {("0",): "pack-quantized", ("1",): "float-quantized", ("2",): "mxfp4-pack-quantized"}


def test_linear_layers_alone_are_named_by_their_class(tmp_path: Path) -> None:
    exported(tmp_path / "out", packed("quantize(int4, group=32)"))
    quantization = read(tmp_path / "out")[0]["quantization_config"]
    assert quantization["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert quantization["ignore"] == ["1"]


def test_a_tied_weight_is_written_for_each_of_its_names(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(40, 32), nn.Linear(32, 40, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(tokens))

    of = spec("quantize(int4, group=32)", ["Linear", "Embedding"])
    exported(tmp_path / "out", rhoc.compile(Tied(), of).packed(), of)
    _, tensors, _ = read(tmp_path / "out")
    assert np.array_equal(tensors["embed.weight_packed"], tensors["head.weight_packed"])


def test_rotations_are_transforms_of_their_inputs(tmp_path: Path) -> None:
    for block, head_dim in ((32, 32), (16, 16)):
        model = packed(f"hadamard({block}) >> quantize(int4, group=32)")
        notes = exported(tmp_path / str(block), model)
        assert notes == ["inputs are rotated as the model runs (transform_config): vLLM does that, transformers does not"]  # fmt: skip
        (scheme,) = check(tmp_path / str(block), model)["transform_config"]["config_groups"].values()
        assert (scheme["type"], scheme["head_dim"], scheme["randomize"]) == ("hadamard", head_dim, False)
        assert [(e["location"], e["inverse"], e["targets"]) for e in scheme["apply"]] == [
            ("input", False, ["0"]),
            ("weight_input", True, ["0"]),
        ]
    of = spec("hadamard(full) >> quantize(int8, channel)", "0")
    model = rhoc.compile(nn.Sequential(nn.Linear(64, 8)), of).packed()
    exported(tmp_path / "full", model, of)
    (scheme,) = check(tmp_path / "full", model)["transform_config"]["config_groups"].values()
    assert scheme["head_dim"] is None


@pytest.mark.parametrize(
    ("weights", "dtype", "inputs", "said"),
    [
        (
            "int4",
            BF16,
            "dense",
            r"^0\.weight: grid midrise of .*: levels are the integers from -8 to 7 there; use grid: twos",
        ),
        ("binary", BF16, "dense", r"^0\.weight: grid midrise of "),
        ("nf4", BF16, "dense", r"^0\.weight: quantize\(nf4, .*\) has no format there; floats are e4m3"),
        ("quantize(e5m2, channel)", BF16, "dense", r"has no format there; floats are e4m3"),
        ("quantize(e2m1, group=32)", BF16, "dense", r"has no format there"),
        ("mxfp6-e3m2", BF16, "dense", r"has no format there"),
        ("quantize(e2m1, group=16, mx)", BF16, "dense", r"has no format there"),
        ("qtip2", BF16, "dense", r"^0\.weight: trellis\(.*\) is not one quantize stage.*`--to dense`"),
        ("low-rank-nf4", BF16, "dense", r"is not one quantize stage"),
        ("sparsify(2:4) >> quantize(int4)", BF16, "dense", r"is not one quantize stage"),
        (
            "quantize(int4, group=32, scale_dtype=float16)",
            BF16,
            "dense",
            r"stores scales in the weight's dtype, and bfloat16 does not hold .*; leave scale_dtype out",
        ),
        (
            "quantize(int4, asymmetric, group=32, zp_dtype=float16)",
            BF16,
            "dense",
            r"zp_dtype float16: zero points are integers",
        ),
        ("quantize(int4, group=36)", BF16, "dense", r"groups of 36 do not divide the 96 columns"),
        (
            "nvfp4",
            F32,
            "dense",
            r"nvfp4-pack-quantized is decoded to bfloat16, .*; build the model in bfloat16",
        ),
        (
            "hadamard(32, signs=0) >> quantize(int4, group=32)",
            BF16,
            "dense",
            r"the rotation hadamard\(32, signs=0\) has signs",
        ),
        ("rotate >> quantize(int4, group=32)", BF16, "dense", r"has no words in transform_config"),
        (
            "quantize(int4, group=32)",
            BF16,
            "int4-a4",
            r"input_activations .* has no words|is not one quantize",
        ),
        ("quantize(int4, group=32)", BF16, "quantize(int8, token, rms)", r"observer rms has no words"),
        ("quantize(int4, group=32)", BF16, "quantize(int8, token, midrise)", r"grid midrise has no words"),
        ("nvfp4", BF16, "nvfp4-a4", r"strategy tensor_group with a scale of the tensor that is measured"),
    ],
)
def test_what_has_no_layout_is_refused_by_name(
    weights: str, dtype: torch.dtype, inputs: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=said) as caught:
        exported(tmp_path / "out", packed(weights, dtype, inputs=inputs))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_weights_of_other_modules_are_refused(tmp_path: Path) -> None:
    convolution = nn.Sequential(nn.Conv1d(32, 8, 3))
    of = spec("quantize(int4, channel)", "Conv1d")
    with pytest.raises(
        RequestError, match=r"^0\.weight: a weight of Conv1d has no layout there; Linear and Emb"
    ):
        exported(tmp_path / "out", rhoc.compile(convolution, of).packed(), of)
    with pytest.raises(RequestError, match="no weight of this model is represented"):
        exported(tmp_path / "out", packed("dense"))


def test_a_directory_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    model = packed("quantize(int4, group=32)")
    exported(tmp_path / "out", model)
    before = {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    with pytest.raises(RequestError, match="exists and is not empty"):
        exported(tmp_path / "out", model)
    assert before == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}


@pytest.mark.parametrize("width", range(1, 9))
def test_words_are_a_little_endian_stream(width: int) -> None:
    for count in (1, 31, 32, 33, 70):
        codes = torch.randint(1 << width, (3, count), dtype=torch.uint8)
        words = to_words(codes, width)
        assert words.dtype == torch.int32
        assert words.shape == (3, -(-count * width // 32))
        assert np.array_equal(bits(words.numpy(), width, count), codes.numpy())
        assert torch.equal(from_words(words, width, count), codes)


def test_layouts_have_different_names() -> None:
    assert len({layout.name for layout in LAYOUTS}) == len(LAYOUTS)
