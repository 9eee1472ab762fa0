"""A module in the place of the user's, whose weights are projected wherever they are read as attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import Tensor, nn

from ..runtime.derived_class import blank, derived
from ..runtime.learned import LearnedInput, LearnedProject, input_names
from ..runtime.operand import operand
from ..runtime.projection import Project
from ..runtime.slots import NOTHING, Slots
from ..runtime.table_projection import TableOutput, TableProject
from .assignment import Assignment, assigned
from .part import Part, is_projected
from .sites import attribute, parameter_nodes


def _nothing_beside(name: str) -> Tensor:
    raise AssertionError(f"no {name} is beside this weight")


@dataclass(frozen=True)
class Reading:
    """What reading a weight as an attribute gives: its projection, as an operand that fills `slots`.

    `names` are those of the parameters that its projection learns, `input_names` those that `input` does, the
    projection of inputs whose step is learned, `output_names` those of `output`, onto trained tables."""

    projection: Project | None = None
    slots: Slots = NOTHING
    input: LearnedProject | None = None
    names: tuple[str, ...] = ()
    input_names: tuple[str, ...] = ()
    output: TableProject | None = None
    output_names: tuple[str, ...] = ()

    @classmethod
    def of(cls, assignment: Assignment, projection: Project | None, weight: object) -> Reading:
        """The reading of `weight` with an assignment; what it learns lies beside it."""
        learned = assignment.learned_input
        names = assignment.beside(weight) if projection is not None and isinstance(weight, Tensor) else ()
        inputs = None if learned is None else assignment.project_learned_input()
        tables = assignment.output_names
        outputs = assignment.project_tables() if tables else None
        return cls(projection, assignment.slots, inputs, names, input_names(learned), outputs, tables)

    def held(self) -> list[Project]:
        """Its projections: that of the weight, and those around the operation whose numbers change."""
        own = [p for p in (self.projection, self.input, self.output) if p is not None]
        return [*own, *self.slots.held()]

    def __call__(
        self, weight: Tensor, training: bool = True, beside: Callable[[str], Tensor] = _nothing_beside
    ) -> Tensor:
        """What the reader gets; `training` is that of the module which holds the weight, `beside` gives the
        parameters beside it by name."""
        slots = self.slots
        if self.input is not None:
            if self.input.training != training:
                self.input.train(training)
            given = LearnedInput(self.input, tuple(map(beside, self.input_names)))
            slots = replace(slots, learned_input=given)
        if self.output is not None:
            if self.output.training != training:
                self.output.train(training)
            slots = replace(
                slots, learned_output=TableOutput(self.output, tuple(map(beside, self.output_names)))
            )
        if self.projection is None:
            return operand(weight, slots)
        self.projection.training = training
        return operand(self.projection(weight, *map(beside, self.names)), slots)


class StandIn(nn.Module):
    """A module whose weights may be read by Python code, its own or its parent's.

    `state_dict`, `parameters` and optimisers see latent weights; code that reads an attribute gets what
    `readings` make of it, once for each call of the module. With a `part`, calls go there. Made by
    `stand_in`.
    """

    part: Part | None
    readings: Mapping[str, Reading]

    def held(self) -> list[nn.Module]:
        """Modules with projections that `modules()` does not show."""
        readings = [projection for r in self.readings.values() for projection in r.held()]
        return [*([] if self.part is None else [self.part]), *readings]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the part computes, else what the user's forward does; hooks are run here, not by the part."""
        if self.part is not None:
            return self.part.forward(*args, **kwargs)
        with _remembering(self):
            return cast(Any, super()).forward(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        reading = self.__dict__.get("readings", {}).get(name)
        if reading is None or not isinstance(value, Tensor):
            return value
        memory = self.__dict__.get("_read")
        if memory is None:
            return reading(value, self.training, self._beside(name))
        if name not in memory:
            memory[name] = reading(value, self.training, self._beside(name))
        return memory[name]

    def _beside(self, weight: str) -> Callable[[str], Tensor]:
        """What gives the parameters beside a weight."""
        return lambda name: cast(Tensor, getattr(self, f"{weight}_{name}"))


@contextmanager
def _remembering(module: StandIn) -> Iterator[None]:
    """Read each weight once inside: experts that are looked up one by one share one projection."""
    before = module.__dict__.get("_read")
    module.__dict__["_read"] = {}
    try:
        yield
    finally:
        module.__dict__["_read"] = before


def stand_in(module: nn.Module, readings: Mapping[str, Reading], part: Part | None = None) -> StandIn:
    """A stand-in for `module` that shares its state; with a `part`, which was made of it, it runs that.

    What an earlier stand-in read otherwise is still read so.
    """
    members = {"_flat_weights": _FLAT_WEIGHTS} if isinstance(module, nn.RNNBase) else {}
    for name, reading in readings.items():
        if reading.output is not None:
            reading.output.weight_path = name
    new = cast(StandIn, blank(derived(StandIn, module, **members)))
    new.__dict__.update(module.__dict__)
    earlier = module.readings if isinstance(module, StandIn) else {}
    new.__dict__.update(part=part, readings={**earlier, **readings}, _read=None)
    # nn.TransformerEncoderLayer has a fast path that skips its submodules unless one of them has a hook.
    new.register_forward_pre_hook(_nothing)
    return new


def readings_of(part: Part) -> dict[str, Reading]:
    """What reading each weight of a part as an attribute gives, by name."""
    found = {}
    for node in parameter_nodes(part):
        assignment = assigned(node)
        if assignment is None:
            continue
        projection = assignment.project_weight(str(node.target))
        reading = Reading.of(
            assignment, projection if is_projected(part, node) else None, attribute(part, str(node.target))
        )
        if reading != Reading():
            found[str(node.target)] = reading
    return found


def _flat_weights(self: Any) -> list[Any]:
    """The weights of a recurrent layer in the order of its kernel, each as it reads now."""
    return [getattr(self, name) for name in self._flat_weights_names]


def _ignore(self: Any, value: Any) -> None:
    """Recurrent layers assign the list they would read; it is made anew at every read."""


_FLAT_WEIGHTS = property(_flat_weights, _ignore)


def _nothing(module: nn.Module, args: Any) -> None:
    """A hook that does nothing."""
