"""A saved packed model over the user's architecture. Needs nothing but this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .attending import attending
from .bank import give_index
from .checkpoint import read_packed
from .codec import Codec
from .errors import RequestError
from .folded import CentredNorm
from .holders import Holders
from .packed import Packed
from .packed_document import PackedWeight
from .plain import from_plain
from .projection import Project
from .representation import Representation
from .structure import bake, copy_structure

_SHOWN = 3


def load_packed(directory: str | Path, model: nn.Module) -> nn.Module:
    """A packed model over the architecture of `model`, in eval(). `model` is not changed.

    Weights of the model are not used, so it may be on the meta device, unless it has non-persistent buffers,
    which no checkpoint holds.

    Raises:
        RequestError: no packed model there, or one of another architecture.
        WorkError: the files are damaged.
    """
    document, tensors = read_packed(directory)
    try:
        root = _centred(over(model, document.weights, tensors), document.centred)
        return _attending(root, {path: from_plain(stages) for path, stages in document.caches.items()})
    except RequestError as error:
        raise error.at(str(directory)) from None


load = load_packed


def over(model: nn.Module, weights: Mapping[str, PackedWeight], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A packed model over the architecture of `model`, in eval(), from its weights and its tensors, tied ones
    under each of their names. What it holds are these tensors; `model` is as for `load_packed`.

    Raises RequestError when the model's state is not exactly this.
    """
    model = _without_parametrizations(model, weights)
    tensors = _tied(model, weights, tensors)
    _check(dict(model.named_parameters(remove_duplicate=False)), model, weights, tensors)
    root = copy_structure(model, _chooser(model, weights, tensors))
    parameters = dict(root.named_parameters(remove_duplicate=False))
    holders = Holders(root)
    for path, weight in weights.items():
        holders.pack(parameters[path], packed_from(path, weight, tensors))
    return give_index(root, model, {w.slots.rows.bank.index for w in weights.values() if w.slots.rows}).eval()


def _centred(root: nn.Module, paths: Iterable[str]) -> nn.Module:
    """The model with layer norms that subtract no mean, in train() as in eval()."""
    modules, holders = dict(root.named_modules()), Holders(root)
    for path in paths:
        norm = modules.get(path)
        if not isinstance(norm, nn.LayerNorm):
            raise RequestError(
                f"the model has no layer norm {path}",
                advice="load it into the architecture it was saved from",
            )
        holders.replace(norm, CentredNorm(norm).eval())
    return holders.root


def _attending(root: nn.Module, caches: Mapping[str, Representation]) -> nn.Module:
    """The model with modules that attend with keys and values as a cache in these representations would give
    them."""
    modules, holders = dict(root.named_modules()), Holders(root)
    for path, representation in caches.items():
        if path not in modules:
            raise RequestError(
                f"the model has no module {path}", advice="load it into the architecture it was saved from"
            )
        holders.replace(modules[path], attending(modules[path], Project(representation, ())).eval())
    return holders.root


def _without_parametrizations(model: nn.Module, weights: Iterable[str]) -> nn.Module:
    """`model`, or where parametrizations compute one of `weights` a copy with the same tensors in which that
    is a parameter."""
    known = dict(model.named_parameters(remove_duplicate=False))
    owners = {path.rpartition(".")[0] for path in weights if path not in known}
    modules = dict(model.named_modules(remove_duplicate=False))
    computing = [path for path in owners if path in modules and is_parametrized(modules[path])]
    if not computing:
        return model
    copied = copy_structure(model, lambda tensor: tensor)
    for owner in {id(o): o for o in map(copied.get_submodule, computing)}.values():
        bake(owner)
    return copied


def packed_from(path: str, weight: PackedWeight, tensors: Mapping[str, Tensor]) -> Packed:
    """A packed weight from its saved fields, each of which must be there as the representation has it."""
    representation = weight.representation
    fields = {}
    for name, field in representation.layout(weight.matrix.shape(weight.shape), weight.torch_dtype).items():
        tensor = tensors.get(f"{path}.{name}", None if representation.stages else tensors.get(path))
        if tensor is None or not field.fits(tensor):
            raise RequestError(
                f"{path}.{name} is missing or of the wrong shape", advice="save the model again"
            )
        fields[name] = tensor
    slots = weight.slots
    if weight.codec:
        slots = replace(slots, codec=Codec.from_named(path, slots.output, tensors))
    return Packed(representation, weight.shape, fields, weight.torch_dtype, slots, weight.matrix)


def _chooser(
    model: nn.Module, weights: Mapping[str, PackedWeight], tensors: Mapping[str, Tensor]
) -> Callable[[Tensor], Tensor]:
    """What each tensor of the model becomes: saved, or copied, or left to be replaced by its packed form."""
    state = model.state_dict(keep_vars=True)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    packed = {id(parameters[path]) for path in weights}
    saved = {id(tensor): tensors[name] for name, tensor in state.items() if name in tensors}

    def choose(tensor: Tensor) -> Tensor:
        if id(tensor) in packed:
            return tensor
        if id(tensor) not in saved and tensor.is_meta:
            raise RequestError(
                f"a non-persistent buffer {tuple(tensor.shape)} is on the meta device, and was not saved",
                advice="build the model on a real device",
            )
        chosen = saved[id(tensor)] if id(tensor) in saved else tensor.detach().clone()
        return nn.Parameter(chosen, requires_grad=False) if isinstance(tensor, nn.Parameter) else chosen

    return choose


def _tied(
    model: nn.Module, weights: Mapping[str, PackedWeight], tensors: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """`tensors` under every name that one of the model has: files of others keep tied ones under one.

    Raises RequestError where the model has one tensor, and two that differ were saved.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    found = dict(tensors)
    for together in names.values():
        held = {name: content for name in together if (content := _content(name, tensors))}
        for name in together if len(together) > 1 and held else ():
            first = next(iter(held))
            if name not in held:
                found |= {name + rest: tensor for rest, tensor in held[first].items()}
            elif not _same(held[first], held[name]) or weights.get(name, weights.get(first)) != weights.get(
                first
            ):
                raise RequestError(
                    f"{first} and {name} are one tensor in this model, and two that differ in the saved one",
                    advice="build the model without the tie",
                )
    return found


def _content(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was saved of a tensor of the model, dense or as fields, by what follows its name."""
    if name in tensors:
        return {"": tensors[name]}
    return {n.removeprefix(name): tensor for n, tensor in tensors.items() if n.startswith(f"{name}.")}


def _same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor is other[name] or torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def _check(
    parameters: Mapping[str, Tensor],
    model: nn.Module,
    weights: Mapping[str, PackedWeight],
    tensors: Mapping[str, Tensor],
) -> None:
    """Raise when the model's state is not exactly what was saved."""
    for path, weight in weights.items():
        if path not in parameters:
            raise RequestError(
                f"the model has no parameter {path}", advice="load it into the architecture it was saved from"
            )
        _same_shape(path, tuple(parameters[path].shape), weight.shape)
    packed = {id(parameters[path]) for path in weights}
    state = model.state_dict(keep_vars=True)
    expected = {name for name, tensor in state.items() if id(tensor) not in packed}
    under = tuple(f"{name}." for name, tensor in state.items() if id(tensor) in packed)
    dense = {name for name, tensor in state.items() if id(tensor) in packed}
    saved = {name for name in tensors if not name.startswith(under)} - dense if under else set(tensors)
    for names, what in ((expected - saved, "was saved without"), (saved - expected, "was saved with")):
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN]) + (" and more" if len(names) > _SHOWN else "")
            raise RequestError(
                f"it {what} {shown}, unlike this model", advice="load it into its own architecture"
            )
    for name in expected:
        _same_shape(name, tuple(state[name].shape), tuple(tensors[name].shape))


def _same_shape(path: str, here: tuple[int, ...], saved: tuple[int, ...]) -> None:
    if here != saved:
        raise RequestError(
            f"{path} has shape {here} in this model and {saved} in the saved one",
            advice="load it into the architecture it was saved from",
        )
