"""Budgets as people write them, and tables of measured times."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhoc.compiler.budget import Budget
from rhoc.compiler.latency import Latency, read_latency
from rhoc.runtime.errors import InvalidDocument, RequestError


@pytest.mark.parametrize(
    ("written", "budget"),
    [
        (1000, Budget(bytes=1000)),
        ("1,000 bytes", Budget(bytes=1000)),
        ("12 MB", Budget(bytes=12_000_000)),
        ("1.5GiB", Budget(bytes=3 * 2**29)),
        ("0.1 kb", Budget(bytes=100)),
        ("3.5 bits", Budget(bits_per_weight=3.5)),
        ("3 bits per weight", Budget(bits_per_weight=3.0)),
        ("250 us", Budget(milliseconds=0.25)),
        (["12 MB", "2 ms"], Budget(bytes=12_000_000, milliseconds=2.0)),
        ({"bytes": "2 KiB", "bits_per_weight": 4}, Budget(bytes=2048, bits_per_weight=4)),
    ],
)
def test_budgets_as_people_write_them(written: object, budget: Budget) -> None:
    assert Budget.of(written) == budget
    assert Budget.of(budget) is budget


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("12 parsecs", "budget: 'parsecs' is no unit"),
        ("much", "budget: 'much' is no budget"),
        ("12", "budget: '12' is no budget"),
        (True, "budget: true is no budget"),
        (None, "is no budget"),
        (-5, "budget: bytes is -5; give a finite number, 0 or more"),
        ([], "budget: the budget limits nothing"),
        (["1 MB", "2 MB"], "budget: bytes is limited twice"),
        ({"byte": 3}, "budget: a budget has no 'byte'; did you mean 'bytes'"),
        ({"bytes": "3 ms"}, "does not limit bytes"),
    ],
)
def test_what_is_no_budget(written: object, message: str) -> None:
    with pytest.raises(RequestError) as raised:
        Budget.of(written)
    assert message in str(raised.value)


def test_bits_per_weight_are_rounded_down_to_whole_bytes() -> None:
    assert Budget(bits_per_weight=3.3).byte_limits(100) == {"bits_per_weight": 41}
    assert Budget(bytes=7, bits_per_weight=8).byte_limits(3) == {"bytes": 7, "bits_per_weight": 3}


def test_latency_tables_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("int4:\n  8x16: 0.5\n  8x32: 1\ndense: {8x16: 2.5}\n")
    (tmp_path / "a.csv").write_text(
        "candidate,shape,milliseconds\nint4,8x16,0.5\nint4,8x32,1\ndense,8x16,2.5\n"
    )
    expected = Latency({("int4", (8, 16)): 0.5, ("int4", (8, 32)): 1.0, ("dense", (8, 16)): 2.5})
    assert read_latency(tmp_path / "a.yaml") == read_latency(tmp_path / "a.csv") == expected
    assert (expected.of("int4", (8, 32)), expected.of("int4", (9, 9))) == (1.0, None)


def test_latency_tables_with_mistakes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("int4:\n  8by16: 0.5\n  8x32: fast\n  8x8: -1\n")
    with pytest.raises(InvalidDocument) as raised:
        read_latency(path)
    assert [(p.line, p.message) for p in raised.value.problems] == [
        (2, "'8by16' is no shape"),
        (3, "'fast' is no time in milliseconds"),
        (4, "-1 is no time in milliseconds"),
    ]
    path.write_text("int4: 3\n")
    with pytest.raises(InvalidDocument, match="expected times by shape"):
        read_latency(path)
    table = tmp_path / "a.csv"
    table.write_text("candidate,shape\nint4,8x16\n")
    with pytest.raises(InvalidDocument, match="the column milliseconds is missing"):
        read_latency(table)
    table.write_text("candidate,shape,milliseconds\nint4,8x16,1\nint4,8x16,2\nint8,8x16\n")
    with pytest.raises(InvalidDocument) as raised:
        read_latency(table)
    assert [(p.line, p.message) for p in raised.value.problems] == [
        (3, "int4 on 8x16 is there twice"),
        (4, "nothing is no time in milliseconds"),
    ]
    with pytest.raises(RequestError, match="cannot be read"):
        read_latency(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="give a finite time"):
        Latency({("int4", (8, 8)): float("nan")})
