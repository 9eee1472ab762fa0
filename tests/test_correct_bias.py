"""Biases that take up what represented weights add to the mean of their outputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from rhoc.passes.assignment import Assignment, assign
from rhoc.passes.base import Pass, PipelineError
from rhoc.passes.correct_bias import CorrectBias
from rhoc.passes.equalize import Equalize
from rhoc.passes.facts import ASSIGNED
from rhoc.passes.pipeline import Pipeline
from rhoc.passes.reach import reaches
from rhoc.passes.record_ranges import RecordRanges
from rhoc.passes.sites import sites
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

from .planted import digits, per_tensor, represented_output, trained
from .scaled_models import graph_of

INT3 = Representation((Quantize(3, strategy="channel"),))


def corrected(model: nn.Module, *batches: tuple[Tensor, ...], assignment: Assignment) -> fx.GraphModule:
    gm = graph_of(model, *batches[0], assignment=assignment)
    for site in sites(gm):
        arrangement = site.arrangement(tuple(gm.get_parameter(site.path).shape))
        assign(site.weight, Assignment(assignment.weight, assignment.input, arrangement=arrangement))
    steps = (RecordRanges(batches), CorrectBias())
    Pipeline(steps, given=frozenset({ASSIGNED})).run(gm, probe=batches[0])
    return gm


def test_the_mean_output_of_one_weight_is_that_of_the_dense_one() -> None:
    torch.manual_seed(0)
    model = nn.Linear(12, 5).double()
    batches = [(torch.randn(20, 12).double() + 1,) for _ in range(3)]
    everything = torch.cat([x for (x,) in batches])
    with torch.no_grad():
        dense = model(everything).mean(0)
        before = (everything @ INT3.project(model.weight).T + model.bias).mean(0)
        gm = corrected(model, *batches, assignment=Assignment(INT3))
        after = (everything @ INT3.project(model.weight).T + model.bias).mean(0)
    assert float((before - dense).abs().max()) > 0.01
    torch.testing.assert_close(after, dense, rtol=1e-10, atol=1e-12)
    (reach,) = reaches(gm)["CorrectBias"]
    assert str(reach) == f"weight: bias changed by up to {float((before - dense).abs().max()):.3g}"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, groups=2),
        nn.ConvTranspose2d(6, 8, 1, groups=2, stride=1),
        nn.Conv2d(6, 6, 2, groups=6),
    ],
)
def test_convolutions_whose_positions_are_alike(layer: nn.Module) -> None:
    """Where every channel is constant over positions and nothing is padded, means are exact."""
    torch.manual_seed(0)
    layer = layer.double()
    x = (torch.randn(9, 6, 1, 1).double() + 1).expand(9, 6, 5, 5).contiguous()
    with torch.no_grad():
        dense = layer(x).mean((0, 2, 3))
        gm = corrected(layer, (x,), assignment=Assignment(INT3))
        (site,) = sites(gm)
        arrangement = site.arrangement(tuple(layer.weight.shape))
        projected = arrangement.restore(
            INT3.project(arrangement.matrix(layer.weight)), tuple(layer.weight.shape)
        )
        assert not torch.equal(projected, layer.weight)
        layer.weight.copy_(projected)
        torch.testing.assert_close(layer(x).mean((0, 2, 3)), dense, rtol=1e-10, atol=1e-12)


def test_it_lowers_the_error_of_a_trained_model() -> None:
    """AWEQ's refinement at W4A8 per tensor; the reference measured a quarter less."""
    images, _, held_out, _ = digits()
    batches = [(images[i : i + 256],) for i in range(0, 1280, 256)]
    for planted in (True, False):
        errors = []
        for refinement in ((), (CorrectBias(),)):
            model = trained(planted)
            with torch.no_grad():
                dense = model(held_out)
            gm = graph_of(model, images[:256], assignment=per_tensor(4, 8))
            steps: tuple[Pass, ...] = (RecordRanges(batches), Equalize("aweq"), *refinement)
            Pipeline(steps, given=frozenset({ASSIGNED})).run(gm, probe=batches[0])
            found = represented_output(gm, held_out)
            errors.append(float((found - dense).norm() / dense.norm()))
        assert errors[1] < 0.9 * errors[0]


def test_a_code_that_calibration_chose_is_what_counts() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(6, 4).double(), torch.randn(30, 6).double() + 1
    dense = model(x).mean(0).detach()
    gm = graph_of(model, x, assignment=Assignment(INT3))
    chosen = INT3.encode(model.weight.detach() * 0.7)  # not what rounding to nearest would choose
    assign(next(sites(gm)).weight, Assignment(INT3, code=chosen))
    Pipeline((RecordRanges([(x,)]), CorrectBias()), given=frozenset({ASSIGNED})).run(gm, probe=(x,))
    found = (x @ INT3.decode(chosen).T + model.bias.detach()).mean(0)
    torch.testing.assert_close(found, dense, rtol=1e-10, atol=1e-12)


class Shared(nn.Module):
    """A bias that two weights add, and a weight without one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.second.bias = self.first.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))


def test_biases_that_cannot_be_changed_are_named() -> None:
    torch.manual_seed(0)
    model = Shared()
    old = model.first.bias.detach().clone()
    gm = corrected(model, (torch.randn(3, 4),), assignment=Assignment(INT3))
    assert [str(reach) for reach in reaches(gm)["CorrectBias"]] == [
        "first.weight: not reached, first.bias is also read elsewhere",
        "second.weight: not reached, first.bias is also read elsewhere",
        "third.weight: not reached, it has no bias",
    ]
    assert torch.equal(model.first.bias, old)


def test_it_comes_last_and_once() -> None:
    x = torch.zeros(2, 4)
    steps = (CorrectBias(), Equalize(), RecordRanges([(x,)]))
    given = frozenset({ASSIGNED})
    assert [each.name for each in Pipeline(steps, given=given).ordered()] == [
        "RecordRanges",
        "Equalize",
        "CorrectBias",
    ]
    with pytest.raises(PipelineError, match="requires 'ranges', which no pass in this pipeline establishes"):
        Pipeline((CorrectBias(),), given=given).ordered()
