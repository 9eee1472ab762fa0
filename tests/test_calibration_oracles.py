"""Fitting against textbooks: explicit inverses in numpy, every code of tiny problems, closed forms."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from rhoc.runtime.calibration import Awq, Gptq, Gram, LowRank, RoundToNearest, SparseGptq, gram, search_scale
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Codebook, Hadamard, Product, Quantize, Scale, Sparsify, Stage

Array = NDArray[np.float64]

DAMPING = 0.01


INT4 = Quantize(4, strategy="channel", absmax_rule="sym")


def chain(*stages: Stage) -> Representation:
    return Representation(stages)


def numbers(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def correlated(seed: int, rows: int, size: int) -> Tensor:
    """Inputs whose channels depend on each other, and differ in size."""
    mix = numbers(seed, size, size) / size**0.5 * torch.linspace(0.3, 2, size, dtype=torch.float64)
    return numbers(seed + 1, rows, size) @ mix + 0.1 * numbers(seed + 2, rows, size)


def damped(inputs: Tensor) -> Array:
    x = inputs.numpy()
    hessian = x.T @ x / len(x)
    found: Array = hessian + DAMPING * np.diag(hessian).mean() * np.eye(len(hessian))
    return found


def identity(size: int) -> Gram:
    ones = torch.ones(size, dtype=torch.float64)
    return Gram(torch.eye(size, dtype=torch.float64), 0 * ones, ones, size)


def int4(row: Array) -> float:
    """The scale of signed integers of four bits: the largest magnitude to 7.

    With the usual 7.5 it would lie halfway between two codes, and the last bit of a sum would decide.
    """
    return float(np.abs(row).max() / 7)


def eliminated(inverse: Array) -> Array:
    """The inverse of H without its first row and column, from that of H."""
    left: Array = inverse[1:, 1:] - np.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]
    return left


def textbook(weight: Array, hessian: Array, group: int) -> tuple[Array, Array]:
    """OBQ in a fixed order with explicit inverses: codes from -8 to 7, and a scale for each group."""
    codes, scales = np.zeros_like(weight), np.zeros((len(weight), weight.shape[1] // group))
    for row, line in enumerate(weight):
        left, inverse = line.copy(), np.linalg.inv(hessian)
        for column in range(len(line)):
            if column % group == 0:
                scales[row, column // group] = int4(left[column : column + group])
            scale = scales[row, column // group]
            codes[row, column] = np.clip(np.round(left[column] / scale), -8, 7)
            error = left[column] - codes[row, column] * scale
            left[column:] -= error * inverse[0] / inverse[0, 0]
            inverse = eliminated(inverse)
    return codes, scales


@pytest.mark.parametrize("group", [8, 40, 120, 240])
def test_gptq_is_the_textbook(group: int) -> None:
    x, weight = correlated(1, 500, 240), numbers(4, 12, 240)
    stage = INT4 if group == 240 else replace(INT4, strategy="group", group_size=group)
    fitted = Gptq(damping=DAMPING).fit(weight, chain(stage), gram([x]))
    codes, scales = textbook(weight.numpy(), damped(x), group)
    assert np.array_equal(fitted.code.carry.numpy() - 8.0, codes)
    np.testing.assert_allclose(
        fitted.code.fields[0]["scale"].numpy().reshape(scales.shape), scales, rtol=1e-9
    )


def test_large_columns_first_is_the_textbook_of_permuted_columns() -> None:
    x, weight = correlated(2, 300, 72), numbers(5, 7, 72)
    order = np.argsort(-np.diag(damped(x)), kind="stable")
    codes, _ = textbook(weight.numpy()[:, order], damped(x)[np.ix_(order, order)], 72)
    fitted = Gptq(act_order=True).fit(weight, chain(INT4), gram([x]))
    assert np.array_equal(fitted.code.carry.numpy()[:, order] - 8.0, codes)


def test_static_groups_keep_the_scales_of_the_weight_as_it_was() -> None:
    x, weight = correlated(2, 300, 64), numbers(5, 7, 64)
    representation = chain(Quantize(4, strategy="group", group_size=16))
    fitted = Gptq(static_groups=True).fit(weight, representation, gram([x]))
    ordered = Gptq(static_groups=True, act_order=True).fit(weight, representation, gram([x]))
    expected = representation.encode(weight).fields[0]["scale"]
    assert torch.equal(fitted.code.fields[0]["scale"], expected)
    assert torch.equal(ordered.code.fields[0]["scale"], expected)
    assert not torch.equal(Gptq().fit(weight, representation, gram([x])).code.fields[0]["scale"], expected)


@pytest.mark.parametrize("bits", [1, 2])
def test_no_code_of_a_tiny_weight_is_better_than_the_best(bits: int) -> None:
    """All codes of four weights: the error stands between the best and that of rounding to nearest."""
    representation = chain(Quantize(bits, strategy="channel", grid="midrise"))
    levels = np.arange(2**bits) - (2**bits - 1) / 2
    every = np.array(list(itertools.product(levels, repeat=4)))
    found: dict[str, list[float]] = {"best": [], "gptq": [], "nearest": []}
    for seed in range(100):
        x, weight = correlated(seed, 40, 4), numbers(seed + 100, 1, 4)
        hessian = x.numpy().T @ x.numpy() / len(x)
        scale = float(representation.encode(weight).fields[0]["scale"])
        change = weight.numpy() - every * scale
        power = float((weight.numpy() @ hessian @ weight.numpy().T).item())
        found["best"].append(float(np.einsum("ni,ij,nj->n", change, hessian, change).min()) / power)
        for name, fitter in (("gptq", Gptq(damping=0.0, act_order=True)), ("nearest", RoundToNearest())):
            found[name].append(fitter.fit(weight, representation, gram([x])).error)
    best, gptq, nearest = (np.array(found[name]) for name in ("best", "gptq", "nearest"))
    assert (gptq >= best - 1e-12).all()
    assert np.isclose(gptq, best).mean() > np.isclose(nearest, best).mean() + 0.1
    assert gptq.mean() < 0.8 * nearest.mean()


def test_the_error_is_the_sum_of_what_each_column_cost() -> None:
    """e H e^T = sum (e_j / U_jj)^2, and without clipping no |e_j| exceeds half a step (Babai's bound)."""
    x, weight = correlated(3, 200, 16), numbers(9, 5, 16)
    representation = chain(Quantize(8, strategy="channel"))
    fitted = Gptq(damping=0.0).fit(weight, representation, gram([x]))
    hessian = x.numpy().T @ x.numpy() / len(x)
    alone = np.array([np.linalg.inv(hessian[j:, j:])[0, 0] for j in range(16)])
    step = fitted.code.fields[0]["scale"].numpy()
    bound = (step**2 / 4).sum() * (1 / alone).sum()
    power = np.einsum("ni,ij,nj->", weight.numpy(), hessian, weight.numpy())
    assert 0.1 * bound < fitted.error * power < bound


def test_vectors_are_the_textbook_of_blocks() -> None:
    """Two columns at a time to a table of eight points, with explicit inverses and weighted distances."""
    x, weight = correlated(6, 200, 12), numbers(7, 9, 12)
    table = numbers(8, 8, 2).numpy()
    stage = Codebook(
        in_group_size=2, nbits_per_codebook=3, source="table", table=tuple(table.ravel().tolist())
    )
    codes = np.zeros((9, 6))
    for row, line in enumerate(weight.numpy()):
        left = line.copy()
        for vector in range(6):
            at = 2 * vector
            inverse = np.linalg.inv(damped(x)[at:, at:])
            corner = np.linalg.inv(inverse[:2, :2])
            cost = ((left[at : at + 2] - table) ** 2) @ np.diag(corner)
            codes[row, vector] = cost.argmin()
            error = left[at : at + 2] - table[cost.argmin()]
            left[at:] -= error @ corner @ inverse[:2]
    fitted = Gptq().fit(weight, chain(stage), gram([x]))
    assert np.array_equal(fitted.code.carry.numpy(), codes)


def pruned(weight: Array, hessian: Array, kept: int, group: int) -> tuple[Array, NDArray[np.bool_]]:
    """SparseGPT for n:m with explicit inverses: the weights that stay, and where."""
    masks, found = np.ones(weight.shape, dtype=bool), weight.copy()
    alone = np.array([np.linalg.inv(hessian[j:, j:])[0, 0] for j in range(len(hessian))])
    for row, left in enumerate(found):
        inverse = np.linalg.inv(hessian)
        for column in range(len(left)):
            if column % group == 0:
                part = slice(column, column + group)
                saliency = left[part] ** 2 / alone[part]
                masks[row, part][np.argsort(saliency)[: group - kept]] = False
            if not masks[row, column]:
                left[column:] -= left[column] * inverse[0] / inverse[0, 0]
                left[column] = 0
            inverse = eliminated(inverse)
    return found, masks


@pytest.mark.parametrize(("kept", "group"), [(2, 4), (4, 8), (1, 10)])
def test_sparse_gptq_is_the_textbook(kept: int, group: int) -> None:
    x, weight = correlated(11, 300, 160), numbers(12, 8, 160)
    expected, mask = pruned(weight.numpy(), damped(x), kept, group)
    representation = chain(Sparsify(sparsity_structure=f"{kept}:{group}"))
    fitted = SparseGptq().fit(weight, representation, gram([x]))
    assert np.array_equal(fitted.weight.numpy() != 0, mask)
    np.testing.assert_allclose(fitted.weight.numpy(), expected, atol=1e-9)


def test_joint_pruning_makes_up_for_rounding_too() -> None:
    """With its mask and scales, the codes are those of columns rounded in order with explicit inverses."""
    x, weight = correlated(13, 300, 64), numbers(14, 6, 64)
    representation = chain(Sparsify(sparsity_structure="2:4", storage="bitmask"), INT4)
    fitted = SparseGptq().fit(weight, representation, gram([x]))
    mask, scale = fitted.code.fields[0]["mask"].numpy(), fitted.code.fields[1]["scale"].numpy()
    stays, expected = pruned(weight.numpy(), damped(x), 2, 4)
    assert np.array_equal(mask, expected)
    np.testing.assert_allclose(scale, np.abs(stays).max(1) / 7, rtol=1e-9)
    for row, line in enumerate(weight.numpy()):
        left, inverse, decoded = line.copy(), np.linalg.inv(damped(x)), np.zeros(64)
        for column in range(64):
            code = np.clip(np.round(left[column] / scale[row]), -8, 7)
            decoded[column] = code * scale[row] * mask[row, column]
            left[column:] -= (left[column] - decoded[column]) * inverse[0] / inverse[0, 0]
            inverse = eliminated(inverse)
        np.testing.assert_allclose(fitted.weight.numpy()[row], decoded, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 5, 12])
def test_a_low_rank_correction_is_the_closed_form(rank: int) -> None:
    x, weight = correlated(15, 200, 32), numbers(16, 20, 32)
    first = chain(Quantize(2, strategy="channel"))
    fitted = LowRank(then="round_to_nearest", rounds=0).fit(weight, first + chain(Product(rank)), gram([x]))
    values, vectors = np.linalg.eigh(damped(x))
    root, back = vectors * np.sqrt(values) @ vectors.T, vectors / np.sqrt(values) @ vectors.T
    left = weight.numpy() - first.project(weight).numpy()
    u, singular, v = np.linalg.svd(left @ root, full_matrices=False)
    best = (u[:, :rank] * singular[:rank]) @ v[:rank] @ back
    correction = (fitted.weight - first.project(weight)).numpy()
    np.testing.assert_allclose(correction, best, atol=1e-6 * np.abs(best).max())


def test_rounds_of_terms_never_make_a_sum_worse() -> None:
    x, weight = correlated(17, 300, 48), numbers(18, 40, 48)
    representation = chain(Sparsify(sparsity_structure="2:4")) + chain(Product(6))
    errors = [LowRank(rounds=rounds).fit(weight, representation, gram([x])).error for rounds in range(4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0]
    plain = RoundToNearest().fit(weight, representation, gram([x])).error
    assert errors[0] < 0.7 * plain


def test_compressed_factors_are_fitted_to_each_other() -> None:
    x, weight = correlated(17, 300, 48), numbers(18, 40, 48)
    grid = chain(Quantize(3, strategy="channel"))
    errors = []
    for rounds in (0, 4):
        product = chain(Product(8, left=grid, right=grid, rounds=rounds))
        errors.append(LowRank().fit(weight, product, gram([x])).error)
    assert errors[1] < 0.99 * errors[0]


def test_the_scale_search_is_the_best_of_its_grid() -> None:
    x, weight = correlated(19, 200, 24), numbers(20, 16, 24)
    x[:, 3] *= 30
    hessian = x.numpy().T @ x.numpy() / len(x)
    size = np.abs(x.numpy()).mean(0) / np.abs(x.numpy()).mean(0).max()

    def lost(scale: Array) -> float:
        scaled = weight.numpy() * scale
        step = np.abs(scaled).max(1, keepdims=True) / 7
        change = weight.numpy() - np.clip(np.round(scaled / step), -8, 7) * step / scale
        return float(np.einsum("ni,ij,nj->", change, hessian, change))

    tried = [size ** (step / 20) for step in range(21)]
    best = min(tried, key=lost)
    found = search_scale(weight, chain(INT4), gram([x])).numpy()
    np.testing.assert_allclose(found / found[3], best / best[3], rtol=1e-9)
    assert np.isclose(found.max() * found.min(), 1)
    assert lost(best) < 0.7 * lost(np.ones(24))
    stored = chain(Scale("columns"), INT4)
    fitted = Awq().fit(weight, stored, gram([x]))
    power = float(np.einsum("ni,ij,nj->", weight.numpy(), hessian, weight.numpy()))
    assert np.isclose(fitted.error, lost(best) / power, rtol=1e-6)
    assert Awq(then="gptq").fit(weight, stored, gram([x])).error < fitted.error


def test_a_rotation_rotates_weight_and_inputs() -> None:
    x, weight = correlated(21, 200, 64), numbers(22, 16, 64)
    core, rotation = chain(Quantize(3, strategy="channel")), chain(Hadamard(32, signs=5))
    turned = Gptq().fit(rotation.encode(weight).carry, core, gram([rotation.encode(x).carry]))
    fitted = Gptq().fit(weight, rotation >> core, gram([x]))
    assert torch.equal(fitted.code.carry, turned.code.carry)
    assert abs(fitted.error - turned.error) < 1e-9


def test_scales_of_columns_scale_the_inputs() -> None:
    x, weight = correlated(23, 200, 40), numbers(24, 16, 40)
    representation = chain(Scale("columns"), Scale("rows"), Quantize(3))
    fitted = Gptq(damping=0.0).fit(weight, representation, gram([x]))
    carry, columns, rows = weight, *(fitted.code.fields[i]["scale"] for i in (0, 1))
    plain = (carry / columns) / rows.unsqueeze(-1)
    expected = Gptq(damping=0.0).fit(plain, chain(Quantize(3)), gram([x * columns]))
    assert torch.equal(fitted.code.carry, expected.code.carry)


IDENTICAL: dict[str, tuple[Stage, ...]] = {
    "channel": (Quantize(4, strategy="channel"),),
    "tensor": (Quantize(3),),
    "group": (Quantize(4, strategy="group", group_size=24),),
    "blocks": (Quantize(4, strategy="block", block_structure=(6, 20)),),
    "asymmetric": (Quantize(4, symmetric=False, strategy="group", group_size=32, observer="mse"),),
    "nf4, nested": (
        Quantize(4, "float", grid="nf4", strategy="group", group_size=32, scales=chain(Quantize(8))),
    ),
    "nvfp4": (Quantize(4, "float", strategy="tensor_group"),),
    "mx": (Quantize(4, "float", strategy="group", group_size=32, observer="mx_floor"),),
    "rms": (Quantize(2, strategy="channel", observer="rms", grid="midrise"),),
    "k-means": (Codebook(in_group_size=1, nbits_per_codebook=3),),
    "vectors": (
        Codebook(in_group_size=3, nbits_per_codebook=5, strategy="group", group_size=12, observer="rms"),
    ),
    "residual": (
        Codebook(in_group_size=2, num_codebooks=2, nbits_per_codebook=4, rows_per_codebook=5, scope="group"),
    ),
}


@pytest.mark.parametrize("name", IDENTICAL)
def test_unrelated_inputs_change_nothing(name: str) -> None:
    """With H = I no error can be made up for: GPTQ is rounding to nearest, bit for bit."""
    weight, representation = numbers(25, 12, 100, dtype=torch.float32), chain(*IDENTICAL[name])
    fitted = Gptq().fit(weight, representation, identity(100))
    expected = representation.encode(weight).named()
    assert fitted.code.named().keys() == expected.keys()
    for field, tensor in fitted.code.named().items():
        assert torch.equal(tensor, expected[field]), field


@pytest.mark.parametrize(
    "stages",
    [
        (Sparsify(sparsity_structure="2:4"),),
        (Sparsify(sparsity_structure="4:8", vector=2),),
        (Sparsify(0.37),),
        (Sparsify(0.37, granularity="row", storage="index"),),
        (Sparsify(0.3, "block:5x7"), Quantize(4)),
        (Sparsify(0.3, "row"), Quantize(4, strategy="channel")),
        (Sparsify(0.3, "column"), Quantize(4, strategy="channel")),
        (Sparsify(sparsity_structure="2:4", storage="rank"), Quantize(4, strategy="group", group_size=12)),
        (Sparsify(0.5, storage="csr"), Quantize(4, symmetric=False)),
    ],
    ids=lambda stages: str(chain(*stages)),
)
def test_unrelated_inputs_leave_the_largest(stages: tuple[Stage, ...]) -> None:
    weight, representation = numbers(26, 12, 96, dtype=torch.float32), chain(*stages)
    fitted = SparseGptq().fit(weight, representation, identity(96))
    assert torch.equal(fitted.weight, representation.project(weight))
