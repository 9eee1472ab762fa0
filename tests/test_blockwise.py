"""Learning block by block: who is fed what, whose turn it is, what is trained, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rhoc
from rhoc.runtime.blockwise import Turns, find_blocks
from rhoc.runtime.determinism import seeded
from rhoc.runtime.errors import RequestError
from rhoc.runtime.train import TrainSettings, train
from rhoc.runtime.train_settings import SettingError

from .tiny_task import Interrupted, points, stop_after, task

pytestmark = pytest.mark.usefixtures("one_thread")

GIVEN: dict[str, Any] = {
    "learning_rate": 0.01,
    "learned_rate": 0.002,
    "weight_decay": 0.0,
    "optimizer": "adam",
    "warmup_fraction": 0.0,
    "teacher": "self",
    "blocks": "auto",
    "seed": 3,
}
SPEC = {
    "version": 1,
    "rules": {
        "targets": ["Linear"],
        "ignore": ["head"],
        "weights": {"kind": "quantize", "num_bits": 3, "strategy": "channel"},
        "input_activations": {"kind": "quantize", "num_bits": 4, "strategy": "tensor"},
        "estimator": "lsq",
    },
}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.inner(x))


class Stack(nn.Module):
    """Layers that run in another order than they are written in."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 4)
        self.blocks = nn.ModuleList(Residual() for _ in range(2))
        self.enter = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def models() -> tuple[Stack, nn.Module]:
    with seeded(0):
        dense = Stack()
    return dense, rhoc.compile(dense, SPEC, whole=False).trainable()


def settings(steps: int, **changed: Any) -> TrainSettings:
    return TrainSettings(tokens=steps * 12, **(GIVEN | changed))


def test_blocks_are_found_in_the_order_in_which_they_run() -> None:
    dense, student = models()
    assert [b.path for b in find_blocks(student, dense, "auto", task())] == ["enter", "blocks.0", "blocks.1"]
    assert [b.path for b in find_blocks(student, dense, r"blocks\.\d", task())] == ["blocks.0", "blocks.1"]
    with pytest.raises(RequestError, match="no block of the model is 'head'"):
        find_blocks(student, dense, "head", task())


def test_the_student_is_fed_by_the_student_and_the_teacher_by_the_teacher() -> None:
    dense, student = models()
    batch = points(1, 12)
    with torch.no_grad():
        student.train()(batch[0])  # steps of inputs start
    for number, block in enumerate(find_blocks(student, dense, "auto", task())):
        found = block.loss(task(), student, dense, batch)
        with torch.no_grad():
            x, y = batch[0], batch[0]
            for part in ("enter", "blocks.0", "blocks.1")[: number + 1]:
                x, y = student.get_submodule(part)(x), dense.get_submodule(part)(y)
        torch.testing.assert_close(found.detach(), F.mse_loss(x, y), rtol=1e-6, atol=1e-9)
        student.zero_grad()
        found.backward()
        graded = {n for n, p in student.named_parameters() if p.grad is not None}
        assert graded
        assert all(name.startswith(f"{block.path}.") for name in graded)
    assert torch.is_grad_enabled()


def test_each_block_gets_its_share_of_the_steps() -> None:
    turns = Turns(3, 10)
    assert [turns.block(step) for step in range(10)] == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert [turns.within(step) for step in range(10)] == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]
    assert turns.longest == 4
    assert [Turns(1, 4).within(step) for step in range(4)] == [0, 1, 2, 3]


def test_only_what_is_in_blocks_changes_and_the_blocks_come_nearer() -> None:
    dense, student = models()
    student.train()(points(1, 12)[0])
    with torch.no_grad(), seeded(1):
        for name in ("enter", "blocks.0.inner", "blocks.1.inner"):
            dict(student.named_parameters())[f"{name}.weight"].add_(0.2 * torch.randn(8, 8))
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    blocks, batch = find_blocks(student, dense, "auto", task()), points(77, 200)
    with torch.no_grad():
        first = [float(b.loss(task(), student, dense, batch)) for b in blocks]
    result = train(student, task(), settings(150), teacher=copy.deepcopy(dense))
    with torch.no_grad():
        last = [float(b.loss(task(), student, dense, batch)) for b in blocks]
    assert all(after < 0.5 * old for old, after in zip(first, last, strict=True)), (first, last)
    state = student.state_dict()
    for name, tensor in state.items():
        assert torch.equal(tensor, before[name]) == name.startswith("head."), name
    assert result.steps == 150


def test_learned_steps_have_a_rate_of_their_own() -> None:
    """Adam's first step is the learning rate, whatever the gradient is."""
    dense, student = models()
    student.train()(points(1, 12)[0])
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    given = settings(1, blocks=r"enter", learning_rate_schedule="constant", clip=1e9)
    train(student, task(), given, teacher=copy.deepcopy(dense))
    moved = {n: float((p.detach() - before[n]).abs().max()) for n, p in student.named_parameters()}
    assert moved["enter.weight"] == pytest.approx(0.01, rel=0.02)
    assert moved["enter.weight_step"] == pytest.approx(0.002, rel=0.02)
    assert moved["enter.weight_input_step"] == pytest.approx(0.002, rel=0.02)


def test_an_interrupted_run_ends_on_the_same_bits(tmp_path: Path) -> None:
    dense, student = models()
    expected = train(student, task(), settings(9), teacher=copy.deepcopy(dense))
    _, again = models()
    options: dict[str, Any] = {"checkpoint_dir": tmp_path, "checkpoint_seconds": 0.0}
    with pytest.raises(Interrupted):
        train(again, task(), settings(9), teacher=copy.deepcopy(dense), listener=stop_after(4), **options)
    _, resumed = models()
    found = train(resumed, task(), settings(9), teacher=copy.deepcopy(dense), **options)
    assert found.loss == expected.loss
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), resumed.parameters(), strict=True))


def test_a_dissolved_model_has_no_blocks_to_run() -> None:
    dense, _ = models()
    student = rhoc.compile(dense, SPEC).trainable()
    with pytest.raises(RequestError, match="whole=False"):
        train(student, task(), settings(3), teacher=copy.deepcopy(dense))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"teacher": ""}, "blocks are fitted to those of a teacher"),
        ({"compile": True}, "compile is of a loss of the whole model"),
        ({"temperature": 2.0}, "temperature is of a loss of the whole model"),
        ({"blocks": "("}, "blocks must be auto or a regular expression of module paths"),
        ({"learning_rate": None}, "a rate beside one that is derived"),
        ({"learned_rate": -1.0}, "learned_rate must be positive"),
    ],
)
def test_settings_that_make_no_sense(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message.replace("(", r"\(")):
        settings(3, **changed)
