"""Parameters that are not zero: now, and in the mean over training, against zeros that are counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import rhoc
from rhoc.runtime.corpus import Corpus
from rhoc.runtime.events import Event, Saved
from rhoc.runtime.llama import Llama, LlamaShape, count_parameters, llama
from rhoc.runtime.nonzero import kept, mean_nonzero_parameters, nonzero_parameters
from rhoc.runtime.projection import projections
from rhoc.runtime.representation import Representation
from rhoc.runtime.schedules import advance
from rhoc.runtime.stages import Sparsify
from rhoc.runtime.text_parser import from_text
from rhoc.runtime.train import TrainSettings, train

from .models import Tied

pytestmark = pytest.mark.usefixtures("one_thread")


def counted(model: nn.Module) -> int:
    """Numbers that are not zero in a decoded model, embeddings and heads left out."""
    left_out = {
        id(parameter)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) or name.endswith("lm_head")
        for parameter in module.parameters()
    }
    return sum(int(p.count_nonzero()) for p in model.parameters() if id(p) not in left_out)


@pytest.mark.parametrize(
    "name", ["dense", "sparse75", "2of4", "sparse50-rows", "blocks50", "rows25", "banded90"]
)
def test_as_many_as_the_reference_form_has(name: str) -> None:
    torch.manual_seed(0)
    compiled = rhoc.compile(llama(32), name)
    student = compiled.trainable()
    assert nonzero_parameters(student) == counted(compiled.reference())
    assert nonzero_parameters(student, embedding=True) == nonzero_parameters(student) + 2 * 256 * 32
    assert mean_nonzero_parameters(student, 17) == nonzero_parameters(student)
    assert (nonzero_parameters(student) == count_parameters(student)) == (name == "dense")


@pytest.mark.parametrize(
    ("text", "shape", "expected"),
    [
        ("dense", (6, 8), 48),
        ("sparsify(0.75)", (6, 8), 12),
        ("sparsify(0.3)", (5, 7), 35 - round(0.3 * 35)),
        ("hadamard(8) >> sparsify(2:4) >> quantize(int4, channel)", (6, 8), 24),
        ("sparsify(0.5) >> sparsify(0.5, granularity=row)", (6, 8), 12),
        ("entropy(of=sparsify(0.75) >> quantize(int4, channel))", (6, 8), 12),
        ("quantize(int1, midrise, channel)", (6, 8), 48),
        ("sparsify(0.5) + quantize(int2, channel)", (6, 8), 48),
    ],
)
def test_counts_follow_from_shapes(text: str, shape: tuple[int, ...], expected: int) -> None:
    representation = Representation() if text == "dense" else from_text(text)
    assert kept(representation, shape) == expected


@pytest.mark.parametrize("steps", [8, 40])
@pytest.mark.parametrize("name", ["gmp75", "gmp75-int4", "power90"])
def test_the_mean_over_a_schedule(name: str, steps: int) -> None:
    student = rhoc.compile(nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 8)), name).trainable()
    by_step = []
    for step in range(steps):
        advance(student, step, steps)
        by_step.append(nonzero_parameters(student))
        zeroed = 0
        for projection, weight in zip(
            projections(student), (student[0].weight, student[2].weight), strict=True
        ):
            with torch.no_grad():
                view = projection.representation_now.view(weight)
            assert view.kept is not None
            zeroed += int((~view.kept).sum())
        assert by_step[-1] == count_parameters(student) - zeroed
    assert by_step[0] == count_parameters(student)
    advance(student, steps, steps)
    final = nonzero_parameters(student)
    assert final < by_step[0]
    assert mean_nonzero_parameters(student, steps) == pytest.approx(sum(by_step) / steps, rel=1e-12)
    assert nonzero_parameters(student) == final, "counting changes nothing"


def test_tied_and_convolved_weights_count_once() -> None:
    rule: dict[str, Any] = {"targets": ["Linear"], "weights": {"kind": "sparsify", "sparsity": 0.5}}
    tied = rhoc.compile(Tied(), {"version": 1, "rules": [rule]}).trainable()
    assert nonzero_parameters(tied) == 16 * 16 // 2 + 16, "the head is the embedding"
    assert nonzero_parameters(tied, embedding=True) == 16 * 16 // 2 + 16 + 24 * 16 // 2
    rule = {**rule, "targets": "Conv2d", "weights": {"kind": "sparsify", "sparsity_structure": "2:4"}}
    conv = rhoc.compile(nn.Sequential(nn.Conv2d(4, 6, 3)), {"version": 1, "rules": [rule]}).trainable()
    assert nonzero_parameters(conv) == 4 * 6 * 9 // 2 + 6


def test_rows_and_columns_are_whole() -> None:
    for structure in ("row", "column"):
        stage = Sparsify(0.25, structure)
        x = torch.randn(8, 12)
        assert kept(Representation((stage,)), (8, 12)) == int(
            Representation((stage,)).project(x).count_nonzero()
        )


def small(name: str) -> nn.Module:
    """A trainable decoder, the same each time."""
    torch.manual_seed(0)
    shape = LlamaShape(width=16, layers=1, heads=2, hidden=32, vocabulary=64, context=16)
    return rhoc.compile(Llama(shape), name).trainable()


def numbers() -> Corpus:
    tokens = np.random.default_rng(0).integers(0, 64, 3000)
    return Corpus("numbers", 64, tokens[:2500], tokens[2500:])


@pytest.mark.parametrize("name", ["gmp75", "rigl75", "dense"])
def test_the_trainer_records_both_and_goes_on_exactly(name: str, tmp_path: Path) -> None:
    settings = TrainSettings(tokens=40 * 32, batch_size=2, context=16, learning_rate=0.01, eval_tokens=64)
    whole, parts = small(name), small(name)
    result = train(whole, numbers(), settings)
    assert result.params == count_parameters(whole)
    assert result.final_params == nonzero_parameters(whole)
    assert result.average_params == mean_nonzero_parameters(small(name), 40)
    share = {"gmp75": (0.25, 0.65), "rigl75": (0.25, 0.25), "dense": (1.0, 1.0)}[name]
    assert result.final_params / result.params == pytest.approx(share[0], abs=0.02)
    assert result.average_params / result.params == pytest.approx(share[1], abs=0.05)

    def stop(event: Event) -> None:
        if isinstance(event, Saved) and event.step == 25:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        train(parts, numbers(), settings, checkpoint_dir=tmp_path, checkpoint_seconds=0, listener=stop)
    again = small(name)
    resumed = train(again, numbers(), settings, checkpoint_dir=tmp_path)
    assert (resumed.loss, resumed.columns()) == (result.loss, result.columns())
    for key, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key
