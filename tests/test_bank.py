"""Banks of input steps: a row for each sample, in every form, against a loop over samples in numpy."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import rhoc
from rhoc.runtime.bank import Bank, called_with, nearest_known
from rhoc.runtime.banked import BankedProject
from rhoc.runtime.errors import InvalidDocument, RequestError
from rhoc.runtime.estimators import Lsq, LsqPlus
from rhoc.runtime.load import load_packed
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = 6


class Timed(nn.Module):
    """Two layers; the scale of what the second one reads depends on the time."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Embedding(SIZE, 8)
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 3)
        with torch.no_grad():
            self.scale.weight.copy_(torch.exp(torch.arange(SIZE) - 3.0)[:, None].expand(-1, 8))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x)) * self.scale(t)
        return self.second(hidden) if hidden.dim() > 0 else hidden


class Guarded(Timed):
    """The same in code that no graph captures whole: its modules run as Python."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if float(x.abs().sum()) < 0:
            return x
        return super().forward(x, t)


def document(**changed: Any) -> dict[str, Any]:
    rule = {
        "targets": ["Linear"],
        "weights": {"kind": "quantize", "num_bits": 8, "strategy": "channel"},
        "input_activations": {"kind": "quantize", "num_bits": 4, "strategy": "tensor"},
        "estimator": {"weights": "ste", "input_activations": "lsq_plus"},
        "bank": {"index": "t", "size": SIZE},
    }
    return {"version": 1, "rules": rule | changed, "passes": ["calibrate_inputs"]}


def inputs(rows: list[int], each: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    t = torch.tensor(rows).repeat_interleave(each)
    return torch.randn(len(t), 4, generator=torch.Generator().manual_seed(seed)), t


def project(x: NDArray[np.float64], step: float, offset: float) -> NDArray[np.float64]:
    return np.asarray(np.clip(np.round((x - offset) / step), -8, 7) * step + offset)


@pytest.mark.parametrize("make", [Timed, Guarded])
def test_every_form_gathers_rows_by_sample(make: type[Timed], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make().eval()
    example = inputs(list(range(SIZE)))
    compiled = rhoc.compile(model, document(), example)
    x, t = inputs([5, 0, 3, 1, 1, 2, 4], each=3, seed=1)
    order = torch.randperm(len(t), generator=torch.Generator().manual_seed(2))
    x, t = x[order], t[order]
    student = compiled.trainable()
    if make is Guarded:  # no graph has the index, so that rows start with what is seen in training
        student.train()(*example)
    student.eval()
    compiled.save(tmp_path / "packed", student)
    forms = {
        "packed": compiled.packed(student),
        "reference": compiled.reference(student),
        "trainable": student,
        "copied": copy.deepcopy(compiled.packed(student)),
        "loaded": load_packed(tmp_path / "packed", make()),
    }
    state = dict(student.named_parameters())
    steps = {n: state[f"{n}.weight_input_step"].detach().double().numpy() for n in ("first", "second")}
    offsets = {n: state[f"{n}.weight_input_offset"].detach().double().numpy() for n in ("first", "second")}
    assert steps["first"].shape == (SIZE,)
    assert steps["second"][5] > 50 * steps["second"][0]
    weights = {
        n: forms["reference"].state_dict()[f"{n}.weight"].double().numpy() for n in ("first", "second")
    }
    expected = []
    for sample, row in zip(x.double().numpy(), t.tolist(), strict=True):
        hidden = weights["first"] @ project(sample, steps["first"][row], offsets["first"][row])
        hidden = np.maximum(hidden + model.first.bias.detach().double().numpy(), 0) * np.exp(row - 3.0)
        out = weights["second"] @ project(hidden, steps["second"][row], offsets["second"][row])
        expected.append(out + model.second.bias.detach().double().numpy())
    for name, form in forms.items():
        with torch.no_grad():
            found = form(x, t)
            alone = torch.cat([form(x[i : i + 1], t=t[i : i + 1]) for i in range(len(t))])
        near = np.isclose(found.double().numpy(), np.array(expected), rtol=1e-3, atol=1e-4).all(1)
        assert near.mean() > 0.9, name  # a hidden number on the edge of two levels may fall to the other side
        torch.testing.assert_close(alone, found, rtol=1e-3, atol=1e-3)
    explained = compiled.explain()
    plain = rhoc.compile(model, document(bank=None), example).explain()
    assert explained.total_bytes - plain.total_bytes == 2 * 2 * SIZE * 4
    assert "steps and offsets of its inputs by t, 6 of each: 48 bytes" in str(explained)


def test_rows_that_were_not_seen_take_the_nearest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    compiled = rhoc.compile(Timed().eval(), document(), inputs([1, 4]))
    student = compiled.trainable()
    steps = student.get_parameter("second.weight_input_step").detach()
    assert torch.equal(steps[[0, 2, 3, 5]], steps[[1, 1, 4, 4]])
    assert not torch.equal(steps[1], steps[4])
    assert any("for 2 of 6 values of its index" in row.reason for row in compiled.explain().parameters)
    assert nearest_known(torch.tensor([torch.nan, 1, torch.nan, torch.nan, 2.0])).tolist() == [1, 1, 1, 4, 4]


def test_without_calibration_rows_start_in_training() -> None:
    torch.manual_seed(0)
    student = rhoc.compile(Timed(), document() | {"passes": []}).trainable()
    steps = student.get_parameter("second.weight_input_step")
    assert bool(steps.isnan().all())
    student.eval()(*inputs([0, 1]))
    assert bool(steps.isnan().all())
    student.train()(*inputs([2, 5])).sum().backward()
    assert steps.isnan().tolist() == [True, True, False, True, True, False]
    assert steps.grad is not None
    assert steps.grad.ne(0).tolist() == [False, False, True, False, False, True]
    before = steps.detach().clone()
    student.train()(*inputs([2, 3], seed=9))
    assert torch.equal(steps[[2, 5]], before[[2, 5]])
    assert not bool(steps[3].isnan())


@pytest.mark.parametrize("estimator", [Lsq(), LsqPlus()])
def test_gradients_go_back_to_the_rows(estimator: Lsq | LsqPlus) -> None:
    """LSQ (1902.08153, Eq. 3) and LSQ+ (2004.09576, Eq. 4 and 5) for each sample alone, added up by row."""
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(9, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    t = torch.tensor([0, 2, 2, 1, 0, 2, 1, 1, 1])
    steps = nn.Parameter(torch.tensor([0.1, 0.3, 0.2], dtype=torch.float64))
    offsets = nn.Parameter(torch.tensor([0.0, 0.2, -0.1], dtype=torch.float64))
    given = (steps, offsets) if estimator.moves else (steps,)
    banked = BankedProject(Bank("t", 3), Representation((Quantize(4),)), (estimator,))
    with called_with(Timed(), ["t"], (None, t)):
        result = banked(x, *given)
    result.backward(upstream)
    data, grad = x.detach().numpy(), upstream.numpy()
    to_step, to_offset = np.zeros(3), np.zeros(3)
    for sample, own, row in zip(data, grad, t.tolist(), strict=True):
        b = float(offsets.detach()[row]) if estimator.moves else 0.0
        u = (sample - b) / float(steps.detach()[row])
        inside = (u > -8) & (u < 7)
        q = np.clip(np.round(u), -8, 7)
        factor = 1 / np.sqrt(5 * 7)
        to_step[row] += factor * (own * np.where(inside, q - u, q)).sum()
        to_offset[row] += factor * (own * ~inside).sum()
    assert steps.grad is not None
    np.testing.assert_allclose(steps.grad.numpy(), to_step, rtol=1e-10, atol=1e-12)
    if estimator.moves:
        assert offsets.grad is not None
        np.testing.assert_allclose(offsets.grad.numpy(), to_offset, rtol=1e-10, atol=1e-12)
    assert x.grad is not None
    assert 0 < float((x.grad == 0).double().mean()) < 1


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch, as it traces
@pytest.mark.parametrize("form", ["trainable", "packed", "loaded", "reference"])
def test_torch_compiles_a_bank_whole(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    compiled = rhoc.compile(Timed(), document(), inputs(list(range(SIZE))))
    compiled.save(tmp_path / "packed")
    model = load_packed(tmp_path / "packed", Timed()) if form == "loaded" else getattr(compiled, form)()
    torch._dynamo.reset()
    whole = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(form == "trainable"):
        for rows in ([5, 0, 3], [1, 1, 4]):  # the index is data: another one compiles nothing anew
            x, t = inputs(rows, each=3, seed=1)
            with torch.compiler.set_stance("fail_on_recompile" if rows[0] == 1 else "default"):
                found = whole(x, t)
            gradients = []
            for result in (found, model(x, t)) if form == "trainable" else ():
                model.zero_grad()
                result.square().sum().backward()
                gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
            torch.testing.assert_close(found, model(x, t), rtol=0, atol=0)
            if gradients:
                torch.testing.assert_close(*gradients)
                assert len(gradients[0]) == len(list(model.parameters()))
    with torch.no_grad():  # and what was told is forgotten, in a model that was not compiled too
        assert model(*inputs([2])).shape == (40, 3)


def test_a_forward_pass_changes_nothing_and_trained_rows_are_packed() -> None:
    torch.manual_seed(0)
    compiled = rhoc.compile(Timed(), document(), inputs(list(range(SIZE))))
    student = compiled.trainable()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    student.train()(*inputs([0, 3]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    for step in range(5):
        optimizer.zero_grad()
        student(*inputs(list(range(SIZE)), seed=step)).square().mean().backward()
        optimizer.step()
    x, t = inputs([5, 0, 3], seed=7)
    with torch.no_grad():
        expected = student.eval()(x, t)
        torch.testing.assert_close(compiled.reference(student)(x, t), expected, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(compiled.reference()(x, t), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: f(torch.zeros(3, 4), torch.tensor([0, 1])), "'t' has 2 numbers, and an input is [3, 4]"),
        (lambda f: f(torch.zeros(2, 4), torch.tensor([0, 6])), "'t' is 6, and the bank has rows 0 to 5"),
    ],
)
def test_an_index_that_does_not_fit(call: Any, message: str) -> None:
    packed = rhoc.compile(Timed(), document(), inputs([0, 1])).packed()
    with pytest.raises(RequestError) as raised:
        call(packed)
    assert message in str(raised.value)
    with torch.no_grad():  # and what was told is forgotten
        assert packed(*inputs([3])).shape == (40, 3)


def test_a_module_alone_does_not_know_the_index() -> None:
    compiled = rhoc.compile(Timed(), document(), inputs([0, 1]), whole=False)
    with pytest.raises(RequestError, match="inputs are quantised by 't', and nothing said what it is"):
        compiled.packed().first(torch.zeros(2, 4))


def test_the_model_must_have_the_argument() -> None:
    with pytest.raises(RequestError, match="the model's forward has no argument 'time'; it has x, t"):
        rhoc.compile(Timed(), document(bank={"index": "time", "size": 6}), inputs([0]))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {
                "estimator": "ste",
                "input_activations": {
                    "kind": "quantize",
                    "num_bits": 4,
                    "strategy": "tensor",
                    "dynamic": True,
                },
            },
            "a bank holds steps that are learned, and no estimator learns them",
        ),
        ({"bank": {"index": "t", "size": 0}}, "size 0 must be at least 1"),
        ({"bank": {"index": "a b", "size": 1}}, "index 'a b' is no name of an argument"),
        ({"input_activations": "dense"}, "a bank holds the steps of one grid, and dense is something else"),
    ],
)
def test_what_makes_no_sense_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidDocument) as raised:
        rhoc.load_spec(document(**changed))
    assert message in str(raised.value)


def test_a_spec_with_a_bank_round_trips() -> None:
    spec = rhoc.load_spec(document())
    assert rhoc.load_spec(spec.to_document()) == spec
    assert spec.digest != rhoc.load_spec(document(bank=None)).digest
