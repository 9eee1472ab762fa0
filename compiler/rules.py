"""A rule of a spec: which modules, and what becomes of their weights and of what is multiplied with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    model_validator,
)

from ..runtime.bank import Bank, bank_fault
from ..runtime.estimators import (
    ESTIMATORS,
    CodeFields,
    Estimator,
    FixValues,
    GaussianWeights,
    StraightThrough,
)
from ..runtime.estimators.learned import Learned
from ..runtime.estimators.step_rule import StepRule
from ..runtime.gradient import Backward
from ..runtime.latents import LATENTS
from ..runtime.plain import options_to_plain
from ..runtime.program import Program
from ..runtime.reading import AnyStage, tupled
from ..runtime.representation import Representation
from ..runtime.schedule import Schedule
from ..runtime.stages import Stage
from .chains import SLOTS, Slot, chain_faults, learned_faults
from .messages import Finding, refuse, reject
from .plain import describe
from .targets import fault

DENSE = "dense"
ESTIMATED: tuple[Slot, ...] = ("weights", "input_activations", "output_activations", "kv_cache")
"""Slots that gradients pass; output gradients are one themselves."""


_AS_THEY_ARE = (CodeFields, GaussianWeights, FixValues)

SCHEDULED: tuple[Slot, ...] = ("weights", "input_activations", "output_activations")
"""Slots with fields that may change while a model is trained."""


def _entries(value: object) -> object:
    """A mapping stands for a list of one entry."""
    return (value,) if isinstance(value, Mapping | Schedule) else value


def listed(value: object) -> object:
    """A scalar stands for a list of one entry."""
    if isinstance(value, (str, Mapping, Stage, Estimator)):
        return (tupled(value),)
    return tupled(value) if isinstance(value, list) else value


def _patterns(entries: tuple[str, ...]) -> tuple[str, ...]:
    refuse([Finding((i,), reason) for i, entry in enumerate(entries) if (reason := fault(entry))])
    return entries


def _targets(entries: tuple[str, ...]) -> tuple[str, ...]:
    if not entries:
        hint = "name a class (Linear), a module path, or a pattern (re:.*mlp.*)"
        reject("targets is empty, so the rule matches nothing", hint)
    return _patterns(entries)


def _named_estimators(value: object) -> object:
    entries, known = listed(value), f"known: {', '.join(estimator.kind for estimator in ESTIMATORS)}"
    if not isinstance(entries, tuple):
        reject(f"estimators are a name, a mapping or a list of these, got {describe(value)}", known)
    odd = [(i, entry) for i, entry in enumerate(entries) if not isinstance(entry, (str, Mapping, Estimator))]
    message = "an estimator must be a name or a mapping, got"
    refuse([Finding((i,), f"{message} {describe(entry)}", known) for i, entry in odd])
    return tuple({"kind": entry} if isinstance(entry, str) else entry for entry in entries)


def _some_estimator(entries: tuple[Estimator, ...]) -> tuple[Estimator, ...]:
    if not entries:
        reject("the list of estimators is empty", "write ste for straight-through")
    return entries


def _chain(value: object, slot: Slot) -> object:
    from .spec import preset  # a name stands for a chain of a spec, which is loaded as this one is

    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], str):
        value = value[0]
    if isinstance(value, str):
        return preset(value, slot)
    entries = listed(value)
    if not isinstance(entries, tuple):
        message = f"{slot} must be a name, a stage or a list of stages, got {describe(value)}"
        reject(message, "write dense for no stage")
    return entries


def _sensible(stages: tuple[Stage, ...], slot: Slot) -> tuple[Stage, ...]:
    refuse([Finding(*found) for found in chain_faults(stages, slot)])
    return stages


AnyEstimator = Annotated[Union[ESTIMATORS], Field(discriminator="kind")]  # type: ignore[valid-type]  # noqa: UP007
Targets = Annotated[tuple[str, ...], BeforeValidator(listed), AfterValidator(_targets)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(listed), AfterValidator(_patterns)]


def _chain_of(slot: Slot) -> Any:
    """The type of a slot: stages as they are written, checked for what makes sense there."""
    return Annotated[
        tuple[AnyStage, ...],
        BeforeValidator(partial(_chain, slot=slot)),
        AfterValidator(partial(_sensible, slot=slot)),
    ]


if TYPE_CHECKING:
    WeightChain: TypeAlias = tuple[Stage, ...]
    InputChain: TypeAlias = tuple[Stage, ...]
    OutputChain: TypeAlias = tuple[Stage, ...]
    GradientChain: TypeAlias = tuple[Stage, ...]
    CacheChain: TypeAlias = tuple[Stage, ...]
    BackwardWeightChain: TypeAlias = tuple[Stage, ...]
    BackwardInputChain: TypeAlias = tuple[Stage, ...]
else:
    WeightChain, InputChain, OutputChain, GradientChain, CacheChain, *others = map(_chain_of, SLOTS)
    BackwardWeightChain, BackwardInputChain = others
Estimators = Annotated[
    tuple[AnyEstimator, ...],
    BeforeValidator(_named_estimators),
    AfterValidator(_some_estimator),
]


def _named_latent(value: object) -> object:
    return {"kind": value} if isinstance(value, str) else value


AnyLatent = Annotated[
    Annotated[Union[LATENTS], Field(discriminator="kind")] | None,  # type: ignore[valid-type]  # noqa: UP007
    BeforeValidator(_named_latent),
]


class Frozen(BaseModel):
    """Immutable, strict about keys; equality looks at what was declared and not at where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))


class EstimatorChoice(Frozen):
    """How gradients pass the projections of weights and of activations.

    One name, one mapping or one list applies to weights and input activations. An entry is a name (`trust`)
    or a mapping (`{kind: banded, p: 0.1}`); the masks of several entries multiply. What is left out is `ste`,
    straight-through.
    """

    weights: Estimators = (StraightThrough(),)
    input_activations: Estimators = (StraightThrough(),)
    output_activations: Estimators = (StraightThrough(),)
    kv_cache: Estimators = (StraightThrough(),)

    @model_validator(mode="before")
    @classmethod
    def _same_for_both(cls, value: object) -> object:
        apart = isinstance(value, EstimatorChoice) or (isinstance(value, Mapping) and "kind" not in value)
        return value if apart else {"weights": value, "input_activations": value}


class Rule(Frozen):
    """What becomes of the modules that `targets` names and `ignore` does not.

    `targets` are module paths, class names, or `re:` and a pattern for the path. `ignore` takes modules out
    again, in the same words. `weights` is the chain of stages of the weights, read top to bottom from the
    dense tensor to stored bits; a name stands for the chain of a shipped spec, `dense` for none.
    `input_activations` is the chain of what is multiplied with the weights. `output_activations` is the chain
    of what comes out. `grad_output` is the chain of output gradients in the two products of the backward
    pass, along what each sums over. `kv_cache` is the chain of keys and values where the targeted modules
    attend. `backward_weights` is the chain of the weights, as the forward pass read them, in the product that
    gives the gradient of inputs. `backward_inputs` is the chain of inputs in that of the gradient of weights.
    `estimator` says how gradients pass the projections: by default `ste`, straight-through. `latent` is what
    is trained in the place of a weight: `{kind: power, alpha: 2}`. `schedule` lists the numbers in slots and
    estimators that change while the model is trained, each from its start to what is written. `bank` has an
    argument of the model choose the steps of inputs, sample by sample: `{index: t, size: 50}`.
    """

    targets: Targets
    ignore: Patterns = ()
    weights: WeightChain = ()
    input_activations: InputChain = ()
    output_activations: OutputChain = ()
    grad_output: GradientChain = ()
    kv_cache: CacheChain = ()
    backward_weights: BackwardWeightChain = ()
    backward_inputs: BackwardInputChain = ()
    estimator: EstimatorChoice = EstimatorChoice()
    latent: AnyLatent = None
    schedule: Annotated[tuple[Schedule, ...], BeforeValidator(_entries)] = ()
    bank: Bank | None = None

    _where: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _consistent(self) -> Rule:
        if not self.model_fields_set & set(SLOTS):
            reject("the rule says neither weights nor input_activations", "write weights: dense")
        refuse([fault for slot in ESTIMATED for fault in self._estimator_faults(slot)])
        refuse([fault for slot in ESTIMATED for fault in self._learned_faults(slot)])
        refuse(self._fields_faults())
        refuse(list(self._bank_faults()))
        refuse([f for i, schedule in enumerate(self.schedule) for f in self._schedule_faults(i, schedule)])
        refuse([fault for slot in SCHEDULED for fault in self._together_faults(slot)])
        return self

    def _estimator_faults(self, slot: Slot) -> list[Finding]:
        faults: list[Finding] = []
        representation = self.representation(slot)
        for position, estimator in enumerate(self.estimators(slot)):
            where = ("estimator", slot, position)
            if isinstance(estimator, StepRule) and not representation.is_dense:
                faults += [Finding(where, *words) for words in self._step_rule_faults(estimator, slot)]
            try:
                estimator.check(representation)
            except ValueError as error:
                message, _, hint = str(error).partition("; ")
                apart = "or give each its own: estimator: {weights: ..., input_activations: ...}"
                hint = f"{hint}, {apart}" if self.weights and self.input_activations else hint
                faults.append(Finding(where, f"{slot}: {message}", hint))
        return faults

    def _step_rule_faults(self, rule: StepRule, slot: Slot) -> Iterator[tuple[str, str]]:
        kind = rule.kind
        if slot != "weights":
            hint = "give each its own: estimator: {weights: ..., input_activations: ...}"
            yield f"{slot}: {kind!r} is for weights, which an optimiser changes", hint
        elif self.latent is not None and rule.grows:
            reason = f"{kind!r} grows weights from zero, where {self.latent} has no gradient"
            yield reason, "leave out one of the two"

    def _learned_faults(self, slot: Slot) -> list[Finding]:
        return [Finding(*f) for f in learned_faults(getattr(self, slot), self.estimators(slot), slot)]

    def _fields_faults(self) -> list[Finding]:
        """What would change a weight whose code, or whose numbers, are trained as they are."""
        found = next((e for e in self.estimators("weights") if isinstance(e, _AS_THEY_ARE)), None)
        if not self.weights or found is None:
            return []
        what = "a code that is chosen once" if isinstance(found, CodeFields) else "numbers as they are"
        reason = f"{found.kind!r} trains {what}, and {{}} would change it"
        scheduled = [s for s in self.schedule if s.inside("weights") is not None]
        faults = [(("latent",), f"latent {self.latent}")] if self.latent is not None else []
        faults += [(("schedule",), f"a schedule of {scheduled[0].field}")] if scheduled else []
        return [Finding(where, reason.format(what), "leave out one of the two") for where, what in faults]

    def _bank_faults(self) -> Iterator[Finding]:
        """What a bank cannot hold the parameters of."""
        if self.bank is None:
            return
        reason = bank_fault(self.input_representation)
        if reason:
            yield Finding(
                ("bank",), reason, "input_activations: {kind: quantize, num_bits: 4, strategy: tensor}"
            )
        elif not any(isinstance(estimator, Learned) for estimator in self.input_estimators):
            hint = "estimator: {input_activations: lsq_plus}"
            yield Finding(
                ("bank",), "a bank holds steps that are learned, and no estimator learns them", hint
            )

    def _schedule_faults(self, position: int, schedule: Schedule) -> list[Finding]:
        slot = next((slot for slot in SCHEDULED if schedule.inside(slot) is not None), None)
        if slot is None:
            message = f"a schedule's field begins with a slot, got {schedule.field!r}"
            hint = f"write weights.0.sparsity; slots: {', '.join(SCHEDULED)}"
            return [Finding(("schedule", position, "field"), message, hint)]
        known: tuple[Schedule, ...] = ()
        for key in ("field", "start"):  # where it leads, and then from where
            try:
                local = self.scheduled(slot, (schedule,))[0]
                Program(self.representation(slot), self.estimators(slot), known).declared(local)
            except (TypeError, ValueError) as error:
                message, _, hint = str(error).partition("; ")
                return [Finding(("schedule", position, key), message, hint)]
            known = (local,)
        return []

    def _together_faults(self, slot: Slot) -> list[Finding]:
        """What is wrong with the schedules of a slot that are right one by one."""
        try:
            Program(self.representation(slot), self.estimators(slot), self.scheduled(slot, self.schedule))
        except (TypeError, ValueError) as error:
            message, _, hint = str(error).partition("; ")
            return [Finding(("schedule",), f"{slot}: {message}", hint)]
        return []

    def scheduled(self, slot: Slot, schedules: tuple[Schedule, ...]) -> tuple[Schedule, ...]:
        """Those of `schedules` that are of a slot, with their addresses inside it."""
        return tuple(local for s in schedules if (local := s.inside(slot)) is not None)

    def representation(self, slot: Slot) -> Representation:
        """The representation of a slot."""
        return Representation(getattr(self, slot))

    def estimators(self, slot: Slot) -> tuple[Estimator, ...]:
        """The estimators of a slot that gradients pass; their masks multiply."""
        found: tuple[Estimator, ...] = getattr(self.estimator, slot)
        return found

    @property
    def backward(self) -> Backward:
        """What the two products of the backward pass read."""
        slots: tuple[Slot, ...] = ("grad_output", "backward_weights", "backward_inputs")
        return Backward(*map(self.representation, slots))

    @property
    def is_dense(self) -> bool:
        """Whether every slot stays as it is."""
        return all(self.representation(slot).is_dense for slot in SLOTS) and self.latent is None

    @property
    def weight_representation(self) -> Representation:
        """How the weights are stored."""
        return self.representation("weights")

    @property
    def input_representation(self) -> Representation:
        """What happens to the inputs before they meet the weights."""
        return self.representation("input_activations")

    @property
    def weight_estimators(self) -> tuple[Estimator, ...]:
        """How gradients pass the projection of the weights."""
        return self.estimator.weights

    @property
    def input_estimators(self) -> tuple[Estimator, ...]:
        """How gradients pass the projection of the inputs."""
        return self.estimator.input_activations

    @property
    def where(self) -> str:
        """Where the rule was written: `file:line:column`, or its path in data from Python."""
        return self._where

    def to_document(self) -> dict[str, Any]:
        """Plain data with every default filled in."""
        document: dict[str, Any] = {
            "targets": list(self.targets),
            "ignore": list(self.ignore),
            **{slot: [options_to_plain(stage) for stage in getattr(self, slot)] or DENSE for slot in SLOTS},
            "estimator": {
                slot: [options_to_plain(estimator) for estimator in self.estimators(slot)]
                for slot in ESTIMATED
            },
        }
        if self.latent is not None:
            document["latent"] = options_to_plain(self.latent)
        if self.schedule:
            document["schedule"] = [asdict(schedule) for schedule in self.schedule]
        if self.bank is not None:
            document["bank"] = asdict(self.bank)
        return document

    def deciding(self) -> dict[str, Any]:
        """What of the rule decides numbers: all of it, but for the estimators of slots that stay dense."""
        document = self.to_document()
        document["estimator"] = {
            slot: document["estimator"][slot] for slot in ESTIMATED if document[slot] != DENSE
        }
        for slot in SLOTS[
            2:
        ]:  # left out where dense, so that specs from before they were known keep their digest
            if document[slot] == DENSE:
                del document[slot]
        return document
