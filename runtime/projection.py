"""The differentiable projection: forward decodes what was encoded, backward is the estimators' choice."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .arrangement import PLAIN, Arrangement
from .errors import RequestError
from .estimators.base import Estimator
from .estimators.step_rule import StepRule
from .latents.base import Latent
from .program import DECLARED, Program, know, program_of
from .projection_ops import PROJECT, Projection, forward
from .representation import Representation
from .schedule import Schedule
from .seeds import NO_SEED, fresh_seed


def project_with_gradient(
    x: Tensor,
    representation: Representation,
    estimators: tuple[Estimator, ...],
    *,
    keep_rotated: bool = False,
) -> Tensor:
    """`representation.project(x)`, with dL/dx = P^T (M * P dL/dR(x)).

    P is the leading rotation, M the estimators' mask. With `keep_rotated` the result is P R(x) instead: a
    product of two tensors under the same rotation needs neither to be rotated back. Without gradients nothing
    is masked, and nothing is random.
    """
    if representation.is_dense:
        return x
    program = program_of(representation, estimators)
    return _projected(
        x, program, program.key, DECLARED, is_random=program.is_random, keep_rotated=keep_rotated
    )


def project_along(
    x: Tensor, dimension: int, representation: Representation, estimators: tuple[Estimator, ...]
) -> Tensor:
    """`project_with_gradient` along a dimension of `x`, counted from the end; a vector has one only."""
    dimension = max(dimension, -x.dim())
    if representation.is_dense or dimension == -1:
        return project_with_gradient(x, representation, estimators)
    return project_with_gradient(x.movedim(dimension, -1), representation, estimators).movedim(-1, dimension)


def _projected(
    x: Tensor,
    program: Program,
    key: str,
    values: Tensor,
    *,
    is_random: bool,
    keep_rotated: bool = False,
    training: bool = True,
) -> Tensor:
    """What a program makes of `x`; its `key` and whether it `is_random` are given, so as not to be traced."""
    graded = torch.is_grad_enabled()
    training = training and graded
    seed = fresh_seed() if training and is_random else NO_SEED
    result: Tensor
    if torch.compiler.is_compiling():
        result = PROJECT(x, values, seed, key, keep_rotated, training, graded)[0]
    elif graded:
        result = Projection.apply(x, program, values, seed, keep_rotated, training)  # type: ignore[no-untyped-call]
    else:
        result = forward(program, x, values, seed, keep_rotated, False, False)[0]
    return result


class Project(nn.Module):
    """The projection as a module, so that a graph can call it and print its name.

    A weight is projected as its `arrangement` sees it, an activation along `dimension`. `latent` is what a
    weight is trained as, `schedules` change fields of the representation and of the estimators by step (see
    `schedules.advance`), `path` is that of the weight in the module that holds the projection.
    """

    def __init__(
        self,
        representation: Representation,
        estimators: tuple[Estimator, ...],
        *,
        keep_rotated: bool = False,
        arrangement: Arrangement = PLAIN,
        dimension: int = -1,
        latent: Latent | None = None,
        schedules: tuple[Schedule, ...] = (),
        path: str = "",
    ) -> None:
        super().__init__()
        for estimator in estimators:
            estimator.check(representation)
        self.program = (
            Program(representation, estimators, schedules)
            if schedules
            else program_of(representation, estimators)
        )
        # Neither a buffer nor in state_dict: it follows from the step, and stays on the CPU.
        self.values = torch.full((len(schedules),), torch.nan, dtype=torch.float64) if schedules else DECLARED
        # Plain attributes, which torch.compile reads without tracing what they follow from.
        self.key_of_program, self.is_random = self.program.key, self.program.is_random
        _ = self.program.plan  # found with real tensors: a tracing compiler has none
        self.is_dense, self.is_plain = representation.is_dense, arrangement.is_plain
        self.representation = representation
        self.estimators = estimators
        self.keep_rotated = keep_rotated
        self.arrangement, self.dimension = arrangement, dimension
        self.latent, self.path = latent, path
        self.step_rules = tuple(e for e in estimators if isinstance(e, StepRule))
        self.stepped = not self.step_rules  # or `step_rules.attach` sets it

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        know(self.program)

    @property
    def key(self) -> Hashable:
        """What it does: modules with equal keys do the same."""
        return self.program, self.keep_rotated, self.arrangement, self.dimension, self.latent

    @property
    def representation_now(self) -> Representation:
        """The representation with scheduled numbers as they are now."""
        return self.program.at(self.values).representation

    @property
    def is_idle(self) -> bool:
        """Whether it gives what it is given."""
        return self.is_dense and self.latent is None

    def forward(self, x: Tensor) -> Tensor:
        """The projection of `x`, same shape and dtype; still rotated with `keep_rotated`."""
        self._check_stepped()
        if self.latent is not None:
            x = self.latent.weight(x)
        if self.is_dense:
            return x
        if self.is_plain:
            return self.along(x, self.dimension)
        return self.arrangement.restore(self._project(self.arrangement.matrix(x)), tuple(x.shape))

    def _check_stepped(self) -> None:
        """Raise RequestError where a step rule is about to be trained under that nothing was attached for."""
        if not self.stepped and self.training and torch.is_grad_enabled():
            raise RequestError(
                f"{self.step_rules[0].kind!r} acts around the optimiser's steps, and knows of no optimiser",
                where=self.path,
                advice="call rhoc.attach(model, optimizer, steps) before training",
            )

    def along(self, x: Tensor, dimension: int) -> Tensor:
        """The projection along a dimension of `x`, counted from the end; a vector has one only."""
        dimension = max(dimension, -x.dim())
        if dimension == -1:
            return self._project(x)
        return self._project(x.movedim(dimension, -1)).movedim(-1, dimension)

    def _project(self, x: Tensor, values: Tensor | None = None) -> Tensor:
        return _projected(
            x,
            self.program,
            self.key_of_program,
            self.values if values is None else values,
            is_random=self.is_random,
            keep_rotated=self.keep_rotated,
            training=self.training,
        )

    def extra_repr(self) -> str:
        names = "+".join(estimator.kind for estimator in self.estimators)
        latent = "" if self.latent is None else f", {self.latent.kind}"
        return f"{self.representation}, {names or 'ste'}{', rotated' if self.keep_rotated else ''}{latent}"


def projections(model: nn.Module) -> Iterator[Project]:
    """Every projection in a model, each once; of modules too that hold some out of sight of `modules()`.

    Such a module names them by a method `held()` that gives modules.
    """
    seen: set[int] = set()
    waiting = [model]
    while waiting:
        for module in waiting.pop().modules():
            if id(module) in seen:
                continue
            seen.add(id(module))
            if isinstance(module, Project):
                yield module
            held: Any = getattr(type(module), "held", None)
            if held is not None:
                waiting += held(module)


def latent_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, Project]]:
    """Every weight that a trainable form projects: its name, the parameter, and the projection; each once.

    A weight that a parametrization computes is no parameter, and not among them.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for projection, owner in owned(prefix, module):
            parameter = named.get(f"{owner}.{projection.path}".lstrip("."))
            if projection.path and parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{owner}.{projection.path}".lstrip("."), parameter, projection


def owned(prefix: str, module: nn.Module) -> Iterator[tuple[Project, str]]:
    """The projections that a module holds directly, and the path that theirs start from."""
    if isinstance(module, Project):  # in a container of a graph: the graph's module is two above
        yield module, ".".join(prefix.split(".")[:-2])
    held: Any = getattr(type(module), "held", None)
    for inner in held(module) if held is not None else ():
        if isinstance(inner, Project):
            yield inner, prefix
        else:
            for name, deeper in inner.named_modules():
                yield from ((p, f"{prefix}.{o}".strip(".")) for p, o in owned(name, deeper) if name)
