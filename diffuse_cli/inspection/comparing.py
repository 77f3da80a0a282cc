"""Two runs or models side by side: settings, losses, and their evaluations on the same images."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli import files
from diffuse_cli.config import CompareConfig, TrainConfig
from diffuse_cli.config.training import from_file, to_file
from diffuse_cli.errors import ModelFileError
from diffuse_cli.events import Work
from diffuse_cli.inspection.model import kind_of, training_config
from diffuse_cli.options import from_dict, options, read_toml
from diffuse_cli.runtime import machine_or, rank

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffuse_cli.evaluation.comparing import BothMeasured
    from diffuse_cli.modelfile import Model

RUN, CONFIG, LOG = ".run", "config.toml", "metrics.jsonl"

MEANT = (
    "size", "channels", "medium", "background", "classes", "schedule", "betas", "num_timesteps",
    "zero_terminal_snr", "target", "variance", "loss", "weighting",
)  # fmt: skip
"""Settings without which two losses are not of the same quantity."""

PLACES = tuple(f.name for f, spec in options(TrainConfig) if spec.place)


@dataclass(frozen=True)
class Subject:
    """A run or a model. Settings and versions of a model file are untrusted; escape them.

    Attributes:
        settings: its training's, by name; those of the network as `unet.width`.
        places: those of the run alone, such as its data; None without a run directory.
        model: None if the run has not written one.
        step, steps: of the model or the run, and of the whole training.
        loss, held_out_loss: the last ones logged up to that step.
        lowest_held_out_loss, lowest_kid: with their steps.
    """

    path: str
    settings: Mapping[str, Any]
    places: Mapping[str, Any] | None
    model: Model | None
    step: int
    steps: int
    loss: float | None
    held_out_loss: float | None
    lowest_held_out_loss: dict[str, float] | None
    lowest_kid: dict[str, float] | None

    @property
    def parameters(self) -> int | None:
        """Of the network."""
        return sum(tensor.numel() for tensor in self.model.ema.values()) if self.model else None

    @property
    def data(self) -> Mapping[str, Any]:
        """What the model file says of the training data."""
        return self.model.data if self.model else {}

    def to_dict(self) -> dict[str, Any]:
        """As plain values, without the settings."""
        values = {k: v for k, v in vars(self).items() if k not in ("settings", "places", "model")}
        versions = dict(self.model.versions) if self.model else None
        facts = {"parameters": self.parameters, "data": dict(self.data), "versions": versions}
        return {**values, **facts}


@dataclass(frozen=True)
class Comparison:
    """Two subjects.

    Attributes:
        settings: of A and of B where they differ; None where one has none.
        remarks: why numbers cannot be compared.
        measured: with DATA, where both draw the same kind of samples.
    """

    a: Subject
    b: Subject
    settings: dict[str, tuple[Any, Any]]
    remarks: tuple[str, ...]
    measured: BothMeasured | None


def compare(
    config: CompareConfig, accelerator: Accelerator | None = None
) -> Work[Comparison | None]:
    """Compare two runs or models. Yields `Progress` and `Notice`.

    Args:
        accelerator: that of the caller, if it has one.

    Returns:
        None on all processes but the first.

    Raises:
        ModelFileError: neither a model file nor a run, or DATA with a run without a model.
        DataError, UsageError: DATA or an option cannot be used.
    """
    a, b = (_subject(path) for path in (config.a, config.b))
    with_places = a.places is not None and b.places is not None
    ours, theirs = (
        {**(side.places or {} if with_places else {}), **side.settings} for side in (a, b)
    )
    differing = {
        name: (ours.get(name), theirs.get(name))
        for name in {**ours, **theirs}
        if ours.get(name) != theirs.get(name)
    }
    remarks, measured = [*_about_losses(a, b, differing)], None
    if config.data is not None:
        models = [_needed(side) for side in (a, b)]
        spaces = [model.blueprint.space for model in models]
        if spaces[0] != spaces[1]:
            kinds = [kind_of(space) for space in spaces]
            remarks.append(
                f"the metrics cannot be compared: samples of A are {kinds[0]}, and of B {kinds[1]}"
            )
        else:
            measured = yield from _measured(config, models, accelerator)
    if rank() > 0:
        return None
    return Comparison(a, b, differing, tuple(remarks), measured)


def _measured(
    config: CompareConfig, models: list[Model], accelerator: Accelerator | None
) -> Work[BothMeasured | None]:
    from diffuse_cli.evaluation.comparing import measure_both
    from diffuse_cli.sampling import Loaded, ready

    with machine_or(accelerator, config.precision) as accelerator:
        loaded = [
            Loaded(model, ready(model, config.weights, accelerator), files.sha256(_file_of(path)))
            for path, model in zip((config.a, config.b), models, strict=True)
        ]
        return (yield from measure_both(config, loaded, accelerator))


def _about_losses(a: Subject, b: Subject, differing: Mapping[str, Any]) -> Iterator[str]:
    """Whether the losses of two subjects are of the same quantity."""
    if a.loss is None or b.loss is None:
        return
    names = [name for name in MEANT if name in differing]
    prints = [side.data.get("fingerprint") for side in (a, b)]
    if prints[0] != prints[1] and None not in prints:
        names.append("training images")
    if names:
        yield f"the losses cannot be compared, as these differ: {', '.join(names)}"


# -- reading --------------------------------------------------------------------------------------


def _file_of(path: str) -> Path:
    """The model file at a path, or that of the run directory there."""
    given = Path(path)
    is_run = given.suffix == RUN and (given / CONFIG).is_file()
    return given.with_suffix(".safetensors") if is_run else given


def _needed(side: Subject) -> Model:
    if side.model is None:
        raise ModelFileError(
            f"{files.show(side.path)} has no model file yet", "Leave out DATA, or let it finish"
        )
    return side.model


def _subject(path: str) -> Subject:
    """Read a model file, a run directory, or both where they lie side by side."""
    from diffuse_cli import modelfile
    from diffuse_cli.training.rundir import run_of

    file = _file_of(path)
    unfinished = file != Path(path) and not file.exists()
    model = None if unfinished else modelfile.load(file)
    run, places = run_of(file), None
    settings = _flat(training_config(file)) if model else {}
    if (run / CONFIG).is_file():
        own = from_dict(TrainConfig, from_file(read_toml(run / CONFIG)), str(run / CONFIG))
        of_run = _flat(to_file(own, control=False))
        places = {name: of_run.pop(name) for name in PLACES if name in of_run}
        settings = settings or of_run
    rows = [row for row in _rows(run / LOG) if model is None or row["step"] <= model.step]
    return Subject(
        path=path,
        settings=settings,
        places=places,
        model=model,
        step=model.step if model else max((int(row["step"]) for row in rows), default=0),
        steps=settings["steps"],
        loss=_last(rows, "loss"),
        held_out_loss=_last(rows, "held_out_loss"),
        lowest_held_out_loss=_lowest(rows, "held_out_loss"),
        lowest_kid=_lowest(rows, "kid"),
    )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of a table under `table.name`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        table = value if isinstance(value, Mapping) else None
        flat |= {f"{name}.{k}": v for k, v in table.items()} if table is not None else {name: value}
    return flat


def _rows(log: Path) -> Iterator[dict[str, Any]]:
    """The lines of a log that have a step; others, such as a torn one, are skipped."""
    with contextlib.suppress(OSError), log.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, RecursionError):
                row = json.loads(line)
                if isinstance(row, dict) and _finite(row.get("step")) is not None:
                    yield row


def _finite(value: Any) -> float | None:
    """A number of a log; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) < 1e300 and math.isfinite(value) else None


def _last(rows: list[dict[str, Any]], name: str) -> float | None:
    found = [value for row in rows if (value := _finite(row.get(name))) is not None]
    return found[-1] if found else None


def _lowest(rows: list[dict[str, Any]], name: str) -> dict[str, float] | None:
    """The lowest number of this name with its error, if it has one, and its step."""
    found = [(v, row) for row in rows if (v := _finite(row.get(name))) is not None]
    if not found:
        return None
    value, row = min(found, key=lambda each: each[0])
    error = _finite(row.get(f"{name}_standard_error"))
    return {"value": value, "step": row["step"]} | ({"standard_error": error} if error else {})
