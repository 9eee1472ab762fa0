"""Codes that are frozen some way into training: what trains when, kept tables, restarts, forms, messages."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.runtime.errors import RequestError
from rhoc.runtime.load import load_packed
from rhoc.runtime.train import train

from .small_net import net, normal, trained
from .tiny_task import SETTINGS, Interrupted, dense, stop_after, task

pytestmark = pytest.mark.usefixtures("one_thread")

CODEBOOK = {"kind": "codebook", "in_group_size": 4, "nbits_per_codebook": 3}
RESIDUAL = {**CODEBOOK, "nbits_per_codebook": 2, "num_codebooks": 2}
SCALED = {**CODEBOOK, "observer": "rms", "strategy": "channel"}
GRID = {"kind": "quantize", "num_bits": 3, "strategy": "channel"}
STEPS = 12


def freeze(begin: float, refresh: int | None = None) -> dict[str, Any]:
    return {"kind": "freeze_codes", "begin": begin, "refresh": refresh}


def rule(*estimators: Any, weights: Any = CODEBOOK, targets: str = "Linear", **more: Any) -> dict[str, Any]:
    chosen = {"estimator": {"weights": [*estimators]}} if estimators else {}
    return {"targets": targets, "weights": weights, **chosen, **more}


def compiled_with(*rules: dict[str, Any]) -> Compiled:
    return rhoc.compile(net(), {"version": 1, "rules": [*rules]})


@pytest.mark.parametrize("weights", [CODEBOOK, RESIDUAL, GRID], ids=["table", "residual", "grid"])
def test_a_weight_trains_as_ever_and_then_its_floats_do(weights: Any) -> None:
    given = trained(compiled_with(rule(freeze(0.5), weights=weights)).trainable())
    plain = trained(compiled_with(rule(weights=weights)).trainable(), range(6), attached=False)
    for ours, theirs in zip(given[:6], plain, strict=True):
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name
    frozen, end = given[5], given[-1]
    floats = [n for n in end if "field" in n and end[n].is_floating_point()]
    for name in (n for n in end if n.endswith(".weight") or "carry" in n):
        assert torch.equal(frozen[name], end[name]), f"{name} under decay and momentum"
    assert floats
    for name in floats:
        assert not torch.equal(frozen[name], end[name]), name
    assert [int(state["0.weight_frozen"]) for state in given] == [0] * 5 + [1] * 7


def test_what_is_frozen_is_the_code_of_the_weight_there() -> None:
    compiled = compiled_with(rule(freeze(0.5)))
    state = trained(compiled.trainable(), range(6))[-1]
    representation = compiled.decisions[0].assignment.weight
    code = representation.encode(state["0.weight"])
    assert torch.equal(code.carry, state["0.weight_field_carry"])
    assert torch.equal(code.named()["0.codebook"].float(), state["0.weight_field_0_codebook"])


def test_at_the_start_it_is_training_of_fields() -> None:
    given = trained(compiled_with(rule(freeze(0.0))).trainable())
    fields = trained(compiled_with(rule("fields")).trainable(), attached=False)
    for ours, theirs in zip(given, fields, strict=True):
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name


def test_rules_are_stages_one_after_the_other() -> None:
    rules = rule(freeze(0.25), targets="0"), rule(freeze(0.75), targets="2")
    states = trained(compiled_with(*rules).trainable())
    flags = [(int(state["0.weight_frozen"]), int(state["2.weight_frozen"])) for state in states]
    assert flags == [(0, 0)] * 2 + [(1, 0)] * 6 + [(1, 1)] * 4
    first, second = (
        [not torch.equal(a[f"{i}.weight"], b[f"{i}.weight"]) for a, b in pairwise(states)] for i in (0, 2)
    )
    assert first == [True] * 2 + [False] * 9
    assert second == [True] * 8 + [False] * 3


@pytest.mark.parametrize("weights", [CODEBOOK, SCALED, RESIDUAL], ids=["table", "scaled", "residual"])
def test_kept_tables_change_when_they_are_refreshed_and_get_better(weights: Any) -> None:
    model = compiled_with(rule(freeze(1.0, refresh=4), weights=weights)).trainable()
    states = trained(model)
    name = "0.weight_field_0_codebook"
    changed = [not torch.equal(a[name], b[name]) for a, b in pairwise(states)]
    assert changed == [number + 2 in (4, 8, 12) for number in range(STEPS - 1)]


def test_a_refresh_is_lloyds_rounds_from_where_the_table_was() -> None:
    model = compiled_with(rule(freeze(1.0, refresh=4))).trainable()
    start = model.state_dict()["0.weight_field_0_codebook"].clone()
    state = trained(model, range(4))[-1]
    vectors = state["0.weight"].double().numpy().reshape(-1, 4)
    table, before = start[0, 0].double().numpy(), np.inf
    for _ in range(6):
        distances = ((vectors[:, None] - table) ** 2).sum(-1)
        codes, error = distances.argmin(1), distances.min(1).sum()
        if not error < (1 - 3e-4) * before:
            break
        before = error
        assert set(codes) == set(range(8)), "no vector of the table is idle"
        table = np.stack([vectors[codes == code].mean(0) for code in range(8)])
    np.testing.assert_allclose(state["0.weight_field_0_codebook"][0, 0].numpy(), table, rtol=2e-3, atol=2e-4)


def test_the_forward_pass_sees_the_nearest_of_kept_vectors() -> None:
    model = compiled_with(rule(freeze(1.0, refresh=100))).trainable()
    trained(model, range(5))
    state, x = model.state_dict(), torch.eye(16)
    vectors = state["0.weight"].numpy().reshape(-1, 4)
    table = state["0.weight_field_0_codebook"][0, 0].numpy()
    nearest = table[((vectors[:, None] - table) ** 2).sum(-1).argmin(1)].reshape(24, 16)
    hidden = np.maximum(nearest.T + state["0.bias"].numpy(), 0)
    second = state["2.weight"].numpy().reshape(-1, 4)
    table = state["2.weight_field_0_codebook"][0, 0].numpy()
    weight = table[((second[:, None] - table) ** 2).sum(-1).argmin(1)].reshape(8, 24)
    expected = hidden @ weight.T + state["2.bias"].numpy()
    np.testing.assert_allclose(model(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("refresh", [None, 3])
def test_noise_ends_in_plain_and_in_quantised_training(refresh: int | None) -> None:
    def states(*estimators: Any, **more: Any) -> list[dict[str, Tensor]]:
        return trained(compiled_with(rule(*estimators, freeze(0.75, refresh), **more)).trainable())

    def noise(p: float) -> dict[str, Any]:
        return {"kind": "block_noise", "p": p}

    plain = trained(net(), range(9), attached=False)
    for ours, theirs in zip(states(noise(0.0)), plain, strict=False):
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name
    for ours, theirs in zip(states(noise(1.0)), states("ste"), strict=True):
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name
    assert not torch.equal(states(noise(0.5))[4]["0.weight"], plain[4]["0.weight"])


def test_a_forward_pass_in_training_changes_nothing() -> None:
    for refresh in (None, 2):
        model = compiled_with(rule({"kind": "block_noise"}, freeze(0.5, refresh))).trainable()
        for number in range(2, STEPS, 4):
            trained(model, range(number))
            before = copy.deepcopy(model.state_dict())
            model.train()(normal(5, 16))
            for name, tensor in model.state_dict().items():
                assert torch.equal(tensor, before[name]), name


def test_checkpointed_activations_draw_the_same_noise() -> None:
    model = compiled_with(rule({"kind": "block_noise"}, freeze(1.0, 5))).trainable()
    trained(model, range(1))
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        model.zero_grad()
        torch.manual_seed(3)
        run(normal(6, 16)).square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("refresh", [None, 3])
@pytest.mark.parametrize("stop", [2, 3, 5, 8])
def test_a_run_that_was_killed_ends_on_the_same_bits(
    stop: int, refresh: int | None, ema: float, tmp_path: Path
) -> None:
    spec = {"version": 1, "rules": rule({"kind": "block_noise"}, freeze(0.5, refresh))}
    settings = replace(SETTINGS, ema=ema)

    def student() -> nn.Module:
        return rhoc.compile(dense(), spec).trainable()

    whole, again = student(), student()
    expected = train(whole, task(), settings)
    given = {"checkpoint_dir": tmp_path, "checkpoint_seconds": 0.0}
    with pytest.raises(Interrupted):
        train(student(), task(), settings, listener=stop_after(stop), **given)  # type: ignore[arg-type]
    result = train(again, task(), settings, **given)  # type: ignore[arg-type]
    assert result.loss == expected.loss
    assert result.eval_curve == expected.eval_curve
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


@pytest.mark.usefixtures("no_kernels")  # which sum in another order
@pytest.mark.parametrize("latent", [None, {"kind": "power", "alpha": 2}], ids=["plain", "power"])
@pytest.mark.parametrize("refresh", [None, 3])
@pytest.mark.parametrize("steps", [3, STEPS])
def test_forms_agree_to_the_bit(steps: int, refresh: int | None, latent: Any, tmp_path: Path) -> None:
    more = {} if latent is None else {"latent": latent}
    compiled = compiled_with(rule("ste", freeze(0.5, refresh), **more))
    model, x = compiled.trainable(), normal(9, 16)
    trained(model, range(steps))
    compiled.save(tmp_path / "saved", model)
    with torch.no_grad():
        expected = model.eval()(x)
        forms = (
            compiled.packed(model),
            compiled.reference(model.state_dict()),
            load_packed(tmp_path / "saved", net()),
        )
        for form in forms:
            assert torch.equal(form(x), expected)
    assert int(model.state_dict()["0.weight_frozen"]) == (steps == STEPS)


def test_a_state_of_another_time_is_taken_as_it_is() -> None:
    compiled = compiled_with(rule(freeze(0.5, 2)))
    model, x = compiled.trainable(), normal(9, 16)
    early = trained(model, range(3))[-1]
    with torch.no_grad():
        expected = model.eval()(x)
    assert int(trained(model.train())[-1]["0.weight_frozen"]) == 1
    model.load_state_dict(early)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), expected)


def test_the_optimiser_forgets_what_is_frozen() -> None:
    model = compiled_with(rule(freeze(0.5))).trainable()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    rhoc.attach(model, optimizer, 4)
    weight = dict(model.named_parameters())["0.weight"]
    for number in range(3):
        optimizer.zero_grad()
        model(normal(4, 16, seed=number)).square().mean().backward()
        optimizer.step()
        assert (weight in optimizer.state) == (number < 1)
    table = dict(model.named_parameters())["0.weight_field_0_codebook"]
    assert int(optimizer.state[table]["step"]) == 1


def test_compiled_whole_it_trains_to_the_same_bits() -> None:
    compiled = compiled_with(rule(freeze(0.5, refresh=3)))
    eager, other = compiled.trainable(), compiled.trainable()
    captured = torch.compile(other, backend="aot_eager", fullgraph=True)
    expected, found = trained(eager, range(8))[-1], trained(other, range(8), run=captured)[-1]
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-7)


def test_training_without_attaching_is_refused() -> None:
    model = compiled_with(rule(freeze(0.5))).trainable()
    with pytest.raises(RequestError, match=r"0\.weight|weight") as caught:
        model(normal(2, 16))
    assert "rhoc.attach(model, optimizer, steps)" in caught.value.advice


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "share": (rule({"kind": "freeze_codes", "begin": 1.5}), "begin is a share of the run"),
    "steps": (rule(freeze(0.5, 0)), "refresh is a number of steps"),
    "fields": (rule("fields", freeze(0.5)), "leave out freeze_codes"),
    "twice": (rule(freeze(0.2), freeze(0.5)), "cannot share a weight"),
    "tables": (rule(freeze(0.5, 5), weights=GRID), "refresh keeps k-means tables"),
    "floats": (rule(freeze(0.5), weights={"kind": "sparsify", "sparsity": 0.5}), "'freeze_codes' trains"),
    "inputs": (
        {
            "targets": "Linear",
            "input_activations": {**GRID, "strategy": "token", "dynamic": True},
            "estimator": {"input_activations": [freeze(0.5)]},
        },
        "is for weights",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_means_nothing_is_refused(name: str) -> None:
    given, words = REFUSED[name]
    with pytest.raises(RequestError, match=words):
        compiled_with(given)
