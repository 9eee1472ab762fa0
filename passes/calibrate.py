"""Fit represented weights to what they are multiplied with, one after the other, on calibration batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, fx

from ..runtime.calibration import (
    FITTERS,
    Fitted,
    Fitter,
    Gram,
    GramAccumulator,
    RoundToNearest,
    why_no_output_scales,
    with_output_scales,
)
from ..runtime.projection import project_along
from .assignment import Assignment, assign, assigned
from .base import Broken, Fact, Keeps, Pass
from .facts import ASSIGNED
from .give_batches import BATCHES, batches_of
from .input_rows import input_rows, why_no_rows
from .reach import Reach, note
from .sites import Site, parameter_of, sites

Method = Literal["auto", "round_to_nearest", "gptq", "sparse_gptq", "awq", "low_rank"]
_AUTO = ("sparse_gptq", "low_rank", "gptq")


def _calibrated(gm: fx.GraphModule) -> None:
    """Every represented weight that an operation reads has a code."""
    for site in sites(gm):
        assignment = assigned(site.weight)
        if assignment is not None and not assignment.weight.is_dense and assignment.code is None:
            raise Broken("this weight has no code", at=f"%{site.node.name} ({site.path})")


CALIBRATED = Fact("calibrated", _calibrated)


@dataclass(frozen=True)
class Calibrate(Pass):
    """Choose the code of every represented weight so that its outputs on calibration data are near the dense
    ones.

    Layers are taken in the order of the graph, each fitted to inputs that the layers before it give as they
    are represented. Memory holds one layer's statistics and the activations that are still to be used.

    `method` is how: `gptq`, `sparse_gptq` for a chain that prunes first, `low_rank` for a sum with factors,
    `awq`, `round_to_nearest`; `auto` takes the first of the first three that can fit a representation.
    Weights that a method cannot fit, or makes worse, are rounded to nearest, and the report says why.
    `damping` is added to the diagonal of the second moments, as a share of its mean.
    `scales` says what scales are: as `observers` find them in the weights, or, once codes are chosen, the
    least squares of the errors of `outputs`, where a chain ends in a symmetric grid.
    """

    method: Method = "auto"
    damping: float = 0.01
    scales: Literal["observers", "outputs"] = "observers"
    kind: Literal["calibrate"] = "calibrate"

    requires: ClassVar[frozenset[Fact]] = frozenset({ASSIGNED, BATCHES})
    establishes: ClassVar[frozenset[Fact]] = frozenset({CALIBRATED})
    keeps: ClassVar[Keeps] = "shapes"

    def __post_init__(self) -> None:
        known = {fitter.kind for fitter in FITTERS} | {"auto"}
        if self.method not in known:
            raise ValueError(f"method is {self.method!r}; use one of {', '.join(sorted(known))}")
        if not 0 <= self.damping < 1:
            raise ValueError(f"damping {self.damping} is not from 0 to 1; 0.01 is usual")

    def rewrite(self, gm: fx.GraphModule) -> bool:
        run = _Run(gm, [_Values(gm, batch) for batch in batches_of(gm)], self)
        with torch.no_grad():
            for node in gm.graph.nodes:
                run.step(node)
        note(gm, self.name, run.reached)
        return bool(run.reached)

    def fitter(self, assignment: Assignment) -> tuple[Fitter, str]:
        """What fits a representation, and why it is not the method that was asked for."""
        why = ""
        for kind in _AUTO if self.method == "auto" else (self.method,):
            made = next(each for each in FITTERS if each.kind == kind)
            fitter = made() if made is RoundToNearest else made(damping=self.damping)  # type: ignore[call-arg]
            try:
                fitter.check(assignment.weight)
            except ValueError as error:
                why = str(error)
                continue
            return fitter, ""
        return RoundToNearest(), why


class _Values(fx.Interpreter):
    """One batch on its way through the graph: the value of every node that is still to be used."""

    def __init__(self, gm: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        super().__init__(gm)
        self.args_iter = iter(inputs)

    def given(self, value: Any) -> Any:
        return fx.node.map_arg(value, self.env.__getitem__)

    def forget(self, node: fx.Node) -> None:
        for used in self.user_to_last_uses.get(node, []):
            self.env.pop(used, None)


@dataclass
class _Run:
    gm: fx.GraphModule
    values: list[_Values]
    options: Calibrate
    reached: list[Reach] = field(default_factory=list)
    fitted: dict[fx.Node, Tensor] = field(default_factory=dict)
    grams: dict[Any, Gram | list[Gram]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.sites = {site.node: site for site in sites(self.gm)}

    def step(self, node: fx.Node) -> None:
        site = self.sites.get(node)
        assignment = assigned(site.weight) if site is not None else None
        if site is None or assignment is None or assignment.is_dense:
            for values in self.values:
                values.env[node] = values.run_node(node)
        else:
            if not assignment.weight.is_dense and site.weight not in self.fitted:
                self._fit(site, assignment)
            for values in self.values:
                values.env[node] = self._output(site, assignment, values)
        for values in self.values:
            values.forget(node)

    def _input(self, site: Site, assignment: Assignment, values: _Values) -> Tensor | None:
        """The input as the represented operation takes it."""
        if site.source is None:
            return None
        x: Tensor = values.env[site.source]
        rank = len(self._shape(site))
        return project_along(x, site.operation.channel_of(rank), assignment.input, ())

    def _output(self, site: Site, assignment: Assignment, values: _Values) -> Any:
        """What the represented operation gives."""
        given = list(site.node.args)
        operands = [values.given(a) for a in given]
        if site.operation.input is not None:
            operands[site.operation.input] = self._input(site, assignment, values)
        if site.weight in self.fitted:
            operands[site.operation.weight] = self.fitted[site.weight]
        function: Any = site.node.target
        result = function(*operands, **values.given(site.node.kwargs))
        if assignment.output_names:
            return result  # its tables are not trained yet
        rank = len(self._shape(site))
        return project_along(result, site.operation.features_of(rank), assignment.output, ())

    def _shape(self, site: Site) -> tuple[int, ...]:
        parameter = parameter_of(self.gm, site.weight)
        return () if parameter is None else tuple(parameter.shape)

    def _fit(self, site: Site, assignment: Assignment) -> None:
        parameter = parameter_of(self.gm, site.weight)
        assert parameter is not None
        shape = tuple(parameter.shape)
        matrix = assignment.arrangement.matrix(parameter.detach())
        fitter, why = self.options.fitter(assignment)
        refusal = why_no_rows(site, shape) or _another_arrangement(site, assignment, shape)
        if refusal is not None:
            code = assignment.weight.encode(matrix)
            decoded, what = assignment.weight.decode(code), f"rounded to nearest: {refusal}"
        else:
            gram = self._gram(site, assignment, shape)
            plain = RoundToNearest().fit(matrix, assignment.weight, gram)
            best = (
                plain if isinstance(fitter, RoundToNearest) else fitter.fit(matrix, assignment.weight, gram)
            )
            best, plain = (self._rescaled(matrix, fitted, gram) for fitted in (best, plain))
            if best.error > plain.error:
                why, best = f"{fitter.kind} gives {best.error:.3g}", plain
            code, decoded, what = best.code, best.weight, _said(fitter, best, plain, why)
        self.fitted[site.weight] = assignment.arrangement.restore(decoded, shape)
        assign(site.weight, replace(assignment, code=code))
        self.reached.append(Reach(site.path, refusal is None and not why, what))

    def _rescaled(self, matrix: Tensor, fitted: Fitted, gram: Gram | list[Gram]) -> Fitted:
        """What was fitted, with scales as the options say."""
        if self.options.scales == "observers" or why_no_output_scales(fitted.representation):
            return fitted
        return with_output_scales(matrix, fitted, gram)

    def _gram(self, site: Site, assignment: Assignment, shape: tuple[int, ...]) -> Gram | list[Gram]:
        """Statistics of the represented inputs, once for operations that share them."""
        key = (site.source, assignment.input, shape[1:])
        if key not in self.grams:
            self.grams = {key: self._measured(site, assignment, shape)}  # only neighbours share
        return self.grams[key]

    def _measured(self, site: Site, assignment: Assignment, shape: tuple[int, ...]) -> Gram | list[Gram]:
        rows = (
            input_rows(site, x, shape)
            for v in self.values
            if (x := self._input(site, assignment, v)) is not None
        )
        accumulators: list[GramAccumulator] = []
        for each in rows:
            pieces = each.flatten(0, -3) if each.dim() > 2 else each.unsqueeze(0)
            if not accumulators:
                accumulators = [GramAccumulator(each.shape[-1], device=each.device) for _ in pieces]
            for accumulator, piece in zip(accumulators, pieces, strict=True):
                accumulator.add(piece)
        found = [accumulator.result() for accumulator in accumulators]
        return found[0] if len(shape) <= 2 or len(found) == 1 else found


def _another_arrangement(site: Site, assignment: Assignment, shape: tuple[int, ...]) -> str | None:
    if site.arrangement(shape) == assignment.arrangement:
        return None
    return "another operation on this weight sums over something else"


def _said(fitter: Fitter, best: Fitted, plain: Fitted, why: str) -> str:
    if why:
        return f"rounded to nearest, output error {best.error:.3g}: {why}"
    if isinstance(fitter, RoundToNearest):
        return f"output error {best.error:.3g}"
    return f"{fitter.kind}: output error {best.error:.3g}, rounded to nearest {plain.error:.3g}"
