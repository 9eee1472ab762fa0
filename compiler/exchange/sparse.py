"""Sparse weights, quantised or not, in a public layout: kept numbers packed, and a bitmask (SPARSE.txt)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Literal

import torch
from torch import Tensor

from ...runtime.errors import RequestError
from ...runtime.kernels.stored import StoredMatrix, stored_matrix
from ...runtime.packed import Packed
from ...runtime.packing import pack, packed_length, unpack
from ...runtime.representation import Representation
from ...runtime.sparsity import Groups
from ...runtime.sparsity.select import positions
from ...runtime.stage import CARRY
from ...runtime.stages.quantize import Quantize
from ...runtime.stages.quantize_options import grid_of
from ...runtime.stages.sparsify import Sparsify
from .arguments import Arguments, strategy_of, weight_arguments
from .coded import DENSE_ADVICE, core_fields, same_bits
from .layout import shaped, taken
from .words import from_words, to_words, word_count

NAME, VERSION = "sparse-pack-quantized", 1


@dataclass(frozen=True)
class Kept:
    """What is kept of a matrix: a mask, and codes (or numbers) in the order of rows.

    `codes`: `[N, k]` where every row keeps equally many, else one stream `[total]`. `scale` and `zero` are
    float32 and uint8, `[R, C]` over `codes` as it is shaped; None of numbers.
    """

    mask: Tensor
    codes: Tensor
    scale: Tensor | None
    zero: Tensor | None


def write_sparse(packed: Packed) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The group (without targets) and the tensors of one weight. Raises RequestError where it is not sparse,
    or has another shape than a matrix."""
    shape, dtype = tuple(packed.shape), packed.encoded_dtype
    core, fields = packed.representation.core, core_fields(packed)
    matrix = stored_matrix(core, shape)
    if (
        isinstance(matrix, str)
        or matrix.pattern is None
        or len(shape) != 2
        or not packed.arrangement.is_plain
    ):
        raise RequestError(f"{core} is not one sparsify stage, alone or before quantize", advice=DENSE_ADVICE)
    kept = _kept(core, fields, matrix, (shape[0], shape[1]), dtype)
    stage = core.bound_stages[-1]
    quantize = stage if isinstance(stage, Quantize) else None
    pattern = matrix.pattern
    group = {
        "dtype": str(dtype).removeprefix("torch."),
        "sparsity_structure": pattern.sparsity_structure,
        "sparsity": 1 - int(kept.mask.sum()) / kept.mask.numel(),
        "weights": None if quantize is None else _document(quantize, matrix),
    }
    tensors = _tensors(kept, 0 if quantize is None else quantize.num_bits, dtype)
    if not same_bits(decode_sparse(group, tensors), core.decode(core.unpack(fields, shape, dtype))):
        raise RequestError(f"{core} is not decoded from these tensors to the bit", advice=DENSE_ADVICE)
    return group, tensors


def decode_sparse(group: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Tensor:
    """The dense weight that a group and tensors stand for, as SPARSE.txt says."""
    dtype = dtype_of(group)
    arguments, table = _arguments(group)
    kept = _read(tensors, arguments, dtype)
    found = torch.zeros(kept.mask.shape, dtype=dtype)
    if arguments is None or kept.scale is None:
        found[kept.mask] = kept.codes.reshape(-1)
        return found
    numbers = kept.codes.to(torch.float32) if table is None else table[kept.codes.long()]
    per = arguments.group_size or kept.codes.shape[-1]
    columns = torch.arange(kept.codes.shape[-1]) // per
    share = kept.scale.reshape(-1, kept.scale.shape[-1])[:, columns if kept.scale.shape[-1] > 1 else [0]]
    if kept.zero is not None:
        zeros = kept.zero.reshape(-1, kept.zero.shape[-1])[:, columns if kept.zero.shape[-1] > 1 else [0]]
        numbers = numbers - zeros.to(torch.float32)
    found[kept.mask] = (numbers * share).reshape(-1).to(dtype)
    return found


def read_sparse(
    group: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[Representation, dict[str, Tensor]]:
    """The representation and the stored fields of a weight, which decode as `decode_sparse` does.

    Raises RequestError for tensors or a group that are not as SPARSE.txt says.
    """
    dtype = dtype_of(group)
    arguments, _ = _arguments(group)
    kept = _read(tensors, arguments, dtype)
    stage = _pattern(group, kept)
    shape = (int(kept.mask.shape[0]), int(kept.mask.shape[1]))
    places = stage.places.encode(kept.mask, positions(kept.mask), stage.pattern.pools(shape))
    named = {f"0.{name}": tensor for name, tensor in places.items()}
    named[CARRY] = kept.codes.reshape(stage.pattern.carry_shape(shape))
    representation = Representation((stage,))
    if arguments is not None and kept.scale is not None:
        quantize = _quantize(group, arguments, kept.scale.dtype, dtype)
        representation = representation >> Representation((quantize,))
        named["1.scale"] = kept.scale
        named |= {} if kept.zero is None else {"1.zero_point": kept.zero}
    layout = representation.layout(shape, dtype)
    fitted = {name: tensor.reshape(layout[name].shape) for name, tensor in named.items()}
    fields = representation.pack(representation.code(fitted, shape, dtype))
    decoded = representation.decode(representation.unpack(fields, shape, dtype))
    if not same_bits(decoded, decode_sparse(group, tensors)):
        raise RequestError("grid and levels say different things", advice="is config.json that of the file?")
    return representation, fields


def _kept(
    core: Representation, fields: Mapping[str, Tensor], matrix: StoredMatrix, shape: tuple[int, int],
    dtype: torch.dtype,
) -> Kept:  # fmt: skip
    """What a packed weight keeps, in the order of rows."""
    stage = matrix.pattern
    assert stage is not None
    code = core.unpack(fields, shape, dtype)
    mask = stage.kept(code.fields[0])
    order = stage.decode(torch.arange(code.carry.numel()).reshape(code.carry.shape), code.fields[0])[mask]
    carry = code.carry.reshape(-1)[order]
    scale = matrix.scales(fields) if matrix.bits else None
    by_row = code.carry.dim() == 2 and code.carry.shape[0] == shape[0]
    if scale is not None and scale.numel() > 1:
        shuffled = not torch.equal(order, torch.arange(len(order)))
        other = code.carry.dim() == 2 and not by_row
        if shuffled or other or matrix.scale is None or matrix.scale.sharing.rows > 1 < matrix.rows:
            raise RequestError(
                f"scales of {core} are not shared along rows of kept numbers",
                advice=f"use n:m sparsity, {DENSE_ADVICE}",
            )
    return Kept(mask, carry.reshape(shape[0], -1) if by_row else carry, scale, matrix.zeros(fields))


def _document(stage: Quantize, matrix: StoredMatrix) -> dict[str, Any]:
    if not stage.symmetric:
        if stage.zp_dtype is not None:
            raise RequestError(
                f"zp_dtype {stage.zp_dtype}: zero points are integers there", advice=DENSE_ADVICE
            )
        return weight_arguments(stage).to_document()
    arguments = weight_arguments(stage)
    if arguments.strategy == "tensor_group":  # scales are written out
        arguments = replace(arguments, strategy="group")
    levels = [level if isfinite(level) else None for level in matrix.levels]
    return {**arguments.to_document(), "grid": grid_of(stage), "levels": levels}


def _tensors(kept: Kept, bits: int, dtype: torch.dtype) -> dict[str, Tensor]:
    mask = kept.mask
    found = {
        "weight_shape": torch.tensor(mask.shape, dtype=torch.int64),
        "bitmask": pack(mask.to(torch.uint8), 1),
    }
    if kept.codes.dim() == 1:
        counts = mask.sum(1)
        found["row_offsets"] = torch.cumsum(counts, 0) - counts
    if not bits or kept.scale is None:
        return found | {"compressed": kept.codes.contiguous()}
    codes = kept.codes if kept.codes.dim() == 2 else kept.codes[None]
    words = to_words(codes, bits)
    own = kept.scale.to(dtype)
    scale = own if torch.equal(own.to(torch.float32), kept.scale) else kept.scale
    one = scale.numel() == 1 or kept.codes.dim() == 1
    found["weight_packed"] = words if kept.codes.dim() == 2 else words[0].contiguous()
    found["weight_scale"] = scale.reshape(-1) if one else scale.contiguous()
    if kept.zero is not None:
        zero = kept.zero.to(torch.uint8)
        found["weight_zero_point"] = zero.reshape(-1) if one else zero.contiguous()
    return found


def read_mask(tensors: Mapping[str, Tensor], shape: str) -> Tensor:
    """What is kept of a matrix, bool `[N, K]`: `bitmask`, `row_offsets` where they are there, and the tensor
    of its sizes by name. Raises RequestError where they do not fit together."""
    sizes = taken(tensors, shape, torch.int64).reshape(-1).tolist()
    if len(sizes) != 2 or min(sizes) < 1:
        raise RequestError(f"{shape} is {sizes}, not that of a matrix", advice="copy the checkpoint again")
    rows, columns = sizes
    bits = shaped(taken(tensors, "bitmask", torch.uint8), "bitmask", (rows, packed_length(columns, 1)))
    mask = unpack(bits.contiguous(), 1, columns).to(torch.bool)
    offsets, counts = tensors.get("row_offsets"), mask.sum(1)
    if offsets is not None and not torch.equal(offsets.reshape(-1).long(), torch.cumsum(counts, 0) - counts):
        raise RequestError("row_offsets are not those of bitmask", advice="copy the checkpoint again")
    return mask


def _read(tensors: Mapping[str, Tensor], arguments: Arguments | None, dtype: torch.dtype) -> Kept:
    mask = read_mask(tensors, "weight_shape")
    rows, counts = mask.shape[0], mask.sum(1)
    total, stream = int(counts.sum()), "row_offsets" in tensors
    if not total or (not stream and bool((counts != counts[0]).any())):
        raise RequestError(
            "bitmask keeps nothing, or not equally many of each row", advice="row_offsets is missing"
        )
    shape = (total,) if stream else (rows, total // rows)
    if arguments is None:
        return Kept(mask, shaped(taken(tensors, "compressed", dtype), "compressed", shape), None, None)
    packed = taken(tensors, "weight_packed", torch.int32)
    words = shaped(packed, "weight_packed", (*shape[:-1], word_count(shape[-1], arguments.num_bits)))
    codes = from_words(words if not stream else words[None], arguments.num_bits, shape[-1]).reshape(shape)
    share = _scale_shape(arguments, shape)
    scale = shaped(taken(tensors, "weight_scale"), "weight_scale", share)
    zero = None
    if not arguments.symmetric:
        zero = shaped(taken(tensors, "weight_zero_point", torch.uint8), "weight_zero_point", share)
    return Kept(mask, codes, scale, zero)


def _scale_shape(arguments: Arguments, shape: tuple[int, ...]) -> tuple[int, ...]:
    if arguments.strategy == "tensor":
        return (1,)
    groups = 1 if arguments.group_size is None else -(-shape[-1] // arguments.group_size)
    return (*shape[:-1], groups)


def dtype_of(group: Mapping[str, Any]) -> torch.dtype:
    """The dtype of a group's weights. Raises RequestError when it names none."""
    found = getattr(torch, str(group.get("dtype")), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise RequestError(f"no float is called {group.get('dtype')!r}", advice="is config.json complete?")
    return found


def _arguments(group: Mapping[str, Any]) -> tuple[Arguments | None, Tensor | None]:
    """The arguments of codes, None of numbers; and the number that each code stands for, None where codes
    have a zero point."""
    data = group.get("weights")
    if data is None:
        return None, None
    arguments = Arguments.from_document(data)
    if not arguments.symmetric:
        return arguments, None
    levels = data.get("levels")
    numbers = isinstance(levels, list) and all(isinstance(level, float | int | None) for level in levels)
    if not numbers or not 2 <= len(levels) <= 1 << arguments.num_bits:
        raise RequestError(
            f"weights have no levels of {arguments.num_bits} bits", advice="is config.json complete?"
        )
    padded = [*levels, *[None] * ((1 << arguments.num_bits) - len(levels))]
    return arguments, torch.tensor([float("nan") if level is None else float(level) for level in padded])


def _pattern(group: Mapping[str, Any], kept: Kept) -> Sparsify:
    """The stage for a mask: n:m where the group says so and the mask is so, else unstructured."""
    name = str(group.get("sparsity_structure"))
    n, _, m = name.partition(":")
    if kept.codes.dim() == 2 and n.isdigit() and m.isdigit() and kept.mask.shape[1] % int(m) == 0:
        stage = Sparsify(sparsity_structure=name)
        counts = kept.mask.reshape(-1, int(m)).sum(1)
        if isinstance(stage.pattern, Groups) and bool((counts == int(n)).all()):
            return stage
    by_row: Literal["tensor", "row"] = "row" if kept.codes.dim() == 2 else "tensor"
    return Sparsify(sparsity=1 - int(kept.mask.sum()) / kept.mask.numel(), granularity=by_row)


def _quantize(
    group: Mapping[str, Any], arguments: Arguments, scale: torch.dtype, dtype: torch.dtype
) -> Quantize:
    grid = group["weights"].get("grid")
    name: Any = str(scale).removeprefix("torch.")
    try:
        return Quantize(
            arguments.num_bits, arguments.type, arguments.symmetric, strategy_of(arguments),
            arguments.group_size,
            grid=tuple(grid) if isinstance(grid, list) else grid,
            scale_dtype=None if scale == dtype else name,
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"no stage has these arguments ({error})", advice="is config.json complete?"
        ) from error
