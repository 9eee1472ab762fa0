"""The specs that ship: their names, what each is, their form on disk, and the schema beside them."""

from __future__ import annotations

import json
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch
import yaml

from rhoc import specs
from rhoc.compiler.rules import EstimatorChoice, Rule
from rhoc.compiler.schema import json_schema
from rhoc.compiler.spec import Spec, load_spec
from rhoc.passes.catalog import PASSES
from rhoc.runtime.estimators import ESTIMATORS, Banded, StraightThrough, Trust
from rhoc.runtime.latents import LATENTS
from rhoc.runtime.plain import from_plain, to_plain
from rhoc.runtime.stages import STAGES
from rhoc.runtime.text_parser import from_text
from rhoc.specs.presets import PRESETS

INTS = {f"int{bits}": f"hadamard(128) >> quantize(int{bits}, midrise, channel, rms)" for bits in range(1, 9)}
WEIGHTS = {
    **INTS,
    **{f"{name}-a{name.removeprefix('int')}": chain for name, chain in INTS.items()},
    "dense": "dense",
    "fp4": "hadamard(128) >> quantize(e2m1, channel, rms)",
    "fp8": "hadamard(128) >> quantize(e4m3, channel, rms)",
    "sparse25": "sparsify(0.25)",
    "sparse50": "sparsify(0.5)",
    "sparse75": "sparsify(0.75)",
    "2of4": "sparsify(2:4)",
    "sparse50-int4": "hadamard(128) >> sparsify(0.5) >> quantize(int4, midrise, tensor, rms)",
    "2of4-int4": "hadamard(128) >> sparsify(2:4) >> quantize(int4, midrise, channel, rms)",
}
SLOTS = (
    *("weights", "input_activations", "output_activations", "grad_output", "kv_cache"),
    *("backward_weights", "backward_inputs"),
)
SPARSE = ("sparse25", "sparse50", "sparse75", "2of4")


def only_rule(name: str) -> Rule:
    (rule,) = load_spec(name).rules
    return rule


def test_the_library_covers_every_kind_of_stage() -> None:
    assert set(WEIGHTS) < set(specs.names())
    assert len(specs.names()) >= 60
    rules = [only_rule(name) for name in specs.names()]
    used = {stage.kind for rule in rules for stage in rule.weight_representation.all_stages()}
    assert used == {stage.kind for stage in STAGES}


def test_summaries_fit_a_line_of_the_table() -> None:
    summaries = {name: load_spec(name).summary for name in specs.names()}
    assert {name: text for name, text in summaries.items() if not 0 < len(text) <= 40} == {}
    assert len(set(summaries.values())) == len(summaries)


def test_presets_are_names_of_shipped_specs() -> None:
    assert set(PRESETS.values()) <= set(specs.names())
    assert not set(PRESETS) & set(specs.names())
    for preset, name in PRESETS.items():
        assert load_spec(preset) == load_spec(name)
    by_name = load_spec({"version": 1, "rules": {"targets": "Linear", "weights": "NVFP4"}}).rules[0]
    assert by_name.weight_representation == only_rule("nvfp4-a4").weight_representation


@pytest.mark.parametrize("name", specs.names())
def test_text_form_and_yaml_mean_the_same(name: str) -> None:
    weights = only_rule(name).weight_representation
    assert from_text(str(weights)) == weights
    assert from_plain(json.loads(json.dumps(to_plain(weights)))) == weights


@pytest.mark.parametrize("name", WEIGHTS)
def test_what_each_is(name: str) -> None:
    rule = only_rule(name)
    assert (rule.targets, rule.ignore) == (("Linear",), ("lm_head",))
    assert str(rule.weight_representation) == WEIGHTS[name]
    inputs = WEIGHTS[name].replace("channel", "token") if "-a" in name else "dense"
    assert str(rule.input_representation) == inputs
    estimator = Banded(p=0.0) if name in SPARSE else StraightThrough() if name == "dense" else Trust()
    assert rule.weight_estimators == (estimator,)
    if inputs != "dense":
        assert rule.input_estimators == (estimator,)


@pytest.mark.parametrize("name", specs.names())
def test_files_are_short_and_name_themselves_and_the_schema(name: str) -> None:
    text = specs.path(name).read_text()
    assert text.startswith("# yaml-language-server: $schema=rhoc.schema.json\nversion: 1\n")
    assert text.count("\n") <= 18
    spec = load_spec(name)
    assert (spec.name, spec.source) == (name, str(specs.path(name)))
    assert spec.summary
    assert "\n" not in spec.summary


@pytest.mark.parametrize("name", specs.names())
def test_round_trip(name: str) -> None:
    spec = load_spec(name)
    again = load_spec(yaml.safe_load(yaml.safe_dump(spec.to_document())))
    assert again == spec
    assert again.digest == spec.digest
    assert load_spec(json.loads(json.dumps(spec.to_document()))) == spec


def test_no_two_have_one_digest() -> None:
    assert len({load_spec(name).digest for name in specs.names()}) == len(specs.names())


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("dense", 16.0),
        ("int1", 1.0 + 16 / 512),
        ("int4", 4.0 + 16 / 512),
        ("fp4", 4.0 + 16 / 512),
        ("fp8", 8.0 + 16 / 512),
        ("sparse50", 8.0 + 1),
        ("2of4", 8.0 + 1),
        ("sparse50-int4", 2.0 + 1 + 16 / (256 * 512)),
        ("2of4-int4", 2.0 + 1 + 16 / 512),
    ],
)
def test_stored_bits(name: str, bits: float) -> None:
    representation = only_rule(name).weight_representation
    assert representation.bits_per_weight((256, 512), torch.bfloat16) == pytest.approx(bits, rel=1e-12)


def test_the_shipped_schema_is_fresh() -> None:
    shipped = json.loads((specs.path("int4").parent / "rhoc.schema.json").read_text())
    assert shipped == json_schema(), "write it again: rhoc schema > specs/rhoc.schema.json"


def test_the_schema_accepts_the_shorthands() -> None:
    defined = json_schema()["$defs"]
    rule, choice = defined["Rule"]["properties"], defined["EstimatorChoice"]["properties"]
    text = {"type": "string", "minLength": 1}
    assert rule["targets"]["anyOf"] == [text, {"type": "array", "items": text, "minItems": 1}]
    assert rule["ignore"]["anyOf"] == [text, {"type": "array", "items": text, "minItems": 0}]
    stage = {"$ref": "#/$defs/Stage"}
    name, written, *mappings = defined["Chain"]["anyOf"]
    assert name["enum"] == sorted([*specs.names(), *PRESETS])
    assert re.search(written["pattern"], "hadamard(128) >> quantize(int4)")
    assert mappings == [stage, {"type": "array", "items": stage}]
    for slot in SLOTS:
        assert rule[slot]["anyOf"] == [{"$ref": "#/$defs/Chain"}]
    kinds = {"enum": [estimator.kind for estimator in ESTIMATORS]}
    assert defined["Estimator"]["anyOf"] == [kinds, *({"$ref": f"#/$defs/{e.__name__}"} for e in ESTIMATORS)]
    several = {"$ref": "#/$defs/Estimators"}
    assert rule["latent"]["anyOf"] == [{"enum": ["power"]}, {"$ref": "#/$defs/Power"}]
    scheduled = {"$ref": "#/$defs/Schedule"}
    assert rule["schedule"]["anyOf"] == [scheduled, {"type": "array", "items": scheduled, "minItems": 0}]
    assert rule["estimator"]["anyOf"] == [several, {"$ref": "#/$defs/EstimatorChoice"}]
    assert choice["weights"]["anyOf"] == choice["input_activations"]["anyOf"] == [several]


def test_the_schema_refuses_what_loading_refuses() -> None:
    schema = json_schema()
    objects = [schema, *(d for d in schema["$defs"].values() if d.get("type") == "object")]
    assert len(objects) == 6 + len(STAGES) + len(ESTIMATORS) + len(LATENTS) + len(PASSES)
    assert all(definition["additionalProperties"] is False for definition in objects)
    rule, quantize = schema["$defs"]["Rule"], schema["$defs"]["Quantize"]["properties"]
    assert rule["required"] == ["targets"]
    assert rule["anyOf"] == [{"required": [slot]} for slot in SLOTS]
    assert quantize["kind"]["const"] == "quantize"
    assert quantize["num_bits"]["type"] == "integer"
    assert {"absmax", "mse", "rms"} < set(quantize["observer"]["enum"])
    assert schema["$defs"]["Sum"]["properties"]["terms"]["items"] == {"$ref": "#/$defs/Chain"}
    assert schema["$defs"]["Product"]["properties"]["left"]["anyOf"] == [{"$ref": "#/$defs/Chain"}]
    assert schema["properties"]["version"]["const"] == 1


def test_every_reference_in_the_schema_leads_somewhere() -> None:
    schema = json_schema()
    found = set(re.findall(r'"#/\$defs/(\w+)"', json.dumps(schema)))
    assert found == set(schema["$defs"])


def test_the_schema_describes_everything_from_docstrings() -> None:
    schema = json_schema()
    assert schema["required"] == ["version"]
    described = {**{cls.__name__: cls for cls in (*STAGES, *ESTIMATORS)}, "Rule": Rule}
    for name, declared in {**described, "EstimatorChoice": EstimatorChoice}.items():
        first = (declared.__doc__ or "").split("\n")[0]
        assert schema["$defs"][name]["description"].startswith(first)
        if declared in (*STAGES, *ESTIMATORS):
            needed = [f.name for f in fields(declared) if f.default is MISSING]  # type: ignore[arg-type]
            assert schema["$defs"][name]["required"] == ["kind", *needed]
    assert all("description" in option for option in schema["properties"].values())
    assert all("description" in option for option in schema["$defs"]["Rule"]["properties"].values())
    assert set(schema["properties"]) == set(Spec.model_fields)


def test_rules_know_their_files() -> None:
    assert Path(only_rule("int4").where.split(":")[0]) == specs.path("int4")


@pytest.mark.parametrize("name", specs.systems())
def test_a_system_goes_by_its_name(name: str) -> None:
    spec = load_spec(name)
    assert f"systems/{spec.name}" == name
    assert load_spec(json.loads(json.dumps(spec.to_document()))) == spec
    assert "nterpretation" in specs.path(name).read_text() or "Ours" in specs.path(name).read_text()
