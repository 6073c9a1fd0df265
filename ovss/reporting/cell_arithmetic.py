"""Arithmetic over printed numbers: what a formula gives, and how far rounding can move it.

A formula names table cells in square brackets; around them stand numbers, + - * / ( ) and the
functions of `FUNCTIONS`. It is parsed and walked, never handed to Python's `eval`.
"""

from __future__ import annotations

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from ovss.errors import OvssError

FUNCTIONS: dict[str, Callable[..., float]] = {
    "mean": lambda *x: sum(x) / len(x),
    "log10": math.log10,
    "rank": lambda x, *others: 1 + sum(o > x for o in others),  # 1 = none is higher
    "wins": lambda x, *others: sum(o < x for o in others),  # how many stay below x
}
_OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
_BOUNDS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_SUFFIX = {"K": 1e3, "k": 1e3, "M": 1e6}
_CELL = re.compile(r"\[([^\]]+)\]")


class FormulaError(OvssError, ValueError):
    """A formula or a number that cannot be read."""


@dataclass(frozen=True)
class Verdict:
    """A stated number beside the recomputed one; `exact` to the digit, `agrees` up to rounding."""

    recomputed: float
    tolerance: float
    exact: bool
    agrees: bool
    why: str


def number(text: str) -> tuple[float, float]:
    """A printed number (`69.8`, `403.4M`, `1.5k`, `5e-4`) and half a unit of its last digit."""
    scale = _SUFFIX.get(text[-1:], 1.0)
    try:
        decimal = Decimal(text[:-1] if scale > 1 else text)
    except InvalidOperation:
        raise FormulaError(f"not a number: {text!r}") from None
    exponent = decimal.as_tuple().exponent
    if not isinstance(exponent, int):
        raise FormulaError(f"not a finite number: {text!r}")
    return float(decimal) * scale, 0.5 * 10.0**exponent * scale


def evaluate(formula: str, lookup: Callable[[str], str]) -> tuple[float, float]:
    """Value of a formula at the printed cells, and how far the rounding of the cells can move it.

    `lookup` turns the text between brackets into the printed number. The second value adds up
    what each cell does when it alone moves by half a unit of its last printed digit; a formula
    that is one cell only is a quotation, and quotations are not rounded: 0.
    """
    names = {key: f"cell{i}" for i, key in enumerate(dict.fromkeys(_CELL.findall(formula)))}
    printed = {name: number(lookup(key)) for key, name in names.items()}
    try:
        tree = ast.parse(_CELL.sub(lambda match: names[match[1]], formula), mode="eval").body
    except SyntaxError:
        raise FormulaError(f"not a formula: {formula!r}") from None
    values = {name: value for name, (value, _) in printed.items()}
    try:
        result = _walk(tree, values)
    except (ArithmeticError, TypeError) as error:
        raise FormulaError(f"{formula!r}: {error}") from None
    if isinstance(tree, ast.Name):
        return result, 0.0
    moved = (_walk(tree, values | {n: v + half}) for n, (v, half) in printed.items())
    return result, sum(abs(other - result) for other in moved)


def filled(formula: str, lookup: Callable[[str], str]) -> str:
    """The formula with the printed numbers in place of the cells."""
    return _CELL.sub(lambda match: lookup(match[1]), formula)


def judge(stated: str, recomputed: float, slack: float) -> Verdict:
    """Compare a stated number, or a stated bound such as `<=2`, with the recomputed one."""
    bound = next((b for b in _BOUNDS if stated.startswith(b)), None)
    if bound:
        holds = _BOUNDS[bound](recomputed, number(stated.removeprefix(bound))[0])
        why = f"{stated} {'holds' if holds else 'does not hold'}"
        return Verdict(recomputed, 0.0, holds, holds, why)
    target, half = number(stated)
    off, tolerance, jitter = abs(recomputed - target), half + slack, 1e-9 * (1 + abs(target))
    exact, agrees = off <= half + jitter, off <= tolerance + jitter
    why = "as stated" if exact else f"off by {off:.3g}, rounding allows {tolerance:.3g}"
    return Verdict(recomputed, tolerance, exact, agrees, why)


def _walk(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as constant) if not isinstance(constant, bool):
            return float(constant)
        case ast.Name(id=name) if name in values:
            return values[name]
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_walk(inner, values)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_walk(left, values), _walk(right, values))
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as args, keywords=[]):
            if name in FUNCTIONS:
                return float(FUNCTIONS[name](*(_walk(arg, values) for arg in args)))
    raise FormulaError(f"not allowed in a formula: {ast.unparse(node)!r}")
