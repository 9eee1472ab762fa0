"""Run tables of other people, which are not ours to ship: `python tests/public_runs.py` fetches what it can.

They lie in tests/data/public/ (or in the folder that RHOC_PUBLIC_RUNS names); README.md beside that folder says
what each table holds and where it is from. Tests that need an absent one are skipped, and say so.
"""

from __future__ import annotations

import csv
import io
import os
import urllib.request
from pathlib import Path

FOLDER = Path(os.environ.get("RHOC_PUBLIC_RUNS", Path(__file__).parent / "data" / "public"))
_EPOCH = (
    "https://raw.githubusercontent.com/epoch-research/analyzing-chinchilla/main/data/svg_extracted_data.csv"
)


def public_runs(name: str) -> Path:
    """The CSV of this name. Skips the test that asks where it is absent."""
    import pytest

    path = FOLDER / f"{name}.csv"
    if not path.exists():
        pytest.skip(f"{path.name} is not on this machine: tests/data/README.md says where it is from")
    return path


def named_runs(name: str) -> Path:
    """QuEST's runs, which lie here, or a public table."""
    return Path(__file__).parent / "data" / "quest_runs.csv" if name == "quest_runs" else public_runs(name)


def chinchilla_table(text: str) -> list[dict[str, str]]:
    """The points of Besiroglu et al. (arXiv 2404.10102) in our columns, without the five of fewest D/N."""
    found = []
    for row in csv.DictReader(io.StringIO(text)):
        params, flops = float(row["Model Size"]), float(row["Training FLOP"])
        found.append((flops / (6 * params) / params, params, flops / (6 * params), float(row["loss"])))
    kept = sorted(sorted(found)[5:], key=lambda row: (row[1], row[2]))
    return [
        {"representation": "dense", "params": f"{n:.9g}", "tokens": f"{d:.9g}", "loss": f"{loss:.9g}"}
        for _, n, d, loss in kept
    ]


def main() -> None:
    """Fetch the points of the Chinchilla paper."""
    with urllib.request.urlopen(_EPOCH, timeout=60) as answer:
        rows = chinchilla_table(answer.read().decode())
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / "chinchilla_runs.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"wrote {len(rows)} runs to {path}")


if __name__ == "__main__":
    main()
