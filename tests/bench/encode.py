"""Encoding a weight: the time of `Representation.encode` against that of copying the tensor once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timing import Case, Method

import rhoc

SPECS = ("int4", "int2", "int8", "fp4", "2of4", "sparse50", "2of4-int4", "sparse50-int4")


def cases(device: str, quick: bool) -> Iterator[Case]:
    """One matrix, every kind of representation that ships."""
    size = 512 if quick else 4096
    weight = torch.randn(size, size, device=device)
    target = torch.empty_like(weight)

    def encoding(spec: str) -> Method:
        representation = rhoc.load_spec(spec).rules[0].weight_representation
        return lambda call: representation.encode(weight)

    methods: dict[str, Method] = {"copy": lambda call: target.copy_(weight)}
    yield Case(f"{size}x{size} float32", methods | {spec: encoding(spec) for spec in SPECS}, capture=False)
