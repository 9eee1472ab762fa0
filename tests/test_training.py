"""The loop: the same bits after any interruption, no checkpoint believed wrongly, and what it says."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rhoc.runtime.corpus import Corpus
from rhoc.runtime.determinism import seeded
from rhoc.runtime.errors import RequestError, WorkError
from rhoc.runtime.events import Event, Resumed, Saved, Stepped
from rhoc.runtime.learning_rates import Cosine
from rhoc.runtime.llama import Llama, LlamaShape, count_parameters
from rhoc.runtime.tasks import Task
from rhoc.runtime.train import TrainResult, TrainSettings, train

SETTINGS = TrainSettings(
    tokens=10 * 2 * 16, batch_size=2, context=16, learning_rate=0.01, eval_tokens=64, eval_every=4, seed=3
)


class Noisy(nn.Module):
    """A small decoder whose training depends on random numbers and a buffer too, as an estimator's may."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.body = Llama(LlamaShape(width=16, layers=1, heads=2, hidden=32, vocabulary=64, context=16))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, tokens: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        scale = torch.rand(()) if self.training else 0.5
        return self.body(tokens) * (1 + 0.1 * scale * torch.tanh(self.seen / 100))  # type: ignore[no-any-return]


class Interrupted(Exception):
    """What a test raises to stop a run."""


def fresh() -> Noisy:
    with seeded(0):
        return Noisy()


def text() -> Corpus:
    tokens = np.random.default_rng(0).integers(0, 64, 3000)
    return Corpus("numbers", 64, tokens[:2500], tokens[2500:])


def stop_after(step: int) -> Callable[[Event], None]:
    """Raises once the checkpoint of this step is saved."""

    def listen(event: Event) -> None:
        if isinstance(event, Saved) and event.step == step:
            raise Interrupted

    return listen


def same(first: TrainResult, second: TrainResult) -> bool:
    """Everything but the time it took."""
    first, second = (replace(result, seconds=0.0, tokens_per_second=0.0) for result in (first, second))
    return first == second


def same_state(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


# The result


def test_a_run_is_a_function_of_its_request() -> None:
    one, two, other = fresh(), fresh(), fresh()
    result = train(one, text(), SETTINGS)
    torch.rand(7)  # what the caller does with the generator does not matter
    assert same(train(two, text(), SETTINGS), result)
    assert same_state(one, two)
    assert train(other, text(), replace(SETTINGS, seed=4)).loss != result.loss


def test_the_loss_is_nats_per_token_of_the_fixed_windows() -> None:
    model, corpus = fresh(), text()
    result = train(model, corpus, replace(SETTINGS, eval_tokens=10**6))
    windows = [corpus.validation[start : start + 17] for start in range(0, len(corpus.validation) - 16, 16)]
    expected = []
    for window in windows:
        with torch.no_grad():
            logits = model.eval()(torch.tensor(window[:-1])[None])[0].double()
        shares = torch.exp(logits) / torch.exp(logits).sum(-1, keepdim=True)
        expected += [-math.log(shares[i, window[i + 1]]) for i in range(16)]
    assert result.loss == pytest.approx(sum(expected) / len(expected), rel=1e-6)
    assert result.params == count_parameters(model)
    assert result.tokens == 320
    assert result.steps == 10


def test_it_learns() -> None:
    tokens = np.tile(np.arange(8), 400)
    corpus = Corpus("circle", 8, tokens[:2800], tokens[2800:])
    with seeded(0):
        model = Llama(LlamaShape(width=16, layers=1, heads=2, hidden=32, vocabulary=8, context=16))
    settings = TrainSettings(tokens=60 * 64, batch_size=4, context=16, learning_rate=0.03, eval_tokens=320)
    result = train(model, corpus, settings)
    first = result.train_curve[0][2]
    assert first == pytest.approx(math.log(8), abs=0.1)
    assert result.loss < 0.1


def test_curves() -> None:
    losses: list[float] = []
    result = train(
        fresh(),
        text(),
        replace(SETTINGS, tokens=450 * 32, eval_every=200),
        listener=lambda event: losses.append(event.loss) if isinstance(event, Stepped) else None,
    )
    assert len(losses) == 450
    assert [step for step, _, _ in result.train_curve] == list(range(3, 451, 3))
    for index, (step, tokens, loss) in enumerate(result.train_curve):
        assert tokens == step * 32
        assert loss == pytest.approx(sum(losses[3 * index : 3 * index + 3]) / 3)
    assert [point[0] for point in result.eval_curve] == [200, 400, 450]
    assert result.eval_curve[-1] == (450, 14400, result.loss)


def test_the_model_is_left_in_the_mode_it_came_in() -> None:
    for mode in (True, False):
        model = fresh().train(mode)
        train(model, text(), SETTINGS)
        assert model.training is mode
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    with pytest.raises(RequestError):
        train(fresh(), Corpus("tiny", 64, np.arange(3), np.arange(3)), SETTINGS)
    assert (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()) == before


def test_another_task() -> None:
    class Zeros(Task):
        digest = "zeros"

        def batch(self, step: int, seed: int) -> Tensor:
            return text().batch(step, batch_size=2, context=16, seed=seed)

        def validation(self) -> list[Tensor]:
            return [text().evaluation(tokens=64, context=16)]

        def loss(self, model: nn.Module, batch: Tensor) -> Tensor:
            logits: Tensor = model(batch[:, :-1])
            return logits.square().mean()

    result = train(fresh(), Zeros(), replace(SETTINGS, tokens=20))  # two examples a step
    assert (result.steps, result.tokens) == (10, 20)
    first = result.eval_curve[0][2]
    assert result.loss < 0.7 * first < 0.1  # next-token prediction would stand near log 64


# Interruption


@pytest.mark.parametrize("stop", [1, 5, 9, 10])
def test_ten_steps_equal_some_and_a_resume_and_the_rest(tmp_path: Path, stop: int) -> None:
    whole = fresh()
    expected = train(whole, text(), SETTINGS)
    with pytest.raises(Interrupted):
        train(
            fresh(),
            text(),
            SETTINGS,
            checkpoint_dir=tmp_path,
            checkpoint_seconds=0,
            listener=stop_after(stop),
        )
    resumed = fresh()
    events: list[Event] = []
    with seeded(99):  # nothing of the new process's state may matter
        for parameter in resumed.parameters():
            nn.init.normal_(parameter)
    result = train(resumed, text(), SETTINGS, checkpoint_dir=tmp_path, listener=events.append)
    assert same(result, expected)
    assert same_state(resumed, whole)
    assert events[0] == Resumed(stop)
    assert [event.step for event in events if isinstance(event, Stepped)] == list(range(stop + 1, 11))
    assert result.seconds > 0


def test_a_point_of_the_curve_that_was_half_done_is_done_right(tmp_path: Path) -> None:
    settings = replace(SETTINGS, tokens=210 * 32, eval_every=0)  # a point every second step
    expected = train(fresh(), text(), settings)
    stop = stop_after(101)
    with pytest.raises(Interrupted):
        train(fresh(), text(), settings, checkpoint_dir=tmp_path, checkpoint_seconds=0, listener=stop)
    assert same(train(fresh(), text(), settings, checkpoint_dir=tmp_path), expected)


_VICTIM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_training as here
from rhoc.runtime.events import Stepped
from rhoc.runtime.train import train

def listen(event):
    if isinstance(event, Stepped):
        print(event.step, flush=True)
        if event.step > 6:
            sys.stdin.readline()  # wait here to be killed

folder = Path(sys.argv[2])
train(here.fresh(), here.text(), here.SETTINGS, checkpoint_dir=folder, checkpoint_seconds=0, listener=listen)
"""


def test_a_killed_process_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = fresh()
    expected = train(whole, text(), SETTINGS)
    with subprocess.Popen(
        [sys.executable, "-c", _VICTIM, str(Path(__file__).parent), str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as victim:
        assert victim.stdout is not None
        for line in victim.stdout:
            if int(line) == 7:  # six checkpoints are on disk, the seventh step is taken and not saved
                os.kill(victim.pid, signal.SIGKILL)
                break
    assert victim.returncode == -signal.SIGKILL
    resumed = fresh()
    events: list[Event] = []
    result = train(resumed, text(), SETTINGS, checkpoint_dir=tmp_path, listener=events.append)
    assert events[0] == Resumed(6)
    assert same(result, expected)
    assert same_state(resumed, whole)


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """A folder with the checkpoints of steps 4 and 5."""
    with pytest.raises(Interrupted):
        train(
            fresh(), text(), SETTINGS, checkpoint_dir=tmp_path, checkpoint_seconds=0, listener=stop_after(5)
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.previous.safetensors",
        "checkpoint.safetensors",
    ]
    return tmp_path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def change_the_record(path: Path) -> None:
    content = path.read_bytes()
    assert content.count(b'\\"step\\": 5') == 1
    path.write_bytes(content.replace(b'\\"step\\": 5', b'\\"step\\": 6'))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, change_the_record, empty])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_taken(
    interrupted: Path, damage: Callable[[Path], None]
) -> None:
    damage(interrupted / "checkpoint.safetensors")
    events: list[Event] = []
    result = train(fresh(), text(), SETTINGS, checkpoint_dir=interrupted, listener=events.append)
    assert isinstance(events[0], Resumed)
    assert events[0].step == 4
    assert "checkpoint.safetensors is damaged" in events[0].note
    assert "the one before it was taken" in events[0].note
    assert same(result, train(fresh(), text(), SETTINGS))


def test_a_kill_between_the_renames(interrupted: Path) -> None:
    (interrupted / "checkpoint.safetensors").unlink()
    (interrupted / "checkpoint.safetensors.1.tmp").write_bytes(b"half a file")
    events: list[Event] = []
    train(fresh(), text(), SETTINGS, checkpoint_dir=interrupted, listener=events.append)
    assert events[0] == Resumed(4)
    assert not list(interrupted.glob("*.tmp"))


def test_nothing_good_left(interrupted: Path) -> None:
    for path in interrupted.iterdir():
        truncate(path)
    with pytest.raises(WorkError) as caught:
        train(fresh(), text(), SETTINGS, checkpoint_dir=interrupted)
    message = str(caught.value)
    assert "checkpoint.safetensors is damaged" in message
    assert "checkpoint.previous.safetensors is damaged" in message
    assert message.endswith("delete the folder to train anew")


def test_another_runs_checkpoint(interrupted: Path) -> None:
    others: list[dict[str, Any]] = [
        {"settings": replace(SETTINGS, seed=1)},
        {"settings": SETTINGS, "run": "another"},
    ]
    for other in others:
        with pytest.raises(WorkError, match=r"the checkpoint belongs to another run .* delete this one"):
            train(fresh(), text(), checkpoint_dir=interrupted, **other)
    changed = replace(text(), train=text().train[1:])
    with pytest.raises(WorkError, match="the checkpoint belongs to another run"):
        train(fresh(), changed, SETTINGS, checkpoint_dir=interrupted)


def test_checkpoints_are_as_rare_as_asked(tmp_path: Path) -> None:
    events: list[Event] = []
    train(fresh(), text(), SETTINGS, checkpoint_dir=tmp_path, checkpoint_seconds=3600, listener=events.append)
    assert [event.step for event in events if isinstance(event, Saved)] == [10]


# Bad requests and failures


def test_a_loss_that_is_not_finite() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = fresh(), 0

        def forward(self, tokens: Tensor) -> Tensor:
            self.calls += self.training
            answer: Tensor = self.inner(tokens)
            return answer * math.inf if self.calls == 4 else answer

    with pytest.raises(WorkError) as caught:
        train(Breaks(), text(), SETTINGS)
    rate = Cosine(0.01, 10)(3)
    assert str(caught.value) == (
        f"train: the loss became nan at step 4 of 10, learning rate {rate:.3g}; "
        "give a learning rate below 0.01, or a longer warm-up"
    )
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("field", "value", "phrase"),
    [
        ("tokens", 0, "tokens must be positive, got 0"),
        ("batch_size", -1, "batch_size must be positive, got -1"),
        ("clip", 0.0, "clip must be positive, got 0.0"),
        ("weight_decay", -0.1, "weight_decay must not be negative, got -0.1"),
        ("warmup_fraction", 1.5, "warmup_fraction must be between 0 and 1, got 1.5"),
        ("learning_rate", math.nan, "learning_rate must be positive, got nan"),
    ],
)
def test_settings_that_make_no_sense(field: str, value: Any, phrase: str) -> None:
    with pytest.raises(RequestError) as caught:
        replace(SETTINGS, **{field: value})
    assert str(caught.value) == f"training settings: {phrase}"


def test_a_model_that_does_not_fit_the_corpus() -> None:
    small = Llama(LlamaShape(width=16, layers=1, heads=2, hidden=32, vocabulary=10, context=16))
    with pytest.raises(RequestError, match=r"the model does not take .* build it with a vocabulary of 64"):
        train(small, text(), SETTINGS)
    short = Llama(LlamaShape(width=16, layers=1, heads=2, hidden=32, vocabulary=64, context=8))
    with pytest.raises(RequestError, match=r"the model does not take .* a context of 16 or more"):
        train(short, text(), SETTINGS)

    class Flat(nn.Embedding):
        pass

    with pytest.raises(RequestError, match=r"the model answers \[1, 16, 5\] to tokens \[1, 16\]"):
        train(Flat(64, 5), text(), SETTINGS)
    with pytest.raises(RequestError, match="the model has no trainable parameter"):
        train(fresh().requires_grad_(False), text(), SETTINGS)
    with pytest.raises(RequestError, match="the corpus has 3 training tokens; a context of 16 needs 17"):
        train(fresh(), Corpus("tiny", 64, np.arange(3), np.arange(30)), SETTINGS)
