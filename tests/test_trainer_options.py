"""Options of the loop by their formulas, and resuming with each of them to the same bits."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import rhoc
from rhoc.runtime import training_step
from rhoc.runtime.batches import examples, moved, same, split
from rhoc.runtime.errors import RequestError, WorkError
from rhoc.runtime.events import ConsoleProgress, Event, Skipped, Stepped
from rhoc.runtime.projection import latent_parameters
from rhoc.runtime.teacher import divergence
from rhoc.runtime.train import TrainResult, TrainSettings, train
from rhoc.runtime.training_state import Checkpoint

from .tiny_task import (
    SETTINGS,
    Interrupted,
    batch,
    dense,
    loss,
    outputs,
    stop_after,
    student,
    task,
    validation,
)


def run(model: nn.Module, **changed: Any) -> TrainResult:
    """Train at the tiny task, with some settings changed; what is no setting goes to `train`."""
    own = {
        name: changed.pop(name)
        for name in [*changed]
        if not hasattr(SETTINGS, name) or name == "teacher_model"
    }
    if "teacher_model" in own:
        own["teacher"] = own.pop("teacher_model")
    return train(model, own.pop("task", None) or task(), replace(SETTINGS, **changed), **own)


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in model.parameters()]


@torch.no_grad()
def measured(model: nn.Module) -> float:
    """The mean over the thirty validation examples."""
    return sum(loss(model, part).item() * len(part[0]) for part in validation()) / 30


def plain_loop(model: nn.Module, each: Callable[[int], None], steps: int = 10, rate: float = 0.1) -> None:
    """Plain SGD by hand at a constant rate, `each` after every step."""
    for step in range(steps):
        gradients = torch.autograd.grad(loss(model, batch(step, 3)), list(model.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter.sub_(rate * gradient)
        each(step)


SGD: dict[str, Any] = {
    "optimizer": "sgd",
    "learning_rate": 0.1,
    "learning_rate_schedule": "constant",
    "warmup_fraction": 0.0,
    "weight_decay": 0.0,
    "clip": 1e6,
    "eval_every": 0,
}


# Optimisers


def test_the_loop_is_what_one_writes_by_hand() -> None:
    model, by_hand = dense(), dense()
    result = run(model, **SGD)
    plain_loop(by_hand, lambda step: None)
    for ours, theirs in zip(weights(model), weights(by_hand), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert result.loss == pytest.approx(measured(by_hand), rel=1e-5)
    assert (result.steps, result.tokens, result.params) == (10, 120, 8 * 16 + 16 + 16 * 4 + 4)


# Averages


def test_what_is_measured_and_left_is_the_average() -> None:
    model, by_hand = dense(), dense()
    averages = [parameter.detach().double() for parameter in by_hand.parameters()]

    def count(_: int) -> None:
        for position, parameter in enumerate(by_hand.parameters()):
            averages[position] = 0.8 * averages[position] + 0.2 * parameter.detach().double()

    result = run(model, **SGD, ema=0.8)
    plain_loop(by_hand, count)
    for ours, theirs in zip(weights(model), averages, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    assert result.loss == pytest.approx(measured(model), rel=1e-6)


def test_measuring_by_the_average_does_not_disturb_training() -> None:
    often, once = dense(), dense()
    run(often, ema=0.8, eval_every=1)
    run(once, ema=0.8, eval_every=0)
    assert all(torch.equal(*pair) for pair in zip(weights(often), weights(once), strict=True))


# Accumulation


@pytest.mark.parametrize("parts", [2, 5, 12])
def test_parts_of_a_batch_come_to_the_batch(parts: int) -> None:
    whole, split_up = dense().double(), dense().double()

    def double(step: int, seed: int) -> tuple[Tensor, Tensor]:
        x, y = batch(step, seed)
        return x.double(), y

    doubled = task(batch=double, validation=lambda: [double(9, 9)])
    one, other = run(whole, task=doubled), run(split_up, task=doubled, accumulation=parts)
    assert other.loss == pytest.approx(one.loss, rel=1e-9)
    assert [v for _, _, v in other.train_curve] == pytest.approx([v for _, _, v in one.train_curve], rel=1e-9)
    for ours, theirs in zip(weights(whole), weights(split_up), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-9)


def test_a_batch_of_any_form_is_split_by_its_examples() -> None:
    whole = {
        "x": torch.arange(10.0).reshape(5, 2),
        "y": (torch.arange(5), "label"),
        "scale": torch.tensor(2.0),
    }
    assert examples(whole) == 5
    parts = list(split(whole, 2))
    assert [share for _, share in parts] == [0.4, 0.6]
    assert [part["y"][0].tolist() for part, _ in parts] == [[0, 1], [2, 3, 4]]
    assert all(part["scale"] == 2.0 and part["y"][1] == "label" for part, _ in parts)
    assert same(moved(whole, torch.device("cpu")), whole)
    assert not same(whole, {**whole, "x": whole["x"] + 1})  # type: ignore[operator]
    with pytest.raises(RequestError, match="a batch of 5 examples cannot be split in 6 parts"):
        list(split(whole, 6))


# Teacher


def test_the_divergence_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 3, 7, 5, generator=generator, dtype=torch.float64)
    p, q = (torch.exp(x / 3.0) / torch.exp(x / 3.0).sum(-1, keepdim=True) for x in (one, other))
    expected = 9.0 * (p * (p / q).log()).sum(-1).mean()
    assert float(divergence(one, other, 3.0)) == pytest.approx(float(expected), rel=1e-12)
    assert float(divergence(one, one, 3.0)) == 0.0


def test_the_loss_with_a_teacher() -> None:
    teacher = nn.Linear(8, 4)
    model, by_hand = dense(), dense()
    run(model, **SGD, teacher="x", teacher_model=teacher, teacher_weight=0.3, temperature=2.0, tokens=12)
    part = batch(0, 3)
    p, q = (torch.softmax(said / 2.0, -1) for said in (teacher(part[0]), by_hand(part[0])))
    whole = 0.7 * loss(by_hand, part) + 0.3 * 4.0 * (p.detach() * (p.detach() / q).log()).sum(-1).mean()
    gradients = torch.autograd.grad(whole, list(by_hand.parameters()))
    for ours, start, gradient in zip(weights(model), weights(by_hand), gradients, strict=True):
        torch.testing.assert_close(ours, start - 0.1 * gradient, rtol=1e-5, atol=1e-7)
    assert not any(
        parameter.requires_grad or parameter.grad is not None for parameter in teacher.parameters()
    )


def test_teachers_that_do_not_fit() -> None:
    with pytest.raises(RequestError, match=r"the teacher answers \[12, 3\] and the model \[12, 4\]"):
        run(dense(), teacher="x", teacher_model=nn.Linear(8, 3))
    with pytest.raises(RequestError, match="this task does not say what the model's outputs are"):
        run(dense(), teacher="x", teacher_model=dense(), task=task(outputs=None))
    for setting, model in (("", dense()), ("self", None)):
        with pytest.raises(RequestError, match="give both or neither"):
            run(dense(), teacher=setting, teacher_model=model)


# Autocast and compilation


def test_autocast_computes_in_bfloat16_and_keeps_weights_in_float32() -> None:
    seen: set[torch.dtype] = set()

    def noted(model: nn.Module, part: tuple[Tensor, Tensor]) -> Tensor:
        answer = outputs(model, part)
        if model.training or not torch.is_grad_enabled():  # in training and in evaluation, not in the check
            seen.add(answer.dtype)
        return nn.functional.cross_entropy(answer.float(), part[1])

    model = dense()
    cast = run(model, autocast="bfloat16", task=task(loss=noted))
    assert seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    exact = run(dense())
    assert cast.loss != exact.loss
    assert cast.loss == pytest.approx(exact.loss, rel=0.02)


SCRIPT = pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch's own


@SCRIPT
@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_a_compiled_run_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch, optimizer: str) -> None:
    monkeypatch.setattr(training_step, "BACKEND", "eager")  # what is captured, without the time of a compiler
    eager = run(student(), optimizer=optimizer)
    compiled = run(student(), optimizer=optimizer, compile=True)
    assert compiled.loss == pytest.approx(eager.loss, rel=1e-5)
    assert [v for *_, v in compiled.train_curve] == pytest.approx(
        [v for *_, v in eager.train_curve], rel=1e-5
    )


def test_a_step_that_is_not_one_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "BACKEND", "eager")

    def breaking(model: nn.Module, part: tuple[Tensor, Tensor]) -> Tensor:
        value = loss(model, part)
        return value * 2 if value.item() > 100 else value

    with pytest.raises(WorkError) as caught:
        run(student(), compile=True, task=task(loss=breaking))
    assert str(caught.value).startswith("compile: the step cannot be compiled as one graph: ")
    assert str(caught.value).endswith("until torch.compile(fullgraph=True) takes it")


@SCRIPT
@pytest.mark.slow
def test_the_real_compiler_takes_the_same_steps() -> None:
    eager, compiled = run(student()), run(student(), compile=True)
    assert compiled.loss == pytest.approx(eager.loss, rel=1e-4)


# What is not finite


class Breaking(nn.Module):
    """Answers rightly, with a gradient that is not a number from one call in training to another."""

    def __init__(self, first: int, last: int) -> None:
        super().__init__()
        self.inner, self.first, self.last, self.calls = dense(), first, last, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        answer: Tensor = self.inner(x)
        if self.training and self.first <= self.calls <= self.last:
            answer.register_hook(lambda gradient: gradient * math.nan)
        return answer


def test_a_gradient_that_is_not_finite_stops_the_run_and_names_it() -> None:
    model = Breaking(4, 4)
    with pytest.raises(WorkError) as caught:
        run(model)
    message = str(caught.value)
    assert message.startswith("train: the gradient of inner.0.weight is not finite (the loss is ")
    assert message.endswith(
        "at step 4 of 10, learning rate 0.00775; give a learning rate below 0.01, or a longer warm-up"
    )
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def test_steps_that_are_not_finite_are_skipped_and_counted() -> None:
    model, events = Breaking(4, 5), list[Event]()
    result = run(model, on_nonfinite="skip", skip_limit=2, listener=events.append)
    assert result.skipped == 2
    assert [event.step for event in events if isinstance(event, Skipped)] == [4, 5]
    assert [event.step for event in events if isinstance(event, Stepped)] == [1, 2, 3, 6, 7, 8, 9, 10]
    assert [step for step, *_ in result.train_curve] == [1, 2, 3, 6, 7, 8, 9, 10]
    assert math.isfinite(result.loss)


def test_a_skipped_step_is_told() -> None:
    out = io.StringIO()
    with ConsoleProgress("x", Console(file=out)) as progress:
        progress(Skipped(4, 10, "the loss became nan"))
    assert out.getvalue() == "x: step 4 was skipped: the loss became nan\n"


def test_too_many_in_a_row_stop_the_run() -> None:
    with pytest.raises(
        WorkError, match=r"at step 6 of 10, learning rate .*, after 2 skipped ones in a row; "
    ):
        run(Breaking(4, 9), on_nonfinite="skip", skip_limit=2)
    with pytest.raises(WorkError, match="the loss became nan at step 1 of 10"):
        run(dense(), task=task(loss=lambda model, part: loss(model, part) * math.nan))


# Resuming

OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"optimizer": name} for name in ("adam", "adadelta", "adafactor", "adagrad", "adamax", "asgd", "nadam", "radam", "rmsprop", "rprop")},
    "sgd": {"optimizer": {"name": "sgd", "momentum": 0.9}},
    "wsd": {"learning_rate_schedule": "wsd", "decay_fraction": 0.4},
    "latent decay": {"latent_decay": 0.5, "weight_decay": 0.9},
    "step limit": {"step_limit": 0.01},
    "oscillation": {"oscillation": True},
    "average": {"ema": 0.9},
    "parts": {"accumulation": 3},
    "autocast": {"autocast": "bfloat16"},
    "all": {"ema": 0.9, "step_limit": 0.02, "accumulation": 2, "optimizer": {"name": "sgd", "momentum": 0.5}, "learning_rate_schedule": "constant"},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_ten_steps_are_five_and_a_resume_and_five(tmp_path: Path, name: str) -> None:
    resumes(tmp_path, student, **OPTIONS[name])


RIGL: dict[str, Any] = {
    "version": 1,
    "name": "grown",
    "rules": {
        "targets": "Linear",
        "weights": {"kind": "sparsify", "sparsity": 0.5},
        "estimator": {"weights": {"kind": "rigl", "every": 2, "until": 0.9}},
    },
}


def gradual() -> nn.Module:
    """Sparsity that grows over the run, at most half of the numbers kept in the end."""
    weights = [{"kind": "sparsify", "sparsity": 0.5}]
    schedule = [{"field": "weights.0.sparsity", "start": 0.1, "shape": "cubic", "end": 0.8}]
    rule = {"targets": "Linear", "weights": weights, "schedule": schedule}
    return rhoc.compile(dense(), {"version": 1, "name": "gradual", "rules": rule}).trainable()


def test_scheduled_numbers_are_those_of_the_step_and_declared_in_the_end(tmp_path: Path) -> None:
    model, seen = gradual(), list[float]()

    def noted(model: nn.Module, part: tuple[Tensor, Tensor]) -> Tensor:
        if model.training:
            seen.append(next(latent_parameters(model))[2].values.item())
        return loss(model, part)

    run(model, task=task(loss=noted))
    expected = [0.5 - 0.4 * (1 - step / 8) ** 3 if step < 8 else 0.5 for step in range(10)]
    assert seen == pytest.approx(expected, rel=1e-12)
    assert next(latent_parameters(model))[2].values.item() == 0.5
    resumes(tmp_path, gradual)


def test_resuming_with_a_rule_on_the_optimisers_steps(tmp_path: Path) -> None:
    def grown() -> nn.Module:
        return rhoc.compile(dense(), RIGL).trainable()

    resumes(tmp_path / "rigl", grown)
    resumes(tmp_path / "average", grown, ema=0.5)


@SCRIPT
def test_resuming_with_a_teacher_after_skipped_steps_and_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_step, "BACKEND", "eager")
    resumes(tmp_path / "teacher", student, teacher="x", teacher_model=dense())
    resumes(tmp_path / "compiled", student, compile=True, optimizer="rmsprop")
    resumes(tmp_path / "skipped", lambda: Breaking(5, 5), on_nonfinite="skip")


def resumes(folder: Path, made: Callable[[], nn.Module], **options: Any) -> None:
    """Whole, and interrupted after the fifth step: the same result and state to the bit."""
    options = {"learning_rate": 0.02, **options}
    whole, resumed = made(), made()
    expected = timeless(run(whole, **options))
    stopped = made()
    with pytest.raises(Interrupted):
        run(stopped, **options, checkpoint_dir=folder, checkpoint_seconds=0.0, listener=stop_after(5))
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.add_(1.0)  # nothing of the new model's state may matter
    if isinstance(resumed, Breaking):
        resumed.calls = 5  # a counter in Python is no state that anybody could save
    assert timeless(run(resumed, **options, checkpoint_dir=folder)) == expected
    pairs = list(zip(whole.state_dict().items(), resumed.state_dict().items(), strict=True))
    assert all(one == other and torch.equal(x, y) for (one, x), (other, y) in pairs)
    start = made().state_dict()
    assert any(not torch.equal(tensor, start[key]) for key, tensor in whole.state_dict().items())


def timeless(result: TrainResult) -> TrainResult:
    return replace(result, seconds=0.0, tokens_per_second=0.0)


def test_an_optimiser_with_a_state_of_its_own_kind_is_resumed_or_refused(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    optimizer.state[parameter] = {"count": 3, "none": None, "buffer": torch.arange(2.0)}
    model = nn.Module()
    saved = Checkpoint.of("x", model, optimizer, {"step": 1})
    fresh = torch.optim.SGD([parameter], lr=0.1)
    assert saved.restore(model, fresh) == {"step": 1}
    assert fresh.state[parameter]["count"] == 3
    assert fresh.state[parameter]["none"] is None
    assert fresh.state[parameter]["buffer"].tolist() == [0.0, 1.0]
    optimizer.state[parameter]["past"] = [torch.zeros(2)]
    with pytest.raises(WorkError, match="SGD keeps past, a list, which no checkpoint can hold"):
        Checkpoint.of("x", model, optimizer, {"step": 1})


def test_settings_are_part_of_whose_checkpoint_it_is(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(student(), checkpoint_dir=tmp_path, checkpoint_seconds=0.0, listener=stop_after(5))
    other: TrainSettings = replace(SETTINGS, ema=0.5)
    with pytest.raises(WorkError, match="the checkpoint belongs to another run"):
        train(student(), task(), other, checkpoint_dir=tmp_path)
