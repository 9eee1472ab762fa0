"""Weight-only products, lookups and decoding in C++ on a CPU, held to the bytes of every scalar format."""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rhoc.runtime.kernels import Call, select
from rhoc.runtime.kernels.cpu import matrix as native
from rhoc.runtime.kernels.cpu.native_embedding import CpuEmbedding
from rhoc.runtime.kernels.cpu.native_linear import CpuLinear
from rhoc.runtime.kernels.decode_linear import DecodeLinear
from rhoc.runtime.kernels.stored import StoredMatrix, stored_matrix
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize, Sparsify

from .kernel_cases import BFLOAT16, FLOAT16, FLOAT32, Problem, assert_close_to_exact
from .other_processors import compiled_without
from .test_stored_matrix import CHAINS, by_hand

pytestmark = pytest.mark.compiled(by=native._library)
ROWS = (1, 2, 3, 4, 5, 16, 17, 70)
LEVELS = (-1.0, -0.61, -0.23, 0.0, 0.17, 0.5, 0.93)


def _group(bits: int, size: int, **options: object) -> Representation:
    return Representation((Quantize(bits, strategy="group", group_size=size, **options),))


MORE = {
    "two-words": Representation((Quantize(3, "float", grid=LEVELS, strategy="channel"),)),
    "int5-asymmetric": _group(5, 64, symmetric=False),
    "int8-asymmetric-rows": Representation((Quantize(8, symmetric=False, strategy="channel"),)),
    "int4-g2": _group(4, 2, scale_dtype="bfloat16"),
    "int6-g4": _group(6, 4, scale_dtype="float16"),
    "int7-g8": _group(7, 8),
    "int3-g192": _group(3, 192, scale_dtype="float16"),
    "int1-g7": _group(1, 7),
    "int2-g1": _group(2, 1),
    "int4-g96": _group(4, 96, symmetric=False),
    "int8-table": _group(8, 32, type="float", grid=tuple(math.sin(i / 40) * 1.1 for i in range(-60, 60))),
    "bytes-of-e5m2": _group(4, 32, scale_dtype="float8_e5m2"),
    "nf4-channel": Representation((Quantize(4, "float", grid="nf4", strategy="channel"),)),
    **{f"nf4-g{size}": _group(4, size, type="float", grid="nf4") for size in (4, 8, 16, 32)},
}
ALL = {
    name: chain.core
    for name, chain in {**CHAINS, **MORE}.items()
    if isinstance(found := stored_matrix(chain.core, (40, 96)), StoredMatrix) and found.pattern is None
}


@cache
def _weight(name: str, shape: tuple[int, int]) -> tuple[Call, dict[str, Tensor], Tensor]:
    """The call, the stored fields and the matrix in float64 by hand."""
    core = ALL[name]
    generator = torch.Generator().manual_seed(shape[0] * 1000 + shape[1])
    stored = core.pack(core.encode(torch.randn(shape, generator=generator)))
    matrix = stored_matrix(core, shape)
    assert isinstance(matrix, StoredMatrix)
    return Call("linear", core, shape, FLOAT32, "cpu"), stored, torch.from_numpy(by_hand(matrix, stored))


def _problem(name: str, shape: tuple[int, int], rows: int, dtype: torch.dtype) -> Problem:
    call, stored, weight = _weight(name, shape)
    call = replace(call, dtype=dtype)
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, shape[1], generator=generator).to(dtype)
    bias = torch.randn(shape[0], generator=generator).to(dtype)
    exact = x.double() @ weight.T + bias.double()
    return Problem(call, x, stored, bias, exact, DecodeLinear().run(call, x, stored, bias))


def _run(given: Problem) -> Tensor:
    kernel = CpuLinear()
    assert kernel.refuse(given.call) is None
    return kernel.run(given.call, given.x, kernel.prepare(given.call, given.stored), given.bias)


def test_most_formats_are_here() -> None:
    assert len(ALL) > 60


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("name", sorted(ALL))
def test_products_are_as_good_as_the_plain_version(name: str, dtype: torch.dtype) -> None:
    for rows in ROWS:
        given = _problem(name, (40, 96), rows, dtype)
        assert_close_to_exact(_run(given), given)


SHAPES = ((37, 328), (9, 1000), (6, 4160), (67, 65), (5, 320))
SOME = (
    "int3-g128",
    "int4-g128-asym",
    "int8-channel",
    "int6",
    "nf4",
    "mxfp4",
    "nvfp4",
    "fp8-blocks",
    "int2-hqq",
)
SOME = (*SOME, "int3-g20", "int1-g7", "int5-asymmetric", "int8-table", "two-words")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", SOME)
def test_products_of_sizes_that_nothing_divides(name: str, shape: tuple[int, int]) -> None:
    for dtype in (FLOAT32, BFLOAT16):
        for rows in (1, 4, 5, 70):
            given = _problem(name, shape, rows, dtype)
            assert_close_to_exact(_run(given), given)


@pytest.mark.parametrize("name", ["int4", "int3-g20", "fp8", "int8-asymmetric-rows", "bitnet"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 3), (2, 64)], ids=str)
def test_tiny_weights(name: str, shape: tuple[int, int]) -> None:
    for dtype in (FLOAT32, BFLOAT16):
        for rows in ROWS[:5]:
            given = _problem(name, shape, rows, dtype)
            error = (_run(given).double() - given.exact).abs().max()
            assert error <= 4 * torch.finfo(dtype).eps * given.exact.abs().max()


@pytest.mark.parametrize("name", sorted(ALL))
def test_decoding_is_that_of_the_representation(name: str) -> None:
    for shape in ((40, 96), (9, 1000), (3, 5)):
        call, stored, _ = _weight(name, shape)
        for dtype in (FLOAT32, BFLOAT16):
            code = call.representation.unpack(stored, shape, FLOAT32)
            expected = call.representation.restore(code).to(dtype)
            assert torch.equal(native.decoded(call, stored, dtype), expected)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
def test_lookups_are_rows_of_the_decoded_matrix(dtype: torch.dtype) -> None:
    call, stored, _ = _weight("int3-g20", (40, 96))
    call, kernel = replace(call, operation="embedding", dtype=dtype), CpuEmbedding()
    assert select(call).kernel.name == kernel.name
    rows = call.representation.restore(call.representation.unpack(stored, (40, 96), FLOAT32)).to(dtype)
    for tokens in (
        torch.tensor([[3, 39, 0], [0, 3, 3]]),
        torch.tensor(7, dtype=torch.int32),
        torch.empty(2, 0).long(),
    ):
        assert torch.equal(kernel.run(call, tokens, stored, None), F.embedding(tokens, rows))
    with pytest.raises(IndexError, match="rows 3 to 40 of a matrix of 40"):
        kernel.run(call, torch.tensor([40, 3]), stored, None)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16, FLOAT16], ids=str)
def test_inputs_lie_anyhow(dtype: torch.dtype) -> None:
    given = _problem("int4-g128-asym", (40, 96), 24, dtype)
    expected = _run(given)
    wide = torch.zeros(24, 200, dtype=dtype)
    wide[:, 3:195:2] = given.x
    shifted = torch.zeros(24 * 100 + 1, dtype=dtype)[1:].view(24, 100)[:, :96].copy_(given.x)
    for x in (given.x.T.contiguous().T, wide[:, 3:195:2], shifted):
        assert torch.equal(_run(replace(given, x=x)), expected)
    spread = _run(replace(given, x=given.x.view(2, 3, 4, 96)))
    assert torch.equal(spread, expected.view(2, 3, 4, 40))
    one = _run(replace(given, x=given.x[:1].expand(5, 96)))
    assert torch.equal(one, one[:1].expand(5, 40))
    assert _run(replace(given, x=given.x[:0].view(0, 3, 96))).shape == (0, 3, 40)


def test_float16_is_multiplied_in_float32() -> None:
    for rows in (1, 17):
        given = _problem("int4-g128", (40, 96), rows, FLOAT16)
        assert_close_to_exact(_run(given), given)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16], ids=str)
@pytest.mark.parametrize("rows", [3, 150])
def test_gradients(rows: int, dtype: torch.dtype) -> None:
    given = _problem("nvfp4", (40, 96), rows, dtype)
    assert given.bias is not None
    x, bias = given.x.clone().requires_grad_(), given.bias.clone().requires_grad_()
    _run(replace(given, x=x, bias=bias)).float().square().sum().backward()
    outer, (_, _, weight) = 2 * given.exact, _weight("nvfp4", (40, 96))
    for grad, expected in ((x.grad, outer @ weight), (bias.grad, outer.sum(0))):
        assert grad is not None
        assert grad.dtype == dtype
        assert (grad.double() - expected).norm() < (0.02 if dtype == BFLOAT16 else 1e-5) * expected.norm()


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_threads_change_nothing(two_threads: None) -> None:
    shape = (1031, 1024)
    given = _problem("int4-g128", shape, 7, BFLOAT16)
    several, rows = _run(given), native.decoded(given.call, given.stored, BFLOAT16)
    torch.set_num_threads(1)
    assert torch.equal(_run(given), several)
    assert torch.equal(native.decoded(given.call, given.stored, BFLOAT16), rows)
    assert_close_to_exact(several, given)


def test_the_whole_weight_is_decoded_for_many_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "product", None)
    monkeypatch.setattr("rhoc.runtime.kernels.cpu.native_linear._many", lambda dtype: 6)
    given = _problem("int4-g128", (40, 96), 6, BFLOAT16)
    assert_close_to_exact(_run(given), given)


@pytest.mark.parametrize("rows", [1, 5])
def test_a_row_that_is_not_a_number_stays_alone(rows: int) -> None:
    """Chunks of codes reach into the row behind."""
    given = _problem("fp8", (40, 96), rows, BFLOAT16)
    carry = given.stored["carry"].clone()
    carry[7, 0] = 0x7F
    result = _run(replace(given, stored={**given.stored, "carry": carry}))
    assert result[:, 7].isnan().all()
    assert int(result.isnan().sum()) == rows


# Other processors: what is left when the compiler may not use some of this one's instructions.


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="flags of GCC and Clang for x86")
@pytest.mark.parametrize("without", ["-mno-avx512bf16", "-mno-avx512f", "-mno-avx"])
def test_other_instructions(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("the flag is one of x86")
    library = native.bound(compiled_without(native.SOURCES, without))
    assert isinstance(library, ctypes.CDLL), library
    monkeypatch.setattr(native, "_library", lambda: library)
    for name in (
        "int1",
        "int2-hqq",
        "int3-g128",
        "int4-g128",
        "int5-asymmetric",
        "int6",
        "int7-g8",
        "int8-table",
        "fp8",
        "fp6-e3m2",
        "two-words",
        "nf4",
        "nvfp4",
    ):
        for dtype in (FLOAT32, BFLOAT16):
            for rows in (1, 2, 5, 17):
                given = _problem(name, (37, 328), rows, dtype)
                assert_close_to_exact(_run(given), given)
            call, stored, _ = _weight(name, (37, 328))
            code = call.representation.unpack(stored, (37, 328), FLOAT32)
            assert torch.equal(
                native.decoded(call, stored, dtype), call.representation.restore(code).to(dtype)
            )


@pytest.fixture
def plain_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """What processors with AVX2 alone run, where this one has that."""
    if os.uname().machine != "x86_64" or native.has() == 0:
        pytest.skip("the processor has no AVX2")
    library = native.bound(compiled_without(native.SOURCES, "-mno-avx512f"))
    assert isinstance(library, ctypes.CDLL), library
    monkeypatch.setattr(native, "_library", lambda: library)


SIXTEEN = (
    "int4",
    "nf4",
    "int4-g128",
    "mxfp4",
    "nvfp4",
    "nf4-channel",
    "nf4-g32",
    "nf4-g16",
    "nf4-g8",
    "nf4-g4",
)


@pytest.mark.parametrize("name", SIXTEEN)
def test_sixteen_levels_by_few_inputs(name: str, plain_vectors: None) -> None:
    for columns in (320, 328, 1000):
        for rows in range(1, 5):
            given = _problem(name, (37, columns), rows, BFLOAT16)
            assert_close_to_exact(_run(given), given)


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "int4-g128"])
def test_whole_numbers_are_multiplied_exactly(name: str, plain_vectors: None) -> None:
    call, stored, weight = _weight(name, (37, 328))
    call, inputs = replace(call, dtype=BFLOAT16), torch.tensor([0.0, 1, -3, 64, -63, 0.25, 17, -1])
    x = inputs[torch.randint(8, (4, 328), generator=torch.Generator().manual_seed(0))].bfloat16()
    result = CpuLinear().run(call, x, CpuLinear().prepare(call, stored), None)
    exact = x.double() @ weight.T
    step = (x.double().abs() @ weight.T.abs()) * 2**-22  # what sums of float32 may round
    assert ((exact - step).to(BFLOAT16) <= result).all()
    assert (result <= (exact + step).to(BFLOAT16)).all()


@pytest.mark.parametrize("name", ["nf4", "nvfp4", "fp8"])
@pytest.mark.parametrize("size", [1e-37, 1e-20, 1e30])
def test_inputs_of_any_size(name: str, size: float, plain_vectors: None) -> None:
    for rows in (1, 3):
        given = _problem(name, (37, 328), rows, BFLOAT16)
        x = (given.x * size).where(torch.rand(given.x.shape, generator=torch.Generator()) < 0.9, given.x)
        weight = _weight(name, (37, 328))[2]
        given = replace(given, x=x, bias=None, exact=x.double() @ weight.T)
        given = replace(given, plain=DecodeLinear().run(given.call, x, given.stored, None))
        assert_close_to_exact(_run(given), given)


@pytest.mark.parametrize("name", ["nf4", "mxfp4", "nvfp4", "fp8"])
def test_inputs_that_are_no_numbers(name: str, plain_vectors: None) -> None:
    for bad in (math.inf, -math.inf, math.nan):
        given = _problem(name, (37, 328), 2, BFLOAT16)
        x = given.x.clone()
        x[1, 70] = bad
        result, weight = _run(replace(given, x=x)), _weight(name, (37, 328))[2]
        assert_close_to_exact(
            result[:1], replace(given, x=x[:1], exact=given.exact[:1], plain=given.plain[:1])
        )
        expected = weight[:, 70] * bad  # infinite, or no number where the weight is 0
        assert torch.equal(result[1].isnan(), expected.isnan())
        assert torch.equal(result[1].sign().nan_to_num(), expected.sign().nan_to_num().to(BFLOAT16))


@pytest.mark.parametrize("byte", [0x7F, 0xFF])
@pytest.mark.parametrize("name", ["fp8", "mxfp8", "fp8-blocks"])
def test_a_code_that_is_no_number(name: str, byte: int, plain_vectors: None) -> None:
    for column in (0, 33, 95):
        for rows in (1, 2, 5):
            given = _problem(name, (40, 96), rows, BFLOAT16)
            carry = given.stored["carry"].clone()
            carry[7, column] = byte
            result = _run(replace(given, stored={**given.stored, "carry": carry}))
            assert result[:, 7].isnan().all()
            assert int(result.isnan().sum()) == rows


REFUSALS = (
    ({"device": "cuda"}, "the device is cuda, and it needs cpu"),
    ({"dtype": torch.float64}, "inputs are float64, not float32, bfloat16 or float16"),
    ({"shape": (2, 40, 96)}, "the weight has shape [2, 40, 96], not a matrix's"),
    ({"shape": (0, 96)}, "the weight has shape [0, 96], not a matrix's"),
    ({"representation": Representation(())}, "dense is not one quantize stage, alone or after sparsify"),
    (
        {"representation": Representation((Sparsify(0.5), Quantize(4))).core},
        "the matrix holds the survivors of sparsify(0.5)",
    ),
)


@pytest.mark.parametrize(
    ("changes", "reason"), REFUSALS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_refusals(changes: dict[str, object], reason: str) -> None:
    call, _, _ = _weight("int4", (40, 96))
    assert CpuLinear().refuse(replace(call, **changes)) == reason


def test_without_a_compiler_the_weight_is_decoded() -> None:
    code = (
        "import torch; from rhoc.runtime.kernels import Call, select; from rhoc.runtime.stages import Quantize;"
        "from rhoc.runtime.representation import Representation;"
        "s = select(Call('linear', Representation((Quantize(4),)).core, (8, 8), torch.float32, 'cpu'));"
        "print(s.kernel.name, *s.refusals, sep='; ')"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "RHOC_NATIVE": "0"},
        check=True,
    ).stdout
    assert printed.startswith("decode_linear; ")
    assert "cpu_linear refused: RHOC_NATIVE=0 switches it off" in printed
