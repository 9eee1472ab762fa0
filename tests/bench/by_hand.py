"""A compressed model written by hand: decoded weights in the user's own model, and inputs projected where a
call of torch's multiplies with one of them.

Nothing here asks the package what an operation is: calls are known by their names, weights by their memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from rhoc.compiler.decide import Decision
from rhoc.runtime.representation import Representation

_CALLS: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight"),
    **dict.fromkeys((f"conv{rank}d" for rank in (1, 2, 3)), ("input", "weight")),
    **dict.fromkeys((f"conv_transpose{rank}d" for rank in (1, 2, 3)), ("input", "weight")),
    **dict.fromkeys(("_grouped_mm", "grouped_mm"), ("input", "weight")),
    "bilinear": ("input1", "input", "weight"),
    "addmm": ("_", "input", "weight"),
    "baddbmm": ("_", "input", "weight"),
}
"""Calls that multiply with a weight, by name, and where their operands are."""
_PRODUCTS = {"matmul", "__matmul__", "mm", "bmm"}
"""Calls whose weight may stand on either side."""
_COPIES = {"to", "float", "double", "type_as", "contiguous", "clone", "reshape", "__getitem__"} | {
    "index_select",
    "_weight_norm",
    "batch_norm",
    "reshape_as",
}
"""Calls that give the numbers of their first argument in other memory, or a weight computed from it."""
_QUERIES = {"__get__", "size", "dim", "numel", "is_contiguous", "is_floating_point", "data_ptr"} | {
    "requires_grad_",
    "detach",
}


def with_decoded_weights(model: nn.Module, decisions: Sequence[Decision]) -> dict[str, Tensor]:
    """Write what each represented weight decodes to into the model; those weights, by path."""
    written = {}
    with torch.no_grad():
        for decision in decisions:
            if decision.assignment.weight.is_dense:
                continue
            owner, _, name = decision.held.path.rpartition(".")
            module = model.get_submodule(owner)
            if decision.held.computed_from:
                parametrize.remove_parametrizations(module, name)
            value = getattr(module, name)
            value.copy_(decoded(decision, value))
            written[decision.held.path] = value
    return written


def decoded(decision: Decision, value: Tensor) -> Tensor:
    """What a weight decodes to."""
    assignment = decision.assignment
    matrix = assignment.weight.project(assignment.arrangement.matrix(value))
    return assignment.arrangement.restore(matrix, tuple(value.shape)).clone()


class InputsByHand(TorchFunctionMode):
    """Projects what is multiplied with one of `weights`, in every call made inside.

    `reached` are the paths of weights whose inputs were projected, `others` by path the names of calls on a
    weight, or on a view of it, that have no input or are not known here.
    """

    def __init__(self, weights: Mapping[str, Tensor], representation: Representation) -> None:
        super().__init__()
        self.representation = representation
        self.reached: set[str] = set()
        self.others: dict[str, set[str]] = {path: set() for path in weights}
        self._known = {_memory(weight): (path, weight) for path, weight in weights.items()}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given, named = list(args), dict(kwargs or {})
        name = func.__name__
        if name == "multi_head_attention_forward":
            return self._attention(*given, **named)
        found = {path for item in _flat(*given, *named.values()) if (path := self._path(item)) is not None}
        if not found:
            return func(*given, **named)
        if not self._project(name, given, named) and name not in _QUERIES:
            for path in found:
                self.others[path].add(name)
        result = func(*given, **named)
        if name in _COPIES and isinstance(result, Tensor) and self._path(given[0]) is not None:
            self._known[_memory(result)] = (self._path(given[0]) or "", result)
        return result

    def _path(self, value: Any) -> str | None:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return None
        found = self._known.get(_memory(value))
        return None if found is None else found[0]

    def _project(self, name: str, given: list[Any], named: dict[str, Any]) -> bool:
        """Project the input of a product with one of the weights, in place; whether it is one."""
        if name in _CALLS:
            operands = _CALLS[name]
            _make_positional(operands, given, named)
            weight = operands.index("weight")
            dimension = 1 - given[weight].dim() if name.startswith("conv") else -1
            return self._at(given, weight, operands.index("input"), dimension)
        if name in _PRODUCTS:
            return self._at(given, 1, 0, -1) or self._at(given, 0, 1, -2)
        if name == "einsum":
            return any(self._at(given, w, 3 - w, _summed(given[0], 3 - w)) for w in (1, 2))
        return False

    def _at(self, given: list[Any], weight: int, input: int, dimension: int) -> bool:
        """Project argument `input` along a dimension if argument `weight` is one of the weights."""
        path = self._path(given[weight])
        if path is not None:
            given[input] = self._projected(given[input], dimension, path)
        return path is not None

    def _projected(self, x: Tensor, dimension: int, path: str) -> Tensor:
        self.reached.add(path)
        return self.representation.project(x.movedim(dimension, -1)).movedim(-1, dimension)

    def _attention(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        """Attention as textbooks have it, [length, batch, width], in eval()."""
        call = _ATTENTION.bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        if given["bias_k"] is not None or given["query"].dim() != 3:
            # Out of what this oracle knows: an error, for a check left out would look like one that passed.
            raise ValueError("the oracle knows attention without added keys, [length, batch, width]")
        separate, bias = given["use_separate_proj_weight"], given["in_proj_bias"]
        matrices = (
            [given[f"{n}_proj_weight"] for n in "qkv"] if separate else given["in_proj_weight"].chunk(3)
        )
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        read = zip((given["query"], given["key"], given["value"]), matrices, biases, strict=True)
        heads = (given["num_heads"], -1)
        with self:  # the calls below are looked at
            q, k, v = (F.linear(x, w, b).unflatten(-1, heads).permute(1, 2, 0, 3) for x, w, b in read)
            scores = q @ k.mT / q.shape[-1] ** 0.5
            scores = (scores + _mask(given, scores)).softmax(-1)
            mixed = (scores @ v).permute(2, 0, 1, 3).flatten(2)
            result = F.linear(mixed, given["out_proj_weight"], given["out_proj_bias"])
            return result, scores.mean(1) if given["need_weights"] else None


_ATTENTION = inspect.signature(F.multi_head_attention_forward)


def _mask(given: Mapping[str, Any], scores: Tensor) -> Tensor:
    """What masks add to scores [batch, heads, length, others]."""
    total = torch.zeros_like(scores)
    for name in ("attn_mask", "key_padding_mask"):
        mask = given[name]
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(mask, -torch.inf)
        if name == "key_padding_mask":
            mask = mask[:, None, None]
        total = total + (mask.view_as(scores) if mask.numel() == scores.numel() else mask)
    return total


def _make_positional(names: tuple[str, ...], given: list[Any], named: dict[str, Any]) -> None:
    while len(given) < len(names) and names[len(given)] in named:
        given.append(named.pop(names[len(given)]))


def _flat(*values: Any) -> list[Any]:
    """Arguments, and those in lists."""
    return [item for value in values for item in (value if isinstance(value, list | tuple) else [value])]


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _summed(equation: str, operand: int) -> int:
    """The last dimension of an operand, from the end, that a product sums over."""
    terms, result = equation.replace(" ", "").split("->")
    letters = terms.split(",")[operand - 1]
    return next(-1 - i for i, letter in enumerate(reversed(letters)) if letter not in result)
