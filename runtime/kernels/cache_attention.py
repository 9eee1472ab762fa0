"""Attention over a packed cache: blocks of it are decoded on the fly, so that the dense cache never exists.

The softmax goes along with the blocks: its maximum and its sum are corrected at each (Milakov and Gimelshein,
1805.02867, Alg. 3; with the weighted sum of values, Rabe and Staats, 2112.05682).

B sequences, H heads of the cache, G times as many of the queries, t queries a sequence, S slots, D features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Call, Kernel
from .composed import named
from .stored import StoredMatrix, stored_matrix

_BLOCK = 256  # slots that are decoded at once


class DecodeCacheAttention(Kernel):
    """softmax(q K^T / sqrt(D)) V for queries `[B, G H, t, D]`; a query sees slots up to its own position.

    Stored are `keys.<field>` and `values.<field>`, `[B, H, S, ...]` in the layout of tensors
    `[B, H, S, 1, D]`, and `positions`, the slot `[B, t]` of each query. The shape of the call is (H, D).
    Takes every representation on every device.
    """

    name: ClassVar[str] = "decode_cache_attention"
    operation: ClassVar[str] = "cache_attention"

    def refuse(self, call: Call) -> str | None:
        return None

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        keys, values = named(stored, "keys"), named(stored, "values")
        positions, slots = stored["positions"], next(iter(keys.values())).shape[2]
        if call.representation.is_dense:
            seen = torch.arange(slots, device=x.device) <= positions[:, None, :, None]
            every_key, every_value = decoded(call, keys, 0, slots), decoded(call, values, 0, slots)
            return F.scaled_dot_product_attention(x, every_key, every_value, attn_mask=seen, enable_gqa=True)
        batch, _, count, features = x.shape
        wide = torch.promote_types(x.dtype, torch.float32)
        query = x.reshape(batch, call.shape[0], -1, features).to(wide) * features**-0.5
        place = positions.repeat(1, query.shape[2] // count)[:, None, :, None]
        maximum = query.new_full((*query.shape[:3], 1), -torch.inf)
        total, mixed = torch.zeros_like(maximum), torch.zeros_like(query)
        for first in range(0, slots, _BLOCK):
            last = min(first + _BLOCK, slots)
            scores = query @ decoded(call, keys, first, last).to(wide).mT
            scores.masked_fill_(torch.arange(first, last, device=x.device) > place, -torch.inf)
            higher = torch.maximum(maximum, scores.amax(-1, keepdim=True))  # finite: slot 0 is seen by all
            shares, kept = (scores - higher).exp_(), (maximum - higher).exp_()
            total = total * kept + shares.sum(-1, keepdim=True)
            mixed = mixed * kept + shares @ decoded(call, values, first, last).to(wide)
            maximum = higher
        return (mixed / total).to(x.dtype).reshape(x.shape)


def token_matrix(call: Call) -> StoredMatrix | str:
    """How the features of tokens are stored, or why they are not scalar codes under scales of their own.

    It is the matrix of two heads and two slots, so that what these share is seen.
    """
    if call.representation.is_dense:
        return "keys and values are not coded"
    matrix = stored_matrix(call.representation, (1, 2, 2, 1, call.shape[1]))
    if isinstance(matrix, str):
        return matrix
    if matrix.pattern is not None:
        return "keys and values are sparse"
    if matrix.scale is None or matrix.scale.sharing.rows > 1 or matrix.scale.factor is not None:
        return "tokens do not have scales of their own"
    return matrix


def decoded(call: Call, stored: Mapping[str, Tensor], first: int, last: int) -> Tensor:
    """Keys or values in slots, `[B, H, last - first, D]`, as the representation of the call has them."""
    part = {name: tensor[:, :, first:last] for name, tensor in stored.items()}
    batch = next(iter(part.values())).shape[0]
    heads, features = call.shape
    shape = (batch, heads, last - first, 1, features)
    return call.representation.decode(call.representation.unpack(part, shape, call.dtype)).squeeze(-2)
