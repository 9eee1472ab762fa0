"""What the table of kernels on a CUDA device comes to: `python tests/bench/gpu_bars.py FILE.json`.

Every bar is said to be met, accepted, missed or not measured; then come the kernels that are furthest from their
rooflines, and what failed. Bars were set for an H200.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linear_gpu import LAYERS, ROWS, WEIGHTS

Rows = Mapping[str, Mapping[str, Any]]
_WORST = 20


@dataclass(frozen=True)
class Bar:
    """What a ratio has to be for `formats` at `rows`, at the least; `accept` where less than the goal will do.

    The ratio is times dense, or times that of another library's product, by layer where there are three.
    """

    what: str
    formats: tuple[str, ...]
    rows: tuple[int, ...]
    goal: tuple[float, ...]
    accept: tuple[float, ...] = ()
    against: str = ""

    def judged(self, rows: Rows) -> Iterator[tuple[str, float | None, str]]:
        """For each layer its verdict, the lowest ratio found, and where that is."""
        for place, (outputs, inputs) in enumerate(LAYERS):
            layer = f"{outputs}x{inputs}"
            found = {}
            for name in self.formats:
                for count in self.rows:
                    ratio = _ratio(rows, f"{layer}|{count}", name, self.against)
                    found[f"{name} {layer}, {count} rows"] = ratio
            known = {where: ratio for where, ratio in found.items() if ratio is not None}
            if not known:
                yield "not measured", None, layer
                continue
            where, lowest = min(known.items(), key=lambda pair: pair[1])
            goal, accept = _of(self.goal, place), _of(self.accept or self.goal, place)
            verdict = "goal met" if lowest >= goal else "accepted" if lowest >= accept else "missed"
            missing = len(found) - len(known)
            if missing and verdict != "missed":
                verdict = "not measured"
            yield verdict, lowest, where + (f"; {missing} of {len(found)} not measured" if missing else "")


_MANY = (1024, 4096)
BARS = (
    Bar("int4 in groups of 128", ("int4-g128",), (1,), (2.3, 2.7, 3.0), (1.6, 2.0, 2.4)),
    Bar("int4 in groups of 128", ("int4-g128",), (16,), (1.8, 2.3, 2.8)),
    Bar("int8", ("int8-channel",), (1,), (1.7,)),
    Bar("2 bits", ("int2-g64",), (1,), (4.0,)),
    Bar("2 bits, a scale for each row", ("int2",), (1,), (4.0,)),
    Bar("2:4 and int4", ("2of4-int4",), (1,), (3.3,)),
    *(
        Bar(f"2 bits by {name}", (name,), (1,), (3.0,))
        for name in ("aqlm-2x8", "quip-sharp2", "higgs2", "qtip2")
    ),
    Bar("weights alone, many rows", WEIGHTS, _MANY, (0.9,)),
    Bar("int8 inputs, many rows", ("w8a8",), _MANY, (1.5,)),
    Bar("fp8 inputs, many rows", ("fp8-dynamic",), _MANY, (1.5,)),
    Bar("int4 ahead of gemlite", ("int4-g128",), ROWS, (1.0,), against="gemlite int4"),
    Bar("int8 ahead of gemlite", ("int8-channel",), ROWS, (1.0,), against="gemlite int8"),
)


def told(rows: Rows) -> str:
    """The bars, the worst shares and the failures, in lines."""
    lines = []
    for bar in BARS:
        for place, (verdict, ratio, where) in enumerate(bar.judged(rows)):
            goal = f"goal {_of(bar.goal, place):.1f}"
            least = f", accept {_of(bar.accept, place):.1f}" if bar.accept else ""
            value = "     -" if ratio is None else f"{ratio:6.2f}"
            lines.append(f"{verdict:13}{value}  ({goal}{least})  {bar.what}: {where}")
    shares = sorted((row["share"], item) for item, row in rows.items() if "share" in row)
    lines += ["", "furthest from their rooflines:"]
    lines += [f"  {share:5.0%}  {item} ({rows[item]['kernel']})" for share, item in shares[:_WORST]]
    lines += ["", "failed:"]
    lines += [f"  {item}: {row['failure'][:160]}" for item, row in rows.items() if "failure" in row]
    codes = {row["code"] for row in rows.values()}
    if len(codes) > 1:
        lines += ["", f"measured by {len(codes)} versions of the code"]
    return "\n".join(lines)


def _ratio(rows: Rows, place: str, name: str, against: str) -> float | None:
    ours, theirs = rows.get(f"{name}|{place}", {}), rows.get(f"{against}|{place}", {"times": 1.0})
    if against and f"{against}|{place}" not in rows:
        return None
    if "times" not in ours or "times" not in theirs:
        return None
    return float(ours["times"]) / float(theirs["times"])


def _of(values: tuple[float, ...], place: int) -> float:
    return values[place if len(values) > 1 else 0]


if __name__ == "__main__":
    print(told(json.loads(Path(sys.argv[1]).read_text())["rows"]))
