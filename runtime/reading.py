"""How pydantic reads a chain that stands inside a stage: a list of stages, one stage, a name or a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Union

from pydantic import Field
from pydantic_core import core_schema

from .errors import RequestError
from .stage import Stage
from .stages import STAGES
from .text_parser import Resolve, from_text

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema

    from .representation import Representation

AnyStage = Annotated[Union[STAGES], Field(discriminator="kind")]  # type: ignore[valid-type]  # noqa: UP007

RESOLVE = "resolve"
"""The key in pydantic's validation context of what gives meaning to the names of shipped chains."""


def chain_schema(kind: type[Representation], handler: GetCoreSchemaHandler) -> CoreSchema:
    """The schema of a chain inside a stage; `kind` is Representation."""
    stages = handler.generate_schema(tuple[AnyStage, ...])
    written = core_schema.with_info_before_validator_function(_entries, stages)
    return core_schema.no_info_after_validator_function(kind, written)


def _entries(value: Any, info: core_schema.ValidationInfo) -> Any:
    if isinstance(value, str):
        resolve: Resolve = (info.context or {}).get(RESOLVE, lambda name: None)
        return read_text(value, resolve)
    if isinstance(value, Mapping | Stage):
        return (tupled(value),)
    return value.stages if hasattr(value, "stages") else tupled(value)


def tupled(value: Any) -> Any:
    """The same data with tuples for lists at every depth: what strict validation takes for `tuple[...]`."""
    if isinstance(value, Mapping):
        return {key: tupled(item) for key, item in value.items()}
    return tuple(tupled(item) for item in value) if isinstance(value, list | tuple) else value


def read_text(text: str, resolve: Resolve) -> tuple[Stage, ...]:
    """The stages of a text. Raises ValueError, the advice after `;`, which pydantic puts at its place."""
    try:
        return from_text(text, resolve).stages
    except RequestError as error:
        raise ValueError(f"{error.message}; {error.advice}") from None
