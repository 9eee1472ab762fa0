"""Values of candidates against direct computation: outputs that really differ, losses that really rise."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhoc.compiler.allocation import allocate
from rhoc.compiler.candidates import Candidate, Layer
from rhoc.compiler.fisher import fisher
from rhoc.compiler.published_fits import published_fits
from rhoc.compiler.sensitivity import (
    Sensitivity,
    effective_parameters,
    fisher_error,
    gaussian,
    output_error,
    relative_output_error,
    weight_error,
)
from rhoc.passes.assignment import Assignment
from rhoc.runtime.errors import RequestError
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

INT4, INT8 = Candidate.of("int4"), Candidate.of("int8")
DENSE, W4A8, PAIRS = Candidate.of("dense"), Candidate.of("w4a8"), Candidate.of("2of4")
PLAIN4 = Candidate(
    "plain4",
    Assignment(Representation((Quantize(4, strategy="channel", observer="rms", grid="midrise"),))),
)
LAYERS = (Layer("a", (24, 32), torch.float32), Layer("b", (16, 24), torch.float32))


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


WEIGHTS = {layer.path: normal(*layer.shape, seed=number) for number, layer in enumerate(LAYERS)}


def projected(candidate: Candidate, weight: Tensor) -> Tensor:
    """The weight as a model would have it."""
    return candidate.assignment.weight.project(weight)


def test_gaussian_error_times_the_power_of_the_weights() -> None:
    found = gaussian(LAYERS, (INT4, DENSE), {path: 3 * weight for path, weight in WEIGHTS.items()})
    # 4-bit midrise on Gaussian numbers at its best scale: 0.011543 (Max 1960, table II, uniform levels, N = 16).
    power = sum(float((3 * x) ** 2) for x in WEIGHTS["a"].flatten())
    assert found.values["a"]["int4"] == pytest.approx(0.011543 * power, rel=1e-3)
    assert found.values["a"]["dense"] == 0
    unit = gaussian(LAYERS, (INT4, DENSE))
    assert unit.values["b"]["int4"] == pytest.approx(0.011543 * 16 * 24, rel=1e-3)
    assert not unit.maximise


def test_errors_of_inputs_count_as_errors_of_weights() -> None:
    only = Candidate("a8", Assignment(input=W4A8.assignment.input))
    alone = Candidate("w4", Assignment(weight=W4A8.assignment.weight))
    offer = (W4A8, only, alone)
    grams = {layer.path: torch.eye(layer.shape[-1]) for layer in LAYERS}
    squares = {layer.path: torch.full(layer.shape, 2.0) for layer in LAYERS}
    tables = (
        gaussian(LAYERS, offer, WEIGHTS),
        weight_error(LAYERS, offer, WEIGHTS),
        output_error(LAYERS, offer, WEIGHTS, grams),
        fisher_error(LAYERS, offer, WEIGHTS, squares),
    )
    for table in tables:
        row = table.values["a"]
        assert 0 < row["a8"] < row["w4"]
        assert row["w4a8"] == pytest.approx(row["a8"] + row["w4"])
    # Inputs of unit power, and half of a squared gradient of 2: all but the first are the same sum.
    for table in tables[2:]:
        assert table.values["b"] == pytest.approx(tables[1].values["b"])


def test_weight_error_is_that_of_the_real_weights() -> None:
    weights = {"a": WEIGHTS["a"].sign() * WEIGHTS["a"].abs() ** 3, "b": WEIGHTS["b"]}
    found = weight_error(LAYERS, (INT4, PAIRS), weights).values
    for path, weight in weights.items():
        for candidate in (INT4, PAIRS):
            direct = sum(float(d) ** 2 for d in (weight - projected(candidate, weight)).flatten())
            assert found[path][candidate.name] == pytest.approx(direct)
    tailed = gaussian(LAYERS, (PLAIN4,), weights).values["a"]["plain4"]
    real = weight_error(LAYERS, (PLAIN4,), weights).values["a"]["plain4"]
    assert real > 2 * tailed  # long tails do not fit a grid for Gaussian numbers


def test_output_error_is_the_mean_squared_difference_of_outputs() -> None:
    inputs = {
        path: normal(500, w.shape[1], seed=9) @ normal(w.shape[1], w.shape[1], seed=8)
        for path, w in WEIGHTS.items()
    }
    grams = {path: x.T @ x / len(x) for path, x in inputs.items()}
    found = output_error(LAYERS, (INT4, PAIRS, DENSE), WEIGHTS, grams).values
    for path, weight in WEIGHTS.items():
        assert found[path]["dense"] == 0
        for candidate in (INT4, PAIRS):
            difference = F.linear(inputs[path], weight) - F.linear(inputs[path], projected(candidate, weight))
            assert found[path][candidate.name] == pytest.approx(float(difference.square().sum(-1).mean()))


def test_output_errors_of_experts_add_up() -> None:
    layer = (Layer("experts", (3, 16, 32)),)
    weight, x = normal(3, 16, 32), normal(3, 200, 32, seed=5)
    grams = x.mT @ x / 200
    each = output_error(layer, (INT4,), {"experts": weight}, {"experts": grams}).values["experts"]["int4"]
    outputs = (x @ weight.mT - x @ projected(INT4, weight).mT).square().sum(-1).mean(-1).sum()
    assert each == pytest.approx(float(outputs))
    shared = output_error(layer, (INT4,), {"experts": weight}, {"experts": grams[0]}).values["experts"][
        "int4"
    ]
    direct = (x[0] @ weight.mT - x[0] @ projected(INT4, weight).mT).square().sum(-1).mean(-1).sum()
    assert shared == pytest.approx(float(direct))


def test_the_input_term_of_the_output_error_is_that_of_relative_noise() -> None:
    """Inputs whose channels have independent relative errors of power g, drawn many times."""
    layer, weight = (Layer("a", (4, 8)),), normal(4, 8)
    x = normal(20_000, 8, seed=3) * torch.arange(1, 9)
    found = output_error(
        layer,
        (Candidate("a8", Assignment(input=W4A8.assignment.input)),),
        {"a": weight},
        {"a": x.T @ x / len(x)},
    ).values["a"]["a8"]
    g = gaussian(layer, (Candidate("a8", Assignment(input=W4A8.assignment.input)),)).values["a"]["a8"] / 32
    noisy = x * (1 + math.sqrt(g) * normal(20_000, 8, seed=4))
    direct = float(((noisy - x) @ weight.T).square().sum(-1).mean())
    assert found == pytest.approx(direct, rel=0.05)


class TwoLayers(nn.Module):
    """Two linear layers, and a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 5, bias=False)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(5)
        self.b = nn.Linear(5, 3)
        self.idle = nn.Parameter(torch.ones(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.drop(self.norm(torch.tanh(self.a(x)))))


def squared_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Half the squared distance to the targets."""
    return 0.5 * (model(batch[0]) - batch[1]).square().sum()


def data(count: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of one example."""
    return [(normal(1, 6, seed=i), normal(1, 3, seed=100 + i)) for i in range(count)]


def test_fisher_is_the_mean_squared_gradient() -> None:
    torch.manual_seed(0)
    model, batches = TwoLayers().double(), data(7)
    model.b.weight.grad = torch.full((3, 5), 7.0, dtype=torch.float64)
    modes, buffers = [m.training for m in model.modules()], [b.clone() for b in model.buffers()]
    found = fisher(model, batches, squared_loss)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert float(model.b.weight.grad.unique()) == 7.0
    assert set(found) == {"a.weight", "norm.weight", "norm.bias", "b.weight", "b.bias"}
    # By hand for the last layer: dL/dW = (W h + b - y) h^T.
    model.eval()
    expected = torch.zeros(3, 5, dtype=torch.float64)
    for x, y in batches:
        hidden = model.norm(torch.tanh(model.a(x))).detach()
        expected += ((model.b(hidden) - y).T.detach() * hidden).square() / len(batches)
    torch.testing.assert_close(found["b.weight"], expected)
    assert found["a.weight"].shape == (5, 6)


def test_fisher_accumulates_half_precision_in_float32() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 2, bias=False).bfloat16()
    batches = [torch.ones(1, 4, dtype=torch.bfloat16)] * 3
    found = fisher(model, batches, lambda model, batch: 1e-3 * model(batch).sum())
    assert found["weight"].dtype == torch.float32
    torch.testing.assert_close(found["weight"], torch.full((2, 4), 1e-6), rtol=1e-2, atol=0)


def test_fisher_error_predicts_the_rise_of_a_likelihood() -> None:
    """A softmax regression on labels drawn from itself, where the Fisher matrix is the Hessian."""
    torch.manual_seed(0)
    model = nn.Linear(8, 6, bias=False).double()
    x = normal(4000, 8, seed=1)
    labels = torch.distributions.Categorical(logits=model(x).detach()).sample()

    def likelihood(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])

    squares = fisher(model, list(zip(x.split(1), labels.split(1), strict=True)), likelihood)
    layer, weight = (Layer("weight", (6, 8)),), model.weight.detach().clone()
    offer = tuple(
        Candidate(f"int{bits}", Assignment(Representation((Quantize(bits, strategy="channel"),))))
        for bits in (3, 4, 5)
    )
    predicted = fisher_error(layer, offer, {"weight": weight}, squares).values["weight"]
    before = model(x).softmax(-1).detach()
    for candidate in offer:
        with torch.no_grad():
            base = likelihood(model, (x, before))
            model.weight.copy_(projected(candidate, weight))
            rise = float(likelihood(model, (x, before)) - base)
            model.weight.copy_(weight)
        # Inputs are white here, so that only correlations between classes are missing from the diagonal.
        assert predicted[candidate.name] == pytest.approx(rise, rel=0.35), candidate.name


def test_effective_parameters_are_those_of_one_published_fit() -> None:
    found = effective_parameters(LAYERS, (INT4, PLAIN4, PAIRS, DENSE))
    assert found.maximise
    assert found.values["a"]["dense"] == 24 * 32
    assert found.values["b"]["dense"] == 16 * 24
    fit = published_fits()[found.source]
    # A format with an entry of its own has that, another rho = L tanh(F log_1/4 GMSE)^C (arXiv 2506.01863).
    assert found.values["a"]["int4"] == 24 * 32 * fit.specs["int4"].multiplier.value
    scalar, bits = fit.families["scalar"], -math.log(0.011543) / math.log(4)
    rho = scalar.ceiling * math.tanh(scalar.slope.value * bits) ** scalar.curvature.value
    assert found.values["a"]["plain4"] == pytest.approx(24 * 32 * rho, rel=1e-3)
    assert found.values["b"]["2of4"] < found.values["b"]["int4"] < found.values["b"]["dense"]


def test_inputs_cost_effective_parameters_too() -> None:
    found = effective_parameters(LAYERS, (W4A8, Candidate("w4", Assignment(W4A8.assignment.weight))))
    assert found.values["a"]["w4a8"] < found.values["a"]["w4"]


def test_formats_of_different_fits_do_not_compare() -> None:
    with pytest.raises(RequestError, match="no published fit is called 'nobody'"):
        effective_parameters(LAYERS, (INT4,), published="nobody")
    with pytest.raises(RequestError, match="has no constants for the sparse family"):
        effective_parameters(LAYERS, (PAIRS,), published="panferov-llama-c4")


@pytest.mark.parametrize(
    "measure",
    [
        lambda layers, offer: gaussian(layers, offer),
        lambda layers, offer: gaussian(layers, offer, {"odd": normal(8, 30)}),
        lambda layers, offer: effective_parameters(layers, offer),
        lambda layers, offer: weight_error(layers, offer, {"odd": normal(8, 30)}),
        lambda layers, offer: output_error(layers, offer, {"odd": normal(8, 30)}, {"odd": torch.eye(30)}),
        lambda layers, offer: fisher_error(layers, offer, {"odd": normal(8, 30)}, {"odd": torch.ones(8, 30)}),
    ],
)
def test_what_a_shape_refuses_is_dropped_with_the_reason(
    measure: Callable[[tuple[Layer, ...], tuple[Candidate, ...]], Sensitivity],
) -> None:
    odd = (Layer("odd", (8, 30)),)
    found = measure(odd, (INT4, PAIRS))
    assert list(found.values["odd"]) == ["int4"]
    assert [(d.path, d.candidate) for d in found.dropped] == [("odd", "2of4")]
    assert "2:4 sparsity does not divide the last dimension of 30" in found.dropped[0].reason
    result = allocate(odd, (INT4, PAIRS), "16 bits", found)
    assert result.summary == "int4 1"
    assert "no 2of4 for odd: 2:4 sparsity does not divide" in str(result)
    with pytest.raises(RequestError, match=r"odd: no candidate takes the shape 8x30 \(2of4: 2:4 sparsity"):
        measure(odd, (PAIRS,))


def test_a_lookup_has_no_inputs_to_represent() -> None:
    embedding = (Layer("embed", (50, 16), lookup=True),)
    found = gaussian(embedding, (W4A8,))
    only = gaussian((Layer("embed", (50, 16)),), (Candidate("w4a8", Assignment(W4A8.assignment.weight)),))
    assert found.values["embed"] == only.values["embed"]
    assert allocate(embedding, (W4A8,), "16 bits", found).assignments["embed"].input.is_dense


def test_counted_layers_count() -> None:
    one, three = Layer("a", (24, 32)), Layer("a", (24, 32), count=3)
    for measure in (lambda x: gaussian(x, (INT4,)), lambda x: effective_parameters(x, (INT4,))):
        assert measure((three,)).values["a"]["int4"] == pytest.approx(3 * measure((one,)).values["a"]["int4"])
    assert INT8.nbytes(three) == 3 * INT8.nbytes(one)


def test_what_is_missing_or_of_another_shape_is_named() -> None:
    offer, grams = (INT4,), {"a": torch.eye(32), "b": torch.eye(24)}
    cases: list[tuple[Callable[[], Sensitivity], str]] = [
        (lambda: weight_error(LAYERS, offer, {}), "a: this layer has no weights; give its weights"),
        (lambda: weight_error(LAYERS, offer, {"a": normal(3, 3)}), "a: its weights have shape (3, 3), and the layer says 24x32"),
        (lambda: weight_error(LAYERS, offer, {"a": torch.empty(24, 32, device="meta")}), "a: on the meta device there are no numbers"),
        (lambda: output_error(LAYERS, offer, WEIGHTS, {"a": torch.eye(9)}), "a: its Gram matrix is (9, 9), and its inputs have 32 channels"),
        (lambda: output_error(LAYERS, offer, WEIGHTS, {"a": grams["a"]}), "b: this layer has no Gram matrix"),
        (lambda: fisher_error(LAYERS, offer, WEIGHTS, {"a": torch.ones(2, 2)}), "a: its squared gradients have shape (2, 2), not 24x32"),
        (lambda: weight_error(LAYERS, offer, {"a": torch.full((24, 32), torch.inf), "b": WEIGHTS["b"]}), "a: int4: 768 of 768 numbers are NaN or infinite"),
        (lambda: output_error(LAYERS, offer, WEIGHTS, {**grams, "a": grams["a"] * torch.nan}), "a: int4 has output error nan"),
    ]  # fmt: skip
    for measure, message in cases:
        with pytest.raises(RequestError) as raised:
            measure()
        assert message in str(raised.value)


def test_losses_without_a_gradient_are_refused() -> None:
    model, batches = TwoLayers().double(), data(2)
    with pytest.raises(RequestError, match="there are no batches"):
        fisher(model, [], squared_loss)
    with pytest.raises(RequestError, match="batch 1: the loss has 3 numbers"):
        fisher(model, batches, lambda model, batch: model(batch[0]))
    with pytest.raises(RequestError, match="batch 1: the loss has no gradient"):
        fisher(model, batches, lambda model, batch: model(batch[0]).sum().detach())
    with pytest.raises(RequestError, match="batch 1: the loss is inf"):
        fisher(model, batches, lambda model, batch: model(batch[0]).sum() + math.inf)


def test_the_relative_output_error_does_not_depend_on_how_large_a_layers_outputs_are() -> None:
    x, weight = normal(200, 32), normal(16, 32)
    layer = [Layer("a", (16, 32))]
    for scale in (1.0, 1e3):
        scaled = x * scale
        found = relative_output_error(layer, (INT4,), {"a": weight}, {"a": scaled.T @ scaled / 200})
        outputs, error = scaled @ weight.T, scaled @ (INT4.assignment.weight.project(weight) - weight).T
        expected = float(error.square().sum() / outputs.square().sum())
        assert found.values["a"]["int4"] == pytest.approx(expected, rel=1e-9)
