"""A run directory: how far its training is, and the newest model in it. Nothing is locked."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse_cli.config import InfoConfig
from diffuse_cli.config.options import read_toml
from diffuse_cli.models.model_report import ModelReport, inspect_model
from diffuse_cli.system import outputs, run_reader
from diffuse_cli.system.errors import ModelFileError
from diffuse_cli.system.events import Notice, Work

LOGGED = ("loss", "held_out_loss", "images_per_second")


@dataclass(frozen=True)
class RunReport:
    """The state of a run.

    Attributes:
        process: the number of the process that trains it; None if none does.
        step, steps: the last one that is known of, and how many there will be.
        loss, held_out_loss, images_per_second: the last that were logged.
        seconds_left: at that speed, while a process trains it.
        resume: what to type to go on; None if it is under way or finished.
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
        """As plain values."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"kind": "run", **values, "model": self.model.to_dict() if self.model else None}


def inspect_run(config: InfoConfig, run: Path) -> Work[RunReport]:
    """Describe a run directory. Yields `Notice`.

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
    settings = read_toml(run / run_reader.CONFIG)
    steps, batch = settings.get("steps"), settings.get("batch_size")
    if not isinstance(steps, int) or not isinstance(batch, int):
        raise ModelFileError(
            f"{config.path}: its {run_reader.CONFIG} has no steps or no batch size"
        )
    rows = list(run_reader.rows(run / run_reader.METRICS))
    last = {name: run_reader.last(rows, name) for name in LOGGED}
    step = int(max([row["step"] for row in rows] + [model.step if model else 0]))
    process, speed = outputs.holder(run / run_reader.LOCK), last["images_per_second"]
    again = run_reader.resume_line(str(settings.get("data")), str(run_reader.model_of(run)))
    return RunReport(
        path=config.path,
        process=process,
        step=step,
        steps=steps,
        **last,
        seconds_left=(steps - step) * batch / speed if process and speed else None,
        resume=again if process is None and step < steps else None,
        model=model,
    )
