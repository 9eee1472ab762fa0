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
    """Codes `[*rows, n]` (integers below 2^bits, bits up to 31) to uint8 `[*rows, ceil(n * bits / 8)]`.

    A scalar stays one number.
    """
    if bits > 8:
        return _pack_wide(codes.to(torch.int32), bits)
    codes = codes.to(torch.uint8).contiguous()
    if bits == 8 or not codes.ndim:
        return codes
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
    return _bytes_of(torch.nn.functional.pad(stream, (0, length * 8 - stream.shape[-1])))


def unpack(packed: Tensor, bits: int, count: int = 1) -> Tensor:
    """The inverse of `pack`: uint8 `[*rows, ceil(count * bits / 8)]` to codes `[*rows, count]`.

    Codes are uint8 up to 8 bits and int32 above.
    """
    if bits > 8:
        return _unpack_wide(packed, bits, count)
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


def _pack_wide(codes: Tensor, bits: int) -> Tensor:
    """`pack` for codes of more than a byte: the low bits of each code's bytes, one after the other."""
    if not codes.ndim:
        return codes
    planes = codes.contiguous().unsqueeze(-1).view(torch.uint8)
    if bits % 8 == 0:
        return planes[..., : bits // 8].flatten(-2).contiguous()
    stream = _bits_of(planes)[..., :bits].flatten(-2)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[-1] % 8))
    return _bytes_of(stream)


def _unpack_wide(packed: Tensor, bits: int, count: int) -> Tensor:
    if not packed.ndim:
        return packed
    if bits % 8 == 0:
        planes = torch.unflatten(packed, -1, (count, bits // 8))
    else:
        codes = torch.unflatten(
            _bits_of(packed.unsqueeze(-1)).flatten(-2)[..., : count * bits], -1, (count, bits)
        )
        planes = _bytes_of(torch.nn.functional.pad(codes, (0, -bits % 8)))
    planes = torch.nn.functional.pad(planes, (0, 4 - planes.shape[-1]))
    return planes.contiguous().view(torch.int32).squeeze(-1)


def _bits_of(planes: Tensor) -> Tensor:
    """Bytes `[..., b]` to bits `[..., 8 b]`, lowest first."""
    return ((planes.unsqueeze(-1) >> _shifts(8, planes)) & 1).flatten(-2)


def _bytes_of(stream: Tensor) -> Tensor:
    """Bits `[..., 8 b]` to bytes `[..., b]`."""
    octets = torch.unflatten(stream, -1, (stream.shape[-1] // 8, 8))
    return (octets << _shifts(8, stream)).sum(-1).to(torch.uint8)


def _shifts(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=torch.uint8, device=like.device)
