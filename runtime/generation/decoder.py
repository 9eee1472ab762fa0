"""The decoder of `runtime.llama` a few tokens at a time, over the modules that its whole forward runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RequestError
from ..llama import Attention, Llama, rotate
from ..representation import Representation
from .cache import Places, TokenCache


class Decoder:
    """A `Llama`, dense or packed, that keeps keys and values. `caches` are representations of these by the
    path of the module that attends; dense where there is none.

    Raises RequestError for another model: what a form's graph does may not be what its modules do.
    """

    def __init__(self, model: nn.Module, caches: Mapping[str, Representation] | None = None) -> None:
        if not isinstance(model, Llama):
            raise RequestError(
                f"{type(model).__name__} cannot generate here",
                advice="models of rhoc.runtime.llama do, and those of transformers",
            )
        self.model = model
        self._chosen = dict(caches or {})

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return int(self.model.embed_tokens.weight.shape[0])

    @property
    def context(self) -> int:
        """The longest sequence."""
        return len(self._blocks[0].self_attn.cosine)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._blocks[0].self_attn.cosine.device  # type: ignore[no-any-return]

    def start(self, batch: int, slots: int) -> list[TokenCache]:
        """Empty caches of all layers for so many sequences and slots."""
        found = []
        for layer, block in enumerate(self._blocks):
            attention, path = block.self_attn, f"layers.{layer}.self_attn"
            table = attention.cosine
            shape = (batch, attention.heads, slots, table.shape[1])
            try:
                found.append(
                    TokenCache(self._chosen.get(path, Representation()), shape, table.dtype, table.device)
                )
            except RequestError as error:
                raise error.at(path) from None
        return found

    def step(self, tokens: Tensor, places: Places, last: Tensor, caches: Sequence[TokenCache]) -> Tensor:
        """Logits `[B, V]` after the tokens at indices `last` `[B]` of `[B, t]`; the caches then hold all."""
        x, blocks = self.model.embed_tokens(tokens), self._blocks
        first = blocks[0].self_attn  # tables of all layers are the same
        turns = [table[places.positions][:, None] for table in (first.cosine, first.sine)]
        for block, cache in zip(blocks, caches, strict=True):
            x = x + _attend(block.self_attn, block.input_layernorm(x), turns, places, cache)
            x = x + block.mlp(block.post_attention_layernorm(x))
        x = x[torch.arange(len(x), device=x.device), last]
        return self.model.lm_head(self.model.norm(x))  # type: ignore[no-any-return]

    @property
    def _blocks(self) -> list[Any]:
        return list(self.model.layers)


def _attend(of: Attention, x: Tensor, turns: Sequence[Tensor], places: Places, cache: TokenCache) -> Tensor:
    """What `Attention.forward` gives for tokens `[B, t, C]` that follow those in the cache; `turns` are the
    cosines and sines of their positions, `[B, 1, t, D]`."""
    q, k, v = (_split(project(x), of.heads) for project in (of.q_proj, of.k_proj, of.v_proj))
    cache.append(rotate(k, *turns), v, places)
    mixed = cache.attend(rotate(q, *turns), places)
    return of.o_proj(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _split(x: Tensor, heads: int) -> Tensor:
    """[B, t, C] to [B, H, t, D]."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)
