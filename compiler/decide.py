"""Which parameter gets which representation, and why the others stay dense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ..passes.assignment import DENSE, Assignment
from ..runtime.errors import RequestError
from .capture import Captured, Use
from .coverage import Owner, target_faults
from .spec import Rule, Spec
from .targets import covers, match


@dataclass(frozen=True)
class Held:
    """A parameter: the modules that hold it by its paths there (several when tied), and its uses in graphs.

    `unseen` says who uses it where no graph shows it, '' when nobody does.
    """

    tensor: nn.Parameter
    owners: Mapping[str, Owner]
    uses: tuple[Use, ...]
    unseen: str

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
        """The operation that would read it represented, linear before embedding; None when there is none."""
        found = {use.operation for use in self.uses if use.representable}
        return next((name for name in ("linear", "embedding") if name in found), None)

    def obstacle(self) -> str | None:
        """Why it cannot be represented, or None."""
        if not self.tensor.is_floating_point():
            return f"holds {str(self.tensor.dtype).removeprefix('torch.')}, not floating-point numbers"
        if self.tensor.dim() < 2:
            return "a vector (bias, norm or scale); only matrices are represented"
        if self.unseen:
            return f"not reached: {self.unseen}"
        if self.operation is not None:
            return None
        names = ", ".join(sorted({use.operation for use in self.uses}))
        return (
            f"used by {names}, not as the weight of a linear or embedding"
            if names
            else "not used by any graph"
        )


@dataclass(frozen=True)
class Decision:
    """What one parameter becomes; `reason` says why it stays dense, or what else is to be known."""

    held: Held
    assignment: Assignment = DENSE
    reason: str = ""


def decide(captured: Captured, spec: Spec) -> tuple[Decision, ...]:
    """Apply to every parameter of a model the first rule that matches a module which holds it.

    Raises RequestError with everything that is wrong: targets that match nothing that could be represented,
    and shapes that a representation cannot take.
    """
    everything = held_parameters(captured)
    owners = [Owner(p, _class_names(m)) for p, m in captured.root.named_modules(remove_duplicate=False)]
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
    blind = captured.blind_spots()
    tensors: dict[int, nn.Parameter] = {}
    owners: dict[int, dict[str, Owner]] = {}
    for path, parameter in captured.root.named_parameters(remove_duplicate=False):
        tensors[id(parameter)] = parameter
        owner = path.rpartition(".")[0]
        names = _class_names(captured.root.get_submodule(owner))
        owners.setdefault(id(parameter), {})[path] = Owner(owner, names)
    return [
        Held(tensor, owners[key], tuple(uses.get(key, ())), _unseen(owners[key], blind))
        for key, tensor in tensors.items()
    ]


def _unseen(owners: Mapping[str, Owner], blind: Mapping[str, str]) -> str:
    return next((f"{o.path or 'the model'} {blind[o.path]}" for o in owners.values() if o.path in blind), "")


def _class_names(module: nn.Module) -> tuple[str, ...]:
    names = [cls.__name__ for cls in type(module).__mro__]
    return tuple(names[: names.index("Module")])


def _decide(spec: Spec, held: Held) -> Decision:
    rules = [rule for rule in (first_rule(spec, owner) for owner in held.owners.values()) if rule is not None]
    ignored = next((text for owner in held.owners.values() if (text := _ignored(spec, owner))), None)
    if ignored is not None or not rules:
        return Decision(held, reason=ignored or "no rule targets it")
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


def _apply(held: Held, index: int, rule: Rule) -> Decision:
    linear = held.operation == "linear"
    inputs = rule.input_representation if linear else DENSE.input
    assignment = Assignment(rule.weight_representation, inputs, rule.weight_estimators, rule.input_estimators)
    if assignment.is_dense:
        return Decision(held, reason=f"rule {index} says dense")
    notes = [f"tied to {path}" for path in held.paths[1:]]
    if not linear and not rule.input_representation.is_dense:
        notes.append("input_activations do not apply to a lookup")
    if assignment.weight.is_dense:
        notes.append(f"inputs {assignment.input}")
    return Decision(held, assignment, "; ".join(notes))


def _check_shapes(decisions: tuple[Decision, ...]) -> None:
    """Raise one error with every shape that its representation cannot take."""
    problems: dict[str, str] = {}
    for decision in decisions:
        path, shape, assignment = decision.held.path, tuple(decision.held.tensor.shape), decision.assignment
        try:
            assignment.weight.check(shape)
            if not assignment.input.is_dense:
                assignment.input.check((1, shape[-1]))
        except RequestError as error:
            problems[path] = str(error.at(path))
    if problems:
        raise RequestError("\n".join(problems.values()))
