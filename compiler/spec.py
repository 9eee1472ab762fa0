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
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, ValidationError, model_validator

from .. import specs
from ..passes.base import Pass
from ..passes.catalog import PASSES, kind_of
from ..runtime.digest import digest
from ..runtime.errors import InvalidDocument, Problem, RequestError
from ..runtime.plain import options_to_plain, to_plain
from ..runtime.reading import RESOLVE, read_text
from ..runtime.representation import Representation
from ..runtime.stages import Stage
from ..runtime.text_parser import from_text
from .budget_rule import BudgetRule
from .chains import Slot
from .documents import read_document
from .hints import did_you_mean
from .messages import Finding, explained, refuse, reject
from .plain import Document, describe, plain_document
from .rules import DENSE, Frozen, listed
from .rules import Rule as Rule

LIST_SPECS = "`rhoc specs ls` lists the shipped specs"


def _named_passes(value: object) -> object:
    """A name stands for a pass with its defaults."""
    entries = listed(value)
    if not isinstance(entries, tuple):
        return entries
    return tuple({"kind": entry} if isinstance(entry, str) else entry for entry in entries)


AnyPass = Annotated[Union[PASSES], Field(discriminator="kind")]  # type: ignore[valid-type]  # noqa: UP007


def _each_once(passes: tuple[Pass, ...]) -> tuple[Pass, ...]:
    kinds = [kind_of(type(each)) for each in passes]
    twice = [i for i, kind in enumerate(kinds) if kind in kinds[:i]]
    refuse([Finding((i,), f"{kinds[i]} is listed twice", "list it once") for i in twice])
    return passes


Passes = Annotated[tuple[AnyPass, ...], BeforeValidator(_named_passes), AfterValidator(_each_once)]


class Spec(Frozen):
    """A compressed representation of a model: ordered rules, the first that matches a module applies.

    `version` is the version of this language, 1. `name` is what runs and reports call the spec, by default
    the name of its file. `summary` says in a line what it is for. `extends` names another spec, shipped or by
    its path from this file: its rules follow this one's, its passes apply where this one lists none, and a
    loaded spec stands alone. `rules` are tried in order for each module. `passes` are run over the whole
    model before it takes any form; what they need besides is added, and what they say of each other gives the
    order. `budget` has the representation of every weight that rules represent chosen among candidates.
    """

    version: Literal[1]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$")] = "custom"
    summary: str = ""
    extends: str | None = None
    rules: Annotated[tuple[Rule, ...], BeforeValidator(listed)] = ()
    passes: Passes = ()
    budget: BudgetRule | None = None

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
        deciding: dict[str, Any] = {
            "version": self.version,
            "rules": [rule.deciding() for rule in self.rules],
        }
        if self.budget is not None:
            deciding["budget"] = self.budget.model_dump(mode="json")
        if self.passes:
            deciding["passes"] = [options_to_plain(each) for each in self.passes]
        return digest(_canonical(deciding))

    def to_document(self) -> dict[str, Any]:
        """Plain data that loads to an equal spec, everything that was inherited or left out written down."""
        document: dict[str, Any] = {"version": self.version, "name": self.name, "summary": self.summary}
        if self.extends is not None:
            document["extends"] = self.extends
        document["rules"] = [rule.to_document() for rule in self.rules]
        document["passes"] = [options_to_plain(each) for each in self.passes]
        return document | ({} if self.budget is None else {"budget": self.budget.model_dump(mode="json")})


def _canonical(value: Any) -> Any:
    """The same data with whole floats as integers, so that 0 and 0.0 hash alike."""
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_canonical(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def preset(text: str, slot: Slot) -> tuple[Stage, ...]:
    """The chain that a name or a text stands for in a slot.

    A name: none for `dense`, else that of the shipped spec. Anything with a parenthesis or an operator is a
    text form (`hadamard(128) >> quantize(int4)`), in which names stand for the weights of shipped specs.
    """
    if text == DENSE:
        return ()
    if is_text(text):
        return read_text(text, shipped_weights)
    known = specs.names()
    name = specs.resolve(text)
    if name is None:
        reject(f"no chain is called {describe(text)}", did_you_mean(text, known, LIST_SPECS))
    chain = _shipped_chain(name, slot)
    if not chain:
        having = [other for other in known if _mentions(other, slot)]
        reject(f"the shipped spec {name} has no {slot}", did_you_mean(name, having, "dense is none"))
    return chain


def is_text(source: str) -> bool:
    """Whether this is a text form rather than a name."""
    return bool(re.search(r"[(@]|>>|\s\+\s", source))


def from_representation(weights: Representation) -> Spec:
    """The spec that gives the weights of every linear layer but `lm_head` a representation."""
    rule = {"targets": "Linear", "ignore": "lm_head", "weights": to_plain(weights) or DENSE}
    return load_spec({"version": 1, "summary": str(weights), "rules": rule})


def shipped_weights(name: str) -> Representation | None:
    """What a name inside a chain stands for: the weights of the shipped spec, None for a name of none."""
    found = specs.resolve(name)
    return None if found is None else load_spec(found).rules[0].weight_representation


def _shipped_chain(name: str, slot: Slot) -> tuple[Stage, ...]:
    """The chain of a shipped spec's first rule (shipped specs have one): that of the slot, for activations,
    gradients and caches that of the inputs where the spec has none of its own."""
    rule = load_spec(name).rules[0]
    own = rule.representation(slot).stages
    return own if own or slot == "weights" else rule.representation("input_activations").stages


def _mentions(name: str, slot: Slot) -> bool:
    """Whether a shipped spec writes a slot; for a hint, which is not worth loading all of them."""
    wanted = {slot} if slot == "weights" else {slot, "input_activations"}
    text = specs.path(name).read_text(encoding="utf-8")
    return any(re.search(rf"^[\s-]*{word}:(?!\s*dense)", text, re.MULTILINE) for word in wanted)


def load_spec(source: Spec | str | Path | Mapping[str, object]) -> Spec:
    """The spec in a file, in Python data, or shipped under a name.

    Args:
        source: the path of a YAML file, the name of a shipped spec or of a preset, the text form of a
            representation (of the weights of all linear layers but `lm_head`), a mapping as YAML gives it, or
            a spec.

    Raises:
        InvalidDocument: with every problem in the document and its parents.
        RequestError: no such file or name.
    """
    if isinstance(source, Spec):
        return source if source.extends is None else load_spec(source.to_document())
    if isinstance(source, Mapping):
        return _load(plain_document(source), Path(), ())
    if isinstance(source, str) and is_text(source) and not source.endswith((".yaml", ".yml")):
        return from_representation(from_text(source, shipped_weights))
    path = _find(source, Path())
    return _load(read_document(path), path.parent, (path.resolve(),))


def validate_file(path: str | Path) -> list[Problem]:
    """Every problem in a spec file; none when it loads."""
    try:
        load_spec(Path(path))
    except InvalidDocument as error:
        return error.problems
    except RequestError as error:
        return [Problem(str(path), 0, 0, error.message, error.advice)]
    return []


def _find(source: str | Path, folder: Path) -> Path:
    """The file that a name or a path relative to `folder` means."""
    path = folder / source
    if isinstance(source, Path) or path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    if (name := specs.resolve(str(source))) is not None:
        return specs.path(name)
    hint = did_you_mean(source, specs.names(), f"{LIST_SPECS}, and a path ends in .yaml")
    raise RequestError(f"no spec is called {describe(source)}", advice=hint)


def _load(document: Document, folder: Path, seen: tuple[Path, ...]) -> Spec:
    """The spec in a document, its parent resolved from `folder`; `seen` are the files being loaded."""
    data = dict(document.data)
    if document.file:
        data.setdefault("name", Path(document.file).stem)
    problems: list[Problem] = []
    spec = parent = None
    try:
        # As JSON, strictness refuses "4" for 4, yet mappings and lists still pass for models and tuples.
        spec = Spec.model_validate_json(json.dumps(data), strict=True, context={RESOLVE: shipped_weights})
    except ValidationError as error:
        problems += explained(error, document, Spec)
    if isinstance(extends := data.get("extends"), str):
        try:
            parent = _parent(extends, document, folder, seen)
        except InvalidDocument as error:
            own = [problem for problem in error.problems if problem.file == document.file]
            problems = sorted(problems + own, key=lambda problem: problem.line)
            problems += [problem for problem in error.problems if problem not in own]
    if problems or spec is None:
        raise InvalidDocument(problems)
    for position, rule in enumerate(spec.rules):
        rule._where = document.where(("rules", position))
    if parent is not None:
        inherited: dict[str, Any] = {
            "rules": spec.rules + parent.rules,
            "passes": spec.passes or parent.passes,
        }
        inherited["budget"] = spec.budget or parent.budget
        spec = spec.model_copy(update=inherited | {"extends": None})
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
