"""What tests of the training share: images to change, and what stands in for slow parts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from diffuse_cli.training import monitor, previews


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    """The images, to be changed."""
    return shutil.copytree(images, tmp_path / "own")


def measure_by_step(
    patch: pytest.MonkeyPatch, kids: Mapping[int, float], before: Callable[[int], Any]
) -> None:
    """Let evaluations find KIDs by the number of updates behind the EMA weights, of which each is
    passed to `before`."""

    def measure(self: monitor.Monitor) -> Generator[Any, Any, dict[str, float]]:
        yield from ()
        step = self.trainer.ema.updates
        before(step)
        return {"kid": kids.get(step, 1.0), "kid_standard_error": 0.01}

    patch.setattr(monitor.Monitor, "_measure", measure)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks without a picture."""

    def draw(trainer: Any) -> Iterator[None]:
        yield from ()

    monkeypatch.setattr(previews, "draw_preview", draw)


@pytest.fixture(scope="session")
def negatives(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The negative of each image, under its name."""
    folder = tmp_path_factory.mktemp("negatives") / "negatives"
    for path in images.rglob("*.png"):
        there = folder / path.relative_to(images)
        there.parent.mkdir(parents=True, exist_ok=True)
        ImageOps.invert(Image.open(path)).save(there)
    return folder
