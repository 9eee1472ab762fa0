"""What a run says while it goes on, and what it records about its surroundings."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from rhoc.runtime import environment
from rhoc.runtime.corpus import Corpus
from rhoc.runtime.determinism import deterministic, seeded
from rhoc.runtime.events import (
    ConsoleProgress,
    Evaluated,
    Event,
    Finished,
    JsonLines,
    Resumed,
    Stepped,
    together,
)
from rhoc.runtime.llama import Llama, LlamaShape
from rhoc.runtime.train import TrainSettings, train


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "events.jsonl"
    events: list[Event] = []
    with JsonLines(path, every=4) as lines:
        settings = TrainSettings(tokens=320, batch_size=2, context=16, eval_tokens=64, eval_every=4)
        corpus = Corpus("circle", 8, np.arange(600) % 8, np.arange(200) % 8)
        model = Llama(LlamaShape(width=16, layers=1, heads=2, hidden=32, vocabulary=8, context=16))
        train(model, corpus, settings, listener=together(lines, events.append))
    written = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [event for event in written if event["event"] == "stepped"]
    assert [event["step"] for event in steps] == [4, 8, 10]
    stepped = next(event for event in events if isinstance(event, Stepped) and event.step == 4)
    assert steps[0] == {"event": "stepped", **asdict(stepped)}
    assert [event["step"] for event in written if event["event"] == "evaluated"] == [4, 8, 10]
    assert written[-1]["event"] == "finished"


def tell(listener: Callable[[Event], None]) -> None:
    listener(Resumed(2, "checkpoint.safetensors is damaged"))
    for step in range(3, 11):
        listener(Stepped(step, 10, step * 100, 2.0 / step, 0.1, 50.0))
    listener(Evaluated(10, 1000, 1.25))
    listener(Finished(10, 1000, 1.25, 20.0))


def test_progress_on_a_terminal_is_a_bar() -> None:
    out = io.StringIO()
    with ConsoleProgress("int4", Console(file=out, force_terminal=True, width=120)) as progress:
        tell(progress)
    drawn = out.getvalue()
    for part in (
        "int4",
        "10/10",
        "loss 0.2000",
        "50 tokens/s",
        "0:00:00",
        "done: loss 1.2500 after 1000 tokens",
    ):
        assert part in drawn


def test_progress_elsewhere_is_a_line_now_and_then() -> None:
    def lines(seconds: float) -> list[str]:
        out = io.StringIO()
        with ConsoleProgress("int4", Console(file=out, width=200), seconds=seconds) as progress:
            tell(progress)
        return out.getvalue().splitlines()

    often, rarely = lines(0), lines(3600)
    assert often[1] == "int4: step 3/10 loss 0.6667 50 tokens/s, 14 s left"
    assert len(often) == 1 + 8 + 2
    assert rarely == [
        "int4: resumed at step 2; checkpoint.safetensors is damaged",
        "int4: step 10: validation loss 1.2500",
        "int4: done: loss 1.2500 after 1000 tokens in 20.0 s",
    ]


def test_determinism_is_put_back() -> None:
    before = torch.get_num_threads()
    with deterministic(threads=1):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.get_num_threads() == 1
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == before
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(1):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with seeded(1):
        assert torch.equal(torch.rand(3), inside)


def test_the_environment_names_versions_and_nobody() -> None:
    found = environment.environment()
    packages = found["packages"]
    assert isinstance(packages, dict)
    kept, build = (name.split("+")[0] for name in (packages["torch"], torch.__version__))
    assert kept == build  # wheels from PyPI name their CUDA in the second alone
    said = json.dumps(found)
    assert os.path.expanduser("~") not in said
    assert os.uname().nodename not in said


def test_the_code_digest_follows_the_code_that_makes_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def digest_of(files: dict[str, str]) -> str:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        environment.code_digest.cache_clear()
        return environment.code_digest()

    monkeypatch.setattr(environment, "_folder", lambda name: tmp_path / name)
    try:
        first = digest_of({"runtime/train.py": "1", "passes/project.py": "1", "runtime/store.py": "1"})
        assert digest_of({"runtime/store.py": "2", "runtime/laws/fit.py": "2"}) == first
        changes = [
            digest_of({name: "2"})
            for name in ("runtime/train.py", "passes/project.py", "runtime/stages/new.py", "runtime/llama.py")
        ]
        assert len({first, *changes}) == 5
    finally:
        environment.code_digest.cache_clear()
    monkeypatch.undo()
    assert environment.code_digest() == environment.code_digest()
    assert len(environment.code_digest()) == 16
