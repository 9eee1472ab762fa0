"""Linears on codebooks, trellises and sparse weights: ours on a CPU against the dense product.

The baseline is the fastest dense product that torch has on this processor (`dense_products.py`). Weights are
rotated past the last cache. Codes are random bits, since time does not depend on them; only weights that are
sparse are pruned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from dense_products import DenseProducts, copies
from timing import Case, Method
from torch import Tensor

from rhoc.compiler.spec import shipped_weights
from rhoc.runtime.kernels import KERNELS, Call, Kernel
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Codebook, Quantize, Sparsify, Trellis

SHAPE = (4096, 4096)
ROWS = (1, 16, 256)
_SLOW = 16  # rows up to which decoding by the stages is measured too
_INT4 = Quantize(4, observer="rms", grid="midrise", strategy="channel")
_INT8 = Quantize(8, observer="absmax", strategy="tensor")

FORMATS: dict[str, Representation | str] = {
    "2:4": "2of4",
    "2:4 int4": Representation((Sparsify(sparsity_structure="2:4"), _INT4)),
    "2:4 ranked": Representation((Sparsify(sparsity_structure="2:4", storage="rank"),)),
    "50 % sparse": "sparse50",
    "75 % sparse": "sparse75",
    "90 % sparse": "sparse90",
    "50 % sparse int4": "sparse50-int4",
    "75 % sparse int8": "sparse75-int8",
    "90 % sparse int8": Representation((Sparsify(0.9), _INT8)),
    "90 % sparse CSR": "sparse90-csr",
    "50 % of 16x16 blocks": "blocks50",
    "k-means 8 x 256, 1 bit": "kmeans1",
    "k-means 2 x 256, 4 bits": "kmeans4",
    "AQLM 2 x 8 bits": "aqlm-2x8",
    "E8P, 2 bits": "quip-sharp2",
    "E8P twice, 4 bits": "quip-sharp4",
    "HIGGS, 2 bits": "higgs2",
    "HIGGS, 3 bits": "higgs3",
    "HIGGS, 4 bits": "higgs4",
    "k-means 8 x 65536, 2 bits": Representation((Codebook(8, nbits_per_codebook=16),)),
    "QTIP, 2 bits, 16 of state": "qtip2-l16",
    "QTIP, 2 bits, 12 of state": "qtip2",
    "QTIP, 4 bits, 16 of state": "qtip4-l16",
    "QTIP table, 2 bits, 12 of state": Representation((Trellis(2, state_bits=12, code="table"),)),
    "QTIP 1MAD, 2 bits": Representation((Trellis(2, code="1mad"),)),
    "QTIP 3INST, 2 bits": Representation((Trellis(2, code="3inst"),)),
}


def cases(quick: bool) -> Iterator[Case]:
    """Every format by few and by many rows."""
    names = ("2:4", "k-means 8 x 256, 1 bit") if quick else tuple(FORMATS)
    dense = DenseProducts(torch.randn(SHAPE).bfloat16(), quick=False)
    for name in names:
        yield from _format_cases(name, FORMATS[name], dense)


def _format_cases(name: str, chain: Representation | str, dense: DenseProducts) -> Iterator[Case]:
    weights = shipped_weights(chain) if isinstance(chain, str) else chain
    assert weights is not None
    call = Call("linear", weights.core, SHAPE, torch.bfloat16, "cpu")
    first = _stored(call)
    count = copies(sum(tensor.nbytes for tensor in first.values()), quick=False)
    stored = [{key: tensor.clone() for key, tensor in first.items()} for _ in range(count)]
    exact = call.representation.restore(call.representation.unpack(first, SHAPE, torch.bfloat16)).double()
    kernels = [kernel for kernel in KERNELS if kernel.operation == "linear" and kernel.refuse(call) is None]
    for rows in ROWS:
        x = torch.randn(rows, SHAPE[1]).bfloat16()
        methods: dict[str, Method] = {f"dense, {dense.way(x)}": dense.method(x)}
        errors = {}
        for kernel in kernels:
            if kernel.name == "decode_linear" and rows > _SLOW:
                continue
            fields = [kernel.prepare(call, each) for each in stored]
            methods[kernel.name] = _kernel(kernel, call, x, fields)
            result, answer = kernel.run(call, x, fields[0], None), x.double() @ exact.T
            errors[kernel.name] = float((result.double() - answer).norm() / answer.norm())
        yield Case(f"{name}, {rows} rows", methods, errors)


def _stored(call: Call) -> dict[str, Tensor]:
    """Stored fields of a weight: pruned where it is sparse, and random bits elsewhere."""
    if isinstance(call.representation.stages[0], Sparsify):
        return call.representation.pack(call.representation.encode(torch.randn(SHAPE).bfloat16()))
    found = {}
    for name, field in call.representation.layout(SHAPE, torch.bfloat16).items():
        if field.dtype.is_floating_point:
            found[name] = torch.rand(field.stored_shape).to(field.dtype)
        else:
            found[name] = torch.randint(0, 256, field.stored_shape, dtype=torch.uint8)
    return found


def _kernel(kernel: Kernel, call: Call, x: Tensor, fields: list[Mapping[str, Tensor]]) -> Method:
    return lambda turn: kernel.run(call, x, fields[turn % len(fields)], None)
