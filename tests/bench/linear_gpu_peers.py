"""Products on 4- and 8-bit weights by other libraries on CUDA, where they are installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

Make = Callable[[Tensor, int], Sequence[nn.Module]]
"""A dense weight and a number of copies to as many layers."""
_GROUP = 128


def _gemlite(bits: int, dense: Tensor, copies: int) -> list[nn.Module]:
    """Symmetric weights: int4 in groups, int8 by rows; on an H200 by the sizes that it has for an H100."""
    import gemlite
    from gemlite.core import DType, GemLiteLinear

    if "H200" in torch.cuda.get_device_name():
        GemLiteLinear.load_config(str(Path(gemlite.__file__).parent / "configs" / "h100.json"))
    columns, size = dense.shape
    group = _GROUP if bits == 4 else size
    kind = torch.uint8 if bits == 4 else torch.int8
    layers = []
    for _ in range(copies):
        layer = GemLiteLinear(bits, group, size, columns, input_dtype=DType.BF16, output_dtype=DType.BF16)
        codes = torch.randint(16 if bits == 4 else 128, dense.shape, dtype=kind, device=dense.device)
        scales = torch.rand(columns, size // group, device=dense.device).to(dense.dtype) + 0.5
        layer.pack(codes, scales, 8 if bits == 4 else None, None)
        layers.append(layer)
    return layers


def _torchao(bits: int, dense: Tensor, copies: int) -> list[nn.Module]:
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    columns, size = dense.shape
    int4 = Int4WeightOnlyConfig(group_size=_GROUP, int4_packing_format="tile_packed_to_4d")
    layers: list[nn.Module] = []
    for _ in range(copies):
        layer = nn.Linear(size, columns, bias=False, device=dense.device, dtype=dense.dtype)
        quantize_(layer, int4 if bits == 4 else Int8WeightOnlyConfig())
        layers.append(layer)
    return layers


PEERS: Mapping[str, tuple[Make, int]] = {
    f"{library} int{bits}": (partial(make, bits), bits)
    for library, make in (("gemlite", _gemlite), ("torchao", _torchao))
    if find_spec(library) is not None
    for bits in (4, 8)
}
"""By name: what makes layers, and bits of a weight."""
