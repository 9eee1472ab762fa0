"""Constants of rules from tables, and how rules do on what their constants were not learned from.

Every table counts the same, whatever its number of cells. Nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..runs import Array
from .evidence import Evidence
from .rules import OTHER, Rule, pair_name
from .search import minimise
from .settled import Residual, Settled


@dataclass(frozen=True)
class Trial:
    """Errors |predicted - measured| of a rule in one table, with the constants that predicted."""

    rule: Rule
    table: str
    errors: Array

    @property
    def largest(self) -> float:
        """The largest error."""
        return float(self.errors.max())

    @property
    def mean(self) -> float:
        """The mean error."""
        return float(self.errors.mean())


def settle(rule: Rule, evidence: Sequence[Evidence], source: str = "") -> Settled:
    """The rule with the constants of least mean squared error in rho, the mean over tables; no residuals yet.

    A rule per pair has for pairs without a table the constant that all tables together want.
    """
    if rule.per == "nothing":
        return Settled(rule, source)
    if rule.per != "pair":
        return Settled(rule, source, _learn(rule, rule.constants, evidence))
    common = _best(Rule(rule.name, rule.generator, "all"), evidence)
    found = {name: common for name in rule.constants}
    for pair in dict.fromkeys(pair_name(table.families) for table in evidence):
        own = [table for table in evidence if pair_name(table.families) == pair]
        found[pair] = _best(Rule(rule.name, rule.generator, "all"), own)
    return Settled(rule, source, found)


def evaluate(settled: Settled, table: Evidence) -> Trial:
    """The errors of a rule in a table."""
    predicted = settled.combine(table.parts, table.families)
    return Trial(settled.rule, table.name, np.abs(predicted - table.measured))


def leave_one_table_out(rule: Rule, evidence: Sequence[Evidence]) -> tuple[Trial, ...]:
    """The errors in each table with constants learned from the others."""
    return tuple(
        evaluate(settle(rule, [other for other in evidence if other is not table]), table)
        for table in evidence
    )


def leave_one_line_out(rule: Rule, table: Evidence) -> Trial:
    """The errors in each row and each column with constants learned from the rest of the same table."""
    errors = [evaluate(settle(rule, [rest]), line).errors for rest, line in table.split_by_line()]
    return Trial(rule, table.name, np.concatenate(errors))


def with_residuals(settled: Settled, evidence: Sequence[Evidence]) -> Settled:
    """The rule with its errors in tables left out."""
    trials = leave_one_table_out(settled.rule, evidence)
    residuals = tuple(
        Residual(" x ".join(table.families), trial.table, round(trial.largest, 4))
        for table, trial in zip(evidence, trials, strict=True)
    )
    return Settled(settled.rule, settled.source, settled.constants, residuals)


def standings(rules: Sequence[Rule], evidence: Sequence[Evidence]) -> list[tuple[Trial, ...]]:
    """Trials of rules in tables left out, the best first: by the mean over tables of the largest error."""
    trials = [leave_one_table_out(rule, evidence) for rule in rules]
    return sorted(trials, key=_score)


def choose(rules: Sequence[Rule], evidence: Sequence[Evidence]) -> tuple[Trial, ...]:
    """What choosing a rule by its standing is itself worth: each table by the rule that wins on the others.

    The winner is found, and its constants learned, without the table that it then predicts.
    """
    found = []
    for table in evidence:
        others = [other for other in evidence if other is not table]
        winner = standings(rules, others)[0][0].rule
        found.append(evaluate(settle(winner, others), table))
    return tuple(found)


def _score(trials: Sequence[Trial]) -> tuple[float, float]:
    largest = round(float(np.mean([trial.largest for trial in trials])), 6)
    return largest, float(np.mean([trial.mean for trial in trials]))


def _best(rule: Rule, evidence: Sequence[Evidence]) -> float:
    return _learn(rule, (OTHER,), evidence)[OTHER]


def _learn(rule: Rule, names: Sequence[str], evidence: Sequence[Evidence]) -> dict[str, float]:
    def objective(points: Array) -> Array:
        constants = {name: points[:, i, None] for i, name in enumerate(names)}
        total = np.zeros(len(points))
        for table in evidence:
            strength = rule.strength(constants, table.families)
            predicted = rule.combine(table.parts[:, None, :], strength)
            total += np.square(predicted - table.measured).mean(axis=1)
        return total

    found = minimise(objective, [(0.0, rule.generator.most)] * len(names))
    return dict(zip(names, found.tolist(), strict=True))
