"""The exact words and addresses of every refusal of the spec language."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import BaseModel, Field, ValidationError

from rhoc.compiler.documents import MAX_BYTES, parse_document, read_document
from rhoc.compiler.hints import did_you_mean, nearest
from rhoc.compiler.messages import explained
from rhoc.compiler.plain import MAX_VALUES, plain_document
from rhoc.compiler.spec import load_spec, validate_file
from rhoc.runtime.errors import InvalidDocument, RequestError
from rhoc.runtime.estimators import ESTIMATORS
from rhoc.runtime.stages import STAGES as REGISTERED

HEAD = "version: 1\nrules:\n  targets: Linear\n"
KNOWN = [estimator.kind for estimator in ESTIMATORS]
PLACE = "¶"  # stands in a case before what is to be blamed


def said(content: str | bytes, folder: Path) -> list[str]:
    """What is wrong with a file, without its name."""
    file = folder / "case.yaml"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return [str(problem).removeprefix(f"{file}:") for problem in validate_file(file)]


def blamed(content: str, message: str, folder: Path) -> None:
    """Assert that `message` is all that is said, about the place that is marked."""
    before, mark, after = content.partition(PLACE)
    assert mark
    line, column = before.count("\n") + 1, len(before.rpartition("\n")[2]) + 1
    assert said(before + after, folder) == [f"{line}:{column}: {message}"]


def in_python(data: object) -> str:
    with pytest.raises(InvalidDocument) as caught:
        load_spec(data)  # type: ignore[arg-type]
    return str(caught.value)


KINDS = ", ".join(stage.kind for stage in REGISTERED)
STAGES = {
    "{kind: hadamard, block: ¶42}": (
        "block must be a power of two, or that times an order of Paley's matrices (12, 20, 28, ...), got 42; "
        "the nearest powers of two are 32 and 64"
    ),
    "{kind: quantize, num_bits: ¶12}": "num_bits must be between 1 and 8, got 12",
    "{kind: quantize, strategy: ¶group}": (
        "strategy 'group' and group_size go together: give both or neither"
    ),
    "{kind: quantize, group_size: ¶32}": (
        "strategy 'group' and group_size go together: give both or neither"
    ),
    "{kind: quantize, strategy: group, group_size: ¶0}": "group_size must be positive, got 0",
    "{kind: quantize, clip: ¶2.5}": "clip is a positive factor of the rms and needs observer: rms",
    "{kind: quantize, num_bits: 4, grid: ¶e2m1}": "grid 'e2m1' is not a grid of type 'int'",
    "{kind: quantize, num_bits: 1, grid: ¶twos}": (
        "twos with 1 bit has no level above zero; use grid: midrise"
    ),
    "¶{kind: quantize, num_bits: 5, type: float}": ("a 5-bit float needs a grid, for example grid: e3m2"),
    "{kind: quantize, type: float, grid: ¶e9m9}": (
        "no grid is called 'e9m9'; known are midrise, midtread, twos, unsigned, binary, ternary, floats such as "
        "e2m1 or e4m3fn, nf4, fp4-bnb, lloyd, log, logsqrt2, apot, or a list of levels"
    ),
    "{kind: quantize, type: float, grid: ¶e2m1}": ("grid e2m1 has 4 bits (sign included), but num_bits is 8"),
    "¶{kind: sparsify}": "unstructured sparsity must be a fraction between 0 and 1, got None",
    "{kind: sparsify, sparsity: ¶50}": ("unstructured sparsity must be a fraction between 0 and 1, got 50.0"),
    "{kind: sparsify, sparsity_structure: ¶half}": (
        "sparsity_structure must be 'unstructured', 'n:m', 'block:RxC', 'row' or 'column', got 'half'"
    ),
    "¶{kind: sparsify, sparsity_structure: 4:2}": "n:m needs 0 < n < m <= 256, got 4:2",
    "{kind: sparsify, sparsity_structure: 2:4, sparsity: ¶0.9}": ("2:4 is 0.5 sparse; leave `sparsity` out"),
    "{kind: ¶hadamrd}": (f"no stage is called 'hadamrd'; did you mean 'hadamard'? (known: {KINDS})"),
    "{kind: ¶zip}": f"no stage is called 'zip'; known: {KINDS}",
    "{kind: ¶7}": f"kind must be a word, got 7; known: {KINDS}",
    "¶{num_bits: 4}": f"a stage needs a kind: {KINDS.replace(', ', ' or ')}; add kind: quantize",
    "¶{}": f"a stage needs a kind: {KINDS.replace(', ', ' or ')}",
    "{kind: hadamard, ¶blok: 64}": "unknown key 'blok'; did you mean 'block'? (known: block, signs, kind)",
    "{kind: quantize, num_bits: ¶'4'}": "num_bits must be a whole number, got '4'",
    "{kind: quantize, num_bits: ¶4.0}": "num_bits must be a whole number, got 4.0",
    "{kind: quantize, num_bits: ¶true}": "num_bits must be a whole number, got true",
    "{kind: quantize, num_bits: ¶[4]}": "num_bits must be a whole number, got a list",
    "{kind: sparsify, sparsity: ¶half}": "sparsity must be a number, got 'half'",
    "{kind: quantize, grid: ¶3}": "grid must be text or a list of numbers, got 3",
    "{kind: scale, rule: ¶rsm}": "rule must be rms or absmax, got 'rsm'; did you mean 'rms'?",
    "{kind: quantize, type: ¶3}": "type must be int or float, got 3",
    "{kind: quantize, symmetric: ¶3}": "symmetric must be true or false, got 3",
}


@pytest.mark.parametrize(("stage", "expected"), STAGES.items(), ids=STAGES)
def test_stages(stage: str, expected: str, tmp_path: Path) -> None:
    blamed(f"{HEAD}  weights: {stage}\n", expected, tmp_path)


RULES = {
    "weights: ¶dens": (
        "no chain is called 'dens'; did you mean 'dense'? (`rhoc specs ls` lists the shipped specs)"
    ),
    "weights: ¶~": (
        "weights must be a name, a stage or a list of stages, got nothing; write dense for no stage"
    ),
    "weights: [¶3]": "an entry of weights must be a mapping, got 3",
    "input_activations: ¶int4": (
        "the shipped spec int4 has no input_activations; did you mean 'int4-a4'? (dense is none)"
    ),
    "weights: [{kind: quantize}, ¶{kind: hadamard}]": (
        "hadamard cannot follow quantize, which hands on integer codes and not numbers; "
        "move hadamard before quantize"
    ),
    "weights: {kind: quantize, strategy: ¶token}": (
        "a weight has no tokens to share a scale; use strategy: channel, one scale per row"
    ),
    "weights: {kind: quantize, dynamic: ¶true}": (
        "weights are stored with their scales, so nothing about them is dynamic; remove it"
    ),
    "input_activations: {kind: quantize, strategy: ¶channel, dynamic: true}": (
        "an activation's channels lie across tokens, and a matmul cannot take their scales out of its "
        "sum; use strategy: token, one scale per token"
    ),
    "input_activations: ¶{kind: quantize}": (
        "scales of input_activations are computed from each tensor; fixed ones would need calibration; "
        "write dynamic: true, or learn one: estimator: {input_activations: lsq}"
    ),
    "weights: {kind: sparsify, sparsity: 0.5}\n  estimator: ¶trust": (
        "weights: 'trust' needs a grid, and sparsify(0.5) has none; use 'ste' or 'banded'"
    ),
    "weights: int4\n  estimator: ¶{kind: banded, p: 0}": (
        "weights: 'banded' needs a sparse stage, and hadamard(128) >> quantize(int4, midrise, channel, "
        "rms) has none; use 'ste' or 'trust'"
    ),
    "weights: sparse50\n  input_activations: int8-a8\n  estimator: [ste, ¶{kind: banded, p: 0}]": (
        "input_activations: 'banded' needs a sparse stage, and hadamard(128) >> quantize(int8, midrise, "
        "token, rms) has none; use 'ste' or 'trust', or give each its own: estimator: {weights: ..., "
        "input_activations: ...}"
    ),
    "weights: dense\n  estimator: ¶{kind: banded}": "banded takes either p (b-rms) or area (a-b-rms)",
    "weights: dense\n  estimator: {kind: banded, p: ¶0.5}": "p must be in [0, 0.5), got 0.5",
    "weights: dense\n  estimator: {kind: banded, area: ¶2}": "area must be in [0, 1], got 2.0",
    "weights: dense\n  estimator: {kind: trust, factor: ¶0}": "factor must be positive, got 0.0",
    "weights: dense\n  estimator: ¶turst": (
        f"no estimator is called 'turst'; did you mean 'trust'? (known: {', '.join(KNOWN)})"
    ),
    "weights: dense\n  estimator: ¶3": (
        f"estimators are a name, a mapping or a list of these, got 3; known: {', '.join(KNOWN)}"
    ),
    "weights: dense\n  estimator: {weights: ¶3}": (
        f"estimators are a name, a mapping or a list of these, got 3; known: {', '.join(KNOWN)}"
    ),
    "weights: dense\n  estimator: [¶[ste]]": (
        f"an estimator must be a name or a mapping, got a list; known: {', '.join(KNOWN)}"
    ),
    "weights: dense\n  estimator: ¶[]": ("the list of estimators is empty; write ste for straight-through"),
    "weights: dense\n  estimator: {¶weigths: ste}": (
        "unknown key 'weigths'; did you mean 'weights'? "
        "(known: weights, input_activations, output_activations, kv_cache)"
    ),
    "weights: dense\n  estimator: {weights: ¶{p: 0.1}}": (
        f"an estimator needs a kind: {' or '.join(KNOWN)}; add kind: banded"
    ),
    "weights: dense\n  ¶igonre: lm_head": (
        "unknown key 'igonre'; did you mean 'ignore'? "
        "(known: targets, ignore, weights, input_activations, output_activations, grad_output, kv_cache, "
        "backward_weights, backward_inputs, estimator, latent, schedule, bank)"
    ),
    "weights: dense\n  ignore: [Linear, ¶'']": "an empty name matches nothing",
    "weights: dense\n  ignore: ¶'re:'": "the pattern is empty; 're:.*' matches every module",
    "weights: dense\n  ignore: ¶'re:(a'": (
        "the pattern '(a' is no regular expression: missing ), unterminated subpattern at character 1"
    ),
    "weights: dense\n  ignore: ¶'re:a{99999999999}'": (
        "the pattern 'a{99999999999}' is no usable regular expression: the repetition number is too large"
    ),
    "weights: dense\n  ignore: ¶'re:[[a]'": (
        "the pattern '[[a]' is no usable regular expression: Possible nested set at position 1"
    ),
    "weights: dense\n  ignore: ¶4": "ignore must be a list, got 4",
    "weights: dense\n  ignore: [¶4]": "an entry of ignore must be text, got 4",
}


@pytest.mark.parametrize(("rule", "expected"), RULES.items(), ids=RULES)
def test_rules(rule: str, expected: str, tmp_path: Path) -> None:
    blamed(f"{HEAD}  {rule}\n", expected, tmp_path)


def test_a_rule_that_does_nothing(tmp_path: Path) -> None:
    message = "the rule says neither weights nor input_activations; write weights: dense"
    blamed(f"version: 1\nrules:\n  {PLACE}targets: Linear\n  ignore: lm_head\n", message, tmp_path)


WHOLE = {
    "¶name: x\nrules: {targets: Linear, weights: int4}": "version is missing; add version:",
    "version: ¶2\nextends: int4": "version must be 1, got 2",
    "version: ¶'1'\nextends: int4": "version must be 1, got '1'",
    "¶version: 1": "the spec has no rules; add rules, or extends: with the name of a spec",
    "version: 1\nrules: ¶int4": "an entry of rules must be a mapping, got 'int4'",
    "version: 1\nrules: ¶3": "rules must be a list, got 3",
    "version: 1\nrules: ¶{weights: int4}": "targets is missing; add targets:",
    "version: 1\nrules: {targets: ¶[], weights: int4}": (
        "targets is empty, so the rule matches nothing; "
        "name a class (Linear), a module path, or a pattern (re:.*mlp.*)"
    ),
    "version: 1\nname: ¶a b\nextends: int4": (
        "name must be letters, digits and . _ + -, got 'a b'; "
        "write name: and a word that can stand in a table or a file name"
    ),
    "version: 1\nextends: ¶[int4]": "extends must be text, got a list",
    "version: 1\nextends: ¶itn4": (
        "no spec is called 'itn4'; did you mean 'int4'? "
        "(`rhoc specs ls` lists the shipped specs, and a path ends in .yaml)"
    ),
    "version: 1\nextends: ¶case.yaml": (
        "extends goes in a circle: case.yaml -> case.yaml; remove one of them"
    ),
}


@pytest.mark.parametrize(("spec", "expected"), WHOLE.items(), ids=WHOLE)
def test_specs(spec: str, expected: str, tmp_path: Path) -> None:
    blamed(spec, expected, tmp_path)


HERE = b"\xb6"  # the same in bytes; without it, the first character is to be blamed

YAML = {
    b"": "the file is empty; `rhoc specs show int4` prints an example",
    b"# nothing\n": "the file is empty; `rhoc specs show int4` prints an example",
    b"- a\n": "the top level must be a mapping of keys to values, found a list; begin with `version: 1`",
    b"\n \xb6int4\n": (
        "the top level must be a mapping of keys to values, found 'int4'; begin with `version: 1`"
    ),
    b"a: 1\nb: 2\n\xb6a: 3\n": "'a' is given twice, first on line 1; keep one of the two",
    b"a:\n\xb6\t- 1\n": "a tab where YAML wants spaces; indent with spaces",
    b"a: [1\nb\xb6: 2\n": (
        "expected ',' or ']', but got ':' while parsing a flow sequence; "
        "check indentation, colons, brackets and quotes"
    ),
    b"a: \xb6*b\n": "found undefined alias 'b'; check indentation, colons, brackets and quotes",
    b"a: 1\n\xb6---\nb: 2\n": (
        "expected a single document in the stream, but found another document; "
        "check indentation, colons, brackets and quotes"
    ),
    b"a: \xb6\xe9\n": "this is not UTF-8 text (byte 0xe9); save the file as UTF-8",
    b"\xff\xfea\x00": "this is not UTF-8 text (byte 0xff); save the file as UTF-8",
    b"ok: 1\na: \xb6\x00\n": r"the character '\x00' is not allowed in YAML; remove it",
    b"a: \xb6!!python/object:os.system x\n": (
        "the tag '!!python/object:os.system' is not allowed; write plain text, numbers, lists and mappings"
    ),
    b"a: \xb6!!int x\n": "'x' does not fit its tag; remove the tag",
    b"a: \xb6!!bool x\n": "'x' does not fit its tag; remove the tag",
    b"a: \xb6!!null x\n": "'x' does not fit its tag; remove the tag",
    b"a: \xb6!!float x\n": "'x' does not fit its tag; remove the tag",
    b"a: \xb6!!str [x]\n": "a list does not fit its tag; remove the tag",
    b"a: \xb6!!float {x: 1}\n": "a mapping does not fit its tag; remove the tag",
    b"1: a\n": "a key must be a word, found '1'; put it in quotes if you mean text",
    b"? \xb6[a]\n: 1\n": "a key must be a word, found a list; put it in quotes if you mean text",
    b"a: \xb699999999999999999999\n": "found a whole number of more than 64 bits",
    b"a: \xb61" + b"0" * 5000 + b"\n": "found a whole number of more than 64 bits",
    b"a: \xb6.nan\n": "found a number that is not finite",
    b"a: \xb61e999\n": "found a number that is not finite",
    b'a: \xb6"\\ud800"\n': "found half of a surrogate pair",
    b"a: \xb6&a [*a]\n": "an alias stands inside what it repeats; write it out",
    b"a: " + b"[" * 31 + HERE + b"[" * 9: "nested deeper than 32; flatten it",
    b"a: [" + b"1," * (MAX_VALUES - 3) + HERE + b"1, 1]": (
        "more than 10,000 values, aliases expanded; split it with `extends`"
    ),
    b"#" * (MAX_BYTES + 1): "the file is larger than 300,000 bytes; split it with `extends`",
}


@pytest.mark.parametrize(("content", "expected"), YAML.items(), ids=[repr(key[:30]) for key in YAML])
def test_yaml(content: bytes, expected: str, tmp_path: Path) -> None:
    before, mark, after = content.partition(HERE)
    line, column = before.count(b"\n") + 1, len(before.rpartition(b"\n")[2]) + 1
    assert said(before + after, tmp_path) == [f"{line}:{column}: {expected}" if mark else f"1:1: {expected}"]


def test_a_pattern_nested_too_deeply(tmp_path: Path) -> None:
    (problem,) = said(f"{HEAD}  weights: dense\n  ignore: 're:{'(' * 5000}'\n", tmp_path)
    shown = "(" * 60
    assert problem == f"5:11: the pattern '{shown}...' is no usable regular expression: nested too deeply"


class Entry(BaseModel):
    """A model of another document than a spec, as sweeps have."""

    counts: list[Annotated[int, Field(gt=0)]] = [1]
    seeds: Annotated[list[int], Field(min_length=1)] = [1]
    settings: dict[str, bool | int | float | str] = {}


class Table(BaseModel, extra="forbid"):
    entries: list[Entry]


def test_other_models_are_explained_too() -> None:
    text = b"entries:\n  - counts: [1, 0]\n    seeds: []\n    settings: {lr: [1], name: x}\nentires: 1\n"
    document = parse_document(text, "grid.yaml")
    with pytest.raises(ValidationError) as caught:
        Table.model_validate_json(json.dumps(document.data), strict=True)
    assert [str(problem) for problem in explained(caught.value, document, Table)] == [
        "grid.yaml:2:17: an entry of counts must be greater than 0, got 0",
        "grid.yaml:3:12: seeds: list should have at least 1 item after validation, not 0",
        "grid.yaml:4:20: lr must be true or false or a whole number or a number or text, got a list",
        "grid.yaml:5:1: unknown key 'entires'; did you mean 'entries'? (known: entries)",
    ]


def test_aliases_are_counted_expanded() -> None:
    levels = [b"a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    levels += [b"a%d: &a%d [%s]" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 9)]
    with pytest.raises(InvalidDocument, match=r"bomb\.yaml:1:\d+: more than 10,000 values, aliases expanded"):
        parse_document(b"\n".join(levels), "bomb.yaml")


def test_a_circle_through_a_parent_names_every_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("version: 1\nextends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("version: 1\nextends: a.yaml\n")
    with pytest.raises(InvalidDocument) as caught:
        load_spec(tmp_path / "a.yaml")
    expected = f"{tmp_path / 'b.yaml'}:2:10: extends goes in a circle: a.yaml -> b.yaml -> a.yaml"
    assert str(caught.value) == f"{expected}; remove one of them"


def test_a_missing_parent_is_reported_where_it_is_named(tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("version: 1\nextends: gone.yaml\nrulse: []\n")
    assert [str(problem) for problem in validate_file(child)] == [
        f"{child}:2:10: {tmp_path / 'gone.yaml'}: there is no such file; check the path",
        f"{child}:3:1: unknown key 'rulse'; did you mean 'rules'? "
        "(known: version, name, summary, extends, rules, passes, budget)",
    ]


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "no.yaml"
    assert [str(p) for p in validate_file(missing)] == [f"{missing}: there is no such file; check the path"]
    with pytest.raises(RequestError, match="this is a folder, not a file; check the path"):
        read_document(tmp_path)


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret.yaml"
    file.write_text("version: 1\n")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RequestError) as caught:
        load_spec(file)
    assert str(caught.value) == f"{file}: cannot be read: Permission denied; check its permissions"


def test_unknown_names() -> None:
    with pytest.raises(RequestError) as caught:
        load_spec("int44")
    assert str(caught.value) == (
        "no spec is called 'int44'; did you mean 'int4'? "
        "(`rhoc specs ls` lists the shipped specs, and a path ends in .yaml)"
    )
    with pytest.raises(
        RequestError,
        match=r"no spec is called 'zzz'; `rhoc specs ls` lists the shipped specs, and a path ends",
    ):
        load_spec("zzz")


def test_python_data_is_addressed_by_path() -> None:
    rule = {"targets": "Linear", "weights": [{"kind": "hadamard"}, {"kind": "quantize", "num_bits": 12}]}
    message = "rules[0].weights[1].num_bits: num_bits must be between 1 and 8, got 12"
    assert in_python({"version": 1, "rules": [rule]}) == message
    assert in_python({"version": 1}) == (
        "spec: the spec has no rules; add rules, or extends: with the name of a spec"
    )
    assert in_python({"version": 1, "rules": [{"targets": {"Linear"}}]}) == (
        "rules[0].targets: found a set, where text, a number, a boolean, a list or a mapping can stand"
    )
    assert in_python({"version": 1, "rules": {1: 2}}) == "rules: a key must be a word, found 1"
    circle: dict[str, object] = {"version": 1}
    circle["rules"] = circle
    assert in_python(circle) == "rules.rules.rules: nested deeper than 32; flatten it"


def test_plain_data_is_bounded() -> None:
    with pytest.raises(InvalidDocument, match=r"rules\[9998\]: more than 10,000 values, aliases expanded"):
        plain_document({"rules": [1] * MAX_VALUES})


def test_a_file_whose_name_is_no_word_needs_a_name(tmp_path: Path) -> None:
    file = tmp_path / "my format.yaml"
    file.write_text("version: 1\nextends: int4\n")
    (problem,) = validate_file(file)
    assert (problem.line, problem.message) == (1, "name must be letters, digits and . _ + -, got 'my format'")


def test_long_values_are_cut(tmp_path: Path) -> None:
    (problem,) = said(f"{HEAD}  weights: {'x' * 500}\n", tmp_path)
    assert problem.startswith(f"4:12: no chain is called '{'x' * 56}...; `rhoc specs ls`")


def test_nearest_ignores_case_and_dashes() -> None:
    assert nearest("NUM-BITS", ["num_bits", "type"]) == "num_bits"
    assert nearest("qqq", ["num_bits", "type"]) is None
    assert nearest("n" * 100, ["n" * 99]) is None
    assert did_you_mean("x", ["a", "b"], "look there") == "known: a, b (look there)"
