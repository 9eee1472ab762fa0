"""Codes as bytes under frequencies that both sides know: a header, then one rANS stream for each code.

Header: a byte for the version, the dimension that is encoded (int8), the number of dimensions of the codes
(uint8) and their sizes (uint32 each), and 32 bits that say whose codes they are. Each stream has its length
in bytes (uint32) in front. Codes of more than 8 bits are two symbols, the low byte and the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .entropy_coding.coder import Bytes, Reader, damaged, entropy_bits, joined
from .entropy_coding.field import plane_widths, planes
from .entropy_coding.rans import Rans, quantised
from .errors import RequestError

VERSION = 1
_FINE = 1 << 20  # what shares are rounded to, plus one: no code that may come has none
_CODER = Rans()

Frequencies = Sequence[NDArray[np.uint32]]


def frequencies_of(usage: Tensor, bits: int) -> Tensor:
    """Frequencies for the coder from shares `[books, 2^bits]`: int16 `[books, symbols]`, at least 1 each.

    Symbols are the codes, or above 8 bits all low bytes and then all rests.
    """
    shares = usage.detach().double().cpu().numpy()
    codes = torch.arange(1 << bits)
    found = []
    for row in shares:
        parts = [
            quantised(np.rint(np.bincount(plane, row, 1 << width) * _FINE).astype(np.int64) + 1)
            for plane, width in planes(codes, bits)
        ]
        found.append(np.concatenate(parts))
    return torch.from_numpy(np.stack(found).astype(np.int16))


def encode_codes(
    codes: Tensor, widths: Sequence[int], frequencies: Frequencies, owner: int, dimension: int
) -> bytes:
    """Codes `[..., vectors * len(widths)]` as bytes. `frequencies` are one row for each of `widths`."""
    sizes = np.array([codes.dim()], "u1"), np.array(codes.shape, "<u4")
    parts: list[NDArray[Any]] = [np.array([VERSION, dimension], "i1"), *sizes, np.array([owner], "<u4")]
    for symbols, table in _streams(codes, widths, frequencies) if codes.numel() else ():
        stream = _CODER.encode_under(symbols, table)
        parts += [np.array([len(stream)], "<u4"), stream]
    return joined(*parts).tobytes()


def decode_codes(
    data: bytes, widths: Sequence[int], frequencies: Frequencies, owner: int
) -> tuple[Tensor, int]:
    """The inverse of `encode_codes`: codes, int64, and the dimension.

    Raises:
        RequestError: bytes of another version, or of other tables or frequencies.
        WorkError: the bytes are damaged.
    """
    reader = Reader(np.frombuffer(data, np.uint8))
    version, dimension = (int(n) for n in reader.take(2, "i1"))
    if version != VERSION:
        raise RequestError(
            f"bytes of version {version}, and this rhoc reads {VERSION}",
            where="decompress",
            advice="use the version of rhoc that wrote them",
        )
    shape = tuple(int(n) for n in reader.take(int(reader.take(1, "u1")[0]), "<u4"))
    if int(reader.take(1, "<u4")[0]) != owner:
        raise RequestError(
            "the bytes were written with other tables or frequencies",
            where="decompress",
            advice="load the packed model that wrote them",
        )
    if not shape or shape[-1] % len(widths):
        raise damaged("they have no such shape")
    return _read(reader, shape, widths, frequencies), dimension


def _read(reader: Reader, shape: tuple[int, ...], widths: Sequence[int], frequencies: Frequencies) -> Tensor:
    count = prod(shape) // len(widths)
    columns = torch.zeros(count, len(widths), dtype=torch.int64)
    for column, (bits, row) in enumerate(zip(widths, frequencies, strict=True)) if count else ():
        for place, table in enumerate(_tables(bits, row)):
            stream = reader.take(int(reader.take(1, "<u4")[0]), "u1").astype(np.uint8)
            symbols = torch.from_numpy(_CODER.decode_under(stream, count, table).astype(np.int64))
            columns[:, column] |= symbols << 8 * place
    if len(reader.rest("u1")):
        raise damaged("they go on behind the last code")
    return columns.reshape(shape)


def ideal_bits(codes: Tensor, widths: Sequence[int], frequencies: Frequencies) -> float:
    """-log2 of the frequencies of all codes."""
    found = 0.0
    for symbols, table in _streams(codes, widths, frequencies):
        found -= float(np.log2(table / table.sum())[symbols].sum())
    return found


def symbols_of(bits: int) -> int:
    """How many frequencies a code has: one for each symbol of its streams."""
    return sum(1 << width for width in plane_widths(bits))


def entropy(frequencies: NDArray[np.uint32], bits: int) -> float:
    """Entropy of a code in bits, from its frequencies: those of all its symbols together."""
    return sum(entropy_bits(table / table.sum()) for table in _tables(bits, frequencies))


def _streams(
    codes: Tensor, widths: Sequence[int], frequencies: Frequencies
) -> Iterator[tuple[Bytes, NDArray[np.uint32]]]:
    """Symbols in order, and the frequencies of each, for every stream."""
    columns = codes.reshape(-1, len(widths)).T.contiguous()
    for column, bits, row in zip(columns, widths, frequencies, strict=True):
        for (symbols, _), table in zip(planes(column, bits), _tables(bits, row), strict=True):
            yield symbols, table


def _tables(bits: int, row: NDArray[np.uint32]) -> list[NDArray[np.uint32]]:
    """The frequencies of the symbols of one code."""
    sizes = [1 << width for width in plane_widths(bits)]
    return np.split(row, np.cumsum(sizes)[:-1])
