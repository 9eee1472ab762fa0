"""Fixtures that several files of tests use."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from .command_line import CommandLine

os.environ.setdefault("RHOC_TUNED", "0")  # what was measured on this machine must not decide what is tested


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Modules and tests stay to the end, so the garbage collector need not look at them, then or again: it took
    a fifth of the time that collecting takes, and a tenth of that of tests that build graphs."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(20_000, 10, 10)
        gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # or some libraries say, as the process ends, that they lost something


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    """The command line, in a folder of the test's own, a hundred columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("RHOC_STORE", raising=False)
    return CommandLine(capsys, tmp_path)


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed operations by decoding and by their parts alone, as where no kernel is for the machine."""
    from rhoc.runtime import kernels

    monkeypatch.setattr(kernels, "KERNELS", tuple(kernel for kernel in kernels.KERNELS if not kernel.devices))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch on one thread, which small tensors are fastest on."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests that were asked for by `-m gpu` fail in one line where there is no GPU, rather than skip.

    What C++ is compiled for them is asked when they run: where tests are collected, every process compiles all.
    """
    for mark in item.iter_markers("compiled"):
        if isinstance(reason := mark.kwargs["by"](), str):
            pytest.skip(reason)
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.fail("this test needs a CUDA device, and torch sees none", pytrace=False)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """After a fault, CUDA fails everything in its process: it ends here, and tests go on in a new one."""
    if item.get_closest_marker("gpu") is None:
        return
    import torch

    try:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except RuntimeError as error:
        if os.environ.get("PYTEST_XDIST_WORKER"):
            os._exit(3)
        pytest.exit(f"CUDA does no more work after {item.nodeid}: {error}", returncode=3)
