"""What pydantic found wrong with a spec, in plain words and at the place where it was written."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import NoReturn, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from ..passes.base import Pass
from ..passes.catalog import PASSES, kind_of
from ..runtime.errors import Problem
from ..runtime.estimators import ESTIMATORS, Estimator
from ..runtime.latents import LATENTS, Latent
from ..runtime.schedule import Schedule
from ..runtime.stages import STAGES, Stage
from .hints import did_you_mean, nearest
from .plain import Address, Document, describe

_OURS = "finding"  # the pydantic error type of our own findings
_KINDS = {
    "stage": [stage.kind for stage in STAGES],
    "estimator": [e.kind for e in ESTIMATORS],
    "latent": [latent.kind for latent in LATENTS],
    "pass": [kind_of(each) for each in PASSES],
}
_DECLARED: tuple[type[Stage] | type[Estimator] | type[Latent] | type[Pass], ...] = (
    *STAGES,
    *ESTIMATORS,
    *LATENTS,
    *PASSES,
)
_FIELDS = {kind_of(cls): tuple(f.name for f in fields(cls)) for cls in _DECLARED}  # type: ignore[arg-type]
_FIELDS["schedule"] = tuple(field.name for field in fields(Schedule))
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dataclass_type": "a mapping",
}
_ALTERNATIVES = {
    "bool": "true or false",
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "tuple[float, ...]": "a list of numbers",
    "literal['full']": "full",
}


@dataclass(frozen=True)
class Finding:
    """Something wrong inside a value: where in it, what, and what to do."""

    path: Address
    message: str
    hint: str = ""


def refuse(findings: Iterable[Finding]) -> None:
    """Raise pydantic's `ValidationError` with all findings, each at its own address, if there are any."""
    errors = [
        InitErrorDetails(
            type=PydanticCustomError(_OURS, "{message}", {"message": f.message, "hint": f.hint}),
            loc=f.path,
            input=None,
        )
        for f in findings
    ]
    if errors:
        raise ValidationError.from_exception_data("spec", errors)


def reject(message: str, hint: str = "") -> NoReturn:
    """Refuse the value as a whole."""
    refuse([Finding((), message, hint)])
    raise AssertionError  # a finding was given


def explained(error: ValidationError, document: Document, top: type[BaseModel]) -> list[Problem]:
    """Every finding of a failed validation of `document` as `top`, in the order of the file, each once."""
    findings = _merged(error.errors(include_url=False))
    problems = [_problem(details, document, top) for details in findings]
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.line, problem.column))


def _merged(findings: list[ErrorDetails]) -> list[ErrorDetails]:
    """Findings with those of one value's alternatives (`int | str`, each reported on its own) made one."""
    merged: dict[Address, ErrorDetails] = {}
    for details in findings:
        path, alternative = tuple(details["loc"]), details["loc"][-1] if details["loc"] else ""
        if alternative not in _ALTERNATIVES:
            merged[*path, details["type"]] = details
            continue
        before = merged.get(path[:-1])
        words = [*([before["msg"]] if before else ["Input should be"]), _ALTERNATIVES[str(alternative)]]
        message = (" or " if before else " ").join(words)
        merged[path[:-1]] = {**details, "loc": path[:-1], "type": "alternatives", "msg": message}
    return list(merged.values())


def _problem(details: ErrorDetails, document: Document, top: type[BaseModel]) -> Problem:
    path, kind = tuple(details["loc"]), details["type"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        known = _keys_at(path[:-1], top)
        return document.problem(
            path, f"unknown key {describe(path[-1])}", did_you_mean(str(path[-1]), known), at_key=True
        )
    if kind == "missing":
        return document.problem(path[:-1], f"{path[-1]} is missing", f"add {path[-1]}:")
    if kind == "value_error":
        message, _, hint = str(details["ctx"]["error"]).partition("; ")
        return document.problem(_blamed(path, f"{message} {hint}", document), message, hint)
    message, hint = _WORDED.get(kind, _wrong_type)(details, path)
    at = (*path, "kind") if kind == "union_tag_invalid" else path
    return document.problem(at, message, hint)


def _ours(details: ErrorDetails, path: Address) -> tuple[str, str]:
    return details["ctx"]["message"], details["ctx"]["hint"]


def _unknown_kind(details: ErrorDetails, path: Address) -> tuple[str, str]:
    noun, tag = _noun(path), details["input"]["kind"]
    if not isinstance(tag, str):
        return f"kind must be a word, got {describe(tag)}", f"known: {', '.join(_KINDS[noun])}"
    return f"no {noun} is called {describe(tag)}", did_you_mean(tag, _KINDS[noun])


def _no_kind(details: ErrorDetails, path: Address) -> tuple[str, str]:
    noun, written = _noun(path), details["input"].keys()
    kinds, article = _KINDS[noun], "an" if noun == "estimator" else "a"
    likely = max(kinds, key=lambda kind: len(written & set(_FIELDS[kind])))
    hint = f"add kind: {likely}" if written & set(_FIELDS[likely]) else ""
    return f"{article} {noun} needs a kind: {' or '.join(kinds)}", hint


def _wrong_choice(details: ErrorDetails, path: Address) -> tuple[str, str]:
    written = details["input"]
    choices = re.findall(r"'([^']*)'", details["ctx"]["expected"])
    if not choices:
        return f"{_name(path)} must be {details['ctx']['expected'].lower()}, got {describe(written)}", ""
    guess = nearest(written, choices) if isinstance(written, str) else None
    listed = ", ".join(choices[:-1]) + (" or " if choices[1:] else "") + choices[-1]
    hint = f"did you mean {guess!r}?" if guess else ""
    return f"{_name(path)} must be {listed}, got {describe(written)}", hint


def _wrong_type(details: ErrorDetails, path: Address) -> tuple[str, str]:
    expected, found = _EXPECTED.get(details["type"]), describe(details["input"])
    if expected is None and details["msg"].startswith("Input should be "):  # greater than, a multiple of, ...
        expected = details["msg"].removeprefix("Input should be ")
    if expected is None:
        return f"{_name(path)}: {details['msg'][0].lower()}{details['msg'][1:]}", ""
    return f"{_name(path)} must be {expected}, got {found}", ""


def _wrong_text(details: ErrorDetails, path: Address) -> tuple[str, str]:
    message = f"{_name(path)} must be letters, digits and . _ + -, got {describe(details['input'])}"
    return message, f"write {_name(path)}: and a word that can stand in a table or a file name"


_WORDED: dict[str, Callable[[ErrorDetails, Address], tuple[str, str]]] = {
    _OURS: _ours,
    "union_tag_invalid": _unknown_kind,
    "union_tag_not_found": _no_kind,
    "literal_error": _wrong_choice,
    "string_pattern_mismatch": _wrong_text,
}


def _blamed(path: Address, message: str, document: Document) -> Address:
    """The option of a stage that its own refusal names first, among those that were written."""
    for word in re.findall(r"\w+", message):
        if len(document.locate((*path, word))) > len(document.locate(path)):
            return (*path, word)
    return path


def _keys_at(path: Address, top: type[BaseModel]) -> tuple[str, ...]:
    """The keys that are known in the mapping at a path."""
    known, model = tuple(top.model_fields), top
    for part in path:
        if part in _FIELDS:
            known = _FIELDS[str(part)]
        elif part in model.model_fields:
            model = _model_in(model.model_fields[str(part)].annotation) or model
            known = tuple(model.model_fields)
    return known


def _model_in(annotation: object) -> type[BaseModel] | None:
    """The model inside an annotation such as `tuple[Rule, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _model_in(inner))), None)


def _name(path: Address) -> str:
    """What a person calls the value at a path: its key, or an entry of its list."""
    names = [part for part in path if isinstance(part, str) and part not in _FIELDS]
    name = names[-1] if names else "the spec"
    return f"an entry of {name}" if path and isinstance(path[-1], int) else name


def _noun(path: Address) -> str:
    if path[:1] == ("passes",):
        return "pass"
    if "latent" in path:
        return "latent"
    return "estimator" if "estimator" in path else "stage"
