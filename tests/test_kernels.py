"""Kernels on packed weights: what they compute, what they refuse and why, and which one runs where."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rhoc.runtime.kernels import KERNELS, Call, select
from rhoc.runtime.kernels.cpu.torch_operators import CpuIntLinear
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Sparsify

from .kernel_cases import (
    BFLOAT16,
    FLOAT16,
    Case,
    assert_close_to_exact,
    assert_gradients,
    grids,
    problem,
)

HERE = Path(__file__).parent


@pytest.mark.usefixtures("no_kernels")
def test_where_no_kernel_is_for_the_machine_weights_are_decoded_and_refusals_are_kept() -> None:
    selection = select(Case().call)
    assert selection.kernel.name == "decode_linear"
    assert [str(refusal) for refusal in selection.refusals] == [
        f"linear_by_parts refused: {Case().call.representation} is not a sum, product or split, nor scaled",
    ]


def test_kernels_of_other_devices_are_not_asked() -> None:
    asked = [refusal.kernel for refusal in select(replace(Case().call, dtype=torch.float64)).refusals]
    assert not {kernel.name for kernel in KERNELS if kernel.devices == ("cuda",)} & set(asked)
    assert {"cpu_linear", "cpu_int_linear"} <= set(asked)


def test_every_operation_has_a_last_resort() -> None:
    call = Call("", Representation((Sparsify(0.5),)), (3, 5), torch.float64, "meta")
    for name in {kernel.operation for kernel in KERNELS}:
        asked = replace(call, operation=name)
        assert select(asked).kernel.refuse(asked) is None
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
    given, kernel = problem(case), CpuIntLinear()
    assert kernel.refuse(given.call) is None
    prepared = kernel.prepare(given.call, given.stored)
    assert given.stored.items() <= prepared.items()
    assert_close_to_exact(kernel.run(given.call, given.x, prepared, given.bias), given)
    unprepared = kernel.run(given.call, given.x, given.stored, given.bias)
    assert torch.equal(unprepared, given.plain)


@vectorised
def test_gradients_reach_the_input_and_the_bias() -> None:
    assert_gradients(CpuIntLinear(), Case(dtype=BFLOAT16, n=48))


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
    assert [CpuIntLinear().is_for(device) for device in ("cpu", "cuda")] == [True, False]


# The Triton kernel without a device: interpreted, and compiled to machine code. Each in a process of its own,
# since Triton decides once whether to interpret.


def child(arguments: list[str], **variables: str) -> str:
    """What another Python prints on both its streams; its failure is ours."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=kept | variables, cwd=HERE.parent
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.mark.slow
def test_every_bench_runs() -> None:
    printed = child(["-W", "error", str(HERE / "bench" / "run.py"), "--quick"])
    for bench in ("linear", "projection", "training", "encode"):
        assert f"{bench}: time of a call" in printed
