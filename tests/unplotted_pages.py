"""Pages whose plots are made but not drawn, for tests of what else is on them."""

from __future__ import annotations

from typing import Any
from unittest.mock import MagicMock

import pytest
from markupsafe import Markup

from diffuse_cli.pages import charts


class Undrawn:
    """Stands in for `charts.Plot`: an element with nothing but its label."""

    def __init__(self, name: str, *place: Any, **places: Any) -> None:
        self.axes = MagicMock()

    def svg(self, label: str) -> Markup:
        return Markup('<svg role="img" aria-label="{}"></svg>').format(label)


def undraw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten plots are two thirds of what a page takes."""
    monkeypatch.setattr(charts, "Plot", Undrawn)
