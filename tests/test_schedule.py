"""Numbers that change while a model is trained: their values, where they apply, what is said of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rhoc
from rhoc.compiler.spec import load_spec
from rhoc.passes.assignment import Assignment
from rhoc.runtime.errors import RequestError, RhocError
from rhoc.runtime.estimators import Banded, Trust
from rhoc.runtime.program import Program, program_of
from rhoc.runtime.projection import Project, projections
from rhoc.runtime.representation import Representation
from rhoc.runtime.schedule import Schedule
from rhoc.runtime.schedules import advance
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify

from .models import Tied, mlp

pytestmark = pytest.mark.usefixtures("one_thread")

CUBIC = {"field": "weights.0.sparsity", "start": 0.0, "shape": "cubic", "begin": 0.25, "end": 0.75}


def spec(weights: Any = None, schedule: Any = None, **rest: Any) -> dict[str, Any]:
    rule = {
        "targets": "Linear",
        "weights": {"kind": "sparsify", "sparsity": 0.75} if weights is None else weights,
        "schedule": CUBIC if schedule is None else schedule,
        **rest,
    }
    return {"version": 1, "name": "scheduled", "rules": [rule]}


def float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def zeros(tensor: Tensor) -> float:
    return float((tensor == 0).double().mean())


@pytest.mark.parametrize(
    ("shape", "left"),
    [
        ("linear", lambda s: 1 - s),
        ("cubic", lambda s: (1 - s) ** 3),
        ("cosine", lambda s: math.cos(math.pi * s / 2) ** 2),
        ("step", lambda s: 1.0),
    ],
)
def test_values_follow_their_formulas(shape: Any, left: Callable[[float], float]) -> None:
    schedule = Schedule("0.sparsity", 0.1, shape, begin=0.2, end=0.6)
    for step in range(50):
        done = step / 50
        s = (done - 0.2) / 0.4
        expected = 0.1 if done <= 0.2 else 0.9 if done >= 0.6 else 0.9 - 0.8 * left(s)
        assert schedule.value(0.9, step, 50) == pytest.approx(expected, abs=1e-12)


def test_zhu_and_gupta_with_its_own_constants() -> None:
    # Eq. 1 of 1710.01878: s_t = s_f + (s_i - s_f) (1 - (t - t_0) / (n dt))^3, for t in t_0, t_0 + dt, ...
    steps, first, every, count, final = 400, 100, 10, 20, 0.9
    schedule = Schedule("0.sparsity", 0.0, "cubic", first / steps, (first + count * every) / steps, every)
    for k in range(count + 1):
        expected = final - final * (1 - k / count) ** 3
        for inside in (0, every - 1):
            assert schedule.value(final, first + k * every + inside, steps) == pytest.approx(
                expected, abs=1e-12
            )


@pytest.mark.parametrize("every", [1, 7, 1000])
@pytest.mark.parametrize("steps", [1, 3, 25])
def test_the_declared_value_holds_after_the_last_step(every: int, steps: int) -> None:
    schedule = Schedule("0.sparsity", 0.2, "linear", every=every)
    assert schedule.value(0.5, 0, steps) == 0.2
    assert schedule.value(0.5, steps, steps) == schedule.value(0.5, 10 * steps, steps) == 0.5
    early = Schedule("0.sparsity", 0.2, "linear", 0.0, 0.0)
    assert early.value(0.5, 0, steps) == 0.5


def test_values_stay_between_their_ends() -> None:
    for start in (0.0, 0.1, 0.3, 1 / 3):
        for declared in (0.7, 0.9, 1e-3):
            schedule = Schedule("0.sparsity", start, "cosine", 0.1, 0.9)
            values = [schedule.value(declared, step, 997) for step in range(998)]
            assert min(start, declared) <= min(values) <= max(values) <= max(start, declared)


def test_whole_numbers_are_rounded_and_types_stay() -> None:
    r = Representation((Sparsify(0.5), Quantize(2, strategy="channel")))
    program = Program(r, (), (Schedule("1.num_bits", 8.0, "linear"), Schedule("0.sparsity", 0.0)))
    seen = []
    for step in range(11):
        sparse, quantize = program.at(float64(*program.values(step, 10))).representation.stages
        assert isinstance(quantize, Quantize)
        assert isinstance(sparse, Sparsify)
        assert type(quantize.num_bits) is int
        assert type(sparse.sparsity) is float
        seen.append(quantize.num_bits)
    assert seen == [round(8 - 0.6 * step) for step in range(11)]


def test_estimators_change_too() -> None:
    program = Program(
        Representation((Sparsify(0.5),)), (Banded(p=0.2),), (Schedule("estimator.0.p", 0.0, "linear"),)
    )
    assert program.at(float64(*program.values(5, 10))).estimators == (Banded(p=0.1),)
    assert program.at(float64(torch.nan)) == program_of(program.representation, (Banded(p=0.2),))


def test_a_projection_has_the_values_of_the_step() -> None:
    student = rhoc.compile(mlp(), spec()).trainable()
    found = list(projections(student))
    assert len(found) == 2
    weight = student[0].weight
    assert zeros(found[0](weight)) == 0.75, "declared, as nothing was advanced"
    for step, expected in ((0, 0.0), (5, 0.0), (10, 0.75 - 0.75 / 8), (15, 0.75), (20, 0.75)):
        advance(student, step, 20)
        for mode in (True, False):
            student.train(mode)
            assert zeros(found[0](weight)) == pytest.approx(expected, abs=1 / weight.numel())
    reference = rhoc.compile(mlp(), spec()).reference()
    assert zeros(reference[0].weight) == 0.75


def test_a_scale_bound_near_by_is_close_to_its_own() -> None:
    r = Representation((Hadamard(16), Sparsify(0.75), Quantize(4, strategy="tensor", observer="rms")))
    program = Program(r, (Trust(),), (Schedule("1.sparsity", 0.0, "cubic"),))
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    for value in (0.1003, 0.333, 0.7171):
        there = program.at(float64(value)).representation
        own = Representation((Hadamard(16), Sparsify(value), Quantize(4, strategy="tensor", observer="rms")))
        assert there == own
        assert [type(s) for s in there.bound_stages] == [type(s) for s in own.bound_stages]
        clip, exact = there.bound_stages[2].clip, own.bound_stages[2].clip  # type: ignore[attr-defined]
        assert clip == pytest.approx(exact, rel=1e-2)
        assert zeros(there.view(x).projected) == pytest.approx(zeros(own.view(x).projected), abs=0.02)
        errors = [float((given.project(x) - x).square().mean()) for given in (there, own)]
        assert errors[0] == pytest.approx(errors[1], rel=2e-3)
    for end, sparsity in ((0.0, 0.0), (0.75, 0.75), (torch.nan, 0.75)):
        exact_stages = Representation((Hadamard(16), Sparsify(sparsity), *r.stages[2:])).bound_stages
        assert program.at(float64(end)).representation.bound_stages == exact_stages


def loss_of(student: nn.Module, step: int) -> Tensor:
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(step))
    return student(x).square().mean() + student(x).sum() / 50


def trained(student: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for step in range(first, last):
        advance(student, step, 10)
        optimizer.zero_grad()
        loss_of(student, step).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ["gmp75", "gmp75-banded", "gmp75-int4", "power90"])
def test_ten_steps_are_five_and_five_more(name: str) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
        student = rhoc.compile(model, name).trainable()
        return student, torch.optim.AdamW(student.parameters(), 1e-2)

    whole, optimizer = fresh()
    trained(whole, optimizer, 0, 10)
    first, optimizer = fresh()
    trained(first, optimizer, 0, 5)
    model_state, state = copy.deepcopy((first.state_dict(), optimizer.state_dict()))
    second, optimizer = fresh()
    second.load_state_dict(model_state)
    optimizer.load_state_dict(state)
    trained(second, optimizer, 5, 10)
    assert list(whole.state_dict()) == list(second.state_dict())
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


@torch._dynamo.config.patch(error_on_recompile=True)
def test_compiled_steps_follow_without_compiling_again() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    student = rhoc.compile(
        nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)), "gmp75-banded"
    ).trainable()
    other = copy.deepcopy(student)
    compiled = torch.compile(student, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 16)
    sparsities = set()
    for step in range(0, 40, 10):
        for form in (student, other):
            advance(form, step, 40)
            form.zero_grad()
        compiled(x).square().sum().backward()
        other(x).square().sum().backward()
        for ours, theirs in zip(student.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
        sparsities.add(zeros(next(projections(student))(student[0].weight)))
    assert len(sparsities) == 3, "0, halfway and 0.75"


@pytest.mark.parametrize(
    "bits", [[{"kind": "quantize", "num_bits": 2, "strategy": "channel", "observer": "rms"}]]
)
def test_compiled_masks_of_scheduled_bits(bits: Any) -> None:
    torch.manual_seed(0)
    schedule = {"field": "weights.0.num_bits", "start": 6}
    form = rhoc.compile(nn.Sequential(nn.Linear(24, 24)), spec(bits, schedule, estimator="trust"))
    student, other = form.trainable(), form.trainable()
    compiled = torch.compile(student, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 24)
    for step in (0, 3, 8):
        for each in (student, other):
            advance(each, step, 8)
            each.zero_grad()
        compiled(x).square().sum().backward()
        other(x).square().sum().backward()
        torch.testing.assert_close(student[0].weight.grad, other[0].weight.grad)


class ByHand(nn.Module):
    """A forward that cannot be traced reads its weight as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().sum()) > 1e9:
            return x
        return F.linear(x, self.inner.weight)


INPUTS = {"kind": "quantize", "num_bits": 2, "strategy": "token", "dynamic": True}
IN_BITS = {"field": "input_activations.0.num_bits", "start": 8, "shape": "step"}
OUT_BITS = {"field": "output_activations.0.num_bits", "start": 8, "shape": "step"}


@pytest.mark.parametrize("model", [ByHand, lambda: nn.Sequential(nn.Linear(16, 8))], ids=["by hand", "graph"])
def test_inputs_and_outputs_follow_wherever_code_reads_the_weight(model: Callable[[], nn.Module]) -> None:
    around = {"input_activations": INPUTS, "output_activations": INPUTS}
    form = rhoc.compile(model(), spec("dense", [IN_BITS, OUT_BITS], **around), (torch.randn(2, 16),))
    student = form.trainable().eval()
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))

    def distinct(y: Tensor) -> int:
        return max(len(row.unique()) for row in y)

    advance(student, 0, 10)
    start = student(x)
    assert distinct(start) > 4, "eight bits"
    advance(student, 10, 10)
    assert distinct(student(x)) <= 4, "two bits"
    torch.testing.assert_close(student(x), form.reference()(x))
    advance(student, 3, 10)
    assert torch.equal(student(x), start)
    assert torch.equal(copy.deepcopy(student)(x), start)


def test_recurrent_and_tied_weights_follow() -> None:
    lstm = rhoc.compile(nn.LSTM(8, 8), spec(targets="LSTM")).trainable()
    advance(lstm, 0, 8)
    assert zeros(lstm.weight_ih_l0) == 0
    advance(lstm, 8, 8)
    assert zeros(lstm.weight_ih_l0) == 0.75
    tied = rhoc.compile(Tied(), spec(targets=["Linear", "Embedding"])).trainable()
    tokens = torch.arange(24)[None]
    advance(tied, 8, 8)
    end = tied(tokens)
    advance(tied, 0, 8)
    assert not torch.allclose(tied(tokens), end)
    torch.testing.assert_close(tied(tokens), latent_tied(tied, tokens))


def latent_tied(tied: nn.Module, tokens: Tensor) -> Tensor:
    """The model from its latent weights, as sparsity is zero at the start."""
    state = tied.state_dict()
    hidden = (state["hidden.weight"], state["hidden.bias"])
    h = F.linear(F.gelu(F.linear(F.embedding(tokens, state["embed.weight"]), *hidden)), *hidden)
    return F.linear(h, state["embed.weight"])


def test_a_rotation_that_is_folded_away_moves_the_positions() -> None:
    fields = ("weights.1.sparsity", "estimator.weights.0.p", "input_activations.1.num_bits")
    moved = [Schedule(field, 0.0).moved("weights", -1).field for field in fields]
    assert moved == ["weights.0.sparsity", *fields[1:]]
    with pytest.raises(RequestError, match=r"weights\.0\.block is scheduled, and the stage was folded"):
        Schedule("weights.0.block", 4).moved("weights", -1)


def test_only_filled_slots_have_schedules() -> None:
    schedule = Schedule("input_activations.0.num_bits", 8)
    given = Assignment(weight=Representation((Sparsify(0.5),)), schedules=(schedule,))
    assert given.scheduled("input_activations") == ()
    assert given.slots.held() == []
    assert given.slots.input_projection is None


def test_explain_says_what_changes() -> None:
    rows = rhoc.compile(mlp(), "gmp75").explain().parameters
    said = {row.path: row.reason for row in rows}
    assert "scheduled: weights.0.sparsity from 0 (cubic, 0.25 to 0.75 of training)" in said["0.weight"]
    assert "scheduled" not in said["0.bias"]
    powered = rhoc.compile(mlp(), "power90").explain().parameters[0]
    assert "trained as power(alpha=2); scheduled: weights.0.sparsity from 0" in powered.reason


SPARSE = {"kind": "sparsify", "sparsity": 0.75}


@pytest.mark.parametrize(
    ("weights", "changed", "where", "message", "hint"),
    [
        (
            SPARSE,
            {"field": "wieghts.0.sparsity"},
            "field",
            "begins with a slot, got 'wieghts.0.sparsity'",
            "slots: w",
        ),
        (
            SPARSE,
            {"field": "weights.sparsity"},
            "field",
            "'sparsity' is no position and option",
            "write 0.sparsity",
        ),
        (
            SPARSE,
            {"field": "weights.0.x.sparsity"},
            "field",
            "'0.x.sparsity' is no position",
            "write 0.sparsity",
        ),
        (
            SPARSE,
            {"field": "weights.-1.sparsity"},
            "field",
            "'-1.sparsity' is no position",
            "write 0.sparsity",
        ),
        (SPARSE, {"field": "weights.1.sparsity"}, "field", "there are 1 stages, counted from 0", ""),
        (SPARSE, {"field": "input_activations.0.num_bits"}, "field", "there are no stages", ""),
        (
            SPARSE,
            {"field": "weights.0.sparsty"},
            "field",
            "no number called 'sparsty'",
            "it has sparsity, vector",
        ),
        (SPARSE, {"field": "weights.0.granularity"}, "field", "no number called 'granularity'", "it has"),
        (SPARSE, {"field": "estimator.weights.0.p"}, "field", "ste has no number called 'p'", "it has none"),
        (
            SPARSE,
            {"start": 1.5},
            "start",
            r"through 0.sparsity 1.5: unstructured sparsity must be a fraction",
            "",
        ),
        (SPARSE, {"start": "all"}, "start", "start must be a number", ""),
        (SPARSE, {"begin": 0.8}, "end", "end 0.75 comes before the begin, 0.8", "exchange them"),
        (SPARSE, {"begin": -1}, "begin", "begin is a fraction of the run, got -1", ""),
        (SPARSE, {"every": 0}, "every", "at least 1, got 0", ""),
        (
            SPARSE,
            {"shape": "cubical"},
            "shape",
            "linear, cubic, cosine or step, got 'cubical'",
            "did you mean 'cubic'",
        ),
        (SPARSE, {"until": 1}, "until", "until", ""),
        (
            {"kind": "quantize", "num_bits": 4, "type": "float", "strategy": "channel"},
            {"field": "weights.0.num_bits", "start": 8},
            "start",
            "through 0.num_bits 7: ",
            "",
        ),
    ],
)
def test_what_is_wrong_has_a_line_and_a_hint(
    tmp_path: Any, weights: Any, changed: dict[str, Any], where: str, message: str, hint: str
) -> None:
    import re

    schedule = {**CUBIC, **changed}
    text = "version: 1\nrules:\n  - targets: Linear\n    weights: " + str(weights) + "\n    schedule:\n"
    text += "".join(f"      {key}: {value}\n" for key, value in schedule.items())
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(RhocError) as caught:
        load_spec(path)
    said = str(caught.value)
    assert re.search(message, said), said
    assert hint in said
    line = 1 + next(i for i, row in enumerate(text.splitlines()) if row.strip().startswith(f"{where}:"))
    assert f"wrong.yaml:{line}:" in said, said


def test_a_field_has_one_schedule() -> None:
    with pytest.raises(RhocError, match=r"0\.sparsity has two schedules"):
        load_spec(spec(schedule=[CUBIC, {**CUBIC, "start": 0.1}]))


def test_a_start_that_does_not_fit_a_weight_is_refused_when_compiled() -> None:
    weights = {"kind": "quantize", "num_bits": 4, "strategy": "channel"}
    fitting = spec([{"kind": "hadamard", "block": 8}, weights], {"field": "weights.0.block", "start": 8})
    rhoc.compile(mlp(), fitting)
    blocks = {"kind": "sparsify", "sparsity_structure": "2:4", "vector": 1}
    with pytest.raises(RhocError, match="schedule"):
        load_spec(spec(blocks, {"field": "weights.0.vector", "start": 3}))


def test_values_that_a_stage_refuses_are_one_clear_error() -> None:
    projection = Project(Representation((Sparsify(0.5),)), (), schedules=(Schedule("0.sparsity", 0.0),))
    projection.values.fill_(2.0)
    with pytest.raises(RequestError, match=r"must be a fraction between 0 and 1, got 2\.0"):
        projection(torch.randn(4, 4))


def test_specs_with_schedules_round_trip() -> None:
    for name in ("gmp75", "gmp75-banded", "power90"):
        loaded = load_spec(name)
        assert load_spec(loaded.to_document()) == loaded
        assert loaded.digest != load_spec("sparse75").digest
