"""Keys and values in a representation where a module attends, against projecting them by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rhoc
from rhoc.passes.project_cache import attention_nodes
from rhoc.runtime.errors import RequestError
from rhoc.runtime.llama import llama, rotate
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

INT4 = {"kind": "quantize", "num_bits": 4, "strategy": "token", "dynamic": True}
CACHE = Representation((Quantize(4, strategy="token", dynamic=True),))
TOKENS = torch.arange(24).reshape(2, 12)


def spec(targets: object = "Attention", **more: Any) -> dict[str, Any]:
    return {"version": 1, "rules": {"targets": targets, "kv_cache": INT4, **more}}


class _Projected(torch.autograd.Function):
    """Decoded from its code, with the gradient of what was encoded. (Anything like x + (decoded - x) would be
    another number by a rounding, which the next layer's codes may make visible.)"""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return CACHE.decode(CACHE.encode(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def projected(x: Tensor) -> Tensor:
    result: Tensor = _Projected.apply(x)  # type: ignore[no-untyped-call]
    return result


class ByHand(nn.Module):
    """The attention of the decoder, its keys and values projected as they would be stored."""

    def __init__(self, of: nn.Module) -> None:
        super().__init__()
        self.of = of

    def forward(self, x: Tensor) -> Tensor:
        a: Any = self.of
        cosine, sine = a.cosine[: x.shape[1]], a.sine[: x.shape[1]]
        q, k = (rotate(a._split(each(x)), cosine, sine) for each in (a.q_proj, a.k_proj))
        v = a._split(a.v_proj(x))
        mixed = F.scaled_dot_product_attention(q, projected(k), projected(v), is_causal=True)
        return a.o_proj(mixed.transpose(1, 2).flatten(2))


def decoder() -> tuple[nn.Module, nn.Module]:
    """A decoder, and a copy with its attention exchanged."""
    torch.manual_seed(0)
    model = llama(32, vocabulary=32, context=16).double()
    expected = copy.deepcopy(model)
    for block in expected.layers:
        block.self_attn = ByHand(block.self_attn)  # type: ignore[union-attr]
    return model, expected


def test_a_decoder_that_is_a_graph() -> None:
    model, expected = decoder()
    compiled = rhoc.compile(model, spec())
    assert [cache.graph for cache in compiled.caches] == [""] * 2
    with torch.no_grad():
        wanted = expected(TOKENS)
        assert not torch.allclose(wanted, model(TOKENS), atol=1e-4)
        for form in (
            compiled.trainable(),
            compiled.trainable().eval(),
            compiled.packed(),
            compiled.reference(),
        ):
            torch.testing.assert_close(form(TOKENS), wanted, rtol=1e-9, atol=1e-9)


def test_gradients_pass_it() -> None:
    model, expected = decoder()
    student = rhoc.compile(model, spec()).trainable()
    for each in (student, expected):
        F.cross_entropy(each(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
    names = {name.replace(".of.", "."): p.grad for name, p in expected.named_parameters()}
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, names[name], rtol=1e-7, atol=1e-9)


class Asks(nn.Module):
    """Attention in a forward that cannot be traced: arguments by keyword, and a question about a value."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor, attend: Any = F.scaled_dot_product_attention) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 2, 8).transpose(1, 3).unbind(2)
        if float(q.detach().abs().max()) < 0:
            return x
        return self.out(attend(q, key=k, value=v).transpose(1, 2).flatten(2))


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Asks(), Asks()

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        return x + self.second(x + self.first(x, **kwargs), **kwargs)


def by_hand(q: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, projected(key), projected(value))


@pytest.mark.parametrize("quantized", [False, True])
def test_a_module_that_runs_as_python(quantized: bool) -> None:
    torch.manual_seed(0)
    model, x = Around().double(), torch.randn(2, 5, 16, dtype=torch.float64)
    wanted: dict[str, Any] = spec("Asks")
    if quantized:
        wanted["rules"] = [wanted["rules"], {"targets": "Linear", "weights": "quantize(int4, channel)"}]
    compiled = rhoc.compile(model, wanted, (x,))
    assert [(cache.path, cache.graph) for cache in compiled.caches] == [("first", None), ("second", None)]
    expected = copy.deepcopy(model)
    if quantized:
        weight = Representation((Quantize(4, strategy="channel"),))
        with torch.no_grad():
            for name, parameter in expected.named_parameters():
                if name.endswith("weight"):
                    parameter.copy_(weight.project(parameter))
    student = compiled.trainable()
    torch.testing.assert_close(student(x), expected(x, attend=by_hand), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        for form in (compiled.packed(), compiled.reference()):
            torch.testing.assert_close(form(x), expected(x, attend=by_hand), rtol=1e-9, atol=1e-9)
    student(x).square().sum().backward()
    expected(x, attend=by_hand).square().sum().backward()
    gradients = dict(expected.named_parameters())
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-7, atol=1e-9)
    assert list(student.state_dict()) == list(model.state_dict())
    assert isinstance(student.first, Asks)


def test_only_what_is_targeted() -> None:
    torch.manual_seed(0)
    model, x = Around().double(), torch.randn(2, 5, 16, dtype=torch.float64)
    compiled = rhoc.compile(model, spec("second"), (x,))
    assert [cache.path for cache in compiled.caches] == ["second"]
    with torch.no_grad():
        h = x + model.first(x)
        expected = x + model.second(h, attend=by_hand)
        torch.testing.assert_close(compiled.reference()(x), expected, rtol=1e-9, atol=1e-9)


def test_the_innermost_of_several_attends() -> None:
    """A rule on everything is one projection for each module that attends, not one for each level."""
    torch.manual_seed(0)
    model, x = Around().double(), torch.randn(2, 5, 16, dtype=torch.float64)
    compiled = rhoc.compile(model, spec("re:.*"), (x,))
    with torch.no_grad():
        torch.testing.assert_close(compiled.reference()(x), model(x, attend=by_hand), rtol=1e-9, atol=1e-9)


def test_without_an_example_it_is_said_that_nobody_looked() -> None:
    model, x = Around(), torch.randn(2, 5, 16)
    unseen, seen = (
        rhoc.compile(model, spec("Asks")).explain(),
        rhoc.compile(model, spec("Asks"), (x,)).explain(),
    )
    assert {row.reason for row in unseen.caches} == {"that it attends was not seen: give example_inputs"}
    assert {row.reason for row in seen.caches} == {""}
    line = "first  kv_cache  quantize(int4, twos, token, absmax)\n"
    assert line in str(seen)
    rows: Any = seen.to_document()["caches"]
    assert [row["path"] for row in rows] == ["first", "second"]


def test_the_kernel_that_attends_when_tokens_are_generated_is_named() -> None:
    wide, narrow = (
        rhoc.compile(llama(32, vocabulary=32, context=16).to(dtype), spec("Block")).explain()
        for dtype in (torch.float64, torch.float32)
    )
    assert {row.kernel for row in wide.caches} == {"decode_cache_attention"}
    assert "cpu_cache_attention refused: inputs are float64, not float32" in wide.caches[0].reason
    assert {row.kernel for row in narrow.caches} <= {"cpu_cache_attention", "decode_cache_attention"}
    row = narrow.caches[0]
    assert f"{row.path}  kv_cache  {row.representation}  {row.kernel}" in str(narrow)


@pytest.mark.parametrize("target", ["re:.*mlp.*", "lm_head"])
def test_nothing_that_attends_is_an_error(target: str) -> None:
    model, _ = decoder()
    with pytest.raises(RequestError) as error:
        rhoc.compile(model, spec(target))
    message = str(error.value)
    assert "of the" in message
    assert "modules that it targets calls scaled_dot_product_attention" in message
    assert message.endswith(
        "name the modules that attend; in transformers load with attn_implementation='sdpa'"
    )
    assert "\n" not in message


def test_a_decoder_with_weights_and_caches_has_forms_that_agree() -> None:
    model, _ = decoder()
    rules = [
        {"targets": "Attention", "kv_cache": INT4},
        {"targets": "Linear", "weights": "quantize(int4, channel)"},
    ]
    compiled = rhoc.compile(model, {"version": 1, "rules": rules})
    (fragment,) = compiled.captured.fragments
    assert len(attention_nodes(fragment.graph)) == 2
    with torch.no_grad():
        forms = (compiled.trainable().eval(), compiled.packed(), compiled.reference())
        found = [form(TOKENS) for form in forms]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-9)
