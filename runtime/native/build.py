"""Compiling C++ sources of ours for this machine, once for every user.

RHOC_NATIVE=0 in the environment switches all of it off.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

if sys.platform != "win32":
    import fcntl

SWITCH = "RHOC_NATIVE"
_FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared")
_ARITHMETIC = ("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off")  # none of which changes a result
_TUNING = (("-march=native",), ("-mcpu=native",), ())  # the first that the compiler knows
_SECONDS = 300  # that a compiler may take
_ADVICE = "install g++ (Debian: apt install g++), or set CXX to a C++17 compiler"


@dataclass(frozen=True)
class Library:
    """A shared library of one C++ file and the headers that it includes, all of one folder.

    `flags` come after ours, which keep arithmetic to the letter: no contraction, no reordering.
    """

    name: str
    folder: Path
    source: str
    headers: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()

    @property
    def options(self) -> tuple[str, ...]:
        """What the compiler is told beside the processor and the files."""
        return (*_FLAGS, *_ARITHMETIC, *self.flags)


def loaded(library: Library) -> ctypes.CDLL | str:
    """The compiled library, or why there is none."""
    path = built(library)
    if isinstance(path, str):
        return path
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        return f"{path} cannot be loaded: {error}"


def built(library: Library) -> Path | str:
    """The compiled library's file, from the cache where it was made before; or why there is none."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH}=0 switches it off"
    compiler = _compiler()
    if compiler is None:
        asked = os.environ.get("CXX")
        return f"there is no C++ compiler {f'called {asked} (CXX)' if asked else '(g++, clang++)'}; {_ADVICE}"
    try:
        folder = cache_folder()
        target = folder / f"{library.name}-{_digest(library, compiler)}.so"
        if target.exists():
            return target
        with _one_at_a_time(target):
            return target if target.exists() else _compiled(library, compiler, target)
    except OSError as error:
        return f"nothing can be kept in {error.filename or 'the cache'}: {error.strerror}; set XDG_CACHE_HOME"


def cache_folder() -> Path:
    """Where compiled code is kept: `rhoc` in the user's cache folder. Made, for this user alone."""
    parent = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(parent) / "rhoc"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _compiler() -> str | None:
    """What CXX says, or the first that is there, as torch's compiler chooses one."""
    asked = os.environ.get("CXX")
    names = (asked,) if asked else ("g++", "clang++")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def _one_at_a_time(target: Path) -> Iterator[None]:
    """The others who want `target` wait, and then find it. Where files cannot be locked, they make it too."""
    if sys.platform == "win32":
        yield
        return
    path = target.with_suffix(".lock")
    with path.open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)  # which ends with the process, too
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # who waits holds the file without its name


def _compiled(library: Library, compiler: str, target: Path) -> Path | str:
    """Compiled beside its place and then moved to it: two processes at once both end with a whole file."""
    source, reason = library.folder / library.source, ""
    if "ipykernel" in sys.modules or (sys.stderr and sys.stderr.isatty()):  # where someone sees it and waits
        print(f"rhoc: compiling {library.name} for this processor (once, some seconds) ...", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        for tuning in _TUNING:
            command = [compiler, *library.options, *tuning, str(source), "-o", str(made)]
            try:
                run = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
            except subprocess.TimeoutExpired:
                return f"{compiler} took more than {_SECONDS} seconds; {_ADVICE}"
            if run.returncode == 0:
                os.replace(made, target)
                return target
            reason = reason or _first_error(run.stderr)
            if not any(flag in run.stderr for flag in tuning):
                break  # the source is at fault, and without the flag another, slower program would hide it
    return f"{compiler} cannot compile it: {reason}; {_ADVICE}"


def _first_error(output: str) -> str:
    return next((line for line in output.splitlines() if "error" in line), "it says nothing")


def _digest(library: Library, compiler: str) -> str:
    """What the compiled code depends on: the sources, the compiler and its flags, and the processor."""
    names = (library.source, *library.headers)
    texts = [(library.folder / name).read_text() for name in names]
    known = [*texts, compiler, *library.options, platform.machine(), processor()]
    return sha256("\0".join(known).encode()).hexdigest()[:24]


@lru_cache(maxsize=1)
def processor() -> str:
    """The processor's instructions, where the system tells, or else its name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    told = [line for line in lines if line.startswith(("flags", "Features"))]
    return told[0] if told else platform.processor()
