"""The README holds: every block in it runs, in order, in one folder, and every command it names exists.

A block in bash or Python is left out when its first line is `# not run here: ` and a reason. A block of YAML is a
spec or a grid; it is validated, and written to a file when its first line names one (`# mine.yaml`).
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from rhoc.compiler.cli import app, main
from rhoc.compiler.documents import read_document
from rhoc.compiler.grid import is_grid, validate_grid
from rhoc.compiler.spec import validate_file

from .command_line import single_threaded
from .namespace import ROOT

README = ROOT / "README.md"
LEFT_OUT = "# not run here: "
SHOWN = {"", "text", "console"}  # languages of blocks that show something and are not run
RUN = {"bash", "python", "yaml"}
FENCE = re.compile(r"^```(?P<language>[a-z]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Fenced:
    """A block of a page: its language, its text and the line its text begins on."""

    language: str
    text: str
    line: int

    @property
    def left_out(self) -> bool:
        return self.text.startswith(LEFT_OUT)


def blocks(page: str) -> list[Fenced]:
    """Every fenced block, in order."""
    return [
        Fenced(found["language"], found["text"], page.count("\n", 0, found.start("text")) + 1)
        for found in FENCE.finditer(page)
    ]


def run_bash(block: Fenced) -> None:
    """Plain calls of rhoc in this process, which has paid for its imports; all else in a shell.

    A block of nothing but calls of rhoc is run line by line, any other as a whole.
    """
    lines = [(block.line + i, line) for i, line in enumerate(block.text.splitlines()) if line.strip("# ")]
    calls = [(place, line) for place, line in lines if not line.startswith("#")]
    if not all(line.startswith("rhoc ") and not line.endswith("\\") for _, line in calls):
        calls = [(block.line, block.text)]
    for place, line in calls:
        code = run_shell(line) if needs_shell(line) else run_here(shlex.split(line, comments=True)[1:])
        assert code == 0, f"README.md:{place}: {line!r} ended with {code}"


def needs_shell(line: str) -> bool:
    """Whether there is more to a script than one call of rhoc: words, quotes and a comment."""
    unquoted = re.sub(r'"[^"$`]*"', "", line.partition(" #")[0])
    return "\n" in line or not line.startswith("rhoc ") or bool(re.search(r"[|&;<>$`*()\\]", unquoted))


def run_here(words: list[str]) -> int:
    """Exit code of rhoc, called in this process."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    return int(ended.value.code or 0)


def run_shell(text: str) -> int:
    """Exit code of a script, with the rhoc of this Python first on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    call = ["bash", "-euo", "pipefail", "-c", text]
    return subprocess.run(call, env=single_threaded({"PATH": path}), check=False).returncode


def run_python(block: Fenced, namespace: dict[str, Any]) -> None:
    """Run a block with the names of the blocks before it; errors point into the README."""
    exec(compile("\n" * (block.line - 1) + block.text, str(README), "exec"), namespace)


def check_yaml(block: Fenced, folder: Path) -> None:
    """A spec or a grid without problems."""
    first = block.text.partition("\n")[0]
    name = first.removeprefix("# ").strip()
    file = folder / (name if re.fullmatch(r"[\w./-]+\.ya?ml", name) else f"line-{block.line}.yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(block.text)
    problems = validate_grid(file) if is_grid(read_document(file)) else validate_file(file)
    assert problems == [], f"README.md:{block.line}: {problems}"


def test_every_block_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.delenv("RHOC_STORE", raising=False)
    namespace: dict[str, Any] = {"__name__": "readme"}
    found = blocks(README.read_text(encoding="utf-8"))
    assert {block.language for block in found} <= RUN | SHOWN
    for block in found:
        if block.left_out or block.language in SHOWN:
            continue
        if block.language == "bash":
            run_bash(block)
        elif block.language == "python":
            run_python(block, namespace)
        else:
            check_yaml(block, tmp_path)
    assert "Traceback" not in capfd.readouterr().err


def test_reasons_are_given_for_what_is_left_out() -> None:
    for block in blocks(README.read_text(encoding="utf-8")):
        if block.left_out:
            assert len(block.text.partition("\n")[0]) > len(LEFT_OUT) + 10


def test_every_command_that_the_readme_names_exists() -> None:
    page = README.read_text(encoding="utf-8")
    calls = [line for block in blocks(page) if block.language == "bash" for line in block.text.splitlines()]
    calls += re.findall(r"`(rhoc [^`]*)`", FENCE.sub("", page))
    named = [shlex.split(call, comments=True)[1:] for call in calls if call.startswith("rhoc ")]
    assert named
    for words in named:
        command: Any = get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not (hasattr(command, "commands") and words and not words[0].startswith("-")), words
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known, words


def test_the_runner_finds_blocks_and_notices_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    page = (
        "words\n```bash\n# not run here: it takes hours\nrhoc demo\n```\n"
        "```bash\nrhoc --help > help.txt  # a page\ntest -s help.txt && echo there > seen\n```\n"
        "```python\nx = 1\n```\nmore\n```python\nassert x == 2\n```\n```yaml\n# bad.yaml\nversion: 1\n```\n"
    )
    left_out, shell, python, wrong, invalid = blocks(page)
    assert (left_out.left_out, left_out.line, shell.line, python.text) == (True, 3, 7, "x = 1\n")
    run_bash(shell)
    assert (tmp_path / "seen").read_text() == "there\n"
    namespace: dict[str, Any] = {}
    run_python(python, namespace)
    with pytest.raises(AssertionError) as failed:
        run_python(wrong, namespace)
    assert failed.traceback[-1].lineno + 1 == wrong.line
    with pytest.raises(AssertionError, match=r"README\.md:18"):
        check_yaml(invalid, tmp_path)
    run_bash(
        Fenced(
            "bash", "# words\nfor name in a b; do\n  echo $name > $name.txt\ndone\ncd /\ntest ! -f a.txt\n", 1
        )
    )
    assert (tmp_path / "b.txt").exists()
    for line in ("false\n", "rhoc validate none.yaml", "rhoc nosuch | cat\n"):
        with pytest.raises(AssertionError, match=r"README\.md:1: "):
            run_bash(Fenced("bash", line, 1))
    capfd.readouterr()
