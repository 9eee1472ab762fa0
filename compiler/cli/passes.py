"""The passes of a spec: their order, and the reasons for it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .output import Column, Json, emit_json, table


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(passes)


def passes(
    spec: Annotated[
        str | None,
        typer.Argument(metavar="SPEC", help="A shipped name or a YAML file; without, what there is."),
    ] = None,
    why: Annotated[bool, typer.Option("--why", help="Say of every pass why it comes where it does.")] = False,
    as_json: Json = False,
) -> None:
    """The passes of a spec in the order in which they run; without a spec, the passes that a spec can list,
    with --why in the order in which they would run together.

    Example: `rhoc passes quarot-int4 --why`

    Example: `rhoc passes`
    """
    from ..pass_order import all_passes, known_passes, ordered_passes
    from ..spec import load_spec

    if spec is None and not why:
        rows = known_passes()
        if as_json:
            return emit_json(rows)
        columns = (Column("kind"), Column("keeps"), Column("options"), Column("summary"))
        return table(columns, [(r["kind"], r["keeps"], r["options"], r["summary"]) for r in rows])
    if spec is None:
        rows = ordered_passes(all_passes())
    else:
        loaded = load_spec(spec)
        rows = ordered_passes(loaded.passes, loaded.budget is not None)
    if as_json:
        return emit_json(rows)
    for number, row in enumerate(rows, 1):
        typer.echo(_line(number, row))
        for reason in row["why"] if why else ():
            typer.echo(f"     {reason}")


def _line(number: int, row: dict[str, Any]) -> str:
    listed = "" if row["listed"] else ", added for what it establishes"
    return f"{number:3}. {row['pass']} ({row['stage']}; keeps {row['keeps']}{listed})"
