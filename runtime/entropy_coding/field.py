"""An integer field as bytes: coded where that is smaller, packed where it is not."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from ..packing import pack, packed_length, unpack
from .coder import Bytes, Coder, Reader, damaged, joined
from .huffman import Huffman
from .rans import Rans

CODERS: Mapping[str, Coder] = MappingProxyType({"rans": Rans(), "huffman": Huffman()})

# The first byte of a plane says how it is stored. Numbers stay as they are: files have them.
_PACKED, _CONSTANT = 0, 1
_NUMBERS = {"rans": 2, "huffman": 3}
_CODED = {number: CODERS[name] for name, number in _NUMBERS.items()}


def encode_field(codes: Tensor, bits: int, coder: str) -> Tensor:
    """Integers below 2^bits, of any shape, as bytes `[m]`; none for no integers.

    More than 8 bits are split into planes of a byte, lowest first, each by itself and with its length (32
    bits) in front, but for the last. A plane is one byte that says how it is stored, and what follows.
    """
    if not codes.numel():
        return torch.empty(0, dtype=torch.uint8, device=codes.device)
    coded = [_encode_plane(plane, width, coder) for plane, width in planes(codes, bits)]
    parts = [part for plane in coded[:-1] for part in (np.array([len(plane)], "<u4"), plane)]
    return torch.from_numpy(joined(*parts, coded[-1])).to(codes.device)


def decode_field(data: Tensor, shape: tuple[int, ...], dtype: torch.dtype, bits: int) -> Tensor:
    """The inverse of `encode_field` for integers of this shape and dtype.

    Raises:
        WorkError: the bytes are damaged.
    """
    count = prod(shape)
    if data.ndim != 1 or data.dtype != torch.uint8 or (not count and data.numel()):
        raise damaged("they are not of this tensor")
    if not count:
        return torch.empty(shape, dtype=dtype, device=data.device)
    reader = Reader(data.cpu().numpy())
    widths = plane_widths(bits)
    codes = torch.zeros(count, dtype=torch.int64 if len(widths) > 1 else torch.uint8)
    for position, width in enumerate(widths):
        last = position == len(widths) - 1
        plane = reader.rest("u1") if last else reader.take(int(reader.take(1, "<u4")[0]), "u1")
        symbols = torch.from_numpy(_decode_plane(plane.astype(np.uint8), count, width))
        codes |= symbols.to(codes.dtype) << (8 * position)
    return codes.to(device=data.device, dtype=dtype).reshape(shape)


def expected_bytes(codes: Tensor, bits: int, coder: str, count: int) -> int:
    """About how many bytes `count` integers take that are distributed as these."""
    if not count or not codes.numel():
        return 0
    total = 0.0
    for plane, width in planes(codes, bits):
        counts = np.bincount(plane, minlength=1 << width)
        coded = 1.0 if (counts > 0).sum() < 2 else CODERS[coder].expected_bytes(counts / counts.sum(), count)
        total += 1 + min(coded, packed_length(count, width))
    return round(total) + 4 * (len(plane_widths(bits)) - 1)


def plane_widths(bits: int) -> list[int]:
    """Bits of every plane, lowest first."""
    return [min(8, bits - low) for low in range(0, bits, 8)]


def planes(codes: Tensor, bits: int) -> list[tuple[Bytes, int]]:
    """Every plane of a flattened tensor of integers, with its bits."""
    flat = codes.detach().reshape(-1).cpu()
    if bits <= 8:
        return [(flat.to(torch.uint8).numpy(), bits)]
    numbers = flat.to(torch.int64).numpy()
    return [
        ((numbers >> 8 * i & (1 << width) - 1).astype(np.uint8), width)
        for i, width in enumerate(plane_widths(bits))
    ]


def _encode_plane(symbols: Bytes, width: int, coder: str) -> Bytes:
    """One plane in the smallest of its forms."""
    counts = np.bincount(symbols, minlength=1 << width)
    if len(counts) > 1 << width:
        raise ValueError(f"codes of {width} bits are below {1 << width}, got {len(counts) - 1}")
    if counts.max() == len(symbols):
        return np.array([_CONSTANT, symbols[0]], dtype=np.uint8)
    packed = packed_length(len(symbols), width)
    if CODERS[coder].expected_bytes(counts / len(symbols), len(symbols)) < 1.02 * packed + 64:  # worth trying
        coded = CODERS[coder].encode(symbols, counts)
        if len(coded) < packed:
            return joined(np.array([_NUMBERS[coder]], dtype=np.uint8), coded)
    stored = pack(torch.from_numpy(symbols), width).numpy()
    return joined(np.array([_PACKED], dtype=np.uint8), stored)


def _decode_plane(data: Bytes, count: int, width: int) -> Bytes:
    if not len(data):
        raise damaged("they end too early")
    form, rest = int(data[0]), data[1:]
    if form == _CONSTANT and len(rest) == 1 and int(rest[0]) < 1 << width:
        return np.full(count, rest[0], dtype=np.uint8)
    if form == _PACKED and len(rest) == packed_length(count, width):
        return np.asarray(unpack(torch.from_numpy(rest), width, count).numpy())
    if form not in _CODED:
        raise damaged("they are stored in no known form")
    return _CODED[form].decode(rest, count, 1 << width)
