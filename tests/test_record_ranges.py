"""Statistics of weights' inputs on calibration batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rhoc.passes.base import Broken
from rhoc.passes.facts import ASSIGNED
from rhoc.passes.pipeline import Pipeline
from rhoc.passes.record_ranges import RANGES, RecordRanges, ranges_of, set_ranges
from rhoc.passes.sites import sites
from rhoc.runtime.errors import RequestError, WorkError

from .scaled_models import graph_of, model_of


def test_ranges_are_those_of_all_batches() -> None:
    model, _ = model_of("experts")
    batches = [(torch.randn(2, 5, 8, dtype=torch.float64) * (i + 1),) for i in range(3)]
    gm = graph_of(model, *batches[0])
    Pipeline((RecordRanges(batches, samples=7),), given=frozenset({ASSIGNED})).run(gm, probe=batches[0])
    first, second = (ranges_of(site.node) for site in sites(gm))
    assert first is not None
    assert second is not None
    rows = [F.rms_norm(x, (8,), model.norm.weight).reshape(-1, 8) for (x,) in batches]  # type: ignore[arg-type]
    seen = torch.cat(rows).detach().numpy()
    for found, expected in [
        (first.minimum, seen.min(0)),
        (first.maximum, seen.max(0)),
        (first.absmax, abs(seen).max(0)),
        (first.mean, seen.mean(0)),
        (first.absmean, abs(seen).mean(0)),
    ]:
        np.testing.assert_allclose(found.numpy(), np.tile(expected, 2), rtol=1e-12, atol=1e-12)  # two experts
    assert first.rows == 30
    assert first.sample.shape == (7, 16)
    distances = np.abs(first.sample[:, None, :8].numpy() - seen[None]).max(-1).min(1)
    assert distances.max() < 1e-12  # rows of the sample are rows that were seen
    assert second.minimum.shape == (12,)
    assert second.sample.shape == (7, 12)


def test_samples_come_from_all_batches_alike() -> None:
    batches = [(torch.full((40, 4), float(i)),) for i in range(5)]
    gm = graph_of(nn.Linear(4, 3), *batches[0])
    RecordRanges(batches, samples=100).rewrite(gm)
    ranges = ranges_of(next(sites(gm)).node)
    assert ranges is not None
    counts = torch.bincount(ranges.sample[:, 0].long(), minlength=5)
    assert int(counts.sum()) == 100
    assert int(counts.min()) >= 8
    assert int(counts.max()) <= 32  # of a hypergeometric distribution with mean 20 and deviation 2.8


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], RequestError, "there are no calibration batches; give at least one"),
        (
            [(torch.zeros(2, 4),), (torch.zeros(3, 4),)],
            RequestError,
            "calibration batch 1 is float32[3, 4], the graph was made for float32[2, 4]; "
            "give batches of the shapes and dtypes of the example inputs",
        ),
        ([()], RequestError, "calibration batch 0 is nothing, the graph was made for float32[2, 4]"),
        (
            [(torch.full((2, 4), torch.nan),)],
            WorkError,
            "%linear (weight): an input is NaN or infinite on calibration data",
        ),
    ],
)
def test_batches_that_cannot_be_used(
    batches: list[tuple[Tensor, ...]], error: type[Exception], message: str
) -> None:
    gm = graph_of(nn.Linear(4, 3), torch.zeros(2, 4))
    with pytest.raises(error) as raised:
        RecordRanges(batches).rewrite(gm)
    assert str(raised.value).startswith(message)


def test_the_fact_of_ranges_bites() -> None:
    x = torch.zeros(2, 4)
    gm = graph_of(nn.Linear(4, 3), x)
    with pytest.raises(Broken) as raised:
        RANGES.verify(gm)
    assert str(raised.value) == "%linear (weight): no statistics of this input were recorded"
    other = graph_of(nn.Linear(5, 3), torch.zeros(2, 5))
    RecordRanges([(torch.ones(2, 5),)]).rewrite(other)
    wrong = ranges_of(next(sites(other)).node)
    assert wrong is not None
    set_ranges(next(sites(gm)).node, wrong)
    with pytest.raises(Broken, match="statistics of 5 channels were recorded, and the input has 4"):
        RANGES.verify(gm)
