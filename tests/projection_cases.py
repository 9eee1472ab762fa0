"""Projections for the fused kernel on a GPU, and what it must give for them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from scipy.linalg import hadamard
from torch import Tensor

from rhoc.runtime.estimators import Clip, StraightThrough, Trust
from rhoc.runtime.estimators.base import Estimator
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify
from rhoc.runtime.training_kernels import triton_project
from rhoc.runtime.training_kernels.plan import Plan, plan_of
from rhoc.runtime.view import View

FLOAT32, FLOAT16, BFLOAT16 = torch.float32, torch.float16, torch.bfloat16
_NEAR = 4e-6  # of a decision's border: twice the 1e-6 on either side that a projection may be wrong by
_ROUNDING = {FLOAT32: 2e-6, FLOAT16: 2.0**-10, BFLOAT16: 2.0**-7}  # of results, twice


@dataclass(frozen=True)
class Case:
    """A projection of random numbers."""

    representation: Representation
    shape: tuple[int, ...]
    dtype: torch.dtype = BFLOAT16
    estimators: tuple[Estimator, ...] = (Trust(),)
    device: str = "cpu"

    @cached_property
    def plan(self) -> Plan:
        plan = plan_of(self.representation, self.estimators)
        assert isinstance(plan, Plan), plan
        return plan

    @cached_property
    def x(self) -> Tensor:
        """Random numbers with a block of zeros."""
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(7))
        x[..., -self.shape[-1] // 4 :] *= 8
        x[0] = 0
        return x.to(self.device, self.dtype)

    def __str__(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.representation}, {'x'.join(map(str, self.shape))} {kind}"


def chain(*stages: Hadamard | Sparsify | Quantize) -> Representation:
    return Representation(stages)


def n_of_m(structure: str) -> Sparsify:
    return Sparsify(sparsity_structure=structure)


RMS = Quantize(4, strategy="token", observer="rms", grid="midrise")
CASES = (
    Case(chain(Hadamard(128), RMS), (5, 256)),
    Case(chain(Hadamard(128), RMS), (2, 3, 384), FLOAT32),
    Case(chain(Hadamard(128), RMS), (5, 256), FLOAT16),
    Case(chain(Hadamard(64, signs=3), Quantize(2, strategy="token", observer="rms", grid="midrise")), (5, 192)),
    Case(chain(Hadamard(128), Quantize(4, strategy="group", group_size=32)), (5, 256), FLOAT32),
    Case(chain(Hadamard(32), Quantize(4, strategy="group", group_size=96)), (5, 224)),  # the last of 32
    Case(chain(Hadamard(8, signs=3), Quantize(1, strategy="token")), (3, 7, 40), FLOAT32),
    Case(chain(Hadamard(8), Quantize(4, strategy="group", group_size=24)), (5, 72)),
    Case(chain(Hadamard("full"), Quantize(8, strategy="channel", absmax_rule="sym")), (5, 64)),
    Case(chain(Quantize(4, strategy="group", group_size=32)), (5, 256)),
    Case(chain(Quantize(4, strategy="group", group_size=128, observer="rms")), (5, 300), FLOAT32),
    Case(chain(Quantize(4, strategy="group", group_size=96, absmax_rule="signed")), (5, 200)),
    Case(chain(Quantize(4, strategy="group", group_size=4, observer="absmean")), (5, 50), FLOAT16),
    Case(chain(Quantize(4, strategy="token", absmax_rule="signed")), (5, 7)),
    Case(chain(Quantize(2, strategy="token", observer="absmean", grid="ternary")), (7, 130), FLOAT32),
    Case(chain(Quantize(8, scale_dtype="float32")), (300, 130)),
    Case(chain(Hadamard(16), Quantize(8, observer="rms")), (300, 144), FLOAT32),
    Case(chain(n_of_m("2:4"), Quantize(4, strategy="token")), (3, 7, 40)),
    Case(chain(Hadamard(128), n_of_m("2:4"), RMS), (5, 256)),
    Case(chain(Hadamard(16), n_of_m("3:8"), Quantize(4, strategy="group", group_size=24)), (5, 192), BFLOAT16, ()),
    Case(chain(n_of_m("2:4"), Quantize(4, observer="absmean")), (40, 96), FLOAT16),
    Case(chain(n_of_m("5:8")), (5, 48), FLOAT32, ()),
    Case(chain(Quantize(4, "float", strategy="group", group_size=32, observer="mx_floor")), (5, 256)),
    Case(chain(Quantize(8, strategy="group", group_size=32, observer="mx_ceil")), (5, 80), FLOAT32),
    Case(chain(Quantize(8, "float", strategy="group", group_size=16, scale_dtype="e8m0")), (5, 100), FLOAT32),
    Case(chain(Quantize(4, "float", strategy="group", group_size=64, grid="nf4", scale_dtype="float16")), (5, 128)),
    Case(chain(Hadamard(32), Quantize(4, "float", strategy="token", grid="lloyd", observer="rms")), (5, 96), FLOAT32),
    Case(chain(Hadamard(128), RMS), (5, 256), BFLOAT16, (StraightThrough(),)),
    Case(chain(Hadamard(64), RMS), (5, 192), BFLOAT16, (Clip(0.9),)),
    Case(chain(Quantize(4, strategy="group", group_size=32)), (5, 96), FLOAT32, (Trust(0.8), Clip(0.7))),
)  # fmt: skip


def given(case: Case, keep_rotated: bool) -> tuple[Tensor, Tensor]:
    """What the kernel makes of a case."""
    refused = triton_project.refusal(case.plan, case.shape, case.dtype, case.x.device)
    assert not refused, refused
    return triton_project.project(case.x, case.plan, keep_rotated, True)


def unpacked(bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A mask as bools of this shape; all true of an empty one."""
    if not bits.numel():
        return torch.ones(shape, dtype=torch.bool, device=bits.device)
    each = bits[:, :, None] >> torch.arange(8, device=bits.device) & 1
    return each.reshape(len(bits), -1)[:, : shape[-1]].reshape(shape).bool()


def assert_projected(case: Case) -> None:
    """Values and masks in the rotated domain, but for numbers halfway between two choices."""
    view = case.representation.view(case.x)
    projected, bits = given(case, keep_rotated=True)
    assert projected.dtype == case.dtype
    assert projected.shape == case.shape
    wrong = _wrong(case, view, projected)
    assert not (wrong & ~_between(view, projected)).any()
    assert wrong.sum() <= 0.005 * wrong.numel()  # by the rule `half` the largest number is always in between
    mask = _mask(case, view)
    assert bits.numel() == (0 if mask is None else projected[..., 0].numel() * (-(-case.shape[-1] // 8)))
    if mask is not None:
        passes = unpacked(bits, case.shape)
        assert not ((passes != mask) & ~wrong & ~_at_the_edge(case, view)).any()


def assert_rotated_back(case: Case) -> None:
    """Values after the rotation back, in vectors where no number went to another level."""
    view = case.representation.view(case.x)
    kept, bits = given(case, keep_rotated=True)
    back, again = given(case, keep_rotated=False)
    assert torch.equal(bits, again)
    right = ~_wrong(case, view, kept).any(-1)
    assert right.float().mean() > 0.5
    want = view.projected.double() @ rotation(case).T
    largest = want.abs().amax(-1, keepdim=True)
    error, least = (back.double() - want).abs(), torch.finfo(case.dtype).smallest_normal
    assert (error <= _ROUNDING[case.dtype] * (want.abs() + least) + 2e-6 * largest)[right].all()


def assert_gradient(case: Case, keep_rotated: bool) -> None:
    """The backward pass against dense matrices in float64."""
    _, bits = given(case, keep_rotated)
    gradient = torch.randn(case.shape, generator=torch.Generator().manual_seed(8)).to(case.x)
    result = triton_project.backward(gradient, bits, case.plan, keep_rotated)
    assert result.dtype == case.dtype
    matrix, passes = rotation(case), unpacked(bits, case.shape).double()
    rotated = gradient.double() if keep_rotated else gradient.double() @ matrix
    want = (rotated * passes) @ matrix.T if bits.numel() or keep_rotated else gradient.double()
    error, largest = (result.double() - want).abs(), want.abs().amax(-1, keepdim=True)
    assert (error <= 2 * _ROUNDING[case.dtype] * largest).all()


def rotation(case: Case) -> Tensor:
    """What vectors are multiplied by from the right, float64 `[n, n]`."""
    size, block = case.shape[-1], case.plan.block_for(case.shape[-1])
    blocks = [torch.from_numpy(hadamard(block)).double() / block**0.5] * (size // block)
    matrix = torch.block_diag(*blocks)
    if case.plan.signs is not None:
        unit = torch.eye(size, dtype=torch.float64)
        turned, _ = case.representation.stages[0].encode(unit)
        signs = (turned * matrix).sum(-1).sign()  # row i is that of the matrix, times the sign of i
        matrix = signs[:, None] * matrix
    return matrix.to(case.device)


def _wrong(case: Case, view: View, projected: Tensor) -> Tensor:
    """Where a projection differs by more than rounding."""
    want = view.projected.to(case.dtype).double()
    return (projected.double() - want).abs() > _ROUNDING[case.dtype] * want.abs()


def _between(view: View, projected: Tensor) -> Tensor:
    """Where a number is as near to what it was projected to as to what it should have been."""
    latent = view.latent.double()
    found, wanted = ((latent - value.double()).abs() for value in (projected, view.projected))
    return (found - wanted).abs() <= (_NEAR + _ROUNDING[projected.dtype]) * (latent.abs() + wanted)


def _mask(case: Case, view: View) -> Tensor | None:
    masks = [estimator.mask(view) for estimator in case.estimators]
    given = [mask.bool() for mask in masks if mask is not None]
    return torch.stack(given).all(0) if given else None


def _at_the_edge(case: Case, view: View) -> Tensor:
    """Where a test of the mask is as good as met: a rotated number may be rounded to the next of its dtype."""
    assert view.cell is not None
    near = _NEAR + (_ROUNDING[case.dtype] if view.rotated else 0.0)
    latent, half, outermost = (t.double() for t in (view.latent, view.cell.half_width, view.cell.outermost))
    moved = (view.projected.double() - latent).abs()
    edge = torch.zeros_like(latent, dtype=torch.bool)
    for factor in (getattr(estimator, "factor", 1.0) for estimator in case.estimators):
        edge |= (moved - half * factor).abs() <= near * (latent.abs() + half)
        for outer in (1.0, 1.25, 1.3):
            edge |= (latent.abs() - outermost * outer * factor).abs() <= near * outermost
    return edge
