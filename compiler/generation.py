"""A model that generates in its packed and in its dense form, and what each of them takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from ..runtime.checkpoint import described, distinct_tensors, read_packed
from ..runtime.errors import RequestError
from ..runtime.generation.decoder import Decoder
from ..runtime.generation.generate import Generated, generate
from ..runtime.generation.memory import LiveBytes, held_bytes
from ..runtime.generation.sampling import Sampling
from ..runtime.llama import Attention
from ..runtime.load import over
from ..runtime.packed import packed_weights
from ..runtime.representation import Representation
from .compile import compile
from .coverage import Owner
from .decide import class_names, first_rule
from .example import own_example
from .model_reference import ModelReference
from .spec import Spec, load_spec

_BYTES = 256
_FEW = 3  # tokens for counting bytes, and for what only the first call does


@dataclass(frozen=True)
class Form:
    """One form of a model: how it generates, and the module whose tensors it holds."""

    name: str
    model: nn.Module
    run: Callable[[Sequence[Sequence[int]], int, Sampling], Generated]


class Text(Protocol):
    """How text becomes tokens, and tokens text."""

    @property
    def note(self) -> str:
        """What is to be known of it, in words; mostly nothing."""

    def tokens(self, text: str) -> list[int]:
        """The tokens of a text."""

    def text(self, tokens: Sequence[int]) -> str:
        """The text of tokens."""


@dataclass(frozen=True)
class Bytes:
    """One token a byte, as the corpora of text have it. `note` says why, where that is to be known."""

    note: str = ""

    def tokens(self, text: str) -> list[int]:
        """Its bytes in UTF-8."""
        return list(text.encode())

    def text(self, tokens: Sequence[int]) -> str:
        """Text again; what is no UTF-8 is shown as its escape."""
        return bytes(token % _BYTES for token in tokens).decode(errors="backslashreplace")


@dataclass(frozen=True)
class Forms:
    """The forms of a model that generate, dense first, and how text becomes their tokens."""

    forms: tuple[Form, ...]
    text: Text


@dataclass(frozen=True)
class Measured:
    """What a form generated, in how much time and memory. `peak_bytes` are of all tensors alive at once."""

    form: str
    tokens: tuple[tuple[int, ...], ...]
    tokens_per_second: float
    prompt_seconds: float
    weight_bytes: int
    cache_bytes: int
    peak_bytes: int


def packed_over(model: nn.Module, spec: Spec) -> nn.Module:
    """The packed form of a model, over its own modules instead of a graph: what loading a saved one gives."""
    packed = compile(model, spec, own_example(model)).packed()
    tensors, aliases = distinct_tensors(packed)
    return over(model, described(packed), tensors | {name: tensors[of] for name, of in aliases.items()})


def loaded_over(directory: Path, model: nn.Module, spec: Spec) -> nn.Module:
    """A saved packed model, which must have been made with a spec. Raises RequestError where it was not."""
    document, tensors = read_packed(directory)
    if document.spec_digest != spec.digest:
        name = document.spec.get("name") or "another spec"
        raise RequestError(
            f"it was made with {name}, which is not what {spec.name or 'the spec'} is now",
            where=str(directory),
            advice="give the spec that it was made with",
        )
    try:
        return over(model, document.weights, tensors)
    except RequestError as error:
        raise error.at(str(directory)) from None


@torch.no_grad()
def decode_into(model: nn.Module, packed: nn.Module) -> nn.Module:
    """`model` with the weights that a packed model over its architecture decodes to."""
    weights = packed_weights(packed)
    for path, weight in weights.items():
        model.get_parameter(path).copy_(weight.decode())
    known = model.state_dict().keys()
    model.load_state_dict({n: t for n, t in packed.state_dict().items() if n in known}, strict=False)
    return model.eval()


def caches_of(
    model: nn.Module,
    spec: Spec,
    attends: Callable[[nn.Module], bool],
    cache: Representation | None = None,
) -> dict[str, Representation]:
    """What keys and values are stored in, by the path of each module that attends: in `cache`, or as the spec
    has it for the module or the innermost around it that a rule with a `kv_cache` speaks of."""
    modules = dict(model.named_modules())
    attending = [path for path, module in modules.items() if attends(module)]
    found = {path: cache or _cache_of(modules, path, spec) for path in attending}
    return {path: representation for path, representation in found.items() if representation is not None}


def _cache_of(modules: Mapping[str, nn.Module], path: str, spec: Spec) -> Representation | None:
    parts = path.split(".")
    for count in range(len(parts), -1, -1):
        outer = ".".join(parts[:count])
        index = first_rule(spec, Owner(outer, class_names(modules[outer])))
        if index is not None and not spec.rules[index].representation("kv_cache").is_dense:
            return spec.rules[index].representation("kv_cache")
    return None


def cache_from(text: str) -> Representation:
    """The representation that the text of a `kv_cache` means: a chain, or the name of a spec.

    Raises RequestError when it means none.
    """
    rule = {"targets": "re:.*", "kv_cache": text}
    return load_spec({"version": 1, "rules": [rule]}).rules[0].representation("kv_cache")


def forms_of(
    reference: ModelReference,
    spec: Spec,
    checkpoint: Path | None = None,
    cache: Representation | None = None,
    prepare: Callable[[nn.Module], None] = lambda model: None,
) -> Forms:
    """The dense and the packed form of a model, which has been `prepare`d (given weights, for one), or whose
    weights are those of a packed `checkpoint`. `cache` takes the place of the spec's `kv_cache`.

    Raises RequestError for a model that cannot generate, and for a checkpoint of something else.
    """
    dense = reference.build().eval()
    prepare(dense)
    packed = packed_over(dense, spec) if checkpoint is None else loaded_over(checkpoint, dense, spec)
    if checkpoint is not None:
        decode_into(dense, packed)
    if reference.home == "hf":
        from .generation_transformers import forms  # imports transformers, which is there now

        return forms(reference.factory, dense, packed, spec, cache)
    caches = caches_of(dense, spec, lambda module: isinstance(module, Attention), cache)
    return Forms((_own("dense", dense, {}), _own("packed", packed, caches)), Bytes())


def _own(name: str, model: nn.Module, caches: Mapping[str, Representation]) -> Form:
    """A decoder of `runtime.llama`."""
    decoder = Decoder(model, caches)
    return Form(name, model, lambda prompts, count, sampling: generate(decoder, prompts, count, sampling))


def measured(
    form: Form, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, *, batch: bool
) -> Measured:
    """Generate: with all prompts at once as a `batch`, else one after another.

    A few tokens are generated beforehand, where bytes are counted and what is made at first use is made.
    """
    groups = [list(prompts)] if batch else [[prompt] for prompt in prompts]
    live = LiveBytes((*form.model.parameters(), *form.model.buffers()))
    form.run(groups[0], min(count, _FEW), sampling)
    with live:
        form.run(groups[0], min(count, _FEW), sampling)
    found = [form.run(group, count, sampling) for group in groups]
    steps = sum((len(tokens) - 1) for each in found for tokens in each.tokens)
    seconds = sum(each.seconds for each in found)
    return Measured(
        form.name,
        tuple(tokens for each in found for tokens in each.tokens),
        steps / seconds if steps and seconds else 0.0,
        sum(each.prompt_seconds for each in found),
        held_bytes(form.model),
        max(each.cache_bytes for each in found),
        live.peak,
    )
