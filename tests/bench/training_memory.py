"""Bytes that a forward pass keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rhoc.runtime.projection import latent_parameters


@dataclass
class Kept:
    """Storages by address, each once; they are held, so that no address is used again."""

    of_weights: dict[int, Tensor] = field(default_factory=dict)
    others: dict[int, Tensor] = field(default_factory=dict)
    projected: set[int] = field(default_factory=set)
    inside: bool = False  # a projection of a weight

    def keep(self, tensor: Tensor) -> Tensor:
        """What saved_tensors_hooks calls for everything that is saved."""
        address = _address(tensor)
        ours = self.inside or address in self.projected
        (self.of_weights if ours else self.others).setdefault(address, tensor)
        return tensor

    def enter(self, *_: Any) -> None:
        """Called before the projection of a weight."""
        self.inside = True

    def leave(self, module: nn.Module, given: Any, result: Tensor) -> None:
        """Called after it, with what it gave."""
        self.inside = False
        self.projected.add(_address(result))


def memory_rows(case: str, forms: Mapping[str, nn.Module], tokens: Tensor) -> list[dict[str, Any]]:
    """A row for each form of a model, the first of which is dense, with ratios to it."""
    rows: list[dict[str, Any]] = []
    dense = 1
    for name, model in forms.items():
        with torch.no_grad():
            model(tokens)  # some libraries take statistics in their first step
        weights, others = kept_bytes(model, tokens)
        dense = dense if rows else others
        print(f"    {name:40} {others / 1e6:8.1f} MB {others / dense:6.3f} x, weights {weights / 1e6:.1f} MB")
        rows.append(
            {
                "case": case,
                "method": name,
                "activation_bytes": others,
                "weight_bytes": weights,
                "ratio": round(others / dense, 3),
                "ratio_together": round((others + weights) / dense, 3),
            }
        )
    return rows


def kept_bytes(model: nn.Module, tokens: Tensor) -> tuple[int, int]:
    """Bytes of what comes from projecting weights, and of everything else; no parameter or buffer counts.

    Of other libraries only the second is known, and projected weights are part of it.
    """
    kept = Kept()
    projections = {projection: None for _, _, projection in latent_parameters(model)}
    handles = [p.register_forward_pre_hook(kept.enter) for p in projections]
    handles += [p.register_forward_hook(kept.leave) for p in projections]
    with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
        loss = F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    for handle in handles:
        handle.remove()
    assert loss.grad_fn is not None
    own = {_address(tensor) for tensor in (*model.parameters(), *model.buffers(), tokens)}
    weights = {address: t for address, t in kept.of_weights.items() if address not in own}
    others = {a: t for a, t in kept.others.items() if a not in own and a not in weights}
    return _bytes(weights), _bytes(others)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensors: Mapping[int, Tensor]) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
