"""A packed model as a directory that `from_pretrained` loads packed."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from ..exchange.folder import staged
from ..spec import Spec
from .pretrained import as_pretrained


def export_pretrained(
    directory: str | Path, packed: nn.Module, spec: Spec, beside: Path | None = None
) -> list[str]:
    """Write it; what is to be known of it. `beside`: where tokenizer files are.

    Raises:
        RequestError: it is no model of transformers, or the directory holds something.
        WorkError: it cannot be written.
    """
    model = as_pretrained(packed, spec)
    with staged(directory, beside) as working:
        model.save_pretrained(working)
    return []
