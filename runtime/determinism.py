"""Runs whose numbers do not depend on anything but their request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers start from `seed` inside, and go on as if nothing had happened outside."""
    devices = list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def deterministic(threads: int = 1) -> Iterator[None]:
    """Deterministic operations on a fixed number of threads inside, whatever was set before outside."""
    algorithms, before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms)
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """No threads inside operations: these take microseconds, and on busy cores threads wait far longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
