"""Choice of what to inspect, and the reports of a model file and of a run."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.commands._cli import format_seconds, format_speed
from diffuse_cli.commands._cli.model_facts import model_rows
from diffuse_cli.commands.info.reports import DataReport, inspect_data
from diffuse_cli.config import options
from diffuse_cli.config.shared_options import InfoConfig
from diffuse_cli.data import is_images
from diffuse_cli.data.sources import is_sample
from diffuse_cli.media import MEDIA
from diffuse_cli.media.file_errors import stat_of
from diffuse_cli.metrics import Measurement
from diffuse_cli.system import (
    DataError,
    ModelFileError,
    Notice,
    Progress,
    Table,
    UsageError,
    Work,
    files,
    hub_models,
    outputs,
    run_reader,
)

if TYPE_CHECKING:
    from diffuse_cli.models.model_file import ModelFile

HINT = "PATH is a folder or an archive of images, a model file or a run directory"


def inspect(config: InfoConfig) -> Work[DataReport | ModelReport | RunReport]:
    """Describe what is at the path. Yields `Progress` and `Notice`.

    Raises:
        DataError: there is nothing, neither folder nor regular file, or no usable image.
        ModelFileError: the file is not a model file.
        UsageError: an option does not suit it.
        OutputError: the contact sheet cannot be written.
    """
    path = Path(config.path)
    path = path if hub_models.is_name(path) else run_reader.name_path(path)
    if is_images(path) or is_sample(path):
        if config.toml:
            text = f"--toml is for model files, and {files.show(config.path)} holds images"
            raise UsageError(text, code="option_unsuited")
        _check_sheet_path(config)
        return (yield from inspect_data(config))
    if not hub_models.is_name(path):
        mode = stat_of(path, "file or folder", HINT).st_mode
        if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
            text = f"neither a folder nor a regular file: {files.show(path)}"
            raise DataError(text, HINT, code="data_unsupported", path=path)
        if run_reader.find_run(path) == path:
            return (yield from inspect_run(config, path))
    return (yield from inspect_model(config))


def _check_sheet_path(config: InfoConfig) -> None:
    """Refuse a contact sheet that would become one of the images."""
    target, data = Path(config.out or "").resolve(), Path(config.path).resolve()
    if config.out is not None and data in (target, *target.parents):
        where = f"-o {files.show(config.out)} is in {files.show(config.path)}"
        text = f"{where}, where it would be one of the images"
        hint, code = "Write it elsewhere", "output_is_input"
        raise UsageError(text, hint, code=code, option="-o", path=config.out)


# -- model ----------------------------------------------------------------------------------------

IMAGES_ONLY = (
    "size", "background", "fit", "layout", "alpha", "bits", "rate", "out", "workers", "strict",
)  # fmt: skip
"""Options that apply only to images."""


@dataclass(frozen=True)
class ModelReport:
    """A model file.

    Attributes:
        config: what `train --config` reads, with --toml.
        out: the file it was written to.
    """

    file: ModelFile
    config: dict[str, Any] | None = None
    out: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        toml = {"config": self.config, "toml": str(self.out) if self.out else None}
        return {**self.file.facts(), **(toml if self.config else {})}

    def list_parts(self) -> list[str | Table]:
        """Return the configuration, or the file it was written to, or else the facts as text."""
        if self.config:
            if self.out:
                return [files.show(str(self.out))]
            # `show` writes these as \x.., which TOML does not know.
            hidden = re.compile(r"[\x7f-\xa0\xad\u2028\u2029]")
            text = hidden.sub(lambda match: f"\\u{ord(match[0]):04x}", options.to_toml(self.config))
            return [files.show(line) for line in text.splitlines()]
        return [Table(model_rows(self.file), head=False)]


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
            path = files.show(Path(config.path))
            text = f"{flag} is for images, and {path} is a model"
            raise UsageError(text, code="option_unsuited", option=flag)
    from diffuse_cli.models import model_file

    with outputs.claim_option(config, "out", ".toml") as out:
        yield Progress("reading model", 0, 1)
        file = yield from model_file.find(config.path)
        training = file.training_config() if config.toml else None
        if out and training:
            files.write_text(out, options.to_toml(training))
    yield Progress("reading model", 1, 1)
    return ModelReport(file, training, out)


# -- run ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunReport:
    """The state of a run.

    Attributes:
        process: the number of the process that trains it; None if none does.
        step, steps: the last one that is known of, and how many there will be.
        loss, held_out_loss, images_per_second: the last that were logged.
        seconds_left: at that speed, while a process trains it.
        resume: the command that resumes it; None if it is running or finished.
        model: None if there is no complete checkpoint yet.
    """

    path: str
    process: int | None
    step: int
    steps: int
    loss: float | None
    held_out_loss: float | None
    images_per_second: float | None
    seconds_left: float | None
    resume: str | None
    model: ModelReport | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        model = self.model.to_dict() if self.model else None
        return {"kind": "run", **vars(self), "model": model}

    def list_parts(self) -> list[str | Table]:
        """Return a table of the state, and of the facts of the model."""
        if self.model and self.model.config:
            return self.model.list_parts()
        if self.process is not None:
            state = f"running in process {self.process}"
            if self.seconds_left is not None:
                state += f", {format_seconds(self.seconds_left)} left"
        else:
            state = "finished" if self.step >= self.steps else "stopped"
        file = self.model.file if self.model else None
        many = MEDIA[file.model.blueprint.space.medium].many if file else "samples"
        held, speed = self.held_out_loss, self.images_per_second
        losses = [str(Measurement(self.loss))] if self.loss is not None else []
        losses += [f"held-out {Measurement(held)}"] if held is not None else []
        rows = [
            ("run", files.show(self.path)),
            ("progress", f"step {self.step:,} of {self.steps:,}, {state}"),
            ("loss", ", ".join(losses) or "none yet"),
            ("speed", f"{format_speed(speed)} {many}/s" if speed is not None else "none yet"),
            *([("resume with", files.show(self.resume))] if self.resume else []),
        ]
        return [Table(rows + (model_rows(file) if file else []), head=False)]


def inspect_run(config: InfoConfig, run: Path) -> Work[RunReport]:
    """Describe a run directory: its training and its newest model. Nothing is locked. Yields
    `Notice`.

    Raises:
        ModelFileError: its configuration has no steps.
        UsageError: an option is for images.
    """
    model = None
    try:
        model = yield from inspect_model(config)
    except ModelFileError as error:
        if config.toml:
            raise
        yield Notice(str(error), warning=True)
    settings = options.read_toml(run / run_reader.CONFIG, "the run's")
    steps, batch = settings.get("steps"), settings.get("batch_size")
    if not isinstance(steps, int) or not isinstance(batch, int):
        text = f"{config.path}: its {run_reader.CONFIG} has no steps or no batch size"
        raise ModelFileError(text, code="config_unreadable", path=run / run_reader.CONFIG)
    rows = list(run_reader.read_log(run / run_reader.METRICS))
    speed = run_reader.last_value(rows, "images_per_second")
    step = int(max([row["step"] for row in rows] + [model.file.model.step if model else 0]))
    process = outputs.holder(run / run_reader.LOCK)
    again = run_reader.resume_line(str(settings.get("data")), str(run_reader.model_path(run)))
    return RunReport(
        path=config.path,
        process=process,
        step=step,
        steps=steps,
        loss=run_reader.last_value(rows, "loss"),
        held_out_loss=run_reader.last_value(rows, "held_out_loss"),
        images_per_second=speed,
        seconds_left=(steps - step) * batch / speed if process and speed else None,
        resume=again if process is None and step < steps else None,
        model=model,
    )
