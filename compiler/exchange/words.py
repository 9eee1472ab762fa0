"""Codes in 32-bit words: the rows of `runtime.packing` padded to whole words, lowest bits first.

This is the bit order of compressed-tensors' `pack-quantized` for every width from 1 to 8 bits (since its
release of June 2026; before, widths that do not divide 32 left the top bits of each word empty).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...runtime.packing import pack, packed_length, unpack

_BYTES = 4  # of a word


def word_count(count: int, bits: int) -> int:
    """Words that `count` codes of `bits` bits take in one row."""
    return -(-count * bits // (8 * _BYTES))


def to_words(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes `[N, n]` to int32 `[N, ceil(n * bits / 32)]`."""
    stream = pack(codes, bits)
    return _plain(torch.nn.functional.pad(stream, (0, -stream.shape[-1] % _BYTES))).view(torch.int32)


def from_words(words: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `to_words`: codes `[N, count]`."""
    stream = _plain(words).view(torch.uint8)[..., : packed_length(count, bits)]
    return unpack(stream.contiguous(), bits, count)


def _plain(x: Tensor) -> Tensor:
    """A copy with the strides of its shape; what counts as contiguous may have others where a size is 1."""
    return x.clone(memory_format=torch.contiguous_format)
