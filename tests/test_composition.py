"""Rules of composition: what each says, constants from tables, errors in tables left out, and held-out runs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import yaml
from scipy.optimize import minimize

from rhoc import specs
from rhoc.compiler.composite_error import composite_errors, quest_formats_left_out
from rhoc.compiler.composition import DEFAULT, TABLES, composed, evidence, quest_evidence, settled_rule
from rhoc.compiler.runs_csv import read_runs
from rhoc.runtime.errors import RequestError
from rhoc.runtime.laws import find_law
from rhoc.runtime.laws.compose import compose
from rhoc.runtime.laws.composition import (
    PRODUCT,
    RULES,
    Rule,
    choose,
    find_rule,
    leave_one_line_out,
    leave_one_table_out,
    settle,
    standings,
)
from rhoc.runtime.laws.composition.curve import Curve, fit_curve, leave_one_error_out
from rhoc.runtime.laws.composition.held_out import composition_test
from rhoc.runtime.laws.composition.search import minimise
from rhoc.runtime.laws.composition.trial import evaluate
from rhoc.runtime.laws.multiplier import Multiplier, Origin

from .public_runs import public_runs

PAIRS = np.array([[0.05, 0.3, 0.6, 0.9, 0.99], [0.4, 0.3, 0.95, 0.2, 0.99]])
STRENGTHS = (0.1, 0.5, 0.9)
WITH_STRENGTH = [rule for rule in RULES if rule.per == "all"]
ORIGIN = Origin("a fit", "decoupled", {"alpha": 0.1}, "parameters", "runs")


def by_definition(name: str, a: float, b: float, k: float) -> float:
    """The rule for two parts, from its equation as textbooks on copulas print it."""
    if name == "norm":
        p = 1 + k
        return float(np.exp(-(((-np.log(a)) ** p + (-np.log(b)) ** p) ** (1 / p))))
    if name == "excess":
        return float((a**-k + b**-k - 1) ** (-1 / k))
    if name == "overlap":
        return a * b / (1 - k * (1 - a) * (1 - b))
    if name == "frank":
        return float(-np.log(1 + (np.exp(-k * a) - 1) * (np.exp(-k * b) - 1) / (np.exp(-k) - 1)) / k)
    t = 1 + k
    return float(1 - ((1 - a) ** t + (1 - b) ** t - ((1 - a) * (1 - b)) ** t) ** (1 / t))


def combine(rule: Rule, parts: np.ndarray, strength: float) -> np.ndarray:
    return rule.combine(parts, np.asarray(strength))


def multiplier(name: str, value: float, draws: np.ndarray | None = None) -> Multiplier:
    return Multiplier(name, value, ORIGIN, draws=np.empty(0) if draws is None else draws)


class TestRules:
    @pytest.mark.parametrize("rule", WITH_STRENGTH, ids=lambda rule: rule.name)
    @pytest.mark.parametrize("k", STRENGTHS)
    def test_two_parts_follow_the_equation(self, rule: Rule, k: float) -> None:
        expected = [by_definition(rule.name, a, b, k) for a, b in PAIRS.T]
        np.testing.assert_allclose(combine(rule, PAIRS, k), expected, rtol=1e-9)

    @pytest.mark.parametrize("rule", WITH_STRENGTH, ids=lambda rule: rule.name)
    def test_without_strength_it_is_the_product(self, rule: Rule) -> None:
        np.testing.assert_allclose(combine(rule, PAIRS, 0.0), PAIRS.prod(axis=0), rtol=1e-5)

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
    def test_between_the_product_and_the_smaller_part(self, rule: Rule) -> None:
        found = combine(rule, PAIRS, rule.generator.most / 2)
        assert (found >= PAIRS.prod(axis=0) - 1e-12).all()
        assert (found <= PAIRS.min(axis=0) + 1e-12).all()

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
    def test_order_and_grouping_do_not_matter(self, rule: Rule) -> None:
        parts, k = np.array([[0.8], [0.3], [0.6]]), rule.generator.most / 2
        together = combine(rule, parts, k)
        np.testing.assert_allclose(combine(rule, parts[::-1], k), together)
        first = combine(rule, parts[:2], k)
        np.testing.assert_allclose(combine(rule, np.stack([first, parts[2]]), k), together)

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
    def test_dense_changes_nothing_and_more_than_dense_multiplies(self, rule: Rule) -> None:
        k = rule.generator.most / 2
        np.testing.assert_allclose(combine(rule, np.array([[0.4], [1.0]]), k), 0.4)
        np.testing.assert_allclose(combine(rule, np.array([[0.4], [1.02]]), k), 0.4 * 1.02)

    def test_at_full_strength_damages_of_overlap_add(self) -> None:
        found = combine(find_rule("overlap"), np.array([[0.5], [0.25]]), 1 - 1e-9)
        np.testing.assert_allclose(1 / found - 1, 1 + 3, rtol=1e-7)

    def test_an_unknown_rule_is_refused_with_the_nearest(self) -> None:
        with pytest.raises(RequestError, match="no rule of composition is called 'overlpa'") as caught:
            find_rule("overlpa")
        assert "did you mean 'overlap'?" in caught.value.advice

    def test_a_rule_by_family_asks_for_families(self) -> None:
        with pytest.raises(
            RequestError, match="the overlap by family rule composes by family, and no families"
        ):
            composed([multiplier("int4", 0.8), multiplier("sparse50", 0.7)])


class TestEvidence:
    def test_the_cells_are_those_of_the_files(self) -> None:
        for table, name in zip(evidence(), TABLES.values(), strict=True):
            (file,) = [f for f in specs.published() if f.name == f"{name}.yaml"]
            raw = yaml.safe_load(file.read_text(encoding="utf-8"))["table"]
            values = np.array(raw["values"])
            i, j = table.lines
            np.testing.assert_array_equal(values[i, j], table.measured)
            dense = [
                raw["row_values"].index(raw["baseline"][0]),
                raw["column_values"].index(raw["baseline"][1]),
            ]
            np.testing.assert_array_equal(values[i, dense[1]], table.parts[0])
            np.testing.assert_array_equal(values[dense[0], j], table.parts[1])
            assert len(i) == (values.shape[0] - 1) * (values.shape[1] - 1)

    def test_families(self) -> None:
        assert [table.families for table in evidence()] == [
            ("scalar", "scalar"), ("scalar", "sparse"), ("sparse", "scalar"), ("sparse", "sparse"),
        ]  # fmt: skip

    def test_no_rule_below_the_smaller_part_reaches_half_of_the_products_error_in_two_tables(self) -> None:
        least = {table.name: table.least_error for table in evidence()}
        assert least == pytest.approx({"Fig. 6": 0, "Fig. 7": 0.06, "Fig. 9": 0.09, "Fig. 2b": 0})

    def test_every_line_is_left_out_once(self) -> None:
        table = evidence()[0]
        splits = list(table.split_by_line())
        assert len(splits) == 8
        for rest, line in splits:
            assert len(rest.measured) + len(line.measured) == 16
            assert len(line.measured) == 4


class TestTrials:
    def test_constants_are_those_of_a_general_optimiser(self) -> None:
        def objective(x: np.ndarray) -> float:
            total = 0.0
            for table in evidence():
                k = np.mean([x[("sparse", "scalar").index(family)] for family in table.families])
                found = [by_definition("overlap", a, b, float(k)) for a, b in table.parts.T]
                total += float(np.square(np.array(found) - table.measured).mean())
            return total

        best = minimize(objective, [0.5, 0.5], method="Nelder-Mead", options={"xatol": 1e-7, "fatol": 1e-14})
        found = settle(find_rule("overlap by family"), evidence()).constants
        assert [found["sparse"], found["scalar"]] == pytest.approx(best.x, abs=1e-4)

    def test_planted_constants_are_found_in_tables_left_out(self) -> None:
        rule = find_rule("norm by family")
        planted = replace(settle(rule, evidence()), constants={"sparse": 0.3, "scalar": 1.2})
        tables = [replace(t, measured=planted.combine(t.parts, t.families)) for t in evidence()]
        assert max(trial.largest for trial in leave_one_table_out(rule, tables)) < 1e-6
        assert standings(RULES, tables)[0][0].rule == rule

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
    def test_a_table_left_out_teaches_nothing(self, rule: Rule) -> None:
        first, *others = evidence()
        absurd = replace(first, measured=np.ones_like(first.measured))
        expected = settle(rule, others).combine(first.parts, first.families)
        honest, spoilt = (leave_one_table_out(rule, [table, *others])[0] for table in (first, absurd))
        np.testing.assert_allclose(honest.errors, np.abs(expected - first.measured))
        np.testing.assert_allclose(spoilt.errors, 1 - expected)

    def test_an_unseen_pair_takes_the_common_constant(self) -> None:
        rule = find_rule("norm by pair")
        sparse_pair = evidence()[3]
        found = settle(rule, evidence()[:3]).constants
        alone = settle(find_rule("norm"), evidence()[:3]).constants
        assert found["sparse x sparse"] == pytest.approx(alone["any"])
        assert settle(rule, [sparse_pair]).constants["sparse x sparse"] != pytest.approx(
            alone["any"], rel=0.1
        )

    def test_the_default_is_best_in_tables_left_out(self) -> None:
        ranked = standings(RULES, evidence())
        assert ranked[0][0].rule.name == DEFAULT
        assert [trial.largest for trial in ranked[0]] == pytest.approx([0.026, 0.070, 0.092, 0.021], abs=6e-4)
        assert ranked[-1][0].rule.name == "product"
        assert [trial.largest for trial in ranked[-1]] == pytest.approx(
            [0.084, 0.079, 0.096, 0.034], abs=6e-4
        )

    def test_choosing_the_rule_too_without_the_table(self) -> None:
        trials = choose(RULES, evidence())
        product = leave_one_table_out(find_rule("product"), evidence())
        assert [trial.largest for trial in trials] == pytest.approx([0.026, 0.071, 0.092, 0.034], abs=6e-4)
        assert all(a.largest <= b.largest for a, b in zip(trials, product, strict=True))

    def test_quests_weights_and_inputs_speak_for_the_product(self) -> None:
        errors = {rule.name: evaluate(settle(rule, evidence()), quest_evidence()).largest for rule in RULES}
        assert min(errors, key=lambda name: errors[name]) == "product"
        assert errors["product"] == pytest.approx(0.019, abs=6e-4)
        assert errors[DEFAULT] == pytest.approx(0.098, abs=6e-4)

    def test_rows_and_columns_left_out(self) -> None:
        largest = [leave_one_line_out(find_rule("norm"), table).largest for table in evidence()]
        assert largest == pytest.approx([0.015, 0.079, 0.095, 0.026], abs=1e-3)


class TestCompose:
    def test_the_product_is_what_no_rule_means(self) -> None:
        found = compose([multiplier("a", 0.5), multiplier("b", 0.4)])
        assert found.multiplier.value == pytest.approx(0.2)
        assert found.rule is PRODUCT
        assert found.to_document()["composition"]["rule"] == "product"

    def test_draws_are_composed_jointly(self) -> None:
        random = np.random.default_rng(0)
        shared = random.normal(size=500) * 0.02
        parts = [multiplier("a", 0.8, 0.8 + shared), multiplier("b", 0.5, 0.5 - shared)]
        found = composed(parts, families=("scalar", "sparse")).multiplier
        constants = settled_rule(DEFAULT).constants
        k = (constants["scalar"] + constants["sparse"]) / 2
        expected = [by_definition("overlap", 0.8 + s, 0.5 - s, k) for s in shared]
        np.testing.assert_allclose(found.draws, expected, rtol=1e-9)
        assert found.value == pytest.approx(by_definition("overlap", 0.8, 0.5, k))
        assert found.interval == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])))

    def test_the_document_says_rule_constants_and_residuals(self) -> None:
        parts = [multiplier("int4", 0.8), multiplier("a4", 0.5)]
        said = composed(parts, families=("scalar", "scalar")).to_document()["composition"]
        assert said["rule"] == DEFAULT
        assert said["parts"] == ["int4", "a4"]
        assert set(said["constants"]) == {"sparse", "scalar"}
        assert list(said["published_residuals"].values()) == pytest.approx(
            [0.026, 0.07, 0.092, 0.021], abs=1e-3
        )
        assert said["published_residual"] == max(said["published_residuals"].values())
        assert "2506.01863" in said["source"]

    @pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
    def test_every_rule_is_selectable(self, rule: Rule) -> None:
        parts = [multiplier("int4", 0.8), multiplier("sparse50", 0.7)]
        found = composed(parts, "both", ("scalar", "sparse"), rule.name)
        assert found.multiplier.name == "both"
        assert found.multiplier.note == f"{rule.name} rule"
        assert 0.56 - 1e-6 <= found.multiplier.value <= 0.7

    def test_different_fits_do_not_compose_by_any_rule(self) -> None:
        other = replace(multiplier("b", 0.4), origin=replace(ORIGIN, exponents={"alpha": 0.2}))
        with pytest.raises(RequestError, match="come from different fits") as caught:
            composed([multiplier("a", 0.5), other], families=("scalar", "scalar"))
        assert caught.value.advice.startswith("refit jointly")

    def test_a_family_for_each(self) -> None:
        with pytest.raises(RequestError, match="1 families for 2 multipliers"):
            composed([multiplier("a", 0.5), multiplier("b", 0.4)], families=("scalar",))


class TestErrorOfTheComposite:
    @pytest.mark.parametrize(
        ("table", "largest", "anchored"),
        [
            ("Fig. 6", 0.037, 0.019),
            ("Fig. 7", 0.132, 0.143),
            ("Fig. 9", 0.148, 0.158),
            ("Fig. 2b", 0.149, 0.146),
        ],
    )
    def test_it_holds_between_roundings_and_fails_with_sparsity(
        self, table: str, largest: float, anchored: float
    ) -> None:
        assert composite_errors(table).max() == pytest.approx(largest, abs=6e-4)
        assert composite_errors(table, anchored=True).max() == pytest.approx(anchored, abs=6e-4)

    def test_the_error_of_a_product_of_two_roundings(self) -> None:
        x, y = np.random.default_rng(0).normal(size=(2, 1_000_000))
        step = 0.9957  # of four levels, with the least error
        first, second = (np.clip(np.floor(z / step) + 0.5, -1.5, 1.5) * step for z in (x, y))
        alone = [np.square(z - r).mean() for z, r in ((x, first), (y, second))]
        assert np.square(x * y - first * second).mean() == pytest.approx(
            1 - (1 - alone[0]) * (1 - alone[1]), rel=0.02
        )

    def test_quests_integer_formats_are_priced_without_their_bit_width(self) -> None:
        errors = quest_formats_left_out()
        assert len(errors) == 8
        assert max(map(abs, errors.values())) <= 0.03

    def test_a_planted_curve_is_found(self) -> None:
        gmse = np.array([0.3, 0.1, 0.02, 0.3, 0.1])
        factors = np.array([1.0, 1.0, 1.0, 2.0, 2.0])
        curve = Curve(0.42, 1.3)
        rho = np.tanh(0.42 * -np.log(gmse) / np.log(4)) ** (1.3 * factors)
        found = fit_curve(gmse, rho, factors)
        assert (found.slope, found.curvature) == pytest.approx((0.42, 1.3), abs=1e-4)
        np.testing.assert_allclose(leave_one_error_out(gmse, rho, factors), 0, atol=1e-4)
        np.testing.assert_array_equal(curve.rho(np.array([0.0, 1.0])), [1.0, 0.0])
        with pytest.raises(RequestError, match="1 format does not fix the two constants"):
            fit_curve(gmse[:1], rho[:1])

    def test_the_minimum_of_a_bowl_and_at_a_bound(self) -> None:
        found = minimise(
            lambda p: np.square(p[:, 0] - 0.3) + np.square(p[:, 1] - 9), [(0.0, 1.0), (-1.0, 2.0)]
        )
        assert found == pytest.approx([0.3, 2.0], abs=1e-6)


class TestHeldOutRuns:
    def test_quartets_pairs_are_predicted_from_their_parts(self) -> None:
        runs = read_runs(public_runs("quartet_runs"))
        found = composition_test(runs, find_law("gamma"))
        assert len(found.errors) == 21
        assert found.fit.num_runs == len(runs) - 21
        assert found.mean <= 0.00224  # what a two-stage fit of the same law reaches
        assert found.mean_without > 10 * found.mean
        p, rho = found.fit.values, found.fit.rho["mxfp4-quest"].value
        data = p["rho_D[mxfp4-stochastic]"]
        inner = p["A"] / (found.runs.params * rho) ** p["alpha"]
        inner = inner + p["B"] / (found.runs.tokens * data) ** p["beta"]
        expected = (inner ** p["gamma"] + p["E"]) / found.runs.loss - 1
        np.testing.assert_allclose(found.errors, expected, rtol=1e-9, atol=1e-12)
        assert found.bias == pytest.approx(expected.mean())
        assert found.largest == np.abs(expected).max()

    def test_what_cannot_be_tested_is_refused(self) -> None:
        runs = read_runs(public_runs("quartet_runs"))
        backward = np.array(runs.columns["backward"])
        with pytest.raises(RequestError, match="the decoupled law has no multiplier for each of two parts"):
            composition_test(runs, find_law("decoupled"))
        with pytest.raises(RequestError, match="no run compresses both parts"):
            composition_test(runs.select(backward == "dense"), find_law("gamma"))
        with pytest.raises(RequestError, match="the runs have no column 'backward'"):
            composition_test(replace(runs, columns={}), find_law("gamma"))
