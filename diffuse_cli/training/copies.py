"""Signs of copies among samples, while training on few images.

Copying starts after a number of steps in proportion to the number of images (Bonnaire et al. 2025),
and good samples come earlier. So a run on few images looks for copies at previews, as `eval` does,
and keeps the last weights whose samples show no clear signs of them: in pixels and features, so
that samples of arrays and sounds never do.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from diffuse_cli.media import Array, Indices
from diffuse_cli.metrics import memorization
from diffuse_cli.metrics.features import extract_features
from diffuse_cli.metrics.nearest_neighbors import find_nearest, to_comparable
from diffuse_cli.system import Work
from diffuse_cli.training import previews
from diffuse_cli.training.feed import find_readable
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.recommendation import FEATURES

if TYPE_CHECKING:
    from diffuse_cli.metrics.features import FeatureNetwork

FEW, MANY = 8, 2000
"""The fewest training images, which are references of each other, and the number from which on
copies are not looked for."""

SHARE, SEEN = 50, 100
"""Looking for copies takes at most 1/SHARE of the passes of the steps, in runs that see each image
SEEN times or more: fewer make no copies (benchmarks/README.md)."""

FEWEST, MOST = 64, 256
"""Samples to compare. With fewer than FEWEST, only high rates of copies would be noticed."""


@dataclass(frozen=True)
class Looks:
    """Looks for copies, every `every` steps and after the last one, at `count` samples each."""

    every: int
    count: int


def can_look(plan: Plan) -> bool:
    """Whether copies are looked for: among few images, if the run is long enough.

    A model that is conditioned on images or metadata may be asked for its training images.
    """
    count = len(plan.data.train)
    return FEW <= count < MANY and plan.teacher is None and not previews.uses_images(plan)


def plan_looks(plan: Plan, steps: int, preview_every: int) -> Looks | None:
    """Plan looks in a run of `steps` steps: at each preview, or at fewer to afford the samples.

    None without a search, or if the run is too short.
    """
    if not can_look(plan) or steps * (plan.config.batch_size or 0) < SEEN * len(plan.data.train):
        return None
    passes = steps * previews.passes_of_step(plan) // SHARE - FEATURES * len(plan.data.images)
    count = max(0, passes) // count_passes(plan, 1)
    looks = min(-(-steps // preview_every), count // FEWEST)
    if looks == 0:
        return None
    every = preview_every * -(-steps // (preview_every * looks))
    return Looks(every, min(MOST, count // -(-steps // every)))


def count_passes(plan: Plan, count: int) -> int:
    """Return the cost of a look at `count` samples, in forward passes."""
    return previews.passes_of_drawing(plan, count) + FEATURES * count


class CopyMeasure:
    """Comparison of samples with the training images of a plan, in features and in pixels."""

    def __init__(self, plan: Plan, network: FeatureNetwork) -> None:
        self._plan, self._network = plan, network
        self._features: tuple[Array, Array] | None = None

    def compare(self, samples: Array) -> Work[dict[str, float]]:
        """Return the numbers of the metric `memorization` for samples, stored (N, C, *size)."""
        data, space = self._plan.data, self._plan.blueprint.space
        train, held_out = self._read(data.train), self._read(data.held_out)
        alone = memorization.count_training_references(len(held_out), len(train))
        order, nearest = np.arange(len(train)), {}
        if self._network.pictures:
            if self._features is None:
                train_features = yield from self._extract(train)
                self._features = train_features, (yield from self._extract(held_out))
            features = yield from self._extract(samples)
            train_features, held_out_features = self._features
            nearest["features"] = yield from find_nearest(
                features, held_out_features, train_features, order, alone
            )
        nearest["pixels"] = yield from find_nearest(
            samples, held_out, train, order, alone, partial(to_comparable, space)
        )
        return memorization.compare_distances(nearest)

    def _read(self, chosen: Indices) -> Array:
        data = self._plan.data
        return np.ascontiguousarray(data.images.stored[find_readable(data, chosen)])

    def _extract(self, samples: Array) -> Work[Array]:
        space = self._plan.blueprint.space
        return (
            yield from extract_features(self._network, self._network.prepare_input(space, samples))
        )
