"""A model file, checked as for `sample`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.config import InfoConfig, SamplerChoice, TrainConfig
from diffuse_cli.config.options import from_dict, to_dict, to_toml
from diffuse_cli.config.train_options import to_file
from diffuse_cli.core.settings import dimensions
from diffuse_cli.core.settings import to_dict as plain
from diffuse_cli.core.space import Space
from diffuse_cli.media import MEDIA
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system import files
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Progress, Work
from diffuse_cli.system.outputs import asked

if TYPE_CHECKING:
    from diffuse_cli.models.model_file import Found

TASK = "reading model"

IMAGES_ONLY = (
    "size", "background", "fit", "layout", "alpha", "bits", "rate", "out", "workers", "strict",
)  # fmt: skip
"""Options that apply to images alone."""


@dataclass(frozen=True)
class ModelReport:
    """The content of a model file. Strings from `title` on are untrusted; escape them.

    Attributes:
        size_bytes, sha256: of the file.
        parameters: of the network.
        raw: whether it has the weights before averaging.
        weak: the step of its early average, for `sample --guide-with self`, or None.
        title: `modelspec.title`, or empty.
        classes: for `sample --class`; empty for an unconditional model.
        sampling: the recommended setting.
        config: what `train --config` reads, with --toml.
        out: the file it was written to.
    """

    path: str
    size_bytes: int
    sha256: str
    parameters: int
    raw: bool
    weak: int | None
    title: str
    blueprint: Blueprint
    step: int
    classes: tuple[str, ...]
    data: Mapping[str, Any]
    training: Mapping[str, Any]
    sampling: SamplerChoice | None
    distilled: Mapping[str, Any] | None
    versions: Mapping[str, Any]
    config: dict[str, Any] | None = None
    out: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        values = dict(vars(self))
        own: Blueprint = values.pop("blueprint")
        out, config = values.pop("out"), values.pop("config")
        return {
            "kind": "model",
            **values,
            "space": plain(own.space),
            **({"given": plain(own.conditions.given)} if own.conditions.given else {}),
            **({"columns": plain(own.conditions.table)["columns"]} if own.conditions.table else {}),
            "network": {"name": own.network, **plain(own.config)},
            "diffusion": to_dict(own.diffusion),
            "sampling": to_dict(self.sampling) if self.sampling else None,
            **({"config": config, "toml": str(out) if out else None} if config else {}),
        }


def inspect_model(config: InfoConfig) -> Work[ModelReport]:
    """Read and describe a model: of a file, a checkpoint, or the newest of a run.

    Raises:
        ModelFileError: it is damaged, or not a model.
        UsageError: an option is for images.
        OutputError: the TOML cannot be written.
    """
    for name in IMAGES_ONLY:
        if getattr(config, name) not in (None, False) and not (name == "out" and config.toml):
            flag = "-o" if name == "out" else f"--{name}"
            shown = files.show(Path(config.path))
            raise UsageError(f"{flag} is for images, and {shown} is a model")
    from diffuse_cli.models import model_file

    with asked(config, "out", ".toml") as out:
        yield Progress(TASK, 0, 1)
        found = yield from model_file.find(config.path)
        training = training_config(found.path) if config.toml else None
        if out and training:
            files.write_text(out, to_toml(training))
    yield Progress(TASK, 1, 1)
    return replace(report_on(found), config=training, out=out)


def report_on(found: Found) -> ModelReport:
    """What is in a model file that was read."""
    model = found.model
    return ModelReport(
        path=str(found.path),
        size_bytes=found.size_bytes,
        sha256=found.sha256,
        parameters=sum(tensor.numel() for tensor in model.ema.values()),
        raw=model.raw is not None,
        weak=model.weak_step,
        title=found.title,
        blueprint=model.blueprint,
        step=model.step,
        classes=model.blueprint.conditions.classes,
        data=model.data,
        training=model.training,
        sampling=model.sampling,
        distilled=model.distilled,
        versions=model.versions,
    )


def training_config(path: Path) -> dict[str, Any]:
    """The configuration of a model's training, as `train --config` reads it; without paths.

    Raises:
        ModelFileError: as `model_file.read_training`.
    """
    from diffuse_cli.models import model_file

    config = from_dict(TrainConfig, {"data": "", **model_file.read_training(path)})
    return to_file(config, control=False, places=False)


def kind_of(space: Space) -> str:
    """What samples of a space are: `28x28, grey`, or `5120 at 8,000 Hz, mono`."""
    kinds = {1: "grey", 3: "colour", **getattr(MEDIA[space.medium], "KINDS", {})}
    rate = f" at {space.rate:,} Hz" if space.rate else ""
    kind = kinds.get(space.channels, f"{space.channels} channels")
    limits = ", levels {:,} to {:,}".format(*space.limits) if space.limits else ""
    return f"{dimensions(space.size)}{rate}, {kind}{limits}"
