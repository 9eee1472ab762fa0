"""torch's multi-head attention with represented inputs and outputs of its projections.

`F.multi_head_attention_forward` is one call that multiplies with up to five weights, and lets nobody see what
it multiplies the last of them with. Run with an identity in its place, it gives just that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .operations import LINEAR
from .slots import Slots

_PARAMETERS = inspect.signature(F.multi_head_attention_forward).parameters
_NAMES = tuple(_PARAMETERS)  # plain ones: torch.compile traces no signature that is bound and written to
_DEFAULTS = {name: p.default for name, p in _PARAMETERS.items() if p.default is not inspect.Parameter.empty}
_READ_BY = {
    "in_proj_weight": ("query", "key", "value"),
    "q_proj_weight": ("query",),
    "k_proj_weight": ("key",),
    "v_proj_weight": ("value",),
}
NOT_REACHED = "nn.MultiheadAttention projects and attends in one call"
"""Why outputs and output gradients of its input projections are not represented."""


def attention(
    args: Any, kwargs: Any, slots_of: Callable[[Any], Slots], plain: Callable[[Any], Any]
) -> tuple[Tensor, Tensor | None]:
    """`F.multi_head_attention_forward(*args, **kwargs)` with what `slots_of` says of each weight.

    `plain` turns a weight into the tensor to multiply with. Slots of the input projection beyond its inputs
    cannot be filled (`NOT_REACHED`).
    """
    given = {**_DEFAULTS, **dict(zip(_NAMES, args, strict=False)), **kwargs}
    slots = {name: slots_of(given[name]) for name in (*_READ_BY, "out_proj_weight")}
    given = {name: plain(value) for name, value in given.items()}
    for weight, read in _READ_BY.items():
        made: dict[int, Tensor] = {}  # what is the same tensor stays the same
        for name in read if not slots[weight].input.is_dense else ():
            x = given[name]
            if id(x) not in made:
                made[id(x)] = slots[weight].projected_input(x, -1)
            given[name] = made[id(x)]
    last = slots["out_proj_weight"]
    weight, bias = given["out_proj_weight"], given["out_proj_bias"]
    if last.is_dense:
        return F.multi_head_attention_forward(**given)
    given["out_proj_weight"] = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
    given["out_proj_bias"] = None
    mixed, scores = F.multi_head_attention_forward(**given)
    operands = (mixed, weight) if bias is None else (mixed, weight, bias)
    return last.run(F.linear, LINEAR, operands, {}, 2), scores
