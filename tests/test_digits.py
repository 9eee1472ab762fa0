"""Another task than language: digits, by the task and the models of the bench, named as a user names files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import rhoc
from rhoc.compiler.model_reference import ModelReference
from rhoc.compiler.task_reference import TaskReference
from rhoc.runtime.determinism import seeded
from rhoc.runtime.errors import RequestError, WorkError
from rhoc.runtime.train import TrainSettings, train

from . import tiny_task

pytestmark = pytest.mark.usefixtures("one_thread")

FILE = Path(__file__).parent / "bench" / "digits_task.py"
SETTINGS = TrainSettings(tokens=64 * 200, learning_rate=0.003)
ERRING = 0.08  # of the images, every layer represented; 0.03 to 0.053 were measured with three seeds


@pytest.mark.parametrize("name", ["2of4", "int2", "ternary", "binary"])
def test_digits_are_learned_in_a_format_and_seen_alike_by_the_packed_model(name: str) -> None:
    task = TaskReference(str(FILE)).build()
    with seeded(0):
        compiled = rhoc.compile(ModelReference.parse(f"{FILE}:mlp").build(), name)
    student = compiled.trainable()
    ((images, labels),) = task.validation()
    result = train(student, task, SETTINGS)
    with torch.no_grad():
        seen, ahead = compiled.packed(student)(images), student.eval()(images)
    assert float((seen.argmax(-1) != labels).double().mean()) < ERRING
    # A logit may round otherwise, so that two digits that are almost as likely change places.
    torch.testing.assert_close(seen, ahead, rtol=1e-3, atol=1e-3)
    best = ahead.topk(2).values
    certain = best[:, 0] - best[:, 1] > 1e-2
    assert certain.double().mean() > 0.95
    assert torch.equal(seen.argmax(-1)[certain], ahead.argmax(-1)[certain])
    assert result.loss == pytest.approx(float(torch.nn.functional.cross_entropy(ahead, labels)), rel=1e-3)


def test_what_cannot_be_measured_is_refused_before_anything_is_trained() -> None:
    task = tiny_task.task(validation=lambda: [torch.zeros(4)], loss=_mean_but_of_validation)
    with pytest.raises(RequestError, match=r"loss\(model, batch\) gave shape \[4\]"):
        task.check(tiny_task.dense())


def _mean_but_of_validation(model: torch.nn.Module, batch: object) -> torch.Tensor:
    return batch if isinstance(batch, torch.Tensor) else tiny_task.loss(model, batch)  # type: ignore[arg-type]


def test_a_loss_that_was_never_finite_is_not_put_down_to_the_learning_rate() -> None:
    broken = tiny_task.task(loss=lambda model, batch: tiny_task.loss(model, batch) * float("nan"))
    with pytest.raises(WorkError) as caught:
        train(tiny_task.dense(), broken, tiny_task.SETTINGS)
    assert str(caught.value).startswith("train: the loss became nan at step 1 of 10, ")
    assert (
        caught.value.advice == "no step was taken before: look at the loss, the batch and the model's weights"
    )
