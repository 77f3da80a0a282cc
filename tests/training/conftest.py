"""What tests of the training share: the quickest network, and runs of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from diffuse_cli.training import previews

QUICK = Path(__file__).with_name("quick.toml")


@pytest.fixture
def quick(diffuse: Callable[..., Any], images: Path) -> Callable[..., Any]:
    """Train the quickest network on the images: where nothing depends on which."""
    return lambda *arguments: diffuse("train", images, "--config", QUICK, *arguments)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks without a picture."""

    def draw(trainer: Any) -> Iterator[None]:
        yield from ()

    monkeypatch.setattr(previews, "draw_preview", draw)
