"""The rows of the coverage bench as a page: totals, what stayed dense and why, the order of strategies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

Row = dict[str, Any]
AGREE = 1e-4
STRATEGIES = ("export", "export, dynamic", "symbolic")


def page(document: Row) -> str:
    """The page, in Markdown."""
    rows = document["rows"]
    versions = ", ".join(f"{name} {number}" for name, number in document["versions"].items())
    parts = [
        "# Coverage on models that nobody here wrote",
        f"{document['date']}; {versions}; one CPU thread. Random weights from configurations, in the smallest "
        "sizes that have every part. `python tests/bench/coverage.py` writes this page.",
        "## Totals",
        _table(("what", "of all", "of transformers"), _totals(rows)),
        "## Whole-graph capture by strategy",
        _table(
            ("strategy", "captured", "equal bits", "other sizes", "optional left out", "seconds, median"),
            _strategies(rows),
        ),
        "## Weights that stayed dense",
        _table(("reason", "tensors", "numbers", "such as"), _dense(rows)),
        "## Represented weights without a gradient in one step",
        _table(("model", "weights", "also in the dense model"), _idle(rows)),
        "## Models",
        _table(
            (
                "model",
                "family",
                "weights",
                "represented",
                "graphs",
                "Python",
                "compile s",
                "dense",
                "step",
                "forms",
            ),
            map(_model, rows),
        ),
    ]
    return "\n\n".join(parts) + "\n"


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
    """Whether the user's own model computes the same when its weights, and its inputs, are replaced by hand."""
    found = row.get("oracle", {})
    return all(
        _agrees(part) for part in (found.get("weights"), found.get("inputs, float64") or found.get("inputs"))
    )


def _agrees(part: Row | None) -> bool:
    values = [v for k, v in (part or {"": 1.0}).items() if k not in ("moved", "inputs not met")]
    return all(isinstance(v, float) and v <= AGREE for v in values)


_CHECKS: tuple[tuple[str, Callable[[Row], bool]], ...] = (
    ("compile", compiles),
    ("captured whole as one graph", lambda row: bool(row.get("compile", {}).get("whole"))),
    (
        "at least 95 % of weights represented",
        lambda row: row.get("compile", {}).get("represented", 0) >= 0.95,
    ),
    ("dense spec: equal bits, also elsewhere, in a copy and after a step", dense_equal),
    ("one step changes the loss and every represented weight that can", steps),
    ("decoded weights written in by hand compute the same", written_by_hand),
    ("trainable, packed and reference agree", agree),
)


def _totals(rows: list[Row]) -> list[tuple[object, ...]]:
    others = [row for row in rows if row["family"] != "torch"]
    lines: list[tuple[object, ...]] = [
        (name, *(f"{sum(map(holds, some))} of {len(some)}" for some in (rows, others)))
        for name, holds in _CHECKS
    ]
    return [*lines, ("weights represented, of all numbers", *(_share(some) for some in (rows, others)))]


def _share(rows: list[Row]) -> str:
    known = [row["compile"] for row in rows if compiles(row)]
    total = sum(c["weights"] for c in known)
    return f"{sum(c['weights'] * c['represented'] for c in known) / total:.1%}" if total else "-"


def _strategies(rows: list[Row]) -> Iterable[tuple[object, ...]]:
    for strategy in STRATEGIES:
        found = [row[strategy] for row in rows if strategy in row]
        graphs = [f for f in found if "reason" not in f and "error" not in f]
        seconds = sorted(f["seconds"] for f in graphs) or [0.0]
        equal = sum(f.get("example", f.get("difference")) == 0.0 for f in graphs)
        yield (
            strategy,
            f"{len(graphs)} of {len(found)}",
            equal,
            "-" if strategy == "export" else sum(f.get("other sizes") == 0.0 for f in graphs),
            "-" if strategy == "export" else _left_out(graphs),
            f"{seconds[len(seconds) // 2]:.2f}",
        )


def _left_out(graphs: list[Row]) -> str:
    asked = [f for f in graphs if any(k.startswith("without") for k in f)]
    works = sum(all(v == 0.0 for k, v in f.items() if k.startswith("without")) for f in asked)
    return f"{works} of {len(asked)}"


def _dense(rows: list[Row]) -> Iterable[tuple[object, ...]]:
    reasons: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for row in rows:
        for entry in row.get("compile", {}).get("dense", []):
            count = 1
            for size in entry["shape"]:
                count *= size
            reasons[entry["reason"]].append((f"{row['name']} `{entry['path']}`", count))
    for reason, found in sorted(reasons.items(), key=lambda item: -len(item[1])):
        yield reason, len(found), sum(count for _, count in found), found[0][0]


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
        return (row["name"], row["family"], found.get("error", "not built")[:120], *[""] * 7)
    marks = (("ok" if check(row) else "**no**") for check in (dense_equal, steps, agree))
    graphs = "whole" if found["whole"] else sum(found["graphs"].values())
    return (
        row["name"],
        row["family"],
        found["weights"],
        f"{found['represented']:.1%}",
        graphs,
        found["python"],
        found["seconds"],
        *marks,
    )
