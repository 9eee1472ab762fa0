"""Every linear of packed models on CUDA against the dense product in bfloat16, from 1 to 4096 rows.

A row of the table is a format, run by the kernel that `select` finds for it. Formats with quantised inputs
are timed with the work on the input; the others on an input that has been rotated where the weight is.
Weights are rotated through three times the L2, calls replayed as CUDA graphs. The share is that of the
format's own roofline: its bytes (weight, input, output) at the rate of a copy, or its products at the rate of
a large product of the same type, whichever takes longer, both measured in this run. Codes are random bits where
encoding would take minutes: time does not depend on them.

On a CPU nothing is measured, but with --quick and TRITON_INTERPRET=1 everything runs once at tiny sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from linear_gpu_peers import peer_methods
from timing import Case, Method, measure
from torch import Tensor

from rhoc.compiler.spec import load_spec
from rhoc.runtime.interpreted import interpreted
from rhoc.runtime.kernels import Call, Kernel, select
from rhoc.runtime.kernels.composed import ComposedInput
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Codebook, Quantize, Trellis

ROWS = (1, 4, 16, 64, 256, 1024, 4096)
SHAPES = ((4096, 4096), (4096, 14336), (8192, 28672))  # outputs, inputs
# Names of the table, and specs or their text: a new kernel is timed by a line here.
FORMATS: Mapping[str, str] = {
    "int8": "int8-channel",
    "int4-g128": "int4-g128",
    "int4-g128 with zeros": "int4-g128-asym",
    "int4": "int4",
    "int3-g128": "int3-g128",
    "int2": "int2",
    "int2-g64": "int2-g64",
    "ternary": "ternary",
    "binary": "binary",
    "int6": "int6",
    "nf4": "nf4",
    "mxfp4": "mxfp4",
    "nvfp4": "nvfp4",
    "mxfp6": "mxfp6",
    "mxfp8": "mxfp8",
    "fp8": "fp8",
    "2:4": "2of4",
    "2:4 int4": "2of4-int4",
    "2:4 int8": "2of4-int8",
    "50 % sparse int4": "sparse50-int4",
    "AQLM 2 x 8": "aqlm-2x8",
    "HIGGS 2 bits": "higgs2",
    "E8P 2 bits": "quip-sharp2",
    "QTIP 2 bits": "qtip2",
    "w8a8": "w8a8",
    "fp8 inputs": "fp8-dynamic",
    "w4a8": "w4a8",
    "int4 inputs": "int4-a4",
}
QUICK = ("int4-g128", "int2", "nvfp4", "2:4 int4", "w8a8", "E8P 2 bits")
_COLD = 200e6  # bytes: three times the L2 of 60 MB
_RATES = {"copy": 1 << 29, "product": 8192}


@dataclass(frozen=True)
class Format:
    """A stored weight, copied until it is cold, the kernel and what it is called with."""

    name: str
    call: Call
    kernel: Kernel
    stored: Sequence[Mapping[str, Tensor]]

    @property
    def nbytes(self) -> int:
        """Stored bytes."""
        return sum(tensor.nbytes for tensor in self.stored[0].values())

    @property
    def products(self) -> str:
        """Which products it multiplies with: bfloat16, or with quantised inputs bytes."""
        composed = isinstance(self.kernel, ComposedInput)
        if self.call.operation != "input_linear" or composed or self.call.input.is_dense:
            return "bfloat16"
        quantize = self.call.input.core.stages[-1]
        return "fp8" if isinstance(quantize, Quantize) and quantize.type == "float" else "int8"

    def method(self, x: Tensor) -> Method:
        """One product with the next copy of the weight."""
        prepared = [self.kernel.prepare(self.call, stored) for stored in self.stored]
        return lambda call: self.kernel.run(self.call, x, prepared[call % len(prepared)], None)


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Each layer with each number of rows: dense, all formats, and other libraries."""
    if device != "cuda" and not (quick and interpreted()):
        return
    tiny = device != "cuda"
    shapes = ((64, 256),) if tiny else SHAPES[:1] if quick else SHAPES
    rates = {"copy": 1e12, "bfloat16": 1e15} if tiny else _rates()
    for shape in shapes:
        dense = [torch.randn(shape, device=device, dtype=torch.bfloat16) * 0.02]
        dense += [dense[0].clone() for _ in range(_copies(dense[0].nbytes, tiny) - 1)]
        formats = [_format(name, dense[0], tiny) for name in (QUICK if tiny else FORMATS)]
        for rows in (1, 18) if tiny else ROWS:
            yield _case(shape, rows, dense, formats, rates, tiny)


def _case(
    shape: tuple[int, int],
    rows: int,
    dense: Sequence[Tensor],
    formats: Sequence[Format],
    rates: Mapping[str, float],
    tiny: bool,
) -> Case:
    x = torch.randn(rows, shape[1], device=dense[0].device, dtype=torch.bfloat16)
    moved = 2 * rows * sum(shape)
    products = 2.0 * rows * shape[0] * shape[1]
    methods: dict[str, Method] = {"dense bfloat16": lambda call: F.linear(x, dense[call % len(dense)])}
    least = {"dense bfloat16": max((dense[0].nbytes + moved) / rates["copy"], products / rates["bfloat16"])}
    for form in formats:
        label = f"{form.name} ({form.kernel})"
        rate = rates.get(form.products, rates["bfloat16"])
        if _runs(label, lambda form=form: form.method(x), tiny, methods):
            least[label] = max((form.nbytes + moved) / rates["copy"], products / rate)
    if not tiny:
        for label, make, nbytes in peer_methods(dense[0], len(dense)):
            if _runs(label, lambda make=make: make(x), tiny, methods):
                least[label] = max((nbytes + moved) / rates["copy"], products / rates["bfloat16"])
    name = f"{shape[0]}x{shape[1]} bfloat16, {rows} rows"
    return Case(name, methods, least=least, rounds=1 if tiny else None)


def _runs(label: str, make: Callable[[], Method], tiny: bool, methods: dict[str, Method]) -> bool:
    """Add a method if it runs, and runs inside of a CUDA graph; a line says why it is left out."""
    try:
        method = make()
        method(0)
        if not tiny:
            torch.cuda.synchronize()
            with torch.cuda.graph(torch.cuda.CUDAGraph()):
                method(1)
    except Exception as error:  # other libraries raise what they like
        print(f"    left out: {label} ({type(error).__name__}: {str(error).splitlines()[:1]})", flush=True)
        return False
    methods[label] = method
    return True


def _format(name: str, dense: Tensor, tiny: bool) -> Format:
    rule = load_spec(FORMATS[name]).rules[0]
    weights, shape, device = rule.weight_representation, tuple(dense.shape), dense.device.type
    call = Call("linear", weights.core, shape, torch.bfloat16, device)
    if not rule.input_representation.is_dense:
        call = Call(
            "input_linear",
            weights.core,
            shape,
            torch.bfloat16,
            device,
            input=rule.input_representation,
            rotation=weights.rotation,
        )
    first = _stored(weights.core, dense)
    copies = _copies(sum(tensor.nbytes for tensor in first.values()), tiny)
    stored = [first, *({key: t.clone() for key, t in first.items()} for _ in range(copies - 1))]
    return Format(name, call, select(call).kernel, stored)


def _stored(core: Representation, dense: Tensor) -> dict[str, Tensor]:
    """The weight as it is stored; random bits in the place of codes that take long to find."""
    if not any(isinstance(stage, Codebook | Trellis) for stage in core.stages):
        return core.pack(core.encode(dense))
    fields = {}
    for name, field in core.layout(tuple(dense.shape), dense.dtype).items():
        shape, device = field.stored_shape, dense.device
        codes = torch.randint(256, shape, dtype=torch.uint8, device=device)
        fields[name] = codes if field.packed else (torch.rand(shape, device=device) + 0.5).to(field.dtype)
    return fields


def _copies(nbytes: int, tiny: bool) -> int:
    return 1 if tiny else -(-int(_COLD) // nbytes)


def _rates() -> dict[str, float]:
    """Bytes moved by a copy, and operations of products by type, in a second."""
    size = _RATES["product"]
    block = torch.randn(_RATES["copy"], device="cuda", dtype=torch.bfloat16)
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    codes = [t.mul(40).to(torch.int8) for t in (a, b.T.contiguous())]
    narrow = [t.to(torch.float8_e4m3fn) for t in (a, b.T.contiguous())]
    one = torch.ones((), device="cuda")
    target = torch.empty_like(block)
    methods: dict[str, Method] = {
        "copy": lambda call: target.copy_(block),
        "bfloat16": lambda call: a @ b,
        "int8": lambda call: torch._int_mm(codes[0], codes[1].T),
        "fp8": lambda call: torch._scaled_mm(narrow[0], narrow[1].T, one, one, out_dtype=torch.bfloat16),
    }
    work = {"copy": 2.0 * block.nbytes}
    rates = {}
    for name, method in methods.items():
        timings = measure(Case(name, {name: method}, capture=False), cuda=True, rounds=5, seconds=0.1)
        rates[name] = work.get(name, 2.0 * size**3) / timings[name].median
        print(f"    {name}: {rates[name] / 1e12:.1f} T {'bytes' if name in work else 'operations'} a second")
    return rates
