"""How an input enters packed linear operations: projected as they ask, and rotated as their weights are."""

from __future__ import annotations

from torch import Tensor, nn

from .representation import Representation


class Enter(nn.Module):
    """`enter` as a module without state, so that a graph can call it and print its name."""

    def __init__(self, projection: Representation, rotation: Representation) -> None:
        super().__init__()
        self.projection, self.rotation = projection, rotation

    def forward(self, x: Tensor) -> Tensor:
        """`x` as packed linear operations take it."""
        return enter(x, self.projection, self.rotation)

    def extra_repr(self) -> str:
        return str(self.projection if self.projection.stages else self.rotation)


def enter(x: Tensor, projection: Representation, rotation: Representation) -> Tensor:
    """`x` projected and then rotated; where both begin with the same rotation, once."""
    if projection.is_dense:
        return rotate(x, rotation)
    if projection.rotation == rotation:
        core = projection.core
        return core.project(rotate(x, rotation)) if core.stages else rotate(x, rotation)
    return rotate(projection.project(x), rotation)


def rotate(x: Tensor, rotation: Representation) -> Tensor:
    """`x` under the leading rotations of a representation."""
    return rotation.encode(x).carry if rotation.stages else x


def undo_rotation(representation: Representation, x: Tensor) -> Tensor:
    """`x` with the leading rotations of a representation undone."""
    for stage in reversed(representation.rotation.bound_stages):
        x = stage.decode(x, {})
    return x
