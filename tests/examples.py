"""A few stages of every kind, as text, that take a 32 x 64 matrix."""

from __future__ import annotations

PURSUIT = "product(8, left=sparsify(2:8) >> quantize(int4), right=quantize(int8, channel), rounds=3, block=4, pursuit)"

EXAMPLES = {
    "hadamard": ["hadamard(64)", "hadamard(full, signs=3)", "hadamard(4)"],
    "rotate": ["rotate(16)"],
    "scale": ["scale()", "scale(rows)"],
    "sparsify": ["sparsify(0.5)", "sparsify(2:4)", "sparsify(0.5, block:4x4)", "sparsify(0.5, row)"],
    "quantize": ["quantize(int4, channel)", "quantize(int2, group=16, mse)", "quantize(e2m1, rms)"],
    "codebook": ["codebook(8, nbits_per_codebook=16, e8p)", "codebook(2, nbits_per_codebook=4)"],
    "trellis": ["trellis(2, state_bits=6)"],
    "ones": ["ones()"],
    "palette": ["palette()", "palette(max_order=1, num_values=5)"],
    "sum": ["sparsify(0.9) + quantize(int3, channel)", "quantize(int2, channel) + quantize(int2, channel)"],
    "product": ["product(4)", "product(8, left=quantize(int8, channel), rounds=1)", PURSUIT],
    "split": ["split(0.1, rest=quantize(int4, channel))"],
    "entropy": ["entropy(quantize(int4, channel))"],
}
