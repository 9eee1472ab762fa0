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

`sizes` are keyword arguments of the model's factory. `task: FILE.py` is trained instead of `data`, as with
`rhoc train --task`. `start: {tokens: 100000}` trains one dense model for each size and seed, from which all
runs start but those of entries with `scratch: true`. `packed: true` measures the packed models too: loss, the
task's metrics and stored bits, at the end and as they are before training. Files that a grid names (specs, a
model's file, a task, data) are looked for beside the grid first, specs also in a folder `formats` there.
`checkpoint_seconds` says how often each run saves itself; it changes no number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from .. import specs
from ..runtime.errors import InvalidDocument, Problem, RequestError
from ..runtime.optimizer_choice import OptimizerChoice
from ..runtime.train_settings import SettingError, TrainSettings, setting_fault
from .documents import read_document
from .hints import did_you_mean
from .messages import explained
from .model_reference import ModelReference
from .plain import Address, Document, describe
from .spec import LIST_SPECS, Spec, load_spec
from .task_reference import TaskReference


def _listed(value: object) -> object:
    """A scalar or a mapping stands for a list of one."""
    return [value] if isinstance(value, (str, int, float, Mapping)) else value


def _whole(value: object) -> object:
    """`1e6` is a whole number to people."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Arguments = dict[str, bool | int | float | str]
Training = dict[str, bool | int | float | str | dict[str, Any]]
Tokens = Annotated[int, BeforeValidator(_whole), Field(gt=0)]
Seed = Annotated[int, Field(ge=0)]
_OF_TEXT = ("batch_size", "context", "eval_tokens")
_OWN = ("tokens", "seed")  # settings that a block has keys of its own for
_SETTINGS = {name: kind for name, kind in get_type_hints(TrainSettings).items() if name not in _OWN}
_KINDS = {int: "a whole number", bool: "true or false", str: "a word"}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class _Finding:
    """Something wrong beyond the form of a grid, at a path; `at_key` when the key itself is wrong."""

    path: Address
    message: str
    hint: str = ""
    at_key: bool = False


class Block(_Frozen):
    """A product of specs, sizes, budgets and seeds. `product_of`: what a held-out spec is composed of;
    `scratch`: that runs start from random weights where others start from a dense model."""

    specs: Annotated[list[str], BeforeValidator(_listed), Field(min_length=1)]
    sizes: Annotated[list[Arguments], BeforeValidator(_listed), Field(min_length=1)] = [{}]
    tokens: Annotated[list[Tokens], BeforeValidator(_listed), Field(min_length=1)]
    seeds: Annotated[list[Seed], BeforeValidator(_listed), Field(min_length=1)] = [0]
    training: Training = {}
    product_of: Annotated[list[str], BeforeValidator(_listed)] = []
    scratch: bool = False

    def cells(self) -> Iterator[tuple[str, Arguments, int, int]]:
        """Every (spec, size, tokens, seed) of the product."""
        for size in self.sizes:
            for tokens in self.tokens:
                for spec in self.specs:
                    for seed in self.seeds:
                        yield spec, size, tokens, seed


class Start(_Frozen):
    """How long the dense models are trained that runs start from, and settings on top of the grid's."""

    tokens: Tokens
    training: Training = {}


class Grid(_Frozen):
    """A sweep as written. `training` are settings of the trainer for all runs; a block's own come on top."""

    version: Literal[1]
    name: str = "sweep"
    question: str = ""
    model: str
    data: str = "stdlib"
    task: str = ""
    training: Training = {}
    start: Start | None = None
    packed: bool = False
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 30.0
    runs: Annotated[list[Block], BeforeValidator(_listed), Field(min_length=1)]
    held_out: Annotated[list[Block], BeforeValidator(_listed)] = []

    def written(self) -> dict[str, str]:
        """The specs of `runs` as written, by all the words that may stand for them in `product_of`."""
        paths = dict.fromkeys(name for block in self.runs for name in block.specs)
        return {Path(name).stem: name for name in paths if name.endswith((".yaml", ".yml"))} | {
            n: n for n in paths
        }

    def factors(self, block: Block, spec: str) -> tuple[str, ...]:
        """The specs of `runs`, as written, that a held-out spec is predicted from: itself if it was run."""
        written = self.written()
        return tuple(written[name] for name in block.product_of or [spec])


def load_grid(source: str | Path) -> tuple[Grid, Path]:
    """The grid in a file or shipped under a name, and the folder that its files are relative to.

    Raises:
        InvalidDocument: with every problem at its line and column.
        RequestError: no such file or name.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml") and not path.is_file():
        shipped = {p.stem: p for p in specs.sweeps()}
        if str(source) not in shipped:
            hint = did_you_mean(
                str(source), shipped, "a path ends in .yaml; shipped grids: " + ", ".join(shipped)
            )
            raise RequestError(f"no grid is called {describe(str(source))}", advice=hint)
        path = shipped[str(source)]
    document = read_document(path)
    data: dict[str, Any] = {"name": path.stem, **document.data}
    try:
        grid = Grid.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise InvalidDocument(explained(error, document, Grid)) from error
    problems = [
        document.problem(f.path, f.message, f.hint, at_key=f.at_key) for f in _findings(grid, path.parent)
    ]
    if problems:
        raise InvalidDocument(
            sorted(dict.fromkeys(problems), key=lambda problem: (problem.line, problem.column))
        )
    return grid, path.parent


def is_grid(document: Document) -> bool:
    """Whether a document is meant as a grid and not as a spec."""
    return "runs" in document.data and "rules" not in document.data


def validate_grid(path: str | Path) -> list[Problem]:
    """Every problem in a grid's file; none when it loads."""
    try:
        load_grid(Path(path))
    except InvalidDocument as error:
        return error.problems
    except RequestError as error:
        return [Problem(error.where or str(path), 0, 0, error.message, error.advice)]
    return []


def spec_path(name: str, folder: Path) -> Path:
    """The file of a grid's spec: beside the grid, in `formats/` beside it, else the shipped one of that name.

    Raises KeyError when there is none.
    """
    for beside in (folder / name, folder / "formats" / f"{name}.yaml"):
        if beside.is_file():
            return beside
    return specs.path(name)


def find_spec(name: str, folder: Path) -> Spec:
    """The spec that a grid in `folder` calls so. Raises RequestError when there is none, or it has errors."""
    try:
        return load_spec(spec_path(name, folder))
    except KeyError:
        return load_spec(name)


def find_task(task: str, folder: Path) -> TaskReference | None:
    """The task of a grid: a file beside it, else what the string says; None for none."""
    beside = folder / task
    return TaskReference(str(beside) if beside.is_file() else task) if task else None


def find_data(data: str, folder: Path) -> str:
    """The corpus of a grid: a file or folder beside it, else what the string says."""
    beside = folder / data
    return str(beside) if data != "stdlib" and beside.exists() else data


def _findings(grid: Grid, folder: Path) -> Iterator[_Finding]:
    """What is wrong with a grid beyond its form, each at its path."""
    try:
        ModelReference.parse(grid.model, folder)
    except RequestError as error:
        yield _Finding(("model",), error.message, error.advice)
    yield from _training(grid.training, ("training",))
    yield from _task(grid, folder)
    if grid.start is not None:
        yield from _training(grid.start.training, ("start", "training"), grid.training)
    names = set(grid.written())
    for key, blocks in (("runs", grid.runs), ("held_out", grid.held_out)):
        for position, block in enumerate(blocks):
            yield from _training(block.training, (key, position, "training"), grid.training)
            yield from _specs(block, folder, (key, position))
            if block.scratch and grid.start is None:
                hint = "take it out, or give the grid a start"
                yield _Finding(
                    (key, position, "scratch"), "every run starts from random weights", hint, at_key=True
                )
            yield from _product(block, names, (key, position), held_out=key == "held_out")


def _task(grid: Grid, folder: Path) -> Iterator[_Finding]:
    """A task that loads, and no settings that it decides itself."""
    reference = find_task(grid.task, folder)
    if reference is None:
        return
    try:
        reference.build()
    except RequestError as error:
        yield _Finding(("task",), error.message, error.advice)
    for name in grid.training:
        if name in _OF_TEXT:
            yield _Finding(
                ("training", name),
                f"{name} is for text, and a task decides that itself",
                "take it out",
                at_key=True,
            )


def _training(training: Training, path: Address, outer: Training | None = None) -> Iterator[_Finding]:
    """Settings one by one, and then, where each is right, together and on top of those of the whole grid."""
    wrong = False
    for name, value in training.items():
        for finding in _setting(name, value, (*path, name)):
            wrong = True
            yield finding
    together = {**(outer or {}), **training}
    if wrong or any(fault for name in outer or {} for fault in _setting(name, (outer or {})[name], ())):
        return
    try:
        TrainSettings(**together)  # type: ignore[arg-type]
    except SettingError as error:
        inside = error.setting in training
        if inside or outer is None:
            at = (*path, error.setting) if inside else path
            yield _Finding(at, error.message, error.advice, at_key=inside)


def _setting(name: str, value: object, at: Address) -> Iterator[_Finding]:
    if name in _OWN:
        hint = f"write {name.removesuffix('s')}s: in the entries of runs"
        yield _Finding(at, f"{name} is no setting of training", hint, at_key=True)
    elif name not in _SETTINGS:
        hint = did_you_mean(name, _SETTINGS)
        yield _Finding(at, f"training has no setting {describe(name)}", hint, at_key=True)
    elif name == "optimizer":
        try:
            OptimizerChoice.read(value)  # type: ignore[arg-type]
        except RequestError as error:
            yield _Finding(at, error.message, error.advice)
    elif fault := _setting_fault(name, value):
        yield _Finding(at, fault)


def _setting_fault(name: str, value: object) -> str:
    """What is wrong with the value of a setting, or nothing."""
    try:
        TypeAdapter(_SETTINGS[name]).validate_python(value, strict=True)
    except ValidationError:
        kind = _KINDS.get(_SETTINGS[name], "a number")
        return f"{name} must be {kind}, got {describe(value)}"
    return setting_fault(name, value)


def _specs(block: Block, folder: Path, path: Address) -> Iterator[_Finding]:
    for position, name in enumerate(block.specs):
        at = (*path, "specs", position)
        if _exists(name, folder):
            continue
        if name.endswith((".yaml", ".yml")):
            yield _Finding(
                at, f"there is no file {describe(name)}", "a spec's path is relative to the grid's folder"
            )
        else:
            hint = did_you_mean(name, specs.names(), f"{LIST_SPECS}, and a path ends in .yaml")
            yield _Finding(at, f"no spec is called {describe(name)}", hint)


def _exists(name: str, folder: Path) -> bool:
    try:
        spec_path(name, folder)
    except KeyError:
        return False
    return True


def _product(block: Block, names: set[str], path: Address, *, held_out: bool) -> Iterator[_Finding]:
    if block.product_of and not held_out:
        yield _Finding(
            (*path, "product_of"), "product_of is for entries of held_out", "take it out", at_key=True
        )
        return
    for position, name in enumerate(block.product_of):
        if name not in names:
            hint = did_you_mean(name, sorted(names))
            yield _Finding(
                (*path, "product_of", position), f"no entry of runs has the spec {describe(name)}", hint
            )
    strangers = [name for name in block.specs if name not in names]
    if held_out and not block.product_of and strangers:
        message = f"nothing says what the held-out {strangers[0]} is predicted from"
        yield _Finding(path, message, "add product_of: [spec, spec] with specs of runs")
