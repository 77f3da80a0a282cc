"""Every kind of model, made in two steps, and the data that each is trained on."""

from __future__ import annotations

import csv
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conftest import in_process
from PIL import Image

COUNT = 80
"""Samples of a data set, of which some are held out."""

RECIPE = """\
batch_size = 4
precision = "fp32"
lr = 0.001
warmup = 0
num_timesteps = 1000
preview_every = 100000
keep_raw = true
"""

UNET = """\
[unet]
width = 8
multipliers = [1]
blocks = 1
attention = []
groups = 4
"""

VIT = """\
[vit]
patch = 4
width = 8
depth = 1
head_width = 8
context = 0
"""


def soft(channels: int, top: float, *size: int, seed: int = 10) -> np.ndarray:
    """Soft numbers from 0 to `top`, (COUNT, channels, *size)."""
    draw = np.random.default_rng(seed)
    values = draw.normal(0.5, 0.05, (COUNT, channels, *size))
    values += draw.uniform(-0.3, 0.3, (COUNT, channels, *[1] * len(size)))
    return values.clip(0, 1) * top


def pictures(folder: Path, values: np.ndarray, suffix: str = ".png") -> None:
    """Write each as an image, every other one in another class."""
    for k, image in enumerate(values):
        path = folder / ("dark", "light")[k % 2] / f"{k:02d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = np.moveaxis(image, 0, -1)
        Image.fromarray(whole[..., 0] if len(image) == 1 else whole).save(path)


def write_grey(folder: Path) -> None:
    """Images of two classes with a table of a number and a label."""
    values = soft(1, 255, 8, 8).astype(np.uint8)
    pictures(folder, values)
    rows = [
        (f"{('dark', 'light')[k % 2]}/{k:02d}.png", float(image.mean()), "ab"[k // 2 % 2])
        for k, image in enumerate(values)
    ]
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "level", "side"), *rows])


def write_beside(folder: Path) -> None:
    """The negatives of the images of `write_grey`."""
    pictures(folder, 255 - soft(1, 255, 8, 8).astype(np.uint8))


def write_clear(folder: Path) -> None:
    """Colored images with transparency."""
    pictures(folder, soft(4, 255, 8, 8).astype(np.uint8))


def write_deep(folder: Path) -> None:
    """Grey images of 16 bits."""
    pictures(folder, soft(1, 65_535, 8, 8).astype(np.uint16))


def write_pages(folder: Path) -> None:
    """TIFFs of three pages."""
    folder.mkdir()
    for k, image in enumerate(soft(3, 255, 8, 8).astype(np.uint8)):
        first, *others = map(Image.fromarray, image)
        first.save(folder / f"{k:02d}.tiff", save_all=True, append_images=others)


def write_fields(folder: Path) -> None:
    """Arrays of two channels of floats."""
    folder.mkdir()
    for k, field in enumerate(soft(2, 40, 8, 8).astype(np.float32)):
        np.save(folder / f"{k:02d}.npy", field)


def write_sounds(folder: Path) -> None:
    """Sounds of 256 samples: those of models are a multiple of that."""
    folder.mkdir()
    for k, sound in enumerate(soft(1, 2**15, 256)):
        with wave.open(str(folder / f"{k:02d}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes((sound[0] - 2**14).astype("<i2").tobytes())


DATA: dict[str, Callable[[Path], None]] = {
    "grey": write_grey,
    "beside": write_beside,
    "clear": write_clear,
    "deep": write_deep,
    "pages": write_pages,
    "fields": write_fields,
    "sounds": write_sounds,
}


@dataclass(frozen=True)
class Kind:
    """A kind of model.

    Attributes:
        options: of `train`, or of `distill` where there is a teacher.
        data: what it is trained on, one of `DATA`.
        beside: what lies beside that.
        teacher: the kind that it is distilled from.
        network: the network's settings.
    """

    options: tuple[Any, ...] = ()
    data: str = "grey"
    beside: str = ""
    teacher: str = ""
    network: str = UNET


KINDS: dict[str, Kind] = {
    "unconditional": Kind(),
    "classes": Kind(("--classes", "--augment", "flip,rotate")),
    "table": Kind(("--condition-on", "level,side")),
    "pairs": Kind(("--augment", "shift,zoom"), beside="beside"),
    "degraded": Kind(("--given", "low-res:2", "--augment", "color")),
    "learned variance": Kind(("--variance", "learned")),
    "distilled": Kind(teacher="unconditional"),
    "flow": Kind(("--schedule", "flow", "--target", "flow")),
    "alpha": Kind(("--alpha",), "clear"),
    "16 bits": Kind(data="deep"),
    "array": Kind(("--augment", "flip,shift"), "fields"),
    "sound": Kind(("--augment", "gain,shift"), "sounds"),
    "stack": Kind(("--layout", "pages"), "pages"),
    "vit": Kind(("--target", "v"), network=VIT),
    "keep-weak": Kind(("--keep-weak",)),
}


class Workshop:
    """Makes models and their data when they are first asked for, each once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def data(self, name: str) -> Path:
        """The folder of a data set."""
        path = self.folder / "data" / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            DATA[name](path)
        return path

    def sample(self, name: str, k: int = 0) -> Path:
        """The k-th file of a data set."""
        files = (path for path in self.data(name).rglob("*") if path.suffix not in ("", ".csv"))
        return sorted(files)[k]

    def beside(self, kind: Kind) -> tuple[Any, ...]:
        """What says which images lie beside DATA."""
        return ("--given", self.data(kind.beside)) if kind.beside else ()

    def model(self, name: str) -> Path:
        """The model file of a kind, with its run directory."""
        kind, out = KINDS[name], self.folder / name.replace(" ", "-") / "model.safetensors"
        if out.exists():
            return out
        out.parent.mkdir()
        recipe = out.with_name("recipe.toml")
        recipe.write_text(RECIPE + ("ema_lengths = 4\n" if not kind.teacher else "") + kind.network)
        data = self.data(kind.data)
        line: tuple[Any, ...]
        if kind.teacher:
            line = ("distill", self.model(kind.teacher), data, "--precision", "fp32")
        else:
            line = ("train", data, "--config", recipe, *self.beside(kind))
        assert in_process([*line, *kind.options, "--steps", 4, "-o", out, "-q"]) == 0
        return out
