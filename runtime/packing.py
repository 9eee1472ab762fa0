"""Integer codes of any width packed into bytes, row by row, little-endian, no slack beyond a row's last byte.

Element j of a row occupies bits [j*b, (j+1)*b) of the row's bit stream, lowest bit first. For 2, 4 and 8 bits
this is the layout of compressed-tensors' `pack-quantized` words read as bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def packed_length(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take in one row."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes `[*rows, n]` (integers below 2^bits, bits up to 8) to uint8 `[*rows, ceil(n * bits / 8)]`.

    A scalar stays one byte.
    """
    codes = codes.to(torch.uint8)
    if bits == 8 or not codes.ndim:
        return codes.contiguous()
    length = packed_length(codes.shape[-1], bits)
    if 8 % bits == 0:
        per_byte = 8 // bits
        padded = torch.nn.functional.pad(codes, (0, length * per_byte - codes.shape[-1]))
        slots = torch.unflatten(padded, -1, (length, per_byte))
        out = torch.zeros_like(slots[..., 0])
        for slot in range(per_byte):
            out |= slots[..., slot] << (slot * bits)
        return out
    stream = ((codes.unsqueeze(-1) >> _shifts(bits, codes)) & 1).flatten(-2)
    stream = torch.nn.functional.pad(stream, (0, length * 8 - stream.shape[-1]))
    return (torch.unflatten(stream, -1, (length, 8)) << _shifts(8, codes)).sum(-1).to(torch.uint8)


def unpack(packed: Tensor, bits: int, count: int = 1) -> Tensor:
    """The inverse of `pack`: uint8 `[*rows, ceil(count * bits / 8)]` to uint8 codes `[*rows, count]`."""
    if bits == 8 or not packed.ndim:
        return packed
    if 8 % bits == 0:
        return _spread(packed, bits)[..., :count].contiguous()
    stream = ((packed.unsqueeze(-1) >> _shifts(8, packed)) & 1).flatten(-2)[..., : count * bits]
    return (torch.unflatten(stream, -1, (count, bits)) << _shifts(bits, packed)).sum(-1).to(torch.uint8)


def _spread(packed: Tensor, bits: int) -> Tensor:
    """Bytes of 1-, 2- or 4-bit codes to one byte a code, in whole words, by halving groups of codes.

    A byte becomes a word of as many bytes as it holds codes. Or-ing the word with itself moved up puts the
    upper half of a group where it belongs, and a mask clears what else moved. Words are little-endian.
    """
    per = 8 // bits
    word = packed.reshape(-1).to({2: torch.int16, 4: torch.int32, 8: torch.int64}[per])
    half = 4  # bits
    while half >= bits:
        apart = half * per  # bits from one half to the next
        mask = sum(((1 << half) - 1) << place for place in range(0, 8 * per, apart))
        word = (word | (word << (apart - half))) & mask
        half //= 2
    return word.view(torch.uint8).reshape(*packed.shape[:-1], per * packed.shape[-1])


def _shifts(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.uint8, device=like.device)
