"""Training in a loop of one's own: what the README promises in ten lines, and the pieces that fit into it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import rhoc
from rhoc.runtime.load import load_packed
from rhoc.runtime.oscillation import Oscillation
from rhoc.runtime.schedules import advance
from rhoc.runtime.step_limit import StepLimit

from .tiny_task import batch, dense, loss, points


def test_ten_lines_train_and_save_a_model(tmp_path: Path) -> None:
    model = dense()
    compiled = rhoc.compile(model, "int4")
    student = compiled.trainable()
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.02)
    before = loss(student, points(0, 200)).item()
    for step in range(60):
        optimizer.zero_grad()
        loss(student, batch(step, 0)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    compiled.save(tmp_path / "out", student)
    assert loss(student, points(0, 200)).item() < 0.8 * before
    packed = load_packed(tmp_path / "out", dense())
    torch.testing.assert_close(
        packed(points(0, 200)[0]), student.eval()(points(0, 200)[0]), rtol=1e-4, atol=1e-4
    )


def test_limit_and_watch_fit_into_any_loop() -> None:
    student = rhoc.compile(dense(), "int4").trainable()
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5, momentum=0.9)
    StepLimit(student, 0.25).attach(optimizer)
    watch = Oscillation(student)
    watch.attach(optimizer)
    for step in range(20):
        advance(student, step, 20)
        optimizer.zero_grad()
        loss(student, batch(step, 0)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert 0 < watch.share() < 1


def test_a_schedule_an_average_and_torch_compile_fit_into_one_loop(tmp_path: Path) -> None:
    model = dense()
    compiled = rhoc.compile(model, "gmp75")  # sparsity that rises over the steps
    student = compiled.trainable()
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.02, weight_decay=0.0)
    steps = rhoc.attach(student, optimizer, steps=60)
    average = AveragedModel(student, multi_avg_fn=get_ema_multi_avg_fn(0.8))
    fast = torch.compile(student, fullgraph=True, backend="aot_eager")
    before = loss(student, points(0, 200)).item()
    for step in range(60):
        optimizer.zero_grad()
        loss(fast, batch(step, 0)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        average.update_parameters(student)
    assert steps.step == 60
    student.load_state_dict(average.module.state_dict())  # schedules follow the student, not copies of it
    compiled.save(tmp_path / "out", student)
    packed = load_packed(tmp_path / "out", dense())
    x, _ = points(0, 200)
    assert loss(packed, points(0, 200)).item() < 0.8 * before
    torch.testing.assert_close(packed(x), student.eval()(x), rtol=1e-4, atol=1e-4)
    decoded = compiled.reference(student).state_dict()
    assert all(_zeros(decoded[name]) >= 0.74 for name in ("0.weight", "2.weight"))


def _zeros(weight: torch.Tensor) -> float:
    return float((weight == 0).double().mean())
