"""A budget in a spec: the best choice against all choices, what counts as taken, and what is said."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.runtime.errors import InvalidDocument, RequestError
from rhoc.runtime.llama import llama
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

OFFERED = {f"quantize(int{bits}, channel)": Representation((Quantize(bits, strategy="channel"),)) for bits in (2, 3, 4, 8)}  # fmt: skip
SIZES = ((16, 24), (24, 32), (32, 8), (8, 16))


def layers() -> nn.Sequential:
    """Four layers of different sizes and scales, with biases and a norm that stay dense."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in SIZES), nn.LayerNorm(16))
    with torch.no_grad():
        for position in range(4):
            model[position].weight.mul_(1 + 2 * position)  # type: ignore[union-attr, operator]
    return model


def spec(limit: object, *, measure: str = "weight_error", passes: Any = (), **rule: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "rules": {"targets": "Linear", "weights": "quantize(int3, channel)", **rule},
        "budget": {"limit": limit, "candidates": list(OFFERED), "measure": measure},
        "passes": list(passes),
    }


def chosen(compiled: Compiled) -> tuple[str, ...]:
    """What each weight became, in the order of the model."""
    return tuple(str(d.assignment.weight) for d in compiled.decisions if not d.assignment.weight.is_dense)


def brute_force(
    weights: list[Tensor], nbytes: int, errors: list[dict[str, float]]
) -> tuple[float, tuple[str, ...]]:
    """The least error of all 256 choices that fit."""
    best = (float("inf"), ())
    for names in itertools.product(OFFERED, repeat=len(weights)):
        taken = sum(
            OFFERED[name].nbytes(tuple(w.shape), w.dtype) for name, w in zip(names, weights, strict=True)
        )
        if taken <= nbytes:
            total = sum(row[name] for row, name in zip(errors, names, strict=True))
            best = min(best, (total, tuple(str(OFFERED[name]) for name in names)))  # type: ignore[assignment]
    return best


def weight_errors(weights: list[Tensor]) -> list[dict[str, float]]:
    return [
        {name: float((w.double() - r.project(w).double()).square().sum()) for name, r in OFFERED.items()}
        for w in weights
    ]


@pytest.mark.parametrize("bits", [2.5, 3.2, 3.8, 4.5, 5.5, 8.0, 12.0])
def test_bits_per_weight_are_spent_as_well_as_can_be(bits: float) -> None:
    model = layers()
    weights = [model[i].weight.detach() for i in range(4)]  # type: ignore[union-attr, operator]
    count = sum(w.numel() for w in weights)
    limit = int(bits * count / 8)
    if limit < sum(min(r.nbytes(tuple(w.shape), w.dtype) for r in OFFERED.values()) for w in weights):
        with pytest.raises(RequestError, match="bits"):
            rhoc.compile(model, spec(f"{bits} bits"))
        return
    compiled = rhoc.compile(model, spec(f"{bits} bits"))
    value, names = brute_force(weights, limit, weight_errors(weights))
    assert compiled.allocation is not None
    assert compiled.allocation.objective == pytest.approx(value, rel=1e-6)
    assert compiled.allocation.gap <= 1e-6
    assert chosen(compiled) == names
    assert compiled.allocation.nbytes <= limit


def test_a_limit_on_bytes_is_of_the_whole_model() -> None:
    model = layers()
    weights = [model[i].weight.detach() for i in range(4)]  # type: ignore[union-attr, operator]
    dense = sum(p.nbytes for name, p in model.named_parameters() if p.dim() == 1)
    for left in (1100, 1300, 1700):
        compiled = rhoc.compile(model, spec(f"{dense + left} bytes"))
        assert chosen(compiled) == brute_force(weights, left, weight_errors(weights))[1]
        assert compiled.explain().total_bytes <= dense + left
        stored = sum(t.nbytes for t in compiled.packed().state_dict().values())
        assert stored <= dense + left


def test_the_output_error_is_that_on_calibration_data() -> None:
    torch.manual_seed(1)
    model, batches = layers(), [(torch.randn(40, 16),) for _ in range(2)]
    with torch.no_grad():
        model[2].weight.mul_(1e-2)  # type: ignore[union-attr, operator]
        model[2].bias.mul_(1e-2)  # type: ignore[union-attr, operator]
    weights = [model[i].weight.detach() for i in range(4)]  # type: ignore[union-attr, operator]
    errors: list[dict[str, float]] = [dict.fromkeys(OFFERED, 0.0) for _ in weights]
    for (x,) in batches:
        for i, w in enumerate(weights):
            for name, r in OFFERED.items():
                errors[i][name] += float(F.linear(x, w - r.project(w)).double().square().sum()) / 80
            x = model[i](x).detach()
    another = 0
    for bits in (4, 6):
        wanted = spec(f"{bits} bits", measure="output_error")
        compiled = rhoc.compile(model, wanted, batches[0], calibration=batches)
        limit = sum(w.numel() for w in weights) * bits // 8
        value, names = brute_force(weights, limit, errors)
        assert compiled.allocation is not None
        assert compiled.allocation.objective == pytest.approx(value, rel=1e-3)
        assert chosen(compiled) == names
        another += names != chosen(rhoc.compile(model, spec(f"{bits} bits")))
    assert another


def test_the_example_of_the_model_itself_is_calibration_data_enough() -> None:
    torch.manual_seed(0)
    model = llama(16, vocabulary=32, context=16)
    compiled = rhoc.compile(model, spec("6 bits", measure="output_error", ignore="lm_head"))
    assert compiled.allocation is not None
    assert compiled.allocation.measure == "output error"
    assert compiled.allocation.bits_per_weight <= 6


REFUSED = {
    "too little": (spec("1.5 bits"), ("bits", "budget")),
    "too little beside the rest": (spec("900 bytes"), ("bytes", "budget")),
    "less than the rest": (
        spec("300 bytes"),
        (
            "budget: what no rule represents takes 448 bytes, and the budget is 300; represent more, or allow more",
        ),
    ),
    "nothing to look at": (
        spec("4 bits", measure="output_error"),
        ("budget: output_error is measured on inputs of the model; give example_inputs",),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_chosen_is_said_in_a_sentence(case: str) -> None:
    document, words = REFUSED[case]
    with pytest.raises(RequestError) as error:
        rhoc.compile(layers(), document)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert error.value.advice


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no unit": (
        {"limit": "12 potatoes", "candidates": "int4"},
        "budget.limit: 'potatoes' is no unit of a budget; write \"12 MB\"",
    ),
    "no candidates": ({"limit": "4 bits", "candidates": []}, "budget.candidates"),
    "no limit": ({"candidates": "int4"}, "budget: limit"),
    "measure": (
        {"limit": "4 bits", "candidates": "int4", "measure": "weight_eror"},
        "did you mean 'weight_error'?",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_budget(case: str) -> None:
    budget, message = WRONG[case]
    with pytest.raises(InvalidDocument) as error:
        rhoc.load_spec({"version": 1, "rules": {"targets": "Linear", "weights": "int4"}, "budget": budget})
    assert message in str(error.value)


def test_what_was_chosen_is_explained() -> None:
    compiled = rhoc.compile(layers(), spec(["4 bits", "1 MB"]))
    explanation = compiled.explain()
    document: Any = json.loads(json.dumps(explanation.to_document()))
    found = document["allocation"]
    assert found["status"] == "optimal"
    assert [row["path"] for row in found["choices"]] == [f"{i}.weight" for i in range(4)]
    rows = {row["path"]: row for row in document["parameters"]}
    for choice in found["choices"]:
        assert rows[choice["path"]]["representation"] == choice["representation"]
        assert "allocated within 4 bits, 1 MB" in rows[choice["path"]]["reason"]
    assert compiled.allocation is not None
    assert compiled.allocation.summary in str(explanation)


@pytest.mark.usefixtures("no_kernels")  # which sum in another order
def test_passes_and_a_budget_together() -> None:
    """Equalised before the choice, calibrated after it, with the representations that were chosen."""
    torch.manual_seed(0)
    model = llama(16, vocabulary=32, context=16)
    wanted = spec("6 bits", passes=["equalize", "calibrate"], ignore="lm_head")
    compiled = rhoc.compile(model, wanted)
    (exact, rounding) = compiled.transformed
    assert [step.name for step in exact.steps] == ["Assign", "RecordRanges", "Equalize"]
    assert [step.name for step in rounding.steps] == ["Assign", "GiveBatches", "Calibrate"]
    assert compiled.allocation is not None
    assert len(set(chosen(compiled))) > 1
    reference = compiled.reference()
    for decision in compiled.decisions:
        assignment = decision.assignment
        if assignment.weight.is_dense:
            continue
        assert assignment.weight == compiled.allocation.assignments[decision.held.path].weight
        assert assignment.code is not None
        assert torch.equal(
            assignment.weight.decode(assignment.code), reference.get_parameter(decision.held.path)
        )
    # the errors that were weighed are those of the equalised weights
    equalised = exact.root
    for choice in compiled.allocation.choices:
        w = equalised.get_parameter(choice.layer.path).detach()
        error = (w.double() - choice.candidate.assignment.weight.project(w).double()).square().sum()
        assert choice.value == pytest.approx(float(error), rel=1e-6)
    tokens = model.example_inputs[0]
    with torch.no_grad():
        assert torch.equal(compiled.packed()(tokens), reference(tokens))


def test_inputs_of_a_rule_stay_where_candidates_have_none() -> None:
    inputs = {"kind": "quantize", "num_bits": 8, "strategy": "token", "dynamic": True}
    compiled = rhoc.compile(layers(), spec("4 bits", input_activations=inputs))
    kept = Representation((Quantize(8, strategy="token", dynamic=True),))
    assert {d.assignment.input for d in compiled.decisions if not d.assignment.weight.is_dense} == {kept}


def test_a_limit_on_time_reads_a_table_of_latencies(tmp_path: Path) -> None:
    shapes = ("64x64", "192x64", "64x192")
    rows = [f"{name},{shape},{time}" for name, time in (("int2", 0.1), ("int8", 0.3)) for shape in shapes]
    table = tmp_path / "latency.csv"
    table.write_text("\n".join(["candidate,shape,milliseconds", *rows]))
    rule = {"targets": "Linear", "ignore": "lm_head", "weights": "int4"}
    budget = {"limit": "2.4 ms", "candidates": ["int2", "int8"], "latency": str(table)}
    spec = {"version": 1, "rules": rule, "budget": budget}
    result = rhoc.compile(llama(width=64), spec).allocation
    assert result is not None
    assert result.summary == "int2 9, int8 5"  # 14 layers: 1.4 ms, and each int8 takes .2 ms more
    for wrong in ({"limit": "2 ms"}, {"limit": "4 bits", "latency": str(table)}):
        with pytest.raises(InvalidDocument, match="a limit in milliseconds and a table of latencies"):
            rhoc.compile(llama(width=64), spec | {"budget": {"candidates": ["int2"]} | wrong})
