"""The values a form is built from: those of the original model, or of a trained form with the same keys."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..runtime.errors import RequestError

Trained = nn.Module | Mapping[str, Tensor]
_SHOWN = 3


def latent_values(root: nn.Module, trained: Trained | None) -> dict[int, Tensor]:
    """By identity of each parameter and buffer of `root`, the value to use.

    Raises RequestError when `trained` has other keys or shapes than `root`.
    """
    original = [*root.named_parameters(), *root.named_buffers()]
    if trained is None:
        return {id(tensor): tensor for _, tensor in original}
    state = trained.state_dict(keep_vars=True) if isinstance(trained, nn.Module) else trained
    kept = root.state_dict(keep_vars=True)
    _check(kept, state)
    return {id(tensor): state[name] if name in kept else tensor for name, tensor in original}


def _check(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    advice = "give the trainable form of this compiled model, or its state_dict"
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    for names, what in ((missing, "misses"), (unexpected, "has the unexpected")):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            raise RequestError(f"the trained model {what} {', '.join(names[:_SHOWN])}{more}", advice=advice)
    for name, tensor in expected.items():
        if isinstance(tensor, Tensor) and tensor.shape != given[name].shape:
            raise RequestError(
                f"shape {tuple(given[name].shape)} trained, and {tuple(tensor.shape)} here",
                where=name,
                advice=advice,
            )
