"""What becomes of the tensors around an operation: outputs, and output gradients in the two products of the
backward pass, against both written out by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rhoc
from rhoc.runtime.errors import RequestError
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize

from .owners import Conv1D, as_python, as_written
from .projected import normal, wkt

TOKEN = {"kind": "quantize", "strategy": "token", "dynamic": True, "grid": "midrise"}
HERE = {"num_bits": 4, "kind": "quantize", "strategy": "channel"}
SLOTS: dict[str, tuple[Any, Representation]] = {
    "weights": (HERE, Representation((Quantize(4, strategy="channel"),))),
    "input_activations": (
        TOKEN | {"num_bits": 8},
        Representation((Quantize(8, strategy="token", dynamic=True, grid="midrise"),)),
    ),
    "output_activations": (
        TOKEN | {"num_bits": 6},
        Representation((Quantize(6, strategy="token", dynamic=True, grid="midrise"),)),
    ),
    "grad_output": (
        [{"kind": "hadamard", "block": 4}, TOKEN | {"num_bits": 3}],
        Representation((Hadamard(4), Quantize(3, strategy="token", dynamic=True, grid="midrise"))),
    ),
}
W, X, Y, G = (representation.project for _, representation in SLOTS.values())
EITHER = pytest.mark.parametrize("of", [as_written, as_python])


pytestmark = pytest.mark.usefixtures("one_thread")


def spec(*slots: str, **more: Any) -> dict[str, Any]:
    """A spec that represents these slots."""
    return {"version": 1, "rules": {"targets": "re:.*", **{s: SLOTS[s][0] for s in slots}, **more}}


def trained(
    model: nn.Module, x: Tensor, document: dict[str, Any], whole: bool = True
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The result of the train form, the gradient of its input and those of its parameters, for the output
    gradient that `gradient` gives."""
    student = rhoc.compile(model, document, (x,), whole=whole).trainable()
    x = x.clone().requires_grad_()
    y = student(x)
    y.backward(gradient(y))
    assert x.grad is not None
    return y.detach(), x.grad, {n: p.grad for n, p in student.named_parameters() if p.grad is not None}


def gradient(y: Tensor) -> Tensor:
    return torch.arange(y.numel(), dtype=y.dtype).mul(0.7).sin().reshape(y.shape)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@EITHER
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_with_everything_represented(of: Any, bias: bool) -> None:
    torch.manual_seed(0)
    model, x = of(nn.Linear)(8, 12, bias=bias).double(), normal(2, 6, 8)
    y, to_x, grads = trained(model, x, spec(*SLOTS))
    weight, entering = W(model.weight.detach()), X(x)
    close(y, Y(F.linear(entering, weight, model.bias)).detach())
    g = gradient(y)  # straight through the projection of the output
    close(to_x, G(g) @ weight)
    close(grads["weight"], G(g.reshape(12, 12).T) @ entering.reshape(12, 8))
    if bias:
        close(grads["bias"], g.reshape(12, 12).sum(0))


def unfolded(x: Tensor) -> Tensor:
    """[batch, place, channel * kernel] of a 3 x 3 convolution without padding."""
    return F.unfold(x, 3).transpose(1, 2)


@EITHER
def test_a_convolution_is_a_product_of_unfolded_inputs(of: Any) -> None:
    """The sums of its backward pass are over output channels, and over images and places."""
    torch.manual_seed(0)
    model, x = of(nn.Conv2d)(4, 8, 3).double(), normal(2, 4, 6, 6)
    y, to_x, grads = trained(model, x, spec(*SLOTS))
    weight = W(model.weight.detach().flatten(1))
    entering = X(x.movedim(1, -1)).movedim(-1, 1)
    places = unfolded(entering) @ weight.T + model.bias.detach()  # [batch, place, channel]
    close(y, Y(places).transpose(1, 2).reshape(2, 8, 4, 4))
    g = gradient(y).reshape(2, 8, 16)
    close(to_x, F.fold((G(g.transpose(1, 2)) @ weight).transpose(1, 2), (6, 6), 3))
    tokens = g.transpose(0, 1).reshape(8, 32)  # [channel, batch * place]
    close(grads["weight"].flatten(1), G(tokens) @ unfolded(entering).reshape(32, 36))
    close(grads["bias"], g.sum((0, 2)))


@EITHER
def test_a_transposed_convolution(of: Any) -> None:
    """In steps of its kernel, so that it is one product for each place."""
    torch.manual_seed(0)
    model, x = of(nn.ConvTranspose1d)(4, 8, 2, stride=2).double(), normal(3, 4, 5)
    y, to_x, grads = trained(model, x, spec(*SLOTS))
    weight = wkt(model.weight.detach())
    entering = X(x.movedim(1, -1)).movedim(-1, 1)
    result = torch.einsum("bip,iok->bopk", entering, weight).flatten(2) + model.bias.detach()[:, None]
    close(y, Y(result.movedim(1, -1)).movedim(-1, 1))
    g = gradient(y)
    by_features = G(g.movedim(1, -1)).movedim(-1, 1).unflatten(2, (5, 2))
    close(to_x, torch.einsum("bopk,iok->bip", by_features, weight))
    tokens = G(g.transpose(0, 1).reshape(8, -1)).reshape(8, 3, 5, 2).transpose(0, 1)
    close(grads["weight"], torch.einsum("bopk,bip->iok", tokens, entering))
    close(grads["bias"], g.sum((0, 2)))


@EITHER
def test_a_product_the_other_way_around(of: Any) -> None:
    torch.manual_seed(0)
    model, x = of(Conv1D)(12, 8).double(), normal(2, 6, 8)
    y, to_x, grads = trained(model, x, spec(*SLOTS))
    weight, entering = W(model.weight.detach().T), X(x)
    close(y, Y(F.linear(entering, weight, model.bias.detach())))
    g = gradient(y)
    close(to_x, G(g) @ weight)
    close(grads["weight"], (G(g.reshape(12, 12).T) @ entering.reshape(12, 8)).T)
    close(grads["bias"], g.reshape(12, 12).sum(0))


class Experts(nn.Module):
    """[expert, in, out], each with tokens of its own."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8, 12) / 3)
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)


@EITHER
@pytest.mark.parametrize("product", [torch.bmm, torch.matmul])
def test_experts_sum_over_their_own_tokens(of: Any, product: Any) -> None:
    torch.manual_seed(0)
    model, x = of(Experts)(product).double(), normal(3, 4, 8)
    y, to_x, grads = trained(model, x, spec(*SLOTS))
    weight, entering = W(model.weight.detach().mT), X(x)
    close(y, Y(entering @ weight.mT))
    g = gradient(y)
    close(to_x, G(g) @ weight)
    close(grads["weight"], (G(g.mT) @ entering).mT)


def test_lookups_have_outputs_and_nothing_else() -> None:
    torch.manual_seed(0)
    model, tokens = nn.Embedding(8, 16).double(), torch.tensor([[1, 5]])
    compiled = rhoc.compile(model, spec(*SLOTS))
    expected = Y(W(model.weight.detach())[tokens])
    for form in (compiled.trainable(), compiled.packed(), compiled.reference()):
        close(form(tokens), expected)
    (row,) = compiled.explain().parameters
    assert "input_activations and grad_output do not apply to a lookup" in row.reason


def attention() -> nn.Module:
    return nn.MultiheadAttention(16, 2, batch_first=True)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(16, 16), (3, 16)),
    "linear_as_python": (lambda: as_python(nn.Linear)(16, 16), (3, 16)),
    "conv": (lambda: nn.Conv1d(16, 8, 3), (2, 16, 5)),
    "transposed": (lambda: nn.ConvTranspose2d(16, 8, 3, groups=2), (2, 16, 4, 4)),
    "conv1d": (lambda: Conv1D(8, 16), (3, 16)),
    "mlp": (lambda: nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 16)), (3, 16)),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("slots", [("output_activations",), ("grad_output",), tuple(SLOTS)])
def test_forms_agree_whatever_is_represented(name: str, slots: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make().double(), normal(*shape)
    compiled = rhoc.compile(model, spec(*slots), (x,))
    expected = compiled.reference()(x)
    assert torch.allclose(expected, model(x)) == (slots == ("grad_output",))  # seen in training alone
    for form in (compiled.trainable(), compiled.packed()):
        close(form(x), expected)
    assert list(compiled.trainable().state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_gradients_in_enough_bits_are_the_gradients(name: str) -> None:
    """A rotation there and back leaves rounding errors, a grid of 2^8 steps the errors that those make."""
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make().double(), normal(*shape)
    exact = x.clone().requires_grad_()
    y = model(exact)
    y.backward(gradient(y))
    assert exact.grad is not None
    wanted = {"": exact.grad} | {n: p.grad for n, p in model.named_parameters()}
    close_to = {"rotation": (0, 1e-12), "int8": (1e-4, 3e-2)}
    chains = {"rotation": [{"kind": "hadamard", "block": 4}], "int8": [TOKEN | {"num_bits": 8}]}
    for kind, chain in chains.items():
        document = {"version": 1, "rules": {"targets": "re:.*", "grad_output": chain}}
        found, to_x, grads = trained(make_as(model), x, document)
        close(found, y.detach())
        for path, grad in ({"": to_x} | grads).items():
            other = wanted[path]
            assert other is not None
            error = float((grad - other).norm() / other.norm())
            least, most = close_to[kind]
            assert error < most, path
            assert path.endswith("bias") or error >= least, path


def make_as(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model)
    copied.zero_grad()
    return copied


def test_operations_that_share_an_input_have_gradients_of_their_own() -> None:
    """The input of three linears is projected once; their output gradients meet only after their products."""

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) * self.k(x) + self.v(x)

    torch.manual_seed(0)
    model, x = Three().double(), normal(5, 8)
    y, to_x, _ = trained(model, x, spec(*SLOTS))
    q, k, v = (W(layer.weight.detach()) for layer in (model.q, model.k, model.v))
    entering, g = X(x), gradient(y)
    a, b, c = (Y(F.linear(entering, weight)) for weight in (q, k, v))
    close(y, a * b + c)
    close(to_x, G(g * b) @ q + G(g * a) @ k + G(g) @ v)


def test_estimators_of_outputs_mask_their_gradients() -> None:
    """With `trust` the gradient passes where the projection moved a value least, row by row."""
    torch.manual_seed(0)
    model, x = nn.Linear(12, 12, bias=False).double(), normal(5, 12)
    chain = TOKEN | {"num_bits": 2, "observer": "rms"}
    plain = {"version": 1, "rules": {"targets": "re:.*", "output_activations": chain}}
    trusting = copy.deepcopy(plain)
    trusting["rules"]["estimator"] = {"output_activations": "trust"}  # type: ignore[index]
    _, straight, _ = trained(model, x, plain)
    y, masked, _ = trained(model, x, trusting)
    g, weight = gradient(y), model.weight.detach()
    close(straight, g @ weight)
    mask = (masked @ weight.inverse()) / g
    close(mask, mask.round())
    passes, error = mask.round().bool(), (F.linear(x, weight) - y).abs()
    assert 0 < int(passes.sum()) < passes.numel()
    most = error.where(passes, torch.zeros(())).amax(-1)
    assert bool((error.where(~passes, torch.full((), torch.inf)).amin(-1) > most).all())


def test_no_gradient_costs_nothing() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(8, 12).double(), normal(5, 8)
    student = rhoc.compile(model, spec("grad_output")).trainable()
    with torch.no_grad():
        assert torch.equal(student(x), model(x))
    student.weight.requires_grad_(False)
    student.bias.requires_grad_(False)
    entering = x.clone().requires_grad_()
    y = student(entering)
    y.backward(gradient(y))
    assert entering.grad is not None
    close(entering.grad, G(gradient(y)) @ model.weight.detach())
    assert student.weight.grad is None


@pytest.mark.parametrize("name", MODELS)
def test_in_lower_precision_under_autocast(name: str) -> None:
    torch.manual_seed(0)
    make, shape = MODELS[name]
    model, x = make(), normal(*shape).float()
    student = rhoc.compile(model, spec("grad_output"), (x,)).trainable()
    with torch.autocast("cpu", torch.bfloat16):
        y = student(x)
        assert y.dtype == model(x).dtype == torch.bfloat16
    y.backward(gradient(y))
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in student.parameters())


def test_any_number_of_tokens_trains() -> None:
    """A rotation takes as many as a power of two divides; the others are filled up with zeros."""
    torch.manual_seed(0)
    model, rotation = nn.Linear(8, 12).double(), [{"kind": "hadamard", "block": 4}]
    document = {"version": 1, "rules": {"targets": "re:.*", "grad_output": rotation}}
    for count in (1, 3, 5, 8):
        x = normal(count, 8)
        y, _, grads = trained(model, x, document)
        close(grads["weight"], gradient(y).T @ x)


def test_attention_says_which_slots_it_does_not_reach() -> None:
    torch.manual_seed(0)
    model, x = attention().double(), normal(2, 5, 16)
    compiled = rhoc.compile(model, spec("weights", "output_activations"))
    rows = {row.path: row for row in compiled.explain().parameters}
    reason = "output_activations not reached: nn.MultiheadAttention projects and attends in one call"
    assert rows["in_proj_weight"].reason.startswith(reason)
    assert "not reached" not in rows["out_proj.weight"].reason
    assert "outputs quantize(int6, " in rows["out_proj.weight"].reason
    expected = Y(rhoc.compile(model, spec("weights")).reference()(x, x, x)[0])
    for form in (compiled.trainable(), compiled.packed(), compiled.reference()):
        close(form(x, x, x)[0], expected)


def test_slots_that_do_not_apply_are_never_silent() -> None:
    """Weights stay dense, and of what else the rule asks nothing can be done."""
    for module, why in (
        (nn.LSTM(8, 8), "grad_output not reached: a recurrent layer runs as one kernel"),
        (nn.Embedding(8, 8), "grad_output do not apply to a lookup"),
        (nn.Bilinear(8, 8, 8), "grad_output not reached: a bilinear layer has another input"),
    ):
        row = rhoc.compile(module, spec("grad_output")).explain().parameters[0]
        assert (row.representation, row.reason) == ("dense", why)
    row = rhoc.compile(nn.Bilinear(8, 8, 8), spec("weights", "input_activations")).explain().parameters[0]
    assert "its first input stays dense" in row.reason


def test_outputs_of_a_shape_that_cannot_be_represented_are_named() -> None:
    document = {"version": 1, "rules": {"targets": "re:.*", "output_activations": SLOTS["grad_output"][0]}}
    with pytest.raises(RequestError, match=r"weight: hadamard\(4\) cannot rotate a last dimension of 5"):
        rhoc.compile(nn.Linear(8, 5), document)
    with pytest.raises(RequestError, match=r"weight: hadamard\(4\) cannot rotate a last dimension of 5"):
        rhoc.compile(nn.Conv2d(8, 5, 3), document)


def test_chains_that_make_no_sense_of_outputs_are_errors() -> None:
    chain = {"kind": "quantize", "num_bits": 4, "strategy": "channel", "dynamic": True}
    with pytest.raises(RequestError, match=r"output_activations.*strategy"):
        rhoc.compile(
            nn.Linear(8, 8), {"version": 1, "rules": {"targets": "re:.*", "output_activations": chain}}
        )
