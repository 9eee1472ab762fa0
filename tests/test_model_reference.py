"""Models by name: the text form, what is refused and in which words, and what counts as the same model."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
from torch import nn

from rhoc.compiler.model_reference import ModelReference
from rhoc.runtime.errors import RequestError

FACTORIES = """
import torch
from neighbour import WIDTH

def plain(width=WIDTH, deep=False):
    return torch.nn.Linear(width, width, bias=deep)

def fails(width):
    return helper(width)

def helper(width):
    raise ValueError(f"no width {width}")

def number():
    return 3

def leaves():
    raise SystemExit(4)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a file of factories and one it imports."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "factories.py").write_text(FACTORIES)
    (tmp_path / "neighbour.py").write_text("WIDTH = 6\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "home", "factory", "arguments"),
    [
        ("torch.nn:Linear(in_features=4, out_features=2)", "torch.nn", "Linear", {"in_features": 4, "out_features": 2}),
        ("torch.nn:Identity", "torch.nn", "Identity", {}),
        ("torch.nn:Identity()", "torch.nn", "Identity", {}),
        ("a/b.py:f(text='x:y(z)', on=True, none=None)", "a/b.py", "f", {"none": None, "on": True, "text": "x:y(z)"}),
        ("a:f(sizes=[1, 2], rate=-1e-3)", "a", "f", {"rate": -1e-3, "sizes": [1, 2]}),
        ("hf:org/name", "hf", "org/name", {}),
    ],
)  # fmt: skip
def test_text_form(text: str, home: str, factory: str, arguments: dict[str, object]) -> None:
    reference = ModelReference.parse(text)
    assert (reference.home, reference.factory, dict(reference.arguments)) == (home, factory, arguments)
    assert ModelReference.parse(str(reference)) == reference


def test_the_order_of_arguments_does_not_matter() -> None:
    assert ModelReference.parse("m:f(a=1, b=2)") == ModelReference.parse("m:f(b=2, a=1)")
    changed = ModelReference.parse("m:f(b=2)").with_arguments({"a": 1, "b": 3})
    assert str(changed) == "m:f(a=1, b=3)"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("llama", "is not a model reference"),
        (":f", "is not a model reference"),
        ("m:", "is not a model reference"),
        ("m:f(1)", "only keyword arguments are taken"),
        ("m:f(a=g())", "malformed"),
        ("m:f(a=b)", "malformed"),
        ("m:f(", "was never closed"),
        ("m:f(a=)", "invalid syntax"),
        ("m:f(a=1, a=2)", "each name once"),
        ("m:f(**{})", "arguments are name=value"),
        ("m:f.g(a=1)", "only keyword arguments are taken"),
    ],
)
def test_what_is_no_reference(text: str, words: str) -> None:
    with pytest.raises(RequestError) as refused:
        ModelReference.parse(text)
    assert words in refused.value.message
    assert "package.module:factory" in refused.value.advice


def test_arguments_are_data_and_never_run(folder: Path) -> None:
    with pytest.raises(RequestError):
        ModelReference.parse("factories.py:plain(width=open('made', 'w'))")
    assert not (folder / "made").exists()


def test_a_factory_in_a_file(folder: Path) -> None:
    model = ModelReference.parse("factories.py:plain(deep=True)").build()
    assert isinstance(model, nn.Linear)
    assert (model.in_features, model.bias is not None) == (6, True)


def test_a_file_beside_the_grid_comes_first(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    beside = tmp_path_factory.mktemp("beside")
    (beside / "factories.py").write_text("import torch\n\ndef plain():\n    return torch.nn.Linear(3, 3)\n")
    assert ModelReference.parse("factories.py:plain", beside).build().in_features == 3
    assert ModelReference.parse("factories.py:plain").build().in_features == 6
    assert ModelReference.parse("factories.py:plain", folder / "nowhere").build().in_features == 6


@pytest.mark.parametrize(
    ("text", "message", "advice"),
    [
        (
            "factories.py:fails(width=3)",
            "the factory raised ValueError: no width 3",
            "look at factories.py:12",
        ),
        ("factories.py:leaves", "the factory raised SystemExit: 4", "look at factories.py:18"),
        ("factories.py:number", "the factory returned int, not a torch.nn.Module", ""),
        ("factories.py:plain(wide=3)", "unexpected keyword argument 'wide'", "plain(width=6, deep=False)"),
        ("factories.py:fails", "missing a required argument: 'width'", "fails(width)"),
        ("factories.py:plan", "there is no factory 'plan'", "did you mean 'plain'?"),
        ("factories.py:torch", "there is no factory 'torch'", "it has fails, helper, leaves, number, plain"),
        ("nowhere.py:f", "there is no such file", "package.module:factory"),
        ("no.such.module:f", "there is no module 'no.such.module'", "package.module:factory"),
        ("broken.py:f", "importing it raised SyntaxError", "look at broken.py:2"),
        ("broken:f", "importing it raised SyntaxError", "look at broken.py:2"),
        ("needy.py:f", "importing it needs 'nosuchthing', which is not installed", "needy.py:1"),
        ("needy:f", "importing it needs 'nosuchthing', which is not installed", "needy.py:1"),
        ("exits.py:f", "importing it raised SystemExit: 3", "look at exits.py:1"),
        ("torch.nn:functional", "there is no factory 'functional'", ""),
        ("hf:no-such-model", "hf: models need transformers", "pip install 'rhoc[hf]'"),
    ],
)
def test_what_cannot_be_built_says_why_and_where(
    folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str, advice: str
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # as if it were not installed
    (folder / "broken.py").write_text("x = 1\ndef f(:\n")
    (folder / "needy.py").write_text("import nosuchthing\n")
    (folder / "exits.py").write_text("raise SystemExit(3)\n")
    with pytest.raises(RequestError) as refused:
        ModelReference.parse(text).build()
    assert message in refused.value.message
    assert advice in refused.value.advice


def test_a_refusal_of_our_own_passes_unchanged() -> None:
    with pytest.raises(RequestError, match="the nearest widths are 16 and 32"):
        ModelReference.parse("rhoc.runtime.llama:llama(width=20)").build()


def test_a_changed_file_is_another_model(folder: Path) -> None:
    reference = ModelReference.parse("factories.py:plain")
    before = reference.code_digest()
    assert reference.build().in_features == 6
    (folder / "factories.py").write_text(FACTORIES.replace("width=WIDTH", "width=8"))
    assert reference.code_digest() != before
    assert reference.build().in_features == 8


def test_the_same_file_elsewhere_is_the_same_model(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "factories.py").write_text(FACTORIES)
    here, there = (ModelReference.parse(f"{place}factories.py:plain(width=4)") for place in ("", "deep/"))
    assert here.label == there.label == "factories.py:plain(width=4)"
    assert here.code_digest() == there.code_digest() != ""


def test_our_own_models_are_counted_with_our_code() -> None:
    assert ModelReference.parse("rhoc.runtime.llama:llama").code_digest() == ""
    assert len(ModelReference.parse("torch.nn:Linear").code_digest()) == 16


@pytest.mark.parametrize(
    ("saved_as", "loaded_as"),
    [(["ViTModel"], "ViTModel"), (["TheirModel"], "AutoModelForCausalLM"), (None, "AutoModelForCausalLM")],
)
def test_models_by_name_are_loaded_as_what_they_were_saved_from_and_from_safetensors_only(
    saved_as: list[str] | None, loaded_as: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str, dict[str, object]]] = []

    class Auto:
        @classmethod
        def from_pretrained(cls, name: str, **options: object) -> nn.Module:
            asked.append((cls.__name__, name, options))
            return nn.Linear(2, 2)

    class Config:
        @staticmethod
        def from_pretrained(name: str) -> types.SimpleNamespace:
            return types.SimpleNamespace(architectures=saved_as)

    stand_in = types.ModuleType("transformers")
    stand_in.AutoConfig = Config  # type: ignore[attr-defined]
    for kind in ("AutoModelForCausalLM", "ViTModel"):
        setattr(stand_in, kind, type(kind, (Auto,), {}))
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    assert isinstance(ModelReference.parse("hf:some/model").build(), nn.Linear)
    assert asked == [(loaded_as, "some/model", {"use_safetensors": True})]
