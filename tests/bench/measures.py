"""What the coverage bench measures on one model. Each measure gives plain data for a row of the table."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from architectures import Case, noise
from by_hand import InputsByHand, decoded, with_decoded_weights
from torch import Tensor, nn

import rhoc
from rhoc.compiler.compile import Compiled
from rhoc.compiler.decide import Decision
from rhoc.compiler.example import Example
from rhoc.compiler.symbolic import symbolic
from rhoc.compiler.whole import tensors_in, whole_graph
from rhoc.passes.sites import sites
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

Row = dict[str, Any]
INPUTS = {"kind": "quantize", "num_bits": 8, "strategy": "token", "dynamic": True, "grid": "midrise"}
A8 = Representation((Quantize(8, strategy="token", dynamic=True, grid="midrise"),))
"""`INPUTS` as a representation. The largest values are levels, so that a rounding error decides nothing there."""
WEIGHTS = {"kind": "quantize", "num_bits": 4, "strategy": "channel"}


class Trial:
    """A model of a case with its calls. The model is built once and never changed."""

    def __init__(self, case: Case) -> None:
        self.case = case
        torch.manual_seed(0)
        self.model = case.build().eval()
        self.kwargs, self.other = case.example(), case.example(other=True)
        self._compiled: dict[bool, Compiled] = {}

    @property
    def calls(self) -> dict[str, dict[str, Any]]:
        """The example, other sizes, and without each optional argument, by name."""
        left_out = {
            f"without {name}": {k: v for k, v in self.kwargs.items() if k != name}
            for name in self.case.optional
        }
        return {"example": self.kwargs, "other sizes": self.other} | left_out

    def fresh(self) -> nn.Module:
        """The model built again, with the same numbers.

        A deep copy would share the class of a parametrized module; some models leave numbers uninitialised.
        """
        built = self.case.build().eval()
        built.load_state_dict(self.model.state_dict())
        return built

    def compiled(self, inputs: bool = True) -> Compiled:
        """The model under W4A8, or W4 alone."""
        if inputs not in self._compiled:
            self._compiled[inputs] = rhoc.compile(self.model, w4(self.model, inputs), self.kwargs)
        return self._compiled[inputs]


def w4(model: nn.Module, inputs: bool = True) -> dict[str, Any]:
    """Four bits for every weight; with `inputs`, eight for what they are multiplied by."""
    targets = ["re:.*"] + [type(model).__name__] * any(
        p is not None and p.dim() > 1 for p in model._parameters.values()
    )
    rule: dict[str, Any] = {"targets": targets, "weights": WEIGHTS}
    return {"version": 1, "rules": rule | ({"input_activations": INPUTS} if inputs else {})}


def run(model: nn.Module, kwargs: Mapping[str, Any], seed: int = 0) -> list[Tensor]:
    """The tensors of a model's output, from the same random numbers every time."""
    torch.manual_seed(seed)
    return tensors_in(model(**kwargs))


def difference(a: list[Tensor], b: list[Tensor]) -> float:
    """The largest difference of two outputs over the largest number; 0.0 when they are equal to the bit."""
    if len(a) != len(b) or any(x.shape != y.shape for x, y in zip(a, b, strict=True)):
        return float("inf")
    if all(torch.equal(x, y) or _equal_with_nan(x, y) for x, y in zip(a, b, strict=True)):
        return 0.0
    pairs = [(x.double(), y.double()) for x, y in zip(a, b, strict=True) if x.numel()]
    return max(float((x - y).abs().max() / y.abs().max().clamp(min=1e-30)) for x, y in pairs)


def _equal_with_nan(a: Tensor, b: Tensor) -> bool:
    return bool(torch.isclose(a, b, rtol=0, atol=0, equal_nan=True).all())


def compile_(trial: Trial) -> Row:
    """Whether it compiles, what became of each weight, and what was captured as graphs."""
    start = time.perf_counter()
    compiled = trial.compiled()
    seconds = time.perf_counter() - start
    rows = {row.path: row for row in compiled.explain().parameters}
    covered = {
        p for d in compiled.decisions for p in d.held.computed_from if not d.assignment.weight.is_dense
    }
    weights = [d for d in compiled.decisions if _is_weight(d)]
    dense = [d for d in weights if d.assignment.weight.is_dense and d.held.path not in covered]
    count = sum(d.held.tensor.numel() for d in weights)
    left = sum(d.held.tensor.numel() for d in dense)
    strategies: dict[str, int] = {}
    for fragment in compiled.captured.fragments:
        strategies[fragment.strategy] = strategies.get(fragment.strategy, 0) + 1
    return {
        "seconds": round(seconds, 2),
        "weights": count,
        "represented": round(1 - left / count, 4) if count else 1.0,
        "dense": [
            {"path": d.held.path, "shape": list(d.held.tensor.shape), "reason": rows[d.held.path].reason}
            for d in dense
        ],
        "remarks": sorted({r.reason for r in rows.values() if r.representation != "dense" and r.reason}),
        "graphs": strategies,
        "python": len(compiled.captured.refusals),
        "read by python": sum(len(reads) for reads in compiled.captured.reads.values()),
        "whole": any(not fragment.path for fragment in compiled.captured.fragments),
    }


def _is_weight(decision: Decision) -> bool:
    held = decision.held
    return held.tensor.is_floating_point() and held.tensor.dim() > 1 and not held.computed_from


def export(trial: Trial) -> Row:
    """The whole graph by torch.export, for the example alone."""
    model = trial.fresh()
    start = time.perf_counter()
    gm = whole_graph(model, Example((), trial.kwargs))
    seconds = round(time.perf_counter() - start, 2)
    if isinstance(gm, str):
        return {"reason": gm, "seconds": seconds}
    with torch.no_grad():
        result = gm(*Example((), trial.kwargs).tensors)
        row: Row = {
            "seconds": seconds,
            "nodes": len(gm.graph.nodes),
            "difference": difference(list(result), run(model, trial.kwargs)),
        }
    names = {site.path for site in sites(gm)}
    named = dict(model.named_parameters())
    weights = {name: p for name, p in named.items() if p.dim() > 1 and p.is_floating_point()}
    seen = sum(p.numel() for name, p in weights.items() if name in names)
    row["weights seen"] = round(seen / max(1, sum(p.numel() for p in weights.values())), 4)
    return row


def export_elsewhere(trial: Trial) -> Row:
    """The same graph at other sizes, unguarded. Last: recurrent kernels write beyond their memory there."""
    gm = whole_graph(trial.model, Example((), trial.kwargs))
    if isinstance(gm, str):
        return {"reason": gm}
    tensors = Example((), trial.other).tensors
    return {
        "other sizes": _difference_or_error(lambda: list(gm(*tensors)), lambda: run(trial.model, trial.other))
    }


class _TensorsOnly(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: dict[str, Any]) -> list[Tensor]:
        return tensors_in(self.model(**inputs))


def export_dynamic(trial: Trial) -> Row:
    """The whole graph by torch.export with every size dynamic that differs between the two calls."""
    model = trial.fresh()
    changing = {
        name: {
            i: torch.export.Dim.AUTO
            for i, (a, b) in enumerate(zip(value.shape, trial.other[name].shape, strict=True))
            if a != b
        }
        for name, value in trial.kwargs.items()
    }
    start = time.perf_counter()
    try:
        program = torch.export.export(
            _TensorsOnly(model), (dict(trial.kwargs),), dynamic_shapes=(changing,), strict=False
        )
        exported = program.module()
    except Exception as error:
        return {"reason": _line(error), "seconds": round(time.perf_counter() - start, 2)}
    row: Row = {"seconds": round(time.perf_counter() - start, 2)}
    for name, kwargs in trial.calls.items():
        row[name] = _difference_or_error(
            lambda kwargs=kwargs: list(exported(dict(kwargs))), lambda kwargs=kwargs: run(model, kwargs)
        )
    return row


def symbolic_trace(trial: Trial) -> Row:
    """The whole graph by symbolic tracing."""
    model = trial.fresh()
    start = time.perf_counter()
    graph = symbolic(model)
    seconds = round(time.perf_counter() - start, 2)
    if isinstance(graph, str):
        return {"reason": graph, "seconds": seconds}
    gm = torch.fx.GraphModule(model, graph)
    row: Row = {"seconds": seconds}
    for name, kwargs in trial.calls.items():
        row[name] = _difference_or_error(
            lambda kwargs=kwargs: run(gm, kwargs), lambda kwargs=kwargs: run(model, kwargs)
        )
    return row


def _difference_or_error(
    result: Callable[[], list[Tensor]], expected: Callable[[], list[Tensor]]
) -> float | str:
    with torch.no_grad():
        wanted = expected()
        try:
            return difference(result(), wanted)
        except Exception as error:
            return _line(error)


def dense(trial: Trial) -> Row:
    """Under the dense spec: bits of every call, a training step with dropout, a deep copy, state_dict."""
    model = trial.fresh()
    student = rhoc.compile(model, "dense", trial.kwargs).trainable().eval()
    row: Row = {"state_dict": _same_state(student, model)}
    with torch.no_grad():
        for name, kwargs in trial.calls.items():
            row[name] = difference(run(student, kwargs), run(model, kwargs))
        row["deepcopy"] = difference(run(copy.deepcopy(student), trial.kwargs), run(model, trial.kwargs))
    for each in (model, student):
        each.train()
        torch.manual_seed(1)
        loss_of(each, trial.kwargs).backward()
        torch.optim.SGD(each.parameters(), lr=0.01).step()
    row["after a step"] = difference(
        [t for t in student.state_dict().values() if isinstance(t, Tensor)],
        [t for t in model.state_dict().values() if isinstance(t, Tensor)],
    )
    return row


def _same_state(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return list(one) == list(two) and all(
        torch.equal(one[k], two[k]) for k in one if isinstance(one[k], Tensor)
    )


def loss_of(model: nn.Module, kwargs: Mapping[str, Any]) -> Tensor:
    """A loss that every number of the output has its own weight in."""
    total = torch.zeros(())
    for index, value in enumerate(run(model, kwargs, seed=1)):
        if value.is_floating_point():
            finite = torch.where(torch.isfinite(value), value, 0.0)
            total = total + (finite * noise(*value.shape, seed=index)).mean()
    return total


def training(trial: Trial) -> Row:
    """One step under W4A8: the loss changes, and every represented weight has a gradient and changes."""
    compiled = trial.compiled()
    student = compiled.trainable()
    row: Row = {"state_dict": _same_state(student, trial.model)}
    with torch.no_grad():
        before = loss_of(student.eval(), trial.kwargs)
    named = dict(student.named_parameters(remove_duplicate=False))
    plain = trial.fresh()
    for each in (student, plain):
        loss_of(each.train(), trial.kwargs).backward()
    originals = dict(plain.named_parameters(remove_duplicate=False))
    represented = [d for d in compiled.decisions if not d.assignment.weight.is_dense]
    idle: list[Row] = []
    for d in represented:
        idle += [
            {"path": path, "dense too": _no_gradient(originals[path])}
            for path in d.held.computed_from or d.held.paths[:1]
            if _no_gradient(named[path])
        ]
    projected = [_projection(d, named) for d in represented]
    groups = [{"params": [p], "lr": _rate(p)} for p in student.parameters() if not _no_gradient(p)]
    torch.optim.SGD(groups, lr=0.1).step()
    known = {entry["path"] for entry in idle}
    row["idle"] = idle
    row["unchanged"] = [
        d.held.path
        for d, was in zip(represented, projected, strict=True)
        if was is not None and d.held.path not in known and torch.equal(_projection(d, named), was)  # type: ignore[arg-type]
    ]
    with torch.no_grad():
        row["loss"] = [float(before), float(loss_of(student.eval(), trial.kwargs))]
    return row


def _no_gradient(parameter: nn.Parameter) -> bool:
    gradient = parameter.grad
    return gradient is None or not bool(
        (gradient.abs() > 1e-30).any()
    )  # a smaller one comes of a zero's scale


def _rate(parameter: nn.Parameter) -> float:
    """A rate at which the largest gradient moves a number by half of the largest number."""
    assert parameter.grad is not None
    rate = 0.5 * parameter.detach().abs().max().double().clamp(min=1e-3) / parameter.grad.abs().max()
    return float(rate.clamp(max=1e30))


def _projection(decision: Decision, named: Mapping[str, nn.Parameter]) -> Tensor | None:
    if decision.held.computed_from:
        return None
    return decoded(decision, named[decision.held.path].detach())


def forms(trial: Trial) -> Row:
    """Under W4A8, packed and reference against trainable in eval(), in float32 and where needed in float64."""
    row: Row = {"float32": _agreement(trial.compiled(), trial.calls)}
    if _largest(row["float32"]) > 1e-4:
        model, calls = _doubled(trial)
        row["float64"] = _agreement(rhoc.compile(model, w4(model), calls["example"]), calls)
    return row


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _agreement(compiled: Compiled, calls: Mapping[str, Mapping[str, Any]]) -> Row:
    student, packed, reference = compiled.trainable().eval(), compiled.packed(), compiled.reference()
    row: Row = {}
    with torch.no_grad():
        for name, kwargs in calls.items():
            wanted = run(student, kwargs)
            row[f"packed, {name}"] = difference(run(packed, kwargs), wanted)
            row[f"reference, {name}"] = difference(run(reference, kwargs), wanted)
    return row


def oracle(trial: Trial) -> Row:
    """Trainable against the user's own model compressed by hand: its weights, and then its inputs too.

    In float32 and where needed in float64, in which a rounding error seldom moves an input to another level.
    """
    row: Row = {
        "weights": compressed_by_hand(trial.fresh(), trial.compiled(inputs=False), trial.calls, False)
    }
    row["inputs"] = compressed_by_hand(trial.fresh(), trial.compiled(), trial.calls, True)
    if _largest(row["inputs"]) > 1e-4:
        model, calls = _doubled(trial)
        compiled = rhoc.compile(model, w4(model), calls["example"])
        row["inputs, float64"] = compressed_by_hand(trial.fresh().double(), compiled, calls, True)
    return row


def compressed_by_hand(
    model: nn.Module, compiled: Compiled, calls: Mapping[str, Mapping[str, Any]], inputs: bool
) -> Row:
    """Differences from a model that is compressed by hand, for each call, and how far that moves the example's."""
    student = compiled.trainable().eval()
    with torch.no_grad():
        example = calls["example"]
        before = run(model, example)
        weights = with_decoded_weights(model, compiled.decisions)
        decoded = run(model, example)
        by_hand = InputsByHand(weights, A8 if inputs else Representation())
        row: Row = {}
        for name, kwargs in calls.items():
            wanted = run(student, kwargs)
            with by_hand:
                row[name] = difference(run(model, kwargs), wanted)
        with by_hand:
            row["moved"] = difference(run(model, example), decoded if inputs else before)
    others = {path: sorted(names) for path, names in by_hand.others.items() if path not in by_hand.reached}
    return row | ({"inputs met": len(by_hand.reached), "inputs not met": others} if inputs else {})


def _doubled(trial: Trial) -> tuple[nn.Module, dict[str, dict[str, Any]]]:
    """The model and its calls in float64."""
    calls = {name: {k: _double(v) for k, v in kwargs.items()} for name, kwargs in trial.calls.items()}
    return trial.fresh().double(), calls


def _largest(row: Row) -> float:
    return max([v for k, v in row.items() if isinstance(v, float) and k != "moved"], default=0.0)


def _line(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:300]


MEASURES: dict[str, Callable[[Trial], Row]] = {
    "compile": compile_,
    "dense": dense,
    "training": training,
    "oracle": oracle,
    "forms": forms,
    "export": export,
    "export, dynamic": export_dynamic,
    "symbolic": symbolic_trace,
    "export, elsewhere": export_elsewhere,
}
