"""A model file, checked as for `sample`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.config import InfoConfig
from diffuse_cli.config.options import to_toml
from diffuse_cli.models.model_report import facts, training_config
from diffuse_cli.system import files
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Progress, Work
from diffuse_cli.system.outputs import asked

if TYPE_CHECKING:
    from diffuse_cli.models.model_file import Found

IMAGES_ONLY = (
    "size", "background", "fit", "layout", "alpha", "bits", "rate", "out", "workers", "strict",
)  # fmt: skip
"""Options that apply to images alone."""


@dataclass(frozen=True)
class ModelReport:
    """A model file.

    Attributes:
        config: what `train --config` reads, with --toml.
        out: the file it was written to.
    """

    found: Found
    config: dict[str, Any] | None = None
    out: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        toml = {"config": self.config, "toml": str(self.out) if self.out else None}
        return {**facts(self.found), **(toml if self.config else {})}


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
        yield Progress("reading model", 0, 1)
        found = yield from model_file.find(config.path)
        training = training_config(found.path) if config.toml else None
        if out and training:
            files.write_text(out, to_toml(training))
    yield Progress("reading model", 1, 1)
    return ModelReport(found, training, out)
