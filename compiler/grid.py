"""A sweep's grid: which experiments, in YAML.

```yaml
version: 1
name: demo
model: rhoc.runtime.llama:llama
data: stdlib
training: {batch_size: 4}                 # settings of the trainer, for all
runs:                                     # each entry is a product of its lists
  - {specs: [dense, int2], sizes: [{width: 16}, {width: 32}], tokens: [500000, 1000000], seeds: [0]}
held_out:                                 # combinations to predict first and train afterwards
  - {specs: int2-a2, product_of: [int2, a2], sizes: {width: 32}, tokens: 1000000}
```

`sizes` are keyword arguments of the model's factory. A spec is a shipped name or a file beside the grid.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from .. import specs
from ..runtime.errors import InvalidDocument, RequestError
from .documents import read_document
from .hints import did_you_mean
from .messages import explained


def _listed(value: object) -> object:
    """A scalar or a mapping stands for a list of one."""
    return [value] if isinstance(value, (str, int, float, Mapping)) else value


Arguments = dict[str, bool | int | float | str]
Tokens = Annotated[int, Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Block(_Frozen):
    """A product of specs, sizes, budgets and seeds. `product_of` names the specs that a held-out one is composed of."""

    specs: Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]
    sizes: Annotated[list[Arguments], BeforeValidator(_listed)] = [{}]
    tokens: Annotated[list[Tokens], BeforeValidator(_listed), Field(min_length=1)]
    seeds: Annotated[list[Seed], BeforeValidator(_listed), Field(min_length=1)] = [0]
    training: Arguments = {}
    product_of: list[str] = []

    def cells(self) -> Iterator[tuple[str, Arguments, int, int]]:
        """Every (spec, size, tokens, seed) of the product."""
        for size in self.sizes:
            for tokens in self.tokens:
                for spec in self.specs:
                    for seed in self.seeds:
                        yield spec, size, tokens, seed


class Grid(_Frozen):
    """A sweep as written. `training` are settings of the trainer for all runs; a block's own come on top."""

    version: Literal[1]
    name: str = "sweep"
    question: str = ""
    model: str
    data: str = "stdlib"
    training: Arguments = {}
    runs: Annotated[list[Block], BeforeValidator(_listed), Field(min_length=1)]
    held_out: Annotated[list[Block], BeforeValidator(_listed)] = []


def load_grid(source: str | Path) -> tuple[Grid, Path]:
    """The grid in a file or shipped under a name, and the folder its spec files are relative to.

    Raises:
        InvalidDocument: with every problem at its line and column.
        RequestError: no such file or name.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        shipped = {p.stem: p for p in specs.sweeps()}
        if str(source) not in shipped:
            hint = did_you_mean(str(source), shipped, "a path ends in .yaml; shipped grids: " + ", ".join(shipped))
            raise RequestError(f"no grid is called {str(source)!r}", advice=hint)
        path = shipped[str(source)]
    document = read_document(path)
    data: dict[str, Any] = {"name": path.stem, **document.data}
    try:
        return Grid.model_validate_json(json.dumps(data), strict=True), path.parent
    except ValidationError as error:
        raise InvalidDocument(explained(error, document, Grid)) from error
