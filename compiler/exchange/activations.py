"""What is done to the inputs and outputs of a layer, in compressed-tensors' words and in ours."""

from __future__ import annotations

from dataclasses import replace

from ...runtime.errors import RequestError
from ...runtime.representation import Representation
from ...runtime.stages.quantize import Quantize
from ...runtime.stages.scales import PowerOfTwo
from .arguments import Arguments, strategy_of
from .coded import FLOATS

_DENSE = "leave the inputs dense, or write decoded weights with `--to dense`"


def activation_arguments(representation: Representation, slot: str) -> tuple[Arguments | None, float | None]:
    """The arguments for a slot (None: dense), and the scale of a static one.

    Raises RequestError for what there are no words for: scales there are the largest magnitude's.
    """
    if representation.is_dense:
        return None, None
    stage = representation.bound_stages[-1]
    if len(representation.stages) != 1 or not isinstance(stage, Quantize):
        raise RequestError(f"{slot} {representation} is not one quantize stage", advice=_DENSE)
    _check(stage, slot)
    strategy = "token" if stage.strategy == "channel" else stage.strategy
    powers = isinstance(stage.storage, PowerOfTwo)
    found = Arguments(
        stage.num_bits, stage.type, stage.symmetric, strategy, stage.group_size, dynamic=stage.step is None,
        scale_dtype="torch.uint8" if powers else None,
    )  # fmt: skip
    return found, stage.step


def _check(stage: Quantize, slot: str) -> None:
    plain = stage.grid is None or (stage.type == "float" and stage.grid == FLOATS.get(stage.num_bits))
    powers = isinstance(stage.storage, PowerOfTwo)
    if not plain or (stage.type == "float" and stage.num_bits not in FLOATS):
        why = f"grid {stage.grid or stage.num_bits}"
    elif stage.observer not in (("mx_floor", "mx_even") if powers else ("absmax",)):
        why = f"observer {stage.observer}"
    elif stage.absmax_rule is not None:
        why = f"absmax_rule {stage.absmax_rule}"
    elif stage.strategy in ("tensor_group", "block"):
        why = f"strategy {stage.strategy} with a scale of the tensor that is measured as it runs"
        why = why if stage.strategy == "tensor_group" else "strategy block"
    elif stage.zp_dtype is not None or stage.offset is not None or stage.rounding is not None:
        why = "zp_dtype, offset or rounding"
    elif powers and stage.group_size != 32:
        why = f"group_size {stage.group_size} under powers of two"
    else:
        return
    raise RequestError(f"{slot} {stage}: {why} has no words in compressed-tensors", advice=_DENSE)


def activation_note(representation: Representation, slot: str) -> str:
    """What is said of a slot whose numbers come out a little different there; empty where they do not."""
    stages = representation.stages
    if stages and isinstance(stages[0], Quantize) and stages[0].observer == "mx_floor":
        return f"{slot}: scales are by mx_floor here; compressed-tensors rounds the maximum first (mx_even)"
    return ""


def activation_representation(arguments: Arguments | None, step: float | None, slot: str) -> Representation:
    """The inverse of `activation_arguments`; `step` is the scale of a static one.

    Raises RequestError for arguments that rhoc has no stage for.
    """
    if arguments is None:
        return Representation()
    if arguments.dynamic is False and step is None:
        raise RequestError(
            f"{slot} are static, and their scale is missing", advice="copy the checkpoint again"
        )
    if arguments.dynamic is False and (arguments.strategy != "tensor" or not arguments.symmetric):
        raise RequestError(
            f"{slot} are static by {arguments.strategy}, which rhoc has no stage for",
            advice="static inputs are symmetric, with one scale of the tensor",
        )
    powers = arguments.scale_dtype is not None and arguments.scale_dtype.endswith("uint8")
    plain = replace(arguments, dynamic=True)
    stage = Quantize(
        plain.num_bits, plain.type, plain.symmetric, strategy_of(plain), plain.group_size,
        dynamic=step is None,
        observer="mx_even" if powers else "absmax",
        grid=FLOATS.get(plain.num_bits) if plain.type == "float" else None,
        step=step,
    )  # fmt: skip
    return Representation((stage,))
