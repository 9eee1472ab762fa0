"""Models of transformers that generate by their own `generate`, with keys and values in a packed cache."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer
from transformers.cache_utils import Cache, DynamicLayer

from ..runtime.errors import RequestError
from ..runtime.generation.cache import Places, TokenCache
from ..runtime.generation.generate import Generated, check_request
from ..runtime.generation.sampling import Sampling
from ..runtime.representation import Representation
from .generation import Bytes, Form, Forms, Text, caches_of
from .spec import Spec


class PackedLayer(DynamicLayer):  # type: ignore[misc]
    """The cache of one layer, in a representation, for at most so many `slots`.

    Attention of transformers takes dense keys and values: those of one layer are decoded while it attends.
    """

    is_croppable = False

    def __init__(self, representation: Representation, slots: int) -> None:
        super().__init__()
        self.representation, self.slots, self.used = representation, slots, 0
        self.stored: TokenCache | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store what is new; everything, decoded."""
        batch, heads, count, features = key_states.shape
        if self.stored is None:
            self.lazy_initialization(key_states, value_states)
            shape = (batch, heads, self.slots, features)
            self.stored = TokenCache(self.representation, shape, key_states.dtype, key_states.device)
        positions = torch.arange(self.used, self.used + count, device=key_states.device).expand(batch, -1)
        self.used += count
        places = Places(positions, self.used)
        self.stored.append(key_states, value_states, places)
        return self.stored.dense(places)

    def get_seq_length(self) -> int:
        """Tokens that it holds."""
        return self.used


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a model."""

    of: Any
    note: str = ""

    def tokens(self, text: str) -> list[int]:
        """As the model was trained on text."""
        return [int(token) for token in self.of(text)["input_ids"]]

    def text(self, tokens: Sequence[int]) -> str:
        """Text again."""
        return str(self.of.decode(tokens))


def forms(name: str, dense: nn.Module, packed: nn.Module, spec: Spec, cache: Representation | None) -> Forms:
    """The forms of a model that was loaded from a name or a directory.

    Raises RequestError for one that does not generate, or that keeps something else than keys and values.
    """
    held: Any = dense
    attends = any(_layer(module) is not None for module in dense.modules())
    if not (held.can_generate() and attends) or held.config.is_encoder_decoder:
        raise RequestError(
            f"{type(dense).__name__} cannot generate here",
            where=f"hf:{name}",
            advice="decoders that attend do, LlamaForCausalLM for one",
        )
    caches = caches_of(dense, spec, lambda module: _layer(module) is not None, cache)
    by_layer = {_layer(dense.get_submodule(path)) or 0: chosen for path, chosen in caches.items()}
    return Forms((_form("dense", dense, {}), _form("packed", packed, by_layer)), _text(name, dense))


def _layer(module: nn.Module) -> int | None:
    """The layer whose keys and values a module caches, by transformers' convention."""
    index = getattr(module, "layer_idx", None)
    return index if isinstance(index, int) and type(module).__name__.endswith("Attention") else None


def _text(name: str, model: nn.Module) -> Text:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        if tokenizer.vocab_size:  # some are made without a file, and know no token
            return Tokenizer(tokenizer)
    except (OSError, ValueError):
        pass
    held: Any = model
    if held.config.vocab_size < 256:
        raise RequestError(
            "there is no tokenizer, and its vocabulary is smaller than a byte's",
            where=f"hf:{name}",
            advice="save the tokenizer beside the model",
        )
    return Bytes(f"hf:{name} has no tokenizer: text is read and written byte by byte")


def _form(name: str, model: nn.Module, caches: Mapping[int, Representation]) -> Form:
    held: Any = model

    def run(prompts: Sequence[Sequence[int]], count: int, sampling: Sampling) -> Generated:
        context = getattr(held.config, "max_position_embeddings", None)
        check_request(prompts, count, context, held.get_input_embeddings().weight.shape[0])
        longest = max(map(len, prompts))
        layers = [
            PackedLayer(caches.get(layer, Representation()), longest + count)
            for layer in range(held.config.num_hidden_layers)
        ]
        padded = torch.tensor([[*[0] * (longest - len(prompt)), *prompt] for prompt in prompts])
        seen = torch.tensor([[*[0] * (longest - len(prompt)), *[1] * len(prompt)] for prompt in prompts])
        options: dict[str, Any] = {"do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            options |= {"temperature": sampling.temperature, "top_k": sampling.top_k or 0}
        torch.manual_seed(sampling.seed)
        started = time.perf_counter()
        with torch.no_grad():
            given = {"input_ids": padded, "attention_mask": seen, "past_key_values": Cache(layers=layers)}
            result = held.generate(**given, max_new_tokens=count, min_new_tokens=count, **options)
        seconds = time.perf_counter() - started
        size = sum(layer.stored.nbytes for layer in layers if layer.stored is not None)
        return Generated(tuple(tuple(row[longest:]) for row in result.tolist()), 0.0, seconds, size)

    return Form(name, model, run)
