"""Integer products on a CPU: codes are those of the stage, and results those of numpy's integers from the bytes."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rhoc
from rhoc.runtime.entering import enter as plain_enter
from rhoc.runtime.kernels import Call, select
from rhoc.runtime.kernels.composed import ComposedInput
from rhoc.runtime.kernels.cpu import int8_linear
from rhoc.runtime.kernels.cpu.int8_input import Codes, Entering, enter, entering
from rhoc.runtime.kernels.cpu.int8_layout import Integers, integers_of
from rhoc.runtime.kernels.cpu.int8_linear import CpuInt8Linear
from rhoc.runtime.kernels.decode_linear import DecodeLinear
from rhoc.runtime.kernels.stored import StoredMatrix, stored_matrix
from rhoc.runtime.native.build import loaded
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize, RandomRotation, Sparsify

from .apart import survives
from .guarded import guarded

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
TOKEN = Quantize(8, strategy="token", dynamic=True)
KERNEL = CpuInt8Linear()

pytestmark = pytest.mark.compiled(by=lambda: int8_linear.library("PACKED"))


@dataclass(frozen=True)
class Case:
    """A linear of inputs `[rows, k]` with a weight `[n, k]`, both quantised."""

    weight: Quantize
    input: Quantize = TOKEN
    rows: int = 3
    n: int = 37
    k: int = 192
    dtype: torch.dtype = FLOAT32
    rotation: tuple[Hadamard, ...] = ()
    bias: bool = True

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        rotation = "".join(f"{stage}-" for stage in self.rotation)
        return f"{rotation}{self.weight}-{self.input}-{self.rows}x{self.k}x{self.n}-{kind}"

    @property
    def call(self) -> Call:
        weight = Representation((*self.rotation, self.weight))
        projection = Representation((*self.rotation, self.input))
        return Call(
            "input_linear",
            weight.core,
            (self.n, self.k),
            self.dtype,
            "cpu",
            input=projection,
            rotation=weight.rotation,
        )

    @property
    def entering(self) -> Entering:
        found = entering(self.call)
        assert isinstance(found, Entering), found
        return found

    def normal(self, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(sum(shape))
        return torch.randn(*shape, generator=generator).to(self.dtype)


@lru_cache(maxsize=64)
def stored_of(case: Case) -> dict[str, Tensor]:
    core = case.call.representation
    return core.pack(core.encode(case.normal(case.n, case.k)))


def stored(case: Case) -> dict[str, Tensor]:
    """The weight's fields; one encoding serves all numbers of rows."""
    return stored_of(replace(case, rows=1, input=TOKEN, bias=True))


def weight_of(case: Case) -> np.ndarray:
    """The weight in float64 from its bytes: integers, and a scale for each."""
    matrix, fields = stored_matrix(case.call.representation, (case.n, case.k)), stored(case)
    assert isinstance(matrix, StoredMatrix)
    assert matrix.scale is not None
    rows = fields["carry"].reshape(case.n, -1).numpy()
    bits = np.unpackbits(rows, axis=-1, bitorder="little")[:, : case.k * matrix.bits]
    codes = bits.reshape(case.n, case.k, matrix.bits) @ (1 << np.arange(matrix.bits))
    at = np.indices(codes.shape)
    shared = at[0] // matrix.scale.sharing.rows, at[1] // matrix.scale.sharing.columns
    scales = matrix.scales(fields).double().numpy()[shared]
    zeros = matrix.zeros(fields)
    values = np.array(matrix.levels)[codes] if zeros is None else codes - zeros.double().numpy()[shared]
    return np.asarray(values * scales)


def values_of(case: Case, codes: Codes) -> np.ndarray:
    """Inputs in float64 as their codes and scales say."""
    numbers = codes.codes[:, : case.k].double().numpy()
    if codes.offsets is not None:
        numbers = numbers + codes.offsets.double().numpy()[:, None]
    return np.asarray(
        numbers * np.repeat(codes.scales.double().numpy(), case.entering.columns, 1)[:, : case.k]
    )


def assert_exact(result: Tensor, values: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
    """Up to float32 rounding of scales and sums, and one rounding to the dtype."""
    exact, size = values @ weight.T + bias, np.abs(values) @ np.abs(weight).T + np.abs(bias)
    error = np.abs(result.detach().double().numpy() - exact)
    one = float(torch.finfo(result.dtype).eps) / 2
    assert (error <= 6e-7 * size + one * 1.01 * np.abs(exact)).all(), (error / size).max()


def check(case: Case) -> Tensor:
    x, bias = case.normal(case.rows, case.k), case.normal(case.n) if case.bias else None
    result = KERNEL.run(case.call, x, KERNEL.prepare(case.call, stored(case)), bias)
    assert result.dtype == case.dtype
    assert result.shape == (case.rows, case.n)
    added = np.zeros(case.n) if bias is None else bias.double().numpy()
    assert_exact(result, values_of(case, enter(case.entering, x)), weight_of(case), added)
    return result


INPUTS = (
    *(Quantize(b, grid=g, strategy="token") for b in (2, 3, 5, 8) for g in ("twos", "midtread", "midrise")),
    Quantize(1, strategy="token"),
    Quantize(8, strategy="tensor"),
    Quantize(4, strategy="group", group_size=32),
    Quantize(8, strategy="group", group_size=20, scale_dtype="float16"),
    Quantize(8, strategy="tensor", step=0.02),
    Quantize(4, strategy="token", absmax_rule="signed"),
    Quantize(4, "float", strategy="group", group_size=32, observer="mx"),
)
NEAR = (  # sums in another order than the stage's
    *(Quantize(b, grid="midrise", strategy="token", observer="rms") for b in (1, 4, 8)),
    Quantize(4, grid="midrise", strategy="group", group_size=64, observer="rms"),
)
BY_STAGE = (  # no fused form
    Quantize(8, strategy="token", symmetric=False),
    Quantize(4, strategy="tensor", symmetric=False),
    Quantize(4, strategy="tensor", observer="mse"),
    Quantize(4, "float", strategy="tensor_group"),
    Quantize(8, strategy="token", observer="percentile", percentile=99.0, grid="midrise"),
)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("stage", [*INPUTS, *BY_STAGE], ids=str)
def test_codes_are_those_of_the_stage(stage: Quantize, dtype: torch.dtype) -> None:
    case = Case(Quantize(4), stage, rows=5, k=200, dtype=dtype)
    x = case.normal(5, 200)
    x[2] = 0
    expected = stage.decode(*stage.encode(x))
    assert (case.entering.plan is None) == (stage in BY_STAGE)
    np.testing.assert_allclose(values_of(case, enter(case.entering, x)), expected.double().numpy(), rtol=1e-7)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("stage", [*NEAR, *INPUTS[:5]], ids=str)
def test_codes_differ_at_borders_only(stage: Quantize, rotated: bool) -> None:
    case = Case(Quantize(4), stage, rows=50, k=256, rotation=(Hadamard(64, signs=3),) if rotated else ())
    x = case.normal(50, 256)
    (bound,) = case.call.input.core.bound_stages
    assert isinstance(bound, Quantize)
    turned = case.rotation[0].encode(x)[0] if rotated else x
    expected = bound.decode(*bound.encode(turned)).double().numpy()
    error = np.abs(values_of(case, enter(case.entering, x)) - expected)
    step = np.repeat(enter(case.entering, x).scales.double().numpy(), case.entering.columns, 1)
    assert (error > 1e-5 * np.abs(expected)).mean() < 1e-3
    assert (error <= 2.001 * case.entering.steps * step).all()


WEIGHTS = (
    *(
        Quantize(b, grid=g, strategy=s, group_size=size)
        for b, (s, size) in product(range(1, 9), (("channel", None), ("group", 64)))
        for g in (("midrise",) if b == 1 else ("midrise", "twos"))
    ),
    Quantize(3, grid="midtread"),
    Quantize(2, grid="ternary", observer="absmean"),
    Quantize(4, strategy="group", group_size=20, scale_dtype="float16"),
    Quantize(4, strategy="group", group_size=96, scale_dtype="bfloat16"),
    Quantize(4, strategy="group", group_size=500),
    Quantize(4, strategy="block", block_structure=(16, 32)),
    Quantize(8, strategy="group", group_size=32, grid="midrise"),
    Quantize(4, symmetric=False, strategy="group", group_size=32),
    Quantize(3, symmetric=False, strategy="channel"),
    Quantize(8, symmetric=False, strategy="group", group_size=64),
    Quantize(4, "float", strategy="group", group_size=32, observer="mx"),
    Quantize(4, "float", strategy="tensor_group"),
    Quantize(6, "float", grid="e2m3", strategy="channel"),
    Quantize(4, grid=(-8.0, -5.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 5.0, 8.0), type="float"),
)


@pytest.mark.parametrize("weight", WEIGHTS, ids=str)
def test_products_with_every_weight(weight: Quantize) -> None:
    for rows in (1, 2, 5, 16, 17, 70):
        check(Case(weight, rows=rows))


@pytest.mark.parametrize("stage", [*INPUTS[::2], *NEAR, *BY_STAGE[:3]], ids=str)
def test_products_with_every_input(stage: Quantize) -> None:
    grouped = Quantize(4, strategy="group", group_size=32, scale_dtype="float16")
    asymmetric = Quantize(4, symmetric=False, strategy="group", group_size=32)
    for weight, rows in product((Quantize(8, strategy="channel"), grouped, asymmetric), (1, 3, 40)):
        check(Case(weight, stage, rows=rows))


@pytest.mark.parametrize("k", [1, 4, 33, 63, 64, 65, 127, 200, 4100])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_sizes_that_nothing_divides(bits: int, k: int) -> None:
    for n, rows in ((1, 1), (5, 4), (66, 34)):
        check(Case(Quantize(bits, strategy="channel"), rows=rows, n=n, k=k, bias=False))
        check(Case(Quantize(bits, strategy="group", group_size=12), rows=rows, n=n, k=k))


@pytest.mark.parametrize("k", [60, 1024, 1100, 3000, 30000])
@pytest.mark.parametrize("rows", [5, 6, 7, 8, 13, 16])
def test_blocks_of_whole_rows(rows: int, k: int) -> None:
    """Blocks of columns that are not whole, of outputs that are not, and of inputs that are not."""
    for n in (3, 24, 61):
        check(Case(Quantize(8, strategy="channel"), rows=rows, n=n, k=k))


@pytest.mark.parametrize("rows", [1, 6, 33])
def test_bfloat16_is_rounded_once(rows: int) -> None:
    for weight in (Quantize(8, strategy="channel"), Quantize(4, strategy="group", group_size=64)):
        check(Case(weight, rows=rows, dtype=BFLOAT16, rotation=(Hadamard(64),)))
        check(Case(weight, Quantize(8, grid="midrise", strategy="token"), rows=rows, dtype=BFLOAT16))


def test_rows_longer_than_a_piece() -> None:
    """Sums of the largest products of 40000 columns would not fit 32 bits."""
    case = Case(Quantize(8, symmetric=False, strategy="channel"), rows=1, n=2, k=40000, bias=False)
    x = torch.ones(1, case.k)
    fields = dict(stored(case))
    fields["carry"] = torch.full_like(fields["carry"], 255)
    fields["0.zero_point"] = torch.zeros_like(fields["0.zero_point"])
    for rows in (1, 40):
        result = KERNEL.run(case.call, x.expand(rows, -1), fields, None)
        expected = 255 * 127 * 40000 * enter(case.entering, x).scales[0, 0] * fields["0.scale"]
        torch.testing.assert_close(result, expected.expand(rows, -1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("rotation", [Hadamard(48), Hadamard("full"), RandomRotation(seed=1)], ids=str)
def test_rotations_without_a_fused_form(rotation: Hadamard) -> None:
    case = Case(Quantize(8, strategy="channel"), rotation=(rotation,), rows=9, k=192)
    assert case.entering.rotation.stages
    check(case)


def test_every_layout_of_inputs() -> None:
    case = Case(Quantize(4, strategy="channel"), rows=12)
    flat, x = case.normal(12, case.k), case.normal(12, case.k)
    expected = KERNEL.run(case.call, x, stored(case), None)
    strided = torch.stack((flat, x), -1)[..., 1]
    assert torch.equal(KERNEL.run(case.call, strided, stored(case), None), expected)
    assert torch.equal(
        KERNEL.run(case.call, x.reshape(3, 4, -1), stored(case), None), expected.reshape(3, 4, -1)
    )
    assert torch.equal(KERNEL.run(case.call, x[5], stored(case), None), expected[5])
    assert KERNEL.run(case.call, x[:0], stored(case), None).shape == (0, case.n)


@pytest.mark.parametrize("stage", [TOKEN, INPUTS[12], BY_STAGE[2], INPUTS[16]], ids=str)
def test_nan_stays_in_its_row_and_zeros_give_the_bias(stage: Quantize) -> None:
    case = Case(Quantize(4, strategy="channel"), stage, rows=6)
    x, bias = case.normal(6, case.k), case.normal(case.n)
    x[1], x[4, 7] = 0, torch.nan
    result = KERNEL.run(case.call, x, stored(case), bias)
    assert result[4].isnan().all()
    if stage.strategy != "tensor":
        assert torch.equal(result[1], bias)
        assert result[[0, 1, 2, 3, 5]].isfinite().all()


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
def test_activations_of_the_unrounded_result(activation: str) -> None:
    case = Case(Quantize(8, strategy="channel"), dtype=BFLOAT16)
    x, wide = case.normal(3, case.k), replace(case.call, activation=activation)
    found = entering(case.call)
    assert isinstance(found, Entering)
    exact = torch.from_numpy(values_of(case, enter(found, x)) @ weight_of(case).T)
    expected = getattr(torch.nn.functional, activation)(exact).to(BFLOAT16)
    result = KERNEL.run(wide, x, stored(case), None)
    torch.testing.assert_close(result, expected, rtol=2**-8, atol=1e-5)


def test_gradients_are_those_of_the_parts() -> None:
    case = Case(Quantize(4, strategy="channel"))
    x, bias = case.normal(3, case.k), case.normal(case.n)
    grads = []
    for kernel in (KERNEL, ComposedInput(case.call, DecodeLinear())):
        leaves = x.clone().requires_grad_(), bias.clone().requires_grad_()
        kernel.run(case.call, leaves[0], stored(case), leaves[1]).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for one, other in zip(*grads, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
        assert one.any()


def test_threads_change_nothing() -> None:
    case = Case(Quantize(4, strategy="group", group_size=64), rows=9, n=1030, k=512)
    x = case.normal(9, 512)
    one = KERNEL.run(case.call, x, stored(case), None)
    try:
        torch.set_num_threads(3)
        assert torch.equal(KERNEL.run(case.call, x, stored(case), None), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("weight", WEIGHTS[::3], ids=str)
def test_plain_code_gives_the_same(weight: Quantize, monkeypatch: pytest.MonkeyPatch) -> None:
    library = loaded(replace(int8_linear.sources("RAW"), flags=("-DRHOC_PLAIN",)))
    assert not isinstance(library, str), library
    plain = int8_linear.declared(library)
    monkeypatch.setattr(int8_linear, "library", lambda decoding: plain)
    for stage, rows in ((TOKEN, 2), (INPUTS[14], 40), (INPUTS[11], 3)):
        if stage.grid != "midrise" or weight.group_size is None:
            check(Case(weight, stage, rows=rows))


def read_to_the_end() -> None:
    """Products of weights that each end where a page begins that may not be read."""
    for bits in (1, 3, 4, 5, 8):
        for k, group in ((64, None), (100, None), (100, 12), (200, 20), (256, 64)):
            weight = Quantize(bits, strategy="group" if group else "channel", group_size=group)
            for rows in (1, 4, 7, 40):
                case = Case(weight, rows=rows, n=3, k=k)
                core = case.call.representation
                fields = core.pack(core.encode(case.normal(3, k)))
                x, behind = case.normal(rows, k), {name: guarded(tensor) for name, tensor in fields.items()}
                assert torch.equal(*(KERNEL.run(case.call, x, f, None) for f in (fields, behind)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs mprotect")
def test_nothing_is_read_past_the_end_of_a_weight() -> None:
    """In a process of its own, which would not survive it: a page that may not be read follows the codes."""
    assert survives(read_to_the_end)


REFUSALS = (
    (Case(Quantize(4)), {"dtype": torch.float16}, "inputs are float16, not float32 or bfloat16"),
    (Case(Quantize(4)), {"input": Representation()}, "inputs are not quantised"),
    (
        Case(Quantize(4)),
        {"rotation": Representation((Hadamard(64),))},
        "inputs are not quantised in the rotation that the weight is stored in",
    ),
    (
        Case(Quantize(4), Quantize(8, "float")),
        {},
        "inputs are quantised by quantize(e4m3, tensor, absmax), whose levels are no integers of 8 bits",
    ),
    (
        Case(Quantize(8, "float")),
        {},
        "the levels of quantize(e4m3, tensor, absmax) are no integers of 8 bits",
    ),
    (
        Case(Quantize(4, strategy="group", group_size=6)),
        {},
        "scales change after 6 columns, which is not a multiple of 4",
    ),
    (
        Case(Quantize(4), Quantize(8, strategy="group", group_size=64, grid="midrise")),
        {},
        "inputs are quantised by quantize(int8, midrise, group=64, absmax), off zero and in groups",
    ),
    (
        Case(Quantize(2, symmetric=False, observer="hqq", zp_dtype="float16")),
        {},
        "has zero points that are no integers",
    ),
    (
        Case(Quantize(4)),
        {"representation": Representation((Sparsify(0.5), Quantize(4)))},
        "sparsify(0.5) >> quantize(int4, twos, tensor, absmax) leaves numbers out",
    ),
)


@pytest.mark.parametrize(("case", "changes", "reason"), REFUSALS, ids=range(len(REFUSALS)))
def test_it_says_why_it_refuses(case: Case, changes: dict[str, object], reason: str) -> None:
    found = KERNEL.refuse(replace(case.call, **changes))
    assert found is not None
    assert reason in found


def test_levels_as_integers() -> None:
    assert integers_of((-0.5, 0.5), 1) == Integers(0.5, -1, doubled=True)
    assert integers_of(tuple(k + 0.5 for k in range(-128, 128)), 8) == Integers(1.0, -128, half=0.5)
    assert integers_of((-1.0, 0.0, 1.0), 2) == Integers(1.0, -1)
    assert integers_of((0.0, 0.5, 3.0, -3.0), 2) == Integers(0.5, -6, table=(6, 7, 12, 0))
    assert integers_of((0.0, 0.3, 1.0), 2) is None
    assert integers_of((1.0, 1.0), 1) is None


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("spec", ["w8a8", "w4a8", "int4-a4", "int8-a8", "mxfp4-a4", "bitnet"])
def test_packed_models_run_on_integers(
    spec: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 96), nn.SiLU(), nn.Linear(96, 128, bias=False)).to(dtype)
    compiled = rhoc.compile(model, spec)
    packed, reference = compiled.packed(), compiled.reference()
    x = torch.randn(17, 256).to(dtype)
    with torch.no_grad():
        expected = reference(x)
        monkeypatch.setattr(ComposedInput, "run", None)
        result = packed(x)
    error = (result.double() - expected.double()).norm() / expected.double().norm()
    flips = 2e-3 if "a8" in spec else 4e-2  # codes of the second input that went over a border
    assert error < (flips if dtype == FLOAT32 else 2 * flips + 0.02)


def test_it_is_selected_before_the_parts() -> None:
    case = Case(Quantize(8, strategy="channel"))
    assert select(case.call).kernel.name == "cpu_int8_linear"
    x = case.normal(3, case.k)
    plain = plain_enter(x, case.call.input, case.call.rotation)
    expected = plain.double().numpy() @ weight_of(case).T
    np.testing.assert_allclose(
        KERNEL.run(case.call, x, stored(case), None).double().numpy(), expected, rtol=1e-4, atol=1e-4
    )
