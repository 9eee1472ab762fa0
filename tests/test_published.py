"""Published multipliers: what the papers print, with sources, and what follows from it."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
from scipy.optimize import least_squares

from rhoc import specs
from rhoc.compiler.published_fits import published_fits
from rhoc.compiler.query import Format, format_of, published_rho
from rhoc.compiler.spec import load_spec
from rhoc.runtime.errors import RequestError
from rhoc.runtime.laws import find_law
from rhoc.runtime.laws.compose import PUBLISHED_RESIDUALS, compose
from rhoc.runtime.laws.published import PublishedFit, read_published
from rhoc.runtime.laws.representation import rho_of_gmse

from .public_runs import public_runs

FITS = published_fits()
NAMES = sorted(FITS)

# Gaussian error of the b-bit uniform quantiser with the best clip (quadrature)
UNIFORM = {1: 0.36338023, 2: 0.11884605, 3: 0.03743966, 4: 0.01154288, 8: 8.7686186e-5}
# Gaussian error of magnitude sparsity (closed form)
SPARSE = {
    0.1: 5.2525e-4,
    0.2: 4.24248e-3,
    0.25: 8.34694e-3,
    0.3: 0.01455537,
    0.4: 0.03533963,
    0.5: 0.07132592,
    0.6: 0.12875621,
    0.7: 0.21669292,
    0.75: 0.27639304,
    0.8: 0.35017968,
    0.9: 0.56071394,
}


def best_shape(errors: list[float], rho: list[float]) -> np.ndarray:
    """F and C of least squares on rho, L = 1."""
    bits = -np.log(np.array(errors)) / np.log(4)
    return least_squares(lambda p: np.tanh(p[0] * bits) ** p[1] - rho, [0.4, 1.0], bounds=(0.01, 5)).x


class TestFiles:
    def test_they_are_found(self) -> None:
        assert len(specs.published()) == len(FITS) == 29
        assert specs.path("int4").is_file()
        with pytest.raises(KeyError, match="int44"):
            specs.path("int44")

    @pytest.mark.parametrize("name", NAMES)
    def test_each_says_where_it_is_from(self, name: str) -> None:
        fit = FITS[name]
        assert re.fullmatch(r"\d{4}\.\d{5}", fit.arxiv)
        assert fit.reading in ("paper", "code", "secondary", "computed")
        assert fit.title
        assert fit.where
        assert fit.formula.startswith("L = ")
        assert fit.unit_of_params
        assert fit.data
        assert fit.source["covariance"] == "not published"
        assert (specs.published()[0].parent / f"{name}.yaml").is_file()

    @pytest.mark.parametrize("name", NAMES)
    def test_each_speaks_the_language_of_its_law(self, name: str) -> None:
        law = find_law(FITS[name].law)
        entries = {parameter.name: parameter for parameter in law.parameters}
        for constant in FITS[name].parameters:
            parameter, _, entry = constant.partition("[")
            assert parameter in entries
            assert bool(entries[parameter].column) == bool(entry)
        assert set(FITS[name].missing) <= set(entries)
        assert set(FITS[name].multipliers) <= {"rho", "rho_D"}

    def test_a_secondary_source_says_so(self) -> None:
        fit = FITS["frantar-compression"]
        assert fit.reading == "secondary"
        assert any("not the paper itself" in note for note in fit.notes)

    @pytest.mark.parametrize("name", NAMES)
    def test_matches_name_shipped_specs_and_say_how_well(self, name: str) -> None:
        for spec, match in FITS[name].specs.items():
            assert spec in specs.names()
            assert len(match.how) > 10

    def test_at_most_one_fit_claims_to_have_the_very_format(self) -> None:
        exact = [spec for fit in FITS.values() for spec, match in fit.specs.items() if match.exact]
        assert len(exact) == len(set(exact)) == 13

    def test_a_malformed_file_is_named(self) -> None:
        with pytest.raises(RequestError, match=r"mine\.yaml: not a published fit \(KeyError: 'name'\)"):
            read_published({}, "mine.yaml")
        good = {
            **{key: "x" for key in ("name", "title", "arxiv", "where", "reading", "law", "formula", "data")},
            "unit_of_params": "x",
            "parameters": {},
        }
        table = {"rows": "a", "row_values": [1, 2], "columns": "b", "column_values": [1], "baseline": [1, 1]}
        with pytest.raises(RequestError, match="not as large as"):
            read_published({**good, "table": {**table, "values": [[1.0]]}}, "mine.yaml")
        entry = {"int4": {"entry": "a", "match": "maybe", "how": "?"}}
        with pytest.raises(RequestError, match="match is 'maybe'"):
            read_published({**good, "entries": {"a": 1}, "specs": entry}, "mine.yaml")
        with pytest.raises(RequestError, match=r"mine\.yaml: not a published fit \(ValueError: 'cubic'"):
            read_published({**good, "objective": {"residual": "cubic"}}, "mine.yaml")
        with pytest.raises(RequestError, match=r"mine\.yaml: not a published fit \(KeyError: 'b'"):
            read_published({**good, "multipliers": {"rho": {"int4": "b"}}}, "mine.yaml")
        assert isinstance(read_published(good, "mine.yaml"), PublishedFit)


class TestTables:
    @pytest.mark.parametrize(
        ("name", "largest"),
        [
            ("panferov-fig2b", 0.034),
            ("panferov-fig6", 0.084),
            ("panferov-fig7", 0.079),
            ("panferov-fig9", 0.096),
        ],
    )
    def test_the_product_rule_holds_as_well_as_stated(self, name: str, largest: float) -> None:
        table = FITS[name].table
        assert table is not None
        values = np.array(table.values)
        row, column = table.row_values.index(table.baseline[0]), table.column_values.index(table.baseline[1])
        errors = np.abs(values - values[:, [column]] * values[[row]])
        assert errors.max() == pytest.approx(largest, abs=5.1e-4)
        np.testing.assert_array_equal(table.product_errors(), errors)
        figure = FITS[name].where.partition("Fig. ")[2].partition(" ")[0].replace("(", "").replace(")", "")
        stated = {residual.table: residual.largest for residual in PUBLISHED_RESIDUALS}
        assert stated[f"Fig. {figure}"] == largest

    def test_from_three_bits_the_product_of_fig_9_is_better(self) -> None:
        assert FITS["panferov-fig9"].table.product_errors()[:, 1:].max() == pytest.approx(0.037, abs=5e-4)

    def test_the_products_printed_beside_fig_6(self) -> None:
        printed = [[4, 10, 16, 19], [9, 22, 35, 41], [15, 36, 57, 67], [19, 43, 69, 82]]
        values = np.array(FITS["panferov-fig6"].table.values)
        products = np.outer(values[:-1, -1], values[-1, :-1])
        np.testing.assert_allclose(products, np.array(printed) / 100, atol=0.0101)

    def test_fig_6_is_nearly_of_rank_one(self) -> None:
        singular = np.linalg.svd(np.array(FITS["panferov-fig6"].table.values), compute_uv=False)
        assert singular[1] / singular[0] == pytest.approx(0.038, abs=1e-3)

    def test_a_printed_spread_of_zero_is_not_certainty(self) -> None:
        found = FITS["panferov-fig7"].spec_multiplier("int4")
        assert found.standard_error == 0.005
        assert found.interval == pytest.approx((0.8602, 0.8798), abs=1e-4)

    @pytest.mark.parametrize(
        ("name", "family", "errors", "rho"),
        [
            ("panferov-fig7", "scalar", [UNIFORM[b] for b in (2, 3, 4, 8)], [0.57, 0.75, 0.87, 0.99]),
            ("panferov-fig7", "sparse", [SPARSE[s] for s in (0.25, 0.5, 0.75)], [0.84, 0.70, 0.50]),
            (
                "panferov-fig9",
                "sparse",
                [SPARSE[s / 10] for s in range(1, 10)],
                [0.95, 0.89, 0.84, 0.78, 0.72, 0.64, 0.56, 0.47, 0.35],
            ),
            ("panferov-fig2b", "sparse", [SPARSE[s] for s in (0.2, 0.4, 0.6, 0.8)], [0.84, 0.65, 0.47, 0.27]),
        ],
    )
    def test_computed_families_are_least_squares_fits(
        self, name: str, family: str, errors: list[float], rho: list[float]
    ) -> None:
        slope, curvature = best_shape(errors, rho)
        declared = FITS[name].families[family]
        assert declared.slope.value == pytest.approx(slope, abs=6e-4)
        assert declared.curvature.value == pytest.approx(curvature, abs=6e-4)
        assert "computed" in declared.how


class TestIdentities:
    def test_rho_of_uniform_quantisers(self) -> None:
        expected = {1: 0.1796, 2: 0.4445, 3: 0.6696, 4: 0.8196, 8: 0.9890}
        family = FITS["panferov-llama-c4"].families["scalar"]
        for bits, rho in expected.items():
            assert family.rho(UNIFORM[bits]) == pytest.approx(rho, abs=5e-5)

    @pytest.mark.parametrize(("gmse", "rho"), [(0.012684904, 0.8103), (1.0400454e-3, 0.9533)])
    def test_rho_of_other_grids(self, gmse: float, rho: float) -> None:
        assert FITS["panferov-llama-c4"].families["scalar"].rho(gmse) == pytest.approx(rho, abs=5e-5)

    @pytest.mark.parametrize("bits", [0.5, 1.0, 4.0, 12.0])
    def test_at_the_rate_distortion_bound(self, bits: float) -> None:
        assert rho_of_gmse(4.0**-bits, 0.41, 1.39, 0.9) == pytest.approx(0.9 * np.tanh(0.41 * bits) ** 1.39)

    def test_ends_and_monotonicity(self) -> None:
        assert rho_of_gmse(0.0, 0.41, 1.39) == 1.0
        assert rho_of_gmse(1e-300, 0.41, 1.39, 0.84) == pytest.approx(0.84)
        assert rho_of_gmse(1 - 1e-12, 0.41, 1.39) < 1e-12
        values = [float(rho_of_gmse(g, 0.41, 1.39)) for g in np.geomspace(1e-6, 0.999, 50)]
        assert values == sorted(values, reverse=True)
        for impossible in (1.0, -0.1, 2.0, float("nan")):
            with pytest.raises(RequestError, match="rho is defined for 0 <= GMSE < 1"):
                rho_of_gmse(impossible, 0.41, 1.39)

    @pytest.mark.parametrize(
        ("params", "tokens", "law", "measured"),
        [
            (30482560, 2999975936, 3.2089, 3.2079),
            (102777856, 9999745024, 2.8877, 2.8858),
            (822151168, 79999795200, 2.4609, 2.4610),
        ],
    )
    def test_the_law_of_quartet(self, params: float, tokens: float, law: float, measured: float) -> None:
        loss, reason = FITS["quartet"].loss(params, tokens, 1.0)
        assert reason == ""
        assert loss == pytest.approx(law, abs=6e-5)
        assert loss == pytest.approx(measured, rel=1e-3)

    def test_the_law_of_quest_meets_its_runs(self) -> None:
        assert FITS["quest"].loss(30482560, 2999975936, 1.0)[0] == pytest.approx(3.20714, rel=5e-3)
        assert FITS["quest"].loss(203188480, 19999752192, 0.840434)[0] == pytest.approx(2.75569, rel=5e-3)

    def test_quest_factorises(self) -> None:
        entries = {name: number.value for name, number in FITS["quest"].entries.items()}
        for bits, square in {1: 0.0192, 2: 0.1712, 3: 0.4265, 4: 0.7063}.items():
            assert entries[f"W{bits}A16"] ** 2 == pytest.approx(square, abs=5e-5)
            assert entries[f"W{bits}A{bits}"] == pytest.approx(square, abs=0.02)

    def test_the_interval_of_a_family_is_that_of_its_constants(self) -> None:
        """Against sampling F and C."""
        found = FITS["panferov-llama-c4"].family_multiplier("int4-a4", [("scalar", UNIFORM[4])] * 2)
        random = np.random.default_rng(0)
        slope, curvature = random.normal(0.41, 0.02, 200_000), random.normal(1.39, 0.08, 200_000)
        sampled = np.tanh(slope * -np.log(UNIFORM[4]) / np.log(4)) ** (2 * curvature)
        assert found.value == pytest.approx(0.8196**2, abs=1e-4)
        assert found.standard_error == pytest.approx(sampled.std(), rel=0.03)


class TestLawsReproduceTheirPapers:
    """The loss of each law at published constants against figures that the papers print, or that follow."""

    @pytest.mark.parametrize(("name", "exponent"), [("hoffmann-digits", 0.46), ("besiroglu", 0.513)])
    def test_the_best_size_grows_as_printed(self, name: str, exponent: float) -> None:
        """N that is best at C = 6 N D goes as C^a."""
        sizes = np.geomspace(1e8, 1e12, 40_001)
        best = []
        for compute in (1e21, 1e23):
            losses = find_law("chinchilla").loss(FITS[name].values, sizes, compute / 6 / sizes)
            best.append(sizes[np.argmin(losses)])
        assert np.log10(best[1] / best[0]) / 2 == pytest.approx(exponent, abs=4e-3)

    def test_kaplan_has_a_loss_of_one_at_its_critical_counts(self) -> None:
        fit = FITS["kaplan"]
        assert fit.loss(6.4e13, 1e60, 1.0)[0] == pytest.approx(1.0, rel=1e-6)
        assert fit.loss(1e60, 1.8e13, 1.0)[0] == pytest.approx(1.0, rel=1e-6)

    @pytest.mark.parametrize("name", ["kaplan", "frantar-t5", "frantar-vit", "capybara"])
    def test_what_is_printed_in_other_terms_follows_from_the_constants(self, name: str) -> None:
        fit = FITS[name]
        derived = find_law(fit.law).derived
        assert derived
        for quantity, text in derived.items():
            value = eval(text.replace("^", "**"), {"__builtins__": {}}, fit.values)
            assert value == pytest.approx(fit.also[quantity].value, rel=3e-5)

    def test_repeated_tokens(self) -> None:
        """After R_D repetitions, those are worth 1 - 1/e of fresh ones."""
        fit, unique = FITS["muennighoff"], 1e9
        repeats = fit.values["R_D"]
        repeated, _ = fit.loss(1e9, unique * (1 + repeats), 1.0, {"unique_tokens": unique})
        fresh, _ = fit.loss(1e9, unique * (1 + repeats * (1 - np.exp(-1))), 1.0)
        assert repeated == pytest.approx(fresh, rel=1e-12)
        assert repeats == pytest.approx(15.39, abs=5e-3)

    @pytest.mark.parametrize(
        ("bits", "factors"),
        [(4, (0.776, 0.836, 0.985)), (8, (0.950, 0.973, 1.000)), (16, (0.998, 0.999, 1.0))],
    )
    def test_precision(self, bits: int, factors: tuple[float, ...]) -> None:
        """Without offsets, as the law is printed."""
        law, untouched = find_law("precision"), {c.name: 1e9 for c in find_law("precision").columns}
        values = FITS["kumar"].values | {"n_w": 0.0, "n_a": 0.0, "n_kv": 0.0}
        for column, factor in zip(untouched, factors, strict=True):
            assert law.price(values, {**untouched, column: float(bits)}) == pytest.approx(factor, abs=6e-4)
        product = law.price(values, dict.fromkeys(untouched, float(bits)))
        assert product == pytest.approx({4: 0.639, 8: 0.924, 16: 0.997}[bits], abs=6e-4)

    def test_rounding_after_training(self) -> None:
        """C_T D^g_D/N^g_N exp(b - bits/g) on top of the same law."""
        fit, where = FITS["kumar-ptq"], (1.1e8, 2.6e10)
        added = fit.loss(*where, 1.0, {"post_bits": 4.0})[0] - FITS["kumar"].loss(*where, 1.0)[0]
        expected = 0.0598 * where[1] ** 0.5068 / where[0] ** 0.3439 * np.exp(1.1277 - 4 / 0.5907)
        assert added == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize(
        ("name", "rms", "rms_log"), [("frantar-t5", 0.0253, 0.01038), ("frantar-vit", 0.0796, 0.01054)]
    )
    def test_sparse_training_on_its_runs(self, name: str, rms: float, rms_log: float) -> None:
        with public_runs(name.replace("-", "_")).open(encoding="utf-8") as file:
            rows = [
                {k: float(v) for k, v in row.items() if k != "representation"} for row in csv.DictReader(file)
            ]
        losses = np.array(
            [FITS[name].loss(r["params"], r["tokens"], 1.0, {"sparsity": r["sparsity"]})[0] for r in rows]
        )
        measured = np.array([row["loss"] for row in rows])
        assert np.sqrt(np.mean((losses - measured) ** 2)) == pytest.approx(rms, abs=6e-5)
        assert np.std(np.log(losses / measured)) == pytest.approx(rms_log, abs=1e-5)

    def test_sparse_training_beyond_its_runs(self) -> None:
        """The extrapolation run: three quarters zero, 604M non-zero, half a million steps; measured 1.48278."""
        found, _ = FITS["frantar-t5"].loss(48 * 12 * 1024**2, 500_000 * 128 * 512, 1.0, {"sparsity": 0.75})
        assert found == pytest.approx(1.46830, abs=6e-6)

    @pytest.mark.parametrize("name", ["frantar-t5", "frantar-vit"])
    def test_multipliers_on_all_parameters(self, name: str) -> None:
        """A sparse model has the loss of a dense one of eff times all its parameters."""
        for entry, eff in FITS[name].entries.items():
            sparsity = float(entry.split()[1])
            sparse, _ = FITS[name].loss(1e9 * (1 - sparsity), 1e11, 1.0, {"sparsity": sparsity})
            assert FITS[name].loss(1e9 * eff.value, 1e11, 1.0)[0] == pytest.approx(sparse, rel=5e-5)

    @pytest.mark.parametrize(
        ("exponent", "mantissa", "critical"), [(8, 7, 1729.5e12), (4, 3, 27.33e12), (2, 1, 0.3928e12)]
    )
    def test_more_tokens_hurt_from_the_critical_number_on(
        self, exponent: int, mantissa: int, critical: float
    ) -> None:
        tokens = np.geomspace(critical / 3, critical * 3, 20_001)
        features = {"exponent_bits": exponent, "mantissa_bits": mantissa, "block_size": 128}
        losses = find_law("floating-point").loss(FITS["capybara"].values, 1e9, tokens, 1.0, features)
        assert tokens[np.argmin(losses)] == pytest.approx(critical, rel=2e-3)

    def test_quantisation_aware_training(self) -> None:
        fit = FITS["chen-w4a4"]
        dense, _ = fit.loss(595e6, 100e9, 1.0)
        assert dense == pytest.approx(2.74066, abs=6e-6)
        for params, tokens, group, added in (
            (595e6, 100e9, 32.0, 0.04409),
            (595e6, 100e9, 128.0, 0.05728),
            (74e6, 10e9, 128.0, 0.07610),
        ):
            features = {"representation": "w4a4", "group_size": group}
            found = fit.loss(params, tokens, 1.0, features)[0] - fit.loss(params, tokens, 1.0)[0]
            assert found == pytest.approx(added, abs=6e-6)

    def test_a_loss_needs_what_the_law_reads(self) -> None:
        assert FITS["capybara"].loss(1e9, 1e11, 1.0) == (
            None,
            "capybara needs exponent_bits, mantissa_bits, block_size to tell a loss",
        )


class TestAnswers:
    def test_the_very_format_is_answered_from_its_table(self) -> None:
        assert published_rho("int4").value == 0.840434
        assert published_rho("int4").note.startswith("same format: INT weights, Hadamard blocks of 128")
        assert published_rho("sparse50").value == 0.70

    def test_matching_is_by_stages_and_not_by_name(self) -> None:
        document = load_spec("int4").to_document()
        renamed = load_spec({**document, "name": "mine"})
        assert published_rho(renamed).value == 0.840434
        coarse = load_spec({**document, "name": "int4"}).to_document()
        coarse["rules"][0]["weights"] = coarse["rules"][0]["weights"][1:]  # no rotation any more
        found = published_rho(load_spec(coarse))
        assert found.origin.fit == "panferov-llama-c4"
        assert found.value == pytest.approx(0.8196, abs=1e-4)

    def test_other_grids_are_answered_by_their_error(self) -> None:
        found = published_rho("fp4")
        assert found.origin.fit == "panferov-llama-c4"
        assert found.value == pytest.approx(0.8103, abs=5e-5)
        assert "alpha 0.13" in found.source
        assert published_rho(Format.of_gmse(4.0**-3)).value == pytest.approx(np.tanh(1.23) ** 1.39)

    def test_sparsity_is_answered_by_its_own_family(self) -> None:
        pair, both = published_rho("2of4"), published_rho("2of4-int4")
        assert pair.origin.fit == both.origin.fit == "panferov-fig7"
        scalar = FITS["panferov-fig7"].families["scalar"]
        assert both.value == pytest.approx(pair.value * scalar.rho(UNIFORM[4]), rel=1e-6)

    def test_dense_is_the_unit(self) -> None:
        assert published_rho("dense").value == 1.0
        assert published_rho("dense", "quest").origin.fit == "quest"

    def test_a_source_can_be_chosen(self) -> None:
        assert published_rho("int4", "panferov-llama-c4").value == pytest.approx(0.8196, abs=5e-5)
        near = published_rho("int4", "panferov-fig6")
        assert near.value == 0.90
        assert near.note.startswith("near, not the same format")

    def test_refusals(self) -> None:
        with pytest.raises(RequestError, match="no published fit is called 'qwest'; did you mean 'quest'"):
            published_rho("int4", "qwest")
        with pytest.raises(
            RequestError, match="quest has no constants for the scalar family, which 'int5' needs"
        ):
            published_rho("int5", "quest")
        with pytest.raises(RequestError, match="quest has no entry for 'int5'; it has: int1, int2"):
            FITS["quest"].spec_multiplier("int5")
        with pytest.raises(RequestError, match="panferov-llama-c4 has no constants for the sparse family"):
            published_rho("sparse90", "panferov-llama-c4")

    def test_a_family_without_constants_borrows_those_of_scalars_and_says_so(self) -> None:
        borrowed = published_rho("quip-sharp2")
        assert (
            borrowed.value
            == published_rho(Format.of_gmse(format_of(load_spec("quip-sharp2")).gmse_weight)).value
        )
        assert "a part of no published family is taken as a scalar format" in borrowed.note
        assert "no published family" not in published_rho("int4-g128").note

    def test_published_fits_do_not_compose_with_one_another(self) -> None:
        with pytest.raises(RequestError, match="come from different fits") as caught:
            compose([published_rho("int4"), published_rho("sparse50")])
        assert "alpha 0.0627" in str(caught.value)
        assert "exponents not published" in str(caught.value)
        same = compose([FITS["panferov-fig7"].spec_multiplier(n) for n in ("int4", "sparse50")]).multiplier
        assert same.value == pytest.approx(0.87 * 0.70)
        assert same.interval is None

    def test_only_laws_with_both_weights_predict_a_loss(self) -> None:
        loss, reason = FITS["panferov-llama-c4"].loss(1e8, 1e10, 1.0)
        assert loss is None
        assert reason == "panferov-llama-c4 does not publish A, B, so it gives effective parameters alone"

    @pytest.mark.parametrize("name", specs.names())
    def test_every_shipped_spec_has_an_answer(self, name: str) -> None:
        format_ = format_of(load_spec(name))
        assert format_.parts is not None
        assert 0 < published_rho(format_).value <= 1.02
