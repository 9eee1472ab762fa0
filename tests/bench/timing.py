"""Interleaved timing: every method in every round, so that what else the machine does falls on all alike.

On a CPU the clock is that of the thread, which other processes cannot stretch, or the one on the wall where a
case wants several threads; on CUDA it is a pair of events around a replayed graph, or around plain launches
where a method cannot be captured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch

Method = Callable[[int], object]
"""Does the work once; the argument counts calls, for a method that rotates its weights."""

_CAPTURED, _LAUNCHED = 96, 20  # calls at most in a graph, and without one
_GRAPH = 0.005  # seconds that all of them take about, where they are fewer


@dataclass(frozen=True)
class Case:
    """Methods that do the same job, by name. The first is what the others are measured against."""

    name: str
    methods: Mapping[str, Method]
    errors: Mapping[str, float] | None = None  # relative to float64, where it means something
    threads: int = 1  # on a CPU
    capture: bool = True  # on CUDA: whether a graph can hold the methods
    turns: int = 1  # on CUDA: calls that walk through all copies of a weight
    rounds: int | None = None  # for methods that take seconds: no more than these, and none to warm up


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: over rounds, the middle and the least."""

    median: float
    minimum: float


def measure(case: Case, *, cuda: bool, rounds: int, seconds: float) -> dict[str, Timing]:
    """Time all methods of a case in `rounds` rounds of about `seconds` for each method."""
    prepare = _cuda_clock if cuda else _cpu_clock
    if not cuda:
        torch.set_num_threads(case.threads)
    clocks = {name: prepare(method, seconds, case) for name, method in case.methods.items()}
    taken: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(case.rounds or rounds):
        for name, clock in clocks.items():
            taken[name].append(clock())
    return {name: Timing(median(seconds), min(seconds)) for name, seconds in taken.items()}


def _cpu_clock(method: Method, seconds: float, case: Case) -> Callable[[], float]:
    now, calls = time.thread_time if case.threads == 1 else time.perf_counter, 1
    if case.rounds is None:
        method(0)
        start = now()
        method(1)
        calls = max(1, round(seconds / max(now() - start, 1e-7)))

    def clock() -> float:
        start = now()
        for call in range(calls):
            method(call)
        return (now() - start) / calls

    return clock


def _cuda_clock(method: Method, seconds: float, case: Case) -> Callable[[], float]:
    once = _cuda_seconds(lambda: method(0), 3) / 3
    calls = calls_for(once, case)
    run = _captured(method, calls) if case.capture else _launches(method, calls)
    repeats = max(1, round(seconds / max(_cuda_seconds(run, 1), 1e-7)))
    return lambda: _cuda_seconds(run, repeats) / (repeats * calls)


def calls_for(once: float, case: Case) -> int:
    """How many calls of `once` seconds a graph holds, or are launched; in a graph all copies have their turn."""
    calls = round(_GRAPH / max(once, 1e-7))
    return max(case.turns, min(_CAPTURED, calls)) if case.capture else max(1, min(_LAUNCHED, calls))


def _launches(method: Method, calls: int) -> Callable[[], object]:
    def run() -> None:
        for call in range(calls):
            method(call)

    return run


def _captured(method: Method, calls: int) -> Callable[[], object]:
    """A CUDA graph of some calls: 2 us kernels are otherwise hidden behind the launches of 10."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # allocate outside the graph
        method(0)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in range(calls):
            method(call)
    return graph.replay


def _cuda_seconds(run: Callable[[], object], repeats: int) -> float:
    """Seconds by events, after one run that is not counted."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    run()
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
