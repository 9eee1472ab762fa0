"""Errors a person can act on: what happened, where, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass


class RhocError(Exception):
    """An error with an address and a next step. Prints as `where: message; advice`, never as a traceback.

    `exit_code` is what the command line returns: 1 when the work failed, 2 when the request was wrong.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str = "", advice: str = "") -> None:
        super().__init__(message)
        self.message, self.where, self.advice = message, where, advice

    def __str__(self) -> str:
        text = f"{self.where}: {self.message}" if self.where else self.message
        return f"{text}; {self.advice}" if self.advice else text

    def at(self, where: str) -> RhocError:
        """The same error with its address completed from the outside (a module path, a file)."""
        self.where = f"{where}: {self.where}" if self.where else where
        return self


class RequestError(RhocError):
    """The request was wrong: a spec, a flag, a shape, a missing file. Nothing was done."""

    exit_code = 2


class WorkError(RhocError):
    """The request was fine and the work failed: a diverged run, a broken checkpoint."""


@dataclass(frozen=True)
class Problem:
    """One finding in a document: file, 1-based line and column, what is wrong, what to do.

    Data from Python has no lines: `file` is then the path inside the data, and line and column are 0.
    """

    file: str
    line: int
    column: int
    message: str
    hint: str = ""

    def __str__(self) -> str:
        address = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        text = f"{address}: {self.message}"
        return f"{text}; {self.hint}" if self.hint else text


class InvalidDocument(RequestError):
    """A YAML document with one or more problems, all reported at once."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems
