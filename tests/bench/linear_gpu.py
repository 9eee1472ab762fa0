"""Every linear of packed models on CUDA against the dense product in bfloat16, from 1 to 4096 rows.

A unit is a format on a layer, run by the kernel that `select` finds for it. Formats with quantised inputs are
timed with the work on the input; the others on an input that has been rotated where the weight is. Weights take
turns with copies of themselves, three times the L2. Few rows of a weight are encoded and repeated: results of
the first and last ones can be checked at once. Codes are random bits where encoding would take minutes: time
does not depend on them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from gpu_unit import Job, Unit, Work, copies
from linear_gpu_peers import PEERS
from timing import Method
from torch import Tensor

from rhoc.compiler.spec import load_spec
from rhoc.runtime.entering import enter
from rhoc.runtime.kernels import Call, Kernel, select
from rhoc.runtime.kernels.composed import ComposedInput
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Codebook, Product, Quantize, Sum, Trellis

ROWS = (1, 4, 16, 64, 256, 1024, 4096)
LAYERS = ((4096, 4096), (4096, 14336), (8192, 28672))  # outputs, inputs
TINY_ROWS, TINY_LAYER = (1, 18), (128, 256)
# Shipped specs: a new kernel is timed by a name here.
INPUTS = (
    "w8a8",
    "fp8-dynamic",
    "w4a8",
    "int4-a4",
    "int8-a8",
    "fp8-block",
    "mxfp8-a8",
    "mxfp4-a4",
    "nvfp4-a4",
)
WEIGHTS = (
    *("int4-g128", "int8-channel", "int2-g64", "int2", "2of4-int4"),
    *("qtip2", "quip-sharp2", "aqlm-2x8", "higgs2"),
    *("2of4", "2of4-int8", "sparse50-int4", "sparse50", "sparse75-int8", "low-rank-nf4", "caldera"),
    *("int4", "int4-g128-asym", "int3-g128", "nf4", "nvfp4", "mxfp4", "fp8", "ternary", "binary"),
    *("int5", "int6", "int7", "mxfp6", "mxfp8", "fp4", "fp6-e3m2", "fp6-e2m3", "lloyd3", "mxint8"),
    *("qtip2-l16", "qtip3", "quip-sharp4", "higgs3", "kmeans4", "rotated-int4-g32"),
)
FIRST = (*WEIGHTS[:9], *INPUTS[:2])  # those with bars of their own come first, on all layers
_PART = 256  # rows that are encoded
_CODED = (Codebook, Product, Sum, Trellis)  # stages whose codes take long to find


def units(tiny: bool) -> Iterator[Unit]:
    """Each format and each product of another library on each layer."""
    layers, rows = ((TINY_LAYER,), TINY_ROWS) if tiny else (LAYERS, ROWS)
    variants = tuple(str(count) for count in rows)
    for shape in layers:
        layer = f"{shape[0]}x{shape[1]}"
        for name in (*FIRST, *INPUTS[2:], *WEIGHTS[9:]):
            importance = 0 if name in FIRST else 2 if shape == LAYERS[1] else 3
            yield Unit(name, layer, variants, importance, partial(_format_jobs, name, shape))
        for name in () if tiny else PEERS:
            yield Unit(name, layer, variants, 1, partial(_peer_jobs, name, shape))


@dataclass(frozen=True)
class Format:
    """A stored weight, copied until it is cold, the kernel and what it is called with.

    `part` is the representation of the first rows, of which the others are repetitions.
    """

    call: Call
    kernel: Kernel
    nbytes: int
    prepared: Sequence[Mapping[str, Tensor]]
    part: Tensor

    @property
    def products(self) -> str:
        """Which products it multiplies with: bfloat16, or with quantised inputs bytes."""
        composed = isinstance(self.kernel, ComposedInput)
        if self.call.operation != "input_linear" or composed or self.call.input.is_dense:
            return "bfloat16"
        quantize = self.call.input.core.stages[-1]
        return "fp8" if isinstance(quantize, Quantize) and quantize.type == "float" else "int8"

    def run(self, x: Tensor, call: int) -> Tensor:
        """One product with the next copy of the weight."""
        return self.kernel.run(self.call, x, self.prepared[call % len(self.prepared)], None)

    def checked(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """First and last outputs as they should be, and as they are."""
        exact = F.linear(enter(x, self.call.input, self.call.rotation), self.part)
        found, count = self.run(x, 0), len(self.part)
        return torch.cat([exact, exact], 1), torch.cat([found[:, :count], found[:, -count:]], 1)


def _format_jobs(name: str, shape: tuple[int, int], device: str, tiny: bool) -> partial[Job]:
    form, dense = _format(name, shape, device, tiny), _dense(shape, device, tiny)
    return partial(_format_job, form, dense, shape)


def _format_job(form: Format, dense: Sequence[Tensor], shape: tuple[int, int], rows: str) -> Job:
    x, moved, products = _input(int(rows), shape, dense[0])
    return Job(
        str(form.kernel),
        lambda call: form.run(x, call),
        _product(x, dense),
        Work(form.nbytes + moved, products, form.products),
        Work(dense[0].nbytes + moved, products),
        lambda: form.checked(x),
        max(len(form.prepared), len(dense)),
    )


def _peer_jobs(name: str, shape: tuple[int, int], device: str, tiny: bool) -> partial[Job]:
    make, bits = PEERS[name]
    dense = _dense(shape, device, tiny)
    nbytes = shape[0] * shape[1] * bits // 8
    return partial(_peer_job, name, make(dense[0], copies(nbytes, tiny)), nbytes, dense, shape)


def _peer_job(
    name: str,
    layers: Sequence[torch.nn.Module],
    nbytes: int,
    dense: Sequence[Tensor],
    shape: tuple[int, int],
    rows: str,
) -> Job:
    x, moved, products = _input(int(rows), shape, dense[0])
    return Job(
        name.partition(" ")[0],
        lambda call: layers[call % len(layers)](x),
        _product(x, dense),
        Work(nbytes + moved, products),
        Work(dense[0].nbytes + moved, products),
        turns=max(len(layers), len(dense)),
    )


def _input(rows: int, shape: tuple[int, int], like: Tensor) -> tuple[Tensor, float, float]:
    """An input, bytes of it and of the output, and operations of the product."""
    x = torch.randn(rows, shape[1], device=like.device, dtype=like.dtype)
    return x, 2.0 * rows * sum(shape), 2.0 * rows * shape[0] * shape[1]


def _dense(shape: tuple[int, int], device: str, tiny: bool) -> list[Tensor]:
    weight = torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02
    return [weight, *(weight.clone() for _ in range(copies(weight.nbytes, tiny) - 1))]


def _product(x: Tensor, dense: Sequence[Tensor]) -> Method:
    return lambda call: F.linear(x, dense[call % len(dense)])


def _format(name: str, shape: tuple[int, int], device: str, tiny: bool) -> Format:
    rule = load_spec(name).rules[0]
    weights, inputs = rule.weight_representation, rule.input_representation
    call = Call("linear", weights.core, shape, torch.bfloat16, device)
    if not inputs.is_dense:
        call = Call(
            "input_linear", weights.core, shape, torch.bfloat16, device,
            input=inputs, rotation=weights.rotation,
        )  # fmt: skip
    stored, part = repeated(weights.core, shape, device)
    nbytes = sum(tensor.nbytes for tensor in stored.values())
    kernel = select(call).kernel
    others = ({key: t.clone() for key, t in stored.items()} for _ in range(copies(nbytes, tiny) - 1))
    return Format(call, kernel, nbytes, [kernel.prepare(call, fields) for fields in (stored, *others)], part)


def repeated(core: Representation, shape: tuple[int, ...], device: str) -> tuple[dict[str, Tensor], Tensor]:
    """A weight of this shape as it is stored, some of its rows time after time, and those rows decoded."""
    some, times = repeats(core, shape)
    stored = _stored(core, some, device)
    part = core.decode(core.unpack(stored, some, torch.bfloat16))
    return {
        n: t if times[n] == 1 else t.repeat(times[n], *[1] * (t.dim() - 1)) for n, t in stored.items()
    }, part


def repeats(core: Representation, shape: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, int]]:
    """The shape of the rows that are encoded, and how often each of their fields comes in the whole weight."""
    some = (min(_PART, shape[0] // 2), *shape[1:])
    whole, times = core.layout(shape, torch.bfloat16), {}
    for name, field in core.layout(some, torch.bfloat16).items():
        shared = field.stored_shape == whole[name].stored_shape
        times[name] = count = 1 if shared else shape[0] // some[0]
        first, *rest = field.stored_shape or (1,)
        if not shared and (count * first, *rest) != whole[name].stored_shape:
            raise ValueError(f"field {name!r} of {core} is not that of its rows, time after time")
    return some, times


def _stored(core: Representation, shape: tuple[int, ...], device: str) -> dict[str, Tensor]:
    """A weight as it is stored; random bits in the place of codes that take long to find."""
    if not any(isinstance(stage, _CODED) for stage in core.stages):
        return core.pack(core.encode(torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02))
    fields = {}
    for name, field in core.layout(shape, torch.bfloat16).items():
        if field.packed or field.dtype == torch.uint8:
            fields[name] = torch.randint(256, field.stored_shape, dtype=torch.uint8, device=device)
        else:
            fields[name] = (torch.rand(field.stored_shape, device=device) + 0.5).to(field.dtype)
    return fields
