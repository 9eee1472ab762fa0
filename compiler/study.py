"""A sweep as a study: its runs, the law fitted to them, what the law says of held-back combinations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..runtime.environment import environment
from ..runtime.errors import RequestError
from ..runtime.laws.compose import compose
from ..runtime.laws.fit import fit
from ..runtime.laws.predict import Prediction, predict
from ..runtime.laws.result import Fit
from ..runtime.laws.runs import Runs
from .capacity import summarise
from .gaussian_errors import gaussian_error
from .law_files import load_law
from .packed_table import packed_table, stored_points
from .plots.data import Factor, FormatRow, PredictionRow, RunRow
from .plots.frontier import Frontier, frontier, thinned
from .questions.cost_model import cost_model
from .questions.plan import cases_of
from .report import ReportData
from .runs_csv import runs_from_rows
from .spec import Spec
from .sweep import Cell, Plan


@dataclass(frozen=True)
class HeldOut:
    """A held-back cell and what the law said of it before it was trained.

    `rule_interval` is the interval of the loss if the product rule is off by the largest error that was
    published for it; None where nothing is composed.
    """

    cell: Cell
    prediction: Prediction
    factors: tuple[Factor, ...]
    rule_interval: tuple[float, float] | None

    @property
    def measured(self) -> float | None:
        """The validation loss, once it is trained."""
        return self.cell.loss

    @property
    def hit(self) -> bool | None:
        """Whether the measured loss lies in the 95 % prediction interval."""
        interval = self.prediction.loss_interval
        if self.measured is None or interval is None:
            return None
        return interval[0] <= self.measured <= interval[1]

    @property
    def within_rule(self) -> bool:
        """Whether the published error of the product rule reaches to the measured loss."""
        ends = self.rule_interval
        return self.measured is not None and ends is not None and ends[0] <= self.measured <= ends[1]


def runs_of(cells: Sequence[Cell], label: str) -> Runs:
    """Finished runs of cells as a law takes them."""
    rows = [
        {**cell.finished.row(), "params": cell.params, "representation": cell.experiment.spec.name}
        for cell in cells
        if cell.state == "finished"
    ]
    return runs_from_rows(rows, label)


def fit_plan(plan: Plan, law: str = "decoupled", bootstraps: int = 1000) -> Fit:
    """The law fitted to the runs of a sweep that are not held out."""
    label = f"sweep {plan.grid.name} on {plan.cells[0].request['data']}"
    runs = runs_of([cell for cell in plan.cells if not cell.held_out], label)
    return fit(runs, load_law(law), bootstraps=bootstraps)


def predict_held_out(plan: Plan, fitted: Fit) -> tuple[HeldOut, ...]:
    """What the fit says of every held-back cell, from the multipliers of the specs it is composed of."""
    return tuple(_predict(cell, fitted) for cell in plan.cells if cell.held_out)


def _predict(cell: Cell, fitted: Fit) -> HeldOut:
    multipliers = [fitted.multiplier(name) for name in cell.factors]
    composition = compose(multipliers, cell.experiment.spec.name)
    prediction = predict(fitted, composition, cell.params, float(cell.tokens))
    factors = tuple(Factor(m.name, m.value, m.interval) for m in multipliers)
    return HeldOut(cell, prediction, factors, _rule_interval(cell, prediction, fitted))


def _rule_interval(cell: Cell, prediction: Prediction, fitted: Fit) -> tuple[float, float] | None:
    """The prediction interval, widened by what the product rule has been off by in rho."""
    ends, rho = prediction.loss_interval, prediction.composition.multiplier.value
    if len(cell.factors) < 2 or ends is None:
        return None
    off = prediction.composition.published_residual
    best = fitted.loss(cell.params, cell.tokens, rho + off)
    worst = fitted.loss(cell.params, cell.tokens, max(rho - off, 1e-3))
    return best - (prediction.loss - ends[0]), worst + (ends[1] - prediction.loss)


def format_row(spec: Spec) -> FormatRow:
    """A spec as a row of the report's table of formats."""
    row = summarise(spec)
    weights = spec.rules[0].weight_representation
    inputs = spec.rules[0].input_representation
    return FormatRow(
        name=spec.name, summary=spec.summary, representation=str(weights),
        bits_per_weight=row["bits_per_weight"], gmse=row["gmse"], gaussian_bits=row["gaussian_bits"],
        gmse_input=None if inputs.is_dense else gaussian_error(inputs, verify=False).value,
    )  # fmt: skip


def run_row(cell: Cell) -> RunRow:
    """A finished cell as a row of the report."""
    run = cell.finished
    result = run.result or {}
    return RunRow(
        id=run.id, representation=cell.experiment.spec.name, params=cell.params, tokens=int(run.tokens or 0),
        loss=float(run.loss or 0.0), seed=cell.experiment.settings.seed, seconds=run.seconds,
        train_curve=tuple(tuple(p) for p in result.get("train_curve", ())),
        eval_curve=tuple(tuple(p) for p in result.get("eval_curve", ())),
        held_out=cell.held_out,
    )  # fmt: skip


def prediction_row(held: HeldOut) -> PredictionRow:
    """A held-back cell as a row of the report."""
    prediction, multiplier = held.prediction, held.prediction.composition.multiplier
    return PredictionRow(
        representation=held.cell.experiment.spec.name, params=held.cell.params, tokens=int(prediction.tokens),
        predicted=prediction.loss, interval=prediction.loss_interval, measured=held.measured,
        rho=multiplier.value, rho_interval=multiplier.interval,
        rule=("product of " * (len(held.factors) > 1)) + " and ".join(f.representation for f in held.factors),
        factors=held.factors,
    )  # fmt: skip


def report_data(
    plan: Plan,
    fitted: Fit | None,
    held: Sequence[HeldOut],
    commands: Sequence[str],
    notes: Sequence[str] = (),
) -> ReportData:
    """Everything the report of a sweep shows. Gaussian errors are for laws, which are not fitted to runs that
    start from others; computing them takes minutes for many formats of one's own."""
    specs = {cell.experiment.spec.name: cell.experiment.spec for cell in plan.cells}
    corpus = plan.cells[0].request["data_digest"]
    return ReportData(
        question=plan.grid.question or f"What are the formats of sweep {plan.grid.name} worth?",
        formats=() if plan.grid.start is not None else tuple(format_row(spec) for spec in specs.values()),
        runs=tuple(run_row(cell) for cell in plan.done),
        fit=None if fitted is None else fitted.to_document(draws=False),
        predictions=tuple(prediction_row(h) for h in held),
        environment={**environment(), "corpus": f"{plan.cells[0].request['data']} {corpus}"},
        commands=tuple(commands),
        notes=tuple(notes),
        frontier=None if fitted is None else _frontier(fitted),
        stored=stored_points(packed_table(plan)) if plan.grid.packed else (),
        units=plan.units,
    )


def _frontier(fitted: Fit) -> Frontier | None:
    """The best sizes by budget, all products as fast as dense ones; None where the fit cannot tell."""
    try:
        cases, _ = cases_of((), cost_model("flops"), thinned(fitted), None)
        return frontier(cases)
    except RequestError:
        return None
