"""Compare samples of the EMA weights with the data: KID, copies, and which settings sample best.

Copying starts after a number of steps in proportion to the number of images (Bonnaire et al. 2025),
and good samples come earlier. So a run on few images looks for copies at previews, as `eval` does,
and keeps the last weights whose samples show no clear signs of them: in pixels and features, so
that samples of arrays and sounds never do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse_cli.config.sample_options import GAUSSIAN, OWN, SamplerChoice
from diffuse_cli.core import Space
from diffuse_cli.media import MEDIA, Array, Indices, can_judge
from diffuse_cli.metrics import features, memorization, nearest_neighbors
from diffuse_cli.metrics.features.feature_choice import build_random_network
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.sampling import setting_search
from diffuse_cli.sampling.generation import generate_all
from diffuse_cli.sampling.sampling_settings import Guide, SamplingSettings, can_start_from_gaussian
from diffuse_cli.system import ModelFileError, Notice, UsageError, Work, finish
from diffuse_cli.system.rng import permutation
from diffuse_cli.training import chores, previews
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.trainer import Trainer

REAL_IMAGES = 1000
"""The most real images to compare with. Their features are computed once."""

NETWORK = "efficientnet-lite0"
"""The feature network for images, which is part of the installation."""

FEWEST_FOR_KID = 2
"""The fewest images on each side for an estimate of the KID."""


@dataclass(frozen=True)
class BestWeights:
    """EMA weights with the lowest KID so far, on the CPU, or the last without signs of copies.

    Attributes:
        values: the step, and with --eval-every the KID under its key of `metrics.features.KIDS`,
            its standard error, None for fewer than four samples, and the number of generated
            `images`. KIDs of different numbers of images are not compared.
        tensors: the weights by name. Raw weights, with --keep-raw, are under `model_file.RAW`.
    """

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def key(self) -> str:
        """Key of the KID."""
        return next(key for key in features.KIDS if key in self.values)


def choose_real(plan: Plan) -> Work[Indices]:
    """Choose the real images of --eval-every: held-out images, or training images with a notice.

    Raises:
        UsageError: the data has too few images.
    """
    data, many = plan.data, MEDIA[plan.data.images.medium].many
    held_out = len(data.held_out) >= FEWEST_FOR_KID
    chosen = data.held_out if held_out else data.train
    if len(chosen) < FEWEST_FOR_KID:
        text = f"--eval-every needs {FEWEST_FOR_KID} real {many}, and the data has {len(chosen)}"
        hint = f"Remove --eval-every, or add more {many}"
        raise UsageError(text, hint, code="too_few_samples", path=plan.config.data)
    if not held_out:
        number = f"only {len(data.held_out)}" if len(data.held_out) else "no"
        yield Notice(
            f"{number} {MEDIA[data.images.medium].one if len(data.held_out) else many} held out: "
            f"--eval-every compares with training {many}"
        )
    return chosen


def read_samples(plan: Plan, chosen: Indices, max_images: int = REAL_IMAGES) -> Array:
    """Read at most `max_images` of the chosen images, stored (N, C, *size)."""
    real = chosen[permutation(plan.config.seed, 0, len(chosen))[:max_images]]
    return plan.data.read(real)


def choose_network(space: Space, samples: Array, device: torch.device) -> features.FeatureNetwork:
    """Choose the feature network for stored samples (N, C, *size).

    Raises:
        ModelFileError: its weights are missing.
    """
    if can_judge(space):
        return features.load_network(NETWORK, device, finish(features.find_weights(NETWORK)))
    return build_random_network(space, samples, device)


def make_settings(plan: Plan, count: int) -> SamplingSettings:
    """Return the settings of `count` samples in the class proportions of training.

    They have the same noise every time.
    """
    classes: list[int] = []
    if plan.blueprint.conditions.num_classes:
        order = permutation(plan.config.seed, 1, len(plan.data.train))[:count]
        labels = plan.data.images.labels[plan.data.train[order]]
        classes = [int(label) for label in labels if label >= 0]
    return previews.make_settings(plan, count, classes=classes)


def generate(trainer: Trainer, count: int) -> Work[Array]:
    """Generate samples of the EMA weights with these settings, stored (N, C, *size)."""
    plan, device = trainer.plan, trainer.device
    settings, denoiser = make_settings(plan, count), plan.blueprint.denoiser(trainer.ema_net)
    space, indices = plan.blueprint.space, range(count)
    return (yield from generate_all(denoiser, settings, indices, space=space, device=device))


class CopyMeasure:
    """Comparison of samples with the training images of a plan, in features and in pixels."""

    def __init__(self, plan: Plan, network: features.FeatureNetwork) -> None:
        self._plan, self._network = plan, network
        self._features: tuple[Array, Array] | None = None

    def compare(self, samples: Array) -> Work[dict[str, float]]:
        """Return the numbers of the metric `memorization` for samples, stored (N, C, *size)."""
        data, space = self._plan.data, self._plan.blueprint.space
        train, held_out = data.read(data.train), data.read(data.held_out)
        alone = memorization.count_training_references(len(held_out), len(train))
        order, nearest = np.arange(len(train)), {}
        if self._network.pictures:
            if self._features is None:
                train_features = yield from self._extract(train)
                self._features = train_features, (yield from self._extract(held_out))
            train_features, held_out_features = self._features
            sample_features = yield from self._extract(samples)
            nearest["features"] = yield from nearest_neighbors.find_nearest(
                sample_features, held_out_features, train_features, order, alone
            )
        nearest["pixels"] = yield from nearest_neighbors.find_nearest(
            samples, held_out, train, order, alone, partial(nearest_neighbors.to_comparable, space)
        )
        return memorization.compare_distances(nearest)

    def _extract(self, samples: Array) -> Work[Array]:
        prepared = self._network.prepare_input(self._plan.blueprint.space, samples)
        return (yield from features.extract_features(self._network, prepared))


# The sampling settings that the model file recommends, after the last step.
#
# After minutes of training, guidance by the early average of the run's own weights (Karras et al.
# 2024b) improves samples of images much, and how strong it should be depends on the data. So each
# candidate generates samples from the same noise, in the same number of evaluations of the network,
# and is compared with training images, which leaves the held-out images to `eval`. The lowest KID
# wins, among the candidates that look like the data: KID alone may prefer exaggerated contrast and
# edges. Since the candidates share their noise and the images, few samples rank them
# (benchmarks/README.md).


def choose_settings(trainer: Trainer) -> Work[tuple[SamplerChoice | None, bool | None]]:
    """Return the setting to recommend, and whether its samples are not better than noise.

    The setting is None if the default is as good. After the default comes guidance. A short run
    has fewer candidates.
    """
    plan, device = trainer.plan, trainer.device
    blueprint, default = plan.blueprint, previews.default_setting(plan)
    real = read_samples(plan, plan.data.train, chores.REFERENCES)
    try:
        network = choose_network(blueprint.space, real, device)
    except ModelFileError as error:  # at the end of a run, which must not fail by this
        yield Notice(f"no sampling settings were tried: {error.message}", warning=True)
        return None, None
    trials, count = chores.plan_trials(plan, trainer.progress.steps)
    candidates, guide = [default], None
    if trainer.weak and network.pictures and trials > 1:
        candidates += islice(guide_settings(blueprint, default), trials - 1)
        guide = Guide(OWN, 1.0, blueprint.denoiser(trainer.weak_net()), "")
    settings = make_settings(plan, count)
    looks = dict(zip(setting_search.FAR, measure_contrast_and_detail(real), strict=True))

    def measure_look(samples: Array, *_: Array) -> dict[str, float]:
        """Return the differences from the contrast and the detail of real samples."""
        values = zip(setting_search.FAR, measure_contrast_and_detail(samples), strict=True)
        return {name: value - looks[name] for name, value in values}

    search = setting_search.SettingSearch(
        denoiser=blueprint.denoiser(trainer.ema_net),
        blueprint=blueprint,
        base=replace(settings, guide=guide),
        measure=setting_search.FeatureMeasure(network, blueprint.space, real),
        n=count,
        total=len(candidates),
        measure_more=measure_look,
    )
    yield from search.try_settings(candidates)
    best = setting_search.choose_best(search.trials)
    noise = yield from search.measure.is_noise(best.kid)
    return (None if best.setting == default else best.setting), noise


def guide_settings(blueprint: Blueprint, default: SamplerChoice) -> Iterator[SamplerChoice]:
    """Yield settings with autoguidance, in the evaluations of the default.

    They start from a Gaussian, because that keeps brightness, which guidance exaggerates. An
    interval limits classifier-free guidance, too, so a model with conditions has none.
    """
    starts = not blueprint.conditions and can_start_from_gaussian(
        blueprint, max(1, default.steps // 2)
    )
    setting = replace(default, start=GAUSSIAN if starts else None)
    for scale, levels in setting_search.WEAK_CANDIDATES:
        if not (levels and blueprint.conditions):
            yield setting_search.add_autoguidance(setting, scale, blueprint, levels)


def measure_contrast_and_detail(samples: Array) -> tuple[float, float]:
    """Return the contrast and the fine detail of samples (N, C, *size), as logarithms.

    Contrast is the mean standard deviation within a sample. Detail is the mean absolute second
    difference along the spatial dimensions.
    """
    axes = [axis for axis in range(1, samples.ndim - 1) if samples.shape[axis + 1] > 2]
    looks = []
    for sample in map(np.float64, samples):  # one at a time, because many are large in float64
        differences = [np.abs(np.diff(sample, 2, axis)).mean() for axis in axes]
        looks.append((sample.std(), np.mean(differences or [0.0])))
    contrast, detail = np.log(np.maximum(np.mean(looks, 0), 1e-9)).tolist()
    return contrast, detail
