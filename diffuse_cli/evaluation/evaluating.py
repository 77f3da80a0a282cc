"""`evaluate`: a model, or a folder of images, measured against real images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli import features, files, pictures
from diffuse_cli.config import (
    BoundConfig,
    EvalConfig,
    MeasureConfig,
    SamplerConfig,
    TuneConfig,
    WeightsConfig,
)
from diffuse_cli.data import is_images
from diffuse_cli.errors import DiffuseError, UsageError
from diffuse_cli.evaluation import bounds, neighbors
from diffuse_cli.evaluation.images import read_sides
from diffuse_cli.evaluation.parts import Evaluation
from diffuse_cli.evaluation.showing import Shown, choose
from diffuse_cli.evaluation.team import Team
from diffuse_cli.events import Work
from diffuse_cli.metrics import METRICS, Facts, Remark, remarks
from diffuse_cli.options import first_given
from diffuse_cli.outputs import asked
from diffuse_cli.resolving import DrawSettings, resolve, tell
from diffuse_cli.runtime import machine_or, made_with, resolve_precision
from diffuse_cli.sampling import Loaded, load_denoiser

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL import Image

    from diffuse_cli.core.process import Process


@dataclass(frozen=True)
class Evaluated:
    """The numbers of an evaluation, and what one needs to compare them with others.

    Attributes:
        values: each metric's numbers by name.
        classes: the same for each class that both sides have, with its counts.
        terms: the bound by timestep, where there is a model.
        real, generated: how many images on each side.
        part: which of the real images: `held-out` or `all`.
        features: name and weights hash of the feature network, and how it resizes images.
        model: what the model file says of itself, where there is a model.
        fingerprints: of the images in DATA, and in a folder that is measured.
        made_with: versions and the machine.
        plot: the picture of the terms, where one was asked for.
        pairs: the page of nearest training images, where one was asked for.
        report: where the page goes, where one was asked for.
        remarks: what the numbers mean.
        shown: the images of the page, where one was asked for.
    """

    values: dict[str, float]
    classes: dict[str, dict[str, float]]
    terms: list[dict[str, Any]]
    real: int
    generated: int
    part: str
    features: dict[str, str]
    settings: dict[str, Any]
    seconds: float
    model: dict[str, Any]
    fingerprints: dict[str, str]
    made_with: dict[str, str]
    plot: Path | None
    pairs: Path | None
    report: Path | None
    remarks: list[Remark]
    shown: Shown | None


def evaluate(config: EvalConfig, accelerator: Accelerator | None = None) -> Work[Evaluated | None]:
    """Measure a model file, or a folder of images, against real images.

    Yields `Progress` and `Notice`.

    Args:
        accelerator: the machine of a larger work, which ends it.

    Returns:
        `Evaluated`, or None on every process but the first.

    Raises:
        DataError, ModelFileError, UsageError: what was named cannot be used.
        OutputError: the plot or a page exists already, or cannot be written.
    """
    began = time.monotonic()
    folder = is_images(Path(config.subject))
    if folder and (flag := first_given(config, BoundConfig, SamplerConfig, WeightsConfig)):
        shown = files.show(Path(config.subject))
        raise UsageError(f"{flag} needs a model, and {shown} is a folder of images")
    plot, page = asked(config, "plot", ".png"), asked(config, "pairs", ".png")
    report = asked(config, "report", ".html")
    with machine_or(accelerator, config.precision) as accelerator:
        loaded = None if folder else load_denoiser(config.subject, config.weights, accelerator)
        settings = None
        if loaded is not None:
            settings = resolve(config, loaded.model)
            _check_times(config, settings, loaded.denoiser.process)
            yield from tell(settings)
        network = yield from find_network(config, accelerator)
        sides = yield from read_sides(config, loaded)
        sides.check()
        training = sides.training if config.train_n else None
        if page and training is None:
            raise UsageError(
                "--pairs needs DATA that a model was trained on, with a held-out part",
                "Give the training data of the model, 40 images or more, and no --train-n 0",
            )
        evaluation = Evaluation(
            config,
            accelerator,
            network,
            loaded,
            settings,
            sides.real,
            sides.more,
            sides.fakes,
            training,
            space=sides.space,
        )
        values: dict[str, float] = {}
        for name in METRICS:
            metric = METRICS[name]
            if evaluation.can_measure(metric.NEEDS):
                for need in metric.NEEDS:
                    yield from evaluation.make(need)
                if accelerator.is_main_process:
                    values |= metric.compute(evaluation)
        if not accelerator.is_main_process:
            return None
        if plot and evaluation.bound:
            picture = bounds.draw(evaluation.bound, files.show(Path(config.subject).name))
            files.write_bytes(plot, pictures.png(picture))
        if page:
            files.write_bytes(page, pictures.png(_draw_pairs(evaluation)))
        fake_features = evaluation.fake_features
        facts = Facts(
            values, len(sides.real), len(fake_features), fake_features.shape[1], loaded is not None
        )
        return Evaluated(
            values=values,
            classes=_by_class(evaluation, sides.classes),
            terms=evaluation.bound.by_time() if evaluation.bound else [],
            real=len(sides.real),
            generated=config.n if evaluation.fakes is None else len(evaluation.fakes),
            part=sides.part,
            features=network.described(),
            settings=_settings(config, settings, loaded.sha256) if loaded and settings else {},
            seconds=round(time.monotonic() - began, 3),
            model=_model_facts(loaded) if loaded else {},
            fingerprints=sides.fingerprints,
            made_with=made_with(accelerator),
            plot=plot,
            pairs=page,
            report=report,
            remarks=remarks(facts),
            shown=choose(evaluation, sides.classes) if report else None,
        )


def find_network(config: MeasureConfig, accelerator: Accelerator) -> Work[features.FeatureNetwork]:
    """The feature network, before the work: its weights may be missing, or others."""
    if config.feature_weights is not None:
        found = Path(config.feature_weights)
    else:
        failed = None
        if accelerator.is_local_main_process:  # which downloads, while the others wait
            try:
                yield from features.find(config.features)
            except DiffuseError as error:
                failed = error
        for reason in filter(None, Team.of(accelerator).gather(failed)):
            raise reason
        found = yield from features.find(config.features)
    return features.load(config.features, accelerator.device, found)


def _draw_pairs(evaluation: Evaluation) -> Image.Image:
    assert evaluation.training is not None
    assert evaluation.fakes is not None
    fakes, training = evaluation.fakes, evaluation.training
    return neighbors.draw(
        evaluation.nearest, evaluation.look(fakes.pixels), evaluation.look(training.pixels)
    )


def _check_times(config: EvalConfig, settings: DrawSettings, process: Process) -> None:
    """Refuse more timesteps than the model has, before the work."""
    process.times(settings.steps, settings.spacing)
    if config.respaced is not None and config.respaced > process.num_timesteps:
        raise UsageError(f"--respaced must be 2 to {process.num_timesteps}, the model's timesteps")


def load_model(config: MeasureConfig, weights: str, accelerator: Accelerator) -> Loaded:
    """The model that is measured, for work that images alone will not do for.

    Raises:
        ModelFileError: no such file, or it is no model file.
        UsageError: it is a folder of images.
    """
    if is_images(Path(config.subject)):
        shown = files.show(Path(config.subject))
        raise UsageError(f"{shown} is a folder of images", "Give a model file")
    return load_denoiser(config.subject, weights, accelerator)


def _by_class(evaluation: Evaluation, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Each metric's numbers for every class of which both sides have images enough."""
    if evaluation.fakes is None:
        return {}
    found: dict[str, dict[str, float]] = {}
    for label, name in enumerate(names):
        part = evaluation.of_class(label)
        assert part.fakes is not None
        if min(len(part.real), len(part.fakes)) < 2:
            continue
        values: dict[str, float] = {"real": len(part.real), "generated": len(part.fakes)}
        for metric in METRICS.values():
            if evaluation.can_measure(metric.NEEDS):
                values |= metric.compute(part)
        found[name] = values
    return found


def describe(
    config: EvalConfig | TuneConfig, settings: DrawSettings, sha256: str
) -> dict[str, Any]:
    """What images were drawn with, for whoever compares the numbers."""
    guidance: dict[str, Any] = {}
    if wanted := settings.condition:
        guidance = {"guidance": wanted.scale, "guidance_interval": wanted.noise_levels}
    return {
        "sampler": settings.sampler,
        "steps": settings.steps,
        **{name: getattr(settings, name) for name in ("spacing", "threshold", "seed")},
        **settings.options,
        **guidance,
        "weights": config.weights,
        "precision": resolve_precision(config.precision),
        "model_sha256": sha256,
    }


def _settings(config: EvalConfig, settings: DrawSettings, sha256: str) -> dict[str, Any]:
    """`describe`, and how the bound was taken."""
    bound = {"timesteps": config.timesteps, "respaced": config.respaced}
    return {**describe(config, settings, sha256), **bound}


def _model_facts(loaded: Loaded) -> dict[str, Any]:
    """What a page says of a model, in plain values."""
    model = loaded.model
    return {
        "step": model.step,
        "parameters": sum(tensor.numel() for tensor in model.ema.values()),
        "shape": list(loaded.space.shape),
        "num_timesteps": loaded.denoiser.process.num_timesteps,
        "classes": list(model.blueprint.conditions.classes),
        "versions": dict(model.versions),
    }
