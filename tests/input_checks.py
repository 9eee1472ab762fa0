"""Checks of the Triton kernels on inputs, lookups, experts and caches, the same interpreted and on CUDA."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor

from rhoc.runtime.arrangement import Arrangement
from rhoc.runtime.entering import enter
from rhoc.runtime.generation.cache import Places, TokenCache
from rhoc.runtime.kernels import Call, Kernel, select
from rhoc.runtime.kernels.cache_attention import DecodeCacheAttention
from rhoc.runtime.kernels.gpu import coded_launch, coded_linear
from rhoc.runtime.kernels.gpu.grouped_linear import GroupedLinear
from rhoc.runtime.kernels.gpu.hadamard import enter_rows, rotation_plan, rows_of
from rhoc.runtime.kernels.gpu.quantize_input import form_of, fused_plan, quantize_input, reference
from rhoc.runtime.kernels.neighbours import Norm
from rhoc.runtime.kernels.stored import StoredMatrix, stored_matrix
from rhoc.runtime.packed import Packed
from rhoc.runtime.representation import Representation
from rhoc.runtime.slots import Slots
from rhoc.runtime.stages import Hadamard, Quantize

from .input_cases import (
    A4_HALVES,
    A8,
    A8_GROUPS,
    A8_HALVES,
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FP8,
    FP8_GROUPS,
    MXFP4,
    MXFP8,
    W4_GROUPS,
    Case,
    assert_close,
    numbers,
    problem,
)

FEW = Quantize(4, "float", strategy="group", group_size=8)  # several groups in a line
ROUNDED = (A8, A8_HALVES, A4_HALVES, A8_GROUPS, FP8, FP8_GROUPS, MXFP8, MXFP4, FEW)


def check_product(case: Case, device: str) -> None:
    given = problem(case, device)
    kernel = select(given.call).kernel
    assert kernel.name in ("gpu_int8_linear", "gpu_fp8_linear")
    prepared = kernel.prepare(given.call, given.stored)
    result = kernel.run(given.call, given.x, prepared, given.bias)
    assert_close(result, given.exact, given.plain)
    if case.rows == 3:
        assert torch.equal(kernel.run(given.call, given.x, given.stored, given.bias), result)


def check_codes(stage: Any, block: int, dtype: torch.dtype, device: str) -> None:
    """Bit for bit; after a rotation a number that lies on a border may be on its other side."""
    representation = Representation((*((Hadamard(block),) if block else ()), stage))
    size = 384 if block else 200
    matrix = stored_matrix(representation.core, (1, size))
    assert isinstance(matrix, StoredMatrix)
    form = form_of(matrix.levels)
    assert form is not None
    assert not isinstance(fused_plan(representation), str)
    x = (numbers(5, size, dtype=dtype) * 3).to(device)
    plane = -(-size // 2 // 16) * 16
    wanted, found = (
        reference(x, representation, form, 2, plane),
        quantize_input(x, representation, form, 2, plane),
    )
    assert (found.group, found.codes.dtype) == (wanted.group, wanted.codes.dtype)
    # Sums of a rotation in another order may be rounded to the other neighbour in 16 bits.
    rounding = 1e-6 if dtype == FLOAT32 or not block else 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.scale, wanted.scale, rtol=rounding, atol=0)
    assert (found.codes != wanted.codes).double().mean() <= (0.01 if block else 0)
    if not form.float8:
        apart = found.codes.int() - wanted.codes.int()
        assert apart.abs().max() <= (4 if stage.type == "float" else form.times)


def check_layouts(device: str) -> None:
    given = problem(Case(W4_GROUPS, dtype=FLOAT16, rows=6), device)
    kernel = select(given.call).kernel

    def run(x: Tensor) -> Tensor:
        return kernel.run(given.call, x, given.stored, given.bias)

    expected = run(given.x)
    assert torch.equal(run(given.x.reshape(2, 3, -1)), expected.reshape(2, 3, -1))
    wide = torch.zeros(6, 300, dtype=FLOAT16, device=device)
    wide[:, 5:261] = given.x
    assert torch.equal(run(wide[:, 5:261]), expected)
    assert torch.equal(run(given.x.T.contiguous().T), expected)
    assert run(given.x[:0]).shape == (0, 40)
    torch.testing.assert_close(run(given.x[0]), expected[0], rtol=2e-3, atol=2e-2)  # the kernel of one row


PARTS = (
    Case(W4_GROUPS, A8, rows=5, activation="relu"),
    Case(Quantize(8, strategy="channel"), A8_HALVES, rows=6),
)


def check_parts(case: Case, device: str) -> None:
    """K in parts, each in programs of its own, which are added up after."""

    def in_parts(*given: Any) -> coded_launch.Cut:
        return replace(coded_launch.cut_for(*given), block_k=64, splits=3)

    with patch.object(coded_linear, "cut_for", in_parts):
        check_product(case, device)


def check_gradients(device: str) -> None:
    case = Case(W4_GROUPS, rows=4, block=64, activation="relu")
    given = problem(case, device)
    kernel = select(given.call).kernel
    x, bias = given.x.clone().requires_grad_(), torch.zeros(40, device=device, requires_grad=True)
    result = kernel.run(given.call, x, given.stored, bias)
    result.square().sum().backward()
    core = given.call.representation
    weight = core.decode(core.unpack(given.stored, (40, 256), FLOAT32))
    for stage in given.call.rotation.bound_stages:
        weight = stage.decode(weight, {})
    outer = 2 * result.detach() * (result.detach() > 0)
    assert x.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(x.grad, outer @ weight, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(bias.grad, outer.sum(0), rtol=1e-4, atol=1e-2)


@dataclass(frozen=True)
class Entered:
    """A norm over `size` numbers, and what it is prepared by."""

    kind: str
    size: int
    block: int | str = 0
    stage: Quantize | None = None
    eps: float | None = 1e-5
    signs: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}-{self.size}-{self.block}-{self.stage}"


ENTERED = (
    Entered("rms_norm", 64, 32),
    Entered("rms_norm", 384, 128, A8, None),
    Entered("rms_norm", 200, 0, A8),
    Entered("rms_norm", 1024, "full", signs=3),
    Entered("rms_norm", 1024, 512, A4_HALVES),
    Entered("rms_norm", 384, 32, FEW),
    Entered("layer_norm", 384, 128, MXFP8, signs=1),
    Entered("layer_norm", 200, 8),
    Entered("layer_norm", 640, 128, FP8_GROUPS),
)


def check_norm(case: Entered, dtype: torch.dtype, device: str) -> None:
    """Without a grid by the rule of acceptance; with one, nearly all numbers are the same levels."""
    rotation = Representation((Hadamard(case.block, case.signs),) if case.block else ())  # type: ignore[arg-type]
    projection = Representation((*rotation.stages, case.stage)) if case.stage else Representation()
    norm = Norm(case.kind, (case.size,), case.eps)  # type: ignore[arg-type]
    call = Call("norm_enter", projection, (case.size,), dtype, device, norm=norm, rotation=rotation)
    kernel = select(call).kernel
    assert kernel.name == "gpu_norm_enter"
    x, weight = (numbers(3, case.size, dtype=dtype) * 2).to(device), (1 + numbers(case.size, dtype=dtype) / 4)
    weight = weight.to(device)
    bias = numbers(case.size, dtype=dtype, seed=4).to(device) if case.kind == "layer_norm" else None
    result = kernel.run(call, x, {"weight": weight}, bias)
    plain = enter(norm.run(x, weight, bias), projection, rotation)
    assert (result.shape, result.dtype) == (plain.shape, plain.dtype)
    if case.stage is None:
        eps = torch.finfo(FLOAT32).eps if case.eps is None else case.eps
        wide = replace(norm, eps=eps).run(
            x.double(), weight.double(), None if bias is None else bias.double()
        )
        assert_close(result, rotation.encode(wide).carry, plain)
    else:
        apart = (result.double() - plain.double()).abs()
        step = plain.abs().amax(-1, keepdim=True).double() * 2.0 ** (1 - case.stage.num_bits)
        assert (apart > step / 16).double().mean() <= 0.02
        assert (apart <= 2.2 * step).all()


TURNED = ((64, 32), (96, 128), (384, 128), (4096, 4096), (2048, 512), (1024, "full"), (20480, 128))


def check_rotation(size: int, block: int | str, dtype: torch.dtype, device: str) -> None:
    rotation = Representation((Hadamard(block, signs=1),))  # type: ignore[arg-type]
    plan = rotation_plan(rotation)
    assert not isinstance(plan, str)
    rows = rows_of(plan, size, False)
    assert not isinstance(rows, str)
    x = numbers(2, 3, size, dtype=dtype).to(device)
    wide = rotation.encode(x.double()).carry
    assert_close(enter_rows(x, rows), wide, rotation.encode(x).carry)


ROWS = (
    *(Quantize(bits, strategy="group", group_size=32) for bits in range(1, 9)),
    *(Quantize(bits, strategy="channel", symmetric=False) for bits in (3, 4)),
    Quantize(4, strategy="group", group_size=32, symmetric=False, zp_dtype="float16"),
    Quantize(8),
    MXFP4,
    Quantize(4, "float", strategy="tensor_group"),
    Quantize(8, "float", strategy="block", block_structure=(16, 32)),
    Quantize(4, "float", grid="nf4", strategy="group", group_size=64),
)


def check_lookup(stage: Any, dtype: torch.dtype, device: str) -> None:
    core = Representation((stage,)).core
    code = core.encode(numbers(50, 200, dtype=dtype))
    stored = {name: tensor.to(device) for name, tensor in core.pack(code).items()}
    call = Call("embedding", core, (50, 200), dtype, device)
    kernel = select(call).kernel
    assert kernel.name == "gpu_embedding"
    tokens = torch.tensor([[0, 49, 7], [7, 31, 16]])
    result = kernel.run(call, tokens.to(device), stored, None)
    assert torch.equal(result.cpu(), F.embedding(tokens, core.decode(code)))
    assert kernel.run(call, tokens[:0].to(device), stored, None).shape == (0, 3, 200)
    assert kernel.run(call, torch.tensor([50, -1], device=device), stored, None).isnan().all()


GROUPED = (
    *((Quantize(bits, strategy="group", group_size=32), None, FLOAT32) for bits in (1, 2, 3, 4, 8)),
    (W4_GROUPS, None, BFLOAT16),
    (W4_GROUPS, A8, FLOAT16),
    (Quantize(4, strategy="group", group_size=32, symmetric=False), None, FLOAT16),
    *((Quantize(bits, strategy="channel", symmetric=False), None, FLOAT16) for bits in (1, 3, 4)),
    (Quantize(4, strategy="channel", symmetric=False), A8, BFLOAT16),
    (Quantize(4, strategy="group", group_size=192, symmetric=False), None, BFLOAT16),
    (MXFP4, None, FLOAT32),
    (Quantize(4, "float", strategy="tensor_group"), None, BFLOAT16),
    (Quantize(4, "float", grid="nf4", strategy="group", group_size=64), None, FLOAT32),
    (Quantize(8, strategy="channel", grid="midrise", observer="rms"), A8_HALVES, FLOAT32),
    (Quantize(8, "float", strategy="channel"), FP8, BFLOAT16),
)
OFFSETS = ([5, 5, 38], [0, 41, 41])


def check_experts(stage: Any, entering: Any, dtype: torch.dtype, device: str) -> None:
    core, shape = Representation((stage,)).core, (3, 33, 192)
    stored = {
        name: tensor.to(device)
        for name, tensor in core.pack(core.encode(numbers(*shape, dtype=dtype))).items()
    }
    inputs = Representation((entering,) if entering else ())
    call = Call("grouped_linear", core, shape, dtype, device, input=inputs)
    kernel = select(call).kernel
    assert kernel.name == "gpu_grouped_linear"
    x = numbers(41, 192, dtype=dtype, seed=5).to(device)
    weight = core.restore(core.unpack(stored, shape, dtype)).double()
    plain_weight = core.decode(core.unpack(stored, shape, dtype))
    entered = enter(x, inputs, Representation())
    exact_input = inputs.restore(inputs.encode(x)).double() if entering else x.double()
    for ends in OFFSETS:
        offsets = torch.tensor(ends, dtype=torch.int32, device=device)
        result = kernel.run(call, x, {**stored, "offsets": offsets}, None)
        exact, plain = torch.zeros(41, 33, dtype=torch.float64, device=device), x.new_zeros(41, 33)
        for expert, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
            exact[first:last] = exact_input[first:last] @ weight[expert].T
            plain[first:last] = entered[first:last] @ plain_weight[expert].T
        assert_close(result, exact, plain)
        assert not result[ends[-1] :].any()


def check_packed_experts(device: str) -> None:
    """`F.grouped_mm` on a packed weight is one launch, and gives what expert after expert gives."""
    weight = numbers(3, 64, 32, dtype=BFLOAT16).to(device)
    by_rows = Arrangement(order=(0, 2, 1))
    packed = Packed.of(weight, Representation((W4_GROUPS,)), Slots(), by_rows)
    x = numbers(12, 64, dtype=BFLOAT16, seed=7).to(device)
    offsets, launched = torch.tensor([4, 4, 12], dtype=torch.int32, device=device), []
    run = GroupedLinear.run

    def counted(kernel: GroupedLinear, *given: Any) -> Tensor:
        launched.append(given[0].operation)
        return run(kernel, *given)

    with patch.object(GroupedLinear, "run", counted):
        together = F.grouped_mm(x, cast(Tensor, packed), offs=offsets)
    assert launched == ["grouped_linear"]
    dense = packed.decode()
    plain = torch.cat([x[:4] @ dense[0], x[4:] @ dense[2]])
    wide = dense.double()
    assert_close(together, torch.cat([x[:4].double() @ wide[0], x[4:].double() @ wide[2]]), plain)


CACHED = (
    A8,
    Quantize(4, strategy="group", group_size=16),
    Quantize(4, strategy="group", group_size=16, symmetric=False),
    Quantize(4, strategy="token", symmetric=False),
    Quantize(3, strategy="token"),
    FP8,
    Quantize(4, "float", strategy="group", group_size=16, observer="mx"),
)


def check_attention(stage: Any, dtype: torch.dtype, device: str) -> None:
    for batch, heads, times, features in ((2, 2, 3, 64), (1, 1, 1, 80)):
        cache = TokenCache(
            Representation((Hadamard(16), stage)), (batch, heads, 300, features), dtype, torch.device(device)
        )
        keys, values = numbers(2, batch, heads, 150, features, dtype=dtype).to(device)
        every = Places(torch.arange(150, device=device).repeat(batch, 1), 150)
        cache.append(keys, values, every)
        for count in (1, 6):
            positions = torch.linspace(0, 149, batch * count).long().reshape(batch, count).to(device)
            queries = numbers(batch, times * heads, count, features, dtype=dtype, seed=6).to(device)
            stored = _cached(cache, Places(positions, 150))
            call = cache.call
            kernel: Kernel = select(call).kernel
            assert kernel.name == "gpu_cache_attention"
            plain = DecodeCacheAttention().run(call, queries, stored, None)
            wide = _attention(call, queries, stored, positions)
            assert_close(kernel.run(call, queries, stored, None), wide, plain)


def _cached(cache: TokenCache, places: Places) -> dict[str, Tensor]:
    fields = {
        f"{kind}.{name}": tensor
        for kind, which in (("keys", 0), ("values", 1))
        for name, tensor in cache._used(which, places).items()
    }
    return fields | {"positions": places.positions}


def _attention(call: Call, queries: Tensor, stored: dict[str, Tensor], positions: Tensor) -> Tensor:
    """In float64, over keys and values that are not rounded after decoding."""
    core, both = call.representation, []
    for kind in ("keys", "values"):
        fields = {n.removeprefix(f"{kind}."): t for n, t in stored.items() if n.startswith(f"{kind}.")}
        shape = (queries.shape[0], call.shape[0], 150, 1, call.shape[1])
        numbers = core.restore(core.unpack(fields, shape, call.dtype)).double().squeeze(-2)
        both.append(numbers.repeat_interleave(queries.shape[1] // call.shape[0], 1))
    seen = torch.arange(150, device=queries.device) <= positions[:, None, :, None]
    return F.scaled_dot_product_attention(queries.double(), *both, attn_mask=seen)
