"""A whole training step of the demo's model, forward, backward and AdamW, by representation.

`run.py training` measures the demo's widths in eager mode. This file as a script measures width 512 on a CPU:
the whole model through torch.compile and in eager mode, the peers that are installed beside what is nearest to
them here, and the bytes kept for the backward pass. `python tests/bench/training.py [PART...]` measures the
parts that are named, all by default, and replaces these in `results/training-wide-cpu.json` and `.md`.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from run import RESULTS, report, write
from timing import Case, Method
from torch import Tensor, nn
from training_memory import memory_rows
from training_peers import Peer, peers

import rhoc
from rhoc.runtime.llama import Llama, LlamaShape, llama

Spec = str | Mapping[str, Any]
Row = dict[str, Any]

SPECS = ("int4", "int4-a4", "2of4-int4", "sparse50-int4")  # of the demo's widths
_RMS = {"kind": "quantize", "num_bits": 4, "observer": "rms", "grid": "midrise"}
_WEIGHT, _INPUT = {**_RMS, "strategy": "channel"}, {**_RMS, "strategy": "token", "dynamic": True}
_GROUPS = {"kind": "quantize", "num_bits": 4, "strategy": "group", "group_size": 32}


def _rule(**slots: Any) -> Mapping[str, Any]:
    return {"version": 1, "rules": [{"targets": ["Linear"], "ignore": ["lm_head"], **slots}]}


WIDE: Mapping[str, Spec] = {
    "int4 weights, trust": _rule(weights=_WEIGHT, estimator="trust"),
    "W4A4, trust": _rule(weights=_WEIGHT, input_activations=_INPUT, estimator="trust"),
    "W4A4, Hadamard 128, trust": "int4-a4",
    "int4-g128": "int4-g128",
    "2of4-int4, Hadamard 128, trust": "2of4-int4",
}
NEAR: Mapping[str, Spec] = {  # what the peers beside them do
    "int4-g32": _rule(weights=_GROUPS),
    "int4-g32, int8 inputs by token": _rule(
        weights=_GROUPS,
        input_activations={"kind": "quantize", "num_bits": 8, "strategy": "token", "dynamic": True},
    ),
    "int4 by channel": _rule(weights={"kind": "quantize", "num_bits": 4, "strategy": "channel"}),
    "W4A4, trust": WIDE["W4A4, trust"],
}
ROUNDS = 5  # of steps that take seconds
_ABOUT = """Forward, backward and fused AdamW of a decoder of the demo's family, one thread, processor time of the
thread, medians of interleaved rounds. Only ratios within one table mean anything: the machine is shared. What is
kept for the backward pass is counted in bytes of distinct storages; parameters are left out, and what comes from
projecting a weight (its projection and its mask) is counted on its own."""


@dataclass(frozen=True)
class Job:
    """A model and a batch of it, and how a step is taken."""

    model: Llama
    tokens: Tensor  # [B, T + 1]
    compiled: bool = False

    def step(self, spec: Spec | None = None) -> Method:
        """The step of the model, in a representation; nothing breaks the graph where it is compiled."""
        model: nn.Module = copy.deepcopy(self.model)
        if spec is not None:
            model = rhoc.compile(model, spec).trainable()
        return _step(torch.compile(model, fullgraph=True) if self.compiled else model, self.tokens)

    def step_of(self, peer: Peer) -> Method:
        """The step of the model as another library prepares it; there the graph may break."""
        model = peer.prepare(copy.deepcopy(self.model))
        return _step(torch.compile(model) if self.compiled else model, self.tokens)

    @property
    def name(self) -> str:
        """The title of a case."""
        weight, layers = self.model.embed_tokens.weight, len(self.model.layers)
        kind = str(weight.dtype).removeprefix("torch.")
        tokens = f"{self.tokens.shape[0]} x {self.tokens.shape[1] - 1} tokens"
        mode = "compiled" if self.compiled else "eager"
        return f"llama of width {weight.shape[1]}, layers {layers}, {kind}, {tokens}, {mode}"


def cases(quick: bool) -> Iterator[Case]:
    """Widths of the demo's sweep in eager mode."""
    for width in (32,) if quick else (32, 64):
        job = Job(llama(width), torch.randint(0, 256, (16, 129)))
        methods = {"dense": job.step()} | {spec: job.step(spec) for spec in SPECS}
        yield Case(job.name, methods)


def wide(width: int = 512, layers: int = 4, context: int = 256) -> Llama:
    """The decoder of the demo's family with fewer layers than its width asks for."""
    torch.manual_seed(0)
    return Llama(replace(LlamaShape.of_width(width, context=context), layers=layers))


def _represented(job: Job) -> Case:
    methods = {"dense": job.step()} | {name: job.step(spec) for name, spec in WIDE.items()}
    return _warm(job, methods)


def _beside_peers(job: Job) -> Case:
    methods = {"dense": job.step()} | {name: job.step(spec) for name, spec in NEAR.items()}
    others = {peer.name: job.step_of(peer) for peer in peers()}
    for name, step in list(others.items()):
        try:
            step(0)
        except Exception as error:
            print(f"  left out: {name}, {job.name} ({type(error).__name__}: {error})", flush=True)
            del others[name]
    return _warm(job, methods | others)


def _warm(job: Job, methods: dict[str, Method]) -> Case:
    """A case whose methods have run before, which compiles them."""
    for method in methods.values():
        method(0)
    return Case(job.name, methods, rounds=ROUNDS)


def _step(model: nn.Module, tokens: Tensor) -> Method:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run(call: int) -> None:
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def _memory(layers: int) -> list[Row]:
    """Bytes kept for the backward pass, for 8192 tokens."""
    model, tokens = wide(layers=layers), torch.randint(0, 256, (32, 256))
    forms: dict[str, nn.Module] = {"dense": model}
    forms |= {name: rhoc.compile(model, spec).trainable() for name, spec in (WIDE | NEAR).items()}
    forms |= {peer.name: peer.prepare(copy.deepcopy(model)) for peer in peers()}
    return memory_rows(f"llama of width 512, layers {layers}, float32, 32 x 256 tokens", forms, tokens)


def _timed(make: Callable[[Job], Case], compiled: bool) -> Callable[[int], list[Row]]:
    def rows(layers: int) -> list[Row]:
        job = Job(wide(layers=layers), torch.randint(0, 256, (8, 257)), compiled)
        return report(make(job), False)

    return rows


PARTS: Mapping[str, Callable[[int], list[Row]]] = {
    "compiled": _timed(_represented, True),
    "eager": _timed(_represented, False),
    "peers-eager": _timed(_beside_peers, False),
    "peers-compiled": _timed(_beside_peers, True),
    "memory": _memory,
}


def main() -> int:
    """Measure parts, and write them beside those that were measured before."""
    parser = argparse.ArgumentParser(description="Training steps at width 512, on one CPU thread.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--layers", type=int, default=4, help="of the model (4); a step takes 0.5 s a layer")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    path = RESULTS / "training-wide-cpu.json"
    for part in options.parts or PARTS:
        rows = [{"part": part, **row} for row in PARTS[part](options.layers)]
        before = json.loads(path.read_text())["rows"] if path.exists() else []
        rows += [row for row in before if row["part"] != part]
        rows.sort(key=lambda row: list(PARTS).index(row["part"]))
        write("training-wide", rows)
        path.with_suffix(".md").write_text(page(rows))
    return 0


def page(rows: list[Row]) -> str:
    """Markdown: a table for each part."""
    lines = ["# The training step at width 512", "", _ABOUT]
    for (part, case), group in groupby(rows, key=lambda row: (row["part"], row["case"])):
        lines += [
            "",
            f"## {part}",
            "",
            f"{case}.",
            "",
            *(_memory_table if part == "memory" else _table)([*group]),
        ]
    return "\n".join(lines) + "\n"


def _table(rows: list[Row]) -> list[str]:
    lines = ["| | milliseconds | over dense | by the minima |", "|---|---:|---:|---:|"]
    return lines + [
        f"| {r['method']} | {r['median_us'] / 1e3:.0f} | {r['ratio']:.3f} | {r['ratio_of_minima']:.3f} |"
        for r in rows
    ]


def _memory_table(rows: list[Row]) -> list[str]:
    lines = ["| | MB of activations | over dense | MB of weights | together, over dense |"]
    lines += ["|---|---:|---:|---:|---:|"]
    return lines + [
        f"| {r['method']} | {r['activation_bytes'] / 1e6:.1f} | {r['ratio']:.3f} | "
        f"{r['weight_bytes'] / 1e6:.1f} | {r['ratio_together']:.3f} |"
        for r in rows
    ]


if __name__ == "__main__":
    sys.exit(main())
