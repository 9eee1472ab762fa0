"""Fitting represented weights: codes like those of `encode`, what is refused, and what is measured of inputs."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace

import pytest
import torch
from torch import Tensor

from rhoc.runtime.calibration import (
    FITTERS,
    Awq,
    Fitter,
    Gptq,
    Gram,
    GramAccumulator,
    LowRank,
    RoundToNearest,
    SparseGptq,
    gram,
    search_scale,
)
from rhoc.runtime.errors import RequestError
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import (
    Codebook,
    Entropy,
    Hadamard,
    Product,
    Quantize,
    RandomRotation,
    Scale,
    Sparsify,
    Split,
    Stage,
    Trellis,
)

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SIZE = 80


def chain(*stages: Stage) -> Representation:
    return Representation(stages)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(seed: int, rows: int = 400, size: int = SIZE) -> Tensor:
    mix = normal(seed, size, size) / size**0.5 * torch.linspace(0.3, 2, size)
    return normal(seed + 1, rows, size) @ mix + 0.1 * normal(seed + 2, rows, size)


INT4 = chain(Quantize(4, strategy="channel"))
GROUPS = chain(Quantize(4, strategy="group", group_size=16))
CASES: dict[str, tuple[Fitter, Representation]] = {
    "nearest": (RoundToNearest(), GROUPS),
    "wanda": (RoundToNearest(weighted=True), chain(Sparsify(0.5, granularity="row", scores="given"))),
    "weighted, rotated": (RoundToNearest(weighted=True), chain(Hadamard(16), Quantize(3, observer="mse"))),
    "int": (Gptq(), INT4),
    "groups that leave a rest": (Gptq(), chain(Quantize(4, strategy="group", group_size=48))),
    "one code for all": (Gptq(), chain(Quantize(2, observer="rms", grid="midrise"))),
    "blocks": (Gptq(), chain(Quantize(4, strategy="block", block_structure=(7, 32)))),
    "asymmetric": (Gptq(), chain(Quantize(3, symmetric=False, strategy="group", group_size=20))),
    "hqq": (Gptq(), chain(Quantize(4, symmetric=False, observer="hqq", zp_dtype="float16", strategy="channel"))),
    "ordered": (Gptq(act_order=True, static_groups=True), GROUPS),
    "nf4": (Gptq(), chain(Quantize(4, "float", grid="nf4", strategy="group", group_size=16))),
    "signed": (Gptq(), chain(Quantize(4, absmax_rule="signed", strategy="group", group_size=16))),
    "nvfp4": (Gptq(), chain(RandomRotation(16), Quantize(4, "float", strategy="tensor_group"))),
    "mx": (Gptq(), chain(Quantize(4, "float", strategy="group", group_size=32, observer="mx_floor"))),
    "three quarters": (Gptq(), chain(Quantize(4, "float", strategy="group", group_size=32, observer="three_quarters"))),
    "nested": (Gptq(), chain(Quantize(4, strategy="group", group_size=16, scales=chain(Quantize(8, symmetric=False))))),
    "scaled": (Gptq(), chain(Scale("columns"), Hadamard(16), Scale("rows", "absmax", "e8m0"), Quantize(4))),
    "k-means": (Gptq(), chain(Codebook(in_group_size=1, nbits_per_codebook=3))),
    "vectors": (Gptq(), chain(Codebook(in_group_size=3, nbits_per_codebook=6, scope="group", rows_per_codebook=10))),
    "e8": (Gptq(), chain(Hadamard(16), Codebook(in_group_size=8, nbits_per_codebook=8, source="e8"))),
    "additive": (Gptq(), chain(Codebook(4, 2, 5, composition="additive", strategy="group", group_size=10, observer="rms"))),
    "coded": (Gptq(), chain(Hadamard(16), Entropy(INT4))),
    "2:4": (SparseGptq(), chain(Sparsify(sparsity_structure="2:4"))),
    "2:4 of pairs": (SparseGptq(), chain(Sparsify(sparsity_structure="4:8", vector=2), Quantize(4, strategy="group", group_size=8))),
    "unstructured": (SparseGptq(), chain(Hadamard(16), Sparsify(0.6, storage="csr"), Quantize(4, symmetric=False))),
    "by row": (SparseGptq(), chain(Scale("rows"), Sparsify(0.6, granularity="row"), Quantize(4, "float", strategy="tensor_group"))),
    "sparse blocks": (SparseGptq(), chain(Sparsify(0.5, "block:3x7"), Quantize(4))),
    "columns": (SparseGptq(), chain(Sparsify(0.25, "column"), Quantize(4, strategy="channel"))),
    "coded, sparse": (SparseGptq(), chain(Entropy(chain(Sparsify(0.5), Quantize(4))))),
    "awq": (Awq(grid=4), chain(Scale("columns"), Quantize(4, strategy="channel"))),
    "awq, then gptq": (Awq(grid=4, then="gptq"), chain(Hadamard(16), Scale("columns", scale_dtype="e8m0"), Entropy(GROUPS))),
    "correction": (LowRank(), INT4 + chain(Product(4))),
    "product first": (LowRank(rounds=2, then="round_to_nearest"), chain(Product(4)) + (chain(Hadamard(16)) >> INT4)),
    "coded factors": (LowRank(), chain(Hadamard(16)) >> chain(Product(4, left=INT4, right=INT4, rounds=2))),
    "sparse and a product": (LowRank(), chain(Sparsify(sparsity_structure="2:4")) + chain(Product(4))),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_codes_are_codes_of_the_representation(name: str, dtype: torch.dtype) -> None:
    """They have the layout, survive packing bit for bit, and decode to the weight that was reported."""
    fitter, representation = CASES[name]
    x, weight = inputs(1), normal(5, 24, SIZE).to(dtype)
    before = weight.clone()
    fitted = fitter.fit(weight, representation, gram([x]))
    assert torch.equal(weight, before)
    assert fitted.representation is representation
    shape = tuple(weight.shape)
    layout = representation.layout(shape, dtype)
    named = fitted.code.named()
    assert named.keys() == layout.keys()
    for field, described in layout.items():
        assert named[field].dtype == described.dtype, field
        assert described.variable or tuple(named[field].shape) == described.shape, field
    again = representation.unpack(representation.pack(fitted.code), shape, dtype)
    assert torch.equal(representation.decode(again), fitted.weight)
    assert fitted.weight.dtype == dtype
    assert fitted.weight.shape == weight.shape
    outputs = x.double() @ weight.double().T
    error = (outputs - x.double() @ fitted.weight.double().T).square().sum() / outputs.square().sum()
    assert fitted.error == pytest.approx(float(error), rel=1e-4)
    repeated = fitter.fit(weight, representation, gram([x]))
    assert all(torch.equal(tensor, named[field]) for field, tensor in repeated.code.named().items())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, SIZE), (5, 1), (1, 1)])
def test_a_single_row_or_column(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = normal(3, *shape).to(dtype)
    before = weight.clone()
    fitted = Gptq().fit(weight, INT4, gram([inputs(1, size=shape[1])]))
    assert torch.equal(weight, before)
    assert fitted.error < 0.1


CORRELATED = {  # least and largest part of the error of rounding to nearest that is left, measured
    "int": (0.6, 0.8),
    "groups that leave a rest": (0.6, 0.8),
    "nvfp4": (0.6, 0.8),
    "ordered": (0.3, 0.5),
    "vectors": (0.8, 0.95),
    "2:4": (0.65, 0.85),
    "unstructured": (0.4, 0.65),
    "correction": (0.4, 0.7),
}


@pytest.mark.parametrize("name", CORRELATED)
def test_fitting_beats_rounding_where_inputs_depend_on_each_other(name: str) -> None:
    fitter, representation = CASES[name]
    ratios = []
    for seed in range(4):
        weight, statistics = normal(seed + 50, 48, SIZE), gram([inputs(10 * seed)])
        fitted = fitter.fit(weight, representation, statistics).error
        ratios.append(fitted / RoundToNearest().fit(weight, representation, statistics).error)
    low, high = CORRELATED[name]
    assert low < sum(ratios) / len(ratios) < high
    assert max(ratios) < 1


@pytest.mark.parametrize("name", ["int", "asymmetric", "ordered", "scaled", "vectors", "2:4", "by row"])
def test_matrices_are_fitted_each_for_itself(name: str) -> None:
    """Each of three matrices has its own inputs; a shared Gram is the same as one given three times."""
    fitter, representation = CASES[name]
    if name == "scaled":  # scales of columns are shared by all matrices
        representation = chain(Hadamard(16), Scale("rows"), Quantize(4, strategy="channel"))
    if name == "vectors":
        representation = chain(Codebook(in_group_size=4, nbits_per_codebook=6, source="gaussian", strategy="channel"))  # fmt: skip
    if name == "by row":
        representation = chain(Sparsify(0.6, granularity="row"), Quantize(4, strategy="channel"))
    if name == "ordered":  # the order is that of all inputs together
        fitter = Gptq(static_groups=True)
    weight, grams = normal(7, 3, 16, SIZE), [gram([inputs(seed)]) for seed in (20, 30, 40)]
    fitted = fitter.fit(weight, representation, grams)
    apart = [fitter.fit(matrix, representation, one) for matrix, one in zip(weight, grams, strict=True)]
    assert torch.equal(fitted.weight, torch.stack([one.weight for one in apart]))
    shared = fitter.fit(weight, representation, grams[0])
    assert torch.equal(shared.weight, fitter.fit(weight, representation, grams[:1] * 3).weight)
    assert torch.equal(shared.weight[0], apart[0].weight)


@pytest.mark.parametrize(
    ("structure", "granularity"),
    [("unstructured", "tensor"), ("unstructured", "row"), ("2:4", "tensor"), ("row", "tensor"), ("block:5x10", "tensor")],
)  # fmt: skip
def test_counts_of_zeros_are_exact(structure: str, granularity: str) -> None:
    sparsity = None if structure == "2:4" else 0.43
    stage = Sparsify(sparsity, structure, granularity=granularity)  # type: ignore[arg-type]
    weight = normal(8, 30, 300)
    fitted = SparseGptq().fit(weight, chain(stage), gram([inputs(2, 500, 300)]))
    kept = stage.kept(fitted.code.fields[0])
    assert int(kept.sum()) == int(stage.kept(stage.encode(weight)[1]).sum())
    assert bool((fitted.weight[~kept] == 0).all())
    if granularity == "row":
        assert kept.sum(1).unique().tolist() == [300 - round(0.43 * 300)]
    if structure == "2:4":
        assert bool((kept.reshape(-1, 4).sum(1) == 2).all())


def test_silent_channels_are_left_alone() -> None:
    """A channel that was always zero is rounded to nearest, and nothing is moved into or out of it."""
    x, weight = inputs(3), normal(9, 12, SIZE)
    x[:, [0, 17]] = 0
    fitted = Gptq().fit(weight, INT4, gram([x]))
    scale, nearest = fitted.code.fields[0]["scale"], INT4.project(weight)
    assert torch.equal(fitted.weight[:, [0, 17]], nearest[:, [0, 17]])
    live = [column for column in range(SIZE) if column not in (0, 17)]
    alone = Gptq().fit(weight[:, live], INT4, gram([x[:, live]]))
    same = alone.code.fields[0]["scale"] == scale  # rows whose largest number is not in a silent channel
    assert int(same.sum()) >= 8
    assert torch.equal(fitted.weight[same][:, live], alone.weight[same])
    silent = Gptq().fit(weight, INT4, gram([torch.zeros(5, SIZE)]))
    assert torch.equal(silent.weight, nearest)
    assert silent.error == 0


def test_inputs_that_depend_on_each_other_need_damping() -> None:
    few = gram([inputs(4, rows=20)])
    with pytest.raises(RequestError, match=r"Gram matrix of 80 input channels is singular.*damping of 0\.01"):
        Gptq(damping=0.0).fit(normal(1, 8, SIZE), INT4, few)
    assert Gptq().fit(normal(1, 8, SIZE), INT4, few).error < 0.02


def test_rows_scaled_before_count_as_they_are_scaled_back() -> None:
    """A row a thousand times larger keeps all of its numbers when numbers of all rows compete."""
    weight = normal(2, 8, SIZE)
    weight[3] *= 1000
    representation = chain(Scale("rows"), Sparsify(0.5))
    fitted = SparseGptq().fit(weight, representation, gram([inputs(5)]))
    assert bool((fitted.weight[3] != 0).all())


MEANINGLESS: list[tuple[Fitter, Representation, str]] = [
    (Gptq(), chain(), "gptq fits one grid or codebook, and dense rounds nothing; use round_to_nearest"),
    (Gptq(), chain(Hadamard(16)), "rounds nothing"),
    (Gptq(), chain(Sparsify(0.5), Quantize(4)), "is sparse; use sparse_gptq"),
    (Gptq(), INT4 + chain(Product(2)), "has a product or a sum; use low_rank"),
    (Gptq(), chain(Trellis(2)), "has trellis there; use round_to_nearest"),
    (Gptq(), chain(Split(0.1, rest=INT4)), "has split there"),
    (Gptq(act_order=True), GROUPS, "scales of groups must be measured before; add static_groups: true"),
    (Gptq(act_order=True), chain(Codebook()), "act_order takes columns out of order"),
    (SparseGptq(), INT4, "keeps everything; use gptq"),
    (SparseGptq(), chain(Sparsify(0.5), Codebook()), "has codebook there; use round_to_nearest"),
    (Awq(), INT4, "has no stage that keeps such scales; put scale"),
    (Awq(), chain(Scale("rows"), Quantize(4)), "has no stage that keeps such scales"),
    (Awq(then="gptq"), chain(Scale("columns"), Trellis(2)), "has trellis there"),
    (LowRank(), INT4, r"has none; add one, such as `\+ product\(16\)`"),
    (LowRank(), chain(Trellis(2)) + chain(Product(2)), "gptq fits one grid or codebook"),
]


@pytest.mark.parametrize(("fitter", "representation", "message"), MEANINGLESS, ids=lambda x: str(x)[:40])
def test_what_a_fitter_can_make_nothing_of(
    fitter: Fitter, representation: Representation, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fitter.fit(normal(1, 8, SIZE), representation, gram([inputs(1)]))


@pytest.mark.parametrize("kind", [Gptq, SparseGptq, Awq, LowRank])
@pytest.mark.parametrize("damping", [-0.1, float("nan"), float("inf")])
def test_damping_is_a_share(kind: type[Gptq], damping: float) -> None:
    with pytest.raises(ValueError, match="damping must be 0 or more"):
        kind(damping=damping)


def test_searches_and_rounds_have_ends() -> None:
    with pytest.raises(ValueError, match="grid must be between 1 and 1000 steps, got 0"):
        Awq(grid=0)
    with pytest.raises(ValueError, match="grid must be between 1 and 1000 steps"):
        search_scale(normal(1, 8, SIZE), INT4, gram([inputs(1)]), grid=0)
    with pytest.raises(ValueError, match="rounds must be between 0 and 100, got 101"):
        LowRank(rounds=101)


def test_weights_and_inputs_must_fit_each_other() -> None:
    statistics = gram([inputs(1)])
    with pytest.raises(RequestError, match="the weight has 32 input channels, and its inputs had 80"):
        Gptq().fit(normal(1, 8, 32), INT4, statistics)
    with pytest.raises(RequestError, match="2 Gram matrices were given for a weight of 3 matrices"):
        Gptq().fit(normal(1, 3, 8, SIZE), INT4, [statistics] * 2)
    with pytest.raises(RequestError, match=r"shape \[80\] has no input channels"):
        Gptq().fit(normal(1, SIZE), INT4, statistics)
    with pytest.raises(RequestError, match="NaN or infinite"):
        Gptq().fit(normal(1, 8, SIZE) / 0, INT4, statistics)
    with pytest.raises(RequestError, match="2:4 sparsity does not divide"):
        SparseGptq().fit(
            normal(1, 8, 42), chain(Sparsify(sparsity_structure="2:4")), gram([inputs(1, size=42)])
        )
    with pytest.raises(RequestError, match="give one Gram matrix for all"):
        LowRank().fit(normal(1, 2, 8, SIZE), chain(Product(2)), [statistics] * 2)


def test_statistics_do_not_depend_on_how_inputs_arrive() -> None:
    x = normal(1, 6, 1000, 12).double() + 0.5
    statistics = gram(x.unbind(0))
    rows = x.reshape(-1, 12)
    torch.testing.assert_close(statistics.matrix, rows.T @ rows / 6000)
    torch.testing.assert_close(statistics.mean, rows.mean(0))
    torch.testing.assert_close(statistics.absmean, rows.abs().mean(0))
    torch.testing.assert_close(statistics.rms, rows.square().mean(0).sqrt())
    assert (statistics.count, statistics.size) == (6000, 12)
    narrow = gram([x.half()])
    torch.testing.assert_close(narrow.matrix, statistics.matrix, rtol=1e-3, atol=1e-3)
    short = GramAccumulator(12, torch.float32)
    short.add(x)
    assert short.result().matrix.dtype == torch.float64
    torch.testing.assert_close(short.result().matrix, statistics.matrix, rtol=1e-5, atol=1e-5)


def test_inputs_that_say_nothing_are_refused() -> None:
    with pytest.raises(RequestError, match="no calibration inputs were given; give at least one batch"):
        gram([])
    with pytest.raises(RequestError, match="calibration inputs are NaN or infinite"):
        gram([torch.full((3, 4), torch.nan)])
    with pytest.raises(RequestError, match=r"inputs have shape \[3, 5\], and 4 channels were expected last"):
        gram([torch.ones(3, 4), torch.ones(3, 5)])


def test_fitters_are_frozen_values_with_a_kind() -> None:
    kinds = []
    for kind in FITTERS:
        assert is_dataclass(kind)
        assert kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
        assert kind.__subclasses__() == []
        assert kind() == replace(kind())
        kinds += [field.default for field in fields(kind) if field.name == "kind"]
    assert kinds == ["round_to_nearest", "gptq", "sparse_gptq", "awq", "low_rank"]


def test_statistics_are_plain_values() -> None:
    one = torch.ones(2, dtype=torch.float64)
    statistics = Gram(torch.eye(2, dtype=torch.float64), 0 * one, one, 5)
    assert Gptq().fit(torch.tensor([[1.0, -0.4]]), INT4, statistics).error < 0.01
