"""Tokens from a decoder, dense and packed, with a dense and with a packed cache; bytes of all tensors alive.

A call is one generation: a prompt of 64 tokens, and 16 tokens after it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timing import Case, Method

from rhoc.compiler.generation import cache_from, packed_over
from rhoc.compiler.spec import load_spec
from rhoc.runtime.generation.decoder import Decoder
from rhoc.runtime.generation.generate import generate
from rhoc.runtime.generation.memory import LiveBytes, held_bytes
from rhoc.runtime.llama import Llama, LlamaShape

_PROMPT, _NEW = list(range(64)), 16
_CACHE = "quantize(int8, token, dynamic)"


def cases(quick: bool) -> Iterator[Case]:
    """One sequence and eight, in bfloat16 and in float32."""
    shape = LlamaShape(128, 2, 4, 352) if quick else LlamaShape(1024, 8, 16, 2816)
    for dtype in (torch.bfloat16,) if quick else (torch.bfloat16, torch.float32):
        torch.manual_seed(0)
        model = Llama(shape).to(dtype)
        packed = {name: packed_over(model, load_spec(name)) for name in ("int8-g128", "int4-g128", "w4a8")}
        stored = {f"layers.{layer}.self_attn": cache_from(_CACHE) for layer in range(shape.layers)}
        decoders = {"dense": Decoder(model), "dense, int8 cache": Decoder(model, stored)}
        decoders |= {name: Decoder(form) for name, form in packed.items()}
        decoders["int4-g128, int8 cache"] = Decoder(packed["int4-g128"], stored)
        for batch in (1,) if quick else (1, 8):
            kind = str(dtype).removeprefix("torch.")
            name = f"{kind}, {batch} sequences"
            print(f"\n  {name}: " + "; ".join(_bytes(name, decoders[name], batch) for name in decoders))
            methods = {name: _method(decoder, batch) for name, decoder in decoders.items()}
            yield Case(name, methods, capture=False, rounds=None if quick else 5)


def _method(decoder: Decoder, batch: int) -> Method:
    return lambda call: generate(decoder, [_PROMPT] * batch, _NEW)


def _bytes(name: str, decoder: Decoder, batch: int) -> str:
    generate(decoder, [_PROMPT] * batch, 2)
    live = LiveBytes((*decoder.model.parameters(), *decoder.model.buffers()))
    with live:
        found = generate(decoder, [_PROMPT] * batch, 2)
    sizes = (held_bytes(decoder.model), found.cache_bytes, live.peak)
    return f"{name} " + "/".join(f"{size / 1e6:.1f}" for size in sizes) + " MB"
