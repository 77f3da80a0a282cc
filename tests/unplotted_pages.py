"""Pages whose plots are made but not drawn, for tests of what else is on them: drawing takes two
thirds of a page's time, and a third of a short run's."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

from markupsafe import Markup


class Undrawn:
    """Stands in for `charts.Plot`: an element with nothing but its label."""

    def __init__(self, name: str, *place: Any, **places: Any) -> None:
        self.axes = MagicMock()

    def svg(self, label: str) -> Markup:
        return Markup('<svg role="img" aria-label="{}"></svg>').format(label)
