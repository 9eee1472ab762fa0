"""Whole models on CUDA against dense bfloat16: a training step, and generating with packed weights and caches.

Steps are of two layers at hidden 4096 with 8192 tokens, in eager mode and compiled; generation is of 64 tokens
after a prompt of 64, by a decoder of 1.0 billion weights. The compiler is imported where it is needed: without it
all other rows are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from gpu_unit import Job, Unit
from timing import Method
from training import WIDE, Spec, wide
from training import Job as Training

from rhoc.runtime.generation.decoder import Decoder
from rhoc.runtime.generation.generate import generate
from rhoc.runtime.llama import Llama, LlamaShape

_PACKED = ("int4-g128", "int8-g128", "w8a8", "w4a8", "fp8-dynamic")
_CACHE, _SEQUENCES = "quantize(int8, token, dynamic)", ("1", "16")
_SHAPE, _TINY = LlamaShape(2048, 20, 16, 5632, context=256), LlamaShape(128, 1, 2, 256)


def units(tiny: bool) -> Iterator[Unit]:
    """Each spec of either kind."""
    for name, spec in WIDE.items():
        variants = ("eager",) if tiny else ("eager", "compiled")
        yield Unit(f"training step: {name}", "hidden 4096", variants, 3, partial(_steps, spec))
    for spec_name in _PACKED:
        variants = _SEQUENCES[:1] if tiny else (*_SEQUENCES, "1, packed cache", "16, packed cache")
        yield Unit(f"generate: {spec_name}", "decoder", variants, 2, partial(_generations, spec_name))


def _steps(spec: Spec, device: str, tiny: bool) -> Callable[[str], Job]:
    width, layers, context = (128, 1, 16) if tiny else (4096, 2, 1024)
    model = wide(width, layers=layers, context=context).to(device, torch.bfloat16)
    tokens = torch.randint(0, 256, (8192 // 1024 if not tiny else 1, context + 1), device=device)

    def job(variant: str) -> Job:
        training = Training(model, tokens, variant == "compiled")
        return Job("training", training.step(spec), training.step(), capture=False)

    return job


def _generations(spec: str, device: str, tiny: bool) -> Callable[[str], Job]:
    from rhoc.compiler.generation import cache_from, packed_over
    from rhoc.compiler.spec import load_spec

    shape, count = (_TINY, 4) if tiny else (_SHAPE, 64)
    model = Llama(shape).to(device, torch.bfloat16)
    packed = packed_over(model, load_spec(spec))

    def job(variant: str) -> Job:
        sequences, _, cached = variant.partition(", ")
        layers = [f"layers.{layer}.self_attn" for layer in range(shape.layers)] if cached else []
        decoder = Decoder(packed, {layer: cache_from(_CACHE) for layer in layers})
        prompts = [list(range(count))] * int(sequences)
        return Job("generate", _tokens(decoder, prompts, count), _tokens(Decoder(model), prompts, count),
                   capture=False)  # fmt: skip

    return job


def _tokens(decoder: Decoder, prompts: list[list[int]], count: int) -> Method:
    return lambda call: generate(decoder, prompts, count)
