"""Checkpoints read with numpy alone, from the bytes of their files: the oracle of what is written for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
_DTYPES = {
    "BF16": np.uint16, "F16": np.float16, "F32": np.float32, "I32": np.int32, "I64": np.int64, "I8": np.int8,
    "U8": np.uint8, "F8_E4M3": np.uint8,
}  # fmt: skip


def read(directory: Path) -> tuple[dict[str, Any], dict[str, Array], dict[str, str]]:
    """config.json, the tensors as numpy has them (bfloat16 as float32, e4m3 as float64), and their dtypes."""
    config = json.loads((directory / "config.json").read_text())
    content = (directory / "model.safetensors").read_bytes()
    size = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    header.pop("__metadata__", None)
    found, dtypes = {}, {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        array = np.frombuffer(data[start:end], _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        if entry["dtype"] == "BF16":
            array = (array.astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] == "F8_E4M3":
            array = e4m3(array)
        found[name], dtypes[name] = array, entry["dtype"]
    return config, found, dtypes


def e4m3(codes: Array) -> Array:
    """OCP 8-bit floats: sign, four bits of exponent with bias 7, three of fraction; no infinities."""
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, fraction = (codes >> 3 & 15).astype(float), (codes & 7) / 8
    return sign * np.where(exponent == 0, fraction * 2.0**-6, (1 + fraction) * 2.0 ** (exponent - 7))


def e2m3(codes: Array) -> Array:
    """6-bit floats: sign, two bits of exponent with bias 1, three of fraction."""
    sign = np.where(codes & 0x20, -1.0, 1.0)
    exponent, fraction = (codes >> 3 & 3).astype(float), (codes & 7) / 8
    return sign * np.where(exponent == 0, fraction, (1 + fraction) * 2.0 ** (exponent - 1))


def e2m1(codes: Array) -> Array:
    """4-bit floats by their table."""
    return np.where(codes & 8, -1.0, 1.0) * E2M1[codes & 7]


def bits(words: Array, width: int, count: int) -> Array:
    """`count` codes of `width` bits of each row of words or bytes, lowest bits first."""
    octets = np.ascontiguousarray(words).view(np.uint8)
    stream = np.unpackbits(octets, axis=-1, bitorder="little")[:, : count * width]
    return stream.reshape(len(octets), count, width) @ (1 << np.arange(width))


def shared(scale: Array, rows: int, columns: int, arguments: dict[str, Any]) -> Array:
    """What numbers share, for each of `[rows, columns]`."""
    strategy = arguments["strategy"]
    if strategy == "tensor":
        return np.broadcast_to(scale.reshape(1, 1), (rows, columns))
    if strategy == "block":
        high, wide = arguments["block_structure"]
        return scale.repeat(high, 0)[:rows].repeat(wide, 1)[:, :columns]
    per = columns if strategy == "channel" else arguments["group_size"]
    return scale.repeat(per, 1)[:, :columns]


def rounded(x: Array, dtype: str) -> Array:
    """float64 numbers rounded once to a dtype, as the bits of it."""
    if dtype == "F32":
        return x.astype(np.float32).view(np.uint32)
    if dtype == "F16":
        return x.astype(np.float16).view(np.uint16)
    word = x.astype(np.float32)  # exact for products of codes and bfloat16 scales
    raw = word.view(np.uint32).astype(np.uint64)
    return ((raw + 0x7FFF + (raw >> 16 & 1)) >> 16).astype(np.uint16)


def weight(tensors: dict[str, Array], path: str, form: str, arguments: dict[str, Any]) -> Array:
    """The dense weight in float64 (of NVFP4 its scales in float32), by the published layout."""
    own = {
        name.removeprefix(f"{path}."): array for name, array in tensors.items() if name.startswith(f"{path}.")
    }
    width = arguments["num_bits"]
    half = 1 << (width - 1)
    if form == "pack-quantized":
        rows, columns = own["weight_shape"].tolist()
        codes = bits(own["weight_packed"], width, columns).astype(float) - half
    elif form == "int-quantized":
        codes = own["weight"].astype(float)
    elif form in ("float-quantized", "mxfp8-quantized"):
        codes = own["weight"]
    elif form == "mxfp6-pack-quantized":
        codes = e2m3(bits(own["weight_packed"], 6, own["weight_packed"].shape[1] * 8 // 6))
    else:
        codes = e2m1(bits(own["weight_packed"], 4, own["weight_packed"].shape[1] * 2))
    rows, columns = codes.shape
    zero = np.zeros(1)
    if not arguments["symmetric"]:
        zero = own["weight_zero_point"].astype(float)
        if form == "pack-quantized" and arguments["strategy"] != "tensor":
            packed = np.ascontiguousarray(own["weight_zero_point"].T)
            zero = bits(packed, width, rows).T.astype(float) - half
        zero = shared(zero, rows, columns, arguments)
    scale = own["weight_scale"]
    if form.startswith("mxfp"):
        scale = 2.0 ** (scale.astype(float) - 127)
    elif form.startswith("nvfp4"):
        scale = scale.astype(np.float32) / own["weight_global_scale"]
    return (codes - zero) * shared(scale.astype(np.float64), rows, columns, arguments)
