"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SpecArgument = Annotated[str, typer.Argument(metavar="SPEC", help="A shipped name or a YAML file.")]
Model = Annotated[
    str,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="package.module:factory, file.py:factory or hf:NAME, e.g. m:f(width=64).",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="A .safetensors file of the model's weights."),
]
FitFile = Annotated[
    Path | None,
    typer.Option("--fit", metavar="FIT.json", help="A fit of your own, saved by `rhoc fit --out`."),
]
Source = Annotated[
    str | None,
    typer.Option(
        "--source", metavar="NAME", help="The published fit to ask; `rhoc laws published` lists them."
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="NAME=VALUE",
        help="A column that the law reads; FORMAT:NAME=VALUE for one format; may be repeated.",
    ),
]
Baseline = Annotated[
    str | None, typer.Option("--baseline", metavar="NAME", help="The representation whose rho is 1.")
]
