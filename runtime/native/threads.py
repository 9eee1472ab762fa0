"""Work on independent pieces by as many threads as torch has. C++ called by ctypes holds no lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import torch

MANY = 1 << 20  # numbers from which threads are worth waking


def shared_out(work: Callable[[int, int], None], count: int, numbers: int) -> None:
    """`work` on ranges that together are 0 to `count`, by as many threads as torch has where it is much."""
    threads = min(torch.get_num_threads(), count) if numbers >= MANY else 1
    if threads < 2:
        work(0, count)
        return
    bounds = [count * i // threads for i in range(threads + 1)]
    pool = _pool(os.getpid(), threads - 1)
    others = [pool.submit(work, *ends) for ends in pairwise(bounds[1:])]
    work(bounds[0], bounds[1])
    for other in others:
        other.result()


@lru_cache(maxsize=4)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that wait for work; of this process, since a child that was forked has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="rhoc")
