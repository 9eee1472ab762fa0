"""Bytes of tensors that are alive while code runs: the same on every machine, whatever allocators keep."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, `peak` is the most that all storages together had: those of tensors that were `given`
    and of all that operators made, each as long as it lives."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0
        self._count(given)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._count(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
        return result

    def _count(self, tensors: Iterable[Tensor]) -> None:
        alive = {k: entry for k, entry in self._storages.items() if not entry[0].expired()}  # type: ignore[no-untyped-call]
        for tensor in tensors:
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            alive[reference.cdata] = reference, storage.nbytes()
        self._storages = alive
        self.peak = max(self.peak, sum(size for _, size in self._storages.values()))


def held_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers, shared storages once."""
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
