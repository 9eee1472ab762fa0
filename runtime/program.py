"""What becomes of one tensor in training: its representation, how gradients pass, what changes by step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .digest import digest
from .errors import RequestError
from .estimators.base import Estimator
from .representation import Representation
from .schedule import Schedule
from .stage import Stage

if TYPE_CHECKING:
    from .training_kernels.plan import Plan

CHANGES = "numbers in it change while it is trained"
"""Why no fused kernel takes a scheduled program: kernels are chosen once."""

_BOUND = 64  # values between the ends of a schedule that stages are bound at
_MOST_PASSED = 64  # whole numbers on the way of a schedule that are tried beforehand

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
        if not self.schedules:
            return
        fields_named = [schedule.field for schedule in self.schedules]
        for position, schedule in enumerate(self.schedules):
            if schedule.field in fields_named[:position]:
                raise ValueError(f"{schedule.field} has two schedules; leave one out")
            for value in _passed(schedule, self.declared(schedule)):
                self._tried({schedule: value})
        self._tried({schedule: schedule.start for schedule in self.schedules})

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
    def pulls(self) -> bool:
        """Whether something may be added to gradients, whatever the loss is."""
        return any(estimator.pulls for estimator in self.estimators)

    @cached_property
    def plan(self) -> Plan | str:
        """What a fused kernel needs to know, or why none fits."""
        if self.schedules:
            return CHANGES
        try:
            from .training_kernels.plan import plan_of
        except ImportError:
            return "not yet"
        return plan_of(self.representation, self.estimators)

    def declared(self, schedule: Schedule) -> float:
        """The value of a scheduled field as it is declared. Raises ValueError where there is none."""
        address = schedule.address
        holders: tuple[Any, ...] = self.estimators if address.in_estimator else self.representation.stages
        if address.position >= len(holders):
            what = "estimators" if address.in_estimator else "stages"
            count = f"there are {len(holders)} {what}, counted from 0" if holders else f"there are no {what}"
            raise ValueError(f"{schedule.field!r} lies beyond the chain: {count}")
        holder = holders[address.position]
        value = getattr(holder, address.name, None)
        if not _is_number(value):
            numbers = [f.name for f in fields(holder) if _is_number(getattr(holder, f.name))]
            has = f"it has {', '.join(numbers)}" if numbers else "it has none"
            raise ValueError(f"{holder.kind} has no number called {address.name!r} here; {has}")
        return float(value) if isinstance(value, float) else int(value)  # type: ignore[arg-type]

    def values(self, step: int, steps: int) -> list[float]:
        """The values of all schedules for a 0-based step."""
        return [s.value(self.declared(s), step, steps) for s in self.schedules]

    def at(self, values: Tensor) -> Program:
        """This program with these values (float64 `[schedules]`; NaN leaves what is declared).

        Values beyond those are the numbers of tables that are kept: see `under_tables`. Raises RequestError
        for values that a stage or an estimator refuses.
        """
        count = len(self.schedules)
        if len(values) > count:
            return self.at(values[:count])._keeping(values[count:])
        return _at(self, tuple(values.tolist())) if count else self

    def _keeping(self, tables: Tensor) -> Program:
        from .given_tables import under_tables  # a stage, and those know of representations

        return Program(under_tables(self.representation, tables), self.estimators)

    def representation_at(self, values: Sequence[float]) -> Representation:
        """The representation at values, one for each schedule; nothing in it is bound before it is used."""
        return self._with(dict(zip(self.schedules, values, strict=True))).representation

    def passed(self) -> tuple[Representation, ...]:
        """What the representation is on the way: at the start of all schedules, and at every whole number."""
        on_the_way = [{s: s.start for s in self.schedules}]
        on_the_way += [{s: value} for s in self.schedules for value in _passed(s, self.declared(s))]
        return tuple(dict.fromkeys(self._with(values).representation for values in on_the_way))

    def _tried(self, values: dict[Schedule, float]) -> None:
        try:
            self._with(values)
        except ValueError as error:
            message, _, hint = str(error).partition("; ")
            text = ", ".join(f"{schedule.field} {value:g}" for schedule, value in values.items())
            raise ValueError(f"on its way through {text}: {message}; {hint or 'start elsewhere'}") from None

    def _with(self, values: dict[Schedule, float]) -> Program:
        """This program at given values; those that are NaN stay as declared."""
        stages, estimators = list(self.representation.stages), list(self.estimators)
        for schedule, value in values.items():
            address, declared = schedule.address, self.declared(schedule)
            holders: list[Any] = estimators if address.in_estimator else stages
            if not math.isnan(value):
                own = round(value) if isinstance(declared, int) else value
                holders[address.position] = replace(holders[address.position], **{address.name: own})
        program = Program(Representation(tuple(stages)), tuple(estimators))
        program.__dict__["plan"] = CHANGES
        return program

    def _bound_near(self, values: dict[Schedule, float]) -> tuple[Stage, ...]:
        """The stages bound as they are at the nearest of a few values, with their own values in them.

        Binding may integrate for milliseconds (the clip of an rms scale behind a sparse stage), and values
        change at every step.
        """
        near = {s: _near(s, self.declared(s), value) for s, value in values.items()}
        bound = list(_at(self, tuple(near.values())).representation.bound_stages)
        for schedule, value in values.items():
            address = schedule.address
            if near[schedule] != value and not address.in_estimator:
                bound[address.position] = replace(bound[address.position], **{address.name: value})  # type: ignore[type-var]
        return tuple(bound)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _passed(schedule: Schedule, declared: float) -> tuple[float, ...]:
    """Its start, and the whole numbers between that and the end, where it is one of whole numbers."""
    if not isinstance(declared, int):
        return (schedule.start,)
    first = round(schedule.start)
    step = 1 if declared >= first else -1
    return tuple(range(first, declared, step))[:_MOST_PASSED] or (first,)


def _near(schedule: Schedule, declared: float, value: float) -> float:
    """The nearest of the values that stages are bound at: shares of the way, its two ends among them."""
    way = schedule.start - declared
    if math.isnan(value) or isinstance(declared, int) or not way:
        return value
    share = round((value - declared) / way * _BOUND) / _BOUND
    return schedule.start if share == 1 else schedule.between(declared, share)


@lru_cache(maxsize=1024)
def _at(program: Program, values: tuple[float, ...]) -> Program:
    given = dict(zip(program.schedules, values, strict=True))
    try:
        there = program._with(given)
    except ValueError as error:
        message, _, hint = str(error).partition("; ")
        raise RequestError(message, where="schedule", advice=hint or "change its start") from None
    near = tuple(_near(s, program.declared(s), value) for s, value in given.items())
    if near != values and not any(math.isnan(value) for value in values):
        there.representation.__dict__["bound_stages"] = program._bound_near(given)
    return there


@lru_cache(maxsize=4096)
def program_of(representation: Representation, estimators: tuple[Estimator, ...] = ()) -> Program:
    """The program without schedules; the same object for equal arguments."""
    return Program(representation, estimators)


def know(program: Program) -> None:
    """Have `program_of_key` find it in this process too, whichever its key was computed in."""
    _PROGRAMS.setdefault(program.key, program)


def program_of_key(key: str) -> Program:
    """The program that has given its key in this process."""
    return _PROGRAMS[key]


DECLARED = torch.empty(0, dtype=torch.float64)
"""The values of a program without schedules."""
