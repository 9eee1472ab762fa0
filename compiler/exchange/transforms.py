"""Rotations as compressed-tensors' `transform_config`.

There a transform of type `hadamard` is Sylvester's matrix over its root (symmetric, its own inverse), of the
size of the dimension or block-diagonal with blocks of `head_dim`; at `input` x becomes x H when the model
runs, at `weight_input` W has become W H already. That is our `hadamard(block)` without signs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import RequestError
from ...runtime.representation import Representation
from ...runtime.stages.hadamard import Hadamard
from ..targets import covers
from .coded import DENSE_ADVICE
from .entries import mapping, mappings, names, text


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


@dataclass(frozen=True)
class Place:
    """Modules, and where a transform is applied in them."""

    targets: tuple[str, ...]
    ignore: tuple[str, ...]
    location: str

    def names(self, path: str) -> bool:
        """Whether it speaks of a layer; a class name speaks of all that are not ignored."""
        classes = {target for target in self.targets if "." not in target and not target.startswith("re:")}
        return covers(self.targets, path, classes) and not covers(self.ignore, path, ())


@dataclass(frozen=True)
class Transform:
    """A group of `transform_config`. `head_dim` is the size of its blocks, None for the whole dimension."""

    type: str
    randomize: bool
    head_dim: int | None
    places: tuple[Place, ...]


def transforms_of(quantization: Mapping[str, Any]) -> list[Transform]:
    """The transforms of a config. Raises RequestError for entries of another kind."""
    return [
        Transform(text(group, "type"), bool(group.get("randomize")), _head_dim(group), _places(group))
        for group in mappings(mapping(quantization, "transform_config"), "config_groups")
    ]


def _head_dim(group: Mapping[str, Any]) -> int | None:
    found = group.get("head_dim")
    if found is not None and (not isinstance(found, int) or isinstance(found, bool) or found < 1):
        raise RequestError(f"head_dim is {found!r}, no size", advice="is config.json complete?")
    return found


def _places(group: Mapping[str, Any]) -> tuple[Place, ...]:
    return tuple(
        Place(names(entry, "targets"), names(entry, "ignore"), text(entry, "location"))
        for entry in mappings(group, "apply")
    )


def rotation_of(transforms: Sequence[Transform], path: str, columns: int) -> Representation:
    """The rotation that transforms mean for the weight of a layer.

    Raises RequestError for transforms that rhoc has no stage for.
    """
    mine = [each for each in transforms if any(place.names(path) for place in each.places)]
    if not mine:
        return Representation()
    if len(mine) > 1:
        raise RequestError(
            "several transforms of one weight are not known here", advice="see transform_config"
        )
    (transform,) = mine
    locations = {place.location for place in transform.places}
    if locations != {"input", "weight_input"} or transform.type != "hadamard" or transform.randomize:
        raise RequestError(
            f"a transform of type {transform.type!r} at {', '.join(sorted(locations))} is not known here",
            advice="rhoc reads hadamard at input and weight_input, not randomized",
        )
    block = transform.head_dim or columns
    if block & (block - 1) or columns % block:
        raise RequestError(
            f"head_dim {block} of a dimension of {columns}", advice="a power of two divides it"
        )
    return Representation((Hadamard(block),))
