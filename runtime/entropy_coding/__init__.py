"""Entropy coding: integers of known frequencies as about as many bits as their entropy."""

from __future__ import annotations

from .coder import Coder
from .field import CODERS, decode_field, encode_field, expected_bytes
from .huffman import Huffman
from .rans import Rans

__all__ = ["CODERS", "Coder", "Huffman", "Rans", "decode_field", "encode_field", "expected_bytes"]
