"""Tasks of a user's own: what a file must define, what is asked of it, and how runs on it are recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhoc.compiler.experiment import Experiment, carry_out, perform
from rhoc.compiler.model_reference import ModelReference
from rhoc.compiler.spec import load_spec
from rhoc.compiler.task_reference import TaskReference
from rhoc.runtime.corpus import Corpus
from rhoc.runtime.digest import digest
from rhoc.runtime.errors import RequestError, WorkError
from rhoc.runtime.function_task import SKELETON
from rhoc.runtime.llama import llama
from rhoc.runtime.store import RunStore
from rhoc.runtime.tasks import NextToken
from rhoc.runtime.train import TrainSettings
from rhoc.runtime.units import Units

from .command_line import LLAMA, CommandLine
from .tiny_task import dense, task

FILE = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy

corners = torch.randn(4, 8)  # made up, and the same every time

def points(seed, count):
    x = torch.randn(count, 8, generator=torch.Generator().manual_seed(seed))
    return x, torch.cdist(x, corners).argmin(1)

def batch(step, seed): return points(1000 * seed + step, 12)
def validation(): return [points(-1, 20), points(-2, 10)]
def loss(model, batch): return cross_entropy(model(batch[0]), batch[1])
def outputs(model, batch): return model(batch[0])

def net(width=16): return nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 4))
"""
SETTINGS = TrainSettings(tokens=120, learning_rate=0.02)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with a task and a model for it."""
    path = tmp_path / "corners.py"
    path.write_text(FILE)
    return path


def experiment(file: Path, **changed: Any) -> Experiment:
    model = ModelReference.parse(f"{file}:net")
    return replace(
        Experiment(load_spec("int4"), model, "stdlib", SETTINGS, TaskReference(str(file))), **changed
    )


# Next tokens


def test_next_tokens_are_the_corpus_and_its_sizes() -> None:
    corpus = Corpus("numbers", 256, torch.arange(200).numpy() % 256, torch.arange(100).numpy())
    tokens = NextToken(corpus, 16, 4, 64)
    assert (tokens.step_tokens, tokens.units) == (64, Units("nats per token", "tokens"))
    assert torch.equal(tokens.batch(3, 5), corpus.batch(3, batch_size=4, context=16, seed=5))
    assert [len(windows) for windows in tokens.validation()] == [4]
    model = llama(width=16)
    value, outputs = tokens.loss_and_outputs(model, tokens.batch(0, 0))
    assert torch.equal(value, tokens.loss(model, tokens.batch(0, 0)))
    assert outputs.shape == (4, 16, 256)
    expected = F.cross_entropy(outputs.reshape(64, 256), tokens.batch(0, 0)[:, 1:].reshape(64))
    assert float(value.detach()) == pytest.approx(float(expected.detach()))
    sizes = {NextToken(corpus, *s).digest for s in ((16, 4, 64), (8, 4, 64), (16, 2, 64), (16, 4, 32))}
    assert len(sizes) == 4


# Units


def test_a_file_says_what_loss_and_steps_are_counted_in() -> None:
    assert task().units == Units("", "examples")
    assert task(loss_unit="nats per point", unit="points").units == Units("nats per point", "points")
    with pytest.raises(RequestError, match="loss_unit must be words, got 3"):
        _ = task(loss_unit=3).units


# What a file must define


def test_what_is_missing_is_said_with_a_skeleton(tmp_path: Path) -> None:
    path = tmp_path / "half.py"
    path.write_text("def loss(model, batch): return model(batch)\n")
    with pytest.raises(RequestError) as caught:
        TaskReference(str(path)).build()
    assert str(caught.value) == f"half.py: the task defines no batch and no validation; {SKELETON}"
    for line in ("def batch(step, seed):", "def validation():", "def loss(model, batch):"):
        assert line in SKELETON


def test_files_and_modules_that_are_not_there() -> None:
    for home, message in (
        ("none.py", "none.py: there is no such file"),
        ("no.such", "there is no module 'no.such'"),
    ):
        with pytest.raises(RequestError) as caught:
            TaskReference(home).build()
        assert str(caught.value).startswith(
            f"{message}; give FILE.py or package.module with functions batch,"
        )


def test_a_module_of_functions_is_a_task_too() -> None:
    built = TaskReference("tests.tiny_task").build()
    assert (built.name, built.step_tokens) == ("tests.tiny_task", 12)


def unsteady() -> Iterator[int]:
    yield from range(100)


NUMBERS = unsteady()
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "batches differ": (
        {"batch": lambda step, seed: torch.full((2, 8), float(next(NUMBERS)))},
        "batch(0, 0) gave two different batches; make it a function of step and seed",
    ),
    "validation differs": (
        {"validation": lambda: [torch.full((2, 8), float(next(NUMBERS)))]},
        "validation() gave different batches twice; return the same ones each time",
    ),
    "no validation": ({"validation": list}, "validation() has no batch"),
    "no number": (
        {"loss": lambda model, part: 3.0},
        "loss(model, batch) gave float; return a tensor of one number",
    ),
    "many numbers": (
        {"loss": lambda model, part: model(part[0])},
        "loss(model, batch) gave shape [12, 4]; return",
    ),
    "no gradient": (
        {"loss": lambda model, part: torch.zeros(())},
        "loss(model, batch) has no gradient; compute it",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_functions_that_cannot_be_trained_with(name: str) -> None:
    changed, message = REFUSED[name]
    with pytest.raises(RequestError) as caught:
        task(**changed).check(dense())
    assert str(caught.value).startswith(f"tiny_task: {message}")


def test_what_a_step_counts() -> None:
    assert task(step_tokens=500).step_tokens == 500
    with pytest.raises(RequestError, match="step_tokens must be a whole number above zero, got 0"):
        _ = task(step_tokens=0).step_tokens


# Runs


def test_a_run_is_recorded_and_is_what_training_gives(file: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "runs.db")
    asked = experiment(file)
    with RunStore(place) as store:
        run = store.ensure(asked.request())
    run, here = carry_out(asked, place, run.id, str(tmp_path / "checkpoints"))
    assert (run.state, here, run.tokens, run.params) == ("finished", True, 120, 8 * 16 + 16 + 64 + 4)
    assert run.loss == perform(asked)[0].loss
    assert (run.request["data"], run.request["model"]) == ("corners.py", "corners.py:net")


def test_everything_that_a_task_says_decides_the_identity(file: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    moved = tmp_path / "deep" / "corners.py"
    moved.write_text(FILE)
    identity = digest(experiment(file).request())
    assert digest(experiment(file).request()) == identity
    assert digest(experiment(moved).request()) == identity
    moved.write_text(FILE + "# changed\n")
    assert digest(experiment(moved).request()) != identity
    assert digest(experiment(file, task=None, model=ModelReference.parse(LLAMA)).request()) != identity


def test_data_that_a_file_reads_decides_the_identity(file: Path, tmp_path: Path) -> None:
    data = tmp_path / "shift.txt"
    shifted = f"    return x + float(pathlib.Path({str(data)!r}).read_text()), "
    file.write_text("import pathlib\n" + FILE.replace("    return x, ", shifted))
    found = set()
    for shift in ("0", "1", "0"):
        data.write_text(shift)
        found.add(experiment(file).request()["data_digest"])
    assert len(found) == 2


def test_errors_of_a_task_are_told_at_their_line(file: Path, tmp_path: Path) -> None:
    file.write_text(
        FILE.replace(
            "return cross_entropy(model(batch[0]), batch[1])", "return cross_entropy(model(batch), 1)"
        )
    )
    for ask in (experiment(file).check, lambda: perform(experiment(file))):
        with pytest.raises(RequestError) as caught:
            ask()
        assert caught.value.message.startswith("the task raised TypeError: ")
        assert (caught.value.where, caught.value.advice) == ("corners.py", "look at corners.py:14")


def test_an_error_of_a_later_batch_is_recorded_at_its_line(file: Path, tmp_path: Path) -> None:
    file.write_text(
        FILE.replace("return points(1000 * seed + step, 12)", "return points([0, 0, 0][step], 12)")
    )
    place = str(tmp_path / "runs.db")
    with RunStore(place) as store:
        run = store.ensure(experiment(file).request())
    with pytest.raises(WorkError) as failed:
        carry_out(experiment(file), place, run.id, str(tmp_path / "checkpoints"))
    assert (failed.value.message, failed.value.where) == (
        "IndexError: list index out of range",
        "corners.py:12",
    )


def test_a_run_that_diverges_is_recorded_with_its_step_and_loss(file: Path, tmp_path: Path) -> None:
    place = str(tmp_path / "runs.db")
    asked = experiment(file, settings=replace(SETTINGS, optimizer="sgd", learning_rate=1e38, clip=1e38))
    with RunStore(place) as store:
        run = store.ensure(asked.request())
    with pytest.raises(WorkError):
        carry_out(asked, place, run.id, str(tmp_path / "checkpoints"))
    with RunStore(place) as store:
        run = store.get(run.id)
    assert run.state == "failed"
    assert run.error is not None
    assert run.error.startswith("train: the loss became nan at step ")
    assert "of 10, learning rate " in run.error


# Teachers by name


def test_the_model_as_it_was_is_its_own_teacher(file: Path) -> None:
    start = experiment(file, spec=load_spec("dense")).prepare()
    x = start.task.batch(77, 0)[0]

    @torch.no_grad()
    def apart(model: nn.Module) -> float:
        """From what the dense model said before any step."""
        difference: Tensor = model.eval()(x) - start.trainable.eval()(x)
        return float(difference.square().mean())

    taught, trained = perform(
        experiment(file, settings=replace(SETTINGS, teacher="self", teacher_weight=1.0))
    )
    untaught, other = perform(experiment(file))
    assert apart(trained) < 0.5 * apart(other)
    assert taught.loss > untaught.loss  # it never looked at the labels


def test_a_teacher_by_name_is_part_of_the_request(file: Path) -> None:
    named = experiment(file, settings=replace(SETTINGS, teacher=f"{file}:net(width=32)"))
    request = named.request()
    assert request["settings"]["teacher"] == "corners.py:net(width=32)"
    assert request["teacher_code"]
    assert perform(named)[0].loss != perform(experiment(file))[0].loss
    with pytest.raises(RequestError, match="there is no factory 'nat'"):
        experiment(file, settings=replace(SETTINGS, teacher=f"{file}:nat")).check()


# The command line


def test_training_at_a_task_from_the_command_line(command: CommandLine, file: Path) -> None:
    arguments = (
        "train",
        "int4",
        "--model",
        f"{file}:net",
        "--task",
        file,
        "--tokens",
        120,
        "--learning-rate",
        0.02,
    )
    said = command(*arguments, "--json")
    assert said.code == 0, said.err
    assert said.document["loss"] == perform(experiment(file))[0].loss
    shown = command(*arguments)
    assert "D, examples" in shown.out
    assert "is finished already" in shown.err


def test_options_reach_the_settings(command: CommandLine, file: Path) -> None:
    options = {
        "--optimizer": "sgd", "--learning-rate": 0.1, "--learning-rate-schedule": "wsd", "--decay-fraction": 0.5,
        "--decay-shape": "sqrt", "--weight-decay": 0.0, "--latent-decay": 0.25, "--step-limit": 0.5, "--ema": 0.5,
        "--accumulation": 2, "--autocast": "bfloat16", "--on-nonfinite": "skip", "--skip-limit": 3,
        "--teacher": "self", "--teacher-weight": 0.25, "--temperature": 2.0, "--clip": 2.0, "--seed": 4,
    }  # fmt: skip
    words = [word for option in options.items() for word in option]
    words += ["--optimizer-option", "momentum=0.9", "--optimizer-option", "nesterov=true", "--oscillation"]
    said = command(
        "train", "int4", "--model", f"{file}:net", "--task", file, "--tokens", 120, *words, "--json"
    )
    assert said.code == 0, said.err
    assert 0 <= said.document["oscillation"] <= 1
    with RunStore("rhoc.db") as store:
        (run,) = store.runs()
    assert run.request["settings"] == {
        **TrainSettings(tokens=120, learning_rate=0.1, clip=2.0, seed=4, weight_decay=0.0).to_document(),
        "optimizer": {"name": "sgd", "momentum": 0.9, "nesterov": True},
        "learning_rate_schedule": "wsd", "decay_fraction": 0.5, "decay_shape": "sqrt", "latent_decay": 0.25,
        "step_limit": 0.5, "oscillation": True, "on_nonfinite": "skip", "skip_limit": 3, "autocast": "bfloat16",
        "accumulation": 2, "ema": 0.5, "teacher": "self", "teacher_weight": 0.25, "temperature": 2.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--data", "stdlib"),
            "error: --task: --data is for text, and a task of your own decides that itself",
        ),
        (("--context", 64), "error: --task: --context is for text"),
        (
            ("--optimizer-option", "momentum"),
            "error: --optimizer-option: 'momentum' is not NAME=VALUE; write",
        ),
        (("--optimizer", "sdg"), "error: optimizer: torch.optim has no optimiser called 'sdg'; known: "),
        (("--ema", 2), "error: training settings: ema must be at least 0 and below 1, got 2.0"),
    ],
)
def test_options_that_cannot_be(
    command: CommandLine, file: Path, words: tuple[object, ...], message: str
) -> None:
    said = command("train", "int4", "--model", f"{file}:net", "--task", file, *words)
    assert (said.code, said.err.startswith(message)) == (2, True), said.err
