"""Weights as integers times bfloat16 inputs as fixed-point numbers, on processors with AVX2 alone."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rhoc.runtime.kernels import Call
from rhoc.runtime.kernels.cpu import fixed_linear, int8_linear
from rhoc.runtime.kernels.cpu import matrix as native
from rhoc.runtime.kernels.cpu.fixed_input import BLOCK, FixedInput, enter_fixed
from rhoc.runtime.kernels.cpu.fixed_linear import CpuFixedLinear
from rhoc.runtime.kernels.cpu.int8_input import Codes
from rhoc.runtime.kernels.cpu.int8_layout import Described
from rhoc.runtime.kernels.cpu.native_linear import CpuLinear
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

from .apart import survives
from .guarded import guarded
from .kernel_cases import BFLOAT16, assert_close_to_exact
from .test_cpu_int8_words import library
from .test_cpu_linear import ALL, SHAPES, _problem, _weight

INFO = Path("/proc/cpuinfo")
pytestmark = [
    pytest.mark.skipif(
        not INFO.exists() or "avx2" not in INFO.read_text(), reason="instructions of processors with AVX2"
    ),
    pytest.mark.compiled(by=native._library),
]
KERNEL = CpuFixedLinear()
ROWS = (1, 2, 3, 4, 5, 16, 17)


@pytest.fixture(autouse=True)
def without_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of processors with AVX2 alone, on whatever there is, for however few numbers."""
    monkeypatch.setattr(int8_linear, "library", lambda decoding: library(decoding, "-mno-avx512f"))
    monkeypatch.setattr(fixed_linear, "has", lambda: native.EIGHTS)
    monkeypatch.setattr(fixed_linear, "_WORTH", 0)


def taken() -> list[str]:
    return [name for name in sorted(ALL) if KERNEL.refuse(_call(name, (40, 96))) is None]


def _call(name: str, shape: tuple[int, int]) -> Call:
    return replace(_weight(name, shape)[0], dtype=BFLOAT16)


def run(call: Call, x: Tensor, stored: dict[str, Tensor], bias: Tensor | None = None) -> Tensor:
    assert KERNEL.refuse(call) is None
    return KERNEL.run(call, x, KERNEL.prepare(call, stored), bias)


@pytest.mark.parametrize("name", sorted(ALL))
def test_products_are_as_good_as_the_plain_version(name: str) -> None:
    reason = KERNEL.refuse(_call(name, (40, 96)))
    for rows in ROWS if reason is None else ():
        given = _problem(name, (40, 96), rows, BFLOAT16)
        assert_close_to_exact(run(given.call, given.x, given.stored, given.bias), given)
    if reason is not None:
        parts = ("are no integers", "share a scale", "leaves numbers out", "too far from zero")
        assert any(part in reason for part in parts), reason


def test_most_integers_are_taken() -> None:
    expected = {"int4", "int3-g128", "int4-g128-asym", "int8-channel", "int6", "mxfp4", "nvfp4", "int7-g8"}
    assert expected <= set(taken())
    assert len(taken()) > 25


SOME = (
    "int3-g128",
    "int4",
    "int4-g128-asym",
    "int8-channel",
    "int6",
    "mxfp4",
    "nvfp4",
    "int5-asymmetric",
    "int4-g96",
    "int3-g192",
    "int8-asymmetric-rows",
)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 5), (35, 1100)], ids=str)
@pytest.mark.parametrize("name", SOME)
def test_sizes_that_nothing_divides(name: str, shape: tuple[int, int]) -> None:
    for rows in (1, 2, 4, 5, 33):
        given = _problem(name, shape, rows, BFLOAT16)
        assert_close_to_exact(run(given.call, given.x, given.stored, given.bias), given)


@pytest.mark.parametrize("size", [8, 12, 16, 20, 32, 64, 96, 128, 160, 256, 512, 1024])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_groups_of_any_size(bits: int, size: int) -> None:
    for symmetric in (True, False):
        stage = Quantize(bits, strategy="group", group_size=size, symmetric=symmetric)
        check(stage, n=9, k=2113)


@pytest.mark.parametrize("grid", ["midrise", "midtread", "twos"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_grids_of_any_bits(bits: int, grid: str) -> None:
    check(Quantize(bits, grid=grid, strategy="channel"), n=9, k=1300)


def check(stage: Quantize, n: int, k: int) -> None:
    """Of random numbers: the result is as near the exact one as rounding to bfloat16 leaves it."""
    core = fixed_linear_call(stage, n, k)
    generator = torch.Generator().manual_seed(n * k)
    encoded = core.representation.encode(torch.randn(n, k, generator=generator))
    stored, weight = core.representation.pack(encoded), core.representation.decode(encoded).double()
    if KERNEL.refuse(core) is not None:
        assert stage.group_size in (12, 20)
        return
    for rows in (1, 2, 4, 7):
        x = torch.randn(rows, k, generator=generator).to(BFLOAT16)
        exact = x.double() @ weight.T
        error = (run(core, x, stored).double() - exact).abs()
        assert bool((error <= exact.abs() * 2**-8 + 2e-4 * exact.abs().max()).all())


def fixed_linear_call(stage: Quantize, n: int, k: int) -> Call:
    return Call("linear", Representation((stage,)).core, (n, k), BFLOAT16, "cpu")


def test_inputs_are_rounded_to_a_part_of_their_block() -> None:
    x = (
        torch.randn(5, 1100, generator=torch.Generator().manual_seed(1))
        * 10.0 ** torch.arange(-2, 3)[:, None]
    )
    entered, good = enter_fixed(FixedInput(1100), x)
    assert bool(good.all())
    assert entered.codes[:, 1100:].count_nonzero() == 0
    for first in range(0, 1100, BLOCK):
        block = x[:, first : first + BLOCK].double()
        scale = entered.scales[:, first // BLOCK, None].double()
        torch.testing.assert_close(scale, block.abs().amax(1, keepdim=True) / 32767, rtol=1e-6, atol=0)
        codes = entered.codes[:, first : min(first + BLOCK, 1100)].double()
        slack = 32767 * torch.finfo(torch.float32).eps  # of what is multiplied before it is rounded
        assert bool(((codes * scale - block).abs() <= scale * (0.5 + slack)).all())


def _odd_inputs(k: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    normal = torch.randn(k, generator=generator)
    spike, alone, wrong = normal.clone(), torch.zeros(k), normal.clone()
    spike[7], alone[11], wrong[k - 1] = 1e6, 3.0, float("nan")
    infinite, mixed = normal.clone(), normal.clone()
    infinite[0], mixed[: k // 2] = float("inf"), mixed[: k // 2] * 1e-5
    return {
        "spike": spike,
        "alone": alone,
        "nan": wrong,
        "infinite": infinite,
        "mixed": mixed,
        "tiny": normal * 1e-35,
        "huge": normal * 1e35,
        "zero": torch.zeros(k),
        "normal": normal,
    }


def test_rows_that_16_bits_do_not_hold_are_multiplied_in_float32() -> None:
    call, stored, weight = _weight("int4-g128", (24, 1100))
    call = replace(call, dtype=BFLOAT16)
    inputs = _odd_inputs(1100)
    x = torch.stack(list(inputs.values())).to(BFLOAT16)
    _, good = enter_fixed(FixedInput(1100), x)
    held = {name for name, one in zip(inputs, good.tolist(), strict=True) if one}
    assert held == {"mixed", "zero", "normal"}
    result, plain = run(call, x, stored), CpuLinear().run(call, x, stored, None)
    assert torch.equal(result[~good].nan_to_num(7.0), plain[~good].nan_to_num(7.0))
    exact = x[good].double() @ weight.T
    torch.testing.assert_close(result[good].double(), exact, rtol=2**-8, atol=0.02)
    assert bool((result[list(inputs).index("zero")] == 0).all())


def test_what_is_rounded_away_is_less_than_what_a_result_is_rounded_by() -> None:
    """Also where columns with much larger inputs meet weights that are nothing, and leave their error alone."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(64, 4096, generator=generator).double()
    for size in (1.0, 10.0, 40.0, 100.0, 1000.0):
        x = torch.randn(2, 4096, generator=generator)
        x[:, 100::BLOCK] = size
        x = x.to(BFLOAT16)
        columns = torch.arange(4096) % BLOCK != 100
        entered, good = enter_fixed(FixedInput(4096), x)
        back = entered.codes[:, :4096].double() * entered.scales.double().repeat_interleave(BLOCK, 1)
        error = ((back - x.double())[:, columns] @ weight[:, columns].T).square().mean(1).sqrt()
        exact = (x.double()[:, columns] @ weight[:, columns].T).square().mean(1).sqrt()
        assert bool((error[good] <= exact[good] * 2**-9 / 12**0.5 / 3).all())
        assert bool(good.all()) == (size < 20)


@pytest.mark.parametrize("size", [None, 64])
@pytest.mark.parametrize("bits", [2, 3, 4, 7, 8])
def test_the_largest_codes(bits: int, size: int | None) -> None:
    """Nothing overflows where all numbers are the largest and of one sign."""
    stage = Quantize(bits, symmetric=False, strategy="group" if size else "channel", group_size=size)
    call = fixed_linear_call(stage, 2, 1536)
    packed = call.representation.pack(call.representation.encode(torch.randn(2, 1536)))
    found = fixed_linear._described(call)
    assert isinstance(found, Described)
    for byte, zero in ((0xFF, 0), (0, 0xFF)):
        fields = {**packed, "carry": torch.full_like(packed["carry"], byte)}
        fields["0.zero_point"] = torch.full_like(fields["0.zero_point"], zero)
        level = ((1 << bits) - 1) * (1 if byte else -1)
        scales = fields["0.scale"].double().reshape(2, -1)
        for rows in (1, 2, 4, 7):
            for code in (32767, -32767):
                codes = torch.zeros(rows, found.input.stride, dtype=torch.int16)
                codes[:, :1536] = code
                entered = Codes(codes, torch.ones(rows, found.input.scales), None)
                result = int8_linear.product(found, entered, fields, None, None, torch.empty(rows, 2))
                expected = float(code) * level * scales.sum(1) * 1536 / scales.shape[1]
                torch.testing.assert_close(result.double(), expected.expand(rows, -1), rtol=2e-6, atol=0)


def test_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    call = _call("int4", (40, 96))
    assert KERNEL.refuse(replace(call, dtype=torch.float32)) == "inputs are float32, not bfloat16"
    monkeypatch.setattr(fixed_linear, "has", lambda: native.PAIRS)
    assert KERNEL.refuse(call) == "it is for processors with AVX2 and no AVX-512"


def test_gradients() -> None:
    call, stored, weight = _weight("int4-g128", (24, 256))
    call = replace(call, dtype=BFLOAT16)
    x = torch.randn(3, 256).to(BFLOAT16).requires_grad_()
    run(call, x, stored).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), weight.sum(0).expand(3, -1), rtol=2**-6, atol=0.05)


def test_few_numbers_are_multiplied_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    given = _problem("int4-g128", (40, 96), 2, BFLOAT16)
    expected = CpuLinear().run(given.call, given.x, given.stored, given.bias)
    monkeypatch.setattr(fixed_linear, "_WORTH", 2 * 40 * 96 + 1)
    monkeypatch.setattr(fixed_linear, "enter_fixed", None)  # which would be called
    assert torch.equal(run(given.call, given.x, given.stored, given.bias), expected)


def test_no_rows() -> None:
    call, stored, _ = _weight("int4", (24, 256))
    result = run(replace(call, dtype=BFLOAT16), torch.empty(0, 256, dtype=BFLOAT16), stored)
    assert tuple(result.shape) == (0, 24)


def read_to_the_end() -> None:
    for bits, kind in ((1, "int"), (2, "int"), (3, "int"), (4, "int"), (4, "float"), (8, "int")):
        for k, group in ((64, None), (100, None), (100, 16), (256, 64)):
            stage = Quantize(bits, kind, strategy="group" if group else "channel", group_size=group)
            for rows in (1, 4, 9):
                call = fixed_linear_call(stage, 3, k)
                fields = call.representation.pack(call.representation.encode(torch.randn(3, k)))
                x, behind = torch.randn(rows, k).bfloat16(), {name: guarded(t) for name, t in fields.items()}
                assert KERNEL.refuse(call) is None
                assert torch.equal(*(KERNEL.run(call, x, f, None) for f in (fields, behind)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs mprotect")
def test_nothing_is_read_past_the_end_of_a_weight() -> None:
    assert survives(read_to_the_end)
