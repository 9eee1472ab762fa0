"""Sources of text and arrays, the split, the address, and what is said when something is missing."""

from __future__ import annotations

import sysconfig
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from rhoc.runtime.corpus import Corpus, load_corpus
from rhoc.runtime.errors import RequestError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty small text files, each of which says its own name over and over, in two folders."""
    for number in range(60):
        path = tmp_path / "text" / ("a" if number % 2 else "b") / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<{number}>" * 20)
    return tmp_path / "text"


def files_in(tokens: np.ndarray) -> set[str]:
    return {part.split(b">")[0].decode() + ">" for part in tokens.tobytes().split(b"\0")}


def test_the_standard_library_is_split_by_file() -> None:
    corpus = load_corpus("stdlib")
    assert corpus.vocabulary == 256
    train, validation = corpus.train.tobytes(), corpus.validation.tobytes()
    assert 2_000_000 < len(train) < 40_000_000
    assert 0.01 < len(validation) / len(train) < 0.15
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in ("argparse.py", "json/decoder.py", "heapq.py", "string.py", "email/message.py"):
        text = (root / name).read_bytes()
        assert (text in train) != (text in validation), name
    for left_out in ("encodings/cp437.py", "pydoc_data/topics.py"):
        assert (root / left_out).read_bytes() not in train
    assert b"split by file" in corpus.notes[0].encode()


def test_a_folder_is_split_by_file_and_the_split_is_a_function_of_names(folder: Path) -> None:
    corpus, again = load_corpus(str(folder)), load_corpus(str(folder))
    assert corpus.digest == again.digest
    assert np.array_equal(corpus.validation, again.validation)
    train, validation = files_in(corpus.train), files_in(corpus.validation)
    assert not train & validation
    assert train | validation == {f"<{number}>" for number in range(60)}
    (folder / "a" / "more.txt").write_text("<more>" * 20)
    grown = load_corpus(str(folder))
    assert files_in(grown.validation) - {"<more>"} == validation  # others do not move when one comes


def test_the_address_changes_with_contents_and_split(folder: Path) -> None:
    before = load_corpus(str(folder))
    (folder / "a" / "1.txt").write_text("<1>" * 19 + "<2>")
    changed = load_corpus(str(folder))
    assert changed.digest != before.digest
    moved = replace(before, train=before.train[:-5], validation=before.train[-5:])
    assert len({before.digest, moved.digest, replace(before, vocabulary=300).digest}) == 3
    assert replace(before, name="other", notes=()).digest == before.digest


def test_one_file_is_split_by_position(tmp_path: Path) -> None:
    (tmp_path / "only.txt").write_text("0123456789" * 10)
    for source in (tmp_path, tmp_path / "only.txt"):
        corpus = load_corpus(str(source))
        assert corpus.train.tobytes() + corpus.validation.tobytes() == b"0123456789" * 10
        assert len(corpus.validation) == 5
        assert corpus.notes == ("split by position: the last twentieth is validation",)


def test_two_files_always_leave_one_to_each_part(tmp_path: Path) -> None:
    for number in range(12):
        folder = tmp_path / str(number)
        folder.mkdir()
        names = [f"{number}-one", f"{number}-two"]
        for name in names:
            (folder / name).write_text(f"<{name}>")
        corpus = load_corpus(str(folder))
        assert files_in(corpus.train) | files_in(corpus.validation) == {f"<{name}>" for name in names}
        assert len(files_in(corpus.train)) == 1


def test_what_is_not_text_is_left_out_and_said(folder: Path) -> None:
    before = load_corpus(str(folder))
    (folder / "picture.png").write_bytes(bytes(range(256)))
    (folder / "zeros").write_bytes(b"text\0text")
    (folder / ".hidden").write_text("hidden")
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("hidden too")
    corpus = load_corpus(str(folder))
    assert corpus.digest == before.digest
    assert corpus.notes[1] == "2 files are not UTF-8 text and were left out"


def test_arrays_of_tokens(tmp_path: Path) -> None:
    tokens = np.arange(1000, dtype=np.uint16) % 700
    np.save(tmp_path / "tokens.npy", tokens)
    by_position = load_corpus(str(tmp_path / "tokens.npy"))
    assert by_position.vocabulary == 700
    assert np.array_equal(np.concatenate([by_position.train, by_position.validation]), tokens)
    assert load_corpus(str(tmp_path / "tokens.npy"), vocabulary=1024).vocabulary == 1024

    parts = {"train": tokens[:600].astype(np.int32), "validation": tokens[600:].astype(np.int32)}
    save_file(parts, tmp_path / "parts.safetensors", metadata={"vocabulary": "32000"})
    stated = load_corpus(str(tmp_path / "parts.safetensors"))
    assert stated.vocabulary == 32000
    assert np.array_equal(stated.train, tokens[:600])
    assert np.array_equal(stated.validation, tokens[600:])


def test_batches_are_windows_and_a_function_of_seed_and_step() -> None:
    corpus = Corpus("count", 1000, np.arange(1000), np.arange(500))
    batch = corpus.batch(7, batch_size=4, context=16, seed=1)
    assert batch.dtype == torch.int64
    assert batch.shape == (4, 17)
    assert torch.equal(batch - batch[:, :1], torch.arange(17).expand(4, 17))
    assert torch.equal(batch, corpus.batch(7, batch_size=4, context=16, seed=1))
    others = [corpus.batch(s, batch_size=4, context=16, seed=seed) for s, seed in ((8, 1), (7, 2), (0, 1))]
    assert not any(torch.equal(batch, other) for other in others)
    starts = torch.cat([corpus.batch(s, batch_size=64, context=16, seed=0)[:, 0] for s in range(200)])
    assert starts.min() == 0
    assert starts.max() == 1000 - 17  # every window, the last one too
    counts = torch.bincount(starts, minlength=984).float()
    expected = 64 * 200 / 984
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 984 + 5 * (2 * 984) ** 0.5  # five standard deviations of its distribution


def test_batches_stay_what_they_are() -> None:
    """Recorded once: a change here would make resumed runs and old results silently different."""
    corpus = Corpus("count", 1000, np.arange(1000), np.arange(500))
    starts = corpus.batch(3, batch_size=6, context=10, seed=5)[:, 0].tolist()
    raw = np.random.Philox(key=5, counter=[0, 3, 0, 0]).random_raw(6)
    assert starts == [int(value) % 990 for value in raw] == [41, 439, 421, 206, 665, 904]


def test_evaluation_windows_predict_each_target_once() -> None:
    corpus = Corpus("count", 1000, np.arange(100), np.arange(500))
    everything = corpus.evaluation(tokens=10**9, context=16)
    assert everything.shape == (31, 17)
    assert everything[:, 1:].flatten().tolist() == list(range(1, 1 + 31 * 16))
    some = corpus.evaluation(tokens=100, context=16)
    assert some.shape == (6, 17)
    assert some[0, 0] == 0
    assert some[-1, 0] > 350  # spread over all of it
    targets = some[:, 1:].flatten().tolist()
    assert len(set(targets)) == len(targets)
    assert corpus.evaluation(tokens=1, context=16).shape == (1, 17)


def test_a_corpus_shorter_than_the_context() -> None:
    corpus = Corpus("tiny", 256, np.arange(50), np.arange(20))
    corpus.check(19)
    with pytest.raises(RequestError) as caught:
        corpus.check(20)
    text = "corpus tiny: the corpus has 20 validation tokens; a context of 20 needs 21; "
    assert str(caught.value) == text + "give more text or a shorter context"


def test_messages(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "x").write_bytes(b"\xff\xfe")
    (tmp_path / "text.txt").write_text("some text")
    np.save(tmp_path / "floats.npy", np.zeros(4))
    np.save(tmp_path / "square.npy", np.zeros((4, 4), dtype=np.int64))
    np.save(tmp_path / "negative.npy", np.array([1, -1]))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "large.npy", np.array([500]))
    (tmp_path / "broken.npy").write_bytes(b"nothing")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    save_file({"a": np.arange(3), "b": np.arange(3)}, tmp_path / "names.safetensors")
    expected = {
        "missing": "there is no such corpus; give 'stdlib', a directory of text files",
        "empty": "there is no text to train on; give 'stdlib'",
        "binary": "there is no text to train on; 1 files are not UTF-8 text and were left out; give",
        "floats.npy": "tokens are one dimension of integers, not float64 of shape [4]; flatten",
        "square.npy": "tokens are one dimension of integers, not int64 of shape [4, 4]; flatten",
        "negative.npy": "holds a negative token; number tokens from 0",
        "objects.npy": "not a readable array of tokens: Array can't be memory-mapped: Python objects",
        "broken.npy": "not a readable array of tokens:",
        "broken.safetensors": "not a readable array of tokens:",
        "names.safetensors": "holds the tensors a, b; name them 'train' and 'validation'",
    }
    for name, phrase in expected.items():
        with pytest.raises(RequestError) as caught:
            load_corpus(str(tmp_path / name))
        assert phrase in str(caught.value), name
        assert name in str(caught.value)
    with pytest.raises(
        RequestError, match="token 500 is outside a vocabulary of 256; give a larger vocabulary"
    ):
        load_corpus(str(tmp_path / "large.npy"), vocabulary=256)
    with pytest.raises(RequestError, match="text has a vocabulary of 256 bytes, not 300"):
        load_corpus(str(tmp_path / "text.txt"), vocabulary=300)
