"""The command line: one file per group of commands, joined here. Heavy imports happen inside the commands."""

from __future__ import annotations

import sys

import typer

from ...runtime.errors import RhocError
from . import demo, formats, laws, models, runs

app = typer.Typer(
    name="rhoc",
    help="Write compressed representations in YAML, train and pack models in them, and ask what they are worth.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (demo, formats, models, runs, laws):
    group.register(app)


def main() -> None:
    """Run the command line. Exit code 0 done, 1 the work failed, 2 the request was wrong, 130 interrupted."""
    try:
        app()
    except RhocError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except KeyboardInterrupt:
        typer.echo("interrupted; finished runs and checkpoints are kept, the same command goes on from there", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
