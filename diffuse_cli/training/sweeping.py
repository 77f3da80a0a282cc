"""Averages of many lengths, made after the training and measured, and a model file of the best."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffuse_cli import features, files, modelfile, pictures
from diffuse_cli.config import EvalConfig, TrainConfig
from diffuse_cli.core.losses import LOSSES, weights
from diffuse_cli.errors import ModelFileError, UsageError, lookup
from diffuse_cli.evaluation.images import Labelled, is_images, read_sides
from diffuse_cli.evaluation.outputs import check_model
from diffuse_cli.events import Notice, Progress, Work
from diffuse_cli.options import from_dict
from diffuse_cli.resolving import resolve, tell
from diffuse_cli.runtime import machine, resolve_precision, training_draws
from diffuse_cli.sampling import Loaded, draw_as, load_denoiser, ready
from diffuse_cli.training.configuring import default_loss
from diffuse_cli.training.evaluating import Kid
from diffuse_cli.training.power import (
    Fit,
    Profile,
    Snapshot,
    combine,
    fit,
    gamma_of,
    read_snapshot,
    shapes_of,
    snapshots,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffuse_cli.core.denoiser import Denoiser

LENGTHS = (0.03, 0.04, 0.05, 0.06, 0.08, 0.10, 0.12, 0.15, 0.20)
"""What is tried: standard deviations of the profile, as a share of the run."""

NEAR = 0.1
"""A profile that the snapshots miss by more than this share of its norm is left out."""

Measure = Callable[["Denoiser"], Work[dict[str, float]]]


@dataclass(frozen=True)
class Row:
    """A length, the share of its profile that the snapshots miss, and what was measured."""

    length: float
    error: float
    values: dict[str, float]


@dataclass(frozen=True)
class Swept:
    """A sweep over lengths.

    Attributes:
        metric: the key of the values that decides; lower is better.
        file: what was measured of the model file's own average.
        best: the best length.
        step, updates: where the averages end.
        out: the model file with the best, where one was asked for.
    """

    metric: str
    rows: tuple[Row, ...]
    file: dict[str, float]
    best: float
    step: int
    updates: int
    real: int
    part: str
    out: Path | None


def sweep(config: EvalConfig) -> Work[Swept | None]:
    """Measure averages of `LENGTHS`, made from the snapshots in the model's run directory.

    Returns:
        `Swept`, or None on every process but the first.

    Raises:
        ModelFileError: not a model file, or one without sound snapshots.
        UsageError: options that do not go together.
        OutputError: the output exists already, or cannot be written.
    """
    _check(config)
    out = check_model(config)
    with machine(resolve_precision(config.precision)) as accelerator:
        if not accelerator.is_main_process:
            return None
        loaded = load_denoiser(config.subject, "ema", accelerator)
        given = _snapshots(Path(config.subject), loaded.model.step)
        if given[-1].step != loaded.model.step:
            yield Notice(
                f"the last snapshot is of step {given[-1].step:,}, and the model of step "
                f"{loaded.model.step:,}"
            )
        fits = yield from _fits(given)
        sides = yield from read_sides(config, loaded)
        metric, measure = yield from _metric(config, loaded, sides.real, accelerator)
        rows: list[Row] = []
        best: tuple[float, modelfile.Model] | None = None
        models = _models(loaded.model, given, fits)
        for (length, found), model in zip(fits, models, strict=True):
            values = yield from measure(ready(model, "ema", accelerator))
            rows.append(Row(length, found.error, values))
            if best is None or values[metric] < best[0]:
                best = values[metric], model
        file = yield from measure(loaded.denoiser)
    assert best is not None
    if out:
        modelfile.save(out, best[1])
    return Swept(
        metric=metric,
        rows=tuple(rows),
        file=file,
        best=min(rows, key=lambda row: row.values[metric]).length,
        step=given[-1].step,
        updates=_end(given),
        real=len(sides.real),
        part=sides.part,
        out=out,
    )


def _check(config: EvalConfig) -> None:
    if is_images(config.subject):
        shown = files.show(Path(config.subject))
        raise UsageError(f"--ema-sweep needs a model, and {shown} is a folder of images")
    others = {"--plot": config.plot, "--pairs": config.pairs, "--respaced": config.respaced}
    others["--report"] = config.report
    others["--weights raw"] = config.model_weights == "raw" or None
    for flag, value in others.items():
        if value is not None:
            raise UsageError(f"{flag} does not go with --ema-sweep", "Leave one of them out")


# -- lengths --------------------------------------------------------------------------------------


def _snapshots(path: Path, step: int) -> list[Snapshot]:
    """The snapshots of a model's run, up to its step.

    Raises:
        ModelFileError: there are none, or one cannot be read.
    """
    folder = path.with_suffix(".run") / "ema"
    found = [own for number, own in snapshots(folder) if number <= step]
    if not found:
        raise ModelFileError(
            f"{files.show(path)} has no averages of other lengths in {files.show(folder)}",
            "Train with --ema-lengths 24",
        )
    with _rejecting(folder):
        return [read_snapshot(own) for own in found]


@contextlib.contextmanager
def _rejecting(folder: Path) -> Iterator[None]:
    """Inside the block a snapshot that cannot be read is a `ModelFileError`."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = files.show(str(error))[:300]
        text = f"the averages in {files.show(folder)} cannot be read: {reason}"
        raise ModelFileError(text) from error


def _end(given: Sequence[Snapshot]) -> int:
    return round(max(p.updates for p in given[-1].profiles.values()))


def _fits(given: Sequence[Snapshot]) -> Work[list[tuple[float, Fit]]]:
    """Each length with its combination, where the snapshots come near to it."""
    profiles = [profile for snapshot in given for profile in snapshot.profiles.values()]
    every = [(v, fit(profiles, Profile(gamma_of(v), _end(given)))) for v in LENGTHS]
    far = [f"{length:.2f}" for length, found in every if found.error > NEAR]
    if far:
        yield Notice(f"too far from what {len(given)} snapshots hold: {', '.join(far)}")
    return [(length, found) for length, found in every if found.error <= NEAR]


def _models(
    model: modelfile.Model, given: Sequence[Snapshot], fits: Sequence[tuple[float, Fit]]
) -> Iterator[modelfile.Model]:
    """The model with each combination for its weights; what is not averaged stays.

    Raises:
        ModelFileError: the snapshots are of another network, or damaged.
    """
    step = given[-1].step
    with _rejecting(given[-1].path.parent):
        shapes = shapes_of(model.ema)
        combined = combine(given, [found for _, found in fits])
        for (length, _), made in zip(fits, combined, strict=True):
            if not shapes_of(made).items() <= shapes.items():
                raise ValueError("they are of another network")
            if not all(bool(tensor.isfinite().all()) for tensor in made.values()):
                raise ValueError("they hold weights that are not numbers")
            yield dataclasses.replace(
                model,
                ema={**model.ema, **made},
                raw=model.raw if step == model.step else None,
                step=step,
                data={**model.data, "ema_length": length},
            )


# -- metrics --------------------------------------------------------------------------------------


def _metric(
    config: EvalConfig, loaded: Loaded, real: Labelled, accelerator: Accelerator
) -> Work[tuple[str, Measure]]:
    """What decides, and how it is measured."""
    key, make = lookup(EMA_METRICS, config.ema_metric or "kid", "--ema-metric")
    return key, (yield from make(config, loaded, real, accelerator))


def _kid(
    config: EvalConfig, loaded: Loaded, real: Labelled, accelerator: Accelerator
) -> Work[Measure]:
    device = accelerator.device
    given = config.feature_weights
    file = Path(given) if given else (yield from features.find(config.features))
    kid = Kid(real.pixels, features.load(config.features, device, file))
    settings = resolve(config, loaded.model)
    yield from tell(settings)

    def measure(denoiser: Denoiser) -> Work[dict[str, float]]:
        drawings = draw_as(settings, denoiser, range(config.n), shape=loaded.shape, device=device)
        return (yield from kid.measure(drawings, config.n))

    return measure


def _loss(
    config: EvalConfig, loaded: Loaded, real: Labelled, accelerator: Accelerator
) -> Work[Measure]:
    """The training loss of the real images, with the same draws for every length."""
    yield from ()
    device = accelerator.device
    training = from_dict(TrainConfig, {"data": "", **loaded.model.training})
    loss = lookup(LOSSES, training.loss or default_loss(training.variance), "--loss")
    table = weights(training.weighting or "none", loaded.denoiser)
    num_classes = loaded.model.unet.num_classes
    labels = np.where(real.labels < 0, num_classes, real.labels)

    def measure(denoiser: Denoiser) -> Work[dict[str, float]]:
        losses: list[float] = []
        for start in range(0, len(real), config.batch_size):
            batch = range(start, min(start + config.batch_size, len(real)))
            x0 = pictures.from_uint8(real.pixels[batch.start : batch.stop], device)
            draws = training_draws(
                config.seed, 0, batch, shape=loaded.shape, device=device, purpose="held-out"
            )
            t = (draws.u * denoiser.process.num_timesteps).long()
            weight = None if table is None else table.float().to(device)[t]
            own = torch.from_numpy(labels[batch.start : batch.stop]).to(device)
            cond = {"label": own} if num_classes else {}
            with torch.inference_mode():
                losses += loss(denoiser, x0, t, draws.noise, weight, **cond).tolist()
            yield Progress("held-out loss", len(losses), len(real))
        found = {"held_out_loss": math.fsum(losses) / len(losses)}
        if len(losses) > 1:
            error = float(np.std(losses, ddof=1)) / math.sqrt(len(losses))
            found["held_out_loss_standard_error"] = error
        return found

    return measure


EMA_METRICS = {"kid": ("kid", _kid), "held-out": ("held_out_loss", _loss)}
"""What lengths are measured by: the key of its value, and what makes the measure."""
