"""Two runs or models side by side: settings, losses, and their evaluations on the same images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.config.eval_options import CompareConfig
from diffuse_cli.config.options import (
    flatten_settings,
    from_dict,
    option_fields,
    place_name,
    read_toml,
)
from diffuse_cli.config.task_options import is_degradation
from diffuse_cli.config.train_options import TrainConfig, from_file, to_file
from diffuse_cli.core import PAIRS, Space
from diffuse_cli.metrics.features import KIDS
from diffuse_cli.models.model_report import collect_facts, describe_space, training_config
from diffuse_cli.system import ModelFileError, Work, files, run_reader
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.system.processes import rank

if TYPE_CHECKING:
    from diffuse_cli.evaluation.paired_comparison import PairedComparison
    from diffuse_cli.models.model_file import ModelFile

HELD = ("path", "settings", "places", "file", "lowest")
"""Attributes of `Side` that are not printed as they are."""

MEANT = (
    "size", "channels", "medium", "rate", "transform", "background", "fit", "classes",
    "condition_on", "schedule", "betas", "num_timesteps", "log_snr_shift", "zero_terminal_snr",
    "target", "variance", "loss", "weighting",
)  # fmt: skip
"""Settings without which two losses are not of the same quantity."""

PLACES = tuple(f.name for f, spec in option_fields(TrainConfig) if spec.place)


@dataclass(frozen=True)
class Side:
    """A run or a model. Settings and versions of a model file are untrusted. Escape them.

    Attributes:
        settings: its training's, by name. Those of the network as `unet.width`.
        places: those of the run alone, such as its data; None without a run directory.
        file: its model, or the newest of a run; None if it has none yet.
        step, steps: of the model or the run, and of the whole training if it is known.
        loss, held_out_loss: the last ones logged up to that step.
        lowest: the lowest held-out loss and KIDs by name, with their steps.
    """

    path: str
    settings: Mapping[str, Any]
    places: Mapping[str, Any] | None
    file: ModelFile | None
    step: int
    steps: int | None
    loss: float | None
    held_out_loss: float | None
    lowest: Mapping[str, dict[str, float] | None]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Facts of the model file by name, empty without a model."""
        return collect_facts(self.file) if self.file else {}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without the settings."""
        facts = self.facts
        return {
            "path": self.path,
            "sha256": facts.get("sha256"),
            **{k: v for k, v in vars(self).items() if k not in HELD},
            **{f"lowest_{name}": lowest for name, lowest in self.lowest.items()},
            "parameters": facts.get("parameters"),
            "data": dict(facts.get("data", {})),
            "versions": facts.get("versions"),
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
    measured: PairedComparison | None


def compare(config: CompareConfig) -> Work[Comparison | None]:
    """Compare two runs or models. Yields `Progress` and `Notice`.

    Returns:
        None on all processes but the first.

    Raises:
        ModelFileError: neither a model file nor a run, or DATA with a run without a model.
        DataError, UsageError: DATA or an option cannot be used.
    """
    a = yield from _read_side(config.a)
    b = yield from _read_side(config.b)
    placed = a.places is not None and b.places is not None
    settings_a, settings_b = (
        {**(side.places or {} if placed else {}), **side.settings} for side in (a, b)
    )
    differing = {
        name: (settings_a.get(name), settings_b.get(name))
        for name in {**settings_a, **settings_b}
        if settings_a.get(name) != settings_b.get(name)
    }
    remarks, measured = [*_compare_losses(a, b, differing)], None
    if config.data is not None:
        sides = [_require_model(side) for side in (a, b)]
        spaces = [file.model.blueprint.space for file in sides]
        if _stored(spaces[0]) != _stored(spaces[1]):
            kinds = [describe_space(space) for space in spaces]
            text = f"samples of A are {kinds[0]}, and of B {kinds[1]}"
            remarks.append(f"the metrics cannot be compared: {text}")
        else:
            measured = yield from _score_pair(config, sides)
    if rank() > 0:
        return None
    return Comparison(a, b, differing, tuple(remarks), measured)


def _stored(space: Space) -> Space:
    """Return the space of samples as they are stored, without the scale of the model's numbers."""
    none = len(space.mean)
    return replace(space, mean=(0.0,) * none, std=(1.0,) * none, transform=None)


def _score_pair(config: CompareConfig, pair: Sequence[ModelFile]) -> Work[PairedComparison | None]:
    from diffuse_cli.evaluation.paired_comparison import compare_models
    from diffuse_cli.sampling.generation import load_denoiser

    with open_accelerator(config.precision, config.device) as accelerator:
        loaded = []
        for file in pair:
            options = config.weights, accelerator, config.precision
            loaded.append((yield from load_denoiser(file, *options, typed=False)))
        return (yield from compare_models(config, loaded, accelerator))


def _compare_losses(a: Side, b: Side, differing: Mapping[str, Any]) -> Iterator[str]:
    """Whether the losses of two runs are of the same quantity."""
    if a.loss is None or b.loss is None:
        return
    names = [name for name in MEANT if name in differing]
    if _given_kind(a) != _given_kind(b):
        names.append("given")
    prints = [side.facts.get("data", {}).get("fingerprint") for side in (a, b)]
    if prints[0] != prints[1] and None not in prints:
        names.append("training images")
    if names:
        yield f"the losses cannot be compared, as these differ: {', '.join(names)}"


def _given_kind(side: Side) -> str | None:
    """Return the degradation that a run is conditioned on, `PAIRS`, or None."""
    given: str | None = (side.places or {}).get("given")
    return given if given is None or is_degradation(given) else PAIRS


# -- reading --------------------------------------------------------------------------------------


def _require_model(side: Side) -> ModelFile:
    if side.file is None:
        text = f"{files.show(side.path)} has no model yet"
        raise ModelFileError(text, "Leave out DATA, or wait for its first checkpoint")
    return side.file


def _read_side(path: str) -> Work[Side]:
    """Read a model file, a run directory, or both where they lie side by side."""
    from diffuse_cli.models import model_file

    given, places, file, settings = Path(path), None, None, {}
    run = run_reader.run_folder(given)
    if (
        given != run
        or run_reader.list_checkpoints(run / run_reader.CHECKPOINTS)
        or run_reader.model_path(run).exists()
    ):
        file = yield from model_file.find(given)
        settings = flatten_settings(training_config(file))
    model = file.model if file else None
    if (run / run_reader.CONFIG).is_file():
        values = from_file(read_toml(run / run_reader.CONFIG, "the run's"))
        run_config = from_dict(TrainConfig, values, str(run / run_reader.CONFIG))
        of_run = flatten_settings(to_file(run_config, control=False))
        places = {name: of_run.pop(name) for name in PLACES if name in of_run}
        settings = settings or of_run
    if not settings:
        raise ModelFileError(f"no such run or model file: {files.show(path)}")
    log = run_reader.read_log(run / run_reader.METRICS)
    rows = [row for row in log if model is None or row["step"] <= model.step]
    return Side(
        path=path,
        settings=settings,
        places=places,
        file=file,
        step=model.step if model else max((int(row["step"]) for row in rows), default=0),
        steps=settings.get("steps"),
        loss=run_reader.last_value(rows, "loss"),
        held_out_loss=run_reader.last_value(rows, "held_out_loss"),
        lowest={name: _find_lowest(rows, name) for name in ("held_out_loss", *KIDS)},
    )


def _find_lowest(rows: list[dict[str, Any]], name: str) -> dict[str, float] | None:
    """Return the lowest number of this name with its error, if it has one, and its step."""
    hits = [(v, row) for row in rows if (v := run_reader.finite_or_none(row.get(name))) is not None]
    if not hits:
        return None
    value, row = min(hits, key=lambda hit: hit[0])
    error = run_reader.finite_or_none(row.get(f"{name}_standard_error"))
    return {"value": value, "step": row["step"]} | ({"standard_error": error} if error else {})


def render_comparison(comparison: Comparison, rows: Sequence[Sequence[str]]) -> str:
    """Render a comparison as HTML.

    Args:
        rows: the head and the rows of the table of both.
    """
    from diffuse_cli.pages.curves import read_curves
    from diffuse_cli.pages.plots import plot_runs
    from diffuse_cli.pages.templates import render_page

    paths = {"A": Path(comparison.a.path), "B": Path(comparison.b.path)}
    logs = {side: run_reader.run_folder(path) / run_reader.METRICS for side, path in paths.items()}
    curves = {side: read_curves(log) for side, log in logs.items()}
    names = {"A": place_name(comparison.a.path), "B": place_name(comparison.b.path)}
    return render_page(
        "compare",
        " and ".join(names.values()),
        sides=names,
        rows=rows,
        plots=plot_runs(curves),
        remarks=comparison.remarks,
    )
