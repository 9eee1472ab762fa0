"""Fused projections on CUDA against a copy of the tensor, which moves as many bytes, and a layer that has two.

8192 tokens of 4096 numbers in bfloat16, a weight of 4096 x 4096.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from gpu_unit import Job, Unit, Work
from timing import Method
from torch import Tensor, nn

from rhoc.runtime.estimators import Trust
from rhoc.runtime.projection import Project
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Hadamard, Quantize, Sparsify
from rhoc.runtime.training_kernels import triton_project
from rhoc.runtime.training_kernels.plan import Plan, plan_of

_RMS = Quantize(4, strategy="token", observer="rms", grid="midrise")
_TRUST = (Trust(),)
CHAINS = {
    "int4 groups of 128": Representation((Quantize(4, strategy="group", group_size=128),)),
    "int4 rms trust": Representation((_RMS,)),
    "Hadamard 128, int4 rms trust": Representation((Hadamard(128), _RMS)),
    "Hadamard 128, 2:4, int4 rms trust": Representation(
        (Hadamard(128), Sparsify(sparsity_structure="2:4"), _RMS)
    ),
    "Hadamard 32, mxfp4": Representation(
        (Hadamard(32), Quantize(4, "float", strategy="group", group_size=32, observer="mx_floor"))
    ),
    "int8 of the tensor": Representation((Quantize(8),)),
}
PASSES, BACK, STEP = ("forward", "backward"), ", rotated back", "a layer's step"
_TOKENS, _HIDDEN, _TINY = 8192, 4096, (4, 128)


def units(tiny: bool) -> Iterator[Unit]:
    """Both passes of every chain, and a step of a linear layer whose weight and input it projects."""
    tokens, hidden = _TINY if tiny else (_TOKENS, _HIDDEN)
    for name, chain in CHAINS.items():
        turned = tuple(f"{one}{BACK}" for one in PASSES) if chain.rotation.stages else ()
        yield Unit(
            f"project: {name}",
            f"{tokens}x{hidden}",
            (*PASSES, *turned, STEP),
            1,
            partial(_jobs, chain, (tokens, hidden)),
        )


def _jobs(chain: Representation, shape: tuple[int, int], device: str, tiny: bool) -> partial[Job]:
    x, gradient = (torch.randn(shape, device=device, dtype=torch.bfloat16) for _ in range(2))
    plan = plan_of(chain, _TRUST)
    why = plan if isinstance(plan, str) else triton_project.refusal(plan, shape, x.dtype, x.device)
    if isinstance(plan, str) or why:
        raise ValueError(f"{chain} is not fused: {why}")
    return partial(_job, chain, plan, x, gradient)


def _job(chain: Representation, plan: Plan, x: Tensor, gradient: Tensor, variant: str) -> Job:
    if variant == STEP:
        return _step_job(chain, x, gradient)
    keep_rotated = not variant.endswith(BACK)
    mask = triton_project.project(x, plan, keep_rotated, True)[1]
    moved = Work(2.0 * x.nbytes + mask.nbytes)

    def forward(call: int) -> object:
        return triton_project.project(x, plan, keep_rotated, True)

    def backward(call: int) -> object:
        return triton_project.backward(gradient, mask, plan, keep_rotated)

    method = forward if variant.startswith(PASSES[0]) else backward
    return Job("triton_project", method, lambda call: x.clone(), moved, Work(2.0 * x.nbytes))


class _Projected(nn.Module):
    """A linear layer whose weight and input are projected, and multiplied as they are rotated."""

    def __init__(self, chain: Representation, x: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(x.shape[1], x.shape[1], device=x.device, dtype=x.dtype))
        self.of_weight, self.of_input = (Project(chain, _TRUST, keep_rotated=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.of_input(x), self.of_weight(self.weight))


def _step_job(chain: Representation, x: Tensor, gradient: Tensor) -> Job:
    """Both passes of a layer, dense and with the chain on both sides: three products of the same size."""
    dense = nn.Linear(x.shape[1], x.shape[1], bias=False, device=x.device, dtype=x.dtype)
    operations = 3 * 2.0 * x.shape[0] * x.shape[1] ** 2
    work = Work(6.0 * x.nbytes, operations)
    method, baseline = _step(_Projected(chain, x), x, gradient), _step(dense, x, gradient)
    return Job("triton_project", method, baseline, work, work, capture=False)


def _step(layer: nn.Module, x: Tensor, gradient: Tensor) -> Method:
    leaf = x.detach().requires_grad_()

    def run(call: int) -> None:
        layer(leaf).backward(gradient)
        leaf.grad = None
        layer.zero_grad()

    return run
