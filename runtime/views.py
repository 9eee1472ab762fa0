"""Which functions only look at a tensor in another way, and what becomes of its dimensions.

An operation may read a weight through several views (`experts[i].T`). Followed view by view, it is still
known which dimensions of the weight it sums over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Dimensions = tuple[tuple[int, ...], ...]
"""For each dimension of a view, the dimensions of the weight that it runs along: none for a new one, several
where a reshape merged them. One that a reshape split stands more than once."""


def own_dimensions(rank: int) -> Dimensions:
    """Those of the weight itself."""
    return tuple((d,) for d in range(rank))


_SAME = {
    *(Tensor.to, Tensor.float, Tensor.half, Tensor.bfloat16, Tensor.double, Tensor.type, Tensor.type_as),
    *(Tensor.contiguous, Tensor.clone, Tensor.detach, Tensor.cpu, Tensor.cuda, Tensor.requires_grad_),
    *(torch.clone, torch.detach, F.dropout, F.batch_norm, Tensor.data.__get__),  # type: ignore[attr-defined]
    *(Tensor.narrow, torch.narrow, Tensor.index_select, torch.index_select),
    *(Tensor.chunk, torch.chunk, Tensor.split, torch.split, torch.tensor_split, Tensor.tensor_split),
}


Rule = Callable[[Dimensions, list[Any], dict[str, Any], Any], "Dimensions | None"]


def _index(before: Dimensions, args: list[Any], kwargs: dict[str, Any], result: Any) -> Dimensions | None:
    index = args[0] if isinstance(args[0], tuple) else (args[0],)
    named = [i for i in index if i is not None and i is not Ellipsis]
    dims = list(before)
    after: list[tuple[int, ...]] = []
    for item in index:
        if item is None:
            after.append(())
        elif item is Ellipsis:
            count = len(before) - len(named)
            after += [dims.pop(0) for _ in range(count)]
        elif isinstance(item, slice):
            after.append(dims.pop(0))
        elif isinstance(item, Tensor) and item.dim() > 0:
            if item.dim() > 1 or item.dtype == torch.bool:
                return None
            after.append(dims.pop(0))
        else:
            dims.pop(0)
    return (*after, *dims)


def _swap(before: Dimensions, args: list[Any], kwargs: dict[str, Any], result: Any) -> Dimensions | None:
    first, second = (*args, *kwargs.values())[:2]
    dims = list(before)
    dims[first], dims[second] = dims[second], dims[first]
    return tuple(dims)


def _reverse(before: Dimensions, args: list[Any], kwargs: dict[str, Any], result: Any) -> Dimensions | None:
    return before[::-1]


def _swap_last(before: Dimensions, args: list[Any], kwargs: dict[str, Any], result: Any) -> Dimensions | None:
    return (*before[:-2], before[-1], before[-2])


def _permute(before: Dimensions, args: list[Any], kwargs: dict[str, Any], result: Any) -> Dimensions | None:
    given = (*args, *kwargs.values())
    order = given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given
    return tuple(before[i] for i in order)


def _unsqueeze(before: Dimensions, args: list[Any], kwargs: dict[str, Any], result: Any) -> Dimensions | None:
    dimension = int((*args, *kwargs.values())[0])
    place = dimension if dimension >= 0 else len(before) + 1 + dimension
    return (*before[:place], (), *before[place:])


def _select(before: Dimensions, args: list[Any], kwargs: dict[str, Any], result: Any) -> Dimensions | None:
    dimension = int((*args, *kwargs.values())[0]) % len(before)
    return (*before[:dimension], *before[dimension + 1 :])


def _unbind(before: Dimensions, args: list[Any], kwargs: dict[str, Any], result: Any) -> Dimensions | None:
    return _select(before, args or [kwargs.get("dim", 0)], {}, result)


_RULES: dict[Any, Rule] = {
    Tensor.__getitem__: _index,
    **dict.fromkeys((Tensor.transpose, torch.transpose, Tensor.swapaxes, torch.swapaxes), _swap),
    **dict.fromkeys((Tensor.T.__get__, Tensor.t, torch.t), _reverse),  # type: ignore[attr-defined]
    Tensor.mT.__get__: _swap_last,  # type: ignore[attr-defined]
    **dict.fromkeys((Tensor.permute, torch.permute), _permute),
    **dict.fromkeys((Tensor.unsqueeze, torch.unsqueeze), _unsqueeze),
    **dict.fromkeys((Tensor.select, torch.select), _select),
    **dict.fromkeys((Tensor.unbind, torch.unbind), _unbind),
}


def reshaped(before: Dimensions, sizes: Sequence[int], after: Sequence[int]) -> Dimensions:
    """The dimensions after a reshape from `sizes` to `after`: equal products belong together."""
    made: list[tuple[int, ...]] = []
    taken, count = 0, 0  # dimensions before and after that are dealt with
    while count < len(after):
        if after[count] == 1:
            made.append(())
            count += 1
            continue
        first, begun = taken, count
        taken, count = taken + 1, count + 1
        while (left := prod(sizes[first:taken])) != (right := prod(after[begun:count])):
            taken, count = taken + (left < right), count + (right < left)
        group = tuple(d for i in range(first, taken) if sizes[i] > 1 for d in before[i])
        made += [group] * (count - begun)
    return tuple(made)


RESHAPES = {
    Tensor.view,
    Tensor.view_as,
    Tensor.reshape,
    Tensor.reshape_as,
    torch.reshape,
    Tensor.squeeze,
    torch.squeeze,
    Tensor.flatten,
    torch.flatten,
    Tensor.unflatten,
    torch.unflatten,
}


def is_view(function: Callable[..., Any]) -> bool:
    """Whether a function may hand on a view of its first argument."""
    return function in _SAME or function in _RULES or function in RESHAPES


def follow(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    before: Dimensions,
    result: Any,
) -> Dimensions | None:
    """The dimensions of what `function` made of a view with dimensions `before`; None when it is no view.

    For several results (`chunk`) all have the same dimensions.
    """
    if function in RESHAPES:
        source = args[0]
        same = isinstance(result, Tensor) and result.dtype == source.dtype and source.numel() > 0
        return reshaped(before, source.shape, result.shape) if same else None
    if function in _SAME:
        return before
    rule = _RULES.get(function)
    return rule(before, list(args[1:]), dict(kwargs), result) if rule is not None else None
