"""A model file: what it says of itself, once it has been checked as `sample` checks it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse_cli import files
from diffuse_cli.config import InfoConfig, SamplerChoice
from diffuse_cli.core.settings import to_dict as plain
from diffuse_cli.diffusion import Blueprint
from diffuse_cli.errors import UsageError
from diffuse_cli.events import Progress, Work
from diffuse_cli.options import to_dict

TASK = "reading model"

IMAGES_ONLY = ("size", "background", "out", "workers", "strict")
"""Options that say how images are read or shown."""


@dataclass(frozen=True)
class ModelReport:
    """What a model file says. All from `title` on is the file's own word; escape its strings.

    Attributes:
        size_bytes, sha256: of the file.
        parameters: numbers in the network.
        raw: whether the weights before averaging are there too.
        classes: what `sample --class` takes, none for a model that draws without classes.
        sampling: the recommended setting, where there is one.
        title: `modelspec.title`, empty where there is none.
    """

    path: str
    size_bytes: int
    sha256: str
    parameters: int
    raw: bool
    title: str
    blueprint: Blueprint
    step: int
    classes: tuple[str, ...]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    sampling: SamplerChoice | None
    versions: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        own = self.blueprint
        values = {name: value for name, value in vars(self).items() if name != "blueprint"}
        values |= {
            "space": plain(own.space),
            "network": {"name": own.network, **plain(own.config)},
            "diffusion": to_dict(own.diffusion),
        }
        values["sampling"] = to_dict(self.sampling) if self.sampling else None
        return {"kind": "model", **values}


def inspect_model(config: InfoConfig) -> Work[ModelReport]:
    """Read a model file and say what it is.

    Raises:
        ModelFileError: it is not a whole and sane model file.
        UsageError: an option that is about images.
    """
    path = Path(config.path)
    for name in IMAGES_ONLY:
        if getattr(config, name) not in (None, False):
            flag = {"out": "-o"}.get(name, f"--{name}")
            raise UsageError(f"{flag} is about images, and {files.show(path)} is a model file")
    from diffuse_cli import modelfile

    yield Progress(TASK, 0, 1)
    model = modelfile.load(path)
    yield Progress(TASK, 1, 1)
    return ModelReport(
        path=config.path,
        size_bytes=path.stat().st_size,
        sha256=files.sha256(path),
        parameters=sum(tensor.numel() for tensor in model.ema.values()),
        raw=model.raw is not None,
        title=modelfile.read_metadata(path).get("modelspec.title", ""),
        blueprint=model.blueprint,
        step=model.step,
        classes=model.blueprint.conditions.classes,
        data=model.data,
        training=model.training,
        sampling=model.sampling,
        versions=model.versions,
    )
