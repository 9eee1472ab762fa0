"""Scales of a tensor that is then encoded in vectors: who shares one, and what it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Strategy = Literal["tensor", "channel", "group"]
Observer = Literal["rms", "absmax", "none"]


def check_sharing(strategy: Strategy, group_size: int | None) -> None:
    """Raise ValueError when a strategy and a group size do not go together."""
    if (strategy == "group") != (group_size is not None):
        raise ValueError("strategy 'group' and group_size go together: give both or neither")
    if group_size is not None and group_size < 1:
        raise ValueError(f"group_size must be positive, got {group_size}")


@dataclass(frozen=True)
class Scales:
    """Scales of tensors `[..., n]`.

    One for the tensor, for each vector along the last dimension, or for each `group_size` neighbours in it,
    where the last group may be shorter.
    """

    strategy: Strategy
    group_size: int | None
    observer: Observer

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the scales of a tensor of this shape."""
        if self.strategy == "tensor":
            return (1,)
        if self.group_size is None:
            return shape[:-1]
        return (*shape[:-1], -(-shape[-1] // self.group_size))

    def of(self, x: Tensor, unit: float) -> Tensor:
        """The rms or the largest magnitude, over `unit`; zero where all numbers are zero."""
        blocks, count = self._blocks(x)
        if 0 in blocks.shape:
            return x.new_zeros(self.shape(tuple(x.shape)))
        if self.observer == "absmax":
            return blocks.abs().amax(-1) / unit
        largest = blocks.abs().amax(-1, keepdim=True)
        safe = torch.where(largest > 0, largest, 1.0)  # squares of what is tiny or huge leave the range
        return ((blocks / safe).square().sum(-1) / count).sqrt() * safe.squeeze(-1) / unit

    def spread(self, scale: Tensor, size: int) -> Tensor:
        """Scales so shaped that they multiply a tensor whose last dimension is `size`."""
        if self.strategy == "tensor":
            return scale.reshape(())
        if self.group_size is None:
            return scale.unsqueeze(-1)
        return scale.repeat_interleave(self.group_size, -1)[..., :size]

    def _blocks(self, x: Tensor) -> tuple[Tensor, Tensor | int]:
        """The numbers that share a scale along the last dimension, and how many they are."""
        if self.strategy == "tensor":
            return x.reshape(1, -1), x.numel()
        if self.group_size is None:
            return x, x.shape[-1]
        groups = -(-x.shape[-1] // self.group_size)
        padded = torch.nn.functional.pad(x, (0, groups * self.group_size - x.shape[-1]))
        count = torch.full((groups,), self.group_size, device=x.device)
        if groups:
            count[-1] = x.shape[-1] - (groups - 1) * self.group_size
        return torch.unflatten(padded, -1, (groups, self.group_size)), count
