"""`evaluate`: measure a model, or a folder of images, against real images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from diffuse_cli import features, files, pictures
from diffuse_cli.config import (
    EvalConfig,
    MeasureConfig,
    PlottedBoundConfig,
    SamplerConfig,
    TuneConfig,
    WeightsConfig,
)
from diffuse_cli.core.conditions import PAIRS
from diffuse_cli.core.space import Space
from diffuse_cli.data import is_images
from diffuse_cli.errors import DiffuseError, UsageError
from diffuse_cli.evaluation import bounds, neighbors, showing
from diffuse_cli.evaluation.images import Sides, drawn_from, read_sides
from diffuse_cli.evaluation.parts import Evaluation
from diffuse_cli.evaluation.showing import Shown
from diffuse_cli.evaluation.team import Team
from diffuse_cli.events import Notice, Work
from diffuse_cli.features._random import random_network_for
from diffuse_cli.guiding import equipped
from diffuse_cli.media import MEDIA, judged
from diffuse_cli.metrics import METRICS, Facts, Remark, Words, remarks
from diffuse_cli.options import first_given
from diffuse_cli.outputs import asked
from diffuse_cli.resolving import DrawSettings, resolve, tell
from diffuse_cli.runtime import machine_or, made_with
from diffuse_cli.sampling import Loaded, load_denoiser


@dataclass(frozen=True)
class Evaluated:
    """The numbers of an evaluation, and what is needed to compare them with others.

    Attributes:
        values: the metrics' numbers by key.
        classes: the same for each class on both sides, with its counts.
        terms: the bound by timestep, of a model.
        details: what else the metrics found, by their names.
        real, generated: how many images on each side.
        part: which of the real images: `held-out` or `all`.
        features: the feature network, see `FeatureNetwork.described`.
        settings: how a model's images were drawn and its bound was taken.
        fingerprints: of DATA, and of a folder that is measured.
        made_with: versions and the machine.
        plot, pairs, report: paths of the plot of the terms, of the page of nearest training images
            and of the report; None if not asked for.
        words: what is said of the samples.
    """

    values: dict[str, float]
    classes: dict[str, dict[str, float]]
    terms: list[dict[str, Any]]
    details: dict[str, Any]
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
    words: Words
    shown: Shown | None


def evaluate(
    config: EvalConfig,
    accelerator: Accelerator | None = None,
    *,
    times: tuple[float, ...] | None = None,
) -> Work[Evaluated | None]:
    """Measure a model file, or a folder of images, against real images.

    Yields `Progress` and `Notice`. Returns None on all processes but the first.

    Args:
        accelerator: one that the caller has set up, and ends.
        times: learned for the model's images, instead of those that its file recommends.

    Raises:
        DataError, ModelFileError, UsageError: the configuration cannot be used.
        OutputError: an output exists already, or cannot be written.
    """
    began = time.monotonic()
    subject = Path(config.subject)
    folder = is_images(subject)
    flag = first_given(config, PlottedBoundConfig, SamplerConfig, WeightsConfig)
    if folder and (flag := "--given" if config.given else flag):
        raise UsageError(f"{flag} needs a model, and {files.show(subject)} is a folder of images")
    plot, page = asked(config, "plot", ".png"), asked(config, "pairs", ".png")
    report = asked(config, "report", ".html")
    with machine_or(accelerator, config.precision, config.device) as accelerator:
        loaded, settings, described = None, None, {}
        if not folder:
            loaded = yield from load_denoiser(
                subject, config.weights, accelerator, config.precision
            )
            settings = yield from equipped(settle(config, loaded), loaded, accelerator)
            settings = replace(settings, times=times or settings.times)
            yield from tell(settings)
            described = describe(settings, config, loaded)
            described |= {"timesteps": config.timesteps, "respaced": config.respaced}
        network = yield from find_network(config, accelerator)
        sides = yield from read_sides(config, loaded)
        sides.check()
        if loaded and settings:
            settings = drawn_from(settings, loaded, sides.real, config.seed)
            if given := loaded.model.blueprint.conditions.given:
                what = "what lies beside them" if given.what == PAIRS else given.what
                yield Notice(f"drawn from the real images in turn: {what}")
            elif sides.real.rows is not None:
                yield Notice("each drawn image is told the row of a real one, in turn")
        training = sides.training if config.train_n else None
        if page and training is None:
            raise UsageError(
                "--pairs needs DATA that the model was trained on, with a held-out part",
                "Give the model's training data, 40 images or more, without --train-n 0",
            )
        network = seeing(network, sides, accelerator)
        evaluation = Evaluation(
            config, accelerator, network, loaded, settings, sides.real, sides.more, sides.fakes,
            training, space=sides.space,
        )  # fmt: skip
        rated = judged(sides.space)
        if not rated:
            many = MEDIA[sides.space.medium].MANY
            yield Notice(
                f"left out: what features of photographs say, as of {many} they say nothing; KID "
                "is that of random features"
            )
        values = yield from measured(evaluation)
        yield from evaluation.make("generated")
        if not accelerator.is_main_process:
            return None
        if plot and evaluation.bound:
            picture = bounds.draw(
                evaluation.bound, files.show(subject.name), density=evaluation.floats
            )
            files.write_bytes(plot, pictures.png(picture))
        if page:
            twins = showing.twins(evaluation, neighbors.PAIRS)
            files.write_bytes(page, pictures.png(neighbors.draw(twins)))
        real, generated = len(sides.real), len(evaluation.generated)
        dim = evaluation.fake_features.shape[1]
        told = details(evaluation)
        words = words_of(sides.space)
        facts = Facts(
            values, real, generated, dim, loaded is not None, sides.space.levels, told, words
        )
        return Evaluated(
            values=values,
            classes=_by_class(evaluation, sides.classes),
            terms=evaluation.bound.by_time() if evaluation.bound else [],
            details=told,
            real=real,
            generated=generated,
            part=sides.part,
            features=network.described(),
            settings=described,
            seconds=round(time.monotonic() - began, 3),
            model=_model_facts(loaded) if loaded else {},
            fingerprints=sides.fingerprints,
            made_with=made_with(accelerator),
            plot=plot,
            pairs=page,
            report=report,
            remarks=remarks(facts),
            words=words,
            shown=showing.choose(evaluation, sides.classes) if report else None,
        )


def settle(config: EvalConfig, loaded: Loaded) -> DrawSettings:
    """How the model's images are drawn; refuses more timesteps than it has."""
    settings, process = resolve(config, loaded.model), loaded.denoiser.process
    settings.times_of(process)
    if config.respaced is not None and config.respaced > process.num_timesteps:
        raise UsageError(f"--respaced must be 2 to {process.num_timesteps}, the model's timesteps")
    return settings


def measured(evaluation: Evaluation) -> Work[dict[str, float]]:
    """The numbers of every metric whose parts can be made; only the first process has them."""
    values: dict[str, float] = {}
    for metric in METRICS.values():
        if evaluation.can_measure(metric.NEEDS):
            for need in metric.NEEDS:
                yield from evaluation.make(need)
            if evaluation.accelerator.is_main_process:
                values |= metric.compute(evaluation)
    return values


def details(evaluation: Evaluation) -> dict[str, Any]:
    """What else metrics tell of a finished evaluation, by their names."""
    return {
        name: metric.details(evaluation)
        for name, metric in METRICS.items()
        if hasattr(metric, "details") and evaluation.can_measure(metric.NEEDS)
    }


def words_of(space: Space) -> Words:
    """What is said of samples of a space."""
    kind = MEDIA[space.medium]
    low, high = getattr(kind, "LOW_HIGH", ("low", "high"))
    channels = getattr(kind, "CHANNELS", {}).get(space.channels, ())
    return Words(kind.MANY, getattr(kind, "POINTS", "points"), low, high, channels)


def find_network(config: MeasureConfig, accelerator: Accelerator) -> Work[features.FeatureNetwork]:
    """The feature network; to be called before the work, as its weights may be missing or wrong."""
    if config.feature_weights is not None:
        file = Path(config.feature_weights)
        return features.load(config.features, accelerator.device, file)
    failed = None
    if accelerator.is_local_main_process:  # downloads; the others wait
        try:
            yield from features.find(config.features)
        except DiffuseError as error:
            failed = error
    for reason in filter(None, Team.of(accelerator).gather(failed)):
        raise reason
    file = yield from features.find(config.features)
    return features.load(config.features, accelerator.device, file)


def seeing(
    network: features.FeatureNetwork, sides: Sides, accelerator: Accelerator
) -> features.FeatureNetwork:
    """The network, or one with random weights where it cannot judge the samples."""
    if judged(sides.space):
        return network
    return random_network_for(sides.space, sides.real.samples, accelerator.device)


def load_model(
    config: MeasureConfig, weights: str, accelerator: Accelerator, *, alone: bool = False
) -> Work[Loaded]:
    """The model of a command that cannot measure a folder of images; `alone` as in `load_denoiser`.

    Raises:
        ModelFileError: no such file, or it is no model file.
        UsageError: it is a folder of images.
    """
    if is_images(Path(config.subject)):
        shown = files.show(Path(config.subject))
        raise UsageError(f"{shown} is a folder of images", "Give a model file")
    return (
        yield from load_denoiser(
            config.subject, weights, accelerator, config.precision, alone=alone
        )
    )


def _by_class(evaluation: Evaluation, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The metrics' numbers for every class with two images or more on both sides."""
    found: dict[str, dict[str, float]] = {}
    for label, name in enumerate(names):
        values: dict[str, float] = {
            name: int((side.labels == label).sum())
            for name, side in (("real", evaluation.real), ("generated", evaluation.generated))
        }
        if min(values.values()) < 2:
            continue
        part = evaluation.of_class(label)
        for metric in METRICS.values():
            if evaluation.can_measure(metric.NEEDS):
                values |= metric.compute(part)
        found[name] = values
    return found


def describe(
    settings: DrawSettings, config: EvalConfig | TuneConfig, loaded: Loaded
) -> dict[str, Any]:
    """How images were drawn, for comparing the numbers."""
    conditions = loaded.model.blueprint.conditions
    given, table = conditions.given, conditions.table
    return {
        "sampler": settings.sampler,
        "steps": settings.steps,
        **settings.described_times(),
        "threshold": settings.threshold,
        "seed": settings.seed,
        **settings.options,
        **settings.described_guidance(),
        **({"given": given.what} if given else {}),
        **({"columns": list(table.names)} if table else {}),
        "weights": config.weights,
        "precision": loaded.precision,
        "model_sha256": loaded.sha256,
    }


def _model_facts(loaded: Loaded) -> dict[str, Any]:
    """Facts of the model file, as JSON."""
    model = loaded.model
    return {
        "step": model.step,
        "parameters": sum(tensor.numel() for tensor in model.ema.values()),
        "shape": list(loaded.space.shape),
        "num_timesteps": loaded.denoiser.process.num_timesteps,
        "classes": list(model.blueprint.conditions.classes),
        "versions": dict(model.versions),
    }
