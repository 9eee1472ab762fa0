"""Fixtures that several files of tests use."""

from __future__ import annotations

from pathlib import Path

import pytest

from .command_line import CommandLine


@pytest.fixture
def command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    """The command line, in a folder of the test's own, a hundred columns wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("RHOC_STORE", raising=False)
    return CommandLine(capsys, tmp_path)
