"""Former sparse checkpoints of compressed-tensors, written by numpy as its release 0.10.2 wrote them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file

from rhoc.compiler.exchange.reading import Imported, import_compressed_tensors
from rhoc.compiler.exchange.skeleton import saved_skeleton
from rhoc.compiler.exchange.source import source_of
from rhoc.compiler.exchange.sparse_checkpoint import export_sparse, import_sparse
from rhoc.runtime.checkpoint import save_packed
from rhoc.runtime.errors import RequestError
from rhoc.runtime.packed import Packed, packed_weights

from .safetensors_numpy import e4m3

Array = npt.NDArray[Any]
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
TWO_FOUR, ANY = "sparse-24-bitmask", "sparse-bitmask"
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
ASYMMETRIC = {**INT8, "symmetric": False}
ROWS, COLUMNS = 10, 48


def mask_of(form: str) -> Array:
    """2 of 4 of every group of a row, or any, more in later rows."""
    rng = np.random.default_rng(0)
    if form == ANY:
        return rng.random((ROWS, COLUMNS)) < np.linspace(0.05, 0.9, ROWS)[:, None]
    order = rng.random((ROWS, COLUMNS // 4, 4)).argsort(-1)
    return (order < 2).reshape(ROWS, COLUMNS)


def masked(form: str, mask: Array, entries: torch.Tensor, prefix: str = "0") -> dict[str, torch.Tensor]:
    """The tensors of a layer whose dense form is `entries` where the mask is, by the layout."""
    kept = entries.view(torch.uint8 if entries.dtype.itemsize == 1 else entries.dtype)[torch.from_numpy(mask)]
    kept = kept.view(entries.dtype)
    counts = mask.sum(1)
    shape = torch.tensor(mask.shape)
    found = {
        f"{prefix}.shape": shape.reshape(-1, 1) if form == TWO_FOUR else shape,
        f"{prefix}.compressed": kept.reshape(len(mask), -1) if form == TWO_FOUR else kept,
        f"{prefix}.bitmask": torch.from_numpy(np.packbits(mask, axis=1, bitorder="little")),
    }
    if form == ANY:
        found[f"{prefix}.row_offsets"] = torch.from_numpy(np.concatenate([[0], np.cumsum(counts)[:-1]]))
    return found


def write(
    directory: Path, form: str, tensors: dict[str, torch.Tensor], weights: dict[str, Any] | None = None
) -> Path:
    directory.mkdir()
    structure = {TWO_FOUR: "2:4", ANY: "unstructured"}[form]
    quantization: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "sparsity_config": {"format": form, "sparsity_structure": structure, "targets": [], "ignore": []},
    }
    if weights is not None:
        quantization |= {
            "format": "float-quantized" if weights["type"] == "float" else "int-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        }
    (directory / "config.json").write_text(json.dumps({"quantization_config": quantization}))
    save_file(tensors | {"1.weight": torch.ones(3)}, directory / "model.safetensors")
    return directory


def only(imported: Imported) -> Packed:
    (weight,) = packed_weights(imported.model).values()
    assert torch.equal(imported.model.state_dict()["1.weight"], torch.ones(3))
    (rule,) = imported.spec.rules
    assert str(rule.weight_representation) == str(weight.representation)
    return weight


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(first, second)


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("form", [TWO_FOUR, ANY])
@pytest.mark.parametrize("prefix", ["0", "0.weight"])
def test_kept_numbers_come_to_the_bit(form: str, dtype: torch.dtype, prefix: str, tmp_path: Path) -> None:
    mask = mask_of(form)
    dense = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).to(dtype)
    dense *= torch.from_numpy(mask)
    imported = import_compressed_tensors(write(tmp_path / "out", form, masked(form, mask, dense, prefix)))
    weight = only(imported)
    assert same(weight.decode(), dense)
    assert ("2:4" in str(weight.representation)) == (form == TWO_FOUR)
    assert imported.notes == ()
    save_packed(tmp_path / "packed", imported.model, imported.spec.to_document(), imported.spec.digest)
    export_sparse(tmp_path / "again", source_of(*saved_skeleton(tmp_path / "packed")))
    assert same(only(import_sparse(tmp_path / "again")).decode(), dense)


def quantised(
    form: str, weights: dict[str, Any], dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], Array]:
    """The tensors of a layer, and its dense weight in float64 before it is rounded."""
    rng, mask = np.random.default_rng(1), mask_of(form)
    half = 1 << (weights["num_bits"] - 1)
    groups = COLUMNS // weights.get("group_size", COLUMNS)
    scale = torch.from_numpy(rng.uniform(0.001, 0.1, (ROWS, groups))).to(dtype)
    if weights["type"] == "float":
        raw = rng.integers(0, 127, mask.shape, dtype=np.uint8) + 128 * rng.integers(
            0, 2, mask.shape, dtype=np.uint8
        )
        codes = torch.from_numpy(np.where(mask, raw, 0).astype(np.uint8)).view(torch.float8_e4m3fn)
        numbers = e4m3(np.where(mask, raw, 0))
    else:
        signed = np.where(mask, rng.integers(-half, half, mask.shape), 0).astype(np.int8)
        codes, numbers = torch.from_numpy(signed), signed.astype(float)
    tensors = masked(form, mask, codes) | {"0.weight_scale": scale}
    if not weights["symmetric"]:
        zero = rng.integers(-half, half, (ROWS, 1)).astype(np.int8)
        tensors["0.weight_zero_point"] = torch.from_numpy(zero)
        numbers = numbers - zero
    return tensors, numbers * scale.double().numpy().repeat(COLUMNS // groups, 1)


@pytest.mark.parametrize("dtype", [BF16, F32])
@pytest.mark.parametrize(
    ("form", "weights", "text"),
    [
        (TWO_FOUR, INT8, "sparsify(2:4) >> quantize(int8, twos, channel, absmax)"),
        (TWO_FOUR, INT4, "sparsify(2:4) >> quantize(int4, twos, group=8, absmax)"),
        (TWO_FOUR, FP8, "sparsify(2:4) >> quantize(e4m3, channel, absmax)"),
        (TWO_FOUR, ASYMMETRIC, "quantize(int8, asymmetric, channel, absmax)"),
        (ANY, INT8, "quantize(int8, twos, channel, absmax)"),
        (ANY, FP8, "quantize(e4m3, channel, absmax)"),
    ],
    ids=["2:4 int8", "2:4 int4 groups", "2:4 fp8", "2:4 with zero points", "int8", "fp8"],
)
def test_kept_codes_come_to_the_bit(
    form: str, weights: dict[str, Any], text: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    tensors, dense = quantised(form, weights, dtype)
    imported = import_compressed_tensors(write(tmp_path / "out", form, tensors, weights))
    weight = only(imported)
    assert str(weight.representation) == text
    assert weight.dtype == dtype
    assert same(weight.decode().float(), torch.from_numpy(dense).to(dtype).float())
    if "sparsify" in text:
        assert imported.notes == ()
    else:
        assert imported.notes[0].startswith(
            "1 sparse layers (0 first) are read with the codes of their zeros"
        )


def test_some_layers_of_numbers_and_some_of_codes(tmp_path: Path) -> None:
    """The spec's first matching rule wins, so a rule for a class comes after those for paths."""
    codes, dense = quantised(TWO_FOUR, INT8, BF16)
    mask = mask_of(TWO_FOUR)
    kept = torch.randn(ROWS, COLUMNS).to(BF16) * torch.from_numpy(mask)
    tensors = codes | masked(TWO_FOUR, mask, kept, "z")
    imported = import_compressed_tensors(write(tmp_path / "out", TWO_FOUR, tensors, INT8))
    weights = packed_weights(imported.model)
    assert same(weights["z.weight"].decode(), kept)
    assert same(weights["0.weight"].decode(), torch.from_numpy(dense).to(BF16))
    assert [rule.targets for rule in imported.spec.rules] == [("z",), ("Linear",)]


Change = Callable[[dict[str, Any], dict[str, torch.Tensor]], None]


def of(name: str, value: torch.Tensor) -> Change:
    return lambda config, tensors: tensors.__setitem__(f"0.{name}", value)


DAMAGES: list[tuple[Change, str]] = [
    (lambda c, t: t.pop("0.shape"), r"0: shape is missing; copy"),
    (lambda c, t: t.pop("0.compressed"), r"0: compressed is missing; copy"),
    (lambda c, t: t.update({"0.compressed": t["0.compressed"][:-1]}), r"0: compressed holds \d+ numbers, and bitmask keeps \d+;"),
    (of("shape", torch.tensor([10, -48])), r"0: shape is \[10, -48\], not that of a matrix"),
    (of("bitmask", torch.zeros(10, 5, dtype=torch.uint8)), r"0: bitmask has shape \[10, 5\], and its format needs \[10, 6\]"),
    (of("row_offsets", torch.arange(10)), r"0: row_offsets are not those of bitmask"),
    (lambda c, t: t.update({"0.compressed": t["0.compressed"].to(torch.int8)}), r"0: compressed holds int8, and weight_scale is missing"),
    (of("weight_scale", torch.ones(10, 1)), r"0: it has scales, and there are no config_groups"),
    (lambda c, t: c["sparsity_config"].update(format="sparse-3d"), r"config\.json: sparsity_config has format 'sparse-3d', and rhoc reads"),
    (lambda c, t: [t.pop(n) for n in list(t) if n.startswith("0.")], r"no tensor there is quantised or sparse"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), DAMAGES)
def test_damage_is_one_clear_error(change: Change, said: str, tmp_path: Path) -> None:
    tensors = masked(ANY, mask_of(ANY), torch.randn(ROWS, COLUMNS))
    file = write(tmp_path / "whole", ANY, tensors) / "config.json"
    config = json.loads(file.read_text())
    change(config["quantization_config"], tensors)
    file.write_text(json.dumps(config))
    save_file(tensors, file.with_name("model.safetensors"))
    with pytest.raises(RequestError, match=said) as caught:
        import_compressed_tensors(file.parent)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(file.parent))


def test_a_mask_that_keeps_nothing_is_refused(tmp_path: Path) -> None:
    nothing = np.zeros((ROWS, COLUMNS), bool)
    directory = write(tmp_path / "out", ANY, masked(ANY, nothing, torch.zeros(ROWS, COLUMNS)))
    with pytest.raises(RequestError, match=r"0: bitmask keeps nothing"):
        import_compressed_tensors(directory)
