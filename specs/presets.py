"""Names that people know from compressed-tensors and LLM Compressor, and the shipped spec that each means.

Theirs are in capitals and ours in small letters: NVFP4 is theirs (weights and inputs), nvfp4 ours (weights).
"""

from __future__ import annotations

PRESETS = {
    "UNQUANTIZED": "dense",
    "W3A16": "int3-g128",
    "W4A16": "int4-g128",
    "W4A16_ASYM": "int4-g128-asym",
    "W8A16": "int8-channel",
    "W4A8": "w4a8",
    "W8A8": "w8a8",
    "INT8": "w8a8",
    "FP8": "fp8-dynamic",
    "FP8_DYNAMIC": "fp8-dynamic",
    "FP8_BLOCK": "fp8-block",
    "NVFP4": "nvfp4-a4",
    "NVFP4A16": "nvfp4",
    "MXFP4": "mxfp4-a4",
    "MXFP4A16": "mxfp4",
    "MXFP6A16": "mxfp6",
    "MXFP8": "mxfp8-a8",
    "MXFP8A16": "mxfp8",
}
