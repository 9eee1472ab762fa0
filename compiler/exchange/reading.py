"""A compressed-tensors checkpoint as a packed model: the same weights bit for bit, and their spec.

Its former sparse checkpoints are read too (`bitmask`), whether what they keep are numbers or codes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.errors import RequestError, WorkError
from ...runtime.packed import Packed
from ...runtime.representation import Representation
from ...runtime.slots import Slots
from ...runtime.stages.sparsify import Sparsify
from ..spec import Spec
from ..targets import covers
from .activations import activation_representation
from .arguments import Arguments
from .bitmask import Masked, structure_of, take_masked
from .coded import same_bits
from .derived import Rules
from .entries import mapping, names, text
from .folder import CONFIG, read_config, read_tensors
from .layouts import MIXED, layout_named
from .skeleton import skeleton
from .transforms import Transform, rotation_of, transforms_of

METHOD = "compressed-tensors"
READABLE = "`rhoc import` reads compressed-tensors and sparse-pack-quantized"
_OWN = (  # what a layer's tensors are called; everything else stays as it is
    "weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_global_scale",
    "input_scale", "input_zero_point", "input_global_scale", "output_scale", "output_zero_point",
)  # fmt: skip
_CACHE = (".q_scale", ".k_scale", ".v_scale", ".q_zero_point", ".k_zero_point", ".v_zero_point")
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
        structure, groups = structure_of(quantization), _groups(quantization)
        transforms, ignore = transforms_of(quantization), names(quantization, "ignore")
    except RequestError as error:
        raise error.at(where) from None
    tensors, rules = read_tensors(directory), Rules(ignore)
    if quantization.get("kv_cache_scheme"):  # which is not taken over, as a note says
        tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(_CACHE)}
    try:
        masked = take_masked(tensors, structure)
        weights = _weights(tensors, groups, transforms, masked, rules)
    except (RequestError, WorkError) as error:
        raise error.at(str(directory)) from None
    notes = (*_notes(quantization, groups), *_spread(weights, masked))
    return Imported(skeleton(weights, tensors), rules.spec(), config, notes)


def _weights(
    tensors: dict[str, Tensor], groups: list[Group], transforms: list[Transform],
    masked: Mapping[str, Masked], rules: Rules,
) -> dict[str, Packed]:  # fmt: skip
    """Packed weights by path, of tensors that are taken from the checkpoint's; `rules` is given each."""
    marked = {name.removesuffix(mark) for name in tensors for mark in _MARKS if name.endswith(mark)}
    weights: dict[str, Packed] = {}
    for path in sorted(marked | masked.keys()):
        own = {name: tensors.pop(f"{path}.{name}") for name in _OWN if f"{path}.{name}" in tensors}
        try:
            if path in marked:
                group, packed = _layer(path, own, groups, transforms, masked.get(path))
                targets = group.targets
            else:
                packed, targets = _numbers(path, masked[path], transforms), ()
        except (RequestError, WorkError) as error:
            raise error.at(path) from None
        weights[f"{path}.weight"] = packed
        rules.add(path, packed, targets)
    if not weights:
        raise RequestError("no tensor there is quantised or sparse", advice="is it the right directory?")
    return weights


def _numbers(path: str, masked: Masked, transforms: list[Transform]) -> Packed:
    """A sparse weight that is not quantised."""
    core, fields = masked.numbers()
    rotation = rotation_of(transforms, path, masked.mask.shape[1])
    return rotated(rotation, core, fields, tuple(masked.mask.shape), masked.kept.dtype, Slots())


def _groups(quantization: Mapping[str, Any]) -> list[Group]:
    found = []
    whole = text(quantization, "format")
    for name, entry in mapping(quantization, "config_groups").items():
        if not isinstance(entry, dict) or not isinstance(entry.get("weights"), dict):
            raise RequestError(
                f"config group {name!r} has no weights written out", advice="presets are not read"
            )
        weights = Arguments.from_document(entry["weights"])
        chosen = text(entry, "format") or whole
        if chosen == MIXED:
            raise RequestError(f"config group {name!r} has no format", advice="is config.json complete?")
        layout_named(chosen, weights.num_bits, weights.type)
        inputs, outputs = (_slot(entry.get(slot)) for slot in ("input_activations", "output_activations"))
        found.append(Group(names(entry, "targets"), chosen, weights, inputs, outputs))
    if not found and not quantization.get("sparsity_config"):
        raise RequestError("there are no config_groups", advice="is config.json complete?")
    return found


def _slot(data: object) -> Arguments | None:
    return Arguments.from_document(data) if isinstance(data, dict) else None


def _layer(
    path: str, tensors: Mapping[str, Tensor], groups: list[Group], transforms: list[Transform],
    masked: Masked | None,
) -> tuple[Group, Packed]:  # fmt: skip
    """The packed weight of a layer, of the first group that speaks of it and has such tensors."""
    if not groups:
        raise RequestError("it has scales, and there are no config_groups", advice="is config.json complete?")
    named = [group for group in groups if covers(group.targets, path, ())]
    classes = [group for group in groups if any(not target.startswith("re:") for target in group.targets)]
    problem: RequestError | None = None
    for group in named or classes or groups:
        try:
            return group, _packed(path, tensors, group, transforms, masked)
        except RequestError as error:
            problem = problem or error
    assert problem is not None
    raise problem


def _packed(
    path: str, tensors: Mapping[str, Tensor], group: Group, transforms: list[Transform],
    masked: Masked | None,
) -> Packed:  # fmt: skip
    layout = layout_named(group.format, group.weights.num_bits, group.weights.type)
    coded = layout.read({**tensors, **({} if masked is None else {"weight": masked.dense()})}, group.weights)
    dense = layout.decode(coded, group.weights)
    kept = None if masked is None else masked.codes(coded, group.weights)
    core, fields = layout.pack(coded, group.weights) if kept is None else kept
    rotation = rotation_of(transforms, path, dense.shape[1])
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


def _spread(weights: Mapping[str, Packed], masked: Iterable[str]) -> Iterator[str]:
    """What is to be known of sparse weights whose zeros are stored."""
    cores = {path: weights[f"{path}.weight"].representation.core for path in masked}
    paths = [path for path, core in cores.items() if not isinstance(core.stages[0], Sparsify)]
    if paths:
        yield (
            f"{len(paths)} sparse layers ({paths[0]} first) are read with the codes of their zeros: scales "
            "are not shared by equally many kept numbers"
        )


def _notes(quantization: Mapping[str, Any], groups: list[Group]) -> Iterator[str]:
    if quantization.get("kv_cache_scheme"):
        yield "kv_cache_scheme is not taken over: attention runs on dense keys and values"
    if any(group.inputs is not None and group.inputs.dynamic == "local" for group in groups):
        yield "input_global_scale is not taken over: the second scale of inputs is measured as the model runs"
    if any(group.inputs is not None and group.inputs.strategy == "group" for group in groups):
        yield "scales of inputs by group follow rhoc's rules for them"
