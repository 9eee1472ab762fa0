"""Calibration as a pass: codes in every form, against fits by hand layer after layer, and what is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.compiler.transform import complete, order
from rhoc.passes.calibrate import Calibrate
from rhoc.passes.correct_bias import CorrectBias
from rhoc.runtime.calibration import Gptq, RoundToNearest, SparseGptq, gram
from rhoc.runtime.errors import RequestError
from rhoc.runtime.llama import llama
from rhoc.runtime.load import load_packed
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize
from rhoc.runtime.text_parser import from_text

from .planted import digits, trained

INT3 = Representation((Quantize(3, strategy="channel"),))
INT8 = Representation((Quantize(8, strategy="token", dynamic=True),))


def spec(*passes: object, weights: object = "quantize(int3, channel)", **rule: object) -> dict[str, Any]:
    return {
        "version": 1,
        "rules": {"targets": "re:.*", "weights": weights} | rule,
        "passes": list(passes) or ["calibrate"],
    }


def normal(*shape: int, seed: int = 1) -> Tensor:
    """Inputs whose channels depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(shape[-1], shape[-1], generator=generator, dtype=torch.float64)
    return torch.randn(shape, generator=generator, dtype=torch.float64) @ mix


def weights_of(compiled: Compiled) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in compiled.reference().named_parameters()}


def error(x: Tensor, dense: Tensor, found: Tensor) -> float:
    """The squared error of outputs on inputs `[rows, in]`."""
    return float((x.double() @ (dense.double() - found.double()).T).square().sum())


@pytest.fixture(scope="module")
def classifier() -> tuple[nn.Module, Compiled, list[tuple[Tensor]]]:
    """A trained model, calibrated to three batches of its training images with represented inputs."""
    images, _, _, _ = digits()
    model, batches = trained(planted=False), [(images[i : i + 100],) for i in (0, 100, 200)]
    inputs = {"kind": "quantize", "num_bits": 8, "strategy": "token", "dynamic": True}
    return (
        model,
        rhoc.compile(model, spec(input_activations=inputs), batches[0], calibration=batches),
        batches,
    )


@pytest.mark.usefixtures("no_kernels")  # which sum in another order
def test_every_form_uses_the_codes(classifier: tuple[nn.Module, Compiled, list[tuple[Tensor]]]) -> None:
    _, compiled, batches = classifier
    weights = weights_of(compiled)
    represented = [d for d in compiled.decisions if not d.assignment.weight.is_dense]
    assert len(represented) == 6
    for decision in represented:
        code = decision.assignment.code
        assert code is not None
        assert torch.equal(decision.assignment.weight.decode(code), weights[decision.held.path])
    packed, reference = compiled.packed(), compiled.reference()
    with torch.no_grad():
        assert torch.equal(packed(*batches[0]), reference(*batches[0]))


def test_outputs_are_nearer_than_those_of_round_to_nearest(
    classifier: tuple[nn.Module, Compiled, list[tuple[Tensor]]],
) -> None:
    """Measured on what each layer is given in the represented model, which is what it was fitted to."""
    model, compiled, batches = classifier
    given: dict[str, list[Tensor]] = {}
    reference = compiled.reference()
    weights = weights_of(compiled)
    for (
        d
    ) in compiled.decisions:  # what an input becomes is asked of a model in which nothing is represented yet
        if not d.assignment.weight.is_dense:
            given[d.held.path] = []
    _run_by_hand(model, weights, [batch for (batch,) in batches], given)
    with torch.no_grad():
        assert torch.allclose(
            _run_by_hand(model, weights, [batches[0][0]], {})[0], reference(*batches[0]), atol=1e-4
        )
    better = 0
    for name, rows in given.items():
        dense, x = dict(model.named_parameters())[name].detach(), torch.cat(rows)
        fitted, nearest = error(x, dense, weights[name]), error(x, dense, INT3.project(dense))
        assert fitted <= nearest * (1 + 1e-6), name
        better += fitted < 0.7 * nearest
    assert better >= 5


def _run_by_hand(
    model: nn.Module, weights: dict[str, Tensor], batches: list[Tensor], given: dict[str, list[Tensor]]
) -> list[Tensor]:
    """The digits model from represented weights and inputs; notes each layer's inputs."""

    def linear(name: str, x: Tensor) -> Tensor:
        x = INT8.project(x)
        given.setdefault(f"{name}.weight", []).append(x)
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    found = []
    with torch.no_grad():
        for batch in batches:
            x = linear("embed", batch)
            for i in range(2):
                y = model.get_submodule(f"blocks.{i}.norm")(x)
                x = x + linear(f"blocks.{i}.down", torch.relu(linear(f"blocks.{i}.up", y)))
            found.append(linear("head", model.get_submodule("norm")(x)))
    return found


def test_it_beats_rounding_on_what_was_not_seen(
    classifier: tuple[nn.Module, Compiled, list[tuple[Tensor]]],
) -> None:
    model, compiled, _ = classifier
    _, _, images, _ = digits()
    nearest = rhoc.compile(model, {**spec(), "passes": []})
    with torch.no_grad():
        expected = model(images)
        fitted, rounded = (c.reference()(images) - expected for c in (compiled, nearest))
    assert float(fitted.square().mean()) < 0.7 * float(rounded.square().mean())


def test_layers_are_fitted_to_what_represented_layers_before_them_give() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16)).double()
    batches = [normal(40, 24, seed=seed) for seed in range(3)]
    compiled = rhoc.compile(model, spec(), (batches[0],), calibration=[(batch,) for batch in batches])
    first = Gptq().fit(model[0].weight.detach(), INT3, gram(batches))  # type: ignore[union-attr]
    middle = [F.relu(F.linear(x, first.weight, model[0].bias)).detach() for x in batches]  # type: ignore[union-attr]
    second = Gptq().fit(model[2].weight.detach(), INT3, gram(middle))  # type: ignore[union-attr]
    weights = weights_of(compiled)
    assert torch.equal(weights["0.weight"], first.weight)
    assert torch.equal(weights["2.weight"], second.weight)
    dense = [F.relu(model[0](x)).detach() for x in batches]
    assert not torch.equal(Gptq().fit(model[2].weight.detach(), INT3, gram(dense)).weight, second.weight)  # type: ignore[union-attr]


def test_represented_inputs_are_what_is_fitted_to() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(24, 16)).double(), normal(60, 24)
    coarse = {"kind": "quantize", "num_bits": 3, "strategy": "token", "dynamic": True}
    compiled = rhoc.compile(model, spec(input_activations=coarse), (x,))
    inputs = Representation((Quantize(3, strategy="token", dynamic=True),)).project(x)
    expected = Gptq().fit(model[0].weight.detach(), INT3, gram([inputs])).weight  # type: ignore[union-attr]
    assert torch.equal(weights_of(compiled)["0.weight"], expected)


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1)])
def test_convolutions(stride: int, padding: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, stride, padding)).double()
    x = normal(6, 4, 9, 9)
    compiled = rhoc.compile(model, spec(), (x,))
    rows = F.unfold(x, 3, padding=padding, stride=stride).transpose(1, 2).flatten(0, 1)
    dense = model[0].weight.detach().flatten(1)  # type: ignore[union-attr, operator]
    expected = Gptq().fit(dense, INT3, gram([rows])).weight
    assert torch.equal(weights_of(compiled)["0.weight"].flatten(1), expected)
    with torch.no_grad():
        assert torch.equal(compiled.packed()(x), compiled.reference()(x))


class Experts(nn.Module):
    """A weight for each of three experts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 16, 8, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.bmm(x, self.weight)


def test_experts_are_fitted_to_their_own_inputs() -> None:
    torch.manual_seed(0)
    model, x = Experts(), normal(3, 50, 16)
    compiled = rhoc.compile(model, spec(), (x,))
    found = weights_of(compiled)["weight"].transpose(1, 2)
    dense = model.weight.detach().transpose(1, 2)
    expected = Gptq().fit(dense.contiguous(), INT3, [gram([each]) for each in x]).weight
    assert torch.equal(found, expected)
    alone = torch.stack([Gptq().fit(w, INT3, gram([each])).weight for w, each in zip(dense, x, strict=True)])
    torch.testing.assert_close(found, alone)


class TiedTwice(nn.Module):
    """One weight in two places, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x)))


def test_a_tied_weight_has_one_code() -> None:
    torch.manual_seed(0)
    model, x = TiedTwice().double(), normal(50, 16)
    compiled = rhoc.compile(model, spec(), (x,))
    expected = Gptq().fit(model.first.weight.detach(), INT3, gram([x])).weight
    reference, packed = compiled.reference(), compiled.packed()
    assert torch.equal(reference.first.weight, expected)  # type: ignore[union-attr]
    assert torch.equal(reference.second.weight, expected)  # type: ignore[union-attr]
    with torch.no_grad():
        assert torch.equal(packed(x), reference(x))


def test_a_head_tied_to_an_embedding_is_rounded_and_says_so() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(12, 16)

        def forward(self, tokens: Tensor) -> Tensor:
            return F.linear(self.embed(tokens), self.embed.weight)

    torch.manual_seed(0)
    model = Words()
    compiled = rhoc.compile(model, spec(), (torch.arange(12)[None],))
    assert torch.equal(weights_of(compiled)["embed.weight"], INT3.project(model.embed.weight.detach()))
    (row,) = compiled.explain().parameters
    expected = "Calibrate: rounded to nearest: embedding looks its weight up and multiplies with nothing"
    assert expected in row.reason


@pytest.mark.usefixtures("no_kernels")  # which sum in another order
def test_trained_weights_are_not_those_that_were_calibrated(
    classifier: tuple[nn.Module, Compiled, list[tuple[Tensor]]],
) -> None:
    model, compiled, batches = classifier
    student = compiled.trainable()
    found, rounded = compiled.reference(student), rhoc.compile(model, {**spec(), "passes": []}).reference()
    for name, parameter in rounded.named_parameters():
        assert torch.equal(parameter, found.get_parameter(name))
    with torch.no_grad():
        assert torch.equal(student.eval()(*batches[0]), found(*batches[0]))
        assert torch.equal(compiled.packed(student)(*batches[0]), found(*batches[0]))


def test_what_was_saved_is_what_was_fitted(
    classifier: tuple[nn.Module, Compiled, list[tuple[Tensor]]], tmp_path: Path
) -> None:
    _, compiled, batches = classifier
    compiled.save(tmp_path / "packed")
    loaded = load_packed(tmp_path / "packed", trained(planted=False))
    with torch.no_grad():
        assert torch.equal(loaded(*batches[0]), compiled.packed()(*batches[0]))


@pytest.mark.usefixtures("no_kernels")  # which sum in another order
def test_a_decoder_is_fitted_whole() -> None:
    torch.manual_seed(0)
    model = llama(32, vocabulary=32, context=16)
    model.layers[1:].requires_grad_(False)
    batches = [(torch.randint(0, 32, (2, 16)),) for _ in range(3)]
    compiled = rhoc.compile(
        model, {**spec(), "rules": {"targets": "Linear", "weights": INT3_TEXT}}, calibration=batches
    )
    (transformed,) = compiled.transformed
    said = [r.reach for r in transformed.reached if r.name == "Calibrate"]
    assert len(said) == len([d for d in compiled.decisions if not d.assignment.weight.is_dense]) == 15
    assert all(reach.reached and reach.what.startswith("gptq: output error ") for reach in said)
    with torch.no_grad():
        assert torch.equal(compiled.packed()(*batches[0]), compiled.reference()(*batches[0]))


INT3_TEXT = "quantize(int3, channel)"
METHODS: dict[str, tuple[object, str, str]] = {
    "gptq cannot prune": (
        {"kind": "calibrate", "method": "gptq"},
        f"sparsify(0.5) >> {INT3_TEXT}",
        "rounded to nearest, output error ",
    ),
    "sparse needs pruning": ({"kind": "calibrate", "method": "sparse_gptq"}, INT3_TEXT, "rounded to nearest, output error "),
    "nothing was asked": ({"kind": "calibrate", "method": "round_to_nearest"}, INT3_TEXT, "output error "),
    "a sum": ("calibrate", "quantize(int2, channel) + quantize(int2, channel)", "rounded to nearest, output error "),
}  # fmt: skip


@pytest.mark.parametrize("case", METHODS)
def test_what_a_method_cannot_fit_is_rounded_and_said(case: str) -> None:
    listed, chain, message = METHODS[case]
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(24, 16)).double(), normal(60, 24)
    compiled = rhoc.compile(model, spec(listed, weights=chain), (x,))
    nearest = from_text(chain, lambda name: None).project(model[0].weight.detach())  # type: ignore[union-attr]
    assert torch.equal(weights_of(compiled)["0.weight"], nearest)
    (reach,) = [r.reach for r in compiled.transformed[0].reached if r.name == "Calibrate"]
    assert reach.what.startswith(message)
    assert reach.reached is (case == "nothing was asked")
    assert (": " in reach.what) is (case != "nothing was asked"), "the reason is there"
    assert reach.what in compiled.explain().parameters[0].reason


AUTO = {
    "sparsify(2:4)": "sparse_gptq",
    "sparsify(2:4) >> quantize(int4, channel)": "sparse_gptq",
    f"{INT3_TEXT} + product(4)": "low_rank",
    f"hadamard(8) >> {INT3_TEXT}": "gptq",
    "quantize(e2m1, group=8)": "gptq",
}


@pytest.mark.parametrize("chain", AUTO)
def test_the_method_follows_from_the_representation(chain: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(24, 16)).double(), normal(100, 24)
    compiled = rhoc.compile(model, spec(weights=chain), (x,))
    (reach,) = [r.reach for r in compiled.transformed[0].reached if r.name == "Calibrate"]
    assert reach.what.startswith(f"{AUTO[chain]}: output error ")
    assert reach.reached
    dense, representation = model[0].weight.detach(), from_text(chain, lambda name: None)  # type: ignore[union-attr]
    nearest = RoundToNearest().fit(dense, representation, gram([x])).weight
    assert error(x, dense, weights_of(compiled)["0.weight"]) < error(x, dense, nearest)
    with torch.no_grad():  # inputs of a rotated weight are rotated instead
        torch.testing.assert_close(compiled.packed()(x), compiled.reference()(x), rtol=1e-9, atol=1e-9)


def test_what_a_method_makes_worse_is_rounded_to_nearest() -> None:
    """Greedy corrections can lose on few weights: nothing comes out worse than rounding."""
    worse = 0
    for seed in range(3):
        torch.manual_seed(seed)
        model, x = nn.Sequential(nn.Linear(24, 16)).double(), normal(100, 24)
        compiled = rhoc.compile(model, spec(weights=f"sparsify(0.5) >> {INT3_TEXT}"), (x,))
        (reach,) = [r.reach for r in compiled.transformed[0].reached if r.name == "Calibrate"]
        dense, found = model[0].weight.detach(), weights_of(compiled)["0.weight"]  # type: ignore[union-attr]
        representation = from_text(f"sparsify(0.5) >> {INT3_TEXT}", lambda name: None)
        nearest = representation.project(dense)
        assert error(x, dense, found) <= error(x, dense, nearest) * (1 + 1e-9)
        fitted = SparseGptq().fit(dense, representation, gram([x])).weight
        if error(x, dense, fitted) > error(x, dense, nearest):
            assert torch.equal(found, nearest)
            assert not reach.reached
            assert "sparse_gptq gives" in reach.what
            worse += 1
    assert worse


def test_biases_are_corrected_for_the_weights_that_were_fitted() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(24, 16)).double(), normal(60, 24) + 1
    for listed in (("calibrate", "correct_bias"), ("correct_bias", "calibrate")):
        reference = rhoc.compile(model, spec(*listed), (x,)).reference()
        with torch.no_grad():
            torch.testing.assert_close(reference(x).mean(0), model(x).mean(0), rtol=1e-9, atol=1e-9)
    names = [each.name for each in order(complete((CorrectBias(), Calibrate()), [(x,)])).ordered()]
    assert names.index("Calibrate") < names.index("CorrectBias")


@pytest.mark.parametrize("options", [{"method": "best"}, {"damping": 1.0}, {"damping": -0.1}], ids=str)
def test_wrong_options(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"method is 'best'; use one of|is not from 0 to 1; 0.01 is usual"):
        Calibrate(**options)


def test_inputs_that_are_not_finite_are_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    x = torch.full((3, 8), float("nan"))
    with pytest.raises(RequestError, match="calibration inputs are NaN or infinite"):
        rhoc.compile(model, spec(), (x,))
