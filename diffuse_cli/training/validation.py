"""Validation while training: the KID of the EMA weights, the best weights, and overfitting."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffuse_cli.core import Space
from diffuse_cli.media import MEDIA, Array, Indices, can_judge
from diffuse_cli.metrics import Measurement
from diffuse_cli.metrics.features import KIDS, FeatureNetwork, prepare_network
from diffuse_cli.metrics.features.feature_choice import build_random_network
from diffuse_cli.sampling.generation import generate_all
from diffuse_cli.sampling.sampling_settings import SamplingSettings
from diffuse_cli.system import Notice, UsageError, Work, finish
from diffuse_cli.system.rng import permutation
from diffuse_cli.training.feed import find_readable
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.previews import make_settings

if TYPE_CHECKING:
    from torch import Tensor


IMAGES = 256
"""Default of --eval-images."""

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
        return next(key for key in KIDS if key in self.values)


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
        raise UsageError(text, f"Remove --eval-every, or add more {many}")
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
    return np.ascontiguousarray(plan.data.images.stored[find_readable(plan.data, real)])


def choose_network(space: Space, samples: Array, device: torch.device) -> FeatureNetwork:
    """Choose the feature network for stored samples (N, C, *size).

    Raises:
        ModelFileError: its weights are missing.
    """
    if can_judge(space):
        return finish(prepare_network(NETWORK, device))
    return build_random_network(space, samples, device)


def make_settings_in_proportion(plan: Plan, count: int) -> SamplingSettings:
    """Return the settings of `count` samples in the class proportions of training.

    They have the same noise every time.
    """
    classes: list[int] = []
    if plan.blueprint.conditions.num_classes:
        order = permutation(plan.config.seed, 1, len(plan.data.train))[:count]
        labels = plan.data.images.labels[plan.data.train[order]]
        classes = [int(label) for label in labels if label >= 0]
    return make_settings(plan, count, classes=classes)


def generate_in_proportion(plan: Plan, net: Any, count: int, device: torch.device) -> Work[Array]:
    """Generate samples with these settings, stored (N, C, *size)."""
    settings, denoiser = make_settings_in_proportion(plan, count), plan.blueprint.denoiser(net)
    space, indices = plan.blueprint.space, range(count)
    return (yield from generate_all(denoiser, settings, indices, space=space, device=device))


# A warning when a model starts to memorize its images.
#
# The rule: the mean held-out loss of the last measurements is above the lowest mean of as many
# earlier ones, by more than four standard errors, while the training loss is below its value at the
# best measurement. Held-out losses use the same images, timesteps and noise every time. Their error
# is the larger of two: of the choice of held-out images, from paired differences, and of the jitter
# of the run, from the second differences of the curve, which a trend does not change. On plateaus,
# simulated with jitter of one to four paired errors, 8 to 50 measurements raise under 2 % false
# alarms (tests/training/test_overfitting.py).

ERRORS = 4.0
"""Standard errors of a rise that counts."""

WINDOW, PARTS = 3, 4
"""Measurements that are averaged: 1/PARTS of all so far, and at least WINDOW."""

FEWEST_FOR_ERROR = 8
"""The fewest images for a useful standard error."""


@dataclass(frozen=True)
class HeldOutLosses:
    """Held-out loss of each image, and the mean training loss since the last measurement."""

    step: int
    losses: tuple[float, ...]
    training: float | None

    @property
    def mean(self) -> float:
        """Mean held-out loss."""
        return math.fsum(self.losses) / len(self.losses)

    def paired_error(self, earlier: HeldOutLosses) -> float:
        """Return the standard error of the difference of two means."""
        differences = np.subtract(self.losses, earlier.losses)
        return float(differences.std(ddof=1)) / math.sqrt(len(differences))


def has_risen(means: Sequence[float], error: float) -> bool:
    """Whether the last held-out losses of a curve are higher than its lowest.

    Args:
        means: the mean held-out losses so far.
        error: the standard error of a difference of two of them, by the choice of images.
    """
    width = max(WINDOW, len(means) // PARTS)
    if len(means) < 2 * width:
        return False
    smooth = np.convolve(means, np.full(width, 1 / width), "valid")
    # The median of |x| is 0.6745 standard deviations, and a second difference has six variances.
    jitter = float(np.median(np.abs(np.diff(means, 2)))) / 0.6745 / math.sqrt(6)
    sigma = math.sqrt(2 / width) * max(jitter, error)
    return bool(smooth[-1] - smooth[:-width].min() > ERRORS * sigma)


@dataclass
class Overfitting:
    """State of the overfitting warning.

    Attributes:
        best: the measurement with the lowest held-out loss.
        means: the mean held-out losses so far.
        said: whether the warning was shown.
    """

    best: HeldOutLosses | None = None
    means: list[float] = field(default_factory=list)
    said: bool = False

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Overfitting:
        """Restore the state from the JSON of `dataclasses.asdict`."""
        best = state["best"]
        held = HeldOutLosses(**{**best, "losses": tuple(best["losses"])}) if best else None
        return cls(held, list(state["means"]), state["said"])

    def add_measurement(self, now: HeldOutLosses) -> str | None:
        """Add a measurement, and return the warning the first time it is due."""
        best = self.best
        if best is None or len(best.losses) != len(now.losses):
            self.best, self.means = now, [now.mean]
            return None
        self.means.append(now.mean)
        if now.mean < best.mean:
            self.best = now
            return None
        if self.said or len(now.losses) < FEWEST_FOR_ERROR:
            return None
        if best.training is None or now.training is None or now.training >= best.training:
            return None
        if not has_risen(self.means, now.paired_error(best)):
            return None
        self.said = True
        return (
            f"overfitting: the held-out loss was best at step {best.step:,} and has risen from "
            f"{Measurement(best.mean)} to {Measurement(now.mean)}, while the training loss fell "
            f"from {Measurement(best.training)} to {Measurement(now.training)}. The model "
            "memorizes its training data"
        )
