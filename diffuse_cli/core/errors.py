"""The core's error, and look-ups that raise it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TypeVar

T = TypeVar("T")


class InvalidArgument(ValueError):
    """A wrong argument.

    Attributes:
        argument: its name; empty if several are to blame.
        problem: what is wrong; if there is an argument, the text that follows its name.
        hint: what to do instead.
    """

    def __init__(self, problem: str, hint: str = "", *, argument: str = "") -> None:
        super().__init__(problem)
        self.argument, self.problem, self.hint = argument, problem, hint

    def message(self, name: str) -> str:
        """What is wrong, with the argument called `name`."""
        if not self.argument:
            return self.problem
        return f"{name}{'' if self.problem.startswith(':') else ' '}{self.problem}"

    def __str__(self) -> str:
        text = self.message(self.argument)
        return f"{text}. {self.hint}" if self.hint else text


def suggest(name: str, names: Iterable[str]) -> str:
    """A hint after an unknown name: the nearest known one, or all of them."""
    names = list(names)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f"Did you mean '{near[0]}'?"
    return "Choose from: " + ", ".join(names)


def lookup(table: Mapping[str, T], name: str, argument: str) -> T:
    """`table[name]`.

    Raises:
        InvalidArgument: no such entry; the hint names the nearest, or all.
    """
    try:
        return table[name]
    except KeyError:
        raise InvalidArgument(
            f": there is no '{name}'", suggest(name, table), argument=argument
        ) from None
