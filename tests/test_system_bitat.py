"""BiTAT-style from its spec: signs and scales that are trained on a cushion of exact directions."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.compiler.spec import load_spec
from rhoc.runtime.calibration import Gptq, RoundToNearest, gram, with_output_scales
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import packed_weights
from rhoc.runtime.step_rules import attach
from rhoc.runtime.train import TrainSettings, train

from .char_lm import CONTEXT, corpus, nll, trained, untrained

pytestmark = pytest.mark.usefixtures("one_thread")

SPEC = Path(__file__).parent.parent / "specs" / "systems" / "bitat.yaml"
LINEARS = "re:layers.*proj"
SIGNS = {
    "kind": "quantize",
    "num_bits": 1,
    "strategy": "channel",
    "observer": "mse",
    "scale_dtype": "float16",
}
NEAREST = {"kind": "calibrate", "method": "round_to_nearest"}
SCALED = {**NEAREST, "scales": "outputs"}
DEPENDENT = {**SCALED, "method": "gptq"}
TOKENS = torch.arange(64).reshape(2, 32)
SMALL = (0, 32, 64, 120, 8)
"""A model of this test's own: seed, width, hidden width, steps and batch."""


def batches(count: int, size: int) -> list[tuple[Tensor]]:
    """Windows of the training text to calibrate on."""
    return [(corpus().batch(i, batch_size=size, context=CONTEXT, seed=9)[:, :-1],) for i in range(count)]


def compiled(model: nn.Module, *passes: Any, data: list[tuple[Tensor]], **rule: Any) -> Compiled:
    spec = {"version": 1, "rules": {"targets": LINEARS, "weights": SIGNS, **rule}, "passes": [*passes]}
    return rhoc.compile(model, spec, data[0], calibration=data)


def on_cushion(model: nn.Module, start: float, data: list[tuple[Tensor]], end: float = 0.6) -> Compiled:
    """The system with another number of directions to start with; 0: plain straight-through training."""
    if not start:
        return compiled(model, SCALED, data=data, estimator={"weights": "learned_scale"})
    return compiled(
        model,
        SCALED,
        "calibrate_directions",
        data=data,
        estimator={"weights": ["learned_scale", "eigen_cushion"]},
        schedule={"field": "estimator.weights.1.directions", "start": start, "end": end},
    )


def fit(form: nn.Module, steps: int, batch: int, rate: float, seed: int, schedule: str) -> None:
    settings = TrainSettings(
        tokens=steps * CONTEXT * batch,
        learning_rate=rate,
        batch_size=batch,
        context=CONTEXT,
        eval_tokens=CONTEXT,
        seed=100 + seed,
        weight_decay=0.0,
        warmup_fraction=0.02,
        learning_rate_schedule=schedule,
    )
    with torch.enable_grad():
        train(form, corpus(), settings)


def seen_nll(made: Compiled, tokens: int) -> float:
    """Nats per byte as training sees the model at its first step."""
    form = made.trainable().train()
    attach(form, torch.optim.SGD(form.parameters(), lr=0.0), 100)

    class Seen(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.enable_grad():
                logits: Tensor = form(x).detach()
            return logits

    return nll(Seen(), tokens)


def output_errors(model: nn.Module, x: Tensor) -> list[float]:
    """|X (W - Q)^T| / |X W^T| on what layers of the dense model are given, the mean over layers: signs and
    mean magnitudes, the same signs with scales of least squares, signs that know of each other with these."""
    found: list[tuple[float, ...]] = []
    signs = load_spec(SPEC).rules[0].weight_representation

    def compare(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        weight, inputs = module.get_parameter("weight").detach(), args[0].flatten(0, -2)
        moments = gram([inputs])
        nearest = RoundToNearest().fit(weight, signs, moments)
        scaled = with_output_scales(weight, nearest, moments)
        dependent = with_output_scales(weight, Gptq().fit(weight, signs, moments), moments)
        fits = (nearest, scaled, dependent)
        lost = [inputs.double() @ (weight - fit.weight).double().T for fit in fits]
        found.append(tuple(float(each.norm() / output.double().norm()) for each in lost))

    layers = [m for p, m in model.named_modules() if isinstance(m, nn.Linear) and p.startswith("layers")]
    handles = [module.register_forward_hook(compare) for module in layers]
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    assert len(found) == len(layers) == 14
    return np.mean(found, 0).tolist()  # type: ignore[no-any-return]


def check_rounded(model: nn.Module, counts: tuple[int, ...], data: list[tuple[Tensor]], tokens: int) -> None:
    """Systems note 6(e), nothing trained: the more directions, the better; signs that know of each other."""
    seen = [seen_nll(on_cushion(model, count, data), tokens) for count in counts]
    assert all(more < less for less, more in pairwise(seen)), seen
    forms = [compiled(model, each, data=data).reference() for each in (NEAREST, SCALED, DEPENDENT)]
    losses = [nll(form, tokens) for form in forms]
    assert losses[0] > losses[1] > losses[2]
    errors = output_errors(model, torch.cat([batch for (batch,) in data]))
    assert errors[1] < errors[0]
    assert errors[2] <= 0.8 * errors[0]


def test_rounded_models_are_better_the_more_is_known_of_inputs() -> None:
    check_rounded(trained(*SMALL), (0, 4, 16), batches(2, 8), 4096)


@cache
def small() -> tuple[Compiled, nn.Module]:
    made = on_cushion(trained(*SMALL), 4, batches(2, 8))
    form = made.trainable()
    fit(form, 20, 8, 1e-3, 0, "constant")
    return made, form


def test_training_makes_up_for_some_of_it_at_once() -> None:
    made, form = small()
    assert nll(made.reference(form), 4096) < nll(made.reference(), 4096) - 0.1


def test_what_is_packed_is_two_values_for_each_output(tmp_path: Path) -> None:
    made, form = small()
    packed = made.packed(form)
    for path, weight in packed_weights(packed).items():
        decoded, latent = weight.decode(), form.get_parameter(path).detach()
        scale = form.get_parameter(f"{path}_step").detach().abs().half().float()
        expected = torch.where(latent >= 0, 0.5, -0.5) * scale.unsqueeze(-1)
        assert torch.equal(decoded, expected), path
        assert all(row.unique().numel() == 2 for row in decoded), path
        rows, columns = decoded.shape
        assert sum(field.nbytes for field in weight.fields().values()) == rows * columns // 8 + 2 * rows
    assert not any("directions" in name for name in packed.state_dict())
    made.save(tmp_path / "packed", form)
    loaded = load_packed(tmp_path / "packed", untrained(0, 32, 64))
    with torch.no_grad():
        expected = form.eval()(TOKENS)
        assert torch.equal(made.reference(form)(TOKENS), expected)
        torch.testing.assert_close(packed(TOKENS), expected)
        assert torch.equal(loaded(TOKENS), packed(TOKENS))


def test_layers_can_become_binary_from_bottom_to_top() -> None:
    """A rule for each layer: all directions are exact until its end, and none are from there on."""
    rules = [
        {
            "targets": f"re:layers.{layer}.*proj",
            "weights": SIGNS,
            "estimator": {"weights": ["learned_scale", {"kind": "eigen_cushion", "refresh": 4}]},
            "schedule": {
                "field": "estimator.weights.1.directions",
                "start": 64,
                "shape": "step",
                "end": end,
            },
        }
        for layer, end in ((0, 0.4), (1, 0.8))
    ]
    model, x = untrained(0, 32, 64), batches(1, 4)[0][0]
    spec = {"version": 1, "rules": rules, "passes": ["calibrate_directions"]}
    form = rhoc.compile(model, spec, (x,)).trainable().train()
    steps = attach(form, torch.optim.SGD(form.parameters(), lr=0.0), 10)
    only_first = rhoc.compile(model, {"version": 1, "rules": {**rules[0], "estimator": {}, "schedule": []}})
    both = rhoc.compile(model, {"version": 1, "rules": {"targets": LINEARS, "weights": SIGNS}})
    with torch.no_grad():
        expected = [model(x), only_first.reference()(x), both.reference()(x)]
    for step, stage in ((0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (9, 2)):
        steps.at(step)
        with torch.enable_grad():
            torch.testing.assert_close(form(x).detach(), expected[stage], rtol=1e-3, atol=1e-4)


def test_the_spec_says_what_these_tests_use() -> None:
    spec = load_spec(SPEC)
    (rule,) = spec.rules
    made = on_cushion(untrained(0, 32, 64), 8, batches(1, 2)).spec
    assert rule.weight_representation == made.rules[0].weight_representation
    assert rule.weight_estimators == made.rules[0].weight_estimators
    assert rule.schedule == made.rules[0].schedule
    assert spec.passes == made.passes


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_acceptance_of_the_system_before_training(seed: int) -> None:
    check_rounded(trained(seed), (0, 4, 8, 16, 32), batches(8, 32), 16384)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [300, 600])
def test_the_cushion_ends_level_with_plain_training(steps: int) -> None:
    """Systems note 6(e) has it ahead by .01 nats in the mean of two seeds; here it is not: see the page."""
    found = {}
    for start in (0, 8):
        losses = []
        for seed in (0, 1):
            made = on_cushion(trained(seed), start, batches(8, 32))
            form = made.trainable()
            fit(form, steps, 32, 2e-3, seed, "cosine")
            losses.append(nll(made.reference(form)))
            assert losses[-1] < nll(made.reference()) - 0.9
            for path, weight in packed_weights(made.packed(form)).items():
                assert all(row.unique().numel() == 2 for row in weight.decode()), path
        found[start] = float(np.mean(losses))
    assert abs(found[8] - found[0]) < 0.015, found
