"""Formula text as a tree: parsed by a whitelist, evaluated on anything that has arithmetic.

    N, D, names of parameters and columns, numbers, + - * / ^ and **, brackets, and functions of
    `functions.py` k[representation]     a parameter with one value per entry of a column

Nothing else is in the language, so that a formula from a file can do no harm.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..errors import RequestError
from .functions import FUNCTIONS


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: float


@dataclass(frozen=True)
class Name:
    """A parameter, a column, N or D; with `column`, the parameter's value for the entry in that column."""

    name: str
    column: str = ""


@dataclass(frozen=True)
class Call:
    """A function of `functions.py`."""

    function: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True)
class Sum:
    """Addends, each with its sign."""

    addends: tuple[tuple[float, Node], ...]


@dataclass(frozen=True)
class Product:
    """Factors, each a base and its exponent."""

    factors: tuple[tuple[Node, Node], ...]


Node: TypeAlias = Number | Name | Call | Sum | Product
ONE, MINUS_ONE = Number(1.0), Number(-1.0)


def parse(text: str) -> Node:
    """The tree of a formula, or of the part of it after `L =`. Raises RequestError, naming what is wrong."""
    body = text.split("=", 1)[1] if text.strip().startswith("L") and "=" in text else text
    try:
        tree = ast.parse(body.strip().replace("^", "**"), mode="eval")
    except (SyntaxError, ValueError) as error:
        raise RequestError(
            f"not a formula: {text!r} ({error.args[0] if error.args else error})",
            advice="write it like E + A/N^alpha + B/D^beta",
        ) from error
    return _node(tree.body, text)


def names_in(node: Node) -> Iterator[Name]:
    """Every name in a formula, as often as it occurs."""
    match node:
        case Name():
            yield node
        case Call(_, arguments):
            for argument in arguments:
                yield from names_in(argument)
        case Sum(addends):
            for _, addend in addends:
                yield from names_in(addend)
        case Product(factors):
            for base, exponent in factors:
                yield from names_in(base)
                yield from names_in(exponent)
        case _:
            return


def evaluate(node: Node, look_up: Callable[[Name], Any]) -> Any:
    """The value of a formula where `look_up` gives that of a name: a number, an array or a `Jet`."""
    match node:
        case Number(value):
            return value
        case Name():
            return look_up(node)
        case Call(function, arguments):
            return FUNCTIONS[function](*(evaluate(argument, look_up) for argument in arguments))
        case Sum(addends):
            total: Any = 0.0
            for sign, addend in addends:
                total = total + sign * evaluate(addend, look_up)
            return total
        case Product(factors):
            product: Any = 1.0
            for base, exponent in factors:
                value = evaluate(base, look_up)
                product = product * (value if exponent == ONE else value ** evaluate(exponent, look_up))
            return product


def substitute(node: Node, values: Mapping[str, Node]) -> Node:
    """The formula with names replaced by formulas."""
    match node:
        case Name(name):
            return values.get(name, node)
        case Call(function, arguments):
            return Call(function, tuple(substitute(a, values) for a in arguments))
        case Sum(addends):
            return Sum(tuple((sign, substitute(addend, values)) for sign, addend in addends))
        case Product(factors):
            return Product(tuple((substitute(b, values), substitute(e, values)) for b, e in factors))
        case _:
            return node


def _node(tree: ast.expr, text: str) -> Node:
    match tree:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            return Number(float(value))
        case ast.Name(id=name):
            return Name(name)
        case ast.Subscript(value=ast.Name(id=name), slice=ast.Name(id=column)):
            return Name(name, column)
        case ast.Call(func=ast.Name(id=function), args=arguments, keywords=[]) if function in FUNCTIONS:
            return Call(function, tuple(_node(argument, text) for argument in arguments))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _node(operand, text)
            return Number(-inner.value) if isinstance(inner, Number) else Sum(((-1.0, inner),))
        case ast.BinOp(left=left, op=operator, right=right):
            return _binary(operator, _node(left, text), _node(right, text), text)
    raise RequestError(
        f"{ast.unparse(tree)!r} is not part of the language of formulas",
        where=text,
        advice=f"known: names, numbers, + - * / ^, k[column], {', '.join(FUNCTIONS)}",
    )


def _binary(operator: ast.operator, left: Node, right: Node, text: str) -> Node:
    match operator:
        case ast.Add():
            return Sum((*_addends(left), *_addends(right)))
        case ast.Sub():
            return Sum((*_addends(left), *((-sign, node) for sign, node in _addends(right))))
        case ast.Mult():
            return Product(((left, ONE), (right, ONE)))
        case ast.Div():
            return Product(((left, ONE), (right, MINUS_ONE)))
        case ast.Pow():
            return Product(((left, right),))
    raise RequestError(f"the operator {type(operator).__name__} is not part of formulas", where=text)


def _addends(node: Node) -> tuple[tuple[float, Node], ...]:
    return node.addends if isinstance(node, Sum) else ((1.0, node),)
