"""Tokens after prompts, for a batch of prompts of different lengths at once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import RequestError
from .cache import Places, TokenCache
from .decoder import Decoder
from .sampling import Sampling


@dataclass(frozen=True)
class Generated:
    """The new tokens of each prompt; seconds for reading the prompts, and for all tokens after the first;
    bytes of the cache."""

    tokens: tuple[tuple[int, ...], ...]
    prompt_seconds: float
    seconds: float
    cache_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all sequences in a second, without the time for the prompts."""
        count = sum(len(tokens) - 1 for tokens in self.tokens)
        return count / self.seconds if count and self.seconds else 0.0


@torch.no_grad()
def generate(
    decoder: Decoder, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling | None = None
) -> Generated:
    """`count` tokens after each prompt. A sequence comes out as it would alone.

    Raises RequestError for no prompts, empty or too long ones, and tokens that the model has not.
    """
    check_request(prompts, count, decoder.context, decoder.vocabulary)
    sampling = sampling or Sampling()
    generators = sampling.generators(len(prompts))
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=decoder.device)
    longest = max(map(len, prompts))
    alike = longest == min(map(len, prompts))
    caches = decoder.start(len(prompts), longest + count - 1)
    started = time.perf_counter()
    logits = _read(decoder, prompts, lengths, caches)
    found = [sampling.choose(logits, generators)]
    _finished(logits)
    read = time.perf_counter()
    first = torch.zeros_like(lengths)
    for step in range(count - 1):
        places = Places((lengths + step)[:, None], longest + step + 1, last=alike)
        logits = decoder.step(found[-1][:, None], places, first, caches)
        found.append(sampling.choose(logits, generators))
    _finished(logits)
    done = time.perf_counter()
    tokens = tuple(tuple(row) for row in torch.stack(found, -1).tolist())
    return Generated(tokens, read - started, done - read, sum(cache.nbytes for cache in caches))


def _read(
    decoder: Decoder, prompts: Sequence[Sequence[int]], lengths: Tensor, caches: list[TokenCache]
) -> Tensor:
    """Logits after each prompt. Prompts are filled up on the right; what comes later overwrites the fill."""
    longest = max(map(len, prompts))
    filled = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
    positions = torch.arange(longest, device=lengths.device).expand(len(prompts), -1)
    given = torch.tensor(filled, device=lengths.device)
    return decoder.step(given, Places(positions, longest, last=True), lengths - 1, caches)


def check_request(prompts: Sequence[Sequence[int]], count: int, context: int | None, vocabulary: int) -> None:
    """Raise RequestError for no prompts, empty or too long ones, and tokens that a model of this context
    (None: any length) and vocabulary has not."""
    if count < 1:
        raise RequestError(f"{count} tokens are none to generate", advice="ask for at least one")
    if not prompts or not all(prompts):
        raise RequestError("a prompt is empty", advice="give at least one token of text")
    longest = max(map(len, prompts))
    if context is not None and longest + count - 1 > context:
        raise RequestError(
            f"{longest} tokens of a prompt and {count} more are beyond the context of {context}",
            advice=f"ask for at most {max(context + 1 - longest, 0)} tokens, or shorten the prompt",
        )
    largest = max(map(max, prompts))
    if largest >= vocabulary:
        raise RequestError(
            f"token {largest} is not among the model's {vocabulary}",
            advice="text is read byte by byte, which takes a vocabulary of 256",
        )


def _finished(result: Tensor) -> None:
    """Wait for what a GPU still has to do, before a clock is read."""
    if result.is_cuda:
        torch.cuda.synchronize(result.device)
