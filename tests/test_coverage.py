"""The coverage bench on a sample: torch's own modules, and a few architectures where `transformers` is there."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BENCH = Path(__file__).parent / "bench"
TORCH = (
    "Transformer",
    "LSTM, both ways, projected",
    "cells",
    "MultiheadAttention, kdim, vdim",
    "Bilinear",
    "EmbeddingBag",
    "Conv1d, depthwise, circular",
    "ConvTranspose2d, grouped",
    "CNN with batch norm and dropout",
    "weight norm",
    "weight norm, old",
    "orthogonal",
    "tied",
    "functional",
    "experts",
    "experts, batched",
)
OTHERS = ("bert", "gpt2", "llama", "t5", "mixtral", "convnext", "wav2vec2", "mamba", "clip")
AT_LEAST = {"weight norm, old": 0.94, "convnext": 0.99, "mamba": 0.97, "wav2vec2": 0.99, "clip": 0.98}
"""Share of weights represented, where it is not all of them."""


@pytest.fixture(scope="module")
def bench() -> Iterator[Callable[[str], Any]]:
    """The modules of the bench by name. They are scripts, which find each other in their folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("name", TORCH)
def test_torch_modules_are_covered(bench: Callable[[str], Any], name: str) -> None:
    case = next(case for case in bench("torch_models").torch_cases() if case.name == name)
    _check(bench, case, AT_LEAST.get(name, 1.0))


class Standardised(nn.Conv2d):
    """A convolution whose kernels have mean 0 and deviation 1, written as others write it."""

    def forward(self, input: Tensor) -> Tensor:
        rows = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(rows, None, None, training=True).reshape_as(self.weight)
        return F.conv2d(input, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def test_a_weight_that_is_standardised_before_use_is_covered(bench: Callable[[str], Any]) -> None:
    architectures = bench("architectures")

    def inputs(batch: int, size: int) -> dict[str, Any]:
        return {"input": architectures.noise(batch, 8, size, size)}

    _check(bench, architectures.Case("standardised", "torch", lambda: Standardised(8, 16, 3), inputs), 1.0)


@pytest.mark.parametrize("name", OTHERS)
def test_architectures_of_others_are_covered(bench: Callable[[str], Any], name: str) -> None:
    pytest.importorskip("transformers")
    case = next(case for case in bench("transformers_models").transformers_cases() if case.name == name)
    _check(bench, case, AT_LEAST.get(name, 1.0))


def _check(bench: Callable[[str], Any], case: Any, represented: float) -> None:
    measures, table = bench("measures"), bench("coverage_table")
    before = torch.random.get_rng_state()
    trial = measures.Trial(case)
    row = {
        name: measures.MEASURES[name](trial) for name in ("compile", "dense", "training", "oracle", "forms")
    }
    torch.random.set_rng_state(before)
    assert row["compile"]["represented"] >= represented, row["compile"]["dense"]
    assert all(entry["reason"] for entry in row["compile"]["dense"])
    assert table.dense_equal(row), row["dense"]
    assert table.steps(row), row["training"]
    assert table.written_by_hand(row), row["oracle"]
    assert table.agree(row), row["forms"]


@pytest.mark.parametrize("name", ["MultiheadAttention, kdim, vdim", "functional", "experts", "tied"])
def test_an_input_left_dense_is_seen(bench: Callable[[str], Any], name: str) -> None:
    """The oracle by hand projects inputs; a model that was compiled without does not agree with it."""
    measures = bench("measures")
    trial = measures.Trial(next(c for c in bench("torch_models").torch_cases() if c.name == name))
    row = measures.compressed_by_hand(trial.fresh(), trial.compiled(inputs=False), trial.calls, True)
    assert row["inputs met"] > 0
    assert row["example"] > 1e-3


def test_the_page_counts_what_fails(bench: Callable[[str], Any]) -> None:
    table = bench("coverage_table")
    fine = {
        "compile": {
            "represented": 1.0,
            "weights": 10,
            "dense": [],
            "graphs": {},
            "python": 0,
            "seconds": 0,
            "whole": True,
        },
        "dense": {"state_dict": True, "example": 0.0},
        "training": {"state_dict": True, "loss": [1.0, 2.0], "idle": [], "unchanged": []},
        "oracle": {
            "weights": {"example": 0.0, "moved": 0.1},
            "inputs": {"example": 0.0, "moved": 0.1, "inputs met": 1, "inputs not met": {}},
        },
        "forms": {"float32": {"packed": 0.0}},
    }
    broken = {"compile": {"error": "RequestError: no"}}
    checks = (table.compiles, table.dense_equal, table.steps, table.written_by_hand, table.agree)
    assert all(check(fine) for check in checks)
    assert not any(check(broken) for check in checks)
    assert not table.dense_equal({"dense": {"state_dict": True, "other sizes": 1e-9}})
    assert not table.steps(
        fine | {"training": fine["training"] | {"idle": [{"path": "a", "dense too": False}]}}
    )
    weights, inputs = fine["oracle"]["weights"], fine["oracle"]["inputs"]
    for part in ({"weights": weights | {"moved": 0.0}}, {"inputs": inputs | {"other sizes": 1e-3}}):
        assert not table.written_by_hand({"oracle": fine["oracle"] | part})
    assert not table.agree({"forms": {"float32": {"packed": 1.0}, "float64": {"packed": 1e-3}}})
    rows = [row | {"name": "a", "family": family} for row, family in ((fine, "torch"), (broken, "decoder"))]
    page = table.page({"rows": rows, "versions": {"torch": "2"}, "date": "today"})
    assert "| compile | 1 of 2 | 0 of 1 |" in page
