"""Settings of a run: learning rates by their formulas, documents that stay what they were, and what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rhoc.compiler.grid import load_grid, validate_grid
from rhoc.compiler.sweep import plan_sweep
from rhoc.runtime.digest import digest
from rhoc.runtime.errors import RequestError
from rhoc.runtime.learning_rates import Constant, Cosine, WarmupStableDecay
from rhoc.runtime.optimizer_choice import OptimizerChoice
from rhoc.runtime.train import TrainSettings
from rhoc.runtime.train_settings import SettingError

# Learning rates


def test_warm_up_stable_decay_by_hand() -> None:
    rate = WarmupStableDecay(2.0, 20, warmup_fraction=0.2, final_fraction=0.1, decay_fraction=0.25)
    rates = [rate(step) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4:15] == [2.0] * 11
    assert rates[15:] == pytest.approx([1.64, 1.28, 0.92, 0.56, 0.2], rel=1e-15)  # 0.2 + 1.8 (1 - k / 5)


def test_one_minus_the_square_root() -> None:
    rate = WarmupStableDecay(1.0, 10, 0.0, 0.0, decay_fraction=0.4, decay_shape="sqrt")
    expected = [1.0] * 6 + [0.5, 1 - 1 / math.sqrt(2), 1 - math.sqrt(3) / 2, 0.0]
    assert [rate(step) for step in range(10)] == pytest.approx(expected, abs=1e-15)


def test_the_constant_rate_warms_up_and_stays() -> None:
    rate = Constant(3.0, 10, 0.3, 0.1)
    assert [rate(step) for step in range(10)] == pytest.approx([1.0, 2.0] + [3.0] * 8)


def test_a_decay_never_begins_before_the_warm_up_ends() -> None:
    for steps in range(1, 12):
        rate = WarmupStableDecay(1.0, steps, 0.5, 0.25, decay_fraction=0.5)
        rates = [rate(step) for step in range(steps)]
        assert max(rates) <= 1.0
        assert min(rates) > 0
        if rate.decay_steps:
            assert rates[-1] == pytest.approx(0.25)


def test_settings_make_the_rate_they_name() -> None:
    assert TrainSettings().rates(1.0, 7) == Cosine(1.0, 7, 0.1, 0.1)
    wsd = TrainSettings(learning_rate_schedule="wsd", decay_fraction=0.3, decay_shape="sqrt")
    assert wsd.rates(1.0, 7) == WarmupStableDecay(1.0, 7, 0.1, 0.1, 0.3, "sqrt")
    assert TrainSettings(learning_rate_schedule="constant").rates(1.0, 7) == Constant(1.0, 7, 0.1, 0.1)


# Documents


def test_settings_at_their_default_leave_the_document_what_it_was() -> None:
    first = {
        "tokens": 1_000_000, "batch_size": 16, "context": 128, "learning_rate": None, "warmup_fraction": 0.1,
        "final_fraction": 0.1, "weight_decay": 0.1, "clip": 1.0, "seed": 0, "eval_tokens": 131_072,
        "eval_every": 0, "threads": 1,
    }  # fmt: skip
    assert TrainSettings().to_document() == first
    assert TrainSettings(optimizer="AdamW", ema=0.0).to_document() == first  # type: ignore[arg-type]


def test_a_document_makes_the_same_settings_again() -> None:
    settings = TrainSettings(
        optimizer={"name": "adamw", "betas": [0.8, 0.9]},  # type: ignore[arg-type]
        learning_rate_schedule="wsd",
        latent_decay=0.2,
        step_limit=0.5,
        ema=0.99,
        compile=True,
    )
    document = settings.to_document()
    assert document["optimizer"] == {"name": "adamw", "betas": [0.8, 0.9]}
    assert "autocast" not in document
    again = TrainSettings(**document)
    assert again == settings
    assert hash(again) == hash(settings)
    assert digest(document) == digest(again.to_document()) != digest(TrainSettings().to_document())


# Optimisers by name


@pytest.mark.parametrize(
    "name",
    [
        "adadelta",
        "adafactor",
        "adagrad",
        "adam",
        "adamax",
        "adamw",
        "asgd",
        "muon",
        "nadam",
        "radam",
        "rmsprop",
        "rprop",
        "sgd",
    ],
)
def test_every_optimiser_of_torch_is_known(name: str) -> None:
    choice = OptimizerChoice.read(name)
    made = choice.build([{"params": [nn.Parameter(torch.zeros(2, 2))]}], 0.5)
    assert type(made).__name__.lower() == name
    assert made.param_groups[0]["lr"] == 0.5
    assert not made.param_groups[0].get("weight_decay")


def test_options_reach_the_optimiser() -> None:
    choice = OptimizerChoice.read({"name": "SGD", "momentum": 0.9, "nesterov": True})
    assert choice == OptimizerChoice("sgd", (("momentum", 0.9), ("nesterov", True)))
    (group,) = choice.build([{"params": [nn.Parameter(torch.zeros(2))]}]).param_groups
    assert (group["momentum"], group["nesterov"]) == (0.9, True)
    (group,) = OptimizerChoice().build([{"params": [nn.Parameter(torch.zeros(2))]}]).param_groups
    assert (group["betas"], group["fused"]) == ((0.9, 0.95), True)


# What is refused

WHAT = {
    "no such optimiser": ({"optimizer": "adamv"}, "optimizer: torch.optim has no optimiser called 'adamv'; known: "),
    "several losses": ({"optimizer": "lbfgs"}, "optimizer: lbfgs asks for the loss several times a step"),
    "sparse": ({"optimizer": "sparseadam"}, "optimizer: sparseadam takes sparse gradients only"),
    "no such option": ({"optimizer": {"name": "sgd", "beta": 1}}, "optimizer: sgd has no option 'beta'; it has momentum"),
    "a setting": ({"optimizer": {"name": "sgd", "lr": 1}}, "optimizer: lr is no option: it is the setting learning_rate; leave it out"),
    "no value": ({"optimizer": {"name": "sgd", "momentum": -1}}, "optimizer: sgd cannot be made: Invalid momentum value: -1"),
    "no name": ({"optimizer": {"momentum": 0.9}}, "optimizer: an optimiser is a name or a mapping with a name"),
    "no schedule": ({"learning_rate_schedule": "cos"}, "training settings: learning_rate_schedule must be cosine, wsd or constant, got cos"),
    "ends before it begins": (
        {"learning_rate_schedule": "wsd", "warmup_fraction": 0.6, "decay_fraction": 0.5},
        "training settings: the learning rate would decay before it is warm: warmup_fraction 0.6 and decay_fraction 0.5 "
        "are more than the whole run; make one of them smaller",
    ),
    "decay of nothing": ({"decay_fraction": 0.5}, "training settings: decay_fraction means nothing without learning_rate_schedule: wsd; give"),
    "limit of nothing": ({"skip_limit": 3}, "training settings: skip_limit means nothing without on_nonfinite: skip"),
    "nobody teaches": ({"temperature": 2.0}, "training settings: temperature means nothing without a teacher"),
    "ema": ({"ema": 1.0}, "training settings: ema must be at least 0 and below 1, got 1.0"),
    "step limit": ({"step_limit": 0.0}, "training settings: step_limit must be positive, got 0.0"),
    "latent decay": ({"latent_decay": "some"}, "training settings: latent_decay must be same, none or a rate that is not negative, got some"),
    "parts": ({"accumulation": 0}, "training settings: accumulation must be positive, got 0"),
    "half": ({"autocast": "float16"}, "training settings: autocast must be none or bfloat16, got float16"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHAT)
def test_what_is_refused_and_how(name: str) -> None:
    changed, message = WHAT[name]
    with pytest.raises(RequestError) as caught:
        TrainSettings(**changed)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


def test_a_fault_says_which_setting_it_is() -> None:
    settings: dict[str, Any] = {"learning_rate_schedule": "wsd", "warmup_fraction": 0.9}
    with pytest.raises(SettingError) as caught:
        TrainSettings(**settings)
    assert caught.value.setting == "decay_fraction"
    assert replace(TrainSettings(), **settings, decay_fraction=0.1).decay_fraction == 0.1


# In grids

HEAD = "version: 1\nmodel: rhoc.runtime.llama:llama\nruns:\n  - {specs: dense, tokens: 640, training: {ema: 0.5}}\n"
GRIDS = {
    "training: {optimizer: {name: sgd, betas: 1}}\n": ["5:23: sgd has no option 'betas'; it has momentum, dampening, nesterov"],
    "training: {ema: 2}\n": ["5:17: ema must be at least 0 and below 1, got 2"],
    "training: {compile: 1, autocast: 8}\n": ["5:21: compile must be true or false, got 1", "5:34: autocast must be a word, got 8"],
    "training: {learning_rate_schedule: wsd, warmup_fraction: 0.9}\n": ["5:11: the learning rate would decay before it is warm"],
    "training: {decay_fraction: 0.5}\n": ["5:12: decay_fraction means nothing without learning_rate_schedule: wsd"],
    "training: {emma: 0.5}\n": ["5:12: training has no setting 'emma'; did you mean 'ema'?"],
}  # fmt: skip


@pytest.mark.parametrize("text", GRIDS)
def test_settings_of_a_grid_are_checked_where_they_are_written(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.yaml").write_text(HEAD + text)
    found = [
        str(p).removeprefix(f"{tmp_path / 'sweep.yaml'}:") for p in validate_grid(tmp_path / "sweep.yaml")
    ]
    assert len(found) == len(GRIDS[text])
    assert all(one.startswith(wanted) for one, wanted in zip(found, GRIDS[text], strict=True)), found


def test_a_sweep_takes_the_settings_of_its_grid_and_of_its_blocks(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(
        HEAD + "training: {optimizer: {name: adam, betas: [0.8, 0.9]}, ema: 0.9}\n"
    )
    grid, folder = load_grid(tmp_path / "sweep.yaml")
    (cell,) = plan_sweep(grid, folder, None, workers=1, timed=False).cells
    settings = cell.experiment.settings
    assert settings.optimizer == OptimizerChoice("adam", (("betas", (0.8, 0.9)),))
    assert settings.ema == 0.5
