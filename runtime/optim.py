"""The optimiser of a run over a model: which parameters decay, by how much, and the peak learning rate.

Everything but the budget can be derived, so that runs of different sizes stay comparable: the peak learning
rate from the width of the model, the schedule from the number of steps.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from .errors import RequestError
from .learned import learned_parameters
from .optimizer_choice import OptimizerChoice
from .projection import latent_parameters

_DECAY = "decoupled_decay"  # the key in a group of parameters of the rate that `_decay` applies
_SHARE = "rate_share"  # the same of what the learning rate is multiplied with, where it is another
_DERIVED = ("adamw", "adam", "nadam", "radam")  # the optimisers that the derived rate is for


def width_of(model: nn.Module) -> int:
    """The width of a model: the most frequent last dimension of its matrices, the smaller one in a tie.

    The kernels of convolutions over planes and volumes [out, in, ...] count as the matrices [out, in * ...]
    that they are: the 3 of a 3 by 3 kernel is no width.
    """
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    lengths = Counter(m.shape[-1] if m.dim() < 4 else m[0].numel() for m in matrices)
    if not lengths:
        raise RequestError(
            "the model has no matrix to derive a learning rate from",
            where="learning_rate",
            advice="give learning_rate yourself",
        )
    return min(lengths, key=lambda length: (-lengths[length], length))


def default_learning_rate(width: int) -> float:
    """Peak rate for a decoder of this width: 0.004 * 64 / width."""
    return 0.004 * 64 / width


def peak_rate(model: nn.Module, choice: OptimizerChoice, given: float | None) -> float:
    """The peak learning rate: the one given, or the one derived from the width.

    Raises RequestError where none is given and none can be derived.
    """
    if given is not None:
        return given
    if choice.name not in _DERIVED:
        raise RequestError(
            f"the derived learning rate is for {', '.join(_DERIVED)}, not for {choice.name}",
            where="learning_rate",
            advice="give learning_rate yourself",
        )
    return default_learning_rate(width_of(model))


def build_optimizer(
    model: nn.Module,
    choice: OptimizerChoice,
    weight_decay: float,
    latent_decay: float | None = None,
    *,
    learned_share: float | None = None,
    rate_as_tensor: bool = False,
) -> torch.optim.Optimizer:
    """The optimiser over the trainable parameters, decaying matrices (two dimensions and more) only.

    `latent_decay` is the rate of weights that are projected, by default that of the others. Decay is
    decoupled whatever the optimiser: w is multiplied with 1 - learning rate * decay, then the step is taken;
    to those that do not do so themselves `attach_decay` adds it. The learning rate is set before each step
    by `set_rate`; compiled steps need it as a tensor. `learned_share` is the rate of what is learned beside
    weights, as a multiple of theirs. Where torch has a fused implementation it is used: one
    deterministic kernel.

    Raises RequestError when nothing is trainable, or when the optimiser does not take these parameters.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise RequestError("the model has no trainable parameter", where="model", advice="nothing to train")
    latent = set() if latent_decay is None else {id(p) for _, p, _ in latent_parameters(model)}
    matrices = [p for p in trained if p.dim() >= 2 and id(p) not in latent]
    projected = [p for p in trained if id(p) in latent]
    vectors = [p for p in trained if p.dim() < 2 and id(p) not in latent]
    name = "weight_decay" if choice.decays else _DECAY
    rates = ((matrices, weight_decay), (projected, latent_decay or 0.0), (vectors, 0.0))
    groups: list[dict[str, Any]] = [{"params": params, name: rate} for params, rate in rates if params]
    if learned_share is not None:
        groups = _apart(groups, {id(p) for _, p in learned_parameters(model)}, learned_share, rate_as_tensor)
    return choice.build(groups, torch.tensor(0.0) if rate_as_tensor else 0.0)


def _apart(
    groups: list[dict[str, Any]], learned: set[int], share: float, rate_as_tensor: bool
) -> list[dict[str, Any]]:
    """Groups of parameters with those that are learned beside weights in groups with a rate of their own."""
    found = []
    for group in groups:
        rest, own = ([p for p in group["params"] if (id(p) in learned) == inside] for inside in (False, True))
        rate = {"lr": torch.tensor(0.0)} if rate_as_tensor else {}
        found += [group | {"params": rest}] if rest else []
        found += [group | {"params": own, _SHARE: share} | rate] if own else []
    return found


def attach_decay(optimizer: torch.optim.Optimizer) -> None:
    """Decay the weights before every step where `build_optimizer` left that to do; after what is attached so
    far, so that a `StepLimit` sees it."""
    if any(_DECAY in group for group in optimizer.param_groups):
        optimizer.register_step_pre_hook(_decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group this learning rate; a tensor keeps its identity, so that nothing compiles anew."""
    for group in optimizer.param_groups:
        own = rate * group.get(_SHARE, 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(own)
        else:
            group["lr"] = own


@torch.compiler.disable  # type: ignore[untyped-decorator]
@torch.no_grad()
def _decay(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    """Decoupled weight decay before a step (Loshchilov and Hutter, 1711.05101, Algorithm 2)."""
    for group in optimizer.param_groups:
        if group[_DECAY]:
            kept = 1 - float(group["lr"]) * group[_DECAY]
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(kept)
