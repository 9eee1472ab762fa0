"""Weights trained as powers of what is trained: the gradient, conversion, and forms that agree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import rhoc
from rhoc.compiler.spec import load_spec
from rhoc.runtime.errors import RequestError, RhocError
from rhoc.runtime.latents import LATENTS, Power
from rhoc.runtime.projection import latent_parameters

from .models import Tied, TiedByHand
from .planted import digits

pytestmark = pytest.mark.usefixtures("one_thread")


def spec(alpha: float = 2.0, weights: Any = "dense", **rest: Any) -> dict[str, Any]:
    rule = {"targets": "Linear", "weights": weights, "latent": {"kind": "power", "alpha": alpha}, **rest}
    return {"version": 1, "rules": [rule]}


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def steps(student: nn.Module, count: int = 5) -> None:
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9)
    for step in range(count):
        x = torch.randn(16, 16, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (student(x) - x[:, :8]).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 3.0, 4.0])
def test_the_gradient_is_the_formula(alpha: float) -> None:
    # 2110.00296, Eq. 1: w = theta |theta|^(alpha - 1), and dL/dtheta = alpha |theta|^(alpha - 1) dL/dw.
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(50, 40, generator=generator, dtype=torch.float64)
    theta[::7] = 0.0
    upstream = torch.randn(50, 40, generator=generator, dtype=torch.float64)
    leaf = theta.clone().requires_grad_()
    weight = Power(alpha).weight(leaf)
    weight.backward(upstream)
    t, g = theta.numpy(), upstream.numpy()
    np.testing.assert_allclose(weight.detach().numpy(), t * np.abs(t) ** (alpha - 1), rtol=1e-14)
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.numpy(), alpha * np.abs(t) ** (alpha - 1) * g, rtol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_zeros_have_no_gradient_and_no_nan(dtype: torch.dtype) -> None:
    leaf = torch.tensor([0.0, -0.0, 1e-3, -2.0], dtype=dtype).requires_grad_()
    Power(1.5).weight(leaf).sum().backward()
    assert leaf.grad is not None
    assert leaf.grad.isfinite().all()
    assert not leaf.grad[:2].any()
    assert leaf.grad[2:].all()


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.0, 3.0, 5.0])
def test_the_start_gives_the_weight_back(alpha: float) -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    weight[0] = 0.0
    latent = Power(alpha)
    torch.testing.assert_close(latent.weight(latent.start(weight)), weight, rtol=2e-6, atol=0)
    assert not latent.start(weight)[0].any()


@pytest.mark.parametrize("alpha", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("weights", ["dense", {"kind": "quantize", "num_bits": 8, "strategy": "channel"}])
def test_a_model_computes_what_it_did(alpha: float, weights: Any) -> None:
    torch.manual_seed(0)
    model = mlp(16, 32, 8)
    steps(model, 20)
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(5))
    before = rhoc.compile(model, {**spec(), "rules": [{"targets": "Linear", "weights": weights}]}).trainable()
    after = rhoc.compile(model, spec(alpha, weights)).trainable()
    # A weight that rounding moves over the border of a cell moves by a whole cell.
    most = 1e-5 if weights == "dense" else 2e-2
    with torch.no_grad():
        assert float((after(x) - before(x)).abs().max()) < most


@pytest.mark.parametrize("weights", ["dense", {"kind": "sparsify", "sparsity": 0.75}, "sparse50-int4"])
@pytest.mark.parametrize("alpha", [1.5, 3.0])
def test_forms_of_a_trained_model_agree(weights: Any, alpha: float) -> None:
    torch.manual_seed(0)
    model = mlp(16, 32, 8)
    compiled = rhoc.compile(model, spec(alpha, weights))
    student = compiled.trainable()
    steps(student)
    student.eval()
    x = torch.randn(32, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        expected = student(x)
        assert torch.equal(compiled.reference(student)(x), expected) or weights == "sparse50-int4"
        torch.testing.assert_close(compiled.reference(student)(x), expected)
        torch.testing.assert_close(compiled.packed(student)(x), expected)
        if weights == "dense":
            assert torch.equal(compiled.packed(student)(x), expected)
        by_state = compiled.reference(student.state_dict())
    assert torch.equal(by_state(x), compiled.reference(student)(x))
    theta, weight = student.state_dict()["0.weight"], by_state.state_dict()["0.weight"]
    if weights == "dense":
        assert torch.equal(weight, Power(alpha).weight(theta))
    fresh = compiled.reference().state_dict()["0.weight"]
    assert not torch.equal(fresh, weight), "trained, and of the original where nothing was"


def test_state_dicts_go_round() -> None:
    compiled = rhoc.compile(mlp(16, 32, 8), spec(3.0, {"kind": "sparsify", "sparsity": 0.5}))
    student, other = compiled.trainable(), compiled.trainable()
    steps(student)
    other.load_state_dict(student.state_dict())
    x = torch.randn(4, 16)
    assert torch.equal(student(x), other(x))
    assert torch.equal(copy.deepcopy(student)(x), student(x))


@pytest.mark.parametrize("model", [Tied, TiedByHand])
def test_tied_weights_are_one_parameter(model: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    original = model()
    compiled = rhoc.compile(original, spec(2.0, targets=["Linear", "Embedding"]))
    student = compiled.trainable()
    names = {name for name, _, _ in latent_parameters(student)}
    assert names == {"embed.weight", "hidden.weight"}
    tokens = torch.arange(24)[None]
    torch.testing.assert_close(student(tokens), original(tokens), rtol=1e-5, atol=1e-5)
    student(tokens).square().sum().backward()
    original(tokens).square().sum().backward()
    theta = student.state_dict(keep_vars=True)["embed.weight"]
    expected = 2 * theta.detach().abs() * original.get_parameter("embed.weight").grad
    torch.testing.assert_close(theta.grad, expected, rtol=1e-4, atol=1e-5)


def test_convolutions_and_recurrent_layers() -> None:
    torch.manual_seed(0)
    for model, target, x in (
        (nn.Sequential(nn.Conv2d(3, 8, 3)), "Conv2d", torch.randn(2, 3, 8, 8)),
        (nn.LSTM(8, 8), "LSTM", torch.randn(3, 2, 8)),
    ):
        student = rhoc.compile(model, spec(3.0, targets=target)).trainable()
        ours, theirs = student(x), model(x)
        ours, theirs = (y[0] if isinstance(y, tuple) else y for y in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_compiled_steps_agree() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    compiled = rhoc.compile(mlp(16, 8), spec(1.5, {"kind": "sparsify", "sparsity": 0.5}))
    x, found = torch.randn(4, 16), []
    for backend in ("", "aot_eager"):
        student = compiled.trainable()
        run = torch.compile(student, backend=backend, fullgraph=True) if backend else student
        run(x).square().sum().backward()
        found.append(student[0].weight.grad)
    torch.testing.assert_close(*found)


def test_a_weight_that_is_computed_is_refused() -> None:
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)))
    message = r"parametrizations compute it, and latent power\(alpha=2\) needs a parameter"
    with pytest.raises(RequestError, match=message):
        rhoc.compile(normed, spec())


@pytest.mark.parametrize(
    ("latent", "message"),
    [
        ({"kind": "power", "alpha": 0.5}, "alpha must be at least 1, got 0.5"),
        ({"kind": "power", "alpha": "two"}, "alpha must be a number"),
        ({"kind": "powr"}, "no latent is called 'powr'"),
        ({"alpha": 2}, "a latent needs a kind: power"),
        ({"kind": "power", "beta": 1}, "beta"),
    ],
)
def test_what_is_wrong_is_said(latent: Any, message: str) -> None:
    with pytest.raises(RhocError) as caught:
        load_spec({"version": 1, "rules": [{"targets": "Linear", "weights": "dense", "latent": latent}]})
    assert message in str(caught.value)


def test_specs_round_trip() -> None:
    loaded = load_spec(spec(3.0))
    assert load_spec(loaded.to_document()) == loaded
    assert loaded.rules[0].latent == Power(3.0)
    named = load_spec({"version": 1, "rules": [{"targets": "Linear", "weights": "dense", "latent": "power"}]})
    assert named.digest == load_spec(spec()).digest != loaded.digest
    assert {latent.kind for latent in LATENTS} == {"power"}


def pruned_accuracy(alpha: float, seed: int) -> tuple[dict[float, float], float]:
    """Accuracy on digits by density of every layer, and how much of the largest tenth of weights was there
    from the start."""
    images, labels, held, answers = digits()
    torch.manual_seed(seed)
    compiled = rhoc.compile(mlp(64, 300, 100, 10), spec(alpha))
    student = compiled.trainable()
    before = [layer.weight.detach().clone() for layer in compiled.reference() if isinstance(layer, nn.Linear)]
    optimizer = torch.optim.SGD(student.parameters(), 0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(3000):
        chosen = torch.randint(len(images), (60,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(student(images[chosen]), labels[chosen]).backward()
        optimizer.step()
    found = {}
    for density in (1.0, 0.1, 0.05):
        plain = compiled.reference(student)
        for layer in plain:
            if isinstance(layer, nn.Linear):
                layer.weight.data *= _largest(layer.weight.data, density)
        found[density] = float((plain(held).argmax(-1) == answers).float().mean())
    after = [layer.weight for layer in compiled.reference(student) if isinstance(layer, nn.Linear)]
    same = [
        float((_largest(a, 0.1) == _largest(b, 0.1)).float().mean())
        for a, b in zip(before, after, strict=True)
    ]
    return found, sum(same) / len(same)


def _largest(weight: Tensor, share: float) -> Tensor:
    kept = round(share * weight.numel())
    return weight.abs() >= weight.abs().flatten().sort(descending=True).values[kept - 1]


@pytest.mark.slow
def test_powers_leave_more_when_pruned() -> None:
    # Powerpropagation, section 4: what is pruned in one shot after training.
    runs = {alpha: [pruned_accuracy(alpha, seed) for seed in range(3)] for alpha in (1.0, 3.0)}
    plain, powered = (
        {
            density: float(np.mean([found[density] for found, _ in runs[alpha]]))
            for density in (1.0, 0.1, 0.05)
        }
        for alpha in (1.0, 3.0)
    )
    assert abs(powered[1.0] - plain[1.0]) < 0.02
    assert powered[0.1] > plain[0.1] + 0.05
    assert powered[0.05] > plain[0.05] + 0.12
    assert min(same for _, same in runs[3.0]) > max(same for _, same in runs[1.0])
