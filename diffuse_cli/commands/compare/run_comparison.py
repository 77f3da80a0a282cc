"""Two runs or models side by side: settings, losses, and their evaluations on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.config.eval_options import CompareConfig
from diffuse_cli.config.options import from_dict, options, read_toml
from diffuse_cli.config.train_options import TrainConfig, from_file, to_file
from diffuse_cli.metrics.features import KIDS
from diffuse_cli.models.model_report import facts, kind_of, training_config
from diffuse_cli.system import files, run_reader
from diffuse_cli.system.devices import machine
from diffuse_cli.system.errors import ModelFileError
from diffuse_cli.system.events import Work
from diffuse_cli.system.processes import rank

if TYPE_CHECKING:
    from diffuse_cli.evaluation.paired_comparison import BothMeasured
    from diffuse_cli.models.model_file import Found

HELD = ("path", "settings", "places", "found", "lowest")
"""Attributes of `Side` that are not printed as they are."""

MEANT = (
    "size", "channels", "medium", "background", "classes", "schedule", "betas", "num_timesteps",
    "log_snr_shift", "zero_terminal_snr", "target", "variance", "loss", "weighting",
)  # fmt: skip
"""Settings without which two losses are not of the same quantity."""

PLACES = tuple(f.name for f, spec in options(TrainConfig) if spec.place)


@dataclass(frozen=True)
class Side:
    """A run or a model. Settings and versions of a model file are untrusted; escape them.

    Attributes:
        settings: its training's, by name; those of the network as `unet.width`.
        places: those of the run alone, such as its data; None without a run directory.
        found: its model, or the newest of a run; None if it has none yet.
        step, steps: of the model or the run, and of the whole training.
        loss, held_out_loss: the last ones logged up to that step.
        lowest: the lowest held-out loss and KIDs by name, with their steps.
    """

    path: str
    settings: Mapping[str, Any]
    places: Mapping[str, Any] | None
    found: Found | None
    step: int
    steps: int
    loss: float | None
    held_out_loss: float | None
    lowest: Mapping[str, dict[str, float] | None]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts of the model file by name, empty without a model."""
        return facts(self.found) if self.found else {}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without the settings."""
        known = self.facts
        return {
            "path": self.path,
            "sha256": known.get("sha256"),
            **{k: v for k, v in vars(self).items() if k not in HELD},
            **{f"lowest_{name}": lowest for name, lowest in self.lowest.items()},
            "parameters": known.get("parameters"),
            "data": dict(known.get("data", {})),
            "versions": known.get("versions"),
        }


@dataclass(frozen=True)
class Comparison:
    """Two runs or models.

    Attributes:
        settings: of A and of B where they differ; None where one has none.
        remarks: why numbers cannot be compared.
        measured: with DATA, where both draw the same kind of samples.
    """

    a: Side
    b: Side
    settings: dict[str, tuple[Any, Any]]
    remarks: tuple[str, ...]
    measured: BothMeasured | None


def compare(config: CompareConfig) -> Work[Comparison | None]:
    """Compare two runs or models. Yields `Progress` and `Notice`.

    Returns:
        None on all processes but the first.

    Raises:
        ModelFileError: neither a model file nor a run, or DATA with a run without a model.
        DataError, UsageError: DATA or an option cannot be used.
    """
    a = yield from _side(config.a)
    b = yield from _side(config.b)
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
        sides = [_needed(side) for side in (a, b)]
        spaces = [found.model.blueprint.space for found in sides]
        if spaces[0] != spaces[1]:
            kinds = [kind_of(space) for space in spaces]
            remarks.append(
                f"the metrics cannot be compared: samples of A are {kinds[0]}, and of B {kinds[1]}"
            )
        else:
            measured = yield from _measured(config, sides)
    if rank() > 0:
        return None
    return Comparison(a, b, differing, tuple(remarks), measured)


def _measured(config: CompareConfig, sides: Sequence[Found]) -> Work[BothMeasured | None]:
    from diffuse_cli.evaluation.paired_comparison import measure_both
    from diffuse_cli.sampling.generation import load_denoiser

    with machine(config.precision, config.device) as accelerator:
        loaded = []
        for found in sides:
            own = config.weights, accelerator, config.precision
            loaded.append((yield from load_denoiser(found, *own, typed=False)))
        return (yield from measure_both(config, loaded, accelerator))


def _about_losses(a: Side, b: Side, differing: Mapping[str, Any]) -> Iterator[str]:
    """Whether the losses of two runs are of the same quantity."""
    if a.loss is None or b.loss is None:
        return
    names = [name for name in MEANT if name in differing]
    prints = [side.facts.get("data", {}).get("fingerprint") for side in (a, b)]
    if prints[0] != prints[1] and None not in prints:
        names.append("training images")
    if names:
        yield f"the losses cannot be compared, as these differ: {', '.join(names)}"


# -- reading --------------------------------------------------------------------------------------


def _needed(side: Side) -> Found:
    if side.found is None:
        raise ModelFileError(
            f"{files.show(side.path)} has no model yet",
            "Leave out DATA, or wait for its first checkpoint",
        )
    return side.found


def _side(path: str) -> Work[Side]:
    """Read a model file, a run directory, or both where they lie side by side."""
    from diffuse_cli.models import model_file

    given, places, found, settings = Path(path), None, None, {}
    run = run_reader.run_of(given)
    if (
        given != run
        or run_reader.complete(run / run_reader.CHECKPOINTS)
        or run_reader.model_of(run).exists()
    ):
        found = yield from model_file.find(given)
        settings = _flat(training_config(found.path))
    model = found.model if found else None
    if (run / run_reader.CONFIG).is_file():
        values = from_file(read_toml(run / run_reader.CONFIG))
        own = from_dict(TrainConfig, values, str(run / run_reader.CONFIG))
        of_run = _flat(to_file(own, control=False))
        places = {name: of_run.pop(name) for name in PLACES if name in of_run}
        settings = settings or of_run
    log = run_reader.rows(run / run_reader.METRICS)
    rows = [row for row in log if model is None or row["step"] <= model.step]
    return Side(
        path=path,
        settings=settings,
        places=places,
        found=found,
        step=model.step if model else max((int(row["step"]) for row in rows), default=0),
        steps=settings["steps"],
        loss=run_reader.last(rows, "loss"),
        held_out_loss=run_reader.last(rows, "held_out_loss"),
        lowest={name: _lowest(rows, name) for name in ("held_out_loss", *KIDS)},
    )


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with those of a table under `table.name`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        table = value if isinstance(value, Mapping) else None
        flat |= {f"{name}.{k}": v for k, v in table.items()} if table is not None else {name: value}
    return flat


def _lowest(rows: list[dict[str, Any]], name: str) -> dict[str, float] | None:
    """Return the lowest number of this name with its error, if it has one, and its step."""
    found = [(v, row) for row in rows if (v := run_reader.finite(row.get(name))) is not None]
    if not found:
        return None
    value, row = min(found, key=lambda each: each[0])
    error = run_reader.finite(row.get(f"{name}_standard_error"))
    return {"value": value, "step": row["step"]} | ({"standard_error": error} if error else {})
