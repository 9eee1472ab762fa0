"""`plan` and `crossover`: against closed forms and root finding written apart from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

from rhoc.compiler.columns import read_columns
from rhoc.compiler.fits import fit_runs, load_fit, save_fit
from rhoc.compiler.query import predict
from rhoc.compiler.questions.contender import Contender, Widths, contender
from rhoc.compiler.questions.cost_model import COSTS, cost_model
from rhoc.compiler.questions.crossover import crossover
from rhoc.compiler.questions.optimum import Budget
from rhoc.compiler.questions.plan import plan
from rhoc.compiler.questions.voice import choose_voice
from rhoc.runtime.errors import RequestError
from rhoc.runtime.laws.result import Fit

from .command_line import CommandLine
from .planted_laws import PLANTED
from .simulated import simulated

FLOPS = 3e19
EQUAL, FAST = cost_model("flops"), cost_model("speed-ups")


@pytest.fixture(scope="module")
def fit() -> Fit:
    rho = {"dense": 1.0, "int4": 0.85, "int4-a4": 0.7}
    return fit_runs(simulated(0, rho=rho), "decoupled", bootstraps=60)


def closed_form(
    values: dict[str, float], rho: float, flops: float, share: float = 1.0
) -> tuple[float, float]:
    """N and D of least loss at C = share * 6 N D (Hoffmann et al. 2022, eq. 4, with A rho^-alpha for A)."""
    alpha, beta = values["alpha"], values["beta"]
    product = flops / (6 * share)
    ratio = (alpha * values["A"] * rho**-alpha / (beta * values["B"])) ** (1 / (alpha + beta))
    params = ratio * product ** (beta / (alpha + beta))
    return params, product / params


def loss(values: dict[str, float], params: float, tokens: float, rho: float) -> float:
    size = values["A"] * (params * rho) ** -values["alpha"]
    return float(values["E"] + size + values["B"] * tokens ** -values["beta"])


@cache
def fitted(law: str) -> Fit:
    return fit_runs(next(p for p in PLANTED if p.law == law).runs(noise=1e-5), law, bootstraps=3)


def best(cost: Callable[[float, float], float], flops: float) -> tuple[float, float, float]:
    """N, D and loss of the least loss at 6 N D = flops, by scipy."""
    found = minimize_scalar(
        lambda x: cost(np.exp(x), flops / 6 / np.exp(x)),
        bounds=(10, 30),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(np.exp(found.x)), float(flops / 6 / np.exp(found.x)), float(found.fun)


class TestColumns:
    """Laws that read more than N, D and rho, each against its formula written out."""

    def test_a_column_of_all_formats_and_of_one(self) -> None:
        fit = fitted("qat-error")
        p = fit.values

        def cost(group: float) -> Callable[[float, float], float]:
            def of(n: float, d: float) -> float:
                added = p["k[w4]"] * d ** p["g_D"] * np.log2(group) ** p["g_G"] / n ** p["g_N"]
                return p["E"] + p["A"] * n ** -p["alpha"] + p["B"] * d ** -p["beta"] + added

            return of

        for given, group in (
            ((), 128),
            (("group_size=32",), 32),
            (("group_size=64", "w4:group_size=256"), 256),
        ):
            found = plan((), Budget(flops=FLOPS), EQUAL, fit=fit, columns=read_columns(given))
            rows = {row["format"]: row for row in found.rows}
            params, tokens, loss = best(cost(group), FLOPS)
            assert rows["w4"]["loss"] == pytest.approx(loss, rel=1e-12)
            assert rows["w4"]["params"] == pytest.approx(params, rel=1e-4)
            assert rows["w4"]["tokens"] == pytest.approx(tokens, rel=1e-4)
            dense = p["E"] + p["B"] * rows["w4"]["tokens"] ** -p["beta"]
            same = ((rows["w4"]["loss"] - dense) / p["A"]) ** (-1 / p["alpha"])
            assert rows["w4"]["effective_parameters"] == pytest.approx(same, rel=1e-8)
            assert rows["dense"]["rho"] == pytest.approx(1, abs=1e-9)

    def test_columns_of_a_formats_own_runs_are_known(self) -> None:
        """Weights that were rounded to 3 bits after training are not dense ones."""
        fit = fitted("precision-ptq")
        p = fit.values
        row = next(r for r in plan((), Budget(flops=FLOPS), EQUAL, fit=fit).rows if r["format"] == "post3")
        n, d = row["params"], row["tokens"]
        added = p["C_T"] * d ** p["g_D"] / n ** p["g_N"] * np.exp(-3 / p["g_post"])
        size = p["A"] * (n * row["rho"]) ** -p["alpha"]
        assert row["loss"] == pytest.approx(p["E"] + size + p["B"] * d ** -p["beta"] + added, rel=1e-9)

    def test_the_backward_pass(self) -> None:
        fit = fitted("gamma")
        p, both = fit.values, read_columns(["int4:backward=fp4"])
        found = plan(("int4", "dense"), Budget(params=1e8, tokens=1e10), EQUAL, fit=fit, columns=both)
        row = next(row for row in found.rows if row["format"] == "int4")
        size = p["A"] / (1e8 * row["rho"]) ** p["alpha"]
        inner = size + p["B"] / (1e10 * p["rho_D[fp4]"]) ** p["beta"]
        assert row["loss"] == pytest.approx(inner ** p["gamma"] + p["E"], rel=1e-12)
        assert predict("int4", 1e8, 1e10, fit=fit, columns={"backward": "fp4"})["loss"] == row["loss"]
        assert found.to_document()["columns_notes"][0] == "columns: int4 backward fp4"

    def test_more_tokens_than_a_model_bears(self) -> None:
        """Sun et al.: past a critical number of tokens the error of low-bit floats grows faster than data helps."""
        fit = fitted("floating-point")
        p = fit.values
        given = read_columns(["fp4:exponent_bits=2", "fp4:mantissa_bits=1", "fp4:block_size=64"])
        budget = Budget(params=1e7, tokens=1e18)
        row = plan(("fp4",), budget, EQUAL, fit=fit, columns=given).rows[0]
        error = p["h"] / 1e7 ** p["alpha"] * 6 / (2.5 ** p["delta"] * 1.5 ** p["nu"])
        assert row["tokens"] == pytest.approx((p["B"] / error) ** (1 / (2 * p["beta"])), rel=1e-3)
        few = plan(("fp4",), Budget(params=1e7, tokens=1e9), EQUAL, fit=fit, columns=given).rows[0]
        assert few["tokens"] == 1e9

    def test_a_crossover_of_formats_that_are_known_by_bits(self) -> None:
        fit = fitted("precision")
        given = read_columns(["five:weight_bits=5", "six:weight_bits=6", "six:input_bits=6"])
        found = crossover("five", "six", Budget(params=1e8), EQUAL, fit=fit, columns=given)
        p = fit.values
        rho = {bits: 1 - np.exp(p["n_w"] - bits / p["g_w"]) for bits in (5, 6)}
        six = rho[6] * (1 - np.exp(p["n_a"] - 6 / p["g_a"]))
        assert found.at is None
        assert found.leaders == (("five", "five") if rho[5] > six else ("six", "six"))

    @pytest.mark.parametrize(
        ("law", "given", "message"),
        [
            (
                "qat-error",
                ["groups=64"],
                "the qat-error law reads no column 'groups'; did you mean 'group_size'",
            ),
            ("qat-error", ["group_size=many"], "group_size is 'many', not a number"),
            ("qat-error", ["group_size"], "'group_size' is no NAME=VALUE; write --column group_size=64"),
            ("qat-error", ["w5:group_size=64"], "--column names the format 'w5'; known: dense, w4"),
            ("sparse", ["s50:sparsity=1"], "sparsity is '1', not a number from 0 to below 1"),
            ("decoupled", ["group_size=64"], "the decoupled law reads no column 'group_size'; it reads N, D"),
        ],
    )
    def test_what_cannot_be_a_column(self, law: str, given: list[str], message: str) -> None:
        fit = fitted(law)
        with pytest.raises(RequestError) as caught:
            plan((), Budget(flops=FLOPS), EQUAL, fit=fit, columns=read_columns(given))
        assert message in str(caught.value)

    def test_answers_that_would_be_wrong_are_refused(self) -> None:
        found = plan(
            (), Budget(flops=FLOPS), EQUAL, fit=fitted("precision"), columns=read_columns(["kv_bits=8"])
        )
        assert [row["format"] for row in found.rows] == ["dense"]
        assert "and --column would change it" in found.unknown[0]["reason"]
        some = read_columns(["fp4:exponent_bits=2"])
        with pytest.raises(
            RequestError, match="needs mantissa_bits, block_size of 'fp4'; give it: --column fp4:"
        ):
            plan(("fp4",), Budget(flops=FLOPS), EQUAL, fit=fitted("floating-point"), columns=some)
        runs = simulated(0, rho={"dense": 1.0})
        runs = replace(runs, columns={"average_params": tuple(map(str, runs.params))})
        without_size = fit_runs(runs, "average-parameters", bootstraps=0)
        with pytest.raises(RequestError, match="the average-parameters law has no N in its formula"):
            plan((), Budget(flops=FLOPS), EQUAL, fit=without_size)

    def test_columns_come_back_from_a_file(self, tmp_path: Path) -> None:
        fit = fitted("precision-ptq")
        save_fit(fit, tmp_path / "fit.json")
        assert load_fit(tmp_path / "fit.json").columns == fit.columns
        assert fit.columns["post3"] == {"post_bits": 3.0}

    def test_memory_that_does_not_hold_the_size_that_is_given(self, fit: Fit) -> None:
        found = plan(("int4", "dense"), Budget(params=1e9, tokens=1e10, nbytes=1e9), EQUAL, fit=fit)
        assert [row["format"] for row in found.rows] == ["int4"]
        assert found.unknown[0] == {"format": "dense", "reason": "1e+09 parameters of it take 2e+09 bytes"}


class TestPlan:
    def test_size_and_tokens_are_those_of_the_closed_form(self, fit: Fit) -> None:
        rows = {row["format"]: row for row in plan((), Budget(flops=FLOPS), EQUAL, fit=fit).rows}
        assert set(rows) == {"dense", "int4", "int4-a4"}
        for name, row in rows.items():
            params, tokens = closed_form(fit.values, fit.rho[name].value, FLOPS)
            assert row["params"] == pytest.approx(params, rel=1e-6)
            assert row["tokens"] == pytest.approx(tokens, rel=1e-6)
            assert row["loss"] == pytest.approx(loss(fit.values, params, tokens, row["rho"]), rel=1e-12)

    def test_a_faster_format_gets_more_of_both(self, fit: Fit) -> None:
        rows = {row["format"]: row for row in plan((), Budget(flops=FLOPS), FAST, fit=fit).rows}
        assert rows["int4-a4"]["training_time"] == pytest.approx(1 / 3 / 4 + 2 / 3)
        params, _ = closed_form(fit.values, fit.rho["int4-a4"].value, FLOPS, rows["int4-a4"]["training_time"])
        assert rows["int4-a4"]["params"] == pytest.approx(params, rel=1e-6)
        assert rows["int4"]["training_time"] == 1  # weights alone are decoded before they are multiplied

    def test_intervals_are_those_of_every_draw_by_itself(self, fit: Fit) -> None:
        found = {row["format"]: row for row in plan((), Budget(flops=FLOPS), EQUAL, fit=fit).rows}["int4"]
        rho = fit.draws.column("rho[int4]")
        drawn = []
        for i in range(len(rho)):
            values = {name: float(np.asarray(column)[i]) for name, column in fit.drawn.items()}
            drawn.append(closed_form(values, float(rho[i]), FLOPS))
        expected = np.quantile(np.array(drawn), [0.025, 0.975], axis=0)
        np.testing.assert_allclose(found["params_interval"], expected[:, 0], rtol=1e-6)
        np.testing.assert_allclose(found["tokens_interval"], expected[:, 1], rtol=1e-6)
        low, high = found["loss_interval"]
        assert low < found["loss"] < high

    def test_memory_bounds_the_size(self, fit: Fit) -> None:
        rows = {row["format"]: row for row in plan((), Budget(FLOPS, nbytes=1e8), EQUAL, fit=fit).rows}
        assert rows["dense"]["params"] == pytest.approx(1e8 / 2, rel=1e-9)
        assert rows["dense"]["bound"] == "memory"
        assert rows["dense"]["tokens"] == pytest.approx(FLOPS / 6 / 5e7)
        assert rows["int4"]["params"] == pytest.approx(8e8 / contender("int4").bits, rel=1e-9)
        assert rows["int4"]["loss"] < rows["dense"]["loss"]

    def test_serving_is_paid_for(self, fit: Fit) -> None:
        served = 1e12

        def spent(log_params: float) -> float:
            params = np.exp(log_params)
            tokens = (FLOPS - 2 * params * served) / (6 * params)
            return loss(fit.values, params, tokens, 1.0) if tokens > 0 else np.inf

        row = plan(["dense"], Budget(FLOPS, served=served), EQUAL, fit=fit).rows[0]
        best = minimize_scalar(spent, bounds=(np.log(1e5), np.log(1.4e7)), method="bounded")
        assert row["params"] == pytest.approx(np.exp(best.x), rel=1e-3)
        assert row["loss"] <= best.fun + 1e-12

    def test_a_published_fit_answers_without_runs(self) -> None:
        found = plan(["int4-a4", "dense"], Budget(flops=1e19), FAST)
        assert "[quest]" in found.voice.source
        assert {row["format"] for row in found.rows} == {"int4-a4", "dense"}
        assert found.rows[0]["loss_interval"] is None
        values = dict(found.voice.published.origin.exponents)  # type: ignore[attr-defined]
        params, _ = closed_form(values, 1.0, 1e19)
        assert {row["format"]: row["params"] for row in found.rows}["dense"] == pytest.approx(
            params, rel=1e-6
        )

    @pytest.mark.parametrize(
        ("budget", "message"),
        [
            (Budget(), "nothing limits the training tokens"),
            (Budget(tokens=1e9), "nothing limits the size"),
            (Budget(flops=-1.0), "flops is -1.0, not a positive"),
            (Budget(flops=1e19, served=-1.0), "served tokens are -1.0"),
        ],
    )
    def test_what_is_no_budget(self, fit: Fit, budget: Budget, message: str) -> None:
        with pytest.raises(RequestError, match=message):
            plan((), budget, EQUAL, fit=fit)

    def test_a_name_of_runs_without_a_spec_has_no_bytes(self) -> None:
        odd = fit_runs(simulated(1, rho={"dense": 1.0, "mine": 0.8}), bootstraps=0)
        with pytest.raises(RequestError, match=r"stored bits of 'mine' are not known; .*mine=SPEC"):
            plan(["mine"], Budget(FLOPS, nbytes=1e8), EQUAL, fit=odd)
        row = plan(["mine=int4"], Budget(FLOPS, nbytes=1e8), EQUAL, fit=odd).rows[0]
        assert row["bits_per_weight"] == contender("int4").bits
        assert row["params_interval"] is None

    def test_two_voices_are_refused(self, fit: Fit) -> None:
        with pytest.raises(RequestError, match="both given"):
            choose_voice([], fit, "quest")


class TestCosts:
    @pytest.mark.parametrize(("forward", "backward", "faster"), [(4, 8, 1.2), (8, 4, 1.5), (4, 4, 2.0)])
    def test_speed_ups_of_quartet(self, forward: int, backward: int, faster: float) -> None:
        eight = Contender("fp8", contender("fp8").format, widths=Widths(8, 8, 8))
        other = Contender("fp4", eight.format, widths=Widths(forward, backward, backward))
        assert FAST.training(eight) / FAST.training(other) == pytest.approx(faster)

    def test_widths_are_those_of_the_products(self) -> None:
        assert contender("int4").widths == Widths(16, 16, 16)
        assert contender("int4-a4").widths == Widths(4, 16, 16)
        assert contender("quartet").widths == Widths(4, 4, 4)
        assert contender("nf4").widths == Widths(16, 16, 16)

    def test_bit_operations_are_kumars(self) -> None:
        other = Contender("p", contender("fp8").format, widths=Widths(6, 6, 6))
        assert cost_model("bit-operations").training(other) == pytest.approx(6 / 16 * 6)

    def test_a_cost_of_ones_own(self, tmp_path: Path) -> None:
        file = tmp_path / "mine.yaml"
        file.write_text('name: mine\nspeed: {"16": 1, "8": 1.7}\nserving: stored\n')
        mine = cost_model(str(file))
        assert mine.training(contender("int8-a8")) == pytest.approx(2 / 1.7 + 4)
        assert mine.served(contender("int8-a8")) == pytest.approx(2 * contender("int8-a8").bits / 16)
        file.write_text('name: mine\nspeeds: {"16": 1}\n')
        with pytest.raises(RequestError, match=r"mine\.yaml: a cost model has no 'speeds'"):
            cost_model(str(file))
        with pytest.raises(RequestError, match="did you mean 'flops'"):
            cost_model("flop")
        assert len({cost.name for cost in COSTS}) == len(COSTS)


class TestCrossover:
    def test_at_a_given_size_the_faster_format_is_overtaken(self, fit: Fit) -> None:
        size, share = 1e8, 1 / 3 / 4 + 2 / 3

        def behind(flops: float) -> float:
            fast = loss(fit.values, size, flops / (6 * share * size), fit.rho["int4-a4"].value)
            return fast - loss(fit.values, size, flops / (6 * size), 1.0)

        found = crossover("int4-a4", "dense", Budget(params=size), FAST, fit=fit)
        assert found.at == pytest.approx(brentq(behind, *found.ends), rel=1e-3)
        assert found.leaders == ("int4-a4", "dense")
        assert found.interval is not None
        assert found.interval[0] < found.at < found.interval[1]
        assert found.share == 1
        assert found.rows[0]["loss"] == pytest.approx(found.rows[1]["loss"], rel=1e-5)

    def test_at_the_best_size_none_overtakes_near_the_data(self, fit: Fit) -> None:
        found = crossover("int4-a4", "dense", Budget(), FAST, fit=fit)
        assert found.at is None
        assert found.share == 0
        low, high = fit.range.params[0] * fit.range.tokens[0], fit.range.params[1] * fit.range.tokens[1]
        assert found.ends == pytest.approx((6 * low / 10, 6 * high * 10))
        assert "never overtaken" in found.message

    def test_a_format_against_itself(self, fit: Fit) -> None:
        found = crossover("int4", "copy=int4", Budget(), EQUAL, fit=_with_copy(fit))
        assert found.at is None
        assert "worth the same" in found.message

    def test_ends_and_unknown_formats_are_refused(self, fit: Fit) -> None:
        with pytest.raises(RequestError, match="the ends are 10 and 1"):
            crossover("int4", "dense", Budget(), FAST, ends=(10.0, 1.0), fit=fit)
        with pytest.raises(RequestError, match="nothing is known of 'int2'"):
            crossover("int2", "dense", Budget(), FAST, fit=fit)


def _with_copy(fit: Fit) -> Fit:
    """The fit with int4 under a second name."""
    from dataclasses import replace

    column = fit.draws.names.index("rho[int4]")
    draws = replace(
        fit.draws,
        names=(*fit.draws.names, "rho[copy]"),
        values=np.concatenate([fit.draws.values, fit.draws.values[:, [column]]], axis=1),
    )
    return replace(fit, rho={**fit.rho, "copy": fit.rho["int4"]}, draws=draws)


def test_the_commands_answer_in_words_and_in_json(command: CommandLine, fit: Fit) -> None:
    save_fit(fit, command.folder / "fit.json")
    said = command("plan", "--flops", "3e19", "--fit", "fit.json", "--json")
    assert said.code == 0
    keys = {"source", "interval_note", "budget", "cost", "columns", "columns_notes", "formats", "unknown"}
    assert keys == set(said.document)
    keys = {"format", "loss", "loss_interval", "params", "tokens", "bytes", "extrapolation", "rho"}
    assert keys <= set(said.document["formats"][0])
    assert "speaks from: decoupled law" in command("plan", "--flops", "3e19", "--fit", "fit.json").out
    said = command("crossover", "int4-a4", "dense", "--params", "1e8", "--fit", "fit.json")
    assert "int4-a4 leads below" in said.out
    assert "95 % interval of the crossover" in said.out
    said = command("plan")
    assert said.code == 2
    assert "nothing limits the training tokens; give --flops, or --tokens" in said.err
    assert "[quest]" in command("crossover", "int4-a4", "dense").out
