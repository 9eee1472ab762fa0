"""A compressed-tensors checkpoint as a packed model: the same weights bit for bit, and their spec."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.errors import RequestError, WorkError
from ...runtime.packed import Packed
from ...runtime.representation import Representation
from ...runtime.slots import Slots
from ..spec import Spec
from ..targets import covers
from .activations import activation_representation
from .arguments import Arguments
from .coded import same_bits
from .derived import Rules
from .folder import CONFIG, read_config, read_tensors
from .layouts import MIXED, layout_named
from .skeleton import skeleton
from .transforms import rotation_of

METHOD = "compressed-tensors"
READABLE = "`rhoc import` reads compressed-tensors and sparse-pack-quantized"
_OWN = (  # what a layer's tensors are called; everything else stays as it is
    "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale",
    "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point",
)  # fmt: skip
_MARKS = (".weight_scale", ".weight_packed")


@dataclass(frozen=True)
class Imported:
    """A packed model without its architecture (`skeleton`), the spec that says the same, config.json without
    what it says of quantisation, and what is to be known."""

    model: nn.Module
    spec: Spec
    config: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Group:
    """A config group: which modules, and how their weights, inputs and outputs are quantised."""

    targets: tuple[str, ...]
    format: str
    weights: Arguments
    inputs: Arguments | None
    outputs: Arguments | None


def import_compressed_tensors(directory: str | Path) -> Imported:
    """Read a checkpoint directory.

    Raises:
        RequestError: no such checkpoint, or one that rhoc has no stages for, by the layer's name.
        WorkError: the files are damaged.
    """
    config = read_config(directory)
    quantization = config.pop("quantization_config", None)
    where = str(Path(directory) / CONFIG)
    if not isinstance(quantization, dict) or quantization.get("quant_method") != METHOD:
        raise RequestError("its quantization_config is not compressed-tensors'", where=where, advice=READABLE)
    try:
        groups = _groups(quantization)
    except RequestError as error:
        raise error.at(where) from None
    ignore = tuple(quantization.get("ignore") or ())
    transforms = _transforms(quantization)
    tensors = read_tensors(directory)
    layers = sorted({name.removesuffix(mark) for name in tensors for mark in _MARKS if name.endswith(mark)})
    weights: dict[str, Packed] = {}
    rules = Rules(ignore)
    for path in layers:
        own = {name: tensors.pop(f"{path}.{name}") for name in _OWN if f"{path}.{name}" in tensors}
        try:
            group, packed = _layer(path, own, groups, transforms)
        except (RequestError, WorkError) as error:
            raise error.at(path).at(str(directory)) from None
        weights[f"{path}.weight"] = packed
        rules.add(path, packed, group.targets)
    if not weights:
        raise RequestError(
            "no tensor there is quantised", where=str(directory), advice="is it the right directory?"
        )
    return Imported(skeleton(weights, tensors), rules.spec(), config, tuple(_notes(quantization, groups)))


def _groups(quantization: Mapping[str, Any]) -> list[Group]:
    found = []
    whole = quantization.get("format", "")
    for name, entry in (quantization.get("config_groups") or {}).items():
        if not isinstance(entry, dict) or not isinstance(entry.get("weights"), dict):
            raise RequestError(
                f"config group {name!r} has no weights written out", advice="presets are not read"
            )
        weights = Arguments.from_document(entry["weights"])
        chosen = entry.get("format") or whole
        if chosen == MIXED:
            raise RequestError(f"config group {name!r} has no format", advice="is config.json complete?")
        layout_named(chosen, weights.num_bits, weights.type)
        inputs, outputs = (_slot(entry.get(slot)) for slot in ("input_activations", "output_activations"))
        found.append(Group(tuple(entry.get("targets") or ()), chosen, weights, inputs, outputs))
    if not found:
        raise RequestError("there are no config_groups", advice="is config.json complete?")
    return found


def _slot(data: object) -> Arguments | None:
    return Arguments.from_document(data) if isinstance(data, dict) else None


def _layer(
    path: str, tensors: Mapping[str, Tensor], groups: list[Group], transforms: list[dict[str, Any]]
) -> tuple[Group, Packed]:
    """The packed weight of a layer, of the first group that speaks of it and has such tensors."""
    named = [group for group in groups if covers(group.targets, path, ())]
    classes = [group for group in groups if any(not target.startswith("re:") for target in group.targets)]
    problem: RequestError | None = None
    for group in named or classes or groups:
        try:
            return group, _packed(path, tensors, group, transforms)
        except RequestError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _packed(
    path: str, tensors: Mapping[str, Tensor], group: Group, transforms: list[dict[str, Any]]
) -> Packed:
    layout = layout_named(group.format, group.weights.num_bits, group.weights.type)
    coded = layout.read(tensors, group.weights)
    dense = layout.decode(coded, group.weights)
    core, fields = layout.pack(coded, group.weights)
    rotation = rotation_of(mine(transforms, path), dense.shape[1])
    inputs = activation_representation(group.inputs, _step(tensors, "input_scale"), "input_activations")
    outputs = activation_representation(group.outputs, _step(tensors, "output_scale"), "output_activations")
    slots = Slots(inputs, output=outputs)
    back = core.decode(core.unpack(fields, tuple(dense.shape), dense.dtype))
    if not same_bits(back, dense):
        raise WorkError(
            "the weights that were read are not those of the checkpoint", advice="report this format"
        )
    return rotated(rotation, core, fields, dense.shape, dense.dtype, slots)


def rotated(
    rotation: Representation, core: Representation, fields: Mapping[str, Tensor], shape: Sequence[int],
    dtype: torch.dtype, slots: Slots,
) -> Packed:  # fmt: skip
    """A packed weight of which everything after leading rotations is stored, in the fields of `core`."""
    shift = len(rotation.stages)
    named = {_shifted(name, shift): tensor for name, tensor in fields.items()}
    return Packed(rotation >> core, tuple(shape), named, dtype, slots)


def _step(tensors: Mapping[str, Tensor], name: str) -> float | None:
    found = tensors.get(name)
    if found is None:
        return None
    if found.numel() != 1:
        raise RequestError(
            f"{name} has shape {list(found.shape)}, not one number", advice="one scale is known here"
        )
    return float(found)


def _shifted(name: str, shift: int) -> str:
    """A field's name when `shift` stages stand in front."""
    position, dot, field = name.partition(".")
    return f"{int(position) + shift}.{field}" if dot else name


def _transforms(quantization: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(((quantization.get("transform_config") or {}).get("config_groups") or {}).values())


def mine(transforms: list[dict[str, Any]], path: str) -> list[dict[str, Any]]:
    """The transform schemes that speak of a layer."""
    return [scheme for scheme in transforms if _speaks_of(scheme, path)]


def _speaks_of(scheme: Mapping[str, Any], path: str) -> bool:
    """Whether a transform speaks of a layer; a class name speaks of all that are not ignored."""

    def names(entry: Mapping[str, Any]) -> bool:
        targets, ignore = entry.get("targets") or (), entry.get("ignore") or ()
        classes = {target for target in targets if "." not in target and not target.startswith("re:")}
        return covers(targets, path, classes) and not covers(ignore, path, ())

    return any(names(entry) for entry in scheme.get("apply", []))


def _notes(quantization: Mapping[str, Any], groups: list[Group]) -> Iterator[str]:
    if quantization.get("kv_cache_scheme"):
        yield "kv_cache_scheme is not taken over: attention runs on dense keys and values"
    if any(group.inputs is not None and group.inputs.dynamic == "local" for group in groups):
        yield "input_global_scale is not taken over: the second scale of inputs is measured as the model runs"
    if any(group.inputs is not None and group.inputs.strategy == "group" for group in groups):
        yield "scales of inputs by group follow rhoc's rules for them"
