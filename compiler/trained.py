"""The values a form is built from: those of the original model, or of a trained form with the same keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from ..runtime.errors import RequestError

Trained = nn.Module | Mapping[str, Tensor]
GIVE_TRAINED = "give the trainable form of this compiled model, or its state_dict"
"""What to do where a trained form does not fit."""

_SHOWN = 3


def state_of(trained: Trained | None) -> Mapping[str, Tensor] | None:
    """The `state_dict` of a trained form, of either kind; None for none."""
    return trained.state_dict(keep_vars=True) if isinstance(trained, nn.Module) else trained


def latent_values(
    root: nn.Module, state: Mapping[str, Tensor] | None, learned: Collection[str] = ()
) -> dict[int, Tensor]:
    """By identity of each parameter and buffer of `root`, the value to use.

    `learned` are the keys that a trained form has beside those of `root`. Raises RequestError when `state`
    has other keys than these, or other shapes than `root`.
    """
    original = [*root.named_parameters(), *root.named_buffers()]
    if state is None:
        return {id(tensor): tensor for _, tensor in original}
    kept = root.state_dict(keep_vars=True)
    _check(kept, state, learned)
    return {id(tensor): state[name] if name in kept else tensor for name, tensor in original}


def _check(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], learned: Collection[str]) -> None:
    missing = [name for name in (*expected, *learned) if name not in given]
    unexpected = [name for name in given if name not in expected and name not in learned]
    for names, what in ((missing, "misses"), (unexpected, "has the unexpected")):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            shown = ", ".join(names[:_SHOWN])
            raise RequestError(f"the trained model {what} {shown}{more}", advice=GIVE_TRAINED)
    for name, tensor in expected.items():
        if isinstance(tensor, Tensor) and tensor.shape != given[name].shape:
            raise RequestError(
                f"shape {tuple(given[name].shape)} trained, and {tuple(tensor.shape)} here",
                where=name,
                advice=GIVE_TRAINED,
            )
