"""The command that trains one run."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import Json, emit_json, say
from .runs import DEFAULT_STORE, Store, checkpoints, shown, without_curves

if TYPE_CHECKING:
    from ...runtime.units import Units
    from ..experiment import Experiment

_RATE, _STEP, _TEACHER = "Learning rate", "Optimiser and step", "Teacher"
_CLI_BATCH = 4  # windows in a step where nothing is said: this machine is a small one
_OF_TEXT = ("data", "batch_size", "context", "eval_tokens")  # what a task of the user's own decides itself


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(train)


def train(
    context_: typer.Context,
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="A shipped name or a YAML file.")],
    model: Annotated[
        str,
        typer.Option("--model", metavar="MODEL", help="package.module:factory, file.py:factory or hf:NAME."),
    ],
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="'stdlib', a folder or file of text, or an array of tokens. \\[default: stdlib]",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            "--task",
            metavar="FILE",
            help="FILE.py or package.module with functions batch, validation and loss, in the place of text.",
        ),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", help="Training tokens, D; of a task, examples. \\[default: 1000000]"),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Windows in a step. \\[default: 4]")
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", help="Tokens in a window. \\[default: 128]")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the weights and the order of the data. \\[default: 0]")
    ] = None,
    eval_tokens: Annotated[
        int | None, typer.Option("--eval-tokens", help="Validation targets, at most. \\[default: 131072]")
    ] = None,
    eval_every: Annotated[
        int | None,
        typer.Option("--eval-every", help="Steps between validations. \\[default: only at the end]"),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            help="Its peak. \\[default: derived from the width, for optimisers like Adam]",
            rich_help_panel=_RATE,
        ),
    ] = None,
    learning_rate_schedule: Annotated[
        str | None,
        typer.Option(
            "--learning-rate-schedule",
            metavar="NAME",
            help="cosine, wsd (warm-up, stable, decay) or constant. \\[default: cosine]",
            rich_help_panel=_RATE,
        ),
    ] = None,
    warmup_fraction: Annotated[
        float | None,
        typer.Option(
            "--warmup-fraction",
            help="Share of the steps in which it rises. \\[default: 0.1]",
            rich_help_panel=_RATE,
        ),
    ] = None,
    final_fraction: Annotated[
        float | None,
        typer.Option(
            "--final-fraction",
            help="Where it ends, as a share of the peak. \\[default: 0.1]",
            rich_help_panel=_RATE,
        ),
    ] = None,
    decay_fraction: Annotated[
        float | None,
        typer.Option(
            "--decay-fraction",
            help="Of wsd: share of the steps in which it falls. \\[default: 0.2]",
            rich_help_panel=_RATE,
        ),
    ] = None,
    decay_shape: Annotated[
        str | None,
        typer.Option(
            "--decay-shape",
            metavar="NAME",
            help="Of wsd: linear or sqrt (one minus the root). \\[default: linear]",
            rich_help_panel=_RATE,
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            "--optimizer",
            metavar="NAME",
            help="Any of torch.optim, by name. \\[default: adamw]",
            rich_help_panel=_STEP,
        ),
    ] = None,
    optimizer_option: Annotated[
        list[str] | None,
        typer.Option(
            "--optimizer-option",
            metavar="NAME=VALUE",
            help="An option of it; may be repeated, e.g. momentum=0.9.",
            rich_help_panel=_STEP,
        ),
    ] = None,
    weight_decay: Annotated[
        float | None,
        typer.Option(
            "--weight-decay",
            help="Of matrices, decoupled under every optimiser. \\[default: 0.1]",
            rich_help_panel=_STEP,
        ),
    ] = None,
    latent_decay: Annotated[
        str | None,
        typer.Option(
            "--latent-decay",
            metavar="RATE",
            help="Of weights that are projected: same, none or a rate. \\[default: same]",
            rich_help_panel=_STEP,
        ),
    ] = None,
    clip: Annotated[
        float | None,
        typer.Option(
            "--clip", help="Bound on the norm of the gradient. \\[default: 1]", rich_help_panel=_STEP
        ),
    ] = None,
    step_limit: Annotated[
        float | None,
        typer.Option(
            "--step-limit",
            help="Bound on a weight's step, RMS, in widths of its grid's cells; reports oscillation.",
            rich_help_panel=_STEP,
        ),
    ] = None,
    oscillation: Annotated[
        bool,
        typer.Option(
            "--oscillation",
            help="Report the share of weights that oscillate between levels.",
            rich_help_panel=_STEP,
        ),
    ] = False,
    accumulation: Annotated[
        int | None,
        typer.Option(
            "--accumulation",
            help="Parts that a batch is split in, one after the other. \\[default: 1]",
            rich_help_panel=_STEP,
        ),
    ] = None,
    autocast: Annotated[
        str | None,
        typer.Option(
            "--autocast", metavar="DTYPE", help="none or bfloat16. \\[default: none]", rich_help_panel=_STEP
        ),
    ] = None,
    ema: Annotated[
        float | None,
        typer.Option(
            "--ema",
            help="Decay of an average of the weights, which is then what is measured. \\[default: none]",
            rich_help_panel=_STEP,
        ),
    ] = None,
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile forward pass, loss and optimiser step with torch.compile.",
            rich_help_panel=_STEP,
        ),
    ] = False,
    on_nonfinite: Annotated[
        str | None,
        typer.Option(
            "--on-nonfinite",
            metavar="WORD",
            help="A step whose loss or gradient is not finite: stop or skip. \\[default: stop]",
            rich_help_panel=_STEP,
        ),
    ] = None,
    skip_limit: Annotated[
        int | None,
        typer.Option(
            "--skip-limit",
            help="Steps skipped in a row before the run stops. \\[default: 10]",
            rich_help_panel=_STEP,
        ),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            metavar="MODEL",
            help="self (the dense model at the start) or a MODEL to learn from, beside the data.",
            rich_help_panel=_TEACHER,
        ),
    ] = None,
    teacher_weight: Annotated[
        float | None,
        typer.Option(
            "--teacher-weight", help="Its share of the loss. \\[default: 0.5]", rich_help_panel=_TEACHER
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", help="At which outputs are compared. \\[default: 1]", rich_help_panel=_TEACHER
        ),
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            "--blocks",
            metavar="PATTERN",
            help="Fit block after block to the teacher's: auto, or a regular expression of module paths.",
            rich_help_panel=_TEACHER,
        ),
    ] = None,
    learned_rate: Annotated[
        float | None,
        typer.Option(
            "--learned-rate",
            help="Peak rate of learned steps, offsets and fields. \\[default: that of the weights]",
            rich_help_panel=_RATE,
        ),
    ] = None,
    store: Store = DEFAULT_STORE,
    as_json: Json = False,
) -> None:
    """Train one run and record it. A run that exists is shown, not trained again; an interrupted one goes on.

    Example: `rhoc train int4 --model "rhoc.runtime.llama:llama(width=64)" --tokens 2000000`

    Example: `rhoc train int2 --model "rhoc.runtime.llama:llama(width=64)" --optimizer sgd --optimizer-option
    momentum=0.9 --learning-rate 0.1 --learning-rate-schedule wsd`

    Example: `rhoc train 2of4-int4 --model digits.py:cnn --task digits.py --tokens 60000 --ema 0.99`
    """
    from ...runtime.errors import WorkError
    from ...runtime.events import ConsoleProgress
    from ...runtime.store import RunStore
    from ..experiment import carry_out

    experiment = _experiment(context_.params)
    experiment.check()
    with RunStore(store) as opened:
        run = opened.ensure(experiment.request())
    if run.state == "finished":
        say(f"run {run.id} is finished already; here it is")
    else:
        with ConsoleProgress(experiment.spec.name) as progress:
            run, _ = carry_out(experiment, store, run.id, str(checkpoints(store)), listener=progress)
    if run.state != "finished":
        raise WorkError(
            "another process is at work on this run",
            where=f"run {run.id}",
            advice="wait for it; see `rhoc runs ls`",
        )
    document = {"run": run.id, **without_curves(run.result or {})}
    if as_json:
        return emit_json(document)
    _show(document, experiment.units)


def _experiment(given: dict[str, Any]) -> Experiment:
    """The experiment that options describe: what is not given is left to the settings' own defaults."""
    from dataclasses import fields

    from ...runtime.errors import RequestError
    from ...runtime.train import TrainSettings
    from ..experiment import Experiment
    from ..model_reference import ModelReference
    from ..spec import load_spec
    from ..task_reference import TaskReference

    task = given["task"]
    stray = [name for name in _OF_TEXT if task is not None and given[name] is not None]
    if stray:
        raise RequestError(
            f"--{stray[0].replace('_', '-')} is for text, and a task of your own decides that itself",
            where="--task",
            advice="leave one of them out",
        )
    names = {field.name for field in fields(TrainSettings)}
    settings = {n: v for n, v in given.items() if n in names and v is not None and v is not False}
    if given["latent_decay"] is not None:
        settings["latent_decay"] = _literal(given["latent_decay"])
    options = given["optimizer_option"]
    if options:
        settings["optimizer"] = {"name": given["optimizer"] or "adamw", **dict(map(_option, options))}
    if task is None:
        settings.setdefault("batch_size", _CLI_BATCH)
    return Experiment(
        load_spec(given["spec"]),
        ModelReference.parse(given["model"]),
        given["data"] or "stdlib",
        TrainSettings(**settings),
        None if task is None else TaskReference(task),
    )


def _option(text: str) -> tuple[str, Any]:
    from ...runtime.errors import RequestError

    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise RequestError(
            f"{text!r} is not NAME=VALUE", where="--optimizer-option", advice="write momentum=0.9"
        )
    return name.strip(), {"true": True, "false": False}.get(value.strip().lower(), _literal(value.strip()))


def _literal(text: str) -> Any:
    """A number or a tuple where the text is one, else the text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _show(document: dict[str, Any], units: Units) -> None:
    budget = units.budget
    names = {"loss": f"loss{units.loss_after_comma}", "params": "N, parameters", "tokens": f"D, {budget}"}
    keys = ["run", "loss", "params", "tokens", "steps", "seconds", "tokens_per_second", "learning_rate"]
    keys += [key for key in ("skipped", "oscillation") if document.get(key)]
    for key in keys:
        name = names.get(key, key.replace("_", " ")).replace("tokens per", f"{budget} per")
        typer.echo(f"{name:<22}{shown(document.get(key))}")
