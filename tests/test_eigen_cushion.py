"""The eigen-cushion: what training sees against numpy, when inputs are measured, restarts, forms, messages."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.runtime.errors import RequestError
from rhoc.runtime.input_grams import block_moments, leading_directions
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import packed_weights
from rhoc.runtime.train import train

from .small_net import net, normal
from .small_net import trained as trained_over
from .tiny_task import SETTINGS, Interrupted, dense, stop_after, task

pytestmark = pytest.mark.usefixtures("one_thread")

Array = NDArray[np.float64]
SIGNS = {"kind": "quantize", "num_bits": 1, "strategy": "channel", "observer": "mse"}
INT2 = {"kind": "quantize", "num_bits": 2, "strategy": "group", "group_size": 8}
TABLE = {"kind": "codebook", "in_group_size": 4, "nbits_per_codebook": 3}
TURNED = [{"kind": "hadamard", "block": 8}, {"kind": "quantize", "num_bits": 2, "strategy": "channel"}]
WEIGHTS = {"signs": SIGNS, "int2": INT2, "table": TABLE, "turned": TURNED}
STEPS = 10

trained = partial(trained_over, steps=STEPS)


def cushion(directions: float, refresh: int = 100, block: int | None = None) -> dict[str, Any]:
    return {"kind": "eigen_cushion", "directions": directions, "refresh": refresh, "block": block}


def anneal(start: float, end: float = 0.6, position: int = 0) -> dict[str, Any]:
    return {"field": f"estimator.weights.{position}.directions", "start": start, "end": end}


def compiled_with(
    *estimators: Any, weights: Any = SIGNS, model: nn.Module | None = None, data: Any = None, **more: Any
) -> Compiled:
    """A network under these estimators; with data its inputs are calibrated."""
    rule = {
        "targets": "re:.*",
        "weights": weights,
        "estimator": {"weights": [*estimators]},
        **more,
    }
    spec: dict[str, Any] = {"version": 1, "rules": rule}
    if data is None:
        return rhoc.compile(model or net(), spec)
    return rhoc.compile(model or net(), {**spec, "passes": ["calibrate_directions"]}, data)


def seen(model: nn.Module, x: Tensor) -> Tensor:
    """What training sees, at the first step."""
    rhoc.attach(model.train(), torch.optim.SGD(model.parameters(), lr=0.0), STEPS)
    return model(x)  # type: ignore[no-any-return]


def leading(rows: Array, count: int, block: int | None = None) -> Array:
    """V V^T of the leading eigenvectors of the second moments of rows, zero between blocks."""
    moments, size = rows.T @ rows, rows.shape[1]
    if block is not None:
        moments = moments * (np.arange(size)[:, None] // block == np.arange(size) // block)
    vectors = np.linalg.eigh(moments)[1][:, ::-1][:, :count]
    return np.asarray(vectors @ vectors.T)


def float64(x: Tensor) -> Array:
    return np.asarray(x.detach().double().numpy())


@pytest.mark.parametrize("block", [None, 5])
@pytest.mark.parametrize("name", WEIGHTS)
def test_training_sees_the_weight_along_leading_directions_of_inputs(name: str, block: int | None) -> None:
    x = normal(50, 16) * torch.linspace(0.2, 2, 16)
    model = nn.Sequential(nn.Linear(16, 24))
    whole = compiled_with(cushion(5, block=block), weights=WEIGHTS[name], model=model, data=(x,))
    dense_weight, projected = float64(model[0].weight), float64(whole.reference().get_parameter("0.weight"))
    exact = leading(float64(x), 5, block)
    expected = float64(x) @ (projected + (dense_weight - projected) @ exact).T + float64(model[0].bias)
    found = seen(whole.trainable(), x)
    np.testing.assert_allclose(float64(found), expected, rtol=1e-4, atol=1e-5)
    every = np.abs(float64(model(x)) - expected).max()
    assert every > 0.01  # and not simply the dense weight


def test_a_convolution_is_taken_apart_into_rows() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 6, (3, 2), stride=(2, 1), padding=(1, 0)))
    x = normal(5, 3, 9, 8)
    whole = compiled_with(cushion(4), model=model, data=(x,))
    rows = float64(F.unfold(x, (3, 2), padding=(1, 0), stride=(2, 1)).movedim(1, 2).reshape(-1, 18))
    w = float64(model[0].weight).reshape(6, 18)
    projected = float64(whole.reference().get_parameter("0.weight")).reshape(6, 18)
    weight = torch.from_numpy(projected + (w - projected) @ leading(rows, 4)).reshape(6, 3, 3, 2)
    expected = F.conv2d(x.double(), weight, model[0].bias.double(), (2, 1), (1, 0))
    torch.testing.assert_close(seen(whole.trainable(), x).double(), expected, rtol=1e-4, atol=1e-5)


def test_directions_are_eigenvectors_and_orthonormal() -> None:
    rows = normal(3, 30, 10)
    for block in (None, 4):
        found = leading_directions(block_moments(rows, block), 10, 6)
        for each, columns in zip(rows, found, strict=True):
            torch.testing.assert_close(columns.mT @ columns, torch.eye(6, dtype=torch.float64))
            np.testing.assert_allclose(
                float64(columns @ columns.mT), leading(float64(each), 6, block), atol=1e-5
            )


def test_the_last_direction_counts_in_part() -> None:
    x = normal(50, 16) * torch.linspace(0.2, 2, 16)
    model = nn.Sequential(nn.Linear(16, 24, bias=False))
    whole = compiled_with(cushion(2.25), model=model, data=(x,))
    w, projected = float64(model[0].weight), float64(whole.reference().get_parameter("0.weight"))
    exact = 0.75 * leading(float64(x), 2) + 0.25 * leading(float64(x), 3)
    expected = float64(x) @ (projected + (w - projected) @ exact).T
    np.testing.assert_allclose(float64(seen(whole.trainable(), x)), expected, rtol=1e-4, atol=1e-5)


def test_more_directions_than_inputs_are_all_of_them() -> None:
    x = normal(40, 16)
    model = nn.Sequential(nn.Linear(16, 24))
    found = seen(compiled_with(cushion(99), model=model, data=(x,)).trainable(), x)
    torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)


def test_gradients_pass_straight_through() -> None:
    x, grad = normal(40, 16), normal(40, 24, seed=1)
    model = nn.Sequential(nn.Linear(16, 24))
    form = compiled_with(cushion(5), model=model, data=(x,)).trainable()
    seen(form, x).backward(grad)
    found = dict(form.named_parameters())["0.weight"].grad
    assert found is not None
    np.testing.assert_allclose(float64(found), float64(grad).T @ float64(x), rtol=1e-4, atol=1e-4)


def test_learned_scales_feel_what_is_not_exact() -> None:
    """dL/ds of a row: the sum of (G - G P) B, with P = V V^T and B the levels, over sqrt(16 / 2)."""
    x, grad = normal(40, 16), normal(40, 24, seed=1)
    model = nn.Sequential(nn.Linear(16, 24, bias=False))
    form = compiled_with("learned_scale", cushion(5), model=model, data=(x,)).trainable()
    seen(form, x).backward(grad)
    parameters = dict(form.named_parameters())
    to_weight = float64(grad).T @ float64(x)
    levels = np.where(float64(model[0].weight) >= 0, 0.5, -0.5)
    apart = to_weight - to_weight @ leading(float64(x), 5)
    found = parameters["0.weight_step"].grad
    assert found is not None
    np.testing.assert_allclose(
        float64(found), (apart * levels).sum(1) / np.sqrt(16 * 0.5), rtol=1e-3, atol=1e-3
    )
    assert parameters["0.weight"].grad is not None
    np.testing.assert_allclose(float64(parameters["0.weight"].grad), to_weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WEIGHTS)
def test_without_directions_it_is_what_stands_beside_it_to_the_bit(name: str) -> None:
    for others in (("ste",), ("lsq",), ("trust",)):
        if others == ("lsq",) and name == "table":
            continue
        expected = trained(compiled_with(*others, weights=WEIGHTS[name]).trainable())[-1]
        found = trained(compiled_with(*others, cushion(0), weights=WEIGHTS[name]).trainable())[-1]
        for path, tensor in expected.items():
            assert torch.equal(found[path], tensor), path


def test_inputs_are_measured_as_often_as_it_says_and_no_more_once_nothing_is_exact() -> None:
    model = compiled_with(cushion(0, refresh=3), schedule=anneal(8)).trainable()
    assert not model.state_dict()["0.weight_input_directions"].any()
    states = [s["0.weight_input_directions"] for s in trained(model)]
    changed = [i for i, (old, new) in enumerate(pairwise(states), 1) if not torch.equal(old, new)]
    assert bool(states[0].any())  # nothing was calibrated: the first step measures
    assert changed == [3]  # 8 directions become 0 over 6 steps


def test_the_first_measurement_is_of_the_first_batch() -> None:
    model = compiled_with(cushion(4, refresh=50)).trainable()
    found = trained(model, range(1))[0]["0.weight_input_directions"]
    expected = leading(float64(normal(40, 16, seed=0)), 4)
    np.testing.assert_allclose(float64(found @ found.mT), expected, atol=1e-5)


def test_later_layers_are_measured_behind_quantised_ones() -> None:
    model = compiled_with(cushion(4, refresh=50)).trainable()
    with torch.no_grad():
        projected = compiled_with(cushion(4)).reference().get_parameter("0.weight")
        hidden = F.linear(normal(40, 16, seed=0), projected, model.get_parameter("0.bias")).relu()
    found = trained(model, range(1))[0]["2.weight_input_directions"]
    np.testing.assert_allclose(float64(found @ found.mT), leading(float64(hidden), 4), atol=1e-5)


def test_what_was_calibrated_is_kept_until_the_next_measurement() -> None:
    data = normal(60, 16, seed=9)
    model = compiled_with(cushion(4, refresh=3), data=(data,)).trainable()
    start = model.state_dict()["0.weight_input_directions"].clone()
    np.testing.assert_allclose(float64(start @ start.mT), leading(float64(data), 4), atol=1e-5)
    states = [s["0.weight_input_directions"] for s in trained(model, range(4))]
    assert [torch.equal(state, start) for state in states] == [True, True, True, False]


def test_a_forward_pass_in_training_changes_nothing() -> None:
    model = compiled_with(cushion(4)).trainable()
    rhoc.attach(model.train(), torch.optim.SGD(model.parameters(), lr=0.1), STEPS)
    before = copy.deepcopy(model.state_dict())
    model(normal(12, 16)).sum().backward()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_checkpointed_activations_see_the_same() -> None:
    model = compiled_with(cushion(4), data=(normal(30, 16),)).trainable()
    trained(model, range(1))
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        run(normal(6, 16)).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("stop", [1, 3, 5])
@pytest.mark.parametrize("first", ["ste", "learned_scale"])
def test_a_run_that_was_killed_ends_on_the_same_bits(first: str, stop: int, tmp_path: Path) -> None:
    rule = {
        "targets": "Linear",
        "weights": SIGNS,
        "estimator": {"weights": [first, cushion(0, refresh=2)]},
        "schedule": anneal(4, 0.8, position=1),
    }
    settings = replace(SETTINGS, ema=0.5)

    def student() -> nn.Module:
        return rhoc.compile(dense(), {"version": 1, "rules": rule}).trainable()

    whole, again = student(), student()
    expected = train(whole, task(), settings)
    given = {"checkpoint_dir": tmp_path, "checkpoint_seconds": 0.0}
    with pytest.raises(Interrupted):
        train(student(), task(), settings, listener=stop_after(stop), **given)  # type: ignore[arg-type]
    result = train(again, task(), settings, **given)  # type: ignore[arg-type]
    assert result.loss == expected.loss
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.parametrize("latent", [None, {"kind": "power", "alpha": 2}], ids=["plain", "power"])
@pytest.mark.parametrize("steps", [4, STEPS])
@pytest.mark.usefixtures("no_kernels")  # which sum in another order
def test_forms_have_the_projection_and_nothing_of_directions(steps: int, latent: Any, tmp_path: Path) -> None:
    more = {} if latent is None else {"latent": latent}
    whole = compiled_with("ste", cushion(0, refresh=3), schedule=anneal(8, position=1), **more)
    model, x = whole.trainable(), normal(9, 16)
    state = trained(model, range(steps))[-1]
    whole.save(tmp_path / "saved", model)
    with torch.no_grad():
        expected = model.eval()(x)
        forms = (whole.packed(model), whole.reference(state), load_packed(tmp_path / "saved", net()))
        for form in forms:
            assert torch.equal(form(x), expected)
            assert not any("directions" in name for name in form.state_dict())
    for path, weight in packed_weights(forms[0]).items():
        assert {t.unique().numel() for t in weight.decode()} == {2}, path


def test_compiled_whole_it_trains_alike() -> None:
    made = compiled_with("learned_scale", cushion(0, refresh=2), schedule=anneal(3, position=1))
    eager, other = made.trainable(), made.trainable()
    expected = trained(eager)[-1]
    found = trained(other, run=torch.compile(other, backend="aot_eager", fullgraph=True))[-1]
    for name, tensor in expected.items():
        if not name.endswith("directions"):  # of which signs are free
            torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


REFUSED: dict[str, tuple[list[Any], Any, str]] = {
    "negative": ([cushion(-1)], SIGNS, "directions is a number of eigenvectors"),
    "never": ([cushion(1, refresh=0)], SIGNS, "refresh is a number of steps"),
    "block": ([cushion(1, block=0)], SIGNS, "block is a number of inputs"),
    "two": ([cushion(1), cushion(2)], SIGNS, "cannot share a weight"),
    "frozen": ([cushion(1), "freeze_codes"], TABLE, "cannot share a weight"),
    "fields": (["fields", cushion(1)], TABLE, "leave out eigen_cushion"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_means_nothing_is_refused(name: str) -> None:
    estimators, weights, message = REFUSED[name]
    with pytest.raises(RequestError) as caught:
        compiled_with(*estimators, weights=weights)
    assert message in f"{caught.value} {caught.value.advice}"


def test_a_lookup_has_no_inputs_to_measure() -> None:
    model = nn.Sequential(nn.Embedding(10, 16), nn.Linear(16, 4))
    rule = {"targets": "Embedding", "weights": SIGNS, "estimator": {"weights": cushion(2)}}
    form = rhoc.compile(model, {"version": 1, "rules": rule}).trainable()
    with pytest.raises(RequestError, match="measures inputs of weights") as caught:
        rhoc.attach(form, torch.optim.SGD(form.parameters(), lr=0.1), STEPS)
    assert caught.value.where == "0.weight"
