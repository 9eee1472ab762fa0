"""The command line: one file per group of commands, joined here. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from ...runtime.errors import RhocError
from . import demo, design, exchange, formats, generate, laws, models, passes, questions, runs, sweeps, train

_INTERRUPTED = 130

app = typer.Typer(
    name="rhoc",
    help="Write compressed formats in YAML, train and pack models in them, and ask what they are worth.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (
    demo,
    formats,
    models,
    exchange,
    generate,
    passes,
    train,
    runs,
    sweeps,
    laws,
    questions,
    design,
):
    group.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Exit code 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted."""
    try:
        app(args=arguments, prog_name="rhoc")
    except RhocError as error:
        _refuse(str(error), error.exit_code)
    except OSError as error:
        if error.filename is None:  # no file of the user's: a defect of ours, with its traceback
            raise
        _refuse(f"{error.filename}: {error.strerror}", 1)
    except SystemExit as ending:
        if ending.code == _INTERRUPTED:
            text = (
                "interrupted; finished runs and checkpoints are kept, and the same command goes on from there"
            )
            typer.echo(text, err=True)
        raise


def _refuse(message: str, exit_code: int) -> None:
    typer.echo(f"error: {message}", err=True)
    sys.exit(exit_code)
