"""The codebook stage: what it stores and restores, against brute force, scalar tables and each other."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rhoc.runtime.capacity import gmse
from rhoc.runtime.codebooks import e8p, fixed
from rhoc.runtime.codebooks.books import Books
from rhoc.runtime.codebooks.gaussian import gaussian_table
from rhoc.runtime.errors import RequestError
from rhoc.runtime.gaussian import Source
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Sparsify
from rhoc.runtime.stages.codebook import Codebook

CASES = {
    "k-means": Codebook(nbits_per_codebook=4),
    "k-means of rows": Codebook(nbits_per_codebook=3, scope="group", rows_per_codebook=2),
    "k-means with scales": Codebook(nbits_per_codebook=4, observer="rms", strategy="channel"),
    "one bit": Codebook(nbits_per_codebook=1, codebook_dtype="bfloat16"),
    "more codes than vectors": Codebook(4, 1, 10),
    "residual": Codebook(4, 2, 3),
    "additive": Codebook(2, 3, 2, composition="additive"),
    "product": Codebook(6, 3, 4, composition="product"),
    "gaussian": Codebook(2, 1, 8, "gaussian"),
    "gaussian, long codes": Codebook(
        2, 1, 9, "gaussian", strategy="group", group_size=5, scale_dtype="float16"
    ),
    "gaussian, several": Codebook(3, 2, 6, "gaussian", "additive"),
    "gaussian scalar": Codebook(1, 1, 3, "gaussian", observer="absmax", strategy="channel"),
    "gaussian without a scale": Codebook(2, 1, 4, "gaussian", observer="none"),
    "e8p": Codebook(8, 1, 16, "e8p", strategy="channel"),
    "e8p, several": Codebook(8, 2, 16, "e8p"),
    "d4": Codebook(4, 1, 8, "d4", strategy="group", group_size=6),
    "e8": Codebook(8, 1, 9, "e8"),
    "table": Codebook(2, 1, 2, "table", table=(1.0, 0.0, 0.0, 1.0, -1.0, 0.0, 0.0, -1.0)),
}
SHAPES = ((1,), (7,), (3, 12), (2, 3, 5), (0,), (4, 0), (0, 5))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def whole(stage: Codebook) -> Representation:
    return Representation((stage,))


def relative_error(stage: Codebook, x: Tensor) -> float:
    lost = x.double() - whole(stage).project(x).double()
    return float(lost.square().sum() / x.double().square().sum())


# what is stored


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layout_codes_and_packing_agree(case: str, shape: tuple[int, ...]) -> None:
    representation = whole(CASES[case])
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        for x in (
            normal(*shape, dtype=dtype),
            torch.zeros(shape, dtype=dtype),
            torch.empty(shape, dtype=dtype, device="meta"),
        ):
            code = representation.encode(x)
            restored = representation.decode(code)
            assert (restored.shape, restored.dtype, restored.device) == (x.shape, dtype, x.device)
            sized = {name: (tuple(field.shape), field.dtype) for name, field in code.named().items()}
            layout = representation.layout(shape, dtype)
            assert sized == {name: (field.shape, field.dtype) for name, field in layout.items()}
            if x.is_meta:
                continue
            assert restored.isfinite().all()
            assert torch.equal(restored, representation.project(x))
            stored = representation.pack(code)
            assert {name: tuple(t.shape) for name, t in stored.items()} == {
                n: f.stored_shape for n, f in layout.items()
            }
            assert torch.equal(representation.decode(representation.unpack(stored, shape, dtype)), restored)
            if not bool(x.any()) and (CASES[case].scaled or CASES[case].source == "kmeans"):
                assert not restored.any()


def test_bits_are_those_of_codes_codebooks_and_scales() -> None:
    shape = (64, 128)
    assert (
        whole(Codebook(8, 1, 16, "e8p", scale_dtype="float16")).nbytes(shape, torch.float32)
        == 64 * 128 // 4 + 2
    )
    assert whole(Codebook(2, 1, 8)).nbytes(shape, torch.float32) == 64 * 64 + 256 * 2 * 2
    assert whole(Codebook(8, 2, 12)).nbytes(shape, torch.float32) == 64 * 16 * 3 + 2 * 4096 * 8 * 2
    assert (
        whole(Codebook(6, 3, 5, composition="product")).nbytes((4, 13), torch.float32)
        == 4 * 6 + 3 * 32 * 2 * 2
    )
    grouped = Codebook(2, 1, 4, scope="group", rows_per_codebook=24)
    assert whole(grouped).nbytes(shape, torch.float32) == 64 * 32 + 3 * 16 * 2 * 2


def test_a_tail_is_a_vector_filled_up_with_zeros() -> None:
    stage = whole(Codebook(4, 1, 8, "gaussian", observer="none")).bound_stages[0]
    x = normal(5, 7)
    carry, fields = stage.encode(x)
    padded, _ = stage.encode(torch.nn.functional.pad(x, (0, 1)))
    assert torch.equal(carry, padded)
    assert carry.shape == (5, 2)
    assert fields["tail"].shape == (0, 1)
    assert stage.decode(carry, fields).shape == (5, 7)


@pytest.mark.parametrize("case", CASES)
def test_the_same_numbers_give_the_same_code_however_they_lie(case: str) -> None:
    x = normal(12, 24)
    representation = whole(CASES[case])
    one, other = representation.encode(x), representation.encode(x.T.contiguous().T.requires_grad_())
    for name, tensor in one.named().items():
        assert torch.equal(tensor, other.named()[name])
        assert not other.named()[name].requires_grad


# what is restored


@pytest.mark.parametrize(
    "case", ["gaussian", "gaussian, long codes", "d4", "e8", "k-means", "k-means of rows", "table"]
)
def test_each_vector_becomes_the_nearest_one(case: str) -> None:
    stage = whole(CASES[case]).bound_stages[0]
    assert isinstance(stage, Codebook)
    x = normal(4, 16 * stage.in_group_size)
    _, fields = stage.encode(x)
    scale = torch.ones(4, x.shape[1])
    if "scale" in fields:
        of = fields["scale"].float()
        scale = (
            of.repeat_interleave(stage.group_size or 10**6, -1)[:, : x.shape[1]]
            if of.ndim > 1
            else scale * of
        )
    found = stage.decode(*stage.encode(x))
    for row in range(4):
        if stage.source == "kmeans":
            group = row // (stage.rows_per_codebook or 4)
            points = fields["codebook"][group, 0].float()
        elif stage.table is not None:
            points = torch.tensor(stage.table).reshape(-1, 2)
        else:
            assert stage.factors is not None
            points = (
                fixed.points(stage.source, stage.in_group_size, stage.nbits_per_codebook) * stage.factors[0]
            )
        vectors = x[row].reshape(-1, 1, stage.in_group_size)
        candidates = points * scale[row].reshape(-1, 1, stage.in_group_size)  # scales may change in a vector
        least = (vectors - candidates).square().sum(2).min(1).values
        taken = (vectors.squeeze(1) - found[row].reshape(-1, stage.in_group_size)).square().sum(1)
        assert taken.numpy() == pytest.approx(least.numpy(), abs=1e-5)


@pytest.mark.parametrize(
    ("stage", "most"),
    [
        (Codebook(2, 1, 8), 0.00780),  # the target of a table fitted to the numbers
        (Codebook(2, 1, 8, "gaussian"), 0.00780),
        (Codebook(8, 1, 16, "e8p"), 0.0917),  # QuIP# 2402.04396
        (Codebook(8, 2, 16, "e8p"), 0.0102),
        (Codebook(4, 1, 8, "d4"), 0.105),
        (Codebook(2, 1, 4, "gaussian"), 0.1128),
    ],
    ids=str,
)
def test_gaussian_error_is_as_low_as_published(stage: Codebook, most: float) -> None:
    x = normal(512, 1024)
    error = relative_error(stage, x)
    bits = stage.num_codebooks * stage.nbits_per_codebook / stage.in_group_size
    assert 4.0**-bits < error <= most


def test_a_scalar_table_has_its_error_by_quadrature() -> None:
    for bits, lloyd_max in ((1, 0.3633802), (2, 0.1174818), (3, 0.0345478), (4, 0.00950101)):
        found = gmse(whole(Codebook(1, 1, bits, "gaussian")))
        assert found.method == "quadrature"
        assert found.value == pytest.approx(lloyd_max, rel=1e-5)
        assert relative_error(Codebook(1, 1, bits, "gaussian"), normal(256, 1024)) == pytest.approx(
            lloyd_max, rel=0.02
        )
    assert gmse(whole(Codebook(2, 1, 2, "gaussian"))).method == "monte carlo"
    sparse = Representation((Sparsify(0.5), Codebook(1, 1, 3, "gaussian")))
    assert gmse(sparse).method == "quadrature"
    x = normal(512, 1024)
    assert float((x - sparse.project(x)).square().mean()) == pytest.approx(gmse(sparse).value, rel=0.02)


def test_factors_suit_what_a_stage_is_handed() -> None:
    chain = Representation((Sparsify(0.5), Codebook(4, 1, 8, "gaussian")))
    stage = chain.bound_stages[1]
    assert isinstance(stage, Codebook)
    survivors, _ = Sparsify(0.5).encode(normal(512, 1024, seed=8))

    def error(factor: float) -> float:
        return relative_error(replace(stage, factors=(factor,)), survivors)

    assert stage.factors is not None
    assert error(stage.factors[0]) < 1.003 * min(error(0.6 + 0.05 * i) for i in range(13))
    assert whole(Codebook(4, 1, 8, "gaussian")).bound_stages[0].factors == (1.0,)  # type: ignore[attr-defined]
    rotated = Representation((Hadamard(64), Codebook(8, 1, 16, "e8p"))).bound_stages[1]
    assert rotated == whole(Codebook(8, 1, 16, "e8p")).bound_stages[0]
    given = Codebook(8, 1, 16, "e8p", factors=(0.9,))
    assert given.bound(Source()) is given


def test_scales_are_the_rms_or_largest_of_those_who_share_one() -> None:
    x = normal(6, 13) * torch.arange(1, 7).unsqueeze(1)
    rms = lambda part: part.square().mean(-1).sqrt()  # noqa: E731
    stage = Codebook(2, 1, 4, "gaussian", factors=(1.0,))
    assert torch.allclose(stage.encode(x)[1]["scale"], rms(x.flatten()))
    assert torch.allclose(replace(stage, strategy="channel").encode(x)[1]["scale"], rms(x))
    grouped = replace(stage, strategy="group", group_size=5).encode(x)[1]["scale"]
    assert torch.allclose(grouped, torch.stack([rms(x[:, :5]), rms(x[:, 5:10]), rms(x[:, 10:])], 1))
    largest = replace(stage, strategy="channel", observer="absmax", scale_dtype="float16").encode(x)[1][
        "scale"
    ]
    table = gaussian_table(2, 16)
    assert table is not None
    assert torch.allclose(largest.float(), x.abs().amax(1) / table.abs().max(), rtol=1e-3)
    tiny = torch.full((2, 8), 1e-30)
    assert torch.allclose(replace(stage, strategy="channel").encode(tiny)[1]["scale"], tiny[:, 0], atol=0)


# several codebooks


def test_a_wide_enough_beam_is_an_exhaustive_search() -> None:
    x, points = normal(200, 3), normal(3, 4, 3, seed=1)
    sums = torch.stack(
        [points[0, i] + points[1, j] + points[2, k] for i, j, k in itertools.product(range(4), repeat=3)]
    )
    best = (x.unsqueeze(1) - sums).square().sum(2)

    def loss(composition: str, beam_size: int, weights: Tensor | None = None) -> Tensor:
        books = Books(points, composition, beam_size)  # type: ignore[arg-type]
        squares = (x - books.decode(books.encode(x, weights))).square()
        return (squares if weights is None else squares * weights).sum(1)

    assert torch.allclose(loss("additive", 64), best.min(1).values, atol=1e-5)
    assert torch.allclose(loss("additive", 1), loss("residual", 1), atol=1e-5)
    assert float(loss("additive", 4).sum()) < 0.99 * float(loss("residual", 1).sum())
    weights = normal(200, 3, seed=2).exp()
    weighted = ((x.unsqueeze(1) - sums).square() * weights.unsqueeze(1)).sum(2)
    assert torch.allclose(loss("additive", 64, weights), weighted.min(1).values, atol=1e-4)


def test_more_codebooks_and_searching_together_lower_the_error() -> None:
    x = normal(256, 512)
    single, residual = Codebook(4, 1, 5), Codebook(4, 2, 5)
    errors = [
        relative_error(stage, x) for stage in (single, residual, replace(residual, composition="additive"))
    ]
    assert errors[1] < 0.4 * errors[0]
    assert errors[2] < 0.95 * errors[1]
    known = Codebook(4, 2, 5, "gaussian")
    greedy, narrow, wide = (
        relative_error(replace(known, composition=composition, beam_size=size), x)
        for composition, size in (("residual", 1), ("additive", 2), ("additive", 8))
    )
    assert wide < narrow < greedy


def test_a_product_is_codebooks_of_parts() -> None:
    x = normal(8, 32)
    parts = Codebook(4, 2, 6, "gaussian", "product")
    assert torch.equal(whole(parts).project(x), whole(Codebook(2, 1, 6, "gaussian")).project(x))
    fitted = Codebook(4, 2, 4, composition="product", codebook_dtype="float32").encode(x)[1]["codebook"]
    for part in range(2):
        own = torch.unflatten(x, -1, (8, 4))[..., 2 * part : 2 * part + 2].flatten(-2)
        alone = Codebook(2, 1, 4, codebook_dtype="float32", seed=part).encode(own)[1]["codebook"]
        assert torch.equal(fitted[0, part], alone[0, 0])


def test_rows_that_share_a_codebook_are_encoded_by_themselves() -> None:
    x = normal(7, 40) * torch.logspace(-2, 2, 7).unsqueeze(1)
    shared = Codebook(2, 1, 3, scope="group", rows_per_codebook=3)
    apart = torch.cat([whole(Codebook(2, 1, 3)).project(rows) for rows in x.split(3)])
    assert torch.equal(whole(shared).project(x), apart)


# importance, refit, sharing


@pytest.mark.parametrize(
    "case", ["k-means", "k-means with scales", "additive", "product", "gaussian", "residual"]
)
def test_importance_lowers_the_error_that_counts(case: str) -> None:
    stage = whole(CASES[case]).bound_stages[0]
    assert isinstance(stage, Codebook)
    x, importance = normal(32, 48), (2 * normal(48, seed=4)).exp()
    plain, weighted = stage.encode(x), stage.encode_weighted(x, importance)
    assert weighted[2] is None

    def counted(carry: Tensor, fields: dict[str, Tensor]) -> float:
        return float(((x - stage.decode(carry, fields)).square() * importance).sum())

    assert counted(*weighted[:2]) < 0.97 * counted(*plain)


def test_uniform_importance_changes_nothing_that_counts() -> None:
    x = normal(32, 48)
    stage = Codebook(2, 1, 4)
    weighted = stage.decode(*stage.encode_weighted(x, torch.ones(1))[:2])
    assert float((x - weighted).square().sum()) == pytest.approx(
        float((x - stage.decode(*stage.encode(x))).square().sum()), rel=0.03
    )


@pytest.mark.parametrize(
    "case", ["k-means", "k-means of rows", "k-means with scales", "residual", "additive", "product"]
)
def test_refitting_lowers_the_error_with_the_codes_held(case: str) -> None:
    stage = replace(CASES[case], codebook_dtype="float32")
    x = normal(12, 48)
    carry, fields = stage.encode(x)
    moved = x + 0.3 * normal(12, 48, seed=9)
    before = {**fields, "codebook": fields["codebook"] + 0.05}
    after = stage.refit(moved, carry, before)
    lost = [float((moved - stage.decode(carry, some)).square().sum()) for some in (before, fields, after)]
    assert lost[2] < min(lost[:2])
    assert set(after) == set(fields)
    if case == "k-means":  # least squares for one codebook is the mean of each cell
        for code in carry.unique():
            cell = moved.reshape(-1, 2)[carry.flatten() == code]
            assert torch.allclose(after["codebook"][0, 0, int(code)], cell.mean(0), atol=1e-6)


def test_one_table_serves_several_tensors_and_is_not_stored_with_them() -> None:
    tensors = [normal(16, 32, seed=seed) for seed in range(3)]
    stage = Codebook(2, 1, 5).shared(tensors)
    assert stage.source == "table"
    assert hash(stage) == hash(Codebook(2, 1, 5).shared(tensors))
    assert stage.table is not None
    assert torch.tensor(stage.table).half().double().tolist() == list(stage.table)
    assert set(whole(stage).encode(tensors[0]).named()) == {"carry"}
    together = relative_error(Codebook(2, 1, 5), torch.cat(tensors))
    apart = sum(relative_error(stage, x) for x in tensors) / 3
    assert apart == pytest.approx(together, rel=0.05)
    additive = Codebook(4, 2, 4, composition="additive").shared(tensors)
    assert sum(relative_error(additive, x) for x in tensors) / 3 < 0.2
    scaled = Codebook(2, 1, 5, observer="rms", strategy="channel").shared(tensors)
    assert relative_error(scaled, 1000 * tensors[0]) < 0.1


# what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_group_size": 0}, "in_group_size must be positive"),
        ({"nbits_per_codebook": 17}, "nbits_per_codebook must be between 1 and 16"),
        ({"in_group_size": 8, "num_codebooks": 3, "composition": "product"}, "num_codebooks that divides it"),
        (
            {
                "in_group_size": 8,
                "num_codebooks": 2,
                "nbits_per_codebook": 16,
                "source": "e8p",
                "composition": "additive",
            },
            "composition: residual",
        ),
        ({"strategy": "group", "observer": "rms"}, "group_size go together"),
        ({"strategy": "group", "observer": "rms", "group_size": 0}, "group_size must be positive"),
        ({"strategy": "channel"}, "add observer: rms"),
        ({"scope": "group"}, "rows_per_codebook go together"),
        ({"scope": "group", "rows_per_codebook": 0}, "needs source: kmeans"),
        ({"source": "gaussian", "scope": "group", "rows_per_codebook": 4}, "needs source: kmeans"),
        ({"source": "gaussian", "nbits_per_codebook": 13}, "or choose source: kmeans"),
        ({"source": "gaussian", "in_group_size": 7}, "there are in_group_size 1, 2"),
        ({"init": "gaussian", "in_group_size": 7}, "init: gaussian needs a Gaussian table"),
        ({"source": "e8p"}, "e8p has in_group_size 8 and nbits_per_codebook 16"),
        ({"source": "d4"}, "d4 has in_group_size 4"),
        ({"factors": (1.0,)}, "factors are positive"),
        ({"source": "gaussian", "factors": (1.0, 1.0)}, "one for each codebook"),
        ({"source": "gaussian", "factors": (0.0,)}, "factors are positive"),
        ({"source": "table"}, "table go together"),
        ({"source": "table", "table": (1.0,)}, "must hold 512 finite numbers, got 1"),
        ({"source": "table", "nbits_per_codebook": 12, "table": (1.0,)}, "at most 4096 numbers"),
        (
            {"source": "table", "in_group_size": 1, "nbits_per_codebook": 1, "table": (1.0, math.nan)},
            "finite",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Codebook(**options)  # type: ignore[arg-type]


def test_requests_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(RequestError, match="a single number has none"):
        whole(Codebook()).encode(torch.tensor(1.0))
    with pytest.raises(
        RequestError, match="do not suit codebook_dtype float16; choose codebook_dtype: bfloat16"
    ):
        Codebook().encode(torch.full((4, 4), 1e20))
    with pytest.raises(RequestError, match="codebook_dtype"):
        Codebook().encode(torch.full((4, 4), 1e-20))
    with pytest.raises(RequestError, match="scale_dtype float16"):
        Codebook(observer="rms", scale_dtype="float16").encode(torch.full((4, 4), 1e20))
    with pytest.raises(RequestError, match="only source: kmeans can be refitted"):
        Codebook(2, 1, 4, "gaussian", factors=(1.0,)).refit(normal(4, 4), torch.zeros(4, 2), {})
    with pytest.raises(RequestError, match="a shared table holds at most 4096 numbers"):
        Codebook(8, 1, 12).shared([normal(4, 4)])
    with pytest.raises(RequestError, match="fitted by source: kmeans"):
        Codebook(2, 1, 4, "gaussian").shared([normal(4, 4)])
    with pytest.raises(RequestError, match="through a Representation"):
        Codebook(2, 1, 4, "gaussian").encode(normal(4, 4))


def test_e8p_codes_of_its_own_points_are_themselves() -> None:
    codes = torch.arange(0, 1 << 16, 7, dtype=torch.int32).reshape(-1, 1)
    stage = Codebook(8, 1, 16, "e8p", observer="none", factors=(1.0,))
    x = stage.decode(codes, {})
    assert torch.equal(x, e8p.points()[::7])
    assert torch.equal(stage.encode(x)[0], codes)
