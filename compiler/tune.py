"""Measuring which kernel is the fastest here, by format, size and number of rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median

import torch
from torch import Tensor

from ..runtime.errors import RequestError, WorkError
from ..runtime.kernels import Call, Kernel, candidates, tuning
from ..runtime.representation import Representation
from .spec import load_spec

SPECS = ("int8", "int4-g128", "int3", "int2", "ternary", "nf4", "w8a8", "w4a8")
SHAPES = ((1024, 1024), (4096, 4096))
ROWS = (1, 4, 16, 64, 256, 1024)
_COLD = 1e8  # bytes of weights walked through, past the last cache
_ROUNDS, _SECONDS = 5, 0.02  # of each kernel: the middle of so many rounds of so long

Listen = Callable[[str], None]


@dataclass(frozen=True)
class Tuned:
    """What was measured for a format and size: seconds of a call by rows and kernel, and the choice."""

    spec: str
    call: Call
    seconds: Mapping[int, Mapping[str, float]]
    chosen: tuning.Measured


def tune(
    names: Sequence[str] = SPECS,
    shapes: Sequence[tuple[int, int]] | None = None,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float32),
    copies: bool = False,
    listen: Listen = lambda line: None,
) -> list[Tuned]:
    """Measure on this machine and write the table that `select` reads.

    `copies`: also measure kernels that keep the codes a second time.

    Raises:
        RequestError: the table is switched off, or a format is unknown.
        WorkError: the table cannot be written.
    """
    path = tuning.file()
    if path is None:
        raise RequestError(
            f"{tuning.SWITCH}=0 leaves the table of measured kernels aside", advice=f"unset {tuning.SWITCH}"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = []
    for call, name in _calls(names, shapes or SHAPES, dtypes, device):
        listen(f"{name}, {call.shape[0]} x {call.shape[1]}, {str(call.dtype).removeprefix('torch.')}")
        kernels = [kernel for kernel in candidates(call) if copies or not kernel.copies]
        if len(kernels) > 1:
            found.append(_tuned(name, call, kernels))
    try:
        tuning.write(path, [each.chosen for each in found])
    except OSError as error:
        raise WorkError(f"cannot be written: {error.strerror or error}", where=str(path)) from error
    return found


def _calls(
    names: Sequence[str], shapes: Sequence[tuple[int, int]], dtypes: Sequence[torch.dtype], device: str
) -> Iterator[tuple[Call, str]]:
    """The product with the weights of each format, from the input as it is where that is represented."""
    for name in names:
        rule = load_spec(name).rules[0]
        weight, entering = rule.weight_representation, rule.representation("input_activations")
        for shape in shapes:
            for dtype in dtypes:
                call = Call("linear", weight.core, shape, dtype, device)
                if entering.stages or weight.rotation.stages:
                    whole = replace(call, operation="input_linear", input=entering, rotation=weight.rotation)
                    yield whole, name
                yield call, name


def _tuned(name: str, call: Call, kernels: Sequence[Kernel]) -> Tuned:
    copies = _weights(call)
    seconds: dict[int, dict[str, float]] = {}
    for rows in ROWS:
        x = torch.randn(rows, call.shape[1], dtype=call.dtype, device=call.device)
        seconds[rows] = _measured(call, kernels, copies, x)
    fastest = [(rows, min(taken, key=taken.__getitem__)) for rows, taken in seconds.items()]
    last = [(rows, kernel) for (rows, kernel), (_, after) in pairwise(fastest) if kernel != after]
    operation, weight, entering, dtype, device = tuning.described(call)
    shape = (call.shape[0], call.shape[1])
    chosen = tuning.Measured(operation, weight, entering, shape, dtype, device, (*last, fastest[-1]))
    return Tuned(name, call, seconds, chosen)


def _weights(call: Call) -> list[dict[str, Tensor]]:
    """Stored weights, as many as do not fit in a cache together."""
    dense = torch.randn(call.shape, dtype=call.dtype, device=call.device)
    code = Representation(call.representation.stages).encode(dense)
    stored = call.representation.pack(code)
    count = max(1, min(64, int(_COLD / max(1, sum(tensor.nbytes for tensor in stored.values())))))
    return [stored, *({n: t.clone() for n, t in stored.items()} for _ in range(count - 1))]


def _measured(
    call: Call, kernels: Sequence[Kernel], copies: Sequence[Mapping[str, Tensor]], x: Tensor
) -> dict[str, float]:
    """Seconds of a call of each kernel: the middle of interleaved rounds."""
    ready = {kernel.name: [kernel.prepare(call, stored) for stored in copies] for kernel in kernels}
    taken: dict[str, list[float]] = {kernel.name: [] for kernel in kernels}
    with torch.no_grad():
        calls = {
            k.name: max(1, round(_SECONDS / max(_once(call, k, ready[k.name], x, 2), 1e-7))) for k in kernels
        }
        for _ in range(_ROUNDS):
            for kernel in kernels:
                count = calls[kernel.name]
                taken[kernel.name].append(_once(call, kernel, ready[kernel.name], x, count))
    return {name: median(each) for name, each in taken.items()}


def _once(call: Call, kernel: Kernel, fields: Sequence[Mapping[str, Tensor]], x: Tensor, count: int) -> float:
    """Seconds of one call, of `count` of them."""
    start = _now(call.device)
    for number in range(count):
        kernel.run(call, x, fields[number % len(fields)], None)
    return (_now(call.device) - start) / count


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()
