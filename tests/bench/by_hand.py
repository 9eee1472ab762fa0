"""A compressed model written by hand: decoded weights in the user's own model, and inputs projected where a
call of torch's multiplies with one of them.

Nothing here asks the package what an operation is: calls are known by their names, weights by their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from rhoc.compiler.decide import Decision
from rhoc.runtime.representation import Representation

_LAST = {"linear": 1, "_grouped_mm": 1, "grouped_mm": 1, "bilinear": 2, "addmm": 2, "baddbmm": 2}
"""By name of a call, where its weight is. It sums over the last dimension of the tensor before (of a
bilinear one: of the first)."""
_CHANNELS = {f"{name}{rank}d" for name in ("conv", "conv_transpose") for rank in (1, 2, 3)}
"""Calls that sum over the channels, which come before as many dimensions as the kernel has."""
_PRODUCTS = {"matmul", "__matmul__", "mm", "bmm"}
"""Calls whose weight may stand on either side."""
_COPIES = {"to", "float", "double", "type_as", "contiguous", "clone", "reshape", "__getitem__"} | {
    "index_select",
    "_weight_norm",
}
"""Calls that may give the numbers of their first argument in other memory."""
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
        found = [_path for item in (*given, *named.values()) if (_path := self._path(item)) is not None]
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
        """Project the input of a product with one of the weights; whether it is one."""
        if name in _LAST:
            keys = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2")}.get(
                name, ("input", "weight") if name == "linear" else ("", "")
            )
            weight = _LAST[name]
            return self._at(given, named, weight, 0 if name == "bilinear" else weight - 1, -1, keys)
        if name in _CHANNELS:
            kernel = given[1] if len(given) > 1 else named["weight"]
            return self._at(given, named, 1, 0, 1 - kernel.dim(), ("input", "weight"))
        if name in _PRODUCTS:
            return self._at(given, named, 1, 0, -1) or self._at(given, named, 0, 1, -2)
        if name == "einsum":
            return any(self._at(given, named, w, 3 - w, _summed(given[0], 3 - w)) for w in (1, 2))
        return False

    def _at(
        self,
        given: list[Any],
        named: dict[str, Any],
        weight: int,
        input: int,
        dimension: int,
        keys: tuple[str, str] = ("", ""),
    ) -> bool:
        """Project argument `input` along a dimension if argument `weight` is one of the weights."""
        w = given[weight] if len(given) > weight else named.get(keys[1])
        path = self._path(w)
        if path is None:
            return False
        holder: Any = given if len(given) > input else named
        place = input if len(given) > input else keys[0]
        holder[place] = self._projected(holder[place], dimension, path)
        return True

    def _projected(self, x: Tensor, dimension: int, path: str) -> Tensor:
        self.reached.add(path)
        return self.representation.project(x.movedim(dimension, -1)).movedim(-1, dimension)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        width: int,
        heads: int,
        merged: Tensor | None,
        bias: Tensor | None,
        bias_k: None,
        bias_v: None,
        add_zero_attn: bool,
        dropout: float,
        last: Tensor,
        last_bias: Tensor | None,
        need_weights: bool = True,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        use_separate_proj_weight: bool = False,
        q_proj_weight: Tensor | None = None,
        k_proj_weight: Tensor | None = None,
        v_proj_weight: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention as textbooks have it, [length, batch, width], in eval() and without masks."""
        assert bias_k is None and key_padding_mask is None and attn_mask is None  # noqa: PT018
        matrices = [q_proj_weight, k_proj_weight, v_proj_weight] if merged is None else merged.chunk(3)
        biases = [None] * 3 if bias is None else bias.chunk(3)
        with self:
            q, k, v = (
                F.linear(x, w, b).unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)
                for x, w, b in zip((query, key, value), matrices, biases, strict=True)
            )
            scores = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
            mixed = (scores @ v).permute(2, 0, 1, 3).flatten(2)
            return F.linear(mixed, last, last_bias), scores.mean(1) if need_weights else None


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _summed(equation: str, operand: int) -> int:
    """The last dimension of an operand, from the end, that a product sums over."""
    terms, result = equation.replace(" ", "").split("->")
    letters = terms.split(",")[operand - 1]
    return next(-1 - i for i, letter in enumerate(reversed(letters)) if letter not in result)
