"""Formulas over printed numbers: values, rounding, verdicts, and nothing that runs as code."""

from __future__ import annotations

import pytest

from ovss.reporting.cell_arithmetic import FormulaError, evaluate, filled, judge, number


@pytest.mark.parametrize(
    ("text", "value", "half"),
    [("69.8", 69.8, 0.05), ("50.0", 50.0, 0.05), ("8", 8, 0.5), ("67.73", 67.73, 0.005),
     ("403.4M", 403.4e6, 5e4), ("1.5k", 1500, 50), ("119K", 119e3, 500), ("5e-4", 5e-4, 5e-5)],
)  # fmt: skip
def test_a_printed_number_knows_its_last_digit(text: str, value: float, half: float) -> None:
    assert number(text) == (pytest.approx(value), pytest.approx(half))


@pytest.mark.parametrize("text", ["", "M", "yes", "69,8", "nan", "inf", "~336×468", "400M+4M"])
def test_what_is_no_number_is_an_error(text: str) -> None:
    with pytest.raises(FormulaError):
        number(text)


CELLS = {"a:b": "3.0", "c d | e": "1.0", "f": "0.5"}


@pytest.mark.parametrize(
    ("formula", "value", "slack"),
    [
        ("[a:b] - [c d | e]", 2.0, 0.10),
        ("[a:b]", 3.0, 0.0),
        ("-[a:b] + 1", -2.0, 0.05),
        ("mean([a:b], [c d | e])", 2.0, 0.05),
        ("100 * [a:b] / [c d | e]", 300.0, 5.0 + 300 - 300 / 1.05),
        ("[a:b] - [a:b]", 0.0, 0.0),
        ("log10(100)", 2.0, 0.0),
        ("rank([c d | e], [a:b], [f], 1)", 2.0, 0.0),
        ("wins([a:b], [c d | e], [f], 3)", 2.0, 1.0),
    ],
)
def test_value_and_slack(formula: str, value: float, slack: float) -> None:
    assert evaluate(formula, CELLS.__getitem__) == (pytest.approx(value), pytest.approx(slack))


@pytest.mark.parametrize(
    "formula",
    ["", "1 +", "2 ** 3", "x", "abs(-1)", "mean()", "mean(x=1)", "(1).real", "True", "'a'",
     "__import__('os')", "[1 for _ in [a:b]]", "1 if 1 else 2", "print(1)", "1; 2", "1 / 0",
     "log10(1, 2)"],
)  # fmt: skip
def test_only_arithmetic_is_a_formula(formula: str) -> None:
    with pytest.raises((FormulaError, KeyError)):
        evaluate(formula, CELLS.__getitem__)


def test_filled_shows_the_printed_digits() -> None:
    assert filled("[a:b] - mean([f], 1)", CELLS.__getitem__) == "3.0 - mean(0.5, 1)"


@pytest.mark.parametrize(
    ("stated", "recomputed", "slack", "exact", "agrees"),
    [
        ("9.2", 9.2, 0.1, True, True),
        ("9.2", 9.2499, 0.1, True, True),
        ("9.2", 9.3, 0.1, False, True),
        ("9.2", 9.1 - 0.05, 0.1, False, True),
        ("9.2", 9.4, 0.1, False, False),
        ("9.2", 9.3, 0.0, False, False),
        ("<=2", 3, 9.0, False, False),
        (">=1M", 1e6, 0.0, True, True),
        (">0", 0.0, 0.0, False, False),
        ("<0", -0.1, 0.0, True, True),
    ],
)
def test_verdicts(stated: str, recomputed: float, slack: float, exact: bool, agrees: bool) -> None:
    verdict = judge(stated, recomputed, slack)
    assert (verdict.exact, verdict.agrees) == (exact, agrees)
    assert verdict.why
