"""Attention of one token over a cache on one CPU thread: packed caches against a dense one.

`sdpa` is scaled_dot_product_attention over dense keys and values, each head of which has one query or, where
heads of queries share it, several: these are handed over as so many tokens, since `enable_gqa` takes ten times
as long. `products` is softmax between two products, which rounds scores to the dtype. Beside bfloat16 there is
`sdpa` over a cache that is kept in float32, twice as large, since processors without instructions for bfloat16 take
several times as long for it. The fastest of these here is what the others are measured against. `decode` decodes
blocks of the cache by torch. Errors are those to float64 over what each cache holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from dataclasses import replace

import torch
from timing import Case, Method, measure
from torch import Tensor
from torch.nn import functional as F

from rhoc.runtime.generation.cache import Places, TokenCache
from rhoc.runtime.kernels import Selection, select
from rhoc.runtime.kernels.cache_attention import DecodeCacheAttention, decoded
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

FORMATS: Mapping[str, Quantize] = {
    "int8": Quantize(8, strategy="token", dynamic=True),
    "int4": Quantize(4, strategy="token", dynamic=True),
    "int4 asymmetric": Quantize(4, symmetric=False, strategy="token", dynamic=True),
    "int4-g32 asymmetric": Quantize(4, symmetric=False, strategy="group", group_size=32, dynamic=True),
    "fp8": Quantize(8, "float", strategy="token", dynamic=True),
    "nf4-g64": Quantize(4, "float", grid="nf4", strategy="group", group_size=64, dynamic=True),
}
_SHAPES = ((16, 16, 64), (8, 8, 128), (32, 8, 128))  # heads of queries and of the cache, features
_SLOTS = (256, 2048, 16384)
_DECODED = ("int8", "int4")


def cases(quick: bool) -> Iterator[Case]:
    """Caches of some lengths in bfloat16, and in float32."""
    for dtype in (torch.bfloat16,) if quick else (torch.bfloat16, torch.float32):
        for heads, shared, features in _SHAPES[: 1 if quick else None]:
            for slots in _SLOTS[: 1 if quick else None]:
                yield _case(dtype, (heads, shared, features), slots, quick)


def _case(dtype: torch.dtype, shape: tuple[int, int, int], slots: int, quick: bool) -> Case:
    heads, shared, features = shape
    keys, values = torch.randn(2, 1, shared, slots, features, dtype=dtype)
    queries = torch.randn(1, heads, 1, features, dtype=dtype)
    folded = queries.reshape(1, shared, -1, features)
    methods: dict[str, Method] = {
        "sdpa": lambda i: F.scaled_dot_product_attention(folded, keys, values),
        "products": lambda i: ((folded * features**-0.5) @ keys.mT).softmax(-1) @ values,
    }
    if dtype != torch.float32:
        wide, wide_keys, wide_values = folded.float(), keys.float(), values.float()
        methods["sdpa, float32"] = lambda i: F.scaled_dot_product_attention(wide, wide_keys, wide_values).to(
            dtype
        )
    methods = _fastest_first(methods)
    every = Places(torch.arange(slots)[None], slots)
    asked = Places(every.positions[:, -1:], slots)
    exact = {name: _exact(folded, keys, values) for name in methods}
    for name in list(FORMATS)[: 2 if quick else None]:
        cache = TokenCache(Representation((FORMATS[name],)), (1, shared, slots, features), dtype, keys.device)
        cache.append(keys, values, every)
        assert select(cache.call).kernel.name != DecodeCacheAttention.name
        methods[name] = lambda i, cache=cache: cache.attend(queries, asked)  # type: ignore[misc]
        exact[name] = _exact(folded, *_held(cache, every))
        if name in _DECODED:
            old = _decoding(cache)
            methods[f"{name}, decode"] = lambda i, old=old: old.attend(queries, asked)  # type: ignore[misc]
            exact[f"{name}, decode"] = exact[name]
    errors = {}
    for name, method in methods.items():
        result = method(0).reshape(folded.shape).double()  # type: ignore[attr-defined]
        errors[name] = float((result - exact[name]).norm() / exact[name].norm())
    kind = str(dtype).removeprefix("torch.")
    return Case(f"{kind}, {heads} heads over {shared} of {features}, {slots} slots", methods, errors)


def _fastest_first(methods: Mapping[str, Method]) -> dict[str, Method]:
    """The dense methods in order of the time that they take here."""
    taken = measure(Case("", methods), cuda=False, rounds=3, seconds=0.01)
    return dict(sorted(methods.items(), key=lambda method: taken[method[0]].median))


def _decoding(cache: TokenCache) -> TokenCache:
    """The same cache, read by the kernel that decodes."""
    old = copy(cache)
    old.selection = Selection(DecodeCacheAttention(), ())
    return old


def _held(cache: TokenCache, places: Places) -> tuple[Tensor, Tensor]:
    """Keys and values without the rounding to their dtype."""
    call = replace(cache.call, dtype=torch.float64)
    keys, values = (decoded(call, cache._used(which, places), 0, places.used) for which in (0, 1))
    return keys, values


def _exact(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(queries.double(), keys.double(), values.double())
