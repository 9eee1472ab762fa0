"""The JSON Schema of the spec language, for editors: generated from the models, shorthands accepted.

pydantic writes the schema of the long form. What loading also accepts (a scalar for a list of one entry, a
name for a chain or an estimator, one estimator for both slots) is added here, so that an editor underlines
nothing that loads. Descriptions are the docstrings; an option's is the sentence of its class that opens with
its name.
"""

from __future__ import annotations

import re
from typing import Any, get_args

from .. import specs
from ..runtime.estimators import ESTIMATORS
from ..runtime.latents import LATENTS
from ..runtime.representation import Representation
from ..runtime.stages import STAGES
from ..runtime.text import alternatives
from ..runtime.text import declared as options_of
from ..specs.presets import PRESETS
from .chains import SLOTS
from .rules import DENSE, ESTIMATED
from .spec import Spec

Schema = dict[str, Any]

_DIALECT = "http://json-schema.org/draft-07/schema#"  # what YAML language servers read without being told


def json_schema() -> Schema:
    """The schema of a spec file. The shipped `specs/rhoc.schema.json` is this document."""
    schema = Spec.model_json_schema()
    definitions: Schema = schema.pop("$defs")
    for definition in (schema, *definitions.values()):
        _describe_options(definition)
    for declared in (*STAGES, *ESTIMATORS, *LATENTS):
        needed = [name for name in definitions[declared.__name__].get("required", []) if name != "kind"]
        definitions[declared.__name__]["required"] = ["kind", *needed]
    definitions |= {
        "Stage": {"anyOf": [_ref(stage.__name__) for stage in STAGES]},
        "Chain": _chain(),
        "Estimator": {"anyOf": [_estimator_name(), *(_ref(e.__name__) for e in ESTIMATORS)]},
        "Estimators": _one_or_more(_ref("Estimator"), at_least=1),
    }
    _accept_shorthands(schema, definitions)
    return {"$schema": _DIALECT, **schema, "$defs": dict(sorted(definitions.items()))}


def _accept_shorthands(schema: Schema, definitions: Schema) -> None:
    _replace(schema, "rules", _one_or_more(_ref("Rule")))
    rule, choice = definitions["Rule"], definitions["EstimatorChoice"]
    pattern = {"type": "string", "minLength": 1}
    _replace(rule, "targets", _one_or_more(pattern, at_least=1))
    _replace(rule, "ignore", _one_or_more(pattern))
    for slot in SLOTS:
        _replace(rule, slot, _ref("Chain"))
        if slot in ESTIMATED:
            _replace(choice, slot, _ref("Estimators"))
    for stage in STAGES:
        for name, hint in options_of(stage).items():
            if Representation in alternatives(hint):
                _replace(definitions[stage.__name__], name, _ref("Chain"))
            elif any(Representation in get_args(kind) for kind in alternatives(hint)):
                _replace(definitions[stage.__name__], name, {"type": "array", "items": _ref("Chain")})
    rule["anyOf"] = [{"required": [slot]} for slot in SLOTS]
    latents = {"enum": [latent.kind for latent in LATENTS]}
    _replace(rule, "latent", {"anyOf": [latents, *(_ref(latent.__name__) for latent in LATENTS)]})
    _replace(rule, "schedule", _one_or_more(_ref("Schedule")))
    _replace(rule, "estimator", {"anyOf": [_ref("Estimators"), _ref("EstimatorChoice")]})


def _replace(definition: Schema, name: str, schema: Schema) -> None:
    """Another schema for a property, its description kept (draft 7 reads nothing beside a `$ref`)."""
    before = definition["properties"][name]
    wrapped = {"anyOf": [schema]} if "$ref" in schema else schema
    definition["properties"][name] = {**{k: before[k] for k in ("description",) if k in before}, **wrapped}


def _chain() -> Schema:
    names = sorted({DENSE, *specs.names(), *PRESETS})
    name = {"enum": names, "description": "the chain that this shipped spec has in the same place"}
    text = {"type": "string", "pattern": r"[(@+]|>>", "description": "hadamard(128) >> quantize(int4)"}
    return {"anyOf": [name, text, _ref("Stage"), {"type": "array", "items": _ref("Stage")}]}


def _estimator_name() -> Schema:
    return {"enum": [estimator.kind for estimator in ESTIMATORS]}


def _one_or_more(item: Schema, at_least: int = 0) -> Schema:
    return {"anyOf": [item, {"type": "array", "items": item, "minItems": at_least}]}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _describe_options(definition: Schema) -> None:
    sentences = re.split(r"(?<=\.)\s+", " ".join(definition["description"].split()))
    for name, option in definition["properties"].items():
        option.pop("title", None)
        opening = [sentence for sentence in sentences if re.match(rf"`{name}\b", sentence)]
        if opening or name == "kind":
            option["description"] = opening[0] if opening else sentences[0]
