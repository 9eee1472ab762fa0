"""Passes over the whole model, as specs list them: values, forms, order, what is said, and what is caught."""

from __future__ import annotations

import copy
from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rhoc
from rhoc.compiler.capture import capture
from rhoc.compiler.compile import Compiled
from rhoc.compiler.example import Example
from rhoc.compiler.transform import complete, order, transform
from rhoc.passes.aten import Reads
from rhoc.passes.base import PipelineError
from rhoc.passes.equalize import Equalize
from rhoc.passes.fold_norms import FoldNorms
from rhoc.passes.norms import Norm
from rhoc.passes.reach import Reach
from rhoc.passes.rescale import Ledger
from rhoc.passes.scalable import Group
from rhoc.passes.turn import change_columns
from rhoc.runtime.errors import RequestError
from rhoc.runtime.llama import Llama, llama

from .folding import same, varied

INT4 = "quantize(int4, channel)"
TOKENS = torch.arange(24).reshape(2, 12)


def spec(
    *passes: object, weights: object = INT4, targets: object = "Linear", **more: object
) -> dict[str, Any]:
    rule = {"targets": targets, "weights": weights, "ignore": ["lm_head"] if targets == "Linear" else []}
    return {"version": 1, "rules": rule, "passes": list(passes), **more}


def decoder(seed: int = 0) -> Llama:
    torch.manual_seed(seed)
    model = llama(32, vocabulary=32, context=16).double()
    del model.layers[1]
    return varied(model)  # type: ignore[return-value]


def outputs(compiled: Compiled, *args: object, **kwargs: object) -> list[Tensor]:
    """Of the train form in eval(), the packed form and the reference form."""
    forms = (compiled.trainable().eval(), compiled.packed(), compiled.reference())
    with torch.no_grad():
        return [form(*args, **kwargs) for form in forms]


def agree(found: list[Tensor]) -> None:
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-9, atol=1e-9)


EXACT = {
    "fold_norms": ["fold_norms"],
    "rotations": [{"kind": "fold_rotations", "add": "hadamard"}],
    "equalize": ["equalize"],
    "aweq": [{"kind": "equalize", "rule": "aweq"}],
    "dilate": ["dilate"],
    "all": [{"kind": "fold_rotations", "add": "random", "seed": 3}, "equalize", "dilate"],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_the_model_computes_what_it_did_and_the_forms_agree(name: str, dtype: torch.dtype) -> None:
    model = decoder().to(dtype).train()
    before = copy.deepcopy(model.state_dict())
    compiled = rhoc.compile(model, spec(*EXACT[name]))
    root = compiled.captured.root.eval()
    with torch.no_grad():
        assert same(model(TOKENS), root(TOKENS))
    found = outputs(compiled, TOKENS)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=tolerance, atol=tolerance)
    assert list(root.state_dict()) == list(compiled.trainable().state_dict()) == list(before)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.training
    assert any(not torch.equal(before[key], value) for key, value in root.state_dict().items())


def test_dense_weights_make_the_model_again() -> None:
    model = decoder()
    compiled = rhoc.compile(model, spec("fold_norms", "dilate", weights="dense"))
    with torch.no_grad():
        for found in outputs(compiled, TOKENS):
            assert same(model(TOKENS), found)
    assert torch.all(compiled.reference().norm.weight == 1)  # type: ignore[union-attr]


def test_what_a_folded_rotation_leaves_is_what_it_was_online() -> None:
    """Where only readers of the stream are represented, and norms scale with ones, codes stay the same."""
    torch.manual_seed(0)
    model = llama(32, vocabulary=32, context=16).double()
    readers = "re:.*(q|k|v|gate|up)_proj"
    chain = f"hadamard(32) >> {INT4}"
    online = rhoc.compile(model, spec(weights=chain, targets=readers))
    folded = rhoc.compile(model, spec("fold_rotations", weights=chain, targets=readers))
    with torch.no_grad():
        expected, found = online.reference()(TOKENS), folded.reference()(TOKENS)
        assert same(expected, found)
        assert not same(model(TOKENS), found)
    rows = [row for row in folded.explain().parameters if row.path.endswith("q_proj.weight")]
    assert {row.representation for row in rows} == {"quantize(int4, twos, channel, absmax)"}
    assert all("folded into embed_tokens.weight" in row.reason for row in rows)


class Asking(nn.Module):
    """Optional and keyword arguments around a norm and what reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, scale: float | None = None
    ) -> dict[str, Tensor]:
        y = self.down(F.relu(self.up(self.norm(x))))
        if mask is not None:
            y = y * mask
        return {"hidden": x + (y if scale is None else y * scale)}


def test_arguments_by_keyword_and_other_calls_afterwards() -> None:
    torch.manual_seed(0)
    model, x = varied(Asking()).double(), torch.randn(3, 5, 16, dtype=torch.float64)
    mask = torch.rand(3, 5, 1, dtype=torch.float64)
    compiled = rhoc.compile(model, spec("fold_norms", "equalize"), {"x": x, "mask": mask, "scale": 0.5})
    root = compiled.captured.root.eval()
    calls: list[dict[str, Any]] = [{"x": x}, {"x": x[:1], "scale": 2.0}, {"x": x[0, 0], "mask": mask[0, 0]}]
    with torch.no_grad():
        for call in calls:
            assert same(model(**call)["hidden"], root(**call)["hidden"])
            forms = (compiled.trainable().eval(), compiled.packed(), compiled.reference())
            agree([form(**call)["hidden"] for form in forms])


def images(inplace: bool) -> nn.Module:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    return varied(nn.Sequential(*layers)).double()


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", ["fold_norms", "equalize", "dilate"])
def test_batch_norms_and_activations_in_place(name: str, inplace: bool) -> None:
    model, x = images(inplace), torch.randn(2, 3, 9, 9, dtype=torch.float64)
    compiled = rhoc.compile(model, spec(name, targets="Conv2d"), (x,))
    with torch.no_grad():
        assert same(model.eval()(x), compiled.captured.root.eval()(x))
        agree(outputs(compiled, x))
    after = dict(compiled.captured.root.named_parameters())
    assert any(
        not torch.equal(p, after[path]) for path, p in model.named_parameters() if path.endswith("weight")
    )
    assert list(compiled.trainable().state_dict()) == list(model.state_dict())
    (row,) = [row for row in compiled.explain().passes if row.name.lower() == name.replace("_", "")]
    assert row.changed
    assert row.reached


class Branch(nn.Module):
    """Two blocks and a head of its own, in a forward that asks for a value."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Asking(), Asking()
        self.blocks = nn.ModuleList([Asking()])
        self.head = nn.Parameter(torch.randn(8, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)["hidden"]
        if float(x.detach().abs().max()) > 1e3:
            y = self.second(y)["hidden"]
        return F.linear(self.blocks[0](y)["hidden"], self.head)


def test_a_model_without_a_graph_falls_back_to_those_of_its_parts() -> None:
    torch.manual_seed(0)
    model, x = varied(Branch()).double(), torch.randn(3, 16, dtype=torch.float64)
    batches = [(x,), (x * 1e4,), (x[:2],)]  # one on which another module is called, one of another shape
    wanted = spec("equalize", "calibrate", targets=["Linear", "Branch"])
    compiled = rhoc.compile(model, wanted, (x,), calibration=batches)
    (exact, rounding) = compiled.transformed
    assert {step.part for step in exact.steps} == {"first", "blocks.0"}
    assert [refusal.path for refusal in exact.refusals] == [""]
    with torch.no_grad():
        for call in (x, x * 1e4):
            assert same(model(call), exact.root.eval()(call))
    reasons = {row.path: row.reason for row in compiled.explain().parameters}
    assert "Equalize: its input divided by" in reasons["blocks.0.up.weight"]
    assert "Calibrate: gptq" in reasons["first.down.weight"]
    assert "Equalize: no graph reads it: torch.export failed" in reasons["head"]
    assert "Calibrate: no graph reads it: torch.export failed" in reasons["second.up.weight"]
    assert rounding.assignments["head"].code is None
    found = outputs(compiled, x)
    torch.testing.assert_close(found[1], found[2], rtol=1e-9, atol=1e-9)
    lines = [str(row) for row in compiled.explain().passes]
    assert "Equalize on first: changed the graph or its weights, 2 reached, 0 not" in lines


class Never(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) if float(x.detach().sum()) < 1e9 else x


REFUSED: dict[str, tuple[nn.Module, Any, str]] = {
    "no example": (
        nn.Sequential(nn.Linear(8, 8)),
        None,
        "Equalize looks across layers, and the graph for that is made with example inputs; give example_inputs",
    ),
    "no graph": (
        nn.Sequential(Never()),
        (torch.ones(2, 8),),
        "no part of the model gives a graph: the model: torch.export failed: ",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_passes_cannot_be_run_on(case: str) -> None:
    model, example, message = REFUSED[case]
    with pytest.raises(RequestError) as error:
        rhoc.compile(model, spec("equalize", targets="re:.*"), example)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_batches_of_another_shape_are_refused_in_a_sentence() -> None:
    model = decoder()
    for name in ("equalize", "calibrate"):
        with pytest.raises(RequestError) as error:
            rhoc.compile(model, spec(name), calibration=[(TOKENS[:, :8],)])
        assert str(error.value) == (
            "calibration batch 0 is int64[2, 8], the graph was made for int64[2, 16]; "
            "give batches of the shapes and dtypes of the example inputs"
        )


def test_the_order_of_the_list_does_not_matter() -> None:
    listed: tuple[Any, ...] = (
        {"kind": "fold_rotations", "add": "hadamard"},
        "equalize",
        "calibrate",
        "fold_norms",
    )
    model = decoder()
    expected: dict[str, Tensor] | None = None
    for shuffled in list(permutations(listed))[::8]:
        compiled = rhoc.compile(model, spec(*shuffled))
        names = [step.name for transformed in compiled.transformed for step in transformed.steps]
        kept = [name for name in names if name not in ("Assign", "GiveBatches")]
        assert kept == ["RaiseNorms", "FoldNorms", "FoldRotations", "RecordRanges", "Equalize", "Calibrate"]
        found = compiled.reference().state_dict()
        if expected is not None:
            assert all(torch.equal(found[key], expected[key]) for key in expected)
        expected = found


def test_ranges_are_recorded_of_what_folding_leaves() -> None:
    passes = complete((Equalize(), FoldNorms()), [(TOKENS,)])
    names = [each.name for each in order(passes).ordered()]
    assert names == ["Assign", "RaiseNorms", "FoldNorms", "RecordRanges", "Equalize"]


class WrongFold(FoldNorms):
    """Forgets the last of the weights that read a norm."""

    def readers(self, gm: Any, group: tuple[Norm, ...], reads: Reads) -> Any:
        found = super().readers(gm, group, reads)
        return found[:-1] if isinstance(found, list) and len(found) > 1 else found


class WrongColumns(FoldNorms):
    """Scales columns twice."""

    def fold(self, gm: Any, group: tuple[Norm, ...], reads: Reads) -> Reach:
        readers = self.readers(gm, group, reads)
        if not isinstance(readers, str):
            change_columns(gm, readers[0], lambda rows: rows * 2)
        return super().fold(gm, group, reads)


class WrongScales(Equalize):
    """Scales one channel of the readers and not of what makes it."""

    def scales(self, ledger: Ledger, group: Group) -> Tensor:
        found = super().scales(ledger, group)
        member = group.members[0]
        change_columns(
            ledger.gm, member.site, lambda rows: rows * torch.linspace(1, 2, rows.shape[-1]).to(rows)
        )
        return found


@pytest.mark.parametrize("wrong", [WrongFold(), WrongColumns(), WrongScales()], ids=lambda each: each.name)
def test_a_wrong_pass_is_caught_and_named(wrong: Any) -> None:
    model = decoder()
    captured = capture(model, Example((TOKENS,)))
    given = {d.held.path: d.assignment for d in rhoc.compile(model, spec()).decisions}
    with pytest.raises(
        PipelineError, match=rf"{wrong.name} declares keeps='values' but changed output 0"
    ) as error:
        transform(captured, given, (wrong,), Example((TOKENS,)))
    assert "largest difference" in str(error.value)


class Aside(nn.Module):
    """A norm before a layer, of which a copy is used except when it is traced."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.RMSNorm(16), nn.Linear(16, 16)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        self.kept = [self.linear.weight.detach().clone()]

    def forward(self, x: Tensor) -> Tensor:
        weight = self.linear.weight if torch.compiler.is_compiling() else self.kept[0]
        return F.linear(self.norm(x), weight, self.linear.bias)


def test_a_parameter_that_is_read_unseen_is_caught_and_named() -> None:
    torch.manual_seed(0)
    with pytest.raises(PipelineError) as error:
        rhoc.compile(Aside(), spec("fold_norms"), (torch.randn(2, 16),))
    message = str(error.value)
    assert message.startswith(
        "after FoldNorms the model gives another output 0 than before (largest difference "
    )
    assert message.endswith("though its graph does not: something reads a changed parameter unseen")


def test_training_goes_on_after_passes() -> None:
    model = decoder().float()
    compiled = rhoc.compile(model, spec("fold_norms", "equalize"))
    student = compiled.trainable()
    loss = F.cross_entropy(student(TOKENS[:, :-1]).flatten(0, 1), TOKENS[:, 1:].flatten())
    loss.backward()
    gradients = {name: p.grad for name, p in student.named_parameters()}
    assert all(g is not None and bool(g.abs().sum() > 0) for g in gradients.values())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter -= 0.01 * parameter.grad
        packed, reference = compiled.packed(student), compiled.reference(student)
        torch.testing.assert_close(packed(TOKENS), reference(TOKENS), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(student.eval()(TOKENS), reference(TOKENS), rtol=1e-4, atol=1e-4)


def test_what_was_done_is_in_the_report() -> None:
    compiled = rhoc.compile(decoder(), spec("fold_norms", "equalize"))
    document = compiled.explain().to_document()
    rows: Any = document["passes"]
    assert [row["name"] for row in rows] == ["Assign", "RaiseNorms", "FoldNorms", "RecordRanges", "Equalize"]
    assert {row["part"] for row in rows} == {""}
    (fold,) = [row for row in rows if row["name"] == "FoldNorms"]
    assert (fold["changed"], fold["reached"], fold["missed"]) == (True, 3, 0)
    (before, after) = [compiled.shown(name)[0] for name in ("fold_norms", "equalize")]
    assert "rms_norm.default(%1, [32], layers.0.input_layernorm.weight" in before.listing
    assert after.before == before.listing
    assert "FoldNorms on the model: changed the graph or its weights, 3 reached, 0 not" in str(
        compiled.explain()
    )
