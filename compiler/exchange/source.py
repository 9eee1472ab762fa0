"""What is exported: a packed model's weights and everything beside them, with the names of its state_dict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ...runtime.checkpoint import centred_norms, distinct_tensors
from ...runtime.errors import RequestError
from ...runtime.packed import Packed, packed_weights
from ..spec import Spec
from .untold import refuse_centred


@dataclass(frozen=True)
class Source:
    """A packed model taken apart.

    `weights`: packed weights by every path that they have. `tensors`: all other tensors by name, one that is
    tied once, its other names in `aliases`. `config`: config.json of the architecture, empty where it has
    none. `layers`: the class of the module that holds each weight, and `linears` all linear layers; empty
    where no architecture is known.
    """

    weights: Mapping[str, Packed]
    tensors: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    spec: Spec
    config: Mapping[str, Any]
    layers: Mapping[str, type[nn.Module]]
    linears: frozenset[str]

    @property
    def tied(self) -> bool:
        """Whether a packed weight has several paths."""
        return len({id(packed) for packed in self.weights.values()}) < len(self.weights)

    def dense(self) -> dict[str, Tensor]:
        """Tensors that are no packed weight's; tied ones once for transformers, which ties them again, and
        under each name for others."""
        tied = {} if self.config else {name: self.tensors[first] for name, first in self.aliases.items()}
        return {**self.tensors, **tied}


def source_of(packed: nn.Module, spec: Spec, architecture: nn.Module | None = None) -> Source:
    """A packed model and its spec; `architecture`: the model that was packed, where `packed` is a skeleton.

    Raises RequestError when the architecture has no such modules, or the model computes with its tensors what
    no other program does.
    """
    refuse_centred(centred_norms(packed))
    modules = dict(packed.named_modules(remove_duplicate=False))
    weights = {path: module for path, module in modules.items() if isinstance(module, Packed)}
    first = packed_weights(packed)
    under = tuple(f"{path}." for path in weights)
    tensors, tied = distinct_tensors(packed)
    beside = {name: tensor for name, tensor in tensors.items() if not (under and name.startswith(under))}
    aliases = {name: first for name, first in tied.items() if first in beside}
    weights = {path: weights[path] for path in (*first, *(path for path in weights if path not in first))}
    model = packed if architecture is None else architecture
    if type(model) is nn.Module:  # a skeleton alone
        return Source(weights, beside, aliases, spec, {}, {}, frozenset())
    owners = dict(model.named_modules(remove_duplicate=False))
    holders = {path: path.rpartition(".")[0] for path in weights}
    for path, holder in holders.items():
        there = getattr(owners.get(holder), path.rpartition(".")[2], None)
        if there is None or tuple(there.shape) != tuple(weights[path].shape):
            found = "none" if there is None else f"one of shape {list(there.shape)}"
            raise RequestError(
                f"a weight of shape {list(weights[path].shape)} was packed, and the model has {found}",
                where=path,
                advice="give the model that was packed",
            )
    layers = {path: type(owners[holder]) for path, holder in holders.items()}
    linears = frozenset(path for path, module in owners.items() if isinstance(module, nn.Linear))
    return Source(weights, beside, aliases, spec, config_of(model), layers, linears)


def config_of(model: nn.Module) -> dict[str, Any]:
    """What transformers would write to config.json for a model of it; empty for other models."""
    config = getattr(model, "config", None)
    if config is None or not hasattr(config, "to_json_string"):
        return {}
    document: dict[str, Any] = json.loads(config.to_json_string())
    document.pop("quantization_config", None)
    document["architectures"] = [type(model).__name__]
    floats = [tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()]
    if not document.get("dtype") and not document.get("torch_dtype") and floats:
        document["torch_dtype"] = str(floats[0]).removeprefix("torch.")
    return document
