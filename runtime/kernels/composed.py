"""Fused operations by their parts, one after another: the reference of every kernel that does one at once.

Each gives the bits that the parts give apart. They take every call, and `select` makes one where no kernel of
the list does, around the kernel that it selects for the linear alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..entering import enter
from .base import Call, Kernel
from .neighbours import ACTIVATIONS


@dataclass(frozen=True)
class ComposedNormEnter(Kernel):
    """`norm_enter`: the norm, then what prepares its result for packed linears."""

    name: ClassVar[str] = "composed"
    operation: ClassVar[str] = "norm_enter"

    def refuse(self, call: Call) -> str | None:
        return None

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        assert call.norm is not None
        return enter(call.norm.run(x, stored.get("weight"), bias), call.representation, call.rotation)


@dataclass(frozen=True)
class _OverLinear(Kernel):
    """What runs the kernel of a plain linear, and keeps its prepared fields."""

    call: Call
    linear: Kernel

    name: ClassVar[str] = "composed"

    @property
    def layout(self) -> str:
        return self.linear.layout

    def refuse(self, call: Call) -> str | None:
        return None

    def prepare(self, call: Call, stored: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return self.linear.prepare(self.call, stored)


@dataclass(frozen=True)
class ComposedActivation(_OverLinear):
    """`linear_activation`: the kernel of the linear, then the activation."""

    operation: ClassVar[str] = "linear_activation"

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        return ACTIVATIONS[call.activation](self.linear.run(self.call, x, stored, bias))


@dataclass(frozen=True)
class ComposedInput(_OverLinear):
    """`input_linear`: what prepares the input, the kernel of the linear, and the activation."""

    operation: ClassVar[str] = "input_linear"

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        result = self.linear.run(self.call, enter(x, call.input, call.rotation), stored, bias)
        return ACTIVATIONS[call.activation](result) if call.activation else result


@dataclass(frozen=True)
class ComposedGate(_OverLinear):
    """`gated_linear`: the kernel of the linear for each of the two weights, activation and product."""

    operation: ClassVar[str] = "gated_linear"

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        gate = self.linear.run(self.call, x, named(stored, "gate"), stored.get("bias.gate"))
        up = self.linear.run(self.call, x, named(stored, "up"), stored.get("bias.up"))
        return ACTIVATIONS[call.activation](gate) * up


OVER_LINEAR: Mapping[str, type[ComposedActivation] | type[ComposedGate] | type[ComposedInput]] = {
    ComposedInput.operation: ComposedInput,
    ComposedActivation.operation: ComposedActivation,
    ComposedGate.operation: ComposedGate,
}
"""By operation: those that run a linear inside."""


def named(stored: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The fields under a prefix, `gate.carry` as `carry`."""
    return {name.removeprefix(f"{prefix}."): t for name, t in stored.items() if name.startswith(f"{prefix}.")}
