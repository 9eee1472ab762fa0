"""Loaded models multiply an input once with a factor that several weights have in common."""

from __future__ import annotations

import copy
import gc
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

import rhoc
from rhoc.runtime import packed as module
from rhoc.runtime.last_product import LastProduct
from rhoc.runtime.load import load_packed
from rhoc.runtime.packed import packed_weights

from .models import Siblings

pytestmark = pytest.mark.usefixtures("one_thread")


def loaded(folder: Path) -> tuple[nn.Module, nn.Module]:
    """A packed model, and the same loaded."""
    torch.manual_seed(0)
    model = Siblings()
    rule = {"targets": "Linear", "weights": "product(keep_params=0.7, siblings)"}
    compiled = rhoc.compile(model, {"version": 1, "rules": [rule]})
    compiled.save(folder / "packed")
    return compiled.packed(), load_packed(folder / "packed", model)


def test_an_input_is_multiplied_once(tmp_path: Path) -> None:
    packed, model = loaded(tmp_path)
    x = torch.randn(3, 12)
    with torch.no_grad(), patch.object(module, "right_linear", wraps=module.right_linear) as count:
        result = model(x)
        assert count.call_count == 1
        assert torch.equal(result, packed(x))
        count.reset_mock()
        copied = copy.deepcopy(model)
        assert torch.equal(copied(x), result)
        assert count.call_count == 1
    assert len({id(weight.last) for weight in packed_weights(copied).values()}) == 1
    assert packed_weights(copied)["one.weight"].last is not packed_weights(model)["one.weight"].last


def test_what_was_written_to_or_moved_is_multiplied_anew(tmp_path: Path) -> None:
    packed, model = loaded(tmp_path)
    x = torch.randn(3, 12)
    with torch.no_grad():
        model(x)
        assert torch.equal(model(x.mul_(2)), packed(x))
        right = packed_weights(model)["one.weight"].fields()["0.right.carry"]
        before = model(x)
        right.mul_(0.5)
        torch.testing.assert_close(model.two(x), before[:, 8:28] / 2)  # type: ignore[operator]
        right.mul_(2)
        torch.testing.assert_close(model.double()(x.double()), packed.double()(x.double()))
    with torch.inference_mode():
        torch.testing.assert_close(model.float()(x), before)


def test_gradients_pass_each_time(tmp_path: Path) -> None:
    packed, model = loaded(tmp_path)
    gradients = []
    for form in (packed, model):
        x = torch.randn(3, 12, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.enable_grad():
            for _ in range(2):
                form(x).square().sum().backward()
        assert x.grad is not None
        gradients.append(x.grad)
    torch.testing.assert_close(*gradients)


def test_nothing_is_kept_of_an_input_that_is_gone() -> None:
    last, x = LastProduct(), torch.ones(2)
    with torch.no_grad():
        result = last.of(x, (), lambda x: x + 1)
        assert last.of(x, (), lambda x: x + 2) is result
    del x
    gc.collect()
    assert last._kept is None
