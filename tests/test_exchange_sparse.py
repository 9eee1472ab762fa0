"""Sparse weights in the public layout: read by numpy from the bytes as SPARSE.txt says, and by us."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import rhoc
from rhoc.compiler.exchange.dense import export_dense
from rhoc.compiler.exchange.source import source_of
from rhoc.compiler.exchange.sparse_checkpoint import export_sparse, import_sparse
from rhoc.runtime.checkpoint import save_packed
from rhoc.runtime.errors import RequestError
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import packed_weights

from .safetensors_numpy import Array, bits, read, rounded
from .test_exchange_layouts import A8, BF16, F32, net, packed, spec, stored

CASES = [
    ("2of4", BF16),
    ("sparsify(0.7)", F32),
    ("blocks50", BF16),
    ("sparsify(0.25, sparsity_structure=row)", F32),
    ("sparsify(2:4) >> quantize(int4, midrise, channel, rms)", BF16),
    ("sparsify(2:4) >> quantize(int3, group=16)", F32),
    ("sparsify(1:4) >> quantize(int4, asymmetric, group=32)", BF16),
    ("sparsify(4:8, vector=2) >> quantize(int5)", F32),
    ("sparsify(0.5, granularity=row) >> quantize(int7, group=20)", BF16),
    ("sparsify(0.9) >> quantize(int4, channel)", BF16),
    ("sparsify(0.75, storage=csr) >> quantize(int2, ternary, group=32)", BF16),
    ("sparsify(0.5, sparsity_structure=block:4x4) >> quantize(int8)", F32),
    ("sparsify(0.5, sparsity_structure=column) >> quantize(e4m3, channel)", BF16),
    ("2of4-nvfp4", BF16),
    ("sparsify(2:4) >> quantize(nf4, group=16)", F32),
    ("sparsify(0.5, granularity=row) >> quantize(int1, channel)", BF16),
]  # fmt: skip


def weight(own: dict[str, Array], group: dict[str, Any]) -> Array:
    """The dense weight in float64 before its last rounding, by SPARSE.txt."""
    rows, columns = own["weight_shape"].tolist()
    mask = np.unpackbits(own["bitmask"], axis=1, bitorder="little")[:, :columns].astype(bool)
    assert own["bitmask"].shape == (rows, -(-columns // 8))
    counts = mask.sum(1)
    offsets = own.get("row_offsets")
    if offsets is not None:
        assert offsets.tolist() == [0, *np.cumsum(counts)[:-1].tolist()]
    else:
        assert (counts == counts[0]).all()
    found = np.zeros((rows, columns))
    arguments = group["weights"]
    if arguments is None:
        found[mask] = own["compressed"].reshape(-1)
        return found
    words = own["weight_packed"] if offsets is None else own["weight_packed"][None]
    kept = int(counts[0]) if offsets is None else int(counts.sum())
    codes = bits(words, arguments["num_bits"], kept)
    if "levels" in arguments:
        table = np.array([np.nan if level is None else level for level in arguments["levels"]], np.float32)
        numbers = table[codes].astype(float)
    else:
        numbers = codes.astype(float)
    per = arguments["group_size"] or kept
    share = lambda x: np.atleast_2d(x).repeat(per, 1)[:, :kept]  # noqa: E731
    if "weight_zero_point" in own:
        numbers = numbers - share(own["weight_zero_point"].astype(float))
    found[mask] = (numbers * share(own["weight_scale"].astype(float))).reshape(-1)
    return found


@pytest.mark.parametrize(("weights", "dtype"), CASES)
def test_numpy_and_we_read_what_we_wrote(weights: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = packed(weights, dtype)
    export_sparse(tmp_path / "out", source_of(model, spec(weights)))
    config, tensors, _ = read(tmp_path / "out")
    (group,) = config["quantization_config"]["config_groups"].values()
    assert group["targets"] == ["0"]
    (before,) = packed_weights(model).values()
    name = {BF16: "BF16", F32: "F32"}[dtype]
    own = {key.removeprefix("0."): array for key, array in tensors.items() if key.startswith("0.")}
    bits_of = stored(before).view(torch.int32 if name == "F32" else torch.int16).numpy()
    found = rounded(weight(own, group), name)
    zero = stored(before).numpy() == 0 if name == "F32" else stored(before).float().numpy() == 0
    assert np.array_equal(np.where(zero, 0, found), np.where(zero, 0, bits_of.view(found.dtype)))
    imported = import_sparse(tmp_path / "out")
    (after,) = packed_weights(imported.model).values()
    assert torch.equal(after.decode(), before.decode())
    assert after.dtype == before.dtype
    again = source_of(imported.model, imported.spec)
    export_sparse(tmp_path / "again", again)
    first, second = (load_file(tmp_path / each / "model.safetensors") for each in ("out", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n].view(torch.uint8), second[n].view(torch.uint8)) for n in first)


def test_a_packed_sparse_weight_is_as_small_as_the_layout_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    of = spec("sparsify(2:4) >> quantize(int4, channel)", "Linear")
    model = rhoc.compile(nn.Sequential(nn.Linear(256, 64, bias=False)).to(BF16), of).packed()
    export_sparse(tmp_path / "out", source_of(model, of))
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert {name: t.nbytes for name, t in tensors.items()} == {
        "0.bitmask": 64 * 256 // 8,
        "0.weight_packed": 64 * 128 // 2,
        "0.weight_scale": 64 * 2,
        "0.weight_shape": 16,
    }


def test_rotated_sparse_weights_with_inputs_run_as_before(tmp_path: Path) -> None:
    of = spec("hadamard(32) >> sparsify(2:4) >> quantize(int4, midrise, channel, rms)", "0", A8)
    model = nn.Sequential(nn.Linear(96, 20), nn.ReLU(), nn.Linear(20, 4))
    compiled = rhoc.compile(model, of)
    compiled.save(tmp_path / "before")
    before = load_packed(tmp_path / "before", model)
    export_sparse(tmp_path / "out", source_of(compiled.packed(), of))
    imported = import_sparse(tmp_path / "out")
    save_packed(tmp_path / "packed", imported.model, imported.spec.to_document(), imported.spec.digest)
    x = torch.randn(5, 96)
    with torch.no_grad():
        assert torch.equal(load_packed(tmp_path / "packed", model)(x), before(x))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (
            "int4",
            r"^0\.weight: quantize\(int4, .*\) is not one sparsify stage, alone or before quantize; .*--to dense",
        ),
        ("sparse90-int4-rans", r"is not one sparsify stage"),
        (
            "sparsify(0.5, sparsity_structure=block:4x4) >> quantize(int8, group=32)",
            r"are not shared along rows of kept",
        ),
        ("sparsify(2:4) >> quantize(int4, asymmetric, group=32, zp_dtype=float16)", r"zp_dtype float16"),
    ],
)
def test_what_has_no_words_is_refused(weights: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=said):
        export_sparse(tmp_path / "out", source_of(packed(weights), spec(weights)))
    assert not list(tmp_path.iterdir())


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def flipped(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    tensors["0.bitmask"] = tensors["0.bitmask"].clone()
    tensors["0.bitmask"][0, 0] ^= 1


def version(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    config["quantization_config"]["version"] = 2


def levels(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["levels"] = [0, 1, 2, 3]


def no_dtype(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    del config["quantization_config"]["config_groups"]["group_0"]["dtype"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flipped, r"0: row_offsets are not those of bitmask"),
        (lambda c, t: t.pop("0.row_offsets"), r"0: bitmask keeps nothing, or not equally many of each row"),
        (lambda c, t: t.pop("0.weight_packed"), r"0: weight_packed is missing"),
        (
            lambda c, t: t.update({"0.weight_scale": torch.ones(2)}),
            r"weight_scale has shape \[2\], .* needs \[1\]",
        ),
        (version, r"config\.json: version 2, and this rhoc reads 1; use the version"),
        (levels, r"0: grid and levels say different things"),
        (no_dtype, r"0: no float is called None"),
        (lambda c, t: c.pop("quantization_config"), r"its quantization_config is not sparse-pack-quantized"),
    ],
)
def test_damage_is_one_clear_error(change: Change, said: str, tmp_path: Path) -> None:
    weights = "sparsify(0.7) >> quantize(int2, twos)"
    export_sparse(tmp_path / "out", source_of(packed(weights), spec(weights)))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    change(config, tensors)
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "out" / "model.safetensors")
    with pytest.raises(RequestError, match=said) as caught:
        import_sparse(tmp_path / "out")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "weights", ["qtip2", "hadamard(32, signs=1) >> quantize(int4, midrise, channel)", "low-rank-nf4"]
)
def test_dense_export_takes_anything(weights: str, tmp_path: Path) -> None:
    model = packed(weights, F32, inputs=A8)
    notes = export_dense(tmp_path / "out", source_of(model, spec(weights)))
    assert notes == ["inputs were quantize(int8, twos, token, absmax), and run dense in what was written"]
    again = net(F32)
    again.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    assert torch.equal(again[0].weight, packed_weights(model)["0.weight"].decode())
    assert torch.equal(again[2].weight, net(F32)[2].weight)
