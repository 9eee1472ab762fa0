"""Directories of sparse weights in the layout of SPARSE.txt, written and read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...runtime.errors import RequestError, WorkError
from ...runtime.packed import Packed
from ...runtime.slots import Slots
from .activations import activation_arguments, activation_representation
from .arguments import Arguments
from .compressed_tensors import apart
from .derived import Rules
from .entries import mappings, names
from .folder import CONFIG, read_config, read_tensors, write_folder
from .reading import Imported, rotated
from .skeleton import skeleton
from .source import Source
from .sparse import NAME, VERSION, dtype_of, read_sparse, write_sparse
from .transforms import Transform, block_of, rotation_of, transform_config, transforms_of
from .untold import refuse_untold

_WEIGHT = ".weight"
_OWN = (
    "weight_shape", "bitmask", "row_offsets", "weight_packed", "weight_scale", "weight_zero_point",
    "compressed",
)  # fmt: skip


def export_sparse(directory: str | Path, source: Source, beside: Path | None = None) -> list[str]:
    """Write a directory of sparse weights. Arguments and errors as for `export_compressed_tensors`."""
    refuse_untold(source.spec)
    tensors = source.dense()
    groups: list[tuple[dict[str, Any], list[str]]] = []
    blocks: dict[str, tuple[int, int]] = {}
    for path, packed in source.weights.items():
        name = path.removesuffix(_WEIGHT)
        try:
            group, own, block = _layer(path, packed)
        except RequestError as error:
            raise error.at(path) from None
        if block is not None:
            blocks[name] = (block, int(packed.shape[1]))
        paths = next((paths for other, paths in groups if other == group), None)
        if paths is None:
            groups.append((group, [name]))
        else:
            paths.append(name)
        tensors |= {f"{name}.{key}": tensor for key, tensor in own.items()}
    if not groups:
        raise RequestError("no weight of this model is represented", advice="use `--to dense`")
    quantization = {
        "quant_method": NAME,
        "format": NAME,
        "version": VERSION,
        "config_groups": {
            f"group_{i}": {"targets": paths, **group} for i, (group, paths) in enumerate(groups)
        },
        "transform_config": transform_config(blocks),
    }
    write_folder(directory, {**source.config, "quantization_config": quantization}, apart(tensors), beside)
    return []


def _layer(path: str, packed: Packed) -> tuple[dict[str, Any], dict[str, Tensor], int | None]:
    if not path.endswith(_WEIGHT):
        raise RequestError(
            "a parameter that is not called weight has no name there", advice="use `--to dense`"
        )
    if not packed.slots.output.is_dense:
        raise RequestError("output_activations have no words there", advice="leave them dense")
    inputs, step = activation_arguments(packed.slots.input, "input_activations")
    if step is not None:
        raise RequestError("static inputs have no place there", advice="use dynamic inputs")
    group, tensors = write_sparse(packed)
    block = block_of(packed.representation.rotation, int(packed.shape[1]))
    return {**group, "input_activations": None if inputs is None else inputs.to_document()}, tensors, block


def import_sparse(directory: str | Path) -> Imported:
    """Read a directory of sparse weights. Errors as `import_compressed_tensors`."""
    config = read_config(directory)
    quantization = config.pop("quantization_config", None)
    where = str(Path(directory) / CONFIG)
    if not isinstance(quantization, dict) or quantization.get("quant_method") != NAME:
        raise RequestError(f"its quantization_config is not {NAME}", where=where, advice="see SPARSE.txt")
    if quantization.get("version") != VERSION:
        raise RequestError(
            f"version {quantization.get('version')!r}, and this rhoc reads {VERSION}", where=where,
            advice="use the version of rhoc that wrote it",
        )  # fmt: skip
    try:
        transforms, groups = transforms_of(quantization), mappings(quantization, "config_groups")
        targets = [names(group, "targets") for group in groups]
    except RequestError as error:
        raise error.at(where) from None
    tensors = read_tensors(directory)
    weights: dict[str, Packed] = {}
    rules = Rules()
    for group, paths in zip(groups, targets, strict=True):
        for path in paths:
            own = {name: tensors.pop(f"{path}.{name}") for name in _OWN if f"{path}.{name}" in tensors}
            try:
                weights[f"{path}{_WEIGHT}"] = packed = _packed(path, group, own, transforms)
            except (RequestError, WorkError) as error:
                raise error.at(path).at(str(directory)) from None
            rules.add(path, packed)
    if not weights:
        raise RequestError("config_groups name no weights", where=where, advice="is config.json complete?")
    return Imported(skeleton(weights, tensors), rules.spec(), config)


def _packed(
    path: str, group: Mapping[str, Any], tensors: Mapping[str, Tensor], transforms: list[Transform]
) -> Packed:
    core, fields = read_sparse(group, tensors)
    shape = tuple(tensors["weight_shape"].tolist())
    rotation = rotation_of(transforms, path, shape[1])
    inputs = group.get("input_activations")
    arguments = None if inputs is None else Arguments.from_document(inputs)
    slots = Slots(activation_representation(arguments, None, "input_activations"))
    return rotated(rotation, core, fields, shape, dtype_of(group), slots)
