"""Encoding a weight: the time of `Representation.encode` against copying it and against other libraries.

Beside one thread, what a machine with two idle cores would wait is measured by the clock on the wall.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peers import Peer, peers
from timing import Case, Method
from torch import Tensor

import rhoc
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize, Sparsify

SPECS = (
    *("int4", "int8", "int4-g128", "int4-g128-mse", "int4-g128-asym", "int4-hqq"),
    *("nf4", "fp4", "mxfp4", "nvfp4", "nvfp4-4over6", "2of4", "2of4-int4-g128", "sparse50", "sparse50-int4"),
)
PEERS = (
    *("torchao int4-g128", "optimum-quanto int4-g128", "hqq int4-g128", "bitsandbytes nf4"),
    *("torchao mxfp4", "torchao nvfp4", "torchao 2:4-int4-g128"),
)
SLOW, SLOW_PEERS = ("kmeans4", "higgs4", "quip-sharp2", "aqlm-2x8"), ("scikit-learn k-means",)
TRELLISES = ("qtip2", "qtip2-l16")


def cases(quick: bool) -> Iterator[Case]:
    """A matrix in every kind of scalar and sparse format; then what fits tables, and trellises."""
    size = 512 if quick else 4096
    weight = torch.randn(size, size)
    name = f"{size}x{size} float32"
    yield _case(name, weight, SPECS, PEERS)
    yield _case(f"{name}, two threads by the wall", weight, SPECS, threads=2)
    yield _case(f"{name}, tables", weight, SLOW[:1] if quick else SLOW, SLOW_PEERS, rounds=1)
    small = weight[:32, :32] if quick else weight[:1024, :1024]
    name = f"{len(small)}x{len(small)} float32, trellises"
    yield _case(name, small.contiguous(), TRELLISES[:1] if quick else TRELLISES, rounds=1)


def _case(
    name: str,
    weight: Tensor,
    specs: Sequence[str],
    others: Sequence[str] = (),
    *,
    threads: int = 1,
    rounds: int | None = None,
) -> Case:
    """The specs and libraries on one matrix, with the norm of their error over that of the matrix."""
    target = torch.empty_like(weight)
    methods: dict[str, Method] = {"copy": lambda call: target.copy_(weight)}
    errors: dict[str, float] = {}

    def restored(method: str, numbers: Tensor) -> None:
        errors[method] = float((numbers.to(weight.dtype) - weight).norm() / weight.norm())

    for spec in specs:
        representation = _representation(spec)
        methods[spec] = lambda call, representation=representation: representation.encode(weight)
        if rounds is None:
            restored(spec, representation.project(weight))
    for peer in peers(*others):
        methods[peer.name] = _encoding(peer, weight)
        if rounds is None:
            restored(peer.name, peer.restore(peer.encode(weight)))
    return Case(name, methods, errors, capture=False, threads=threads, rounds=rounds)


def _encoding(peer: Peer, weight: Tensor) -> Method:
    def run(call: int) -> Any:
        return peer.encode(weight)

    return run


def _representation(spec: str) -> Representation:
    if spec == "2of4-int4-g128":
        return Representation(
            (Sparsify(sparsity_structure="2:4"), Quantize(4, strategy="group", group_size=128))
        )
    return rhoc.load_spec(spec).rules[0].weight_representation
