"""Who is at work: names for processes by which others can tell whether they still live."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from .digest import digest_bytes


def this_worker() -> str:
    """Name of this process: a digest of the machine, the process id, and when the process started."""
    return f"{_machine()}:{os.getpid()}:{_start(os.getpid())}"


def is_gone(worker: str) -> bool:
    """Whether the process with this name ran on this machine and is no more.

    False when it may still live, or ran elsewhere and cannot be asked.
    """
    machine, pid, start, *_ = [*worker.split(":"), "", "", ""]
    if machine != _machine() or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False  # it lives and belongs to someone else
    return _start(int(pid)) != start  # the number may have been given to another process


def _machine() -> str:
    """Digest of what process ids are unique in: the host, its present boot, its namespace."""
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    booted = boot.read_text() if boot.exists() else ""
    inside = os.readlink(namespace) if namespace.exists() else ""
    return digest_bytes(platform.node().encode(), booted.encode(), inside.encode())


def _start(pid: int) -> str:
    """Clock ticks from boot to the start of a process; empty for a zombie, or where nobody says."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
