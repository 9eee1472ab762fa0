"""Parameters that Python code reads as attributes of a module that is in no graph, and what it does with
them.

Some modules say by their class what they do with a parameter; of others it is seen when they run on example
inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..runtime.arrangement import PLAIN, Arrangement
from ..runtime.operations import CONV, CONV_TRANSPOSE, Operation
from ..runtime.structure import undisturbed
from .observe import Observed

RECURRENT = "recurrent"
_NORMALISED = "weight_v"  # torch.nn.utils.weight_norm keeps the direction of a weight under this name
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_OPERATIONS = (
    "linear",
    "conv",
    "conv_transpose",
    "matmul",
    "grouped_matmul",
    "einsum",
    "bilinear",
    RECURRENT,
    "embedding",
    "embedding_bag",
)
"""Names of operations on a weight; where one parameter has several, the first counts."""


@dataclass(frozen=True)
class Read:
    """A parameter read as an attribute: the operation that its reader does, and as which matrix."""

    parameter: nn.Parameter
    operation: str
    arrangement: Arrangement


def first_operation(names: Mapping[str, Arrangement]) -> str | None:
    """The operation that counts among those on one parameter."""
    return next((name for name in _OPERATIONS if name in names), None)


def read_of(module: nn.Module, name: str, seen: Mapping[int, Observed]) -> Read | None:
    """What is done with a parameter of a module that runs as Python, or None when nothing shows it."""
    parameter = module._parameters[name]
    assert parameter is not None
    known = _by_class(module, name, parameter)
    if known is not None:
        return Read(parameter, *known)
    observed = seen.get(id(parameter))
    operation = first_operation(observed.operations) if observed is not None else None
    if observed is None or operation is None:
        return None
    return Read(parameter, operation, observed.operations[operation])


def _by_class(module: nn.Module, name: str, parameter: nn.Parameter) -> tuple[str, Arrangement] | None:
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) and name.startswith("weight_"):
        return (RECURRENT, PLAIN) if not name.endswith("_g") else None  # norms, of torch.nn.utils.weight_norm
    if isinstance(module, nn.MultiheadAttention) and name.endswith("proj_weight"):
        return "linear", PLAIN
    return by_module(module, tuple(parameter.shape)) if name in ("weight", _NORMALISED) else None


def by_module(module: nn.Module, shape: tuple[int, ...]) -> tuple[str, Arrangement] | None:
    """What a module of one of torch's classes does with its weight."""
    if isinstance(module, nn.Linear | nn.Bilinear):
        return ("linear" if isinstance(module, nn.Linear) else "bilinear"), PLAIN
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is None:
        return ("embedding" if isinstance(module, nn.Embedding) else "embedding_bag"), PLAIN
    if isinstance(module, _CONVOLUTIONS):
        return _named(CONV, shape, 1)
    if isinstance(module, _TRANSPOSED):
        return _named(CONV_TRANSPOSE, shape, module.groups)
    return None


def _named(operation: Operation, shape: tuple[int, ...], groups: int) -> tuple[str, Arrangement]:
    return operation.name, operation.arrange(shape, (None, None, None, 1, 0, 0, groups))


@dataclass(frozen=True)
class Computed:
    """A weight that parametrizations compute: the module at `owner` reads it as `name`. `latent` are the
    paths of the parameters that it is computed from, `value` is what it is now."""

    owner: str
    name: str
    latent: tuple[str, ...]
    value: nn.Parameter
    operation: str | None
    arrangement: Arrangement

    @property
    def path(self) -> str:
        """Where its module has it."""
        return f"{self.owner}.{self.name}" if self.owner else self.name


def computed_weights(module: nn.Module, path: str) -> list[Computed]:
    """The weights of a module that parametrizations compute."""
    found = []
    for name in module.parametrizations if is_parametrized(module) else ():  # type: ignore[union-attr]
        prefix = f"{path}.parametrizations.{name}." if path else f"parametrizations.{name}."
        latent = module.parametrizations[name].named_parameters()  # type: ignore[index, union-attr]
        with torch.no_grad(), undisturbed(module):  # spectral norms iterate in train()
            value = nn.Parameter(getattr(module, name).detach())
        by_class = _by_class(module, name, value)
        paths = tuple(prefix + inner for inner, _ in latent)
        found.append(Computed(path, name, paths, value, *(by_class or (None, PLAIN))))
    return found
