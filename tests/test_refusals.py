"""Command lines that are refused: the exit code, the code of the error, and its option.

Each line of `refusals/*.txt` is one refusal. Its message is one line on stderr, its error object is
stdout, and nothing is written. Words of a message are checked where the package makes it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from diffuse_cli.system.errors import CODES


class Refusal(NamedTuple):
    """A command line that is refused.

    Attributes:
        exit_code: the exit code.
        code: the code of the error, one of `CODES`.
        option: the option or `[table] key` that the error object names, or "-" if none.
        line: the command line after `diffuse`, in which {name} is an entry of the lab.
    """

    exit_code: int
    code: str
    option: str
    line: str


def read_refusals(path: Path) -> list[Refusal]:
    """Read the lines of a file except empty ones and comments."""
    lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
    rows = (re.fullmatch(r"(\d+) (\S+) ((?:\[\w+\] )?\S+) (.+)", line).groups() for line in lines)
    return [Refusal(int(exit_code), *rest) for exit_code, *rest in rows]


REFUSALS = [
    pytest.param(refusal, id=refusal.line)
    for path in sorted(Path(__file__).with_name("refusals").glob("*.txt"))
    for refusal in read_refusals(path)
]


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_has_its_code_and_writes_nothing(diffuse, lab, refusal):
    assert refusal.code in CODES
    ran = diffuse(*lab.line(refusal.line), "--json")
    error = ran.json["error"]
    found = (ran.code, error["code"], error["option"] or "-")
    assert found == (refusal.exit_code, refusal.code, refusal.option), error
    assert f"diffuse: {error['message']}" in ran.line
    assert error["hint"] or not refusal.code.startswith("unknown_")
    assert not [*Path().iterdir()]


def test_no_refusal_is_there_twice():
    lines = [parameter.values[0].line for parameter in REFUSALS]
    assert len({*lines}) == len(lines)
