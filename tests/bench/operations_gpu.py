"""Operations beside linears on CUDA: rotations and rounding of inputs, lookups, experts, attention over a cache.

Inputs are compared with a copy of them, all else with torch on dense bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from gpu_unit import Job, Unit, Work, copies
from linear_gpu import repeated
from torch import Tensor

from rhoc.runtime.entering import enter
from rhoc.runtime.generation.cache import Places, TokenCache
from rhoc.runtime.kernels import Call, select
from rhoc.runtime.kernels.gpu.hadamard import enter_rows, rotation_plan, rows_of
from rhoc.runtime.kernels.neighbours import Norm
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize

_ROWS = ("16", "256", "4096", "16384")
_INT8_ROWS = Quantize(8, strategy="channel")
_GROUPS = Quantize(4, strategy="group", group_size=128)
_TOKENS = Quantize(8, strategy="token", dynamic=True)
_OF_HEADS = Quantize(4, strategy="group", group_size=64, dynamic=True)
_TABLE, _EXPERTS = (131072, 4096), (8, 14336, 4096)
_HEADS, _QUERIES, _FEATURES = 8, 32, 128


def units(tiny: bool) -> Iterator[Unit]:
    """All of them; two variants of each at tiny sizes."""
    size = 256 if tiny else 4096
    rows = ("2", "3") if tiny else _ROWS
    for block in (128, "full"):
        yield Unit(f"hadamard {block}", f"{size}", rows, 1, partial(_rotations, block, size))
    yield Unit("norm, hadamard 128, int8", f"{size}", rows, 1, partial(_norms, size))
    table, experts = ((64, 256), (2, 64, 256)) if tiny else (_TABLE, _EXPERTS)
    for stage in (_INT8_ROWS, _GROUPS):
        core = Representation((stage,))
        yield Unit(f"embedding: {core}", _by(table), rows, 1, partial(_lookups, core, table))
        yield Unit(f"cache: {_cached(stage)}", "heads", ("1x40", "2x50") if tiny else ("32x4096", "4x32768"), 1,
                   partial(_attention, _cached(stage)))  # fmt: skip
    for stage, entering in ((_GROUPS, None), (_INT8_ROWS, _TOKENS)):
        inputs = Representation((entering,) if entering else ())
        name = f"experts: {Representation((stage,))}" + (f" of {inputs}" if entering else "")
        build = partial(_grouped, Representation((stage,)), inputs, experts)
        yield Unit(name, _by(experts), rows, 1, build)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)


def _cached(stage: Quantize) -> Representation:
    return Representation((Hadamard(64), _TOKENS if stage is _INT8_ROWS else _OF_HEADS))


def _of_rows(size: int, device: str, run: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], name: str) -> Callable[[str], Job]:  # fmt: skip
    """Jobs of what reads and writes rows of numbers once."""

    def job(rows: str) -> Job:
        x = torch.randn(int(rows), size, device=device, dtype=torch.bfloat16)
        turns = min(96, copies(2 * x.nbytes, device == "cpu"))
        inputs, work = [x, *(x.clone() for _ in range(turns - 1))], Work(2.0 * x.nbytes)
        return Job(
            name,
            lambda call: run(inputs[call % turns]),
            lambda call: inputs[call % turns].clone(),
            work,
            work,
            lambda: (plain(x), run(x)),
            turns,
        )

    return job


def _rotations(block: int | str, size: int, device: str, tiny: bool) -> Callable[[str], Job]:
    rotation = Representation((Hadamard(block, signs=1),))  # type: ignore[arg-type]
    plan = rotation_plan(rotation)
    rows = plan if isinstance(plan, str) else rows_of(plan, size, False)
    if isinstance(rows, str):
        raise ValueError(rows)
    return _of_rows(
        size, device, lambda x: enter_rows(x, rows), lambda x: rotation.encode(x).carry, "enter_rows"
    )


def _norms(size: int, device: str, tiny: bool) -> Callable[[str], Job]:
    rotation = Representation((Hadamard(128),))
    projection, norm = Representation((Hadamard(128), _TOKENS)), Norm("rms_norm", (size,), 1e-5)
    call = Call("norm_enter", projection, (size,), torch.bfloat16, device, norm=norm, rotation=rotation)
    kernel, weight = select(call).kernel, torch.ones(size, device=device, dtype=torch.bfloat16)
    return _of_rows(
        size,
        device,
        lambda x: kernel.run(call, x, {"weight": weight}, None),
        lambda x: enter(norm.run(x, weight, None), projection, rotation),
        str(kernel),
    )


def _lookups(core: Representation, shape: tuple[int, int], device: str, tiny: bool) -> Callable[[str], Job]:
    call = Call("embedding", core.core, shape, torch.bfloat16, device)
    kernel, (stored, part) = select(call).kernel, repeated(core.core, shape, device)
    dense = part.repeat(shape[0] // len(part), 1)
    row = sum(tensor.nbytes for tensor in stored.values()) / shape[0]

    def job(rows: str) -> Job:
        tokens = torch.randint(shape[0], (64, int(rows)), device=device)  # others in every call
        out = 2.0 * int(rows) * shape[1]
        return Job(
            str(kernel),
            lambda call_: kernel.run(call, tokens[call_ % 64], stored, None),
            lambda call_: F.embedding(tokens[call_ % 64], dense),
            Work(out + int(rows) * row),
            Work(2 * out),
            lambda: (F.embedding(tokens[0], dense), kernel.run(call, tokens[0], stored, None)),
            64,
        )

    return job


def _grouped(
    core: Representation, inputs: Representation, shape: tuple[int, int, int], device: str, tiny: bool
) -> Callable[[str], Job]:
    """Rows of the input are shared out to experts evenly, as far as they go."""
    count, columns, size = shape
    call = Call("grouped_linear", core.core, shape, torch.bfloat16, device, input=inputs)
    kernel, (stored, part) = select(call).kernel, repeated(core.core, shape, device)
    dense = part.repeat(count // len(part), 1, 1)
    bytes_each = sum(tensor.nbytes for tensor in stored.values()) / count
    kind = "bfloat16" if inputs.is_dense else "int8"

    def job(rows: str) -> Job:
        ends = [-(-int(rows) * (expert + 1) // count) for expert in range(count)]
        offsets = torch.tensor(ends, dtype=torch.int32, device=device)
        x = torch.randn(int(rows), size, device=device, dtype=torch.bfloat16)
        used = len({*ends} - {0})
        moved, operations = 2.0 * len(x) * (size + columns), 2.0 * len(x) * size * columns
        fields = {**stored, "offsets": offsets}

        def plain(entered: Tensor) -> Tensor:
            return F.grouped_mm(entered, dense.mT, offs=offsets)

        return Job(
            str(kernel),
            lambda call_: kernel.run(call, x, fields, None),
            lambda call_: plain(x),
            Work(used * bytes_each + moved, operations, kind),
            Work(used * 2.0 * columns * size + moved, operations),
            lambda: (plain(enter(x, inputs, Representation())), kernel.run(call, x, fields, None)),
        )

    return job


def _attention(representation: Representation, device: str, tiny: bool) -> Callable[[str], Job]:
    """One new query of each head of each sequence, some to a head of the cache."""
    heads, queries = (2, 4) if tiny else (_HEADS, _QUERIES)

    def job(variant: str) -> Job:
        batch, used = (int(size) for size in variant.split("x"))
        cache = TokenCache(
            representation, (batch, heads, used, _FEATURES), torch.bfloat16, torch.device(device)
        )
        numbers = torch.randn(2, batch, heads, used, _FEATURES, device=device, dtype=torch.bfloat16)
        every = Places(torch.arange(used, device=device).repeat(batch, 1), used)
        cache.append(numbers[0], numbers[1], every)
        keys, values = cache.dense(every)
        x = torch.randn(batch, queries, 1, _FEATURES, device=device, dtype=torch.bfloat16)
        last = Places(every.positions[:, -1:], used)

        def plain(call: int) -> Tensor:
            return F.scaled_dot_product_attention(x, keys, values, enable_gqa=True)

        operations = 4.0 * x.numel() * used
        return Job(
            str(cache.selection.kernel),
            lambda call: cache.attend(x, last),
            plain,
            Work(cache.nbytes + 2.0 * x.nbytes, operations),
            Work(keys.nbytes + values.nbytes + 2.0 * x.nbytes, operations),
            lambda: (plain(0), cache.attend(x, last)),
        )

    return job
