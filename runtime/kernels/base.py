"""The contract of a kernel: one fused operation on packed weights, and what it declares to match."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from ..interpreted import interpreted
from ..representation import Representation
from .neighbours import Norm


@dataclass(frozen=True)
class Call:
    """What is to be computed: the operation, how its weight is stored, and on what it runs.

    `representation` is the weight's without its leading rotations (those are applied to the input), `shape`
    the weight's, `dtype` the dtype of the input and output, `device` a device type ('cpu', 'cuda').

    - `linear`, `embedding`: nothing else is asked.
    - `linear_activation`: the `activation` of x W^T + b.
    - `input_linear`: enter(x) W^T + b, for an x that has not entered: projected to `input`, and rotated by
      `rotation` (which the weight is stored in); `activation` of it where one is asked. The result may differ
      from that of the parts by rounding, since numbers on grids can be multiplied as integers.
    - `gated_linear`: `activation`(x G^T + g) * (x U^T + u) for two weights that are stored alike; fields are
      named `gate.<field>` and `up.<field>`, the biases, where there are any, `bias.gate` and `bias.up`.
    - `norm_enter`: the `norm` of x (its scale is the field `weight`), projected to `representation` and left
      in `rotation`: without stages, one after the other; when the representation begins with that rotation,
      rotated once and not back. `shape` is the norm's.
    - `grouped_linear`: rows x that have not entered, in the order of groups, each with the matrix of its
      group: `shape` is [groups, n, k], the field `offsets` says where groups end (`decode_grouped.py`).
    - `cache_attention`: attention of queries over keys and values that are stored in the representation;
      `shape` is (heads of the cache, features of a head), see `cache_attention.py`.
    """

    operation: str
    representation: Representation
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: str
    activation: str = ""
    norm: Norm | None = None
    input: Representation = field(default_factory=Representation)
    rotation: Representation = field(default_factory=Representation)

    def __hash__(self) -> int:
        """Of what a kernel is looked up by at every call, so it is found once."""
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, one.name) for one in fields(self)))

    def __getstate__(self) -> dict[str, object]:
        """Without the hash, which is another in another process."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


@dataclass(frozen=True)
class Refusal:
    """Why a kernel does not take a call; printed by `explain`."""

    kernel: str
    reason: str

    def __str__(self) -> str:
        return f"{self.kernel} refused: {self.reason}"


class Kernel(ABC):
    """One operation in a file of its own: torch reference, kernel, launcher, and this declaration.

    `copies`: `prepare` keeps the codes a second time, in another layout, so that the weight takes more memory
    than its stored bits. `devices`: the device types that it is for, all where none is named; for others it
    is not asked at all. Triton kernels are for processors too where they are interpreted.
    """

    copies: ClassVar[bool] = False
    devices: ClassVar[tuple[str, ...]] = ()

    name: ClassVar[str]
    operation: ClassVar[str]

    def __str__(self) -> str:
        return self.name

    def is_for(self, device: str) -> bool:
        """Whether it is for a device type at all."""
        return not self.devices or device in self.devices or ("cuda" in self.devices and interpreted())

    @abstractmethod
    def refuse(self, call: Call) -> str | None:
        """The reason why this kernel does not take the call, or None when it does."""

    @property
    def layout(self) -> str:
        """The name of the form in which `prepare` leaves fields: kernels with the same share them."""
        return self.name

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The stored fields, with what else `run` reads faster: to be kept beside the weight, made once.

        `run` takes either; a kernel with a layout of its own is fast on prepared fields only.
        """
        return stored

    @abstractmethod
    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        """The result for an input `[..., k]` (already rotated); fields as `Representation.pack` names."""


@dataclass(frozen=True)
class Selection:
    """The kernel that takes a call, and why those before it in the list do not."""

    kernel: Kernel
    refusals: tuple[Refusal, ...]
