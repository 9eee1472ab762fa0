"""Tasks by name: a file or a module that defines what a model is trained and measured on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..runtime.determinism import seeded
from ..runtime.errors import RequestError, RhocError
from ..runtime.function_task import SKELETON, FunctionTask
from .foreign import place, said
from .model_reference import load_home, source_digest

_FORM = "give FILE.py or package.module with functions batch, validation and loss"


@dataclass(frozen=True)
class TaskReference:
    """Where a task's functions are: `FILE.py` or `package.module`.

    The module is run with torch's random numbers started from 0, so that data it makes up is always the same.
    """

    home: str

    @property
    def label(self) -> str:
        """The file's name or the module's: the same wherever the file lies."""
        return Path(self.home).name if self.home.endswith(".py") else self.home

    @property
    def file(self) -> str | None:
        """The file that the functions are in, once it is known to load."""
        return getattr(load_home(self.home), "__file__", None)

    def build(self) -> FunctionTask:
        """The task. Raises RequestError when there is no such module, it fails, or functions are missing."""
        with seeded(0):
            module = load_home(self.home, f"{_FORM}; {SKELETON}")
        return FunctionTask(vars(module), self.label, source_digest(self.home, _FORM))

    def check(self, task: FunctionTask, model: nn.Module) -> None:
        """Ask the functions once each; the model's mode is left as it is.

        Raises RequestError for what they raise, at file and line, and for what cannot be trained with.
        """
        was_training = model.training
        with self.blamed(), seeded(0):
            task.check(model.eval())
        model.train(was_training)

    def digest(self, task: FunctionTask) -> str:
        """The address of the task. Errors of its functions as in `check`."""
        with self.blamed(), seeded(0):
            return task.digest

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Errors that the task's functions raise inside become a RequestError at their file and line."""
        try:
            yield
        except RhocError:
            raise
        except (Exception, SystemExit) as error:
            at = place(error, self.file)
            raise RequestError(
                f"the task raised {said(error)}", where=self.label, advice=f"look at {at}"
            ) from error
