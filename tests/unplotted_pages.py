"""Pages whose plots are made but not drawn, for tests of what else is on them: drawing takes two
thirds of a page's time, and a third of a short run's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from markupsafe import Markup


class Anything:
    """Has every attribute, method and item, each of which is itself; it holds none."""

    def __getattr__(self, name: str) -> Anything:
        return self

    __call__ = __getitem__ = lambda self, *given, **named: self

    def __iter__(self) -> Iterator[Any]:
        return iter(())


class Undrawn:
    """Stands in for `charts.Plot`: an element with nothing but its label."""

    def __init__(self, name: str, *place: Any, **places: Any) -> None:
        self.axes = Anything()

    def svg(self, label: str) -> Markup:
        return Markup('<svg role="img" aria-label="{}"></svg>').format(label)
