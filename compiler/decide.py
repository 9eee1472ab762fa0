"""Which parameter gets which representation, and why the others stay dense."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from ..passes.assignment import DENSE, Assignment
from ..runtime.arrangement import PLAIN, Arrangement
from ..runtime.attention import NOT_REACHED
from ..runtime.bank import Bank
from ..runtime.errors import RequestError
from ..runtime.estimators.code_fields import CodeFields
from ..runtime.estimators.learned import Learned
from ..runtime.estimators.step_rule import StepRule
from ..runtime.gradient import Backward
from ..runtime.representation import Representation
from ..runtime.vector_levels import levels_of
from .capture import Captured, Use
from .chains import Slot
from .coverage import Owner, target_faults
from .reads import RECURRENT, first_operation
from .rules import SCHEDULED
from .spec import Rule, Spec
from .targets import covers, match


@dataclass(frozen=True)
class Held:
    """A parameter: the modules that hold it by its paths there (several when tied), and its uses in graphs.

    `unseen` says why it is not known everywhere what reads it, '' when it is. `computed_from` are the paths
    of the parameters that a parametrization computes it from, `computes` is the path of what is computed from
    it.
    """

    tensor: nn.Parameter
    owners: Mapping[str, Owner]
    uses: tuple[Use, ...]
    unseen: str
    computed_from: tuple[str, ...] = ()
    computes: str = ""

    @property
    def paths(self) -> tuple[str, ...]:
        """All its paths, the one it goes by first."""
        return tuple(self.owners)

    @property
    def path(self) -> str:
        """The path that it goes by."""
        return self.paths[0]

    @property
    def operation(self) -> str | None:
        """The operation that would read it represented, products before lookups; None when there is none."""
        return first_operation({use.operation: PLAIN for use in self.uses if use.representable})

    @property
    def arrangement(self) -> Arrangement:
        """As which matrix that operation reads it."""
        found = (u.arrangement for u in self.uses if u.representable and u.operation == self.operation)
        return next(found, PLAIN)

    @property
    def matrix_shape(self) -> tuple[int, ...]:
        """The shape that stages see."""
        return self.arrangement.shape(tuple(self.tensor.shape))

    def obstacle(self) -> str | None:
        """Why it cannot be represented, or None."""
        if not self.tensor.is_floating_point():
            return f"holds {str(self.tensor.dtype).removeprefix('torch.')}, not floating-point numbers"
        if self.tensor.dim() < 2:
            return "a vector (bias, norm or scale); only matrices are represented"
        if self.computes:
            return f"{self.computes} is computed from it"
        if self.unseen:
            return self.unseen
        if self.operation is not None:
            return None
        names = ", ".join(sorted({use.operation for use in self.uses}))
        return f"used by {names}, not as the weight of an operation" if names else "not used by any graph"


@dataclass(frozen=True)
class Decision:
    """What one parameter becomes; `reason` says why it stays dense, or what else is to be known. `ruled` is
    what a rule gave it, where a budget had it exchanged. `group` names those that share a factor with it,
    of which the first `leads`: it is the one that shared bytes are counted with."""

    held: Held
    assignment: Assignment = DENSE
    reason: str = ""
    ruled: Assignment | None = None
    group: str = ""
    leads: bool = True


def decide(captured: Captured, spec: Spec) -> tuple[Decision, ...]:
    """Apply to every parameter of a model the first rule that matches a module which holds it.

    Raises RequestError with everything that is wrong: targets that match nothing that could be represented,
    and shapes that a representation cannot take.
    """
    everything = held_parameters(captured)
    owners = [Owner(p, class_names(m)) for p, m in captured.root.named_modules(remove_duplicate=False)]
    obstacles: dict[str, dict[str, str | None]] = {}
    for held in everything:
        for path, owner in held.owners.items():
            obstacles.setdefault(owner.path, {})[path] = held.obstacle()
    faults = target_faults(spec, owners, obstacles)
    if faults:
        raise RequestError("\n".join(faults))
    decisions = tuple(_decide(spec, held) for held in everything)
    _check_shapes(decisions)
    return decisions


def held_parameters(captured: Captured) -> list[Held]:
    """Every parameter of the model, each once, in the order of `named_parameters`."""
    uses: dict[int, list[Use]] = {}
    for fragment in captured.fragments:
        for use in fragment.uses:
            uses.setdefault(id(use.parameter), []).append(use)
    for reads in captured.reads.values():
        for read in reads.values():
            use = Use(read.parameter, read.operation, True, read.arrangement)
            uses.setdefault(id(read.parameter), []).append(use)
    tensors: dict[int, nn.Parameter] = {}
    owners: dict[int, dict[str, Owner]] = {}
    for path, parameter in captured.root.named_parameters(remove_duplicate=False):
        tensors[id(parameter)] = parameter
        owner = path.rpartition(".")[0]
        names = class_names(captured.root.get_submodule(owner))
        owners.setdefault(id(parameter), {})[path] = Owner(owner, names)
    held = [
        Held(
            tensor,
            owners[key],
            tuple(uses.get(key, ())),
            _unseen(captured, owners[key]),
            computes=_computes(captured, owners[key]),
        )
        for key, tensor in tensors.items()
    ]
    return held + [_computed(captured, path) for path in captured.computed]


def _unseen(captured: Captured, owners: Mapping[str, Owner]) -> str:
    """Why no one can say what reads a parameter, '' when that is known everywhere."""
    return next((captured.unread[path] for path in owners if path in captured.unread), "")


def _computes(captured: Captured, owners: Mapping[str, Owner]) -> str:
    """The path of the weight that a parametrization computes from a parameter, '' when there is none."""
    computed = captured.computed.items()
    return next((path for path, c in computed if not set(owners).isdisjoint(c.latent)), "")


def _computed(captured: Captured, path: str) -> Held:
    """A weight that parametrizations compute, as if it were a parameter."""
    computed = captured.computed[path]
    names = class_names(captured.root.get_submodule(computed.owner))
    uses = (
        ()
        if computed.operation is None
        else (Use(computed.value, computed.operation, True, computed.arrangement),)
    )
    return Held(computed.value, {path: Owner(computed.owner, names[1:])}, uses, "", computed.latent)


def class_names(module: nn.Module) -> tuple[str, ...]:
    """The names of a module's classes, up to `Module`."""
    names = [cls.__name__ for cls in type(module).__mro__]
    return tuple(names[: names.index("Module")])


def _decide(spec: Spec, held: Held) -> Decision:
    rules = [rule for rule in (first_rule(spec, owner) for owner in held.owners.values()) if rule is not None]
    ignored = next((text for owner in held.owners.values() if (text := _ignored(spec, owner))), None)
    if ignored is not None or not rules:
        own = held.obstacle() if held.computes else None
        return Decision(held, reason=own or ignored or "no rule targets it")
    index = min(rules)
    obstacle = held.obstacle()
    if obstacle is not None:
        return Decision(held, reason=obstacle)
    return _apply(held, index, spec.rules[index])


def first_rule(spec: Spec, owner: Owner) -> int | None:
    """The position of the first rule that matches a module."""
    matching = (i for i, rule in enumerate(spec.rules) if match(rule, owner.path, owner.class_names))
    return next(matching, None)


def _ignored(spec: Spec, owner: Owner) -> str | None:
    """That a rule would apply to a module but for its `ignore`, and no other does."""
    if first_rule(spec, owner) is not None:
        return None
    for index, rule in enumerate(spec.rules):
        if covers(rule.targets, owner.path, owner.class_names):
            return f"rule {index} ignores {owner.path}"
    return None


LOOKUPS = ("embedding", "embedding_bag")


def _apply(held: Held, index: int, rule: Rule) -> Decision:
    reached, _ = _reach(held)
    filled = {slot: rule.representation(slot) if slot in reached else Representation() for slot in AROUND}
    assignment = Assignment(
        rule.weight_representation,
        filled["input_activations"],
        rule.weight_estimators,
        rule.input_estimators,
        filled["output_activations"],
        rule.estimators("output_activations"),
        rule.backward if "grad_output" in reached else Backward(),
        held.arrangement,
        rule.latent,
        rule.schedule,
        bank=_bank(held, rule) if "input_activations" in reached else None,
    )
    notes = "; ".join(_notes(held, rule, assignment))
    if assignment.is_dense:
        return Decision(held, reason=notes if _unreached(held, rule) else f"rule {index} says dense")
    return Decision(held, assignment, notes)


def _bank(held: Held, rule: Rule) -> Bank | None:
    """The bank of a rule. Raises RequestError where samples do not come first in what is projected."""
    attention = any("MultiheadAttention" in owner.class_names for owner in held.owners.values())
    if rule.bank is not None and attention:
        raise RequestError(
            "a bank needs inputs with the samples first, and nn.MultiheadAttention may have them second",
            where=held.path,
            advice="leave it out with `ignore`",
        )
    return rule.bank


AROUND: tuple[Slot, ...] = (
    "input_activations",
    "output_activations",
    "grad_output",
    "backward_weights",
    "backward_inputs",
)


def _reach(held: Held) -> tuple[tuple[Slot, ...], str]:
    """The slots around a weight's operation that can be filled, and why the others cannot."""
    if held.operation in LOOKUPS:
        return ("output_activations",), "do not apply to a lookup"
    if held.operation == RECURRENT:
        return (), "not reached: a recurrent layer runs as one kernel"
    if held.operation == "bilinear":
        return AROUND[:2], "not reached: a bilinear layer has another input"
    attention = any("MultiheadAttention" in owner.class_names for owner in held.owners.values())
    return (AROUND[:1], f"not reached: {NOT_REACHED}") if attention else (AROUND, "")


def _unreached(held: Held, rule: Rule) -> list[Slot]:
    """The slots that a rule asks to be filled, and that cannot be."""
    reached, _ = _reach(held)
    return [slot for slot in AROUND if slot not in reached and not rule.representation(slot).is_dense]


def _notes(held: Held, rule: Rule, assignment: Assignment) -> Iterator[str]:
    """What else is to be known: what is tied, and slots of the rule that do not apply."""
    yield from (f"tied to {path}" for path in held.paths[1:])
    if held.computed_from:
        yield f"computed from {', '.join(held.computed_from)}"
    if unreached := _unreached(held, rule):
        yield f"{' and '.join(unreached)} {_reach(held)[1]}"
    if assignment.weight.is_dense and not assignment.input.is_dense:
        yield f"inputs {assignment.input}"
    if held.operation == "bilinear" and not assignment.input.is_dense:
        yield "its first input stays dense"
    if not assignment.output.is_dense:
        yield f"outputs {assignment.output}{_tables(assignment)}"
    if not assignment.backward.is_dense:
        yield f"output gradients {assignment.backward}"
    if assignment.latent is not None:
        yield f"trained as {assignment.latent}"
    changing = [slot for slot in SCHEDULED if assignment.scheduled(slot)]
    scheduled = [s for s in assignment.schedules if any(s.inside(slot) for slot in changing)]
    if scheduled:
        yield f"scheduled: {', '.join(map(str, scheduled))}"


def _tables(assignment: Assignment) -> str:
    """What outputs take that are encoded with trained tables."""
    if not assignment.output_names:
        return ""
    levels = levels_of(assignment.output)
    bits = f"{levels.bits} bits for each {levels.size} of them, less once coded"
    return f", {bits}; tables and frequencies {levels.nbytes} bytes"


def _check_shapes(decisions: tuple[Decision, ...]) -> None:
    """Raise one error with every shape that its representation cannot take."""
    problems: dict[str, str] = {}
    for decision in decisions:
        held, assignment = decision.held, decision.assignment
        if assignment.is_dense:
            continue
        try:
            for weight in assignment.passed("weights"):
                weight.check(held.matrix_shape)
            channels = channels_of(held)
            for inputs in assignment.passed("input_activations") if channels > 1 else ():
                inputs.check((1, channels))
            _check_parameter(held, assignment)
            _check_outputs(held, assignment)
        except RequestError as error:
            problems[held.path] = str(error.at(held.path))
    if problems:
        raise RequestError("\n".join(problems.values()))


def _check_parameter(held: Held, assignment: Assignment) -> None:
    """Raise RequestError where something else than a parameter would have to be trained."""
    rules = [e.kind for e in assignment.weight_estimators if isinstance(e, StepRule | Learned | CodeFields)]
    asked = [*([] if assignment.latent is None else [f"latent {assignment.latent}"]), *rules]
    asked += [e.kind for e in assignment.output_estimators if assignment.output_names]
    if asked and held.computed_from:
        raise RequestError(
            f"parametrizations compute it, and {' and '.join(asked)} needs a parameter",
            advice="leave it out with `ignore`, or remove the parametrizations",
        )


def _check_outputs(held: Held, assignment: Assignment) -> None:
    """Raise RequestError when an output has another number of features than its representations take."""
    rows = {"linear": 0, "conv": 0, "embedding": -1, "embedding_bag": -1}
    if held.operation in rows:
        features = held.matrix_shape[rows[held.operation]]
        for outputs in assignment.passed("output_activations"):
            outputs.check((1, features))
        if assignment.output_names:
            levels_of(assignment.output).check(features)
        assignment.backward.check(features)


def channels_of(held: Held) -> int:
    """How many numbers of an input are summed over, as far as the weight shows it (groups it does not)."""
    shape = tuple(held.tensor.shape)
    return {"conv": shape[1:2], "conv_transpose": shape[:1]}.get(
        held.operation or "", held.matrix_shape[-1:]
    )[0]
