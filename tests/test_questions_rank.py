"""`rank` and `search`: against orders, products and exhaustive searches written apart from them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from rhoc.compiler.fits import fit_runs, save_fit
from rhoc.compiler.query import published_rho
from rhoc.compiler.questions.cost_model import cost_model
from rhoc.compiler.questions.rank import rank
from rhoc.compiler.questions.search import search
from rhoc.compiler.questions.space import composites
from rhoc.compiler.spec import load_spec, validate_file
from rhoc.runtime.capacity import by_quadrature, monte_carlo
from rhoc.runtime.errors import RequestError
from rhoc.runtime.laws.result import Fit
from rhoc.runtime.marchenko_pastur import REFERENCE_SHAPE
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Stage

from .command_line import LLAMA, CommandLine
from .simulated import simulated, with_errors

COST = cost_model("speed-ups")
SMALL = 1.3  # bits of a search that can be done exhaustively


@pytest.fixture(scope="module")
def fit() -> Fit:
    rho = {"dense": 1.0, "int4": 0.85, "int4-a4": 0.845, "int2": 0.45}
    return fit_runs(simulated(0, rho=rho), "decoupled", bootstraps=60)


@pytest.fixture(scope="module")
def by_error() -> Fit:
    return fit_runs(with_errors(0), "representation", bootstraps=60)


class TestRank:
    def test_worth_per_bit(self, fit: Fit) -> None:
        rows = rank((), None, "bit", COST, fit=fit).to_document()["formats"]
        assert rows[0]["format"] == "int2"
        for row in rows:
            stored = load_spec(row["format"]).rules[0].weight_representation.bits_per_weight(REFERENCE_SHAPE)
            assert row["worth"] == pytest.approx(fit.rho[row["format"]].value / stored)
            low, high = fit.rho[row["format"]].interval or (0.0, 0.0)
            assert row["worth_interval"] == pytest.approx([low / stored, high / stored])

    def test_what_intervals_leave_open(self, fit: Fit) -> None:
        found = rank(["int4", "int4-a4", "dense"], None, "bit", COST, fit=fit)
        difference = fit.draws.column("rho[int4]") - fit.draws.column("rho[int4-a4]")
        assert np.quantile(difference, 0.025) < 0 < np.quantile(difference, 0.975)
        assert found.level_with_best in (("int4",), ("int4-a4",))
        rows = {row["format"]: row for row in found.to_document()["formats"]}
        assert rows["int4"]["rank_interval"] == rows["int4-a4"]["rank_interval"] == [1, 2]
        assert rows["dense"]["rank_interval"] == [3, 3]

    def test_at_most_so_many_bits(self) -> None:
        found = rank((), 4.0, "bit", COST)
        assert all(worth.format.bits <= 4.0 for worth in found.worths)
        assert "int4" in found.just_above
        values = [worth.value for worth in found.worths]
        assert values == sorted(values, reverse=True)
        origins = {worth.multiplier.origin.fit for worth in found.worths}
        assert len(origins) == 1

    def test_worth_per_flop(self) -> None:
        rows = rank(["int4-a4", "int4", "dense"], None, "flop", COST, source="quest").to_document()["formats"]
        worth = {row["format"]: row["worth"] for row in rows}
        assert worth["int4-a4"] == pytest.approx(published_rho("int4-a4", "quest").value / (1 / 12 + 2 / 3))
        assert worth["dense"] == 1
        assert worth["int4"] == published_rho("int4", "quest").value

    def test_worth_per_byte_of_a_model(self) -> None:
        from rhoc.compiler.compile import compile
        from rhoc.compiler.model_reference import ModelReference
        from rhoc.compiler.query import effective_parameters

        rows = rank(["int4", "int2"], None, "byte", COST, model=LLAMA, source="quest").to_document()[
            "formats"
        ]
        module = ModelReference.parse(LLAMA).build()
        for row in rows:
            document = compile(module, load_spec(row["format"])).explain().to_document()
            worth = effective_parameters(load_spec(row["format"]), document)["effective_parameters"]
            assert row["total_bytes"] == document["total_bytes"]
            assert row["effective_parameters"] == pytest.approx(worth)
            assert row["worth"] == pytest.approx(worth / document["total_bytes"])

    def test_what_cannot_be_ranked_is_said(self, fit: Fit) -> None:
        found = rank(["int4", "sparse50", "nf4"], 5.0, "bit", COST, fit=fit)
        assert [worth.format.name for worth in found.worths] == ["int4"]
        reasons = {entry["format"]: entry["reason"] for entry in found.unknown}
        assert "bits per weight" in reasons["sparse50"]
        assert "no runs of 'nf4'" in reasons["nf4"]
        with pytest.raises(RequestError, match="name it with --model"):
            rank(["int4"], None, "byte", COST)
        with pytest.raises(RequestError, match="no format can be ranked"):
            rank(["int4"], 1.0, "bit", COST)
        with pytest.raises(RequestError, match="named twice"):
            rank(["int4", "int4"], None, "bit", COST)


class TestSearch:
    def test_the_front_is_that_of_every_candidate_measured(self) -> None:
        constants = {"scalar": (0.400, 0.936), "sparse": (0.252, 0.463)}  # papers.md 1.5, Fig. 7

        @cache
        def worth(stage: Stage) -> float:
            alone = Representation((stage,))
            error = (by_quadrature(alone) or monte_carlo(alone, rounds=2, seed=1)).value
            slope, curvature = constants[stage.family]
            return float(np.tanh(slope * -np.log(error) / np.log(4)) ** curvature)

        found = search(SMALL, rotate=False)
        every = [
            (each.bits, np.prod([worth(stage) for stage in each.core.stages])) for each in composites(SMALL)
        ]
        assert found.candidates > len(every)  # what is just above was looked at as well
        assert found.measured < found.candidates
        for entry in found.weights:
            best = max(rho for bits, rho in every if bits <= entry.bits)
            assert entry.multiplier.value == pytest.approx(best, abs=3e-3)
        for bits, rho in every:
            assert any(entry.bits <= bits and entry.multiplier.value > rho - 3e-3 for entry in found.weights)

    def test_bits_and_rho_rise_together_within_the_budget(self) -> None:
        found = search(4.0)
        bits = [entry.bits for entry in found.weights]
        rho = [entry.multiplier.value for entry in found.weights]
        assert bits == sorted(set(bits))
        assert rho == sorted(set(rho))
        assert bits[-1] <= 4.0
        assert found.just_above is not None
        assert 4.0 < found.just_above.bits <= 4.2
        assert found.just_above.multiplier.value > rho[-1]

    def test_a_fit_of_the_representation_law_prices_the_whole_error(self, by_error: Fit) -> None:
        found = search(2.3, fit=by_error)
        assert found.voice.source.startswith("representation law")
        winner = found.weights[-1]
        price = float(by_error.law.price(by_error.values, {"gmse_weight": winner.error.value}))
        assert winner.multiplier.value == pytest.approx(price)
        assert winner.multiplier.interval is not None
        assert winner.error.value == min(entry.error.value for entry in found.weights)

    def test_inputs_are_searched_for_apart(self) -> None:
        found = search(4.1, input_bits=8.1)
        rho = found.weights[-1].multiplier.value * found.inputs[-1].multiplier.value
        assert found.multiplier.value == pytest.approx(rho)
        rule = load_spec(found.spec()).rules[0]
        assert rule.input_representation.bits_per_weight(REFERENCE_SHAPE) <= 8.1
        assert rule.weight_representation == found.weights[-1].representation

    def test_named_formats_compete(self) -> None:
        found = search(2.0, also=["qtip2"])
        assert found.weights[-1].borrowed or found.weights[-1].bits <= 2.0
        assert any(
            "trellis" in str(entry.representation) for entry in (*found.weights, found.just_above) if entry
        )

    def test_what_cannot_be_searched(self, fit: Fit) -> None:
        with pytest.raises(RequestError, match="prices only formats that it has runs of"):
            search(4.0, fit=fit)
        with pytest.raises(RequestError, match=r"no representation in 0\.1 bits"):
            search(0.1)

    def test_the_same_answer_every_time(self) -> None:
        assert search(SMALL).to_document() == search(SMALL).to_document()


def test_the_commands_answer_in_words_and_in_json(command: CommandLine, by_error: Fit) -> None:
    save_fit(by_error, command.folder / "fit.json")
    said = command("rank", "int4", "int2", "dense", "--fit", "fit.json", "--json")
    assert said.code == 0
    assert {"source", "per", "unit", "formats", "level_with_best", "just_above", "unknown"} <= set(
        said.document
    )
    assert "dense parameters per stored bit" in command("rank", "int4", "int2", "--source", "quest").out
    said = command("search", "--bits", "1.3", "--out", "mine.yaml", "--json")
    assert said.code == 0
    assert {"winner", "front", "spec", "rho", "candidates", "just_above"} <= set(said.document)
    assert validate_file(Path("mine.yaml")) == []
    assert load_spec("mine.yaml").name == "mine"
    said = command("search", "--bits", "1.3", "--out", "mine.yaml")
    assert said.code == 2
    assert "this file exists" in said.err
    assert "speaks from" in command("search", "--bits", "1.3").out
    assert command("rank", "--source", "nobody").code == 2
