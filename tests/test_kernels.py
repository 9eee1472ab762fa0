"""Kernels on packed weights against a float64 product with weights that are unpacked here, bit by bit.

The Triton kernel runs on a CPU under `TRITON_INTERPRET=1` and, marked `gpu`, on CUDA. The rule of acceptance:
the error to float64 is at most twice that of the plain version, decode to the input's dtype and multiply.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rhoc.runtime.kernels import KERNELS, Call, Kernel, select
from rhoc.runtime.kernels.cpu_int_linear import CpuIntLinear
from rhoc.runtime.kernels.decode_linear import DecodeLinear
from rhoc.runtime.kernels.int_linear import IntLinear, launch, plan
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize, Sparsify

FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
DEVICE_CODE = "rhoc.runtime.kernels.int_linear_triton"
FIRST_LEVEL = {"midrise": 0.5, "midtread": 1.0, "twos": 0.0}  # above -2^(b-1)


@dataclass(frozen=True)
class Case:
    """A linear: how its weight `[n, k]` is stored, and its input of `rows`."""

    bits: int = 4
    grid: str = "midrise"
    strategy: str = "channel"
    group: int | None = None
    dtype: torch.dtype = FLOAT32
    n: int = 40
    k: int = 96
    rows: int = 3
    bias: bool = True
    scale_dtype: str | None = None

    def __str__(self) -> str:
        shared = self.group or self.strategy
        kind = str(self.dtype).removeprefix("torch.")
        return f"int{self.bits}-{self.grid}-{shared}-{kind}-{self.rows}x{self.k}x{self.n}"

    @property
    def call(self) -> Call:
        quantize = Quantize(
            self.bits,
            strategy=self.strategy,
            group_size=self.group,
            observer="rms",
            grid=self.grid,
            scale_dtype=self.scale_dtype,
        )
        return Call("linear", Representation((quantize,)).core, (self.n, self.k), self.dtype, "cpu")


@dataclass(frozen=True)
class Problem:
    """A case with numbers, the float64 answer and the plain version's."""

    call: Call
    x: Tensor
    stored: dict[str, Tensor]
    bias: Tensor | None
    exact: Tensor
    plain: Tensor


def problem(case: Case, device: str = "cpu") -> Problem:
    """The case with seeded normal numbers, on a device."""
    generator = torch.Generator().manual_seed(case.n * 1000 + case.k + case.bits)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(case.dtype)

    call = replace(case.call, device=device)
    weight, x = normal(case.n, case.k), normal(case.rows, case.k)
    bias = normal(case.n) if case.bias else None
    stored = call.representation.pack(call.representation.encode(weight))
    exact = x.double() @ unpacked(stored, case).T + (0 if bias is None else bias.double())
    on = {name: tensor.to(device) for name, tensor in stored.items()}
    x, bias = x.to(device), None if bias is None else bias.to(device)
    return Problem(call, x, on, bias, exact.to(device), DecodeLinear().run(call, x, on, bias))


def unpacked(stored: dict[str, Tensor], case: Case) -> Tensor:
    """The weight in float64, read from its bytes with numpy."""
    bits = np.unpackbits(stored["carry"].numpy(), axis=-1, bitorder="little")[:, : case.k * case.bits]
    codes = bits.reshape(case.n, case.k, case.bits) @ (1 << np.arange(case.bits))
    values = codes - 2.0 ** (case.bits - 1) + FIRST_LEVEL[case.grid]
    scale = stored["0.scale"].double()
    scale = scale.expand(case.n) if case.strategy == "tensor" else scale
    blocks = torch.from_numpy(values).reshape(case.n, -1, case.group or case.k)
    return (blocks * scale.reshape(case.n, -1, 1)).flatten(1)


def assert_close_to_exact(result: Tensor, given: Problem) -> None:
    """At most twice the error of the plain version, in the mean and, but for a rounding, anywhere."""
    assert result.shape == given.plain.shape
    assert result.dtype == given.x.dtype
    error, plain = (result.double() - given.exact).abs(), (given.plain.double() - given.exact).abs()
    rounding = torch.finfo(given.x.dtype).eps / 2 * given.exact.abs().max()
    assert error.square().mean().sqrt() <= 2 * plain.square().mean().sqrt() + rounding / 10
    assert error.max() <= 2 * plain.max() + rounding


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton interpreting the device code, which is imported anew before and after."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    sys.modules.pop(DEVICE_CODE, None)
    yield
    sys.modules.pop(DEVICE_CODE, None)


def grids(bits: int) -> tuple[str, ...]:
    return ("midrise",) if bits == 1 else ("midrise", "midtread", "twos")


# Every grid and width once, then what varies around them: sizes that no tile divides, rows not aligned to
# words, each strategy and dtype, and rows on both sides of the border between flat and ordinary tiles.
CASES = (
    *(Case(bits, grid) for bits in (1, 2, 4, 8) for grid in grids(bits)),
    *(Case(bits, dtype=BFLOAT16, n=33, k=97, rows=1) for bits in (1, 2, 4, 8)),
    *(Case(4, dtype=dtype, rows=rows, n=70, k=160) for dtype in (FLOAT16, BFLOAT16) for rows in (1, 16, 33)),
    *(Case(4, strategy="group", group=group, k=192, dtype=FLOAT16) for group in (32, 64, 96)),
    Case(1, strategy="group", group=128, k=256, dtype=BFLOAT16, scale_dtype="float32"),
    Case(2, "twos", "group", 32, rows=17, k=64, bias=False),
    Case(8, "midtread", "tensor", dtype=FLOAT16, bias=False),
    Case(2, strategy="tensor", rows=1, k=130),
    Case(4, rows=33, k=72, n=130, bias=False, scale_dtype="float16"),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_int_linear_is_as_good_as_the_plain_version(case: Case, interpreted: None) -> None:
    given = problem(case)
    selection = select(given.call)
    assert selection.kernel.name == "int_linear"
    assert_close_to_exact(selection.kernel.run(given.call, given.x, given.stored, given.bias), given)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=["float32", "bfloat16"])
def test_parts_of_k_add_up(dtype: torch.dtype, interpreted: None) -> None:
    given = problem(Case(dtype=dtype, k=224, rows=2))
    cut = replace(plan(2, given.call.shape, None, dtype, 1), block_k=32, splits=3)
    assert_close_to_exact(launch(given.call, given.x, given.stored, given.bias, cut), given)


def test_groups_keep_their_scale_across_parts(interpreted: None) -> None:
    given = problem(Case(strategy="group", group=64, k=256, dtype=FLOAT16))
    cut = replace(plan(3, given.call.shape, 64, FLOAT16, 1), block_k=32, splits=4)
    assert_close_to_exact(launch(given.call, given.x, given.stored, given.bias, cut), given)


def test_any_input_shape_and_layout(interpreted: None) -> None:
    given = problem(Case(rows=6, dtype=FLOAT16))
    run = IntLinear().run
    expected = run(given.call, given.x, given.stored, given.bias)
    deep = run(given.call, given.x.reshape(2, 3, -1), given.stored, given.bias)
    assert torch.equal(deep, expected.reshape(2, 3, -1))
    wide = torch.zeros(6, 200, dtype=FLOAT16)
    wide[:, 5:101] = given.x
    assert torch.equal(run(given.call, wide[:, 5:101], given.stored, given.bias), expected)
    assert torch.equal(run(given.call, given.x.T.contiguous().T, given.stored, given.bias), expected)
    assert torch.equal(run(given.call, given.x[0], given.stored, given.bias), expected[0])
    assert run(given.call, given.x[:0], given.stored, given.bias).shape == (0, 40)


@pytest.mark.parametrize("kernel", [IntLinear(), CpuIntLinear()], ids=lambda kernel: kernel.name)
def test_gradients_reach_the_input_and_the_bias(kernel: Kernel, interpreted: None) -> None:
    case = Case(dtype=BFLOAT16, n=48)
    given = problem(case)
    x, bias = given.x.clone().requires_grad_(), given.bias.clone().requires_grad_()
    fields = kernel.prepare(given.call, given.stored)
    kernel.run(given.call, x, fields, bias).float().square().sum().backward()
    outer = 2 * given.exact
    expected_x, expected_bias = outer @ unpacked(given.stored, case), outer.sum(0)
    assert (x.grad.double() - expected_x).norm() < 0.02 * expected_x.norm()
    assert (bias.grad.double() - expected_bias).norm() < 0.02 * expected_bias.norm()


def test_plans_fill_the_device_and_fit_the_groups() -> None:
    assert plan(1, (4096, 4096), None, BFLOAT16, 132).splits == 4  # 64 tiles, 264 programs wanted
    assert plan(1, (4096, 4096), None, BFLOAT16, 1).splits == 1
    assert plan(1, (64, 256), None, BFLOAT16, 132).splits == 1  # too little of K to share
    assert plan(256, (4096, 4096), None, BFLOAT16, 132).splits == 1
    assert plan(16, (64, 64), None, FLOAT16, 132).block_m == 16
    assert plan(17, (64, 64), None, FLOAT16, 132).block_m == 32
    for group, block in ((32, 32), (96, 32), (128, 128), (384, 128)):
        assert plan(1, (64, 768), group, FLOAT16, 132).block_k == block


REFUSALS = (
    (Case(3), {}, "3-bit codes are not byte aligned"),
    (Case(4, strategy="group", group=48), {}, "group 48 is not a multiple of 32"),
    (Case(), {"dtype": torch.float64}, "inputs are float64, not float32, float16 or bfloat16"),
    (Case(), {"shape": (2, 40, 96)}, "the weight has shape [2, 40, 96], not a matrix's"),
    (Case(), {"shape": (0, 96)}, "the weight has shape [0, 96], not a matrix's"),
    (
        Case(),
        {"representation": Representation((Sparsify(0.5), Quantize(4)))},
        "sparsify(0.5) >> quantize(int4, twos, tensor, absmax) is not one quantize stage",
    ),
    (Case(), {"representation": Representation(())}, "dense is not one quantize stage"),
    (
        Case(),
        {"representation": Representation((Quantize(4, type="float"),))},
        "quantize(e2m1, tensor, absmax) has no integer grid",
    ),
)


@pytest.mark.parametrize(
    ("case", "changes", "reason"), REFUSALS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_int_linear_says_why_it_refuses(case: Case, changes: dict[str, object], reason: str) -> None:
    call = replace(case.call, device="cuda", **changes)
    assert IntLinear().refuse(call) == reason
    assert (
        IntLinear().refuse(replace(case.call, device="cpu", **changes))
        == "the device is cpu, and it needs cuda"
    )


def test_int_linear_takes_cuda_and_when_interpreted_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = replace(Case(dtype=BFLOAT16).call, device="cuda")
    assert IntLinear().refuse(cuda) is None
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert IntLinear().refuse(Case().call) is None
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert IntLinear().refuse(Case().call) == "the device is cpu, and it needs cuda"
    monkeypatch.setitem(sys.modules, "triton", None)
    assert IntLinear().refuse(cuda) == "Triton is not installed"


def test_a_cpu_call_in_float32_is_decoded_and_the_refusals_are_kept() -> None:
    selection = select(Case().call)
    assert selection.kernel.name == "decode_linear"
    assert [str(refusal) for refusal in selection.refusals] == [
        "int_linear refused: the device is cpu, and it needs cuda",
        "cpu_int_linear refused: inputs are float32, not bfloat16",
    ]


def test_every_operation_has_a_last_resort() -> None:
    last = {kernel.operation: kernel for kernel in KERNELS}
    call = Call("", Representation((Sparsify(0.5),)), (3, 5), torch.float64, "meta")
    assert all(kernel.refuse(replace(call, operation=name)) is None for name, kernel in last.items())
    with pytest.raises(LookupError, match="no kernel for operation 'convolution'"):
        select(replace(call, operation="convolution"))


def test_importing_the_kernels_does_not_import_triton() -> None:
    code = "import sys, rhoc.runtime.kernels; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# The processor's own operators.

vectorised = pytest.mark.skipif(
    not torch.backends.cpu.get_cpu_capability().startswith("AVX"),
    reason="torch's low-bit operators need AVX2",
)
CPU_CASES = (
    *(Case(bits, grid, dtype=BFLOAT16, n=48, k=320) for bits in (4, 8) for grid in grids(bits)),
    *(Case(4, grid, "group", 64, dtype=BFLOAT16, n=32, k=192, rows=16, bias=False) for grid in grids(4)),
    Case(8, strategy="tensor", dtype=BFLOAT16, n=7, k=64, rows=1, bias=False),
    Case(4, strategy="tensor", dtype=BFLOAT16, n=16, k=96, rows=32, scale_dtype="float32"),
    Case(8, dtype=BFLOAT16, n=33, k=64, rows=33),  # more rows than the operator is good for
)


@vectorised
@pytest.mark.parametrize("case", CPU_CASES, ids=str)
def test_cpu_int_linear_is_as_good_as_the_plain_version(case: Case) -> None:
    given = problem(case)
    kernel = select(given.call).kernel
    assert kernel.name == "cpu_int_linear"
    prepared = kernel.prepare(given.call, given.stored)
    assert given.stored.items() <= prepared.items()
    assert_close_to_exact(kernel.run(given.call, given.x, prepared, given.bias), given)
    unprepared = kernel.run(given.call, given.x, given.stored, given.bias)
    assert torch.equal(unprepared, given.plain)


@vectorised
def test_cpu_int_linear_uses_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding is what it is meant to avoid, so it must not happen for few rows."""
    given = problem(Case(dtype=BFLOAT16, n=48))
    prepared = CpuIntLinear().prepare(given.call, given.stored)
    monkeypatch.delattr(Representation, "decode")
    assert_close_to_exact(CpuIntLinear().run(given.call, given.x, prepared, given.bias), given)


CPU_REFUSALS = (
    (Case(dtype=FLOAT16), "inputs are float16, not bfloat16"),
    (Case(2, dtype=BFLOAT16), "torch has no operator for 2-bit codes"),
    (Case(8, strategy="group", group=32, dtype=BFLOAT16), "torch's 8-bit operator has no groups of 32"),
    (Case(4, strategy="group", group=96, dtype=BFLOAT16), "torch's 4-bit operator has no groups of 96"),
    (Case(8, k=33, dtype=BFLOAT16), "rows of 33 are not a multiple of 32"),
    (Case(4, dtype=BFLOAT16), "torch's 4-bit operator needs a multiple of 16 outputs, not 40"),
)


@vectorised
@pytest.mark.parametrize(
    ("case", "reason"), CPU_REFUSALS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_cpu_int_linear_says_why_it_refuses(case: Case, reason: str) -> None:
    assert CpuIntLinear().refuse(case.call) == reason


def test_cpu_int_linear_needs_vector_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    call = Case(dtype=BFLOAT16, n=48).call
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert CpuIntLinear().refuse(call) == "this processor's instructions are DEFAULT, not AVX2 or AVX-512"
    assert CpuIntLinear().refuse(replace(call, device="cuda")) == "the device is cuda, and it needs cpu"


# Machine code for CUDA, compiled without a device: in another process, as Triton.s interpreter leaves its
# own language behind in this one.

PLANNED = (("bf16", 4, None, 1), ("bf16", 4, 128, 256), ("fp16", 1, 32, 1), ("fp32", 8, None, 33))


def test_hopper_code_keeps_to_its_registers(tmp_path: Path) -> None:
    pytest.importorskip("triton")
    printed = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_INTERPRET": "0"},
    ).stdout
    usages = [dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", line)) for line in printed.splitlines()]
    assert len(usages) == len(PLANNED)
    for planned, usage in zip(PLANNED, usages, strict=True):
        assert (usage["STACK"], usage["LOCAL"]) == ("0", "0"), planned  # nothing spilled
        assert int(usage["REG"]) <= 255


def hopper_usage(dtype: str, bits: int, group: int | None, rows: int, folder: Path) -> str:
    """The line of cuobjdump on what the kernel uses, as planned for `rows` and compiled for sm_90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from rhoc.runtime.kernels.int_linear_triton import linear

    cut = plan(rows, (4096, 4096), group, {"bf16": BFLOAT16, "fp16": FLOAT16, "fp32": FLOAT32}[dtype], 132)
    word = 32 if cut.block_k * bits >= 128 else 8
    constants = {
        "BITS": bits,
        "PER": word // bits,
        "OFFSET": -7.5,
        "GROUP_BLOCKS": (group or 0) // cut.block_k,
        "HAS_BIAS": True,
        "EVEN_K": True,
        "FLOAT32": dtype == "fp32",
        "BLOCK_M": cut.block_m,
        "BLOCK_N": cut.block_n,
        "BLOCK_K": cut.block_k,
    }
    words = "*i32" if word == 32 else "*u8"
    pointers = dict.fromkeys(("x", "scale", "bias", "out"), f"*{dtype}") | {"words": words}
    sizes = ("M", "N", "K", "x_row", "word_row", "scale_row", "blocks_each")
    kinds = pointers | dict.fromkeys(sizes, "i32") | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        fn=linear,
        signature={name: kinds[name] for name in linear.arg_names},
        constexprs=constants,
        attrs={(place,): [["tt.divisibility", 16]] for place in range(10)},
    )
    options = {"num_warps": cut.warps, "num_stages": cut.stages, "enable_fp_fusion": True}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    cubin = folder / "linear.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = triton.knobs.nvidia.cuobjdump.path
    printed = subprocess.run([tool, "-res-usage", cubin], check=True, capture_output=True, text=True).stdout
    return next(line for line in printed.splitlines() if "REG:" in line)


# On CUDA itself.

GPU_CASES = (
    *CASES,
    *(
        Case(bits, dtype=BFLOAT16, n=1000, k=4096, rows=rows)
        for bits in (1, 2, 4, 8)
        for rows in (1, 16, 33, 300)
    ),
    *(Case(4, strategy="group", group=128, dtype=FLOAT16, n=512, k=2048, rows=rows) for rows in (1, 20, 100)),
)


@pytest.mark.gpu
@pytest.mark.parametrize("case", GPU_CASES, ids=str)
def test_int_linear_on_cuda(case: Case) -> None:
    given = problem(case, "cuda")
    kernel = select(given.call).kernel
    assert kernel.name == "int_linear"
    result = kernel.run(given.call, given.x, given.stored, given.bias)
    assert_close_to_exact(result, given)
    assert torch.equal(kernel.run(given.call, given.x, given.stored, given.bias), result)


if __name__ == "__main__":
    for planned in PLANNED:
        print(hopper_usage(*planned, folder=Path(sys.argv[1])))
