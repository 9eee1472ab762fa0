"""Other libraries' training through quantisation, where they are installed; see `peers.py`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from peers import _quiet
from torch import nn


@dataclass(frozen=True)
class Peer:
    """What another library makes of a model that is given away: every linear layer but the head."""

    name: str
    prepare: Callable[[nn.Module], nn.Module]


def peers() -> Iterator[Peer]:
    """Those that are installed, with their versions; a line says which are not."""
    for name, make in _MAKERS.items():
        package = name.partition(" ")[0]
        try:
            with _quiet():
                prepare = make()
            yield Peer(name.replace(package, f"{package} {version(package)}", 1), prepare)
        except (ImportError, PackageNotFoundError) as error:
            print(f"  left out: {name} ({error})", flush=True)


def _is_represented(module: nn.Module, path: str) -> bool:
    return isinstance(module, nn.Linear) and not path.endswith("lm_head")


def _torchao(inputs: bool) -> Callable[[nn.Module], nn.Module]:
    """int4 in groups of 32, symmetric; int8 inputs by token with a zero point."""
    from torchao.quantization import quantize_
    from torchao.quantization.qat import IntxFakeQuantizeConfig, QATConfig

    def prepare(model: nn.Module) -> nn.Module:
        activation = IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False) if inputs else None
        weight = IntxFakeQuantizeConfig(torch.int4, group_size=32)
        config = QATConfig(activation_config=activation, weight_config=weight, step="prepare")
        quantize_(model, config, filter_fn=_is_represented)
        return model

    return prepare


def _brevitas(inputs: bool) -> Callable[[nn.Module], nn.Module]:
    """int4 by channel; int4 inputs by tensor, of a scale that is learned after one step of statistics.

    Its default is 300 steps, which sort the inputs and take longer (1.4 of dense instead of 1.2).
    """
    from brevitas.nn import QuantLinear
    from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat

    options: dict[str, Any] = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": 4}
    if inputs:
        options |= {"input_quant": Int8ActPerTensorFloat, "input_bit_width": 4}
        options["input_collect_stats_steps"] = 1

    def prepare(model: nn.Module) -> nn.Module:
        warnings.filterwarnings("ignore", module="brevitas")
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and _is_represented(module, path):
                layer = QuantLinear(module.in_features, module.out_features, bias=False, **options)
                layer.weight = module.weight
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, layer)
        return model

    return prepare


_MAKERS: dict[str, Callable[[], Callable[[nn.Module], nn.Module]]] = {
    "torchao int4-g32": lambda: _torchao(inputs=False),
    "torchao int4-g32, int8 inputs by token": lambda: _torchao(inputs=True),
    "brevitas int4 by channel": lambda: _brevitas(inputs=False),
    "brevitas W4A4": lambda: _brevitas(inputs=True),
}
