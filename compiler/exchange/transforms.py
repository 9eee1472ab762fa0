"""Rotations as compressed-tensors' `transform_config`.

There a transform of type `hadamard` is Sylvester's matrix over its root (symmetric, its own inverse), of the
size of the dimension or block-diagonal with blocks of `head_dim`; at `input` x becomes x H when the model
runs, at `weight_input` W has become W H already. That is our `hadamard(block)` without signs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...runtime.errors import RequestError
from ...runtime.representation import Representation
from ...runtime.stages.hadamard import Hadamard
from .coded import DENSE_ADVICE


def block_of(rotation: Representation, columns: int) -> int | None:
    """The size of the Hadamard blocks that a weight's inputs are rotated in, None without a rotation.

    Raises RequestError for a rotation that has no words there.
    """
    if not rotation.stages:
        return None
    stage = rotation.stages[0]
    if len(rotation.stages) > 1 or not isinstance(stage, Hadamard):
        raise RequestError(f"the rotation {rotation} has no words in transform_config", advice=DENSE_ADVICE)
    block = stage.block_for(columns)
    if stage.signs is not None or block & (block - 1):
        what = "signs" if stage.signs is not None else f"a matrix of order {block}, no power of two"
        raise RequestError(
            f"the rotation {stage} has {what}, which transform_config has no words for",
            advice=f"use hadamard with blocks of a power of two and no signs, {DENSE_ADVICE}",
        )
    return block


def transform_config(blocks: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """The config for modules by path: the block that each is rotated in, and its number of columns."""
    targets: dict[int | None, list[str]] = {}
    for path, (block, columns) in blocks.items():
        targets.setdefault(None if block == columns else block, []).append(path)
    groups = {}
    for head_dim, paths in targets.items():
        online = {"targets": paths, "location": "input", "inverse": False, "ignore": []}
        groups["hadamard" if head_dim is None else f"hadamard_{head_dim}"] = {
            "type": "hadamard",
            "apply": [online, {**online, "location": "weight_input", "inverse": True}],
            "randomize": False,
            "requires_grad": False,
            "head_dim": head_dim,
        }
    return {"config_groups": groups} if groups else {}


def rotation_of(schemes: Sequence[Mapping[str, Any]], columns: int) -> Representation:
    """The rotation that transform schemes (those that speak of one module) mean for a weight.

    Raises RequestError for transforms that rhoc has no stage for.
    """
    if not schemes:
        return Representation()
    if len(schemes) > 1:
        raise RequestError(
            "several transforms of one weight are not known here", advice="see transform_config"
        )
    (scheme,) = schemes
    locations = {entry.get("location") for entry in scheme.get("apply", [])}
    known = locations == {"input", "weight_input"} and scheme.get("type") == "hadamard"
    if not known or scheme.get("randomize"):
        raise RequestError(
            f"a transform of type {scheme.get('type')!r} at {', '.join(sorted(map(str, locations)))} is not "
            "known here",
            advice="rhoc reads hadamard at input and weight_input, not randomized",
        )
    block = scheme.get("head_dim") or columns
    if block & (block - 1) or columns % block:
        raise RequestError(
            f"head_dim {block} of a dimension of {columns}", advice="a power of two divides it"
        )
    return Representation((Hadamard(block),))
