"""The far side of `executors.Processes`: what runs in a worker process."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from multiprocessing import connection as channels
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from typing import Any, Literal

from .errors import WorkError

Message = tuple[Literal["ready", "report", "done", "failed"], Any]

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

REPORTING: ContextVar[Callable[[object], None] | None] = ContextVar("REPORTING", default=None)


def report(value: object) -> None:
    """From inside a job: send a value to the `on_report` of its executor. Outside a job nobody listens."""
    tell = REPORTING.get()
    if tell is not None:
        tell(value)


def work(channel: Connection) -> None:
    """Answer calls one after the other until the channel closes, the parent ends, or SIGTERM comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name in _THREAD_VARIABLES:
        os.environ[name] = "1"
    REPORTING.set(lambda value: channel.send_bytes(pickle.dumps(("report", value))))
    channel.send_bytes(pickle.dumps(("ready", None)))
    while True:
        try:
            call = channel.recv_bytes()
        except EOFError:
            return
        channel.send_bytes(_sendable(_answer(call)))


def read(message: bytes) -> Message:
    """What a worker sent; a failure when this process cannot read it."""
    try:
        return pickle.loads(message)  # type: ignore[no-any-return]  # from our own child, over our own pipe
    except Exception as error:
        return "failed", WorkError(f"the answer of a worker cannot be read: {error}", where="worker")


def _answer(call: bytes) -> Message:
    try:
        function, args, kwargs = pickle.loads(call)
        if "torch" in sys.modules:  # it may have been imported before the variables were set
            sys.modules["torch"].set_num_threads(1)
        return "done", function(*args, **kwargs)
    except Exception as error:
        error.add_note(f"in a worker process:\n{traceback.format_exc().rstrip()}")
        return "failed", error


def _sendable(answer: Message) -> bytes:
    """The answer as bytes; one that does not survive the trip becomes an error that says what it was."""
    try:
        message = pickle.dumps(answer)
        pickle.loads(message)
    except Exception as problem:
        kind, value = answer
        if kind == "failed":
            error = WorkError(f"{type(value).__name__}: {value}", where="worker")
        else:
            what = f"the result cannot be sent back: {problem}"
            error = WorkError(what, where="worker", advice="return plain data")
        return pickle.dumps(("failed", error))
    return message


def _leave(*_: object) -> None:
    """End as by `sys.exit`, so that `finally` blocks run and claims are given back."""
    sys.exit(128 + signal.SIGTERM)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        channels.wait([parent.sentinel])
        os._exit(1)
