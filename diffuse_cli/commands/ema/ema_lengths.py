"""`ema`: measure averages of many lengths, made from the snapshots of a run, and find the best."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from diffuse_cli.commands._cli import Report
from diffuse_cli.config import train_options
from diffuse_cli.config.eval_options import EmaConfig
from diffuse_cli.config.options import from_dict
from diffuse_cli.core import Denoiser
from diffuse_cli.evaluation import image_sets
from diffuse_cli.evaluation.image_sets import Sides
from diffuse_cli.metrics import Measurement, label
from diffuse_cli.metrics.estimates import average
from diffuse_cli.metrics.features.feature_choice import choose_network, load_trained_network
from diffuse_cli.metrics.presentation import format_measurement
from diffuse_cli.models import model_file
from diffuse_cli.sampling.generation import generate_all
from diffuse_cli.sampling.model_loading import LoadedModel, load_denoiser, load_guide, make_denoiser
from diffuse_cli.sampling.sampling_settings import report_settings, resolve_settings
from diffuse_cli.sampling.setting_search import FeatureMeasure
from diffuse_cli.system import (
    ModelFileError,
    Notice,
    Progress,
    Table,
    Work,
    files,
    outputs,
    run_reader,
)
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.training import ema_weights, optimization

LENGTHS = (0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.10, 0.12, 0.15, 0.20, 0.25)
"""The lengths to try: standard deviations of the profile, as a fraction of the run."""

NEAR = 0.1
"""Lengths whose profile the snapshots miss by more than this fraction of its norm are left out."""

Measure = Callable[[Denoiser], Work[dict[str, float]]]


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
        outputs.claim_option(config, "out", ".safetensors") as out,
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
        sides = yield from image_sets.read_sides(config, loaded)
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


# -- metrics --------------------------------------------------------------------------------------


def _kid(
    config: EmaConfig, loaded: LoadedModel, sides: Sides, accelerator: Accelerator
) -> Work[tuple[str, Measure]]:
    sides.check()
    trained = yield from load_trained_network(config, loaded.space, accelerator, alone=True)
    real, device = sides.real.samples, accelerator.device
    network = yield from choose_network(config, trained, sides.space, real, device)
    guide = yield from load_guide(config, loaded, accelerator, alone=True)
    resolved = resolve_settings(config, loaded.model, guide=guide)
    settings = image_sets.set_conditions(resolved, loaded, sides, config.seed)
    yield from report_settings(settings)
    against = FeatureMeasure(network, sides.space, real, cached=True)
    yield from against.read_real()

    def measure(denoiser: Denoiser) -> Work[dict[str, float]]:
        indices = range(config.n)
        samples = yield from generate_all(
            denoiser, settings, indices, space=loaded.space, device=device
        )
        return (yield from against.compare(samples))

    return network.kid, measure


def _loss(
    config: EmaConfig, loaded: LoadedModel, sides: Sides, accelerator: Accelerator
) -> Work[tuple[str, Measure]]:
    """Training loss on the real images, with the same draws for every length."""
    yield from ()
    real = sides.real
    fields = train_options.from_file(loaded.model.training)
    training = from_dict(train_options.TrainConfig, {"data": "", **fields})
    objective = optimization.Objective(training, loaded.denoiser, accelerator.device)

    def measure(denoiser: Denoiser) -> Work[dict[str, float]]:
        losses: list[float] = []
        for part in optimization.measure_losses(
            objective,
            denoiser,
            loaded.model.blueprint,
            real.samples,
            real.labels,
            given=image_sets.prepare_inputs(loaded, real, config.seed),
            rows=real.rows,
            seed=config.seed,
            batch_size=config.batch_size,
            device=accelerator.device,
        ):
            losses += part.tolist()
            yield Progress("held-out loss", len(losses), len(real))
        mean = math.fsum(losses) / len(losses)
        if len(losses) < 2:
            return {"held_out_loss": mean}
        return Measurement(mean, average(np.array(losses)).error).to_entries("held_out_loss")

    return "held_out_loss", measure


EMA_METRICS = {"kid": _kid, "held-out": _loss}
"""Definition of each metric of --metric: the key of its number, and the measure."""
