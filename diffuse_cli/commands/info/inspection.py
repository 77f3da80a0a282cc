"""Choice of what to inspect, and the description of a model file and of a run."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from diffuse_cli.commands._cli import Report, format_seconds, format_speed
from diffuse_cli.commands._cli.model_facts import model_rows
from diffuse_cli.commands.info.reports import inspect_data
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


def inspect(config: InfoConfig) -> Work[Report]:
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
            return (yield from _inspect_run(config, path))
    _, report = yield from _inspect_model(config)
    return report


def _check_sheet_path(config: InfoConfig) -> None:
    """Refuse a contact sheet that would become one of the images."""
    target, data = Path(config.out or "").resolve(), Path(config.path).resolve()
    if config.out is not None and data in (target, *target.parents):
        where = f"-o {files.show(config.out)} is in {files.show(config.path)}"
        text = f"{where}, where it would be one of the images"
        hint, code = "Write it elsewhere", "output_is_input"
        raise UsageError(text, hint, code=code, option="-o", path=config.out)


# -- model ----------------------------------------------------------------------------------------

OF_MODELS = ("path", "toml", "overwrite")
"""Options that do not apply only to images."""


def _inspect_model(config: InfoConfig) -> Work[tuple[ModelFile, Report]]:
    """Read and describe a model: of a file, a checkpoint, or the newest of a run. With --toml, the
    lines are its training configuration, or the file that it was written to.

    Raises:
        ModelFileError: it is damaged, or not a model.
        UsageError: an option is for images.
        OutputError: the TOML cannot be written.
    """
    for name, flag in options.changed_flags(config).items():
        if name not in OF_MODELS and not (name == "out" and config.toml):
            flag = "-o" if name == "out" else flag
            text = f"{flag} is for images, and {files.show(Path(config.path))} is a model"
            raise UsageError(text, code="option_unsuited", option=flag)
    from diffuse_cli.models import model_file

    with outputs.claim_option(config.out, ".toml", config.overwrite) as out:
        yield Progress("reading model", 0, 1)
        file = yield from model_file.find(config.path)
        values = file.facts()
        parts: list[str | Table] = [Table(model_rows(file), head=False)]
        if config.toml:
            training = file.training_config()
            values |= {"config": training, "toml": str(out) if out else None}
            # `show` writes these as \x.., which TOML does not know.
            hidden = re.compile(r"[\x7f-\xa0\xad\u2028\u2029]")
            toml = options.to_toml(training)
            text = hidden.sub(lambda match: f"\\u{ord(match[0]):04x}", toml)
            parts = [*map(files.show, text.splitlines())]
            if out:
                files.write_text(out, toml)
                parts = [files.show(str(out))]
    yield Progress("reading model", 1, 1)
    return file, (values, parts)


# -- run ------------------------------------------------------------------------------------------


def _inspect_run(config: InfoConfig, run: Path) -> Work[Report]:
    """Describe a run directory: its training and its newest model. Nothing is locked. Yields
    `Notice`.

    Raises:
        ModelFileError: its configuration has no steps.
        UsageError: an option is for images.
    """
    file, model = None, None
    try:
        file, (model, parts) = yield from _inspect_model(config)
    except ModelFileError as error:
        if config.toml:
            raise
        yield Notice(str(error), warning=True)
    settings = options.read_toml(run / run_reader.CONFIG, "the run's")
    steps, batch = settings.get("steps"), settings.get("batch_size")
    if not isinstance(steps, int) or not isinstance(batch, int):
        text = f"{config.path}: its {run_reader.CONFIG} has no steps or no batch size"
        raise ModelFileError(text, code="config_unreadable", path=run / run_reader.CONFIG)
    log = list(run_reader.read_log(run / run_reader.METRICS))
    loss, held_out_loss, speed = (
        run_reader.last_value(log, name) for name in ("loss", "held_out_loss", "images_per_second")
    )
    step = int(max([row["step"] for row in log] + [file.model.step if file else 0]))
    process = outputs.holder(run / run_reader.LOCK)
    seconds_left = (steps - step) * batch / speed if process and speed else None
    again = run_reader.resume_line(str(settings.get("data")), str(run_reader.model_path(run)))
    resume = again if process is None and step < steps else None
    values = {
        "kind": "run",
        "path": config.path,
        "process": process,  # the number of the process that trains it
        "step": step,
        "steps": steps,
        "loss": loss,
        "held_out_loss": held_out_loss,
        "images_per_second": speed,
        "seconds_left": seconds_left,
        "resume": resume,
        "model": model,
    }
    if config.toml:
        return values, parts
    state = "finished" if step >= steps else "stopped"
    if process is not None:
        wait = f", {format_seconds(seconds_left)} left" if seconds_left is not None else ""
        state = f"running in process {process}{wait}"
    many = MEDIA[file.model.blueprint.space.medium].many if file else "samples"
    losses = [str(Measurement(loss))] if loss is not None else []
    losses += [f"held-out {Measurement(held_out_loss)}"] if held_out_loss is not None else []
    rows = [
        ("run", files.show(config.path)),
        ("progress", f"step {step:,} of {steps:,}, {state}"),
        ("loss", ", ".join(losses) or "none yet"),
        ("speed", f"{format_speed(speed)} {many}/s" if speed is not None else "none yet"),
        *([("resume with", files.show(resume))] if resume else []),
        *(model_rows(file) if file else []),
    ]
    return values, [Table(rows, head=False)]
