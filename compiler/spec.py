"""The spec: which weights get which representation, and how gradients pass it. YAML to frozen models.

```yaml
version: 1
name: int4-2of4-a8
rules:                                       # the first rule that matches a module wins
  - targets: ["re:.*mlp.*", Linear]          # module paths, class names, re:patterns
    ignore: lm_head                          # a scalar may stand for a list of one entry
    weights:                                 # top to bottom: from the dense tensor to stored bits
      - {kind: sparsify, sparsity_structure: "2:4"}
      - {kind: quantize, num_bits: 4, strategy: channel}
    input_activations: {kind: quantize, num_bits: 8, strategy: token, dynamic: true}
    estimator: {weights: trust, input_activations: ste}
```

`extends` names another spec, whose rules come after this one's; nothing else composes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from .. import specs
from ..runtime.digest import digest
from ..runtime.errors import InvalidDocument, Problem, RequestError
from ..runtime.estimators import ESTIMATORS, Estimator, StraightThrough
from ..runtime.representation import Representation
from ..runtime.stages import STAGES, Stage
from .chains import Slot, chain_faults
from .documents import Document, plain_document, read_document
from .hints import did_you_mean
from .messages import Finding, explained, refuse, reject
from .targets import fault

DENSE = "dense"
LIST_SPECS = "`rhoc specs ls` lists the shipped specs"


def _listed(value: object) -> object:
    """A scalar stands for a list of one entry."""
    if isinstance(value, (str, Mapping, Stage, Estimator)):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _patterns(entries: tuple[str, ...]) -> tuple[str, ...]:
    refuse([Finding((i,), reason) for i, entry in enumerate(entries) if (reason := fault(entry))])
    return entries


def _targets(entries: tuple[str, ...]) -> tuple[str, ...]:
    if not entries:
        hint = "name a class (Linear), a module path, or a pattern (re:.*mlp.*)"
        reject("targets is empty, so the rule matches nothing", hint)
    return _patterns(entries)


def _named_estimators(value: object) -> object:
    listed = _listed(value)
    if not isinstance(listed, tuple):
        return listed
    return tuple({"kind": entry} if isinstance(entry, str) else entry for entry in listed)


def _some_estimator(entries: tuple[Estimator, ...]) -> tuple[Estimator, ...]:
    if not entries:
        reject("the list of estimators is empty", "write ste for straight-through")
    return entries


def _weight_chain(value: object) -> object:
    return _chain(value, "weights")


def _input_chain(value: object) -> object:
    return _chain(value, "input_activations")


def _chain(value: object, slot: Slot) -> object:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, Representation):
        return value.stages
    return preset(value, slot) if isinstance(value, str) else _listed(value)


def _sensible_weights(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    refuse([Finding(*found) for found in chain_faults(stages, "weights")])
    return stages


def _sensible_inputs(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    refuse([Finding(*found) for found in chain_faults(stages, "input_activations")])
    return stages


AnyStage = Annotated[Union[STAGES], Field(discriminator="kind")]  # type: ignore[valid-type]  # noqa: UP007
AnyEstimator = Annotated[Union[ESTIMATORS], Field(discriminator="kind")]  # type: ignore[valid-type]  # noqa: UP007
Targets = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_targets)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_listed), AfterValidator(_patterns)]
WeightChain = Annotated[
    tuple[AnyStage, ...], BeforeValidator(_weight_chain), AfterValidator(_sensible_weights)
]
InputChain = Annotated[tuple[AnyStage, ...], BeforeValidator(_input_chain), AfterValidator(_sensible_inputs)]
Estimators = Annotated[
    tuple[AnyEstimator, ...], BeforeValidator(_named_estimators), AfterValidator(_some_estimator)
]


class _Frozen(BaseModel):
    """Immutable, strict about keys; equality looks at what was declared and not at where."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))


class EstimatorChoice(_Frozen):
    """How gradients pass the projections of weights and of input activations.

    One name, one mapping or one list applies to both. An entry is a name (`trust`) or a mapping
    (`{kind: banded, p: 0.1}`); the masks of several entries multiply. What is left out is `ste`,
    straight-through.
    """

    weights: Estimators = (StraightThrough(),)
    input_activations: Estimators = (StraightThrough(),)

    @model_validator(mode="before")
    @classmethod
    def _same_for_both(cls, value: object) -> object:
        one = isinstance(value, (str, list, tuple, Estimator)) or (
            isinstance(value, Mapping) and "kind" in value
        )
        return {"weights": value, "input_activations": value} if one else value


class Rule(_Frozen):
    """What becomes of the modules that `targets` names and `ignore` does not.

    `targets` are module paths, class names, or `re:` and a pattern for the path. `ignore` takes modules
    out again, in the same words. `weights` is the chain of stages of the weights, read top to bottom from the
    dense tensor to stored bits; a name stands for the chain of a shipped spec, `dense` for none.
    `input_activations` is the chain of what is multiplied with the weights. `estimator` says how gradients
    pass the projections: by default `ste`, straight-through, for both.
    """

    targets: Targets
    ignore: Patterns = ()
    weights: WeightChain = ()
    input_activations: InputChain = ()
    estimator: EstimatorChoice = EstimatorChoice()

    _where: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _consistent(self) -> Rule:
        if not self.model_fields_set & {"weights", "input_activations"}:
            reject("the rule says neither weights nor input_activations", "write weights: dense")
        refuse(
            [finding for slot in ("weights", "input_activations") for finding in self._estimator_faults(slot)]
        )
        return self

    def _estimator_faults(self, slot: Slot) -> list[Finding]:
        faults: list[Finding] = []
        representation = self.representation(slot)
        for position, estimator in enumerate(self.estimators(slot)):
            try:
                estimator.check(representation)
            except ValueError as error:
                message, _, hint = str(error).partition("; ")
                apart = "or give each its own: estimator: {weights: ..., input_activations: ...}"
                hint = f"{hint}, {apart}" if self.weights and self.input_activations else hint
                faults.append(Finding(("estimator", slot, position), f"{slot}: {message}", hint))
        return faults

    def representation(self, slot: Slot) -> Representation:
        """The representation of a slot."""
        return Representation(self.weights if slot == "weights" else self.input_activations)

    def estimators(self, slot: Slot) -> tuple[Estimator, ...]:
        """The estimators of a slot; their masks multiply."""
        return self.estimator.weights if slot == "weights" else self.estimator.input_activations

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
        """Where the rule was written (`file:line:column`); empty when it came from Python."""
        return self._where

    def to_document(self) -> dict[str, Any]:
        """Plain data with every default filled in."""
        return {
            "targets": list(self.targets),
            "ignore": list(self.ignore),
            "weights": [_plain(stage) for stage in self.weights] or DENSE,
            "input_activations": [_plain(stage) for stage in self.input_activations] or DENSE,
            "estimator": {
                "weights": [_plain(estimator) for estimator in self.weight_estimators],
                "input_activations": [_plain(estimator) for estimator in self.input_estimators],
            },
        }

    def deciding(self) -> dict[str, Any]:
        """What of the rule decides numbers: all of it, but for the estimators of slots that stay dense."""
        document = self.to_document()
        slots = ("weights", "input_activations")
        document["estimator"] = {
            slot: document["estimator"][slot] for slot in slots if document[slot] != DENSE
        }
        return document


class Spec(_Frozen):
    """A compressed representation of a model: ordered rules, the first that matches a module applies.

    `version` is the version of this language, 1. `name` is what runs and reports call the spec, by default
    the name of its file. `summary` says in a line what it is for. `extends` names another spec, shipped or by
    its path from this file: its rules follow this one's, and a loaded spec stands alone. `rules` are tried in
    order for each module.
    """

    version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$")] = "custom"
    summary: str = ""
    extends: str | None = None
    rules: Annotated[tuple[Rule, ...], BeforeValidator(_listed)] = ()

    _source: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _not_idle(self) -> Spec:
        if not self.rules and self.extends is None:
            reject("the spec has no rules", "add rules, or extends: with the name of a spec")
        return self

    @property
    def source(self) -> str:
        """The file it was loaded from; empty when it came from Python. No part of equality."""
        return self._source

    @property
    def digest(self) -> str:
        """Hash of what decides numbers: the rules, defaults filled in. `name` and `summary` do not count."""
        return digest(
            {"version": self.version, "rules": _canonical([rule.deciding() for rule in self.rules])}
        )

    def to_document(self) -> dict[str, Any]:
        """Plain data that loads to an equal spec, everything that was inherited or left out written down."""
        document: dict[str, Any] = {"version": self.version, "name": self.name, "summary": self.summary}
        if self.extends is not None:
            document["extends"] = self.extends
        return document | {"rules": [rule.to_document() for rule in self.rules]}


def _plain(declared: Stage | Estimator) -> dict[str, Any]:
    """A stage or estimator as its YAML mapping, kind first, unset options left out."""
    values = {f.name: getattr(declared, f.name) for f in fields(declared)}  # type: ignore[arg-type]
    return {"kind": declared.kind} | {name: value for name, value in values.items() if value is not None}


def _canonical(value: Any) -> Any:
    """The same data with whole floats as integers, so that 0 and 0.0 hash alike."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def preset(name: str, slot: Slot) -> tuple[Stage, ...]:
    """The chain that a name stands for in a slot: none for `dense`, else that of the shipped spec."""
    if name == DENSE:
        return ()
    known = specs.names()
    if name not in known:
        reject(f"no chain is called {name!r}", did_you_mean(name, known, LIST_SPECS))
    chain = _shipped_chain(name, slot)
    if not chain:
        having = [other for other in known if _shipped_chain(other, slot)]
        reject(f"the shipped spec {name} has no {slot}", did_you_mean(name, having, "dense is none"))
    return chain


def _shipped_chain(name: str, slot: Slot) -> tuple[Stage, ...]:
    """The chain of a shipped spec's first rule (shipped specs have one)."""
    return load_spec(name).rules[0].representation(slot).stages


def load_spec(source: Spec | str | Path | Mapping[str, object]) -> Spec:
    """The spec in a file, in Python data, or shipped under a name.

    Args:
        source: the path of a YAML file, the name of a shipped spec, a mapping as YAML gives it, or a spec.

    Raises:
        InvalidDocument: with every problem in the document and its parents.
        RequestError: no such file or name.
    """
    if isinstance(source, Spec):
        return source
    if isinstance(source, Mapping):
        return _load(plain_document(source), Path(), ())
    path = _find(source, Path())
    return _load(read_document(path), path.parent, (path.resolve(),))


def validate_file(path: str | Path) -> list[Problem]:
    """Every problem in a spec file; none when it loads."""
    try:
        load_spec(Path(path))
    except InvalidDocument as error:
        return error.problems
    except RequestError as error:
        return [Problem(str(path), 1, 1, error.message, error.advice)]
    return []


def _find(source: str | Path, folder: Path) -> Path:
    """The file that a name or a path relative to `folder` means."""
    path = folder / source
    if isinstance(source, Path) or path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    if source in specs.names():
        return specs.path(source)
    hint = did_you_mean(source, specs.names(), f"{LIST_SPECS}, and a path ends in .yaml")
    raise RequestError(f"no spec is called {source!r}", advice=hint)


def _load(document: Document, folder: Path, seen: tuple[Path, ...]) -> Spec:
    """The spec in a document, its parent resolved from `folder`; `seen` are the files being loaded."""
    data = dict(document.data)
    if document.file:
        data.setdefault("name", Path(document.file).stem)
    problems: list[Problem] = []
    spec = parent = None
    try:
        # As JSON, strictness refuses "4" for 4, yet mappings and lists still pass for models and tuples.
        spec = Spec.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        problems += explained(error, document, Spec)
    if isinstance(extends := data.get("extends"), str):
        try:
            parent = _parent(extends, document, folder, seen)
        except InvalidDocument as error:
            problems += error.problems
    if problems or spec is None:
        raise InvalidDocument(problems)
    for position, rule in enumerate(spec.rules):
        rule._where = document.where(("rules", position))
    if parent is not None:
        spec = spec.model_copy(update={"rules": spec.rules + parent.rules, "extends": None})
    spec._source = document.file
    return spec


def _parent(extends: str, document: Document, folder: Path, seen: tuple[Path, ...]) -> Spec:
    try:
        path = _find(extends, folder)
        if path.resolve() in seen:
            circle = " -> ".join(p.name for p in (*seen, path))
            raise RequestError(f"extends goes in a circle: {circle}", advice="remove one of them")
        return _load(read_document(path), path.parent, (*seen, path.resolve()))
    except InvalidDocument:
        raise
    except RequestError as error:
        message = f"{error.where}: {error.message}" if error.where else error.message
        raise InvalidDocument([document.problem(("extends",), message, error.advice)]) from error
