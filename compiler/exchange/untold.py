"""What a packed model does that its weights do not tell, and so is lost where only weights are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...runtime.errors import RequestError
from ..spec import Spec


def untold(spec: Spec) -> Iterator[str]:
    """What a spec asks for beside packed weights, in a few words each: represented keys and values, and
    represented inputs or outputs of dense weights."""
    for rule in spec.rules:
        if not rule.representation("kv_cache").is_dense:
            yield "kv_cache"
        if rule.weight_representation.is_dense:
            for slot in ("input_activations", "output_activations"):
                if not rule.representation(slot).is_dense:
                    yield f"{slot} of dense weights"


def refuse_untold(spec: Spec) -> None:
    """Raise RequestError for a spec that asks for anything that weights do not tell."""
    for what in untold(spec):
        raise RequestError(
            f"{what}: there is no place for it in what is to be written", where=f"spec {spec.name}",
            advice="leave it out of the spec, or write a packed model with `rhoc compile --out`",
        )  # fmt: skip


def refuse_centred(paths: Sequence[str]) -> None:
    """Raise RequestError where layer norms (by path) subtract no mean, as rotations folded around them ask
    for: every other program subtracts it."""
    if paths:
        raise RequestError(
            "this layer norm subtracts no mean since rotations were folded around it, and other programs do",
            where=paths[0],
            advice="leave fold_rotations out, or write a packed model with `rhoc compile --out`",
        )
