"""`ema`: averages of many lengths, made from the snapshots of a run, and the best of them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffuse_cli.commands._cli import Report
from diffuse_cli.commands.ema.ema_metrics import EMA_METRICS
from diffuse_cli.config.eval_options import EmaConfig
from diffuse_cli.evaluation.image_sets import read_sides
from diffuse_cli.metrics import label
from diffuse_cli.metrics.presentation import format_measurement
from diffuse_cli.models import model_file
from diffuse_cli.sampling.model_loading import load_denoiser, make_denoiser
from diffuse_cli.system import ModelFileError, Notice, Table, Work, files, outputs, run_reader
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.training import ema_weights

LENGTHS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.10, 0.12, 0.15, 0.20, 0.25)
"""The lengths to try: standard deviations of the profile, as a fraction of the run."""

NEAR = 0.1
"""Lengths whose profile the snapshots miss by more than this fraction of its norm are left out."""


@dataclass(frozen=True)
class MeasuredLength:
    """A length, the fraction of its profile that the snapshots miss, and its numbers."""

    length: float
    error: float
    values: dict[str, float]


def measure_lengths(config: EmaConfig) -> Work[Report | None]:
    """Measure averages of `LENGTHS`, made from the snapshots in the model's run directory.

    Returns a row for each length and the best of them, or None on every process but the first.

    Raises:
        ModelFileError: not a model file, or one without sound snapshots.
        DataError, UsageError: what was named cannot be used.
        OutputError: the output exists already, or cannot be written.
    """
    with (
        outputs.claim_option(
            config.out, ".safetensors", config.overwrite, read=config.subject
        ) as out,
        open_accelerator(config.precision, config.device) as accelerator,
    ):
        if not accelerator.is_main_process:
            return None
        loaded = yield from load_denoiser(
            config.subject, "ema", accelerator, config.precision, alone=True
        )
        given = _snapshots(Path(config.subject), loaded.model.step)
        if given[-1].step != loaded.model.step:
            yield Notice(
                f"the last snapshot is of step {given[-1].step:,}, and the model of step "
                f"{loaded.model.step:,}"
            )
        fits = yield from _fit_lengths(given)
        sides = yield from read_sides(config, loaded)
        metric, measure = yield from EMA_METRICS[config.metric](config, loaded, sides, accelerator)
        rows: list[MeasuredLength] = []
        models = _models(loaded.model, given, fits)
        for k, ((length, fit), model) in enumerate(zip(fits.items(), models, strict=True), 1):
            yield Notice(f"length {length:.2f}, {k} of {len(fits)}")
            denoiser = make_denoiser(model, "ema", accelerator, loaded.precision)
            values = yield from measure(denoiser)
            rows.append(MeasuredLength(length, fit.error, values))
            best = min(rows, key=lambda row: rank_value(row.values[metric]))
            if best is rows[-1]:
                chosen = model
        yield Notice("the model file's own average")
        file = yield from measure(loaded.denoiser)
        for row, word in ((rows[0], "shortest"), (rows[-1], "longest")):
            if best is row:
                yield Notice(f"the best length is the {word} that was tried")
        if rank_value(file[metric]) < rank_value(best.values[metric]):
            yield Notice("the model file's own average is better than all of these")
        if out:
            model_file.save(out, chosen)
    step, updates = given[-1].step, _last_update(given)
    facts = {
        "subject": config.subject,
        "data": config.data,
        "metric": metric,
        "rows": [dataclasses.asdict(row) for row in rows],
        "file": file,
        "best": best.length,
        "step": step,
        "updates": updates,
        "real": len(sides.real),
        "part": sides.part,
        "out": str(out) if out else None,
    }
    cells = [(f"{row.length:.2f}", format_measurement(row.values, metric)) for row in rows]
    file_cells = ("in the file", format_measurement(file, metric))
    return facts, [
        Table([("length", label(metric)), *cells, file_cells]),
        f"best: {best.length:.2f} of the {updates:,} updates at step {step:,}",
        *([files.show(out)] if out else []),
    ]


def rank_value(value: float) -> float:
    """Return a metric to sort by, if lower is better. NaN is the worst."""
    return value if math.isfinite(value) else math.inf


# -- lengths --------------------------------------------------------------------------------------


def _snapshots(path: Path, step: int) -> list[ema_weights.Snapshot]:
    """Return the snapshots of a model's run, up to its step."""
    folder = run_reader.run_folder(path) / "ema"
    paths = [file for number, file in ema_weights.list_snapshots(folder) if number <= step]
    if not paths:
        raise ModelFileError(
            f"{files.show(path)} has no averages of other lengths in {files.show(folder)}",
            "Train with --ema-lengths 24, and keep the run directory next to the model",
            code="model_lacks",
            path=path,
        )
    with _reject_unusable(folder):
        return [ema_weights.read_snapshot(file) for file in paths]


@contextlib.contextmanager
def _reject_unusable(folder: Path) -> Iterator[None]:
    """Turn the errors of an unusable snapshot into `ModelFileError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = files.show(str(error))[:300]
        text = f"the averages in {files.show(folder)} cannot be used: {reason}"
        raise ModelFileError(text, code="model_damaged", path=folder) from error


def _last_update(given: Sequence[ema_weights.Snapshot]) -> int:
    return round(max(p.updates for p in given[-1].profiles.values()))


def _fit_lengths(
    given: Sequence[ema_weights.Snapshot],
) -> Work[dict[float, ema_weights.Combination]]:
    """Return the combination for each length that the snapshots can give."""
    profiles = [profile for snapshot in given for profile in snapshot.profiles.values()]
    goals = {v: ema_weights.Profile(ema_weights.gamma_of(v), _last_update(given)) for v in LENGTHS}
    every = {v: ema_weights.fit_profile(profiles, profile) for v, profile in goals.items()}
    unfit = [f"{length:.2f}" for length, fit in every.items() if fit.error > NEAR]
    if unfit:
        yield Notice(f"left out, as they need more snapshots than {len(given)}: {', '.join(unfit)}")
    return {length: fit for length, fit in every.items() if fit.error <= NEAR}


def _models(
    model: model_file.StoredModel,
    given: Sequence[ema_weights.Snapshot],
    fits: Mapping[float, ema_weights.Combination],
) -> Iterator[model_file.StoredModel]:
    """Yield the model with the weights of each combination. Buffers stay."""
    step = given[-1].step
    with _reject_unusable(given[-1].path.parent):
        shapes = ema_weights.shapes_of(model.ema)
        combined = ema_weights.combine_weights(given, list(fits.values()))
        for length, weights in zip(fits, combined, strict=True):
            if not ema_weights.shapes_of(weights).items() <= shapes.items():
                raise ValueError("they are of another network")
            if not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
                raise ValueError("they hold weights that are not numbers")
            yield dataclasses.replace(
                model,
                ema={**model.ema, **weights},
                raw=model.raw if step == model.step else None,
                step=step,
                errors=None,
                data={**model.data, "ema_length": length},
            )
