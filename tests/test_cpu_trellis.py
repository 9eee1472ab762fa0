"""Linears on trellis codes in C++ on a CPU, held to their stored bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from rhoc.compiler.spec import shipped_weights
from rhoc.runtime.kernels import Call
from rhoc.runtime.kernels.cpu.streamed import functions
from rhoc.runtime.kernels.cpu.trellis_linear import CpuTrellisLinear
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Codebook, Trellis
from rhoc.runtime.trellises.codes import values

from .streamed_cases import (
    Array,
    assert_accepted,
    assert_gradients,
    assert_shapes,
    codes,
    random_fields,
    scales,
)

FLOAT32, BFLOAT16 = torch.float32, torch.bfloat16
pytestmark = pytest.mark.compiled(by=lambda: functions(CpuTrellisLinear.library))
KERNEL = CpuTrellisLinear()
SHIPPED = tuple(f"qtip{bits}{states}" for bits in (1, 2, 3, 4) for states in ("", "-l16"))
STAGES = {
    **{f"{code}-{bits}-{size}": Trellis(bits, size, code) for bits, size, code in (
        (1, 4, "xor"), (2, 5, "xor"), (3, 7, "xor"), (1, 8, "xor"), (4, 8, "xor"), (3, 10, "xor"), (1, 14, "xor"),
        (3, 17, "xor"), (4, 20, "xor"), (1, 10, "table"), (2, 12, "table"), (4, 8, "table"), (3, 12, "table"),
        (1, 16, "1mad"), (2, 16, "1mad"), (3, 13, "1mad"), (2, 16, "3inst"), (4, 20, "3inst"), (3, 16, "3inst"),
    )},
    "rows": Trellis(2, 12, strategy="channel", scale_dtype="float16"),
    "groups": Trellis(2, strategy="group", group_size=24),
    "groups-of-32": Trellis(3, 12, "1mad", strategy="group", group_size=32, scale_dtype="bfloat16"),
}  # fmt: skip
CHAINS = {name: Representation((stage,)).core for name, stage in STAGES.items()}
for shipped in SHIPPED:
    weights = shipped_weights(shipped)
    assert weights is not None
    CHAINS[shipped] = weights.core


def by_hand(core: Representation, stored: dict[str, Tensor], shape: tuple[int, int]) -> Array:
    """The matrix in float64 from its bits: a state has those of a number lowest, above them those before it,
    and before a row's first number is its last."""
    (stage,) = core.bound_stages
    assert isinstance(stage, Trellis)
    digit = codes(stored["carry"], stage.num_bits, shape[1])
    state = np.zeros(shape, dtype=np.int64)
    for back in range(-(-stage.state_bits // stage.num_bits)):
        state += digit[:, (np.arange(shape[1]) - back) % shape[1]] << (back * stage.num_bits)
    table = values(stage.code, stage.num_bits, stage.state_bits).double().numpy()
    numbers = table[state % (1 << stage.state_bits)]
    return np.asarray(numbers * scales(stored, shape, stage.group_size))


def weight(name: str, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Call, dict[str, Tensor], Array]:
    core = CHAINS[name]
    stored = random_fields(core, shape, dtype)
    return Call("linear", core, shape, dtype, "cpu"), stored, by_hand(core, stored, shape)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", sorted(CHAINS))
def test_products_are_as_good_as_the_plain_version(name: str, dtype: torch.dtype) -> None:
    call, stored, matrix = weight(name, (40, 96), dtype)
    assert_accepted(KERNEL, call, stored, matrix, (1, 2, 5, 16, 70))


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_products_of_sizes_that_nothing_divides(name: str) -> None:
    for shape in ((37, 213), (31, 2 * 2048 + 77)):
        for dtype in (FLOAT32, BFLOAT16):
            call, stored, matrix = weight(name, shape, dtype)
            assert_accepted(KERNEL, call, stored, matrix, (1, 3, 70))


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_rows_shorter_than_a_window_close_on_themselves(name: str) -> None:
    for columns in (1, 2, 3, 5, 7, 9):
        for dtype in (FLOAT32, BFLOAT16):
            call, stored, matrix = weight(name, (5, columns), dtype)
            eye = torch.eye(columns, dtype=dtype)
            result = KERNEL.run(call, eye, stored, None).T.double().numpy()
            rounding = 2 * torch.finfo(dtype).eps  # relative, and of what lines make of values near zero
            np.testing.assert_allclose(result, matrix, rtol=rounding, atol=0 if dtype == FLOAT32 else 0.01)


@pytest.mark.parametrize("name", ["qtip2-l16", "qtip2", "qtip1-l16", "qtip3", "xor-4-8", "xor-1-14"])
def test_lines_between_quantiles_differ_by_less_than_rounding_does(name: str) -> None:
    call, stored, matrix = weight(name, (64, 1024), BFLOAT16)
    stored["0.scale"][:] = 1
    matrix = by_hand(call.representation, stored, call.shape)
    result = KERNEL.run(
        call, torch.eye(1024, dtype=BFLOAT16), stored, None
    )  # more than are multiplied in cache
    few = torch.cat([KERNEL.run(call, part, stored, None) for part in torch.eye(1024).bfloat16().split(64)])
    rounded = torch.from_numpy(matrix).bfloat16().double()
    plain = (rounded - torch.from_numpy(matrix)).square().mean().sqrt()
    for found in (result, few):
        error = (found.T.double() - torch.from_numpy(matrix)).square().mean().sqrt()
        assert error <= 1.35 * plain


def test_float32_has_the_values_of_the_table() -> None:
    for name in ("qtip2-l16", "qtip4", "table-2-12"):
        call, stored, matrix = weight(name, (16, 96), FLOAT32)
        result = KERNEL.run(call, torch.eye(96), stored, None).T.double().numpy()
        np.testing.assert_allclose(result, matrix, rtol=1.2e-7)


@pytest.mark.parametrize("name", sorted(CHAINS))
def test_decoding_is_that_of_the_representation(name: str) -> None:
    for dtype in (FLOAT32, BFLOAT16):
        call, stored, _ = weight(name, (7, 211), dtype)
        restored = call.representation.restore(call.representation.unpack(stored, call.shape, dtype))
        expected = restored.to(dtype).double()
        torch.testing.assert_close(
            KERNEL.decoded(call, stored).double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0
        )


@pytest.mark.parametrize("name", ["qtip2-l16", "table-2-12", "groups"])
def test_inputs_of_any_shape_gradients_and_many_rows(name: str) -> None:
    call, stored, matrix = weight(name, (24, 100), BFLOAT16)
    assert_shapes(KERNEL, call, stored)
    assert_accepted(KERNEL, call, stored, matrix, (KERNEL.most_rows(call) + 1,))
    call, stored, matrix = weight(name, (24, 100), torch.float16)
    assert_accepted(KERNEL, call, stored, matrix, (1, 5))
    call, stored, matrix = weight(name, (24, 100), FLOAT32)
    assert_gradients(KERNEL, call, stored, matrix)


def test_an_encoded_weight_is_multiplied_as_it_is_decoded() -> None:
    core, x = CHAINS["xor-1-8"], torch.randn(6, 50, generator=torch.Generator().manual_seed(3))
    code = core.encode(x)
    call = Call("linear", core, (6, 50), FLOAT32, "cpu")
    result = KERNEL.run(call, torch.eye(50), core.pack(code), None)
    torch.testing.assert_close(result.T, core.decode(code), rtol=1e-6, atol=1e-6)


def test_reasons() -> None:
    call = Call("linear", CHAINS["qtip2"], (8, 16), FLOAT32, "cpu")
    assert KERNEL.refuse(replace(call, device="cuda")) == "the device is cuda, and it needs cpu"
    other = replace(call, representation=Representation((Codebook(),)).core)
    assert "is not one trellis stage" in str(KERNEL.refuse(other))
