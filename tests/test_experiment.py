"""One run: what its identity depends on, what is recorded, and how errors of user code are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rhoc.compiler import experiment as module
from rhoc.compiler.experiment import Experiment, Progress, carry_out, perform
from rhoc.compiler.model_reference import ModelReference
from rhoc.compiler.spec import load_spec
from rhoc.runtime.digest import digest
from rhoc.runtime.errors import RequestError, WorkError
from rhoc.runtime.events import Saved, Stepped
from rhoc.runtime.store import ClaimLost, RunStore
from rhoc.runtime.train import TrainSettings
from rhoc.runtime.worker_process import REPORTING

SETTINGS = TrainSettings(tokens=640, batch_size=2, context=32, eval_tokens=512)
LLAMA = ModelReference.parse("rhoc.runtime.llama:llama(width=16)")
MODEL = """
import torch
from rhoc.runtime.llama import llama

class Odd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.calls = llama(width=16), 0

    def forward(self, tokens):
        self.calls += 1
        if self.training:
            raise KeyError("no such thing")
        return self.inner(tokens)

def odd():
    return Odd()

def two():
    class Two(Odd):
        def forward(self, tokens, mask):
            return self.inner(tokens)
    return Two()
"""


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """A corpus of one file."""
    (tmp_path / "text.txt").write_text("so it goes on, line after line, and on\n" * 200)
    return str(tmp_path / "text.txt")


def asked(**changed: Any) -> Experiment:
    return replace(Experiment(load_spec("int2"), LLAMA, "stdlib", SETTINGS), **changed)


def identity(experiment: Experiment) -> str:
    return digest(experiment.request())


# Identity


def test_the_same_question_has_the_same_identity(tmp_path: Path) -> None:
    (tmp_path / "int2.yaml").write_text(Path(load_spec("int2").source).read_text())
    assert identity(asked()) == identity(asked(spec=load_spec(tmp_path / "int2.yaml")))


def test_everything_that_decides_the_outcome_decides_the_identity(texts: str) -> None:
    different = {
        "spec": asked(spec=load_spec("int3")),
        "name": asked(spec=load_spec({**load_spec("int2").to_document(), "name": "other"})),
        "model": asked(model=LLAMA.with_arguments({"width": 32})),
        "data": asked(data=texts),
        "budget": asked(settings=replace(SETTINGS, tokens=1280)),
        "learning rate": asked(settings=replace(SETTINGS, learning_rate=0.001)),
        "seed": asked(settings=replace(SETTINGS, seed=1)),
    }
    identities = {name: identity(experiment) for name, experiment in different.items()}
    assert identity(asked()) not in identities.values()
    assert len(set(identities.values())) == len(identities)


def test_code_and_version_of_torch_decide_the_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(asked())
    monkeypatch.setattr(module, "code_digest", lambda: "another")
    changed = identity(asked())
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert len({before, changed, identity(asked())}) == 3


def test_a_summary_decides_nothing() -> None:
    document = {**load_spec("int2").to_document(), "summary": "in other words"}
    assert identity(asked(spec=load_spec(document))) == identity(asked())


def test_a_changed_model_file_is_another_run_and_a_moved_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for place in (tmp_path, tmp_path / "deep"):
        (place / "model.py").write_text("from rhoc.runtime.llama import llama\n")
    here, there = (
        asked(model=ModelReference.parse(f"{p}/model.py:llama")) for p in (tmp_path, tmp_path / "deep")
    )
    assert identity(here) == identity(there)
    (tmp_path / "model.py").write_text("from rhoc.runtime.llama import llama  # changed\n")
    assert identity(here) != identity(there)


def test_text_counts_by_name_and_content(tmp_path: Path, texts: str) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "text.txt").write_text(Path(texts).read_text())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "text.txt").write_text(Path(texts).read_text() + "one line more\n")
    first = identity(asked(data=texts))
    assert identity(asked(data=str(tmp_path / "deep" / "text.txt"))) == first
    assert identity(asked(data=str(tmp_path / "other" / "text.txt"))) != first


def test_a_request_says_no_path_of_this_machine(texts: str, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("from rhoc.runtime.llama import llama\n")
    request = asked(model=ModelReference.parse(f"{tmp_path}/model.py:llama"), data=texts).request()
    assert (request["model"], request["data"]) == ("model.py:llama", "text.txt")
    assert str(tmp_path) not in str(request)


# Columns


@pytest.mark.parametrize(
    ("name", "weight", "given"),
    [
        ("dense", 0.0, 0.0),
        ("int2", 0.118846, 0.0),
        ("int2-a2", 0.118846, 0.118846),
        ("sparse50", 0.0713259, 0.0),
    ],
)
def test_columns_are_gaussian_errors(name: str, weight: float, given: float) -> None:
    columns = asked(spec=load_spec(name)).columns()
    assert columns == {
        "gmse_weight": pytest.approx(weight, rel=1e-5),
        "gmse_input": pytest.approx(given, rel=1e-5),
    }


# Carrying out


def carried(experiment: Experiment, folder: Path, **options: Any) -> Any:
    place = str(folder / "runs.db")
    with RunStore(place) as store:
        run = store.ensure(experiment.request())
    return carry_out(experiment, place, run.id, str(folder / "checkpoints"), **options)


def test_a_run_is_recorded_and_its_checkpoints_are_gone(tmp_path: Path) -> None:
    run, here = carried(asked(), tmp_path, checkpoint_seconds=0.0)
    assert (run.state, here) == ("finished", True)
    assert run.representation == "int2"
    assert run.columns["gmse_weight"] == pytest.approx(0.118846, rel=1e-5)
    assert run.result is not None
    assert (run.loss, run.tokens) == (run.result["loss"], 640)
    assert not list((tmp_path / "checkpoints").iterdir())


def test_what_is_recorded_is_what_training_gives(tmp_path: Path) -> None:
    run, _ = carried(asked(), tmp_path)
    result, trained = perform(asked())
    assert run.loss == result.loss
    assert {name for name, _ in trained.named_parameters()} == {
        name for name, _ in LLAMA.build().named_parameters()
    }


def test_a_finished_run_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = carried(asked(), tmp_path)
    monkeypatch.setattr(module, "perform", lambda *_, **__: pytest.fail("it was trained again"))
    again, here = carried(asked(), tmp_path)
    assert (again, here) == (first, False)


def test_a_run_that_another_holds_is_left_alone(tmp_path: Path) -> None:
    experiment, place = asked(), str(tmp_path / "runs.db")
    with RunStore(place) as other:
        run = other.ensure(experiment.request())
        assert other.claim(run.id)
        found, here = carry_out(experiment, place, run.id, str(tmp_path / "checkpoints"))
    assert (found.state, here) == ("running", False)


def test_a_claim_that_was_taken_over_is_not_recorded_as_a_failure(tmp_path: Path) -> None:
    def taken(_: object) -> None:
        raise ClaimLost("another worker took it over")

    with pytest.raises(ClaimLost):
        carried(asked(), tmp_path, listener=taken)
    with RunStore(tmp_path / "runs.db") as store:
        (run,) = store.runs()
    assert (run.state, run.error) == ("running", None)


def test_an_interrupted_run_is_given_back(tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if isinstance(event, Stepped) and event.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carried(asked(), tmp_path, listener=stop)
    with RunStore(tmp_path / "runs.db") as store:
        (run,) = store.runs()
    assert (run.state, run.worker) == ("planned", None)
    run, here = carried(asked(), tmp_path)
    assert (run.state, here, run.loss) == ("finished", True, perform(asked())[0].loss)


def test_a_run_goes_on_from_its_checkpoint_and_says_so(tmp_path: Path) -> None:
    def stop(event: object) -> None:
        if isinstance(event, Saved) and event.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        carried(asked(), tmp_path, listener=stop, checkpoint_seconds=0.0)
    run, _ = carried(asked(), tmp_path)
    assert run.progress == {"step": 4, "resumed": 4}
    assert run.loss == perform(asked())[0].loss


def test_heartbeats_and_reports_go_out_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(module, "_REPORT_SECONDS", 0.0)
    heard: list[Any] = []
    token = REPORTING.set(heard.append)
    try:
        run, _ = carried(asked(), tmp_path)
    finally:
        REPORTING.reset(token)
    assert heard[-1] == Progress(run.id, 10, 10, 0, heard[-1].loss)
    assert [progress.step for progress in heard] == list(range(1, 11))
    assert run.progress == {"step": 10, "steps": 10, "resumed": 0, "loss": heard[-1].loss}


def test_errors_of_user_code_are_told_in_a_line_and_recorded_whole(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(MODEL)
    experiment = asked(model=ModelReference.parse(f"{tmp_path}/odd.py:odd"), spec=load_spec("dense"))
    with pytest.raises(WorkError) as failed:
        carried(experiment, tmp_path)
    assert failed.value.message == "KeyError: 'no such thing'"
    assert failed.value.where == "odd.py:13"
    with RunStore(tmp_path / "runs.db") as store:
        (run,) = store.runs()
    assert (run.state, run.error) == ("failed", "KeyError: 'no such thing'")
    assert run.environment is not None
    assert "Traceback" in run.environment["traceback"]
    assert run.id[:8] in failed.value.advice


@pytest.mark.parametrize(
    ("model", "data", "words"),
    [
        ("torch.nn:Linear(in_features=4, out_features=4)", "stdlib", "the model does not take int64 tokens"),
        ("odd.py:two", "stdlib", "missing 1 required positional argument: 'mask'"),
        ("rhoc.runtime.llama:llama(width=16, context=16)", "stdlib", "context"),
        ("rhoc.runtime.llama:llama(width=16, vocabulary=64)", "stdlib", "vocabulary of 256"),
        ("rhoc.runtime.llama:llama(width=16)", "short.txt", "tokens"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_spent(
    tmp_path: Path, model: str, data: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "odd.py").write_text(MODEL)
    (tmp_path / "short.txt").write_text("too short\n")
    source = data if data == "stdlib" else str(tmp_path / data)
    experiment = asked(model=ModelReference.parse(model, tmp_path), data=source)
    with pytest.raises(RequestError, match=words):
        experiment.check()
    with pytest.raises(RequestError, match=words):
        perform(experiment)
    assert "Traceback" not in capsys.readouterr().err  # torch.fx prints one when a compiled graph fails


def test_asking_whether_it_fits_changes_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    loss = perform(asked())[0].loss
    monkeypatch.setattr(module, "check_fit", lambda *_: None)
    assert perform(asked())[0].loss == loss


def test_passes_are_part_of_the_identity() -> None:
    document = load_spec("int2").to_document()
    folded = asked(spec=load_spec({**document, "passes": ["fold_norms"]}))
    assert "passes" not in asked().request()["spec"]
    assert folded.request()["spec"]["passes"][0]["kind"] == "fold_norms"
    assert identity(folded) != identity(asked())
