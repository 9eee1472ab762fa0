"""Checkpoints of a training run: everything that the next step depends on, in one safetensors file.

A file holds the model, the optimiser and torch's random state as tensors, and the rest (step, curves,
seconds) as JSON in the file's metadata, with a digest of it all. It is written beside, flushed to the disk
and renamed into place, and the one before it is kept until the new one is complete: a kill at any moment
leaves one good file.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .digest import digest_bytes
from .errors import WorkError

_CURRENT, _PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
_OPTIMIZER, _MODEL, _RANDOM = "optimizer:", "model:", "random:"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by name, and a record of plain JSON values.

    `identity` says whose run it is: the digest of everything that determines the run.
    """

    identity: str
    tensors: dict[str, Tensor]
    record: dict[str, Any]

    @classmethod
    def of(
        cls, identity: str, model: nn.Module, optimizer: torch.optim.Optimizer, record: dict[str, Any]
    ) -> Checkpoint:
        """The present state of a run; tensors are shared with it, not copied."""
        tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{_OPTIMIZER}{index}:{name}": tensor for name, tensor in state.items()}
        tensors[f"{_RANDOM}cpu"] = torch.get_rng_state()
        for number in range(torch.cuda.device_count()):
            tensors[f"{_RANDOM}{number}"] = torch.cuda.get_rng_state(number)
        return cls(identity, tensors, record)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the state back into a run built the same way, and into torch's random generators."""
        model.load_state_dict(self._part(_MODEL))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self._part(_OPTIMIZER).items():
            index, _, field = name.partition(":")
            state.setdefault(int(index), {})[field] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        for device, tensor in self._part(_RANDOM).items():
            if device == "cpu":
                torch.set_rng_state(tensor)
            else:
                torch.cuda.set_rng_state(tensor, int(device))

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {name[len(prefix) :]: t for name, t in self.tensors.items() if name.startswith(prefix)}


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint into `folder` as the current one; what was current becomes the previous one."""
    folder.mkdir(parents=True, exist_ok=True)
    # Tied weights share memory and safetensors refuses that: each name gets its own copy.
    tensors = {
        name: tensor.detach().cpu().clone().contiguous() for name, tensor in checkpoint.tensors.items()
    }
    record = json.dumps(checkpoint.record, allow_nan=False)
    metadata = {
        "identity": checkpoint.identity,
        "record": record,
        "digest": _digest(checkpoint.identity, record, tensors),
    }
    current, previous, fresh = folder / _CURRENT, folder / _PREVIOUS, folder / f"{_CURRENT}.{os.getpid()}.tmp"
    with fresh.open("wb") as file:
        file.write(save(tensors, metadata))
        file.flush()
        os.fsync(file.fileno())
    if current.exists():
        current.replace(previous)
    fresh.replace(current)
    _sync(folder)


def load_checkpoint(folder: Path, identity: str) -> tuple[Checkpoint, str] | None:
    """The newest good checkpoint of a folder, with a note when it is not the newest; None when there is none.

    Raises WorkError when there are files and none is good, or when they belong to another run.
    """
    faults: list[str] = []
    for leftover in folder.glob(f"{_CURRENT}.*.tmp"):  # of processes that were killed while they wrote
        leftover.unlink(missing_ok=True)
    for name in (_CURRENT, _PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        try:
            found = _read(path)
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            faults.append(f"{name} is damaged ({error})")
            continue
        if found.identity != identity:
            raise WorkError(
                "the checkpoint belongs to another run (other settings, corpus or model)",
                where=str(path),
                advice="give another folder, or delete this one to train anew",
            )
        return found, f"{'; '.join(faults)}, so the one before it was taken" if faults else ""
    if faults:
        raise WorkError("; ".join(faults), where=str(folder), advice="delete the folder to train anew")
    return None


def _read(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        names = file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    identity, record = metadata["identity"], metadata["record"]
    if metadata["digest"] != _digest(identity, record, tensors):
        raise ValueError("its contents do not match its digest")
    return Checkpoint(identity, tensors, json.loads(record))


def _digest(identity: str, record: str, tensors: dict[str, Tensor]) -> str:
    parts = [identity.encode(), record.encode()]
    for name in sorted(tensors):
        tensor = tensors[name]
        parts.append(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        parts.append(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest_bytes(*parts)


def _sync(folder: Path) -> None:
    """Flush the renames themselves, which live in the folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
