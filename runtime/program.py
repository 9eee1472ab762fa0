"""What becomes of one tensor in training: its representation, how gradients pass, and what changes by step."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .digest import digest
from .estimators.base import Estimator
from .representation import Representation
from .schedule import Schedule

if TYPE_CHECKING:
    from .training_kernels.plan import Plan

_PROGRAMS: dict[str, Program] = {}  # by key, for the custom operators


@dataclass(frozen=True)
class Program:
    """A representation with estimators, and schedules of their fields (`0.sparsity`, `estimator.0.p`).

    What follows from them is computed once. Raises ValueError for a schedule whose field is no number here.
    """

    representation: Representation
    estimators: tuple[Estimator, ...] = ()
    schedules: tuple[Schedule, ...] = ()

    def __post_init__(self) -> None:
        for schedule in self.schedules:
            self.declared(schedule)
            self._with({schedule: schedule.start})

    @cached_property
    def key(self) -> str:
        """A name that is the same in every process; `program_of_key` finds the program again in this one."""
        from .plain import options_to_plain, to_plain

        estimators = [options_to_plain(estimator) for estimator in self.estimators]
        schedules = [[getattr(s, field.name) for field in fields(s)] for s in self.schedules]
        key = digest([to_plain(self.representation), estimators, schedules])
        if _PROGRAMS.setdefault(key, self) != self:
            raise AssertionError(f"{self} and {_PROGRAMS[key]} have the same plain form")
        return key

    @cached_property
    def trained(self) -> Representation:
        """The representation that training projects to in the place of the declared one."""
        representation = self.representation
        for estimator in self.estimators:
            representation = estimator.trained(representation)
        return representation

    @cached_property
    def is_random(self) -> bool:
        """Whether a projection in training depends on a seed."""
        return self.trained.is_random or any(estimator.random for estimator in self.estimators)

    @cached_property
    def masks(self) -> bool:
        """Whether gradients may be multiplied with something."""
        return any(estimator.masks for estimator in self.estimators)

    @cached_property
    def plan(self) -> Plan | str:
        """What a fused kernel needs to know, or why none fits."""
        try:
            from .training_kernels.plan import plan_of
        except ImportError:
            return "not yet"
        return plan_of(self.representation, self.estimators)

    def declared(self, schedule: Schedule) -> float:
        """The value of a scheduled field as it is declared."""
        holder, name = self._holder(schedule)
        value = getattr(holder, name, None)
        if isinstance(value, bool) or not isinstance(value, int | float):
            numbers = [f.name for f in fields(holder) if _is_number(getattr(holder, f.name))]
            raise ValueError(
                f"schedule: {holder.kind} has no number called {name!r}; it has {', '.join(numbers) or 'none'}"
            )
        return value

    def values(self, step: int, steps: int) -> list[float]:
        """The values of all schedules for a 0-based step."""
        return [s.value(self.declared(s), step, steps) for s in self.schedules]

    def at(self, values: Tensor) -> Program:
        """This program with these values (float64 `[schedules]`; NaN leaves what is declared)."""
        return _at(self, tuple(values.tolist())) if self.schedules else self

    def _with(self, values: dict[Schedule, float]) -> Program:
        stages, estimators = list(self.representation.stages), list(self.estimators)
        for schedule, value in values.items():
            name = schedule.field.rpartition(".")[2]
            holders: list[Any] = estimators if schedule.field.startswith("estimator.") else stages
            position, declared = self._position(schedule), self.declared(schedule)
            if not math.isnan(value):
                whole = isinstance(declared, int)
                holders[position] = replace(holders[position], **{name: round(value) if whole else value})
        return Program(Representation(tuple(stages)), tuple(estimators))

    def _position(self, schedule: Schedule) -> int:
        *_, position, _ = ("", *schedule.field.split("."))
        if not position.isdigit():
            raise ValueError(f"schedule: {schedule.field!r} is no address; write weights.0.sparsity")
        return int(position)

    def _holder(self, schedule: Schedule) -> tuple[Any, str]:
        in_estimators = schedule.field.startswith("estimator.")
        holders: tuple[Any, ...] = self.estimators if in_estimators else self.representation.stages
        position = self._position(schedule)
        if position >= len(holders):
            what = "estimators" if in_estimators else "stages"
            raise ValueError(f"schedule: {schedule.field!r}: there are {len(holders)} {what}, counted from 0")
        return holders[position], schedule.field.rpartition(".")[2]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@lru_cache(maxsize=1024)
def _at(program: Program, values: tuple[float, ...]) -> Program:
    return program._with(dict(zip(program.schedules, values, strict=True)))


@lru_cache(maxsize=4096)
def program_of(representation: Representation, estimators: tuple[Estimator, ...] = ()) -> Program:
    """The program without schedules; the same object for equal arguments."""
    return Program(representation, estimators)


def program_of_key(key: str) -> Program:
    """The program that has given its key in this process."""
    return _PROGRAMS[key]


DECLARED = torch.empty(0, dtype=torch.float64)
"""The values of a program without schedules."""
