"""The KID of the averaged weights while training, and the weights with the lowest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.core.space import Space
from diffuse_cli.draws import permutation
from diffuse_cli.errors import UsageError
from diffuse_cli.events import Work, finish
from diffuse_cli.features import FeatureNetwork, extract, find, load
from diffuse_cli.metrics import kid
from diffuse_cli.sampling import Drawing, collect, looks
from diffuse_cli.training.feed import readable
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.previews import draw_by_default

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Array = npt.NDArray[Any]

IMAGES = 256
"""Default of --eval-images."""

REAL_IMAGES = 1000
"""Most real images to compare with; their features are computed once."""

NETWORK = "efficientnet-lite0"
"""The feature network, which is in the installation."""

LEAST = 2
"""Images on a side that an estimate of KID needs."""


@dataclass(frozen=True)
class Best:
    """The averaged weights with the lowest KID so far, on the CPU.

    Attributes:
        images: how many were drawn: KIDs of other numbers are not compared.
        tensors: the weights by name; raw ones, where they are kept, under `modelfile.RAW`.
    """

    step: int
    kid: float
    kid_standard_error: float | None
    images: int
    tensors: Mapping[str, Tensor]

    def values(self) -> dict[str, Any]:
        """Everything but the weights, by field."""
        return {name: value for name, value in vars(self).items() if name != "tensors"}


class KidMeasure:
    """KID of generated samples against the same real ones, (N, C, *size) as stored."""

    def __init__(self, real: Array, space: Space, network: FeatureNetwork) -> None:
        self._real, self._space, self._network = real, space, network
        self._real_features: Array | None = None

    def measure(self, drawings: Iterator[Drawing], count: int) -> Work[dict[str, float]]:
        """`kid` and `kid_standard_error` of `count` drawn images."""
        if self._real_features is None:
            self._real_features = yield from self._features(self._real)
            del self._real
        fakes: dict[int, Array] = {}
        yield from collect(drawings, self._space, count, fakes)
        features = yield from self._features(np.stack([fakes[i] for i in range(count)]))
        return kid.estimate(self._real_features, features)

    def _features(self, samples: Array) -> Work[Array]:
        found = yield from extract(self._network, looks(self._space, samples))
        return np.asarray(found, np.float64)


class Validator:
    """KID against real images of a plan: the same ones, from the same noise, every time.

    Attributes:
        held_out: whether the real images are held out; if not, the model is trained on them.

    Raises:
        UsageError: the data has too few images.
        ModelFileError: the feature network's weights are missing.
    """

    def __init__(self, plan: Plan, images: int, device: torch.device) -> None:
        self.plan, self.images, self.device = plan, images, device
        self.held_out = len(plan.held_out) >= LEAST
        chosen = plan.held_out if self.held_out else plan.train
        if len(chosen) < LEAST:
            raise UsageError(
                f"an evaluation needs {LEAST} real images, and the data has {len(chosen)}",
                "Leave --eval-every out, or give more images",
            )
        real = chosen[permutation(plan.config.seed, 0, len(chosen))[:REAL_IMAGES]]
        network = load(NETWORK, device, finish(find(NETWORK)))
        real_images = np.ascontiguousarray(plan.images.stored[readable(plan, real)])
        self._kid = KidMeasure(real_images, plan.blueprint.space, network)

    def kid(self, net: Any) -> Work[dict[str, float]]:
        """`kid` and `kid_standard_error` of a network of the plan's kind."""
        drawings = draw_by_default(self.plan, net, self.images, self.device)
        return (yield from self._kid.measure(drawings, self.images))
