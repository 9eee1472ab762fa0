"""Linears on sparse weights, codebooks, trellises and low rank, with their answers in float64.

The rule of acceptance is that of `kernel_cases`: the error to float64 is at most twice that of the plain
version, which decodes to the input's dtype and multiplies. In float32 it is that of a sum of K numbers in any
order.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from rhoc.compiler.spec import load_spec
from rhoc.runtime.kernels import Call
from rhoc.runtime.kernels.decode_linear import DecodeLinear
from rhoc.runtime.representation import Representation

FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16


@dataclass(frozen=True)
class Case:
    """A linear: the kernel that is to take it, how its weight `[n, k]` is stored, and its input of `rows`."""

    kernel: str
    text: str
    dtype: torch.dtype = BFLOAT16
    rows: int = 3
    n: int = 40
    k: int = 160
    bias: bool = True
    prepared: bool = True

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.text} {self.rows}x{self.k}x{self.n} {kind}"


@dataclass(frozen=True)
class Problem:
    """A case with numbers, the float64 answer and the plain version's."""

    call: Call
    x: Tensor
    stored: dict[str, Tensor]
    bias: Tensor | None
    exact: Tensor
    plain: Tensor


def core_of(text: str) -> Representation:
    """The weight's representation that a text says, without leading rotations."""
    found = load_spec(text).rules[0].weight_representation
    assert found is not None
    return found.core


def stored_of(core: Representation, shape: tuple[int, int], dtype: torch.dtype) -> dict[str, Tensor]:
    """Seeded normal numbers as they are stored; under a trellis, whose search takes long, any codes."""
    generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])
    weight = torch.randn(shape, generator=generator).to(dtype)
    if "trellis" not in str(core) or "product" in str(core):
        return core.pack(core.encode(weight))
    stored = {}
    for name, field in core.layout(shape, dtype).items():
        numbers = torch.rand(field.stored_shape, generator=generator) + 0.5
        codes = torch.randint(256, field.stored_shape, generator=generator, dtype=torch.uint8)
        stored[name] = codes if field.packed else numbers.to(field.dtype)
    return stored


def problem(case: Case, device: str = "cpu") -> Problem:
    """The case on a device."""
    core, shape = core_of(case.text), (case.n, case.k)
    generator = torch.Generator().manual_seed(case.rows)
    x = torch.randn(case.rows, case.k, generator=generator).to(case.dtype)
    bias = torch.randn(case.n, generator=generator).to(case.dtype) if case.bias else None
    stored = stored_of(core, shape, case.dtype)
    weight = core.restore(core.unpack(stored, shape, case.dtype)).double()
    exact = x.double() @ weight.T + (0 if bias is None else bias.double())
    call = Call("linear", core, shape, case.dtype, device)
    plain = DecodeLinear().run(call, x, stored, bias)
    on = {name: tensor.to(device) for name, tensor in stored.items()}
    return Problem(
        call, x.to(device), on, None if bias is None else bias.to(device), exact.to(device), plain.to(device)
    )


def assert_close_to_exact(result: Tensor, given: Problem) -> None:
    """At most twice the error of the plain version, in the mean and, but for roundings, anywhere."""
    assert result.shape == given.plain.shape
    assert result.dtype == given.x.dtype
    error, plain = (result.double() - given.exact).abs(), (given.plain.double() - given.exact).abs()
    rounding = torch.finfo(given.x.dtype).eps / 2 * given.exact.abs().max()
    slack = sqrt(given.call.shape[1]) if given.x.dtype == FLOAT32 else 1.0
    assert error.square().mean().sqrt() <= 2 * plain.square().mean().sqrt() + slack * rounding / 10
    assert error.max() <= 2 * plain.max() + slack * rounding


SPARSE, CODEBOOK, TRELLIS, LOW_RANK = "sparse_linear", "codebook_linear", "trellis_linear", "low_rank_linear"

INT4 = "quantize(int4, channel, grid=midrise)"
E8P = "codebook(8, source=e8p, nbits_per_codebook=16)"

# Every storage and width once, in words and byte by byte, groups and tails, and rows from 1 to 70.
CASES = (
    Case(SPARSE, f"sparsify(2:4) >> {INT4}", k=192, rows=1),
    Case(SPARSE, f"sparsify(2:4) >> {INT4}", FLOAT32, k=92, n=33),
    Case(SPARSE, f"sparsify(2:4) >> {INT4}", FLOAT16, k=1120, rows=70),
    Case(SPARSE, "sparsify(2:4) >> quantize(int4, group=64)", FLOAT16, k=256, rows=17),
    Case(SPARSE, "sparsify(2:4) >> quantize(int4, group=16)", k=160, bias=False),
    Case(SPARSE, "sparsify(2:4)", rows=1),
    Case(SPARSE, "sparsify(2:4)", FLOAT32, k=84, prepared=False),
    Case(SPARSE, "sparsify(2:4) >> quantize(int8, channel)", FLOAT16, prepared=False),
    Case(SPARSE, "sparsify(2:4) >> quantize(int3, channel)", k=104),
    Case(SPARSE, "sparsify(2:4) >> quantize(float8, channel)", FLOAT16),
    Case(SPARSE, "sparsify(2:4) >> NVFP4", k=192),
    Case(SPARSE, "sparsify(2:4, storage=rank) >> quantize(int4, group=64)", FLOAT16, k=256),
    Case(SPARSE, "sparsify(4:8, vector=2) >> quantize(int4, channel)", FLOAT32),
    Case(SPARSE, "sparsify(1:4, storage=bitmask) >> quantize(int8, channel)", rows=16),
    Case(SPARSE, "sparsify(3:5)", k=155),
    Case(SPARSE, "sparsify(0.5)", FLOAT32, rows=1, k=300, n=33),
    Case(SPARSE, "sparsify(0.5)", FLOAT16, k=620, n=9, rows=33, bias=False),
    Case(SPARSE, "sparsify(0.7) >> quantize(int4)", prepared=False, k=300),
    Case(SPARSE, "sparsify(0.9, granularity=row) >> quantize(int6, channel)", k=513, n=7),
    Case(CODEBOOK, "codebook(8, nbits_per_codebook=8)", rows=1, k=272, n=300),
    Case(CODEBOOK, "codebook(8, nbits_per_codebook=8)", FLOAT16, rows=70, k=276, n=33),
    Case(CODEBOOK, "codebook(8, num_codebooks=2, composition=additive)", rows=1),
    Case(CODEBOOK, "codebook(8, num_codebooks=2, composition=additive)", FLOAT16),
    Case(
        CODEBOOK, "codebook(8, num_codebooks=2, nbits_per_codebook=8, composition=product)", FLOAT32, rows=1
    ),
    Case(CODEBOOK, "codebook(8, num_codebooks=2, nbits_per_codebook=5, composition=product)", k=132),
    Case(CODEBOOK, "codebook(4, num_codebooks=3, nbits_per_codebook=6)", FLOAT32, k=132),
    Case(CODEBOOK, "codebook(4, source=gaussian, nbits_per_codebook=8, strategy=channel)", rows=1),
    Case(CODEBOOK, "codebook(4, source=gaussian, nbits_per_codebook=8, strategy=channel)", FLOAT16, rows=16),
    Case(
        CODEBOOK, "codebook(2, source=gaussian, nbits_per_codebook=6, strategy=group, group_size=32)", rows=1
    ),
    Case(CODEBOOK, "codebook(2, nbits_per_codebook=8)", FLOAT32, rows=1, prepared=False),
    Case(CODEBOOK, "codebook(8, source=e8, nbits_per_codebook=12)", FLOAT16),
    Case(CODEBOOK, "codebook(1, nbits_per_codebook=3, scope=group, rows_per_codebook=1)", k=133, n=9),
    Case(CODEBOOK, "codebook(4, nbits_per_codebook=5, scope=group, rows_per_codebook=16)", FLOAT16),
    Case(CODEBOOK, E8P, rows=1),
    Case(CODEBOOK, E8P, FLOAT16, k=132, rows=20),
    Case(CODEBOOK, f"{E8P[:-1]}, num_codebooks=2)", FLOAT32),
    Case(TRELLIS, "trellis(2, state_bits=12, strategy=channel)", rows=1),
    Case(TRELLIS, "trellis(2, state_bits=16)", FLOAT32, prepared=False),
    Case(TRELLIS, "trellis(2, state_bits=16, code=1mad)", rows=1),
    Case(TRELLIS, "trellis(2, state_bits=16, code=3inst, strategy=channel)", FLOAT16),
    Case(TRELLIS, "trellis(1, state_bits=16, code=3inst)", FLOAT32),
    Case(TRELLIS, "trellis(1, state_bits=9)", rows=70),
    Case(TRELLIS, "trellis(3, state_bits=16, code=1mad, strategy=group, group_size=32)", FLOAT16, k=168),
    Case(TRELLIS, "trellis(3, state_bits=11)", k=72, n=9),
    Case(
        TRELLIS, "trellis(4, state_bits=10, code=table, strategy=group, group_size=64)", rows=17, bias=False
    ),
    Case(TRELLIS, "trellis(4, state_bits=14)", FLOAT32, k=8, n=5),
    Case(LOW_RANK, "product(8) + quantize(int4, group=32)", FLOAT32, rows=1),
    Case(LOW_RANK, "product(5) + quantize(int3, channel)", FLOAT16, rows=20, k=132),
    Case(LOW_RANK, f"product(8, left=W8A16, right=W4A16) + {E8P}", k=256),
    Case(LOW_RANK, "product(4) + (sparsify(2:4) >> quantize(int4, channel))", prepared=False),
    Case(LOW_RANK, "product(8, left=hadamard(8) >> quantize(int8, channel)) + (hadamard(32) >> nf4)", k=192),
    Case(LOW_RANK, "product(16) + NVFP4", FLOAT16, bias=False),
)
