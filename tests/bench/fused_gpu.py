"""Fused projections on CUDA against a copy of the tensor, which moves as many bytes, and a layer that has two.

8192 tokens of 4096 numbers in bfloat16, a weight of 4096 x 4096.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from timing import Case, Method
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
TOKENS, HIDDEN = 8192, 4096


def cases(device: str, quick: bool) -> Iterator[Case]:
    """Forward, backward, and a step of a linear layer under W4A4; nothing on a CPU."""
    if device != "cuda":
        return
    tokens = TOKENS // 8 if quick else TOKENS
    x, gradient = (torch.randn(tokens, HIDDEN, device=device, dtype=torch.bfloat16) for _ in range(2))
    shape = f"{tokens} x {HIDDEN} bfloat16"
    for keep_rotated in (True, False):
        forward: dict[str, Method] = {"copy": lambda call: x.clone()}
        backward: dict[str, Method] = {"copy": lambda call: gradient.clone()}
        for name, chain in CHAINS.items():
            plan = _plan(name, chain, x)
            if keep_rotated or plan.block:
                forward[name] = _forward(x, plan, keep_rotated)
                backward[name] = _backward(x, gradient, plan, keep_rotated)
        kept = "kept rotated" if keep_rotated else "rotated back"
        yield Case(f"{shape}, {kept}, forward", forward)
        yield Case(f"{shape}, {kept}, backward", backward)
    yield Case(
        f"{shape}, a layer of {HIDDEN} outputs, forward and backward", _layers(x, gradient), capture=False
    )


def _plan(name: str, chain: Representation, x: Tensor) -> Plan:
    plan = plan_of(chain, _TRUST)
    why = plan if isinstance(plan, str) else triton_project.refusal(plan, tuple(x.shape), x.dtype, x.device)
    if isinstance(plan, str) or why:
        raise SystemExit(f"{name} is not fused: {why}")
    return plan


def _forward(x: Tensor, plan: Plan, keep_rotated: bool) -> Method:
    return lambda call: triton_project.project(x, plan, keep_rotated, True)


def _backward(x: Tensor, gradient: Tensor, plan: Plan, keep_rotated: bool) -> Method:
    _, mask = triton_project.project(x, plan, keep_rotated, True)
    return lambda call: triton_project.backward(gradient, mask, plan, keep_rotated)


class _Projected(nn.Module):
    """A linear layer whose weight and input are projected, and multiplied as they are rotated."""

    def __init__(self, chain: Representation) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN, device="cuda", dtype=torch.bfloat16))
        self.of_weight, self.of_input = (Project(chain, _TRUST, keep_rotated=True) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.of_input(x), self.of_weight(self.weight))


def _layers(x: Tensor, gradient: Tensor) -> dict[str, Method]:
    """Both passes of a layer: dense, and with each chain on both sides."""
    dense = nn.Linear(HIDDEN, HIDDEN, bias=False, device="cuda", dtype=torch.bfloat16)
    return {"dense": _step(dense, x, gradient)} | {
        name: _step(_Projected(chain), x, gradient) for name, chain in CHAINS.items()
    }


def _step(layer: nn.Module, x: Tensor, gradient: Tensor) -> Method:
    leaf = x.detach().requires_grad_()

    def run(call: int) -> None:
        layer(leaf).backward(gradient)
        leaf.grad = None
        layer.zero_grad()

    return run
