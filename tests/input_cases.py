"""Products of coded inputs, with their answers in float64 from the codes of both sides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rhoc.runtime.entering import enter
from rhoc.runtime.kernels import Call
from rhoc.runtime.kernels.neighbours import ACTIVATIONS
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize

FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
A8 = Quantize(8, strategy="token")
A8_HALVES = Quantize(8, strategy="token", grid="midrise", observer="rms")
A4_HALVES = Quantize(4, strategy="token", grid="midrise", observer="rms")
A8_GROUPS = Quantize(8, strategy="group", group_size=64)
A8_TENSOR = Quantize(8)  # has no fused form: codes come from the stage
FP8 = Quantize(8, "float", strategy="token")
FP8_GROUPS = Quantize(8, "float", strategy="group", group_size=128)
MXFP8 = Quantize(8, "float", strategy="group", group_size=32, observer="mx")
MXFP4 = Quantize(4, "float", strategy="group", group_size=32, observer="mx")
FP8_BLOCKS = Quantize(8, "float", strategy="block", block_structure=(128, 128), scale_dtype="float32")
W4_GROUPS = Quantize(4, strategy="group", group_size=64)
W4_ZEROS = Quantize(4, strategy="group", group_size=64, symmetric=False)


@dataclass(frozen=True)
class Case:
    """A linear `[n, k]` of `rows` inputs that are rounded by a stage, after a rotation that weights share."""

    weight: Quantize
    input: Quantize = A8
    dtype: torch.dtype = FLOAT32
    rows: int = 3
    n: int = 40
    k: int = 256
    block: int = 0
    activation: str = ""
    bias: bool = True

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return (
            f"{self.weight}-{self.input}-{kind}-{self.rows}x{self.k}x{self.n}-{self.block}{self.activation}"
        )

    @property
    def rotation(self) -> Representation:
        return Representation((Hadamard(self.block),) if self.block else ())

    def call(self, device: str = "cpu", operation: str = "input_linear") -> Call:
        entering = Representation((*self.rotation.stages, self.input))
        core, shape = Representation((self.weight,)).core, (self.n, self.k)
        return Call(
            operation,
            core,
            shape,
            self.dtype,
            device,
            self.activation,
            input=entering,
            rotation=self.rotation,
        )


@dataclass(frozen=True)
class Problem:
    """A case with numbers, the float64 answer and that of the parts, one after another."""

    call: Call
    x: Tensor
    stored: dict[str, Tensor]
    bias: Tensor | None
    exact: Tensor
    plain: Tensor


def numbers(*shape: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    """Seeded normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def problem(case: Case, device: str = "cpu") -> Problem:
    """The case with seeded numbers, on a device."""
    call, shape = case.call(device), (case.n, case.k)
    x = numbers(case.rows, case.k, dtype=case.dtype) * 2
    weight = numbers(*shape, dtype=case.dtype, seed=2) / 4
    stored = call.representation.pack(call.representation.encode(weight))
    bias = numbers(case.n, dtype=case.dtype, seed=3) if case.bias else None
    code = call.representation.unpack(stored, shape, case.dtype)
    core = call.input.core
    rotated = case.rotation.encode(x).carry if case.block else x
    exact = core.restore(core.encode(rotated)).double() @ call.representation.restore(code).double().T
    exact = exact if bias is None else exact + bias.double()
    plain = torch.nn.functional.linear(
        enter(x, call.input, call.rotation), call.representation.decode(code), bias
    )
    if case.activation:
        exact, plain = ACTIVATIONS[case.activation](exact), ACTIVATIONS[case.activation](plain)
    on = {name: tensor.to(device) for name, tensor in stored.items()}
    bias = None if bias is None else bias.to(device)
    return Problem(call, x.to(device), on, bias, exact.to(device), plain.to(device))


def assert_close(result: Tensor, exact: Tensor, plain: Tensor) -> None:
    """At most twice the error of the plain version, in the mean and, but for a rounding, anywhere."""
    assert (result.shape, result.dtype) == (plain.shape, plain.dtype)
    error, allowed = (result.double() - exact).abs(), (plain.double() - exact).abs()
    rounding = torch.finfo(plain.dtype).eps / 2 * exact.abs().max()
    assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt() + rounding / 10
    assert error.max() <= 2 * allowed.max() + rounding


def _grids(bits: int) -> tuple[str, ...]:
    return ("midrise",) if bits == 1 else ("midrise", "midtread", "twos")


def _plain(bits: int, grid: str) -> Quantize:
    return Quantize(bits, strategy="channel", grid=grid, observer="rms")


CASES = (
    *(Case(_plain(bits, grid)) for bits in (1, 2, 4, 8) for grid in _grids(bits)),
    *(Case(_plain(bits, "midrise"), A8_HALVES, rows=1, k=512) for bits in (1, 2, 4, 8)),
    *(Case(Quantize(bits, strategy="channel"), k=200) for bits in (3, 5, 6, 7)),
    *(
        Case(W4_GROUPS, A8, dtype, rows, 33, 192, activation="gelu")
        for dtype in (FLOAT16, BFLOAT16)
        for rows in (1, 5, 16, 33, 70)
    ),
    *(Case(_plain(8, "twos"), A8_HALVES, dtype, 17, 70, 100) for dtype in (FLOAT16, BFLOAT16)),
    *(Case(W4_ZEROS, A8, rows=rows, bias=False) for rows in (1, 20)),
    *(Case(Quantize(4, strategy="channel", symmetric=False), A8, rows=rows, k=512) for rows in (1, 3)),
    Case(Quantize(4, strategy="group", group_size=32, symmetric=False, zp_dtype="float16"), A8),
    Case(W4_GROUPS, A8_GROUPS, activation="silu"),
    Case(Quantize(8, strategy="group", group_size=32), A8_GROUPS, rows=1, activation="relu"),
    Case(Quantize(4, strategy="group", group_size=96), A8, k=300, activation="gelu_tanh"),
    Case(Quantize(8, strategy="block", block_structure=(16, 64)), A8),
    Case(_plain(4, "twos"), A8_TENSOR),
    Case(_plain(8, "midrise"), A8_HALVES, BFLOAT16, block=128),
    Case(_plain(4, "midrise"), A4_HALVES, rows=20, block=64),
    *(Case(weight, A8_HALVES, rows=520, n=48, k=64) for weight in (_plain(8, "twos"), _plain(8, "midrise"))),
    *(Case(MXFP4, entering) for entering in (MXFP4, MXFP8, A8)),
    Case(MXFP8, MXFP8, BFLOAT16, rows=33),
    *(Case(Quantize(8, "float", strategy="channel"), FP8, BFLOAT16, rows) for rows in (1, 16, 70)),
    Case(Quantize(8, "float"), FP8, FLOAT16, k=100),
    Case(W4_GROUPS, FP8, rows=5, activation="silu"),
    Case(FP8_BLOCKS, FP8_GROUPS, BFLOAT16, 5, 150, 300),
)
