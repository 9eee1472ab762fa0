"""Weight dilation against its definition, written out as loops, and what it promises of rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

from rhoc.passes.assignment import DENSE, assign
from rhoc.passes.base import PipelineError
from rhoc.passes.dilate import Dilate
from rhoc.passes.facts import ASSIGNED
from rhoc.passes.pipeline import Pipeline
from rhoc.passes.reach import reaches
from rhoc.passes.sites import sites

from .scaled_models import CASES, ROUGH, graph_of, model_of, same, sequence

Matrix = np.ndarray  # type: ignore[type-arg]


class Siblings(nn.Module):
    """A norm and two weights that contract."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.a, self.b = nn.Linear(width, 4), nn.Linear(width, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.norm(x)
        return self.a(h), self.b(h)


def siblings(dtype: torch.dtype = torch.float64) -> tuple[Siblings, Tensor]:
    torch.manual_seed(0)
    return Siblings().to(dtype), torch.randn(5, 24, dtype=dtype)


def dilated(model: nn.Module, x: Tensor, each: Dilate) -> fx.GraphModule:
    gm = graph_of(model, x)
    Pipeline((each,), given=frozenset({ASSIGNED})).run(gm, probe=(x,))
    return gm


def by_definition(matrices: list[Matrix], symmetric: bool = False) -> Matrix:
    """Eq. 10-12 of DilateQuant one entry at a time, over all weights that share the factors."""
    channels = matrices[0].shape[1]
    saturated = set()
    for matrix in matrices:
        for row in matrix:
            saturated |= {abs(row).argmax()} if symmetric else {row.argmax(), row.argmin()}
    scales = np.ones(channels)
    for k in set(range(channels)) - saturated:
        found = []
        for row in (row for matrix in matrices for row in matrix):
            if symmetric and row[k]:
                found.append(abs(row).max() / abs(row[k]))
            elif row[k] > 0:
                found.append(row.max() / row[k])
            elif row[k] < 0:
                found.append(row.min() / row[k])
        scales[k] = min(found)
    return scales


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("symmetric", [False, True])
def test_factors_are_those_of_the_definition(symmetric: bool, dtype: torch.dtype) -> None:
    model, x = siblings(dtype)
    weights = [layer.weight.detach().clone() for layer in (model.a, model.b)]
    dilated(model, x, Dilate(symmetric=symmetric))
    expected = by_definition([w.double().numpy() for w in weights], symmetric)
    assert (expected > 1).sum() >= 4
    factors = 1 / model.norm.weight.detach().double().numpy()
    np.testing.assert_allclose(factors, expected, rtol=1e-6)
    for layer, old in zip((model.a, model.b), weights, strict=True):
        new = layer.weight.detach()
        if symmetric:
            torch.testing.assert_close(new.abs().amax(1), old.abs().amax(1), rtol=1e-5, atol=0)
        else:
            torch.testing.assert_close(new.amax(1), old.amax(1), rtol=1e-5, atol=0)
            torch.testing.assert_close(new.amin(1), old.amin(1), rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_values_stay_and_columns_only_grow(name: str, dtype: torch.dtype) -> None:
    model, x = model_of(name, dtype)
    with torch.no_grad():
        before = model(x)
    gm = dilated(model, x, Dilate())
    with torch.no_grad():
        same(before, model(x))
        same(before, gm(x)[0])
    for reach in reaches(gm)["Dilate"]:
        if reach.reached:
            assert float(reach.what.split("by up to ")[1].split(",")[0]) >= 1


def test_rows_of_a_producer_are_divided_as_a_whole() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 3)).double(), sequence()
    first, second = model[0].weight.detach().clone(), model[2].weight.detach().clone()
    dilated(model, x, Dilate())
    scales = by_definition([second.numpy()])
    np.testing.assert_allclose(model[2].weight.detach().numpy(), second.numpy() * scales, rtol=1e-9)
    np.testing.assert_allclose(model[0].weight.detach().numpy(), first.numpy() / scales[:, None], rtol=1e-9)


def test_empty_columns_one_sided_rows_and_the_cap() -> None:
    model, x = siblings()
    with torch.no_grad():
        model.a.weight.abs_()  # no row has a negative minimum
        for layer in (model.a, model.b):
            layer.weight[:, 0] = 0
            layer.weight[:, 1] *= 1e-6
            layer.weight[0] = 0
    gm = dilated(model, x, Dilate(limit=20.0))
    factors = 1 / model.norm.weight.detach()
    assert float(factors[0]) == 1
    assert float(factors[1]) == pytest.approx(20)
    assert bool(torch.isfinite(factors).all())
    assert float(factors.min()) == 1
    assert all(reach.reached for reach in reaches(gm)["Dilate"])


def test_dense_siblings_do_not_hold_others_back() -> None:
    model, x = siblings()
    alone = by_definition([model.a.weight.detach().numpy()])
    gm = graph_of(model, x)
    assign(next(site for site in sites(gm) if site.path == "b.weight").weight, DENSE)
    Pipeline((Dilate(),), given=frozenset({ASSIGNED})).run(gm, probe=(x,))
    np.testing.assert_allclose(1 / model.norm.weight.detach().numpy(), alone, rtol=1e-9)


@pytest.mark.parametrize(("out", "channels"), [(64, 192), (192, 192), (384, 192), (192, 768)])
def test_the_share_of_saturated_channels_follows_the_coupon_collector(out: int, channels: int) -> None:
    """The unsaturated share is about exp(-2 out / in): dilation does little where layers expand."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, out))
    with torch.no_grad():
        model[1].weight.normal_()
    gm = dilated(model, torch.randn(2, channels), Dilate())
    (reach,) = reaches(gm)["Dilate"]
    share = float(reach.what.split("|A|/in ")[1].rstrip(")"))
    assert 1 - share == pytest.approx(np.exp(-2 * out / channels), abs=0.06)
    assert share > 0.9 or out <= channels
    assert share < 0.6 or out > channels / 2


def test_the_report_in_full() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.LayerNorm(6), nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 4), nn.GELU(), nn.Linear(4, 2)
    )
    largest = by_definition([model[3].weight.detach().numpy()]).max()
    gm = dilated(model, torch.randn(3, 6), Dilate())
    assert [str(reach) for reach in reaches(gm)["Dilate"]] == [
        "1.weight: not reached, no channel can grow: 6 of 6 channels hold an end of a row (|A|/in 1.00)",
        f"3.weight: 56 channels dilated by up to {largest:.3g}, taken by 1.weight; "
        "8 of 64 channels hold an end of a row (|A|/in 0.12)",
        "5.weight: not reached, its input comes through gelu; "
        "3 of 4 channels hold an end of a row (|A|/in 0.75)",
    ]


def test_a_limit_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"limit 0\.5 is not a number of at least 1; 1000 is usual"):
        Dilate(limit=0.5)


class OneSibling(Dilate):
    """Dilates the first of two weights that share an input."""

    def rewrite(self, gm: fx.GraphModule) -> bool:
        other = gm.get_parameter("b.weight")
        old = other.detach().clone()
        changed = super().rewrite(gm)
        with torch.no_grad():
            other.copy_(old)
        return changed


def test_a_wrong_one_is_caught_and_named() -> None:
    model, x = siblings()
    with pytest.raises(PipelineError, match="OneSibling declares keeps='values' but changed output 1"):
        dilated(model, x, OneSibling())


def test_dilation_lowers_the_error_of_inputs_of_few_bits() -> None:
    """Where outliers are in channels that are not saturated, which is the case the method is for."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.LayerNorm(96), nn.Linear(96, 12)).double(), torch.randn(64, 96).double()
    with torch.no_grad():
        weight = model[1].weight.normal_()
        free = by_definition([weight.numpy()]) > 1.5
        model[0].weight[torch.from_numpy(free)] *= 8
        weight[:, free] /= 8
        dense = model(x)

        def error() -> float:
            inputs, rows = ROUGH.input.project(model[0](x)), ROUGH.weight.project(weight)
            return float((inputs @ rows.T + model[1].bias - dense).square().mean())

        before = error()
        dilated(model, x, Dilate())
        assert error() < before / 4
