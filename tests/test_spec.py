"""What a spec says: shorthands and long forms, composition, matching, digests and round trips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
import yaml
from hypothesis import given

from rhoc import specs
from rhoc.compiler.rules import EstimatorChoice, Rule
from rhoc.compiler.spec import Spec, load_spec, validate_file
from rhoc.compiler.targets import covers, match
from rhoc.runtime.errors import InvalidDocument
from rhoc.runtime.estimators import Banded, Estimator, StraightThrough, Trust
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify, Stage

from .strategies import hadamards, quantizers, repeatable, sparsifiers


def spec_of(text: str, folder: Path, name: str = "case.yaml") -> Spec:
    """The spec that a text loads to from a file."""
    file = folder / name
    file.write_text(text)
    return load_spec(file)


def rule_of(**rule: object) -> Rule:
    """The only rule of a spec from Python data, targets filled in."""
    (loaded,) = load_spec({"version": 1, "rules": {"targets": "Linear", **rule}}).rules
    return loaded


def test_three_mistakes_are_reported_at_once_in_place(tmp_path: Path) -> None:
    file = tmp_path / "three.yaml"
    file.write_text(
        "version: 1\n"
        "rules:\n"
        "  - targets: [Linear]\n"
        "    weights:\n"
        "      - {kind: hadamrd, block: 128}\n"
        "      - kind: quantize\n"
        "        num_bits: 12\n"
        "  - targets: [Embedding]\n"
        "    weigths: int4\n"
        "    weights: dense\n"
    )
    found = [(p.file, p.line, p.column) for p in validate_file(file)]
    assert found == [(str(file), 5, 16), (str(file), 7, 19), (str(file), 9, 5)]
    with pytest.raises(InvalidDocument) as caught:
        load_spec(file)
    assert str(caught.value).count("\n") == 2


def test_scalars_stand_for_lists() -> None:
    short = rule_of(
        ignore="lm_head", weights={"kind": "quantize", "num_bits": 4}, estimator={"kind": "trust"}
    )
    long = load_spec(
        {
            "version": 1,
            "rules": [
                {
                    "targets": ["Linear"],
                    "ignore": ["lm_head"],
                    "weights": [{"num_bits": 4, "kind": "quantize"}],
                    "input_activations": "dense",
                    "estimator": {"weights": ["trust"], "input_activations": ["trust"]},
                }
            ],
        }
    ).rules[0]
    assert short == long
    assert short.targets == ("Linear",)
    assert short.weights == (Quantize(4),)


def test_a_name_stands_for_the_chain_of_a_shipped_spec_in_the_same_slot() -> None:
    rule = rule_of(weights=["2of4"], input_activations="int8-a8", estimator="ste")
    assert rule.weights == load_spec("2of4").rules[0].weights != ()
    assert rule.input_activations == load_spec("int8-a8").rules[0].input_activations != ()
    assert rule_of(weights="dense").weight_representation.is_dense


def test_estimators() -> None:
    weights = {"kind": "sparsify", "sparsity": 0.5}
    assert rule_of(weights=weights).estimator == EstimatorChoice()
    assert rule_of(weights=weights).weight_estimators == (StraightThrough(),)
    banded = rule_of(weights=weights, estimator=["ste", {"kind": "banded", "p": 0.1}])
    assert banded.weight_estimators == banded.input_estimators == (StraightThrough(), Banded(p=0.1))
    apart = rule_of(weights="int4-a4", input_activations="int4-a4", estimator={"weights": "trust"})
    assert (apart.weight_estimators, apart.input_estimators) == ((Trust(),), (StraightThrough(),))


def test_rules_hold_representations() -> None:
    rule = rule_of(weights="sparse50-int4", input_activations="int4-a4")
    assert str(rule.weight_representation) == (
        "hadamard(128) >> sparsify(0.5) >> quantize(int4, midrise, tensor, rms)"
    )
    assert str(rule.input_representation) == "hadamard(128) >> quantize(int4, midrise, token, rms)"


def test_models_can_be_built_in_python() -> None:
    built = Spec(version=1, rules=(Rule(targets=("Linear",), weights=(Hadamard(64), Quantize(4))),))
    written = load_spec(
        {
            "version": 1,
            "rules": {
                "targets": "Linear",
                "weights": [{"kind": "hadamard", "block": 64}, {"kind": "quantize", "num_bits": 4}],
            },
        }
    )
    assert built == written
    assert hash(built) == hash(written)
    assert load_spec(built) is built
    assert load_spec(Spec(version=1, extends="int4")).rules == load_spec("int4").rules


def test_a_byte_order_mark_is_no_content(tmp_path: Path) -> None:
    file = tmp_path / "bom.yaml"
    file.write_bytes(b"\xef\xbb\xbfversion: 1\nextends: int4\n")
    assert load_spec(file).rules == load_spec("int4").rules


def test_extends_puts_the_parents_rules_after_the_childs(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    spec_of(
        "version: 1\nextends: int4\nrules: {targets: Conv2d, weights: dense}\n", tmp_path / "parts", "b.yaml"
    )
    child = spec_of(
        "version: 1\nextends: parts/b.yaml\nrules: {targets: Embedding, weights: int8}\n", tmp_path, "a.yaml"
    )
    assert [rule.targets for rule in child.rules] == [("Embedding",), ("Conv2d",), ("Linear",)]
    assert child.name == "a"
    assert child.extends is None
    assert load_spec(child.to_document()) == child
    assert [Path(rule.where.split(":")[0]).name for rule in child.rules] == ["a.yaml", "b.yaml", "int4.yaml"]


def test_problems_of_parents_come_with_those_of_the_child(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(
        "version: 1\nrules: {targets: Linear, weights: {kind: hadamard, block: 3}}\n"
    )
    (tmp_path / "a.yaml").write_text("version: 1\nextends: b.yaml\nsumary: x\n")
    found = [(Path(p.file).name, p.line, p.column) for p in validate_file(tmp_path / "a.yaml")]
    assert found == [("a.yaml", 3, 1), ("b.yaml", 2, 59)]


def test_load_spec_takes_names_paths_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_name = load_spec("int4")
    assert load_spec(specs.path("int4")) == load_spec(str(specs.path("int4"))) == by_name
    assert load_spec(by_name.to_document()) == by_name
    monkeypatch.chdir(tmp_path)
    mine = spec_of("version: 1\nextends: int2\n", tmp_path, "int4")
    assert load_spec("int4") == mine  # a file that exists comes before a shipped name
    assert load_spec({"version": 1, "extends": "int4"}).rules == mine.rules


def test_where_a_spec_came_from_is_no_part_of_it() -> None:
    shipped, copied = load_spec("int4"), load_spec(load_spec("int4").to_document())
    assert (shipped.source, copied.source) == (str(specs.path("int4")), "")
    assert shipped == copied
    assert hash(shipped) == hash(copied)
    assert shipped != load_spec("int4-a4")
    assert shipped != "int4"


LONG = """
version: 1
name: long
rules:
  - targets: [Linear]
    ignore: [lm_head]
    weights:
      - {kind: sparsify, sparsity: 0.5, sparsity_structure: unstructured}
      - {kind: quantize, num_bits: 8, type: int, symmetric: true, strategy: tensor, group_size: null,
         dynamic: false, observer: rms, scale_dtype: null, grid: null, clip: 2.0}
    input_activations: dense
    estimator: {weights: [{kind: banded, p: 0.0, area: null}], input_activations: [{kind: ste}]}
"""
SHORT = """
# another order, comments, defaults left out, and scalars for lists
rules:
  estimator: {weights: {p: 0, kind: banded}}
  weights: [{sparsity: 0.5, kind: sparsify}, {clip: 2, observer: rms, kind: quantize}]  # 8 bits
  ignore: lm_head
  targets: Linear
summary: the same numbers
version: 1
"""


def test_the_digest_sees_what_decides_numbers_and_nothing_else(tmp_path: Path) -> None:
    long, short = spec_of(LONG, tmp_path), spec_of(SHORT, tmp_path)
    assert long.digest == short.digest
    assert long.rules == short.rules
    assert long != short  # name and summary
    (rule,) = long.rules
    unused = EstimatorChoice(weights=rule.weight_estimators, input_activations=(Trust(),))
    assert _with(rule, estimator=unused).digest == long.digest  # inputs stay dense
    changed = [
        _with(rule, targets=("Conv2d",)),
        _with(rule, ignore=()),
        _with(rule, weights=rule.weights[:1]),
        _with(rule, weights=(rule.weights[0], replace(rule.weights[1], clip=2.5))),  # type: ignore[call-arg]
        _with(rule, estimator=EstimatorChoice(weights=(Banded(p=0.1),))),
        _with(rule, input_activations=(Quantize(8, strategy="token", dynamic=True),)),
        Spec(version=1, rules=(rule, rule)),
    ]
    assert len({long.digest, *(spec.digest for spec in changed)}) == 1 + len(changed)


def _with(rule: Rule, **changes: object) -> Spec:
    return Spec(version=1, rules=(rule.model_copy(update=changes),))


CLASSES = ("Linear", "Module")


@pytest.mark.parametrize(
    ("entry", "path", "covered"),
    [
        ("Linear", "layers.0.up", True),
        ("Linea", "layers.0.up", False),
        ("Module", "layers.0.up", True),
        ("layers.0.up", "layers.0.up", True),
        ("layers.0", "layers.0.up", False),
        ("re:layers", "layers.0.up", True),
        ("re:up", "layers.0.up", False),
        ("re:.*up", "layers.0.up", True),
        (r"re:layers\.\d+\.up$", "layers.0.up", True),
        (r"re:layers\.\d+\.up$", "layers.0.upper", False),
        ("re:Linear", "layers.0.up", False),
        ("re:.*", "", True),
        ("", "", True),
    ],
)
def test_what_an_entry_covers(entry: str, path: str, covered: bool) -> None:
    assert covers([entry], path, CLASSES) is covered


def test_ignored_modules_do_not_match() -> None:
    rule = rule_of(ignore=["lm_head", "re:.*norm", "Embedding"], weights="int4")
    assert match(rule, "up", CLASSES)
    assert not match(rule, "lm_head", CLASSES)
    assert not match(rule, "layers.0.norm", CLASSES)
    assert not match(rule, "up", ("Embedding", "Linear", "Module"))
    assert not match(rule, "conv", ("Conv2d", "Module"))


def weight_stages() -> st.SearchStrategy[Stage]:
    return quantizers().map(lambda stage: replace(stage, strategy="tensor", group_size=None))  # type: ignore[call-arg]


def input_stages() -> st.SearchStrategy[Stage]:
    return quantizers().map(lambda stage: replace(stage, strategy="token", group_size=None, dynamic=True))  # type: ignore[call-arg]


@st.composite
def chains(draw: st.DrawFn, last: st.SearchStrategy[Stage]) -> tuple[Stage, ...]:
    """Numbers first, at most one grid at the end."""
    before = draw(st.lists(hadamards() | sparsifiers(), max_size=3))
    return (*before, *draw(st.lists(last, max_size=1)))


def _allowed(stages: tuple[Stage, ...]) -> st.SearchStrategy[tuple[Estimator, ...]]:
    """Estimators that mean something for a chain."""
    kinds: list[st.SearchStrategy[Estimator]] = [st.just(StraightThrough())]
    if not stages or any(isinstance(stage, Quantize) for stage in stages):
        kinds.append(st.builds(Trust, st.floats(0.1, 4)))
    if not stages or any(isinstance(stage, Sparsify) for stage in stages):
        kinds.append(st.builds(Banded, p=st.floats(0, 0.49)) | st.builds(Banded, area=st.floats(0, 1)))
    return st.lists(st.one_of(kinds), min_size=1, max_size=3).map(tuple)


ENTRIES = st.sampled_from(["re:.*", "re:[a-z]+\\.up$"]) | st.text(min_size=1).filter(
    lambda text: bool(text.strip()) and not text.startswith("re:") and text.isprintable()
)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    """Any rule that the language allows."""
    weights, inputs = draw(chains(weight_stages())), draw(chains(input_stages()))
    return Rule(
        targets=tuple(draw(st.lists(ENTRIES, min_size=1, max_size=3))),
        ignore=tuple(draw(st.lists(ENTRIES, max_size=3))),
        weights=weights,
        input_activations=inputs,
        estimator=EstimatorChoice(weights=draw(_allowed(weights)), input_activations=draw(_allowed(inputs))),
    )


@repeatable
@given(st.lists(rules(), min_size=1, max_size=3).map(tuple), st.text(max_size=40))
def test_any_spec_survives_yaml(some: tuple[Rule, ...], summary: str) -> None:
    spec = Spec(version=1, name="any", summary=summary.encode(errors="ignore").decode(), rules=some)
    again = load_spec(yaml.safe_load(yaml.safe_dump(spec.to_document())))
    assert again == spec
    assert again.digest == spec.digest
    assert [Representation(rule.weights) for rule in again.rules] == [r.weight_representation for r in some]
