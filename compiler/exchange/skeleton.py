"""A module that is nothing but its state: tensors and packed weights where their names say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from ...runtime.checkpoint import read_packed
from ...runtime.errors import RequestError
from ...runtime.load import packed_from
from ...runtime.packed import Packed
from ..spec import Spec, load_spec
from .untold import refuse_centred


def skeleton(weights: Mapping[str, Packed], tensors: Mapping[str, Tensor]) -> nn.Module:
    """The module whose state_dict has these names. Raises RequestError for names that clash."""
    root = nn.Module()
    for path, packed in weights.items():
        owner, leaf = _owner(root, path)
        owner.add_module(leaf, packed)
    for name, tensor in tensors.items():
        owner, leaf = _owner(root, name)
        if leaf in owner._buffers or leaf in owner._modules:
            raise RequestError(f"{name} is there twice", advice="copy the checkpoint again")
        owner.register_buffer(leaf, tensor)
    return root


def saved_skeleton(directory: str | Path) -> tuple[nn.Module, Spec]:
    """A saved packed model without its architecture, and its spec; what is tied stays so.

    Raises:
        RequestError: no packed model there, one whose spec was changed, or one that computes with its tensors
            what its architecture does not.
        WorkError: the files are damaged.
    """
    document, tensors = read_packed(directory)
    spec = load_spec(document.spec)
    if spec.digest != document.spec_digest:
        raise RequestError(
            "the spec in rhoc.json is not the one that it was written with", where=str(directory),
            advice="save the model again",
        )  # fmt: skip
    refuse_centred(document.centred)
    stored = {path: weight for path, weight in document.weights.items() if weight.stages}
    weights = {path: packed_from(path, weight, tensors) for path, weight in stored.items()}
    for name, source in document.aliases.items():
        for path in stored:
            rest = source.removeprefix(path)
            if source.startswith(f"{path}.") and name.endswith(rest):
                weights[name.removesuffix(rest)] = weights[path]
    fields = tuple(f"{path}." for path in weights)
    return skeleton(weights, {n: t for n, t in tensors.items() if not n.startswith(fields)}), spec


def _owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds what a path names, made where there is none, and the last part of the path."""
    *folders, leaf = path.split(".")
    owner = root
    for folder in folders:
        if folder not in owner._modules:
            owner.add_module(folder, nn.Module())
        owner = owner.get_submodule(folder)
    return owner, leaf
