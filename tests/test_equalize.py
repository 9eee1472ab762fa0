"""The rules that choose factors, against their formulas, and what they do to accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, fx, nn
from torch.nn import functional as F

from rhoc.passes.assignment import DENSE, assign
from rhoc.passes.base import Pass, PipelineError
from rhoc.passes.dilate import Dilate
from rhoc.passes.equalize import Equalize
from rhoc.passes.facts import ASSIGNED
from rhoc.passes.pipeline import Pipeline
from rhoc.passes.reach import reaches
from rhoc.passes.record_ranges import RANGES, RecordRanges, ranges_of
from rhoc.passes.sites import sites
from rhoc.runtime.errors import RequestError

from .planted import digits, per_tensor, represented_output, trained
from .scaled_models import ROUGH, graph_of, model_of, sequence


class Pair(nn.Module):
    """A norm, two weights that read it, and the shapes of everything."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.a, self.b = nn.Linear(8, 6), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.norm(x)
        return self.a(h), self.b(h)


def pair() -> tuple[Pair, Tensor, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """The model with channels of many sizes, its input, what the weights read and all their rows."""
    torch.manual_seed(3)
    model, x = Pair().double(), sequence()
    with torch.no_grad():
        model.norm.weight.copy_(torch.exp(torch.randn(8)))
        model.norm.bias.copy_(torch.randn(8))
        h = model.norm(x).reshape(-1, 8).numpy()
    return model, x, h, np.concatenate([model.a.weight.detach(), model.b.weight.detach()])


def spread(x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Range of each column, zero included."""
    return np.maximum(x.max(0), 0) - np.minimum(x.min(0), 0)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("rule", ["smoothquant", "aweq"])
def test_factors_are_those_of_the_formula(rule: str, strength: float) -> None:
    model, x, h, rows = pair()
    gm = graph_of(model, x)
    old = model.norm.weight.detach().clone()
    steps = (RecordRanges([(x,)]), Equalize(rule, strength))  # type: ignore[arg-type]
    Pipeline(steps, given=frozenset({ASSIGNED})).run(gm, probe=(x,))
    factors = (old / model.norm.weight.detach()).numpy()
    if rule == "smoothquant":
        expected = abs(h).max(0) ** strength / abs(rows).max(0) ** (1 - strength)
    else:
        each = [
            spread(model.a.weight.detach().numpy() / factors),
            spread(model.b.weight.detach().numpy() / factors),
        ]
        expected = spread(h) ** strength / np.maximum(*each) ** (1 - strength)
    np.testing.assert_allclose(factors, expected, rtol=1e-9)


def test_aweq_makes_ranges_of_inputs_and_weights_equal() -> None:
    model, x, _, _ = pair()
    gm = graph_of(model, x)
    Pipeline((RecordRanges([(x,)]), Equalize("aweq")), given=frozenset({ASSIGNED})).run(gm, probe=(x,))
    with torch.no_grad():
        h = model.norm(x).reshape(-1, 8).numpy()
        weights = np.maximum(spread(model.a.weight.numpy()), spread(model.b.weight.numpy()))
    np.testing.assert_allclose(spread(h), weights, rtol=1e-9)


def test_recorded_ranges_follow() -> None:
    model, x = model_of("convolutions")
    gm = graph_of(model, x)
    Pipeline((RecordRanges([(x,)]), Equalize("aweq")), given=frozenset({ASSIGNED})).run(gm, probe=(x,))
    followed = [ranges_of(site.node) for site in sites(gm)]
    RecordRanges([(x,)]).rewrite(gm)
    for site, old in zip(sites(gm), followed, strict=True):
        new = ranges_of(site.node)
        assert old is not None
        assert new is not None
        for name in ("minimum", "maximum", "mean", "absmean", "sample"):
            torch.testing.assert_close(getattr(old, name), getattr(new, name), rtol=1e-9, atol=1e-9)


def test_balanced_weights_have_equal_rows_and_columns() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)
    ).double()
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight *= torch.exp(2 * torch.randn(layer.weight.shape[0], 1))
    x = sequence()
    gm = graph_of(model, x, assignment=None)
    Pipeline((Equalize("weights"),)).run(gm, probe=(x,))
    for first, second in ((0, 2), (2, 4)):
        rows = model[first].weight.detach().abs().amax(1)
        columns = model[second].weight.detach().abs().amax(0)
        torch.testing.assert_close(rows, columns, rtol=1e-5, atol=0)
    assert [str(r).split(" of ")[0] for r in reaches(gm)["Equalize"] if not r.reached] == [
        "0.weight: not reached, its input is an input"
    ]


def test_a_balance_that_was_cut_short_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 10), nn.Linear(10, 4))
    gm = graph_of(model, torch.zeros(2, 8), assignment=None)
    Equalize("weights", rounds=1).rewrite(gm)
    assert all("still moving after 1 rounds" in r.what for r in reaches(gm)["Equalize"] if r.reached)


def test_the_limit_holds_for_all_rounds_together() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 10)).double()
    with torch.no_grad():
        model[1].weight *= 1e-3
    old = model[1].weight.detach().clone()
    Equalize("weights", limit=2.0).rewrite(graph_of(model, torch.zeros(2, 8).double(), assignment=None))
    torch.testing.assert_close(model[1].weight.detach() / old, torch.full_like(old, 2.0))


def test_options_are_read_as_data() -> None:
    read = TypeAdapter(Equalize).validate_python({"kind": "equalize", "rule": "aweq", "strength": 0.25})
    assert read == Equalize("aweq", 0.25)
    with pytest.raises(ValidationError, match=r"strength 2\.0 is not between 0 and 1"):
        TypeAdapter(Equalize).validate_python({"strength": 2.0})


def test_rule_weights_leaves_norms_alone() -> None:
    model, x, _, _ = pair()
    gm = graph_of(model, x, assignment=None)
    assert Equalize("weights").rewrite(gm) is False
    reason = "norm.weight, which makes its input, is no weight with rows to balance"
    assert [(r.path, r.what) for r in reaches(gm)["Equalize"]] == [("a.weight", reason), ("b.weight", reason)]


def test_dead_channels_stay_and_factors_are_bounded() -> None:
    model, x, _, _ = pair()
    with torch.no_grad():
        model.norm.weight[0] = model.norm.bias[0] = 0  # a dead input
        model.a.weight[:, 1] = 0
        model.b.weight[:, 1] = 0  # dead columns
        model.norm.weight[2] = 1e9
        model.a.weight[:, 3] = 1e9
    gm = graph_of(model, x)
    old = model.norm.weight.detach().clone()
    steps = (RecordRanges([(x,)]), Equalize(limit=50.0))
    Pipeline(steps, given=frozenset({ASSIGNED})).run(gm, probe=(x,))
    factors = old / model.norm.weight.detach()
    assert float(model.norm.weight[0].detach()) == 0
    assert float(factors[1]) == 1
    torch.testing.assert_close(factors[2:4], torch.tensor([50.0, 1 / 50]).double())


def relative_error(gm: fx.GraphModule, x: Tensor) -> float:
    """Squared error of all outputs with represented weights and inputs, by a plain formula."""
    total = 0.0
    with torch.no_grad():
        for site in sites(gm):
            weight = gm.get_parameter(site.path)
            h = F.layer_norm(x, (8,), gm.get_parameter("norm.weight"), gm.get_parameter("norm.bias"))
            dense = h @ weight.T
            found = ROUGH.input.project(h.reshape(-1, 8)) @ ROUGH.weight.project(weight).T
            total += float((found - dense.reshape(-1, len(weight))).square().sum() / dense.square().sum())
    return total


@pytest.mark.parametrize("seed", range(6))
def test_only_if_better_and_the_search_never_make_it_worse(seed: int) -> None:
    errors = {}
    for name, each in {
        "none": None,
        "guarded": Equalize(strength=1.0, only_if_better=True),
        "awq": Equalize("awq"),
        "always": Equalize(strength=1.0),
    }.items():
        torch.manual_seed(seed)
        model, x = Pair().double(), sequence()
        with torch.no_grad():
            model.norm.weight.copy_(torch.exp(torch.randn(8)))
        gm = graph_of(model, x)
        given = frozenset({ASSIGNED})
        steps: tuple[Pass, ...] = (RecordRanges([(x,)]),) if each is None else (RecordRanges([(x,)]), each)
        Pipeline(steps, given=given).run(gm, probe=(x,))
        errors[name] = relative_error(gm, x)
        if name == "guarded":
            left = not reaches(gm)["Equalize"][0].reached
    expected = errors["none"] if left else errors["always"]
    assert errors["guarded"] == pytest.approx(expected, rel=1e-6)
    assert errors["guarded"] <= errors["none"] * (1 + 1e-9)
    assert errors["awq"] <= errors["none"] * (1 + 1e-9)


def test_a_guard_needs_samples() -> None:
    model, x, _, _ = pair()
    gm = graph_of(model, x)
    RecordRanges([(x,)], samples=0).rewrite(gm)
    with pytest.raises(RequestError) as raised:
        Equalize(only_if_better=True).rewrite(gm)
    assert str(raised.value) == (
        "a.weight: comparing output errors needs recorded inputs, and none were kept; "
        "record ranges with samples=256"
    )


def test_dense_readers_do_not_ask_for_it() -> None:
    model, x, _, _ = pair()
    gm = graph_of(model, x, assignment=DENSE)
    RecordRanges([(x,)]).rewrite(gm)
    assert Equalize().rewrite(gm) is False
    assert {r.what for r in reaches(gm)["Equalize"]} == {
        "no weight that reads this input has a representation"
    }


def test_the_report_in_full() -> None:
    model, x = model_of("grouped queries")
    gm = graph_of(model, x)
    RecordRanges([(x,)]).rewrite(gm)
    Equalize(limit=1.25).rewrite(gm)
    assert [str(r) for r in reaches(gm)["Equalize"]] == [
        "qkv.weight: its input divided by 1.25 to 1.25, taken by norm.weight",
        "out.weight: its input divided by 1.25 to 1.25, taken by qkv.weight",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Equalize(strength=1.5), "strength 1.5 is not between 0 and 1; 0.5 is usual"),
        (lambda: Equalize(limit=0.5), "limit 0.5 is not a number of at least 1; 1000 is usual"),
        (lambda: Equalize(rounds=0), "rounds 0 must be at least 1; 100 is usual"),
        (
            lambda: Equalize("weights", only_if_better=True),
            "rule weights settles all groups together; leave only_if_better out",
        ),
        (lambda: Equalize("awq", strength=0.3), "rule awq finds its own strength; leave strength out"),
    ],
)
def test_options_that_make_no_sense(make: Callable[[], Equalize], message: str) -> None:
    with pytest.raises(ValueError, match="; ") as raised:
        make()
    assert str(raised.value) == message


def test_what_each_rule_requires() -> None:
    assert Equalize("weights").requires == frozenset()
    assert Equalize().requires == frozenset({RANGES})
    assert Equalize("awq").requires == Equalize(only_if_better=True).requires == frozenset({RANGES, ASSIGNED})
    x = torch.zeros(2, 4)
    ordered = Pipeline((Equalize(), RecordRanges([(x,)]))).ordered()
    assert [each.name for each in ordered] == ["RecordRanges", "Equalize"]


@pytest.mark.parametrize("each", [Equalize(), Equalize("weights"), Dilate()])
def test_weights_that_have_codes_are_not_scaled(each: Pass) -> None:
    model, x, _, _ = pair()
    gm = graph_of(model, x)
    RecordRanges([(x,)]).rewrite(gm)
    weight = next(sites(gm)).weight
    code = ROUGH.weight.encode(model.a.weight.detach())
    assign(weight, replace(ROUGH, code=code))
    with pytest.raises(PipelineError) as raised:
        each.rewrite(gm)
    assert str(raised.value) == "a.weight has a code already; put passes that scale before calibrate"


class ForgetsBias(Equalize):
    """Divides the scale of a norm and not its bias."""

    def rewrite(self, gm: fx.GraphModule) -> bool:
        bias = gm.get_parameter("norm.bias")
        old = bias.detach().clone()
        changed = super().rewrite(gm)
        with torch.no_grad():
            bias.copy_(old)
        return changed


def test_a_wrong_one_is_caught_and_named() -> None:
    model, x, _, _ = pair()
    gm = graph_of(model, x)
    steps = (RecordRanges([(x,)]), ForgetsBias())
    with pytest.raises(PipelineError, match="ForgetsBias declares keeps='values' but changed output 0"):
        Pipeline(steps, given=frozenset({ASSIGNED})).run(gm, probe=(x,))


def equalized(planted: bool, bits: tuple[int, int], each: Equalize | None) -> tuple[float, float, float]:
    """Accuracy, relative error of the output, and by how much the dense model changed."""
    images, _, held_out, labels = digits()
    model = trained(planted)
    with torch.no_grad():
        dense = model(held_out)
    gm = graph_of(model, images[:256], assignment=per_tensor(*bits))
    if each is not None:
        steps = (RecordRanges([(images[:256],), (images[256:512],)]), each)
        Pipeline(steps, given=frozenset({ASSIGNED})).run(gm, probe=(images[:256],))
    with torch.no_grad():
        moved = float((model(held_out) - dense).abs().max())
    found = represented_output(gm, held_out)
    accuracy = float((found.argmax(1) == labels).float().mean())
    return accuracy, float((found - dense).norm() / dense.norm()), moved


def test_planted_outliers_are_undone() -> None:
    """AWEQ at W8A8 per tensor, where outliers cost ten points."""
    _, _, held_out, labels = digits()
    with torch.no_grad():
        dense = float((trained(True)(held_out).argmax(1) == labels).float().mean())
    assert dense > 0.95
    before, _, _ = equalized(True, (8, 8), None)
    after, error, moved = equalized(True, (8, 8), Equalize("aweq"))
    assert before < dense - 0.1
    assert after >= dense - 0.005
    assert error < 0.03
    assert moved < 1e-4


@pytest.mark.parametrize("bits", [(8, 8), (6, 6), (4, 8)])
def test_a_balanced_model_stays_good(bits: tuple[int, int]) -> None:
    before, error_before, _ = equalized(False, bits, None)
    after, error, _ = equalized(False, bits, Equalize("aweq"))
    guarded, error_guarded, _ = equalized(False, bits, Equalize("aweq", only_if_better=True))
    assert min(after, guarded) >= before - 0.01
    assert error < 1.5 * error_before
    assert error_guarded < 1.25 * error_before  # what is better for each weight need not be for all
