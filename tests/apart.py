"""Work that may end its process, such as reading what may not be read: in a copy of this one."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable

import torch


def survives(work: Callable[[], None]) -> bool:
    """Whether a forked child ends `work` without an error; what it says goes to our standard error.

    Nothing is imported or compiled anew there, which takes longer than the work.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child uses none of them
        child = os.fork()
    if child == 0:
        _ended(work)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _ended(work: Callable[[], None]) -> None:
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # without what the parent does at its end
