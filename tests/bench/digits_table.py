"""The page of the bench of digits."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from statistics import mean, median, stdev
from typing import Any

Row = dict[str, Any]

_HEAD = """# Digits in compressed formats

scikit-learn's 1797 digits, 1400 to train on and 397 to measure; 400 steps of 64 images with AdamW, one learning rate
for all, three seeds: mean ± standard deviation over these. One image is .0025. *Accuracy* is that of the packed
model, *differ* how many of the held-out images the trained form sees otherwise than the packed one (all seeds),
*loss* is in nats per image. *Rounded* is the accuracy of the dense model of the same seed, trained as long and then
put in the format without training in it. *Bits* are those stored for each number in a weight matrix, dense ones
among them. *Time* is the processor's for the whole run over the dense model's, the median of the seeds.

Digits are easy, and differences of an image or two mean nothing: look at the loss. The first convolution reads one
channel, which no rotation takes, so formats that rotate inputs (int2-a2, int1-a1) leave the CNN's ends dense.
"""
_TITLES = {"mlp": "MLP 64-256-256-10", "cnn": "CNN, three convolutions and a head"}
_ENDS = {True: "first and last layer dense", False: "every layer"}
_COLUMNS = "\n| format | layers | bits | accuracy | loss | rounded | differ | time |\n|---|---|---:|---:|---:|---:|---:|---:|\n"


def page(rows: list[Row]) -> str:
    """Markdown: a table for each model."""
    return _HEAD + "".join(
        _section(model, list(group)) for model, group in groupby(rows, lambda r: r["model"])
    )


def _section(model: str, rows: list[Row]) -> str:
    dense = {row["seed"]: row["seconds"] for row in rows if row["format"] == "dense"}
    cases = list(dict.fromkeys((row["format"], row["dense_ends"]) for row in rows))
    lines = [f"\n## {_TITLES[model]}\n", _COLUMNS]
    for name, ends in sorted(cases, key=lambda case: (case[0] != "dense", not case[1])):
        found = [row for row in rows if (row["format"], row["dense_ends"]) == (name, ends)]
        where = "" if name == "dense" else _ENDS[ends]
        rounded = "" if name == "dense" else _spread(row["rounded"] for row in found)
        time = median(row["seconds"] / dense[row["seed"]] for row in found)
        lines.append(
            f"| {name} | {where} | {found[0]['bits']:.2f} | {_spread(row['accuracy'] for row in found)} | "
            f"{_spread(row['loss'] for row in found)} | {rounded} | {sum(row['differ'] for row in found)} | {time:.2f} |\n"
        )
    return "".join(lines)


def _spread(values: Iterable[float]) -> str:
    found = list(values)
    return f"{mean(found):.3f} ± {stdev(found):.3f}"
