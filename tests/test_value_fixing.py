"""Numbers that are fixed in rounds: which, when, that they stay, restarts, forms, messages."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.runtime.errors import RequestError
from rhoc.runtime.estimators import FixValues
from rhoc.runtime.load import load_packed
from rhoc.runtime.power_sums import PowerSums, join
from rhoc.runtime.train import train

from .small_net import net, normal
from .small_net import trained as trained_under
from .tiny_task import SETTINGS, Interrupted, dense, stop_after, task

pytestmark = pytest.mark.usefixtures("one_thread")

PALETTE = {"kind": "palette", "scope": "network"}
SHARES = [0.25, 0.5, 1.0]
STEPS = 12

trained = partial(trained_under, decay=0.5)


def fix(**options: Any) -> dict[str, Any]:
    return {"kind": "fix_values", "shares": SHARES, "begin": 0.25, "end": 0.75} | options


def rule(*estimators: Any, weights: Any = PALETTE, targets: str = "Linear", **more: Any) -> dict[str, Any]:
    return {"targets": targets, "weights": weights, "estimator": {"weights": [*estimators]}, **more}


def compiled_with(*rules: dict[str, Any]) -> Compiled:
    return rhoc.compile(net(), {"version": 1, "rules": [*rules]})


def joined(state: dict[str, Tensor], what: str) -> Tensor:
    """One of what the weights of both layers have, in a row."""
    return torch.cat([state[f"{layer}.weight{what}"].flatten() for layer in (0, 2)])


@pytest.mark.parametrize("gaussian", [True, False], ids=["gaussian", "value"])
def test_more_is_fixed_in_every_round_and_stays(gaussian: bool) -> None:
    before = ("gaussian",) if gaussian else ()
    states = trained(compiled_with(rule(*before, fix())).trainable())
    count = joined(states[0], "").numel()
    shares = [int(joined(state, "_fixed").sum()) / count for state in states]
    assert shares == [0] * 2 + [0.25] * 3 + [0.5] * 3 + [1.0] * 4
    for early, late in ((2, 4), (5, 7), (8, 11)):
        fixed = joined(states[early], "_fixed")
        for what in ("", "_deviation") if gaussian else ("",):
            one, other = joined(states[early], what), joined(states[late], what)
            assert torch.equal(one[fixed], other[fixed]), "under decay and momentum"
            assert early == 8 or not (one[~fixed] == other[~fixed]).any()
    assert PowerSums(4, -7).admits(joined(states[-1], "").unique())
    assert not torch.equal(states[8]["0.bias"], states[-1]["0.bias"])


def test_a_round_joins_the_numbers_of_all_weights_as_they_are() -> None:
    model = compiled_with(rule("gaussian", fix(begin=0.5, end=1.0, delta=1.5))).trainable()
    state = trained(model, range(5))[-1]
    model.load_state_dict(state)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    rhoc.attach(model, optimizer, STEPS, step=6)
    found = join(joined(state, ""), joined(state, "_deviation"), round(0.25 * 576), 1.5, PowerSums(4, -7))
    after = dict(model.state_dict())
    fixed = joined(after, "_fixed")
    assert torch.equal(fixed, found.chosen)
    assert torch.equal(joined(after, "")[fixed], found.values.float()[fixed])
    assert torch.equal(joined(after, "_deviation")[fixed], found.deviations.float()[fixed])
    assert torch.equal(joined(after, "")[~fixed], joined(state, "")[~fixed])


def test_a_hundred_steps_later_nothing_fixed_has_moved() -> None:
    model = compiled_with(rule("gaussian", fix(begin=0.0, end=1.0, shares=[0.5, 1.0]))).trainable()
    states = trained(model, range(105), steps=1000)
    fixed = joined(states[0], "_fixed")
    assert int(fixed.sum()) == 288
    assert torch.equal(joined(states[0], "")[fixed], joined(states[-1], "")[fixed])
    assert not (joined(states[0], "")[~fixed] == joined(states[-1], "")[~fixed]).any()


def test_before_the_first_round_it_is_plain_or_gaussian_training() -> None:
    late = fix(begin=1.0, end=1.0)
    plain = trained(net(), range(11), attached=False)
    for ours, theirs in zip(trained(compiled_with(rule(late)).trainable()), plain, strict=False):
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name
    gaussian = trained(compiled_with(rule("gaussian")).trainable(), range(11), attached=False)
    for ours, theirs in zip(
        trained(compiled_with(rule("gaussian", late)).trainable()), gaussian, strict=False
    ):
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor), name


def test_where_rounds_are() -> None:
    ten = FixValues()
    assert [ten.rounds(step, 100) for step in (0, 9, 10, 19, 20, 99, 100)] == [0, 0, 1, 1, 2, 9, 10]
    assert [FixValues(shares=(1.0,), begin=0.5).rounds(step, 10) for step in (4, 5, 10)] == [0, 1, 1]


@pytest.mark.parametrize("steps", [1, 6, STEPS], ids=["none", "some", "all"])
@pytest.mark.parametrize("coded", [False, True], ids=["codes", "entropy"])
def test_forms_agree_to_the_bit(steps: int, coded: bool, tmp_path: Path) -> None:
    weights = {"kind": "entropy", "of": [PALETTE]} if coded else PALETTE
    compiled = compiled_with(rule("gaussian", fix(), weights=weights))
    model, x = compiled.trainable(), normal(9, 16)
    state = trained(model, range(steps))[-1]
    compiled.save(tmp_path / "saved", model)
    with torch.no_grad():
        expected = model.eval()(x)
        packed = compiled.packed(model)
        saved = load_packed(tmp_path / "saved", net())
        for form in (packed, saved, compiled.reference(model.state_dict())):
            assert torch.equal(form(x), expected)
    for layer in (0, 2):
        fixed = state[f"{layer}.weight_fixed"]
        assert torch.equal(packed[layer].weight.decode()[fixed], state[f"{layer}.weight"][fixed])
    values = [tensor for name, tensor in packed.state_dict().items() if "table.values" in name]
    assert len({tensor.data_ptr() for tensor in values}) == 1
    if steps == STEPS:
        assert values[0].tolist() == joined(state, "").unique().tolist()


def test_a_forward_pass_in_training_changes_nothing() -> None:
    model = compiled_with(rule("gaussian", fix())).trainable()
    trained(model, range(6))
    before = copy.deepcopy(model.state_dict())
    model.train()(normal(5, 16))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize("stop", [2, 3, 5, 8])
def test_a_run_that_was_killed_ends_on_the_same_bits(stop: int, ema: float, tmp_path: Path) -> None:
    spec = {"version": 1, "rules": rule("gaussian", fix())}
    settings = replace(SETTINGS, ema=ema, weight_decay=0.1)
    whole, killed, again = (rhoc.compile(dense(), spec).trainable() for _ in range(3))
    expected = train(whole, task(), settings)
    given: dict[str, Any] = {"checkpoint_dir": tmp_path, "checkpoint_seconds": 0.0}
    with pytest.raises(Interrupted):
        train(killed, task(), settings, listener=stop_after(stop), **given)
    result = train(again, task(), settings, **given)
    assert result.loss == expected.loss
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert PowerSums(4, -7).admits(joined(dict(whole.state_dict()), "").unique())


def test_other_weights_share_a_palette_of_their_own() -> None:
    rules = rule("gaussian", fix(), targets="0"), rule("ste", targets="2")
    compiled = compiled_with(*rules)
    model, x = compiled.trainable(), normal(9, 16)
    trained(model)
    with torch.no_grad():
        assert torch.equal(compiled.packed(model)(x), model.eval()(x))


def test_compiled_whole_it_trains_to_the_same_bits() -> None:
    compiled = compiled_with(rule("gaussian", fix()))
    eager, other = compiled.trainable(), compiled.trainable()
    captured = torch.compile(other, backend="aot_eager", fullgraph=True)
    expected, found = trained(eager, range(5))[-1], trained(other, range(5), run=captured)[-1]
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_training_without_attaching_is_refused() -> None:
    model = compiled_with(rule(fix())).trainable()
    with pytest.raises(RequestError, match="acts around the optimiser's steps"):
        model(normal(2, 16))


SUM = {"kind": "sum", "terms": [{"kind": "product", "rank": 2}, PALETTE]}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "tensor": (rule(fix(), weights={"kind": "palette"}), "write palette with scope: network, or use 'ste'"),
    "grid": (rule(fix(), weights={"kind": "quantize", "num_bits": 4}), "values of its palette"),
    "sum": (rule("gaussian", fix(), weights=SUM), "values of its palette"),
    "shares": (rule(fix(shares=[0.5, 0.4, 1.0])), "shares rise from above 0 to 1"),
    "unfinished": (rule(fix(shares=[0.5])), "shares rise from above 0 to 1"),
    "order": (rule(fix(begin=0.9, end=0.5)), "shares of the run, in order"),
    "delta": (rule(fix(delta=0.0)), "delta must be positive"),
    "beside": (rule("noise", fix()), "says how gradients pass"),
    "ste": (rule(fix(), "ste"), "leave out ste"),
    "latent": (rule(fix(), latent={"kind": "power", "alpha": 2}), "numbers as they are, and latent"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_means_nothing_is_refused(name: str) -> None:
    given, words = REFUSED[name]
    with pytest.raises(RequestError, match=words):
        compiled_with(given)


def test_a_sum_with_a_palette_trains_straight_through() -> None:
    compiled = compiled_with(rule("ste", weights=SUM))
    model, x = compiled.trainable(), normal(9, 16)
    states = trained(model, range(4), attached=False)
    assert not torch.equal(states[0]["0.weight"], states[-1]["0.weight"])
    with torch.no_grad():
        torch.testing.assert_close(compiled.packed(model)(x), model.eval()(x), rtol=1e-4, atol=1e-5)
