"""The kernels whose machine code is looked at: by name the kernel, the weight, rows and dtype of the
input."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .format_cases import BFLOAT16, CODEBOOK, E8P, FLOAT16, FLOAT32, INT4, LOW_RANK, SPARSE, TRELLIS


@dataclass(frozen=True)
class Compiled:
    """What is compiled: the kernel that takes `text`, for so many rows, or `row`, its way for a single
    one, or `decode`, which writes the dense weight."""

    kernel: str
    text: str
    rows: int = 1
    dtype: torch.dtype = BFLOAT16
    row: bool = False
    decode: bool = False


AQLM = "codebook(8, num_codebooks=2, composition=additive)"
HIGGS = "codebook(4, source=gaussian, nbits_per_codebook=8, strategy=channel)"

NAMES = {
    "2of4-int4": Compiled(SPARSE, f"sparsify(2:4) >> {INT4}"),
    "2of4-int4-f16": Compiled(SPARSE, f"sparsify(2:4) >> {INT4}", dtype=FLOAT16),
    "2of4-int4-m64": Compiled(SPARSE, f"sparsify(2:4) >> {INT4}", rows=64),
    "2of4-int4-g64": Compiled(SPARSE, "sparsify(2:4) >> quantize(int4, group=64)"),
    "2of4": Compiled(SPARSE, "sparsify(2:4)"),
    "2of4-int8": Compiled(SPARSE, "sparsify(2:4) >> quantize(int8, channel)"),
    "2of4-f32": Compiled(SPARSE, f"sparsify(2:4) >> {INT4}", dtype=FLOAT32),
    "1of4-int8": Compiled(SPARSE, "sparsify(1:4) >> quantize(int8, channel)", rows=16),
    "sparse50": Compiled(SPARSE, "sparsify(0.5)"),
    "sparse50-int4": Compiled(SPARSE, "sparsify(0.5) >> quantize(int4)", rows=64),
    "aqlm-1x8-row": Compiled(CODEBOOK, "codebook(8, nbits_per_codebook=8)", row=True),
    "aqlm-2x8-row": Compiled(CODEBOOK, AQLM, row=True),
    "aqlm-2x8": Compiled(CODEBOOK, AQLM, rows=4),
    "higgs2-row": Compiled(CODEBOOK, HIGGS, row=True),
    "higgs2": Compiled(CODEBOOK, HIGGS, rows=4),
    "higgs3": Compiled(CODEBOOK, "codebook(2, source=gaussian, nbits_per_codebook=6, strategy=channel)"),
    "higgs2-f32-row": Compiled(CODEBOOK, HIGGS, dtype=FLOAT32, row=True),
    "e8p": Compiled(CODEBOOK, E8P),
    "e8p-f16": Compiled(CODEBOOK, E8P, dtype=FLOAT16),
    "e8p-m64": Compiled(CODEBOOK, E8P, rows=64),
    "qtip2-l12": Compiled(TRELLIS, "trellis(2, state_bits=12, strategy=channel)"),
    "qtip2-l16": Compiled(TRELLIS, "trellis(2, state_bits=16)"),
    "qtip3": Compiled(TRELLIS, "trellis(3, state_bits=12)"),
    "1mad": Compiled(TRELLIS, "trellis(2, state_bits=16, code=1mad)"),
    "1mad-m64": Compiled(TRELLIS, "trellis(2, state_bits=16, code=1mad)", rows=64),
    "3inst": Compiled(TRELLIS, "trellis(2, state_bits=16, code=3inst)", dtype=FLOAT16),
    **{
        f"{name}-decoded": Compiled(kernel, text, decode=True)
        for name, kernel, text in (
            ("2of4-int4", SPARSE, f"sparsify(2:4) >> {INT4}"),
            ("sparse50", SPARSE, "sparsify(0.5)"),
            ("aqlm-2x8", CODEBOOK, AQLM),
            ("e8p", CODEBOOK, E8P),
            ("1mad", TRELLIS, "trellis(2, state_bits=16, code=1mad)"),
        )
    },
    "low-rank-int4": Compiled(LOW_RANK, "product(64, left=W4A16) + quantize(int4, group=128)"),
    "low-rank-nf4": Compiled(LOW_RANK, "product(64) + nf4"),
}
