"""The rows of the coverage bench as a page: totals, what stayed dense and why, the order of strategies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from math import prod
from statistics import median
from typing import Any

Row = dict[str, Any]
AGREE = 1e-4
STRATEGIES = {
    "export": "`torch.export` of the example",
    "export, dynamic": "`torch.export`, sizes dynamic",
    "symbolic": "symbolic trace of the whole",
}

_COLUMNS = (
    *("model", "family", "weights", "represented", "captured as", "s"),
    *("dense", "step", "by hand", "forms", "stays dense"),
)


def page(document: Row) -> str:
    """The page, in Markdown."""
    rows = document["rows"]
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    return (
        "\n\n".join(
            [
                "# Coverage on models that nobody here wrote",
                f"{document['date']}; {versions}; one CPU thread. Random weights from configurations, in the "
                "smallest sizes that have every part. Weights in 4 bits by channel, inputs in 8 bits by token. "
                "`python tests/bench/coverage.py` writes this page.",
                "## Totals",
                _table(("what", "all", "transformers"), _totals(rows)),
                "## Whole-graph capture by strategy",
                _table(
                    ("strategy", "captured", "equal bits", "other sizes", "optional left out", "s, median"),
                    _strategies(rows),
                ),
                _choice(rows),
                "## Weights that stayed dense",
                _table(("reason", "tensors", "numbers", "such as"), _dense(rows)),
                "## Represented weights whose input stayed dense",
                _table(("read by", "weights", "such as"), _inputs(rows)),
                "## Represented weights without a gradient in one step",
                _table(("model", "weights", "also in the dense model"), _idle(rows)),
                "## Models",
                "`captured as`: graphs of parts, and modules that run as the user wrote them. `dense`: the dense "
                "spec leaves every bit, at other sizes, with arguments left out, in a copy and after a step. "
                "`step`: the loss and every represented weight change. `by hand`: equal to decoded weights and "
                "projected inputs in the user's own model. `forms`: trainable, packed and reference agree.",
                _table(_COLUMNS, map(_model, rows)),
            ]
        )
        + "\n"
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def compiles(row: Row) -> bool:
    """Whether it compiled under W4A8."""
    return "represented" in row.get("compile", {})


def dense_equal(row: Row) -> bool:
    """Whether the dense spec left every call, a deep copy, state_dict and a training step as they were."""
    found = row.get("dense", {})
    return found.get("state_dict") is True and all(v == 0.0 for k, v in found.items() if k != "state_dict")


def steps(row: Row) -> bool:
    """Whether one step changed the loss and every weight that has a gradient in the dense model."""
    found = row.get("training", {})
    return (
        found.get("state_dict") is True
        and found["loss"][0] != found["loss"][1]
        and not found["unchanged"]
        and all(entry["dense too"] for entry in found["idle"])
    )


def agree(row: Row) -> bool:
    """Whether the three forms agree, in float64 where rounding of activations hides it in float32."""
    found = row.get("forms", {})
    values = found.get("float64") or found.get("float32") or {"": 1.0}
    return all(isinstance(v, float) and v <= AGREE for v in values.values())


def written_by_hand(row: Row) -> bool:
    """Whether the user's own model computes the same when its weights, and its inputs, are replaced by hand.

    Both must change what it computes; nothing has inputs to replace in a recurrent kernel or a lookup.
    """
    found = row.get("oracle", {})
    weights, inputs = found.get("weights", {}), found.get("inputs", {})
    if not weights or weights["moved"] < 1e-3 or (inputs["inputs met"] and inputs["moved"] < AGREE):
        return False
    return all(
        isinstance(v, float) and v <= AGREE
        for part in (weights, found.get("inputs, float64") or inputs)
        for k, v in part.items()
        if not k.startswith("inputs ") and k != "moved"
    )


_CHECKS: tuple[tuple[str, Callable[[Row], bool]], ...] = (
    ("compile", compiles),
    ("captured whole as one graph", lambda row: bool(row.get("compile", {}).get("whole"))),
    (
        "at least 95 % of weights represented",
        lambda row: row.get("compile", {}).get("represented", 0) >= 0.95,
    ),
    ("dense spec: equal bits, also elsewhere, in a copy and after a step", dense_equal),
    ("one step changes the loss and every represented weight that can", steps),
    ("weights and inputs replaced by hand compute the same", written_by_hand),
    ("trainable, packed and reference agree", agree),
)


def _totals(rows: list[Row]) -> list[tuple[object, ...]]:
    groups = (rows, [row for row in rows if row["family"] != "torch"])
    lines: list[tuple[object, ...]] = [
        (name, *(f"{sum(map(holds, some))} of {len(some)}" for some in groups)) for name, holds in _CHECKS
    ]
    return [
        *lines,
        ("weights represented, of all numbers", *(_share(some) for some in groups)),
        ("share represented: median, least", *(_spread(some) for some in groups)),
        ("seconds to compile: median, most", *(_seconds(some) for some in groups)),
    ]


def _share(rows: list[Row]) -> str:
    known = [row["compile"] for row in rows if compiles(row)]
    total = sum(c["weights"] for c in known)
    return f"{sum(c['weights'] * c['represented'] for c in known) / total:.1%}" if total else "-"


def _spread(rows: list[Row]) -> str:
    shares = [row["compile"]["represented"] for row in rows if compiles(row)]
    return f"{median(shares):.1%}, {min(shares):.1%}" if shares else "-"


def _seconds(rows: list[Row]) -> str:
    taken = [row["compile"]["seconds"] for row in rows if compiles(row)]
    return f"{median(taken):.2f}, {max(taken):.2f}" if taken else "-"


def _strategies(rows: list[Row]) -> Iterable[tuple[object, ...]]:
    for strategy, name in STRATEGIES.items():
        found = [row for row in rows if strategy in row]
        graphs = [row for row in found if _captured(row, strategy)]
        yield (
            name,
            f"{len(graphs)} of {len(found)}",
            sum(_equal(row, strategy, "example") for row in graphs),
            sum(_equal(row, strategy, "other sizes") for row in graphs),
            "-" if strategy == "export" else _left_out(graphs, strategy),  # it takes all or nothing
            f"{median([row[strategy]['seconds'] for row in graphs] or [0.0]):.2f}",
        )
    found = [row for row in rows if compiles(row)]
    yield (
        "the user's module, part by part",
        f"{len(found)} of {len(rows)}",
        sum(_equal(row, "dense", "example") for row in found),
        sum(_equal(row, "dense", "other sizes") for row in found),
        _left_out(found, "dense"),
        f"{median([row['compile']['seconds'] for row in found] or [0.0]):.2f}",
    )


def _captured(row: Row, strategy: str) -> bool:
    return strategy in row and "reason" not in row[strategy] and "error" not in row[strategy]


def _equal(row: Row, strategy: str, call: str) -> bool:
    found = row.get(strategy, {})
    if strategy == "export":
        found = {"example": found.get("difference")} | row.get("export, elsewhere", {})
    return bool(found.get(call) == 0.0)


def _left_out(rows: list[Row], strategy: str) -> str:
    asked = [[c for c in row.get("dense", row.get(strategy, {})) if c.startswith("without")] for row in rows]
    count = sum(map(bool, asked))
    works = sum(
        bool(calls) and all(_equal(row, strategy, call) for call in calls)
        for row, calls in zip(rows, asked, strict=True)
    )
    return f"{works} of {count}"


def _choice(rows: list[Row]) -> str:
    """What the comparison settles, in its own figures."""
    exported = [row for row in rows if _captured(row, "export")]
    seen = [row["export"]["weights seen"] for row in exported] or [0.0]
    dynamic = [row for row in rows if _captured(row, "export, dynamic")]
    traced = sum(_captured(row, "symbolic") for row in rows)
    parts = [row for row in rows if compiles(row)]
    return (
        "What runs is the user's own module, part by part: graphs by symbolic tracing of the parts that allow "
        "it, and below them the single operations that read a weight, seen while Python runs. That represents "
        f"a median of {median([r['compile']['represented'] for r in parts] or [0.0]):.1%} of the weights of "
        f"all {len(parts)} models and leaves {sum(map(dense_equal, parts))} of them equal to the bit under "
        "the dense spec, at other sizes and with optional arguments left out too. One graph for the whole "
        f"would not: symbolic tracing gives one for {traced} models of {len(rows)}; an exported graph holds "
        "what the example's arguments were, so that with one of them left out it runs for "
        f"{_left_out(dynamic, 'export, dynamic')} models, and at other sizes, even when asked for, for "
        f"{sum(_equal(r, 'export, dynamic', 'other sizes') for r in dynamic)} of {len(dynamic)}. It is "
        f"`torch.export` that gives the graph which passes read across layers: it captures {len(exported)} "
        f"models and shows the operations of a median of {median(seen):.1%} of their weights."
    )


def _dense(rows: list[Row]) -> Iterable[tuple[object, ...]]:
    reasons: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for row in rows:
        for entry in row.get("compile", {}).get("dense", []):
            where = f"{row['name']} `{entry['path']}`"
            reasons[entry["reason"]].append((where, prod(entry["shape"])))
    for reason, found in sorted(reasons.items(), key=lambda item: -len(item[1])):
        yield reason, len(found), sum(count for _, count in found), found[0][0]


def _inputs(rows: list[Row]) -> Iterable[tuple[object, ...]]:
    readers: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for path, names in row.get("oracle", {}).get("inputs", {}).get("inputs not met", {}).items():
            readers[", ".join(names) or "nothing on these inputs"].append(f"{row['name']} `{path}`")
    for names, found in sorted(readers.items(), key=lambda item: -len(item[1])):
        yield names, len(found), found[0]


def _idle(rows: list[Row]) -> Iterable[tuple[object, ...]]:
    for row in rows:
        idle = row.get("training", {}).get("idle", [])
        if idle:
            names = ", ".join(f"`{entry['path']}`" for entry in idle[:2])
            more = f" and {len(idle) - 2} more" if len(idle) > 2 else ""
            yield row["name"], names + more, "yes" if all(e["dense too"] for e in idle) else "no"


def _model(row: Row) -> tuple[object, ...]:
    found = row.get("compile", {})
    if not compiles(row):
        return (row["name"], row["family"], found.get("error", "not built")[:120], *[""] * 8)
    checks = (dense_equal, steps, written_by_hand, agree)
    return (
        row["name"],
        row["family"],
        found["weights"],
        f"{found['represented']:.1%}",
        "one graph" if found["whole"] else f"{sum(found['graphs'].values())} + {found['python']}",
        found["seconds"],
        *("yes" if check(row) else "**no**" for check in checks),
        _short(found["dense"]),
    )


def _short(dense: list[Row]) -> str:
    """What stays dense by its own name, and what reads it."""
    readers: dict[str, list[str]] = defaultdict(list)
    for entry in dense:
        used = entry["reason"].removeprefix("used by ").removesuffix(", not as the weight of an operation")
        names = readers[used if used != entry["reason"] else "not used"]
        name = f"`{entry['path'].rpartition('.')[2]}`"
        if name not in names:
            names.append(name)
    return "; ".join(f"{', '.join(names)} ({used})" for used, names in readers.items())
