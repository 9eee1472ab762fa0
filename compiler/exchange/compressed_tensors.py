"""A packed model as a compressed-tensors checkpoint, which vLLM, transformers and that library load.

Every weight is read back from what is to be written, by the arithmetic of that library, and must be the
decoded weight bit for bit: what is not is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...runtime.errors import RequestError
from ...runtime.packed import Packed
from .activations import activation_arguments, activation_note
from .coded import DENSE_ADVICE, held, same_bits
from .folder import write_folder
from .layouts import MIXED, layout_of
from .source import Source
from .transforms import block_of, transform_config
from .untold import refuse_untold

VERSION = "0.20.0"  # of compressed-tensors, whose layouts these are
_WEIGHT = ".weight"
_ROTATED = "inputs are rotated as the model runs (transform_config): vLLM does that, transformers does not"
_ASYMMETRIC = (
    "packed zero points: the library decompresses them, but transformers 5.23 with compressed-tensors 0.20 "
    "fails to load them"
)
_EMBEDDING = "represented embeddings: the library decompresses them, but transformers 5.23 fails to load them"
_OTHER_DTYPE = "and this model is in another dtype: equal weights, but build it in bfloat16 to run there"


@dataclass(frozen=True)
class Layer:
    """One layer as it is written: its scheme without targets, the tensors under their own names, the block
    that its inputs are rotated in, and what is to be known."""

    scheme: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    block: int | None = None
    columns: int = 0
    notes: tuple[str, ...] = ()


def export_compressed_tensors(directory: str | Path, source: Source, beside: Path | None = None) -> list[str]:
    """Write a checkpoint; what is to be known of it, in a line each. `beside`: where tokenizer files are.

    Raises:
        RequestError: a weight that has no layout there, by name; or the directory holds something.
        WorkError: it cannot be written.
    """
    refuse_untold(source.spec)
    layers = {
        path.removesuffix(_WEIGHT): _layer(path, packed, source) for path, packed in source.weights.items()
    }
    if not layers:
        raise RequestError("no weight of this model is represented", advice="use `--to dense`")
    tensors = source.dense()
    for path, layer in layers.items():
        tensors |= {f"{path}.{name}": tensor.contiguous() for name, tensor in layer.tensors.items()}
    config = dict(source.config)
    if source.tied and config.get("tie_word_embeddings"):
        config["tie_word_embeddings"] = False  # readers tie dense weights only
    config["quantization_config"] = quantization_config(layers, source)
    write_folder(directory, config, apart(tensors), beside)
    return sorted({note for layer in layers.values() for note in layer.notes})


def quantization_config(layers: Mapping[str, Layer], source: Source) -> dict[str, Any]:
    """The document that says how layers are stored: layers that are alike are a group."""
    groups: list[tuple[Mapping[str, Any], list[str]]] = []
    for path, layer in layers.items():
        found = next((paths for scheme, paths in groups if scheme == layer.scheme), None)
        if found is None:
            groups.append((layer.scheme, [path]))
        else:
            found.append(path)
    formats = {scheme["format"] for scheme, _ in groups}
    whole = len(groups) == 1 and source.linears.issuperset(layers)
    blocks = {path: (layer.block, layer.columns) for path, layer in layers.items() if layer.block is not None}
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "format": formats.pop() if len(formats) == 1 else MIXED,
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {"targets": ["Linear"] if whole else paths, **scheme}
            for i, (scheme, paths) in enumerate(groups)
        },
        "ignore": sorted(source.linears - set(layers)) if whole else [],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
        "sparsity_config": {},
        "transform_config": transform_config(blocks),
    }


def _layer(path: str, packed: Packed, source: Source) -> Layer:
    """One packed weight as tensors and a scheme. Raises RequestError, with its path, where it has none."""
    try:
        return _written(path, packed, source.layers.get(path))
    except RequestError as error:
        raise error.at(path) from None


def _written(path: str, packed: Packed, layer: type[nn.Module] | None) -> Layer:
    kinds = (nn.Linear, nn.Embedding)
    if not path.endswith(_WEIGHT) or (layer is not None and not issubclass(layer, kinds)):
        of = f"of {layer.__name__} " if layer is not None else ""
        raise RequestError(
            f"a weight {of}has no layout there; Linear and Embedding have", advice=DENSE_ADVICE
        )
    slots = packed.slots
    inputs, step = activation_arguments(slots.input, "input_activations")
    outputs, output_step = activation_arguments(slots.output, "output_activations")
    taken = held(packed)
    block = block_of(packed.representation.rotation, taken.shape[1])
    layout = layout_of(taken, inputs is not None)
    arguments = layout.arguments(taken)
    _check_division(arguments.group_size, arguments.block_structure, taken.shape[1])
    tensors = layout.write(layout.code(taken), arguments)
    read = layout.decode(layout.read(tensors, arguments), arguments)
    if not same_bits(read.to(taken.dtype), taken.decoded()):
        name = str(read.dtype).removeprefix("torch.")
        raise RequestError(
            f"{layout.name} is decoded to {name}, which does not hold these weights to the bit",
            advice=f"build the model in {name}, or write decoded weights with `--to dense`",
        )
    scheme = {
        "weights": arguments.to_document(),
        "input_activations": None if inputs is None else inputs.to_document(),
        "output_activations": None if outputs is None else outputs.to_document(),
        "format": layout.name,
    }
    static = {"input_scale": step, "output_scale": output_step}
    tensors |= {name: _step(value, taken.dtype) for name, value in static.items() if value is not None}
    notes = (
        activation_note(slots.input, "input_activations"),
        activation_note(slots.output, "output_activations"),
        _ROTATED if block is not None else "",
        _EMBEDDING if layer is not None and issubclass(layer, nn.Embedding) else "",
        _ASYMMETRIC if not arguments.symmetric and layout.name == "pack-quantized" else "",
        "" if read.dtype == taken.dtype else f"{layout.name} is decompressed to bfloat16, {_OTHER_DTYPE}",
    )
    return Layer(scheme, tensors, block, taken.shape[1], tuple(note for note in notes if note))


def _step(value: float, dtype: torch.dtype) -> Tensor:
    """A static scale, in the model's dtype. Raises RequestError where that would round it."""
    found = torch.tensor([value], dtype=dtype)
    if float(found) != value and float(found.to(torch.float32)) != float(torch.tensor(value)):
        raise RequestError(
            f"the step {value} of an input is no number of {str(dtype).removeprefix('torch.')}",
            advice="calibrate the model in that dtype, or leave the inputs dense",
        )
    return found


def _check_division(group: int | None, block: tuple[int, int] | None, columns: int) -> None:
    wide = block[1] if block is not None else group
    if wide is not None and columns % wide:
        raise RequestError(
            f"groups of {wide} do not divide the {columns} columns, as they must there",
            advice="choose another group_size for this layer, or leave it out with `ignore`",
        )


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, each with memory of its own: tied weights are written once for every path."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    return found
