"""Runs that start from another run's weights: these, trained once and kept beside the checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn

from ..runtime.tensor_file import read_tensors

STARTS = "starts"  # the folder of weights, beside those of checkpoints


def start_weights(folder: Path | None, run: str, train: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """The weights that a run ended with, by name: from the folder, or trained now and written there.

    Training is deterministic, so whoever trains them, and however often, they are the same. `run` is the id
    of the run's request.
    """
    file = None if folder is None else folder / STARTS / f"{run}.safetensors"
    if file is not None and file.exists():
        return read_tensors(file)
    found = {name: tensor.detach().clone() for name, tensor in train().state_dict().items()}
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(f".{os.getpid()}")
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, unfinished)
        unfinished.replace(file)  # whole or not at all
    return found
