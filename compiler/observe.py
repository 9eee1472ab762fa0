"""Which operations read a model's parameters, seen while it runs on example inputs.

A module that no graph can be made of still runs. While it does, every function that is called with a
parameter or a view of one is looked at: that is enough to know what the parameter is summed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..runtime.arrangement import PLAIN, Arrangement, summed_over
from ..runtime.operations import Operation, operation_on
from ..runtime.structure import undisturbed
from ..runtime.views import Dimensions, follow, is_view, own_dimensions
from .example import Example


@dataclass
class Observed:
    """What was seen of one parameter: operations on it as a weight, and the names of other functions."""

    operations: dict[str, Arrangement] = field(default_factory=dict)
    others: set[str] = field(default_factory=set)


def observe(model: nn.Module, example: Example) -> dict[int, Observed]:
    """By identity of each parameter, what reads it when the model runs on the example in eval()."""
    watching = _Watching({id(parameter): parameter for parameter in model.parameters()})
    with torch.no_grad(), undisturbed(model), watching:
        example.run(model)
    return watching.seen


_QUERIES = {
    "__get__",
    "size",
    "dim",
    "numel",
    "stride",
    "is_contiguous",
    "data_ptr",
    "is_floating_point",
    "element_size",
}


class _Watching(TorchFunctionMode):
    """Notes every call on a parameter or a view of one. Views are held, so that identities stay theirs."""

    def __init__(self, parameters: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.seen: dict[int, Observed] = {key: Observed() for key in parameters}
        self.views: dict[int, tuple[Tensor, int, Dimensions, Tensor]] = {
            key: (p, key, own_dimensions(p.dim()), p) for key, p in parameters.items()
        }

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(id(a) in self.views for a in _tensors((args, kwargs or {}))):
            self._note(func, args, kwargs or {}, result)
        return result

    def _note(self, func: Any, args: Any, kwargs: dict[str, Any], result: Any) -> None:
        operation = operation_on(func, args, kwargs, lambda a: id(a) in self.views)
        noted: set[int] = set()
        if operation is not None:
            given, _ = operation.positional(args, kwargs)
            weight = given[operation.weight]
            _, key, dims, parameter = self.views[id(weight)]
            arrangement = _arrangement(operation, given, weight, dims, parameter)
            self.seen[key].operations.setdefault(operation.name, arrangement)
            noted.add(key)
        elif is_view(func) and args and id(args[0]) in self.views:
            _, key, dims, parameter = self.views[id(args[0])]
            after = follow(func, args, kwargs, dims, result)
            for view in _tensors(result) if after is not None else ():
                if after is not None and view.dim() == len(after):
                    self.views.setdefault(id(view), (view, key, after, parameter))
            noted |= {key} if after is not None else set()
        name = getattr(func, "__name__", str(func))
        for tensor in _tensors((args, kwargs)) if name not in _QUERIES else ():
            if id(tensor) in self.views and (key := self.views[id(tensor)][1]) not in noted:
                self.seen[key].others.add(name)


def _arrangement(
    operation: Operation, given: list[Any], weight: Tensor, dims: Dimensions, parameter: Tensor
) -> Arrangement:
    """How the parameter itself is read, when the operation reads a view of it."""
    own = operation.arrange(tuple(weight.shape), given)
    if dims == own_dimensions(parameter.dim()):
        return own
    order = own.order or tuple(range(weight.dim()))
    cut = len(order) - own.columns
    rows, inner = ({d: None for i in part for d in dims[i]} for part in (order[:cut], order[cut:]))
    if own.view or not inner or not rows.keys().isdisjoint(inner):  # of one dimension a part is summed over
        return PLAIN
    return summed_over(parameter.dim(), tuple(inner))


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []
