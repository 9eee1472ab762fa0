"""Checkpoints of a training run: everything that the next step depends on, in one safetensors file.

A file holds the model, the optimiser, torch's random state and what else has a state as tensors, and the
rest (step, curves, seconds, plain values of the optimiser) as JSON in the file's metadata, with a digest of
it all. It is written beside, flushed to the disk and renamed into place, and the one before it is kept until
the new one is complete: a kill at any moment leaves one good file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .digest import digest_bytes
from .errors import WorkError

_CURRENT, _PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"
_OPTIMIZER, _MODEL, _RANDOM = "optimizer:", "model:", "random:"
_PLAIN = "optimizer"  # in the record: what the optimiser keeps beside tensors, by parameter


class Stateful(Protocol):
    """Something of a run with a state of its own: tensors by name, which `load` takes back."""

    def state(self) -> dict[str, Tensor]: ...
    def load(self, state: dict[str, Tensor]) -> None: ...


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
        cls,
        identity: str,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        record: dict[str, Any],
        parts: Mapping[str, Stateful] = MappingProxyType({}),
    ) -> Checkpoint:
        """The present state of a run; tensors are shared with it, not copied. `parts` are saved by name.

        Raises WorkError when the optimiser keeps something that is neither a tensor nor a plain value.
        """
        tensors = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
        plain: dict[str, dict[str, Any]] = {}
        for index, state in optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"{_OPTIMIZER}{index}:{name}"] = value
                else:
                    plain.setdefault(str(index), {})[name] = _plain(optimizer, name, value)
        for part, holder in parts.items():
            tensors |= {f"{part}:{name}": tensor for name, tensor in holder.state().items()}
        tensors[f"{_RANDOM}cpu"] = torch.get_rng_state()
        for number in range(torch.cuda.device_count()):
            tensors[f"{_RANDOM}{number}"] = torch.cuda.get_rng_state(number)
        return cls(identity, tensors, {**record, _PLAIN: plain} if plain else record)

    def restore(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        parts: Mapping[str, Stateful] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Put the state back into a run built the same way, and into torch's generators; the record."""
        model.load_state_dict(self._part(_MODEL))
        plain = self.record.get(_PLAIN, {})
        state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in plain.items()}
        for name, tensor in self._part(_OPTIMIZER).items():
            index, _, field = name.partition(":")
            state.setdefault(int(index), {})[field] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        for part, holder in parts.items():
            holder.load(self._part(f"{part}:"))
        for device, tensor in self._part(_RANDOM).items():
            if device == "cpu":
                torch.set_rng_state(tensor)
            else:
                torch.cuda.set_rng_state(tensor, int(device))
        return {name: value for name, value in self.record.items() if name != _PLAIN}

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


def _plain(optimizer: torch.optim.Optimizer, name: str, value: object) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise WorkError(
        f"{type(optimizer).__name__} keeps {name}, a {type(value).__name__}, which no checkpoint can hold",
        where="checkpoint",
        advice="take another optimiser, or train without checkpoints",
    )


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
