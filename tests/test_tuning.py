"""The table of measured kernels: what is written, what `select` makes of it, and when it is left aside."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from rhoc.compiler import tune as tuning_commands
from rhoc.compiler.tune import tune
from rhoc.runtime import kernels
from rhoc.runtime.errors import RequestError
from rhoc.runtime.kernels import Call, Kernel, candidates, select, tuning
from rhoc.runtime.kernels.tuning import ByRows, Measured
from rhoc.runtime.representation import Representation
from rhoc.runtime.stages import Quantize

from .command_line import CommandLine

INT8 = Representation((Quantize(8, strategy="channel"),))
CALL = Call("linear", INT8.core, (16, 32), torch.float64, "cpu")


@dataclass(frozen=True)
class Constant(Kernel):
    """Gives a constant, after a while for each row."""

    name: str  # type: ignore[misc]
    value: float
    seconds: float = 0.0
    copies: bool = False  # type: ignore[misc]
    operation: ClassVar[str] = "linear"

    def refuse(self, call: Call) -> str | None:
        return None

    def run(self, call: Call, x: Tensor, stored: Mapping[str, Tensor], bias: Tensor | None) -> Tensor:
        end = time.thread_time() + self.seconds * x.shape[0]
        while time.thread_time() < end:
            pass
        return x.new_full((*x.shape[:-1], call.shape[0]), self.value)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RHOC_TUNED", str(tmp_path / "tuned.json"))
    return tmp_path / "tuned.json"


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Constant("first", 1.0), Constant("second", 2.0)
    monkeypatch.setattr(kernels, "KERNELS", (first, second, *kernels.KERNELS))


def entry(call: Call, *fastest: tuple[int, str]) -> Measured:
    operation, weight, entering, dtype, device = tuning.described(call)
    return Measured(operation, weight, entering, (call.shape[0], call.shape[1]), dtype, device, fastest)


def value(call: Call, rows: int) -> float:
    stored = INT8.pack(INT8.encode(torch.zeros(call.shape, dtype=call.dtype)))
    result = select(call).kernel.run(call, torch.zeros(rows, call.shape[1], dtype=call.dtype), stored, None)
    return float(result.unique())


def test_kernels_by_rows_as_they_were_measured(table: Path, two: None) -> None:
    assert select(CALL).kernel.name == "first", "without a table the preferred one"
    tuning.write(table, [entry(CALL, (4, "second"), (64, "first"), (256, "decode_linear"))])
    assert isinstance(select(CALL).kernel, ByRows)
    assert str(select(CALL).kernel) == "second to 4 rows, first to 64 rows, decode_linear"
    assert [value(CALL, rows) for rows in (1, 4, 5, 64, 65, 1000)] == [2.0, 2.0, 1.0, 1.0, 0.0, 0.0]
    tuning.write(table, [entry(CALL, (256, "second"))])
    assert select(CALL).kernel.name == "second"


def test_what_was_measured_for_another_weight_says_nothing(table: Path, two: None) -> None:
    tuning.write(table, [entry(CALL, (256, "second"))])
    assert select(replace(CALL, shape=(32, 32))).kernel.name == "second", "nearly as large"
    for other in (
        replace(CALL, shape=(160, 160)),
        replace(CALL, dtype=torch.float32),
        replace(CALL, representation=Representation((Quantize(4, strategy="channel"),)).core),
    ):
        assert select(other).kernel.name == "first"


@pytest.mark.parametrize(
    "content", ["", "{", '{"machine": "another", "entries": []}', '{"entries": 3}', "[]"]
)
def test_a_table_that_cannot_be_used_is_none(content: str, table: Path, two: None) -> None:
    table.write_text(content)
    assert select(CALL).kernel.name == "first"


def test_a_table_of_another_machine_or_of_kernels_that_are_gone(table: Path, two: None) -> None:
    tuning.write(table, [entry(CALL, (256, "second"))])
    document = json.loads(table.read_text())
    table.write_text(json.dumps(document | {"machine": "another"}))
    assert select(CALL).kernel.name == "first"
    tuning.write(table, [entry(CALL, (1, "gone"), (256, "second"))])
    assert select(CALL).kernel.name == "first"


def test_measuring_finds_the_faster_one(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, fast = Constant("slow", 1.0, seconds=3e-3), Constant("fast", 2.0)
    copying = Constant("copying", 3.0, copies=True)
    monkeypatch.setattr(kernels, "KERNELS", (slow, fast, copying))
    monkeypatch.setattr(tuning_commands, "ROWS", (1, 2))
    monkeypatch.setattr(tuning_commands, "_SECONDS", 1e-4)
    monkeypatch.setattr(tuning_commands, "_ROUNDS", 3)
    (found,) = tune(["int8-channel"], [(64, 64)], [torch.float32])
    assert set(found.seconds[1]) == {"slow", "fast"}
    assert found.chosen.fastest == ((2, "fast"),)
    assert found.seconds[2]["slow"] >= 6e-3 > found.seconds[2]["fast"]
    assert [kernel.name for kernel in candidates(found.call)] == ["slow", "fast", "copying"]
    assert select(found.call).kernel.name == "fast"


def test_the_command(command: CommandLine, table: Path, two: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_commands, "SHAPES", ((64, 64),))
    said = command("doctor", "--tune", "--spec", "int8-channel", "--json")
    assert said.code == 0
    assert said.document["file"] == str(table)


def test_a_table_that_is_switched_off_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHOC_TUNED", "0")
    with pytest.raises(RequestError, match="RHOC_TUNED=0 leaves the table"):
        tune(["int8"])
