"""A representation: a chain of stages, and everything that follows from their `encode` and `decode`.

>>> from rhoc.runtime.stages import Hadamard, Quantize
>>> r = Representation((Hadamard(128), Quantize(4, strategy="channel", observer="rms", grid="midrise")))
>>> str(r)
'hadamard(128) >> quantize(int4, midrise, channel, rms)'
>>> r.bits_per_weight((256, 512), torch.bfloat16)
4.03125
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import fields as options
from functools import cached_property, lru_cache
from itertools import pairwise
from math import isfinite, prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .code import Code, FieldLayout
from .errors import RequestError
from .gaussian import Source
from .packing import pack, unpack
from .seeds import derived
from .stage import CARRY, Fields, Sized, Stage
from .text import chain_text
from .view import View

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


@dataclass(frozen=True)
class Representation:
    """How a tensor is stored: stages from the dense tensor to bits. No stages: dense.

    `a >> b` chains: b encodes what a hands on. `a + b` sums: b encodes what a left over. `a @ b` is a product
    of two factors, each with its own representation. Equality, hash and text are those of the stages as
    written; choices that depend on what comes before (the clip of an rms scale) are made once, in
    `bound_stages`.
    """

    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        for before, after in pairwise(self.stages):
            if before.hands_on != "numbers":
                what = "integer codes" if before.hands_on == "codes" else "nothing"
                raise ValueError(f"{after} cannot follow {before}, which hands on {what}; put it before")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        from .reading import chain_schema  # knows every stage

        return chain_schema(cls, handler)

    def __rshift__(self, other: Representation) -> Representation:
        return Representation(self.stages + other.stages)

    def __add__(self, other: Representation) -> Representation:
        from .stages.sum import Sum  # a stage that holds representations

        only = self.stages[0] if len(self.stages) == 1 else None
        terms = only.terms if isinstance(only, Sum) else (self,)
        return Representation((Sum((*terms, other)),))

    def __matmul__(self, other: Representation) -> Representation:
        from .stages.product import Product

        return Representation((Product(left=self, right=other),))

    @property
    def is_dense(self) -> bool:
        """Whether nothing is done at all."""
        return len(self.stages) == 0  # which torch.compile reads more easily than `not`

    @cached_property
    def bound_stages(self) -> tuple[Stage, ...]:
        """The stages with every choice made that depends on what they are handed."""
        return tuple(stage for stage, _ in self.walk())

    def walk(self) -> Iterator[tuple[Stage, float | None]]:
        """Each bound stage with the squared error it adds on Gaussian data.

        None from the first stage that quadrature does not reach; from there on stages are bound to plain
        Gaussian data.
        """
        source: Source | None = Source()
        for stage in self.stages:
            bound = stage.bound(source or Source())
            result = bound.gaussian(source) if source is not None else None
            source, error = result if result is not None else (None, None)
            yield bound, error

    @property
    def unwrapped(self) -> tuple[Stage, ...]:
        """Its stages, without those that only store others in another way (entropy coding)."""
        return tuple(inner for stage in self.stages for inner in stage.unwrapped)

    def all_stages(self) -> Iterator[Stage]:
        """Its stages and, after each, those of the representations inside it."""
        for stage in self.stages:
            yield stage
            for field in options(stage):  # type: ignore[arg-type]
                value = getattr(stage, field.name)
                for inner in value if isinstance(value, tuple) else (value,):
                    if isinstance(inner, Representation):
                        yield from inner.all_stages()

    def shared_over(self, tensors: Sequence[Tensor]) -> Representation:
        """This representation with what its stages share over several tensors fitted to all of them."""
        carries, shared = list(tensors), []
        for stage, following in zip(self.stages, [*self.stages[1:], None], strict=True):
            fitted = stage.shared_over(carries)
            shared.append(fitted)
            if following is not None:
                carries = [fitted.encode(carry)[0] for carry in carries]
        return Representation(tuple(shared))

    @property
    def named(self) -> Representation:
        """This representation with factors that are given as names alone, without their numbers."""
        if not self.shared_fields:
            return self
        return Representation(tuple(stage.named for stage in self.stages))

    @property
    def shared_fields(self) -> tuple[str, ...]:
        """How the names of stored fields begin that several tensors have in common."""
        return tuple(f"{i}.{name}" for i, stage in enumerate(self.stages) for name in stage.shared_fields)

    @property
    def shared_names(self) -> tuple[str, ...]:
        """What each of `shared_fields` is called wherever it is the same one; '' where it was not fitted."""
        return tuple(name for stage in self.stages for name in stage.shared_names)

    def shared_nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Stored bytes of such fields, which are counted once for all these tensors."""
        named = self.layout(shape, dtype).items()
        return sum(
            f.nbytes for name, f in named if self.shared_fields and name.startswith(self.shared_fields)
        )

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise `RequestError` when a tensor of this shape cannot be encoded."""
        self.layout(shape, torch.float32)

    @property
    def hands_on_numbers(self) -> bool:
        """Whether the carry is numbers still: nothing but rotations, scales and sparsity took part."""
        return not self.stages or self.stages[-1].hands_on == "numbers"

    @cached_property
    def lossy(self) -> bool:
        """Whether anything is lost at all, but for rounding."""
        return any("lossless" not in stage.tags for stage in self.stages)

    @property
    def scale_free(self) -> bool:
        """Whether c x projects to c times the projection of x; see `Stage.scale_free`."""
        return all(stage.scale_free for stage in self.stages)

    @cached_property
    def is_random(self) -> bool:
        """Whether a projection depends on a seed once `drawn` has given it one."""
        return any(stage.random for stage in self.all_stages())

    def drawn(self, seed: int, rotation: int | None = None) -> Representation:
        """This chain with every random stage bound to a seed of its own, which follows from `seed`.

        Its leading rotations follow from the seed `rotation` where one is given: two factors of a product
        that turn alike, and round apart. Without a seed stages round to nearest, under signs of seed 0.
        """
        if not self.is_random:
            return self
        leading = 0 if rotation is None else len(self.rotation.stages)
        first = seed if rotation is None else rotation
        stages = tuple(
            _drawn(stage, derived(first if i < leading else seed, i))
            for i, stage in enumerate(self.bound_stages)
        )
        drawn = Representation(stages)
        drawn.__dict__["bound_stages"] = stages  # which they were already: no quadrature at every step
        return drawn

    def encode(self, x: Tensor, importance: Tensor | None = None) -> Code:
        """Tensor of any floating dtype to its code.

        `importance` (positive, broadcasts to `x`) weighs squared errors, where a stage chooses; it is meant
        in the domain after leading rotations.

        Raises:
            RequestError: a shape that a stage refuses, or numbers that are not finite.
        """
        if not self.hands_on_numbers:
            _check_finite(x)
        fields: list[Fields] = []
        carry = x.contiguous()  # sums of squares must not depend on strides
        for position, stage in enumerate(self.bound_stages):
            if importance is None or position < len(self.rotation.stages):
                carry, kept = stage.encode(carry)
            else:
                carry, kept, importance = stage.encode_weighted(carry, importance)
            fields.append(kept)
        return Code(carry, tuple(fields), tuple(x.shape), x.dtype, self._closed)

    @property
    def _closed(self) -> bool:
        return bool(self.stages) and self.stages[-1].hands_on == "nothing"

    def decode(self, code: Code) -> Tensor:
        """The code back to a tensor of the original shape and dtype."""
        return self.restore(code).to(code.dtype)

    def restore(self, code: Code) -> Tensor:
        """`decode` without the last rounding to the dtype: float32 or more once a grid took part."""
        carry = code.carry
        for stage, fields in zip(reversed(self.bound_stages), reversed(code.fields), strict=True):
            carry = _undone(stage, carry, fields, code.dtype)
        return carry

    def project(self, x: Tensor) -> Tensor:
        """`decode(encode(x))`: the tensor that a model with this representation really has."""
        return self.decode(self.encode(x)) if self.stages else x

    @cached_property
    def rotation(self) -> Representation:
        """The leading orthogonal stages."""
        count = next((i for i, s in enumerate(self.stages) if "orthogonal" not in s.tags), len(self.stages))
        return Representation(self.stages[:count])

    @cached_property
    def core(self) -> Representation:
        """What follows the leading rotations, bound as in the whole chain."""
        return Representation(self.bound_stages[len(self.rotation.stages) :])

    def view(self, x: Tensor) -> View:
        """What estimators need to know of the projection of `x`.

        Rotating `projected` back and rounding it to the dtype of `x` gives `project(x)`, bit for bit.
        """
        latent = x.contiguous()  # as in `encode`
        for stage in self.rotation.bound_stages:
            latent, _ = stage.encode(latent)
        projected, steps = latent, []
        for stage in self.core.stages[:-1]:
            projected, fields = stage.hand_on(projected)
            steps.append((stage, fields))
        for stage in self.core.stages[-1:]:
            projected, last = stage.project(projected)
            for earlier, fields in reversed(steps):
                projected = _undone(earlier, projected, fields, x.dtype)
            steps.append((stage, last))
        if self.rotation.stages:
            projected = _precise(projected, x.dtype)
        return View(latent, projected, tuple(steps), bool(self.rotation.stages))

    def layout(self, shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, FieldLayout]:
        """Every stored field for a tensor of this shape and dtype."""
        return dict(_layout(self, tuple(shape), dtype))

    def nbytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> int:
        """Stored bytes of a tensor of this shape and dtype."""
        return sum(field.nbytes for field in self.layout(shape, dtype).values())

    def bits_per_weight(self, shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> float:
        """Stored bits, all fields included, over the number of dense weights."""
        return 8 * self.nbytes(shape, dtype) / max(prod(shape), 1)

    def pack(self, code: Code) -> dict[str, Tensor]:
        """The code as stored tensors, by field name, sub-byte fields packed along their last dimension."""
        widths = self.widths()
        stored = {}
        for name, tensor in code.named().items():
            bits = widths.get(name, 8 * tensor.dtype.itemsize)
            stored[name] = pack(tensor, bits) if bits < 8 * tensor.dtype.itemsize else tensor.contiguous()
        return stored

    def unpack(self, stored: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Code:
        """The inverse of `pack` for a tensor that had this shape and dtype."""
        named = {}
        for name, field in self.layout(shape, dtype).items():
            tensor = stored.get(name)
            if tensor is None or not field.fits(tensor):
                found = "is missing" if tensor is None else f"has shape {tuple(tensor.shape)}"
                raise RequestError(
                    f"field {name!r} {found}, and {self} stores it as {field.stored_shape}",
                    advice="pack the tensor again",
                )
            named[name] = (
                unpack(tensor, field.bits, *field.shape[-1:]).to(field.dtype) if field.packed else tensor
            )
        return self.code(named, shape, dtype)

    def code(self, named: Mapping[str, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> Code:
        """The code whose tensors `Code.named` gives, of a tensor that had this shape and dtype."""
        fields: list[Fields] = [{} for _ in self.stages]
        for name, tensor in named.items():
            if name != CARRY:
                position, _, field_name = name.partition(".")
                fields[int(position)][field_name] = tensor
        if not self._closed:
            return Code(named[CARRY], tuple(fields), shape, dtype)
        carry = _handed_on(self, shape, dtype)
        device = next(iter(named.values())).device if named else None
        empty = torch.empty(carry.shape, dtype=carry.dtype, device=device)
        return Code(empty, tuple(fields), shape, dtype, closed=True)

    def widths(self) -> dict[str, int]:
        """Stored bits of integer fields by their name in `Code.named`."""
        widths = {}
        for position, stage in enumerate(self.bound_stages):
            for name, bits in stage.widths().items():
                if name != CARRY:
                    widths[f"{position}.{name}"] = bits
                elif position == len(self.stages) - 1:
                    widths[CARRY] = bits
        return widths

    def __str__(self) -> str:
        return chain_text(self.stages)


@lru_cache(maxsize=4096)
def _layout(
    representation: Representation, shape: tuple[int, ...], dtype: torch.dtype
) -> dict[str, FieldLayout]:
    """The layout, remembered: unpacking asks every time."""
    widths = representation.widths()
    carry, named = _walked(representation, shape, dtype)
    if not representation._closed:
        named = {CARRY: carry, **named}
    return {
        name: FieldLayout(
            field.shape, field.dtype, widths.get(name, 8 * field.dtype.itemsize), field.variable
        )
        for name, field in named.items()
    }


def _walked(
    representation: Representation, shape: tuple[int, ...], dtype: torch.dtype
) -> tuple[Sized, dict[str, Sized]]:
    """What the last stage hands on, and all fields by name."""
    carry = Sized(shape, dtype)
    named: dict[str, Sized] = {}
    for position, stage in enumerate(representation.bound_stages):
        carry, fields = stage.layout(carry)
        named |= {f"{position}.{name}": field for name, field in fields.items()}
    return carry, named


@lru_cache(maxsize=4096)
def _handed_on(representation: Representation, shape: tuple[int, ...], dtype: torch.dtype) -> Sized:
    return _walked(representation, shape, dtype)[0]


def _drawn(stage: Stage, seed: int) -> Stage:
    """A stage bound to a seed, chains inside it to seeds that follow from it."""
    inner: dict[str, Any] = {}
    for place, field in enumerate(options(stage), 1):  # type: ignore[arg-type]
        value = getattr(stage, field.name)
        if isinstance(value, Representation) and value.is_random:
            inner[field.name] = value.drawn(derived(seed, place))
        elif isinstance(value, tuple) and any(isinstance(v, Representation) and v.is_random for v in value):
            inner[field.name] = tuple(v.drawn(derived(seed, place, i)) for i, v in enumerate(value))
    whole: Stage = replace(stage, **inner) if inner else stage  # type: ignore[type-var]
    return whole.drawn(seed)


def _undone(stage: Stage, carry: Tensor, fields: Fields, dtype: torch.dtype) -> Tensor:
    """What a stage decodes to. Rotations mix numbers in the precision of the tensor, not of its scales."""
    return stage.decode(_precise(carry, dtype) if "orthogonal" in stage.tags else carry, fields)


def _precise(carry: Tensor, dtype: torch.dtype) -> Tensor:
    return carry.to(torch.promote_types(carry.dtype, dtype))


def _check_finite(x: Tensor) -> None:
    if x.is_meta or isfinite(x.detach().sum()):  # a sum with one that is not is not finite either
        return
    if bool(torch.isfinite(x).all()):  # only the sum went over the end
        return
    raise RequestError(
        f"{int((~torch.isfinite(x)).sum())} of {x.numel()} numbers are NaN or infinite",
        advice="find where training diverged; only finite numbers can be encoded",
    )
