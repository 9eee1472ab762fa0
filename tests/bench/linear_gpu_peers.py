"""Products on 4- and 8-bit weights by other libraries on CUDA, where they are installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import torch
from timing import Method
from torch import Tensor, nn

Made = tuple[str, Callable[[Tensor], Method], int]
_GROUP = 128


def peer_methods(dense: Tensor, most: int) -> Iterator[Made]:
    """A name, what makes a method for an input, and the bytes of the weight; weights are copied until cold."""
    makers = {"gemlite": _gemlite, "torchao": _torchao}
    for library, make in makers.items():
        if find_spec(library) is None:
            continue
        for bits in (4, 8):
            nbytes = dense.numel() * bits // 8
            copies = most * 16 // bits
            yield f"{library} int{bits}", lambda x, m=make, b=bits, c=copies: m(dense, b, c, x), nbytes


def _turning(layers: list[nn.Module], x: Tensor) -> Method:
    return lambda call: layers[call % len(layers)](x)


def _gemlite(dense: Tensor, bits: int, copies: int, x: Tensor) -> Method:
    from gemlite.core import DType, GemLiteLinear

    columns, size = dense.shape
    layers = []
    for _ in range(copies):
        layer = GemLiteLinear(bits, _GROUP, size, columns, input_dtype=DType.BF16, output_dtype=DType.BF16)
        codes = torch.randint(1 << bits, (columns, size), dtype=torch.uint8, device=dense.device)
        scales, zeros = (
            torch.rand(columns, size // _GROUP, device=dense.device).to(dense.dtype) + shift
            for shift in (0.5, 7.5)
        )
        layer.pack(codes, scales, zeros, None)
        layers.append(layer)
    return _turning(layers, x)


def _torchao(dense: Tensor, bits: int, copies: int, x: Tensor) -> Method:
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    columns, size = dense.shape
    layers = []
    for _ in range(copies):
        layer = nn.Linear(size, columns, bias=False, device=dense.device, dtype=dense.dtype)
        quantize_(layer, Int4WeightOnlyConfig(group_size=_GROUP) if bits == 4 else Int8WeightOnlyConfig())
        layers.append(layer)
    return _turning(layers, x)
