"""Questions: runs from CSV, fits kept in files, predictions with and without training."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rhoc.compiler.fits import fit_runs, load_fit, save_fit
from rhoc.compiler.query import (
    SCALAR_SOURCE,
    Format,
    Part,
    effective_parameters,
    predict,
    published_multiplier,
)
from rhoc.compiler.runs_csv import read_runs, read_runs_csv, runs_from_rows, write_runs_csv
from rhoc.compiler.spec import load_spec
from rhoc.runtime.errors import InvalidDocument, RequestError
from rhoc.runtime.laws import find_law
from rhoc.runtime.laws.result import Fit

from .planted_laws import PLANTED
from .simulated import simulated, with_errors

DATA = Path(__file__).parent / "data" / "quest_runs.csv"
HEADER = "params,tokens,loss,representation\n"
PREDICTION_KEYS = {
    "loss",
    "loss_interval",
    "rho",
    "rho_interval",
    "rho_source",
    "effective_parameters",
    "extrapolation",
}


@pytest.fixture(scope="module")
def quest() -> Fit:
    return fit_runs(DATA, bootstraps=60)


@pytest.fixture(scope="module")
def by_error() -> Fit:
    return fit_runs(with_errors(0), "representation", bootstraps=60)


def problems(path: Path, text: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(InvalidDocument) as caught:
        read_runs_csv(path)
    return [str(problem).replace(str(path.parent) + "/", "") for problem in caught.value.problems]


class TestCsv:
    def test_the_quest_runs(self) -> None:
        runs = read_runs(DATA, "QuEST")
        assert len(runs) == 91
        assert runs.addresses[0] == "quest_runs.csv:2"
        assert runs.names[0] == "dense"
        assert runs.params[0] == 30482560
        assert runs.loss[0] == 3.2071399688720703
        assert runs.columns["weight_bits"][4] == "fp4"
        np.testing.assert_array_equal(runs.numbers("hadamard")[:4], 0)
        with pytest.raises(
            RequestError, match=r"quest_runs\.csv:6: weight_bits is 'fp4', not a finite number"
        ):
            runs.numbers("weight_bits")

    def test_what_is_written_reads_back(self, tmp_path: Path) -> None:
        rows = read_runs_csv(DATA)
        rows[0]["note"] = 'a, "quoted" one'
        write_runs_csv(tmp_path / "runs.csv", rows)
        again = read_runs_csv(tmp_path / "runs.csv")
        assert [{k: v for k, v in row.items() if v != ""} for row in again] == rows
        assert again[0]["loss"] == 3.2071399688720703
        assert isinstance(again[0]["params"], int)

    def test_rows_of_a_store_become_runs(self) -> None:
        rows = [
            {
                "params": 10,
                "tokens": 200,
                "loss": 2.5,
                "representation": "dense",
                "gmse_weight": 0.0,
                "seed": None,
            },
            {"params": 10, "tokens": 200, "loss": 2.75, "representation": "int4", "gmse_weight": 0.0115},
        ]
        runs = runs_from_rows(rows, "a store")
        np.testing.assert_array_equal(runs.numbers("gmse_weight"), [0.0, 0.0115])
        assert runs.columns["seed"] == ("", "")
        assert runs.addresses[1] == "a store, row 2"
        with pytest.raises(RequestError, match="a store, row 1: a run without loss; leave it out"):
            runs_from_rows([{**rows[0], "loss": None}], "a store")

    def test_a_byte_order_mark_blank_lines_and_spaces_do_no_harm(self, tmp_path: Path) -> None:
        path = tmp_path / "runs.csv"
        path.write_text(
            "\ufeffparams, tokens ,loss,representation\n\n 1e6,2e7, 3.5 ,dense\n,,,\n", encoding="utf-8"
        )
        assert read_runs_csv(path) == [{"params": 1e6, "tokens": 2e7, "loss": 3.5, "representation": "dense"}]

    def test_missing_columns(self, tmp_path: Path) -> None:
        found = problems(tmp_path / "r.csv", "params,tokens,los,representation\n1,2,3,dense\n")
        assert len(found) == 1
        assert found[0].startswith("r.csv:1:1: no column 'loss'; did you mean 'los'?")

    def test_every_bad_cell_at_its_line_and_column(self, tmp_path: Path) -> None:
        text = HEADER + "1e6,2e7,x,dense\n1e6,-5,3.0,int4\n0,1e7,nan,\n1e6,inf,3.0,int4\n1_0,1e7,3,dense\n"
        assert problems(tmp_path / "r.csv", text) == [
            "r.csv:2:9: loss is 'x', not a number",
            "r.csv:3:5: tokens is '-5', not a positive finite number",
            "r.csv:4:1: params is '0', not a positive finite number",
            "r.csv:4:7: loss is 'nan', not a positive finite number",
            "r.csv:4:11: representation is '', a run needs the name of its representation",
            "r.csv:5:5: tokens is 'inf', not a positive finite number",
            "r.csv:6:1: params is '1_0', not a number",
        ]

    def test_lines_after_a_quoted_line_break_keep_their_numbers(self, tmp_path: Path) -> None:
        text = 'params,tokens,loss,representation,note\n1,2,3,dense,"two\nlines"\n1,2,zero,dense,x\n'
        assert problems(tmp_path / "r.csv", text) == ["r.csv:4:5: loss is 'zero', not a number"]

    def test_other_faults_of_form(self, tmp_path: Path) -> None:
        assert problems(tmp_path / "r.csv", HEADER + "1,2,3\n") == [
            "r.csv:2:1: 3 cells under a header of 4; check the commas"
        ]
        twice = problems(tmp_path / "r.csv", "params,tokens,loss,representation,loss\n1,2,3,d,4\n")
        assert twice == ["r.csv:1:35: column 'loss' twice; rename one"]
        assert "not CSV" in problems(tmp_path / "r.csv", HEADER + '1,2,3,"den"se\n')[0]
        many = problems(tmp_path / "r.csv", HEADER + "1,2,x,dense\n" * 50)
        assert len(many) == 21
        assert many[-1] == "r.csv:22:1: and 30 more problems from here on"

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"", "an empty file; a header"),
            (b"\n\n", "an empty file"),
            (HEADER.encode(), "no runs, only a header"),
            (b"\xff\xfe\x00", "not UTF-8 text"),
        ],
    )
    def test_files_without_runs(self, tmp_path: Path, content: bytes, words: str) -> None:
        path = tmp_path / "r.csv"
        path.write_bytes(content)
        with pytest.raises(RequestError, match=words):
            read_runs_csv(path)

    def test_files_that_are_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="cannot read: No such file"):
            read_runs_csv(tmp_path / "absent.csv")
        with pytest.raises(RequestError, match="cannot write: No such file"):
            write_runs_csv(tmp_path / "no" / "folder.csv", [{"params": 1}])
        with pytest.raises(RequestError, match="there are no runs to write"):
            write_runs_csv(tmp_path / "none.csv", [])
        assert not (tmp_path / "none.csv").exists()


class TestFitting:
    def test_a_law_by_name_or_declared(self) -> None:
        assert (
            fit_runs(DATA, find_law("chinchilla"), bootstraps=0).law
            == fit_runs(DATA, "chinchilla", bootstraps=0).law
        )
        assert fit_runs(simulated(0), baseline="int4", bootstraps=0).law.conventions == {"baseline": "int4"}
        with pytest.raises(RequestError, match="has no convention 'baseline'"):
            fit_runs(DATA, "chinchilla", baseline="int4")

    def test_a_fit_says_what_it_was_fitted_to(self, quest: Fit) -> None:
        assert quest.data == "quest_runs.csv"
        assert quest.range.params == (30482560, 203188480)
        assert quest.range.tokens_per_param == pytest.approx((24.3, 100.9), abs=0.1)
        assert "quest_runs.csv:21 (int1-a1-nohadamard" in quest.message

    def test_a_fit_in_a_file(self, quest: Fit, tmp_path: Path) -> None:
        save_fit(quest, tmp_path / "fit.json")
        again = load_fit(tmp_path / "fit.json")
        assert again.to_document() == quest.to_document()
        assert predict("int4", 1e8, 1e10, fit=again) == predict("int4", 1e8, 1e10, fit=quest)

    @pytest.mark.parametrize("text", ["", "[1]", "{}", '{"draws": 1, "version": 1}', "nonsense"])
    def test_what_is_no_fit(self, tmp_path: Path, text: str) -> None:
        path = tmp_path / "fit.json"
        path.write_text(text)
        with pytest.raises(RequestError, match=r"fit\.json: "):
            load_fit(path)


class TestPredictionsOfFits:
    def test_a_representation_with_runs(self, quest: Fit) -> None:
        found = predict("int4", 102777856, 9999745024, fit=quest)
        assert set(found) >= PREDICTION_KEYS
        assert found["spec"] == "int4"
        assert found["loss"] == pytest.approx(2.9155, rel=3e-3)  # measured
        assert found["loss_interval"][0] < 2.9155 < found["loss_interval"][1]
        assert found["rho"] == quest.rho["int4"].value
        assert found["composition"] is None
        assert found["extrapolation"]["inside"]
        assert "decoupled law" in found["rho_source"]
        json.dumps(found, allow_nan=False)

    def test_a_name_that_is_no_spec_but_has_runs(self, quest: Fit) -> None:
        assert predict("int4-2of4pairs-a4", 1e8, 1e10, fit=quest)["rho"] == pytest.approx(0.38, abs=0.01)

    def test_a_combination_is_composed_from_its_parts(self) -> None:
        rho = {"dense": 1.0, "int2": 0.45, "a2": 0.5}
        found = predict("int2-a2", 3e8, 9e9, fit=fit_runs(simulated(0, rho=rho), bootstraps=60))
        assert found["rho"] == pytest.approx(0.225, abs=0.02)
        assert found["composed_of"] == ["int2", "a2"]
        assert found["composition"]["rule"] == "product"
        assert found["composition"]["published_residual"] == 0.096
        truth = 1.7 + 400 * (3e8 * 0.225) ** -0.34 + 410 * 9e9**-0.28
        assert found["loss_interval"][0] < truth < found["loss_interval"][1]

    def test_factors_can_be_named(self, quest: Fit) -> None:
        found = predict(Format("odd"), 1e8, 1e10, fit=quest, factors=["int4", "int2"])
        assert found["rho"] == pytest.approx(quest.rho["int4"].value * quest.rho["int2"].value)
        with pytest.raises(RequestError, match="no runs of 'int7' in this fit"):
            predict(Format("odd"), 1e8, 1e10, fit=quest, factors=["int7", "int2"])

    def test_a_measured_combination_is_not_composed(self, quest: Fit) -> None:
        assert predict("int4-a4", 1e8, 1e10, fit=quest)["composition"] is None

    def test_the_representation_law_prices_what_has_no_runs(self, by_error: Fit) -> None:
        found = predict("int5", 1e8, 1e10, fit=by_error)
        assert found["rho"] == pytest.approx(
            np.tanh(0.41 * -np.log(3.4952114e-3) / np.log(4)) ** 1.39, abs=0.02
        )
        low, high = found["rho_interval"]
        assert low < found["rho"] < high
        both = predict("int5-a5", 1e8, 1e10, fit=by_error)
        assert both["rho"] == pytest.approx(found["rho"] ** 2, rel=1e-9)

    def test_dense_under_chinchilla(self) -> None:
        fit = fit_runs(simulated(0, rho={"dense": 1.0}), "chinchilla", bootstraps=60)
        assert predict("dense", 1e8, 1e10, fit=fit)["rho"] == 1.0
        with pytest.raises(RequestError, match="has no runs of 'int4', and no parts of it"):
            predict("int4", 1e8, 1e10, fit=fit)

    def test_refusals(self, quest: Fit) -> None:
        with pytest.raises(
            RequestError, match="this fit has no runs of 'int5', and no parts of it to compose"
        ):
            predict("int5", 1e8, 1e10, fit=quest)
        with pytest.raises(RequestError, match="no spec is called 'int44'"):
            predict("int44", 1e8, 1e10, fit=quest)
        with pytest.raises(RequestError, match="tokens is 0"):
            predict("int4", 1e8, 0, fit=quest)
        few = fit_runs(simulated(0).select(np.arange(36) < 5), bootstraps=0)
        with pytest.raises(RequestError, match="supports no prediction"):
            predict("int4", 1e8, 1e9, fit=few)

    def test_a_fit_without_draws_gives_no_interval(self) -> None:
        found = predict("int4", 1e8, 1e9, fit=fit_runs(simulated(0), bootstraps=0))
        assert found["loss_interval"] is None
        assert found["rho_interval"] is None
        assert found["loss_interval_note"].startswith("no interval")


class TestPredictionsBeforeTraining:
    def test_a_loss_where_the_law_is_known(self) -> None:
        found = predict("int4", 102777856, 9999745024)
        assert set(found) >= PREDICTION_KEYS
        assert found["loss"] == pytest.approx(2.9155, rel=3e-3)  # measured by QuEST
        assert found["loss_interval"] is None
        assert found["published"]["arxiv"] == "2502.05003"
        assert found["effective_parameters"] == pytest.approx(0.840434 * 102777856)
        assert found["extrapolation"]["inside"]
        json.dumps(found, allow_nan=False)

    def test_effective_parameters_alone_elsewhere(self) -> None:
        found = predict("fp8", 1e9, 2e10)
        assert found["loss"] is None
        assert "does not publish A, B" in found["loss_reason"]
        assert found["effective_parameters"] == pytest.approx(0.9629e9, rel=1e-3)
        low, high = found["effective_parameters_interval"]
        assert low < found["effective_parameters"] < high
        assert found["extrapolation"]["log10_params"] > 0.6

    def test_a_chosen_source(self) -> None:
        assert predict("int4", 1e8, 1e10, source="panferov-olmo2")["published"]["fit"] == "panferov-olmo2"

    def test_a_part_of_no_published_family_borrows_the_scalar_constants_and_says_so(self) -> None:
        borrowing, scalar = (
            predict(Format("vq", 0.1, parts=(Part("scalar", 0.1, borrowed),)), 1e8, 1e10)
            for borrowed in (True, False)
        )
        assert borrowing["rho"] == scalar["rho"]
        words = "a part of no published family is taken as a scalar format of the same Gaussian error"
        assert words in borrowing["rho_source"]
        assert words not in scalar["rho_source"]

    def test_a_source_without_constants_of_the_family_refuses(self) -> None:
        with pytest.raises(RequestError, match="has no constants for the sparse family"):
            predict(Format("sparse", 0.1, parts=(Part("sparse", 0.1),)), 1e8, 1e10, source=SCALAR_SOURCE)


class TestCapacity:
    def test_keys(self) -> None:
        found = published_multiplier(load_spec("int4"))
        assert {"rho", "rho_interval", "rho_source"} <= set(found)
        assert found["rho"] == 0.840434
        assert found["rho_interval"] is None
        assert "[quest]" in found["rho_source"]

    def test_weights_and_inputs_share_one_multiplier(self) -> None:
        spec = load_spec("int4-a4")
        assert published_multiplier(spec, spec.rules[0], "weights")["rho"] == 0.691832
        inputs = published_multiplier(spec, spec.rules[0], "input_activations")
        assert inputs["rho"] is None
        assert inputs["rho_reason"] == "counted with the weights"

    def test_inputs_alone_carry_it(self) -> None:
        document = load_spec("int2-a2").to_document()
        document["rules"][0]["weights"] = "dense"
        spec = load_spec({**document, "name": "a2"})
        found = published_multiplier(spec, spec.rules[0], "input_activations")
        assert found["rho"] == pytest.approx(0.4445, abs=5e-4)


class TestEffectiveParameters:
    @staticmethod
    def rows(*entries: tuple[str, str, int, str, str]) -> dict[str, object]:
        keys = ("path", "op", "shape", "representation", "input_representation")
        return {"parameters": [dict(zip(keys, (p, o, (n,), w, i), strict=True)) for p, o, n, w, i in entries]}

    def test_every_parameter_counts_its_multiplier(self) -> None:
        spec = load_spec("int4")
        stored = str(spec.rules[0].weight_representation)
        document = self.rows(
            ("blocks.0.q_proj.weight", "linear", 1000, stored, "dense"),
            ("blocks.0.norm.weight", "RMSNorm", 10, "dense", "dense"),
            ("embed_tokens.weight", "embedding", 5000, "dense", "dense"),
            ("lm_head.weight", "linear", 5000, "dense", "dense"),
        )
        found = effective_parameters(spec, document)
        assert found["params"] == 1010
        assert found["effective_parameters"] == pytest.approx(840.434 + 10)
        assert "[quest]" in found["rho_source"]

    def test_multipliers_of_one_sum_come_from_one_fit(self) -> None:
        """int4 alone is answered by QuEST and sparse50 by Fig. 7; together only Fig. 7 knows both."""
        parts = [load_spec(name) for name in ("int4", "sparse50")]
        rules = [{**spec.to_document()["rules"][0], "targets": [f"re:{i}"]} for i, spec in enumerate(parts)]
        spec = load_spec({"version": 1, "name": "both", "rules": rules})
        stored = [str(rule.weight_representation) for rule in spec.rules]
        found = effective_parameters(
            spec,
            self.rows(
                ("a.weight", "linear", 100, stored[0], "dense"),
                ("b.weight", "linear", 100, stored[1], "dense"),
            ),
        )
        assert found["effective_parameters"] == pytest.approx(87 + 70)
        assert "[panferov-fig7]" in found["rho_source"]

    def test_a_dense_model_is_worth_itself(self) -> None:
        found = effective_parameters(
            load_spec("dense"), self.rows(("a.weight", "linear", 7, "dense", "dense"))
        )
        assert found["effective_parameters"] == 7

    def test_unknown_representations_say_so(self) -> None:
        document = self.rows(("a.weight", "linear", 7, "vq(8)", "dense"))
        found = effective_parameters(load_spec("int4"), document)
        assert found["effective_parameters"] is None
        assert "no single published fit" in found["effective_parameters_reason"]


def test_simulated_runs_are_what_they_say() -> None:
    """The helper behind these tests: without noise its losses are the formula."""
    runs = simulated(0, noise=0.0)
    assert runs.loss[0] == pytest.approx(1.7 + 400 * 3e7**-0.34 + 410 * 3e8**-0.28)
    assert replace(runs, data="x").data == "x"


class TestRules:
    def test_a_composite_by_another_rule_is_worth_more_and_says_so(self) -> None:
        runs = simulated(0, rho={"dense": 1.0, "int2": 0.45, "sparse50": 0.7})
        fitted = fit_runs(runs, bootstraps=20)
        asked = {
            rule: predict(Format("both"), 1e8, 1e10, fit=fitted, factors=("int2", "sparse50"), rule=rule)
            for rule in ("product", "overlap by family")
        }
        alone = [fitted.rho[name].value for name in ("int2", "sparse50")]
        assert asked["product"]["rho"] == pytest.approx(alone[0] * alone[1])
        assert asked["product"]["rho"] < asked["overlap by family"]["rho"] < min(alone)
        assert asked["overlap by family"]["composition"]["rule"] == "overlap by family"

    def test_an_unknown_rule(self) -> None:
        fitted = fit_runs(simulated(0), bootstraps=0)
        with pytest.raises(
            RequestError, match="no rule of composition is called 'prodct'; did you mean 'product'"
        ):
            predict(Format("both"), 1e8, 1e10, fit=fitted, factors=("int2", "int4"), rule="prodct")


class TestLawsOfColumns:
    """Laws in which a format does not multiply N answer too: from columns, and by the dense size of a loss."""

    def test_an_added_error_and_the_dense_size_of_the_same_loss(self) -> None:
        planted = next(p for p in PLANTED if p.law == "qat-error")
        fitted = fit_runs(planted.runs(noise=1e-5), "qat-error", bootstraps=50)
        asked = predict("w4", 1e8, 1e10, fit=fitted, columns={"group_size": 64.0})
        p = planted.truth
        dense = p["E"] + p["B"] * 1e10 ** -p["beta"]
        added = p["k[w4]"] * 1e10 ** p["g_D"] * np.log2(64.0) ** p["g_G"] / 1e8 ** p["g_N"]
        loss = dense + p["A"] * 1e8 ** -p["alpha"] + added
        assert asked["loss"] == pytest.approx(loss, rel=1e-4)
        same = ((loss - dense) / p["A"]) ** (-1 / p["alpha"])
        assert asked["effective_parameters"] == pytest.approx(same, rel=1e-2)
        low, high = asked["effective_parameters_interval"]
        assert low < asked["effective_parameters"] < high
        assert high / low < 1.01

    def test_rho_from_bits(self) -> None:
        planted = next(p for p in PLANTED if p.law == "precision")
        fitted = fit_runs(planted.runs(noise=0.0), "precision", bootstraps=0)
        asked = predict("five", 1e8, 1e10, fit=fitted, columns={"weight_bits": 5.0})
        one = {
            n: 1 - np.exp(planted.truth[f"n_{n}"] - b / planted.truth[f"g_{n}"])
            for n, b in (("w", 5), ("a", 16), ("kv", 16))
        }
        assert asked["rho"] == pytest.approx(one["w"] * one["a"] * one["kv"], rel=1e-3)

    def test_columns_without_default_are_asked_for(self) -> None:
        planted = next(p for p in PLANTED if p.law == "floating-point")
        fitted = fit_runs(planted.runs(noise=1e-5), "floating-point", bootstraps=0)
        with pytest.raises(
            RequestError, match="the floating-point law needs exponent_bits, mantissa_bits, block_"
        ):
            predict("fp4", 1e8, 1e10, fit=fitted, columns={})
        columns = {"exponent_bits": "2", "mantissa_bits": "1", "block_size": "32"}
        asked = predict("fp4", 1e8, 1e10, fit=fitted, columns=columns)
        p = fitted.values
        dense = p["E"] + p["B"] * 1e10 ** -p["beta"]
        error = p["h"] * 1e10 ** p["beta"] / 1e8 ** p["alpha"] * 5 / (2.5 ** p["delta"] * 1.5 ** p["nu"])
        assert asked["loss"] == pytest.approx(dense + p["A"] * 1e8 ** -p["alpha"] + error, rel=1e-9)
        same = ((asked["loss"] - dense) / p["A"]) ** (-1 / p["alpha"])
        assert asked["effective_parameters"] == pytest.approx(same, rel=1e-6)

    def test_a_column_that_no_law_reads(self) -> None:
        fitted = fit_runs(simulated(0), bootstraps=0)
        with pytest.raises(RequestError, match="the decoupled law reads no column 'bits'"):
            predict("int2", 1e8, 1e10, fit=fitted, columns={"bits": 3.0})
