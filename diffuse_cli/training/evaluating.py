"""The KID of the averaged weights while training, and the weights it was best with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.core.space import Space
from diffuse_cli.errors import UsageError
from diffuse_cli.events import Work, finish
from diffuse_cli.features import FeatureNetwork, extract, find, load
from diffuse_cli.metrics import kid
from diffuse_cli.runtime import permutation
from diffuse_cli.sampling import Drawing, collect, looks
from diffuse_cli.training.looking import drawn
from diffuse_cli.training.preparing import Plan

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Array = npt.NDArray[Any]

IMAGES = 256
"""Images drawn for an evaluation where nothing says otherwise."""

REAL_IMAGES = 1000
"""At most so many real images are compared with them; their features are computed once."""

NETWORK = "efficientnet-lite0"
"""The feature network, which is in the installation."""

LEAST = 2
"""Images on a side of which a KID can be estimated."""


@dataclass(frozen=True)
class Best:
    """The averaged weights with the lowest KID so far, on the CPU, and where that was.

    Attributes:
        images: how many were drawn: KIDs of other numbers are not compared.
        tensors: the weights by name, with raw ones under `modelfile.RAW` where they are kept.
    """

    step: int
    kid: float
    standard_error: float | None
    images: int
    tensors: Mapping[str, Tensor]

    def values(self) -> dict[str, Any]:
        """Everything but the weights."""
        return {
            "step": self.step,
            "kid": self.kid,
            "kid_standard_error": self.standard_error,
            "images": self.images,
        }


def best_of(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Best:
    """What `Best.values` was made of."""
    error = values["kid_standard_error"]
    return Best(values["step"], values["kid"], error, values["images"], tensors)


class Kid:
    """KID of generated images against the same real ones, uint8 (N, C, H, W)."""

    def __init__(self, real: Array, space: Space, network: FeatureNetwork) -> None:
        self._real: Array | None = real
        self._space = space
        self._network = network
        self._real_features: Array | None = None

    def measure(self, drawings: Iterator[Drawing], count: int) -> Work[dict[str, float]]:
        """`kid` and `kid_standard_error` of so many images that are drawn."""
        if self._real is not None:
            real = yield from extract(self._network, looks(self._space, self._real))
            self._real_features = np.asarray(real, np.float64)
            self._real = None
        assert self._real_features is not None
        pixels: dict[int, Array] = {}
        yield from collect(drawings, self._space, count, pixels)
        fakes = looks(self._space, np.stack([pixels[i] for i in range(count)]))
        features = yield from extract(self._network, fakes)
        return kid.estimate(self._real_features, np.asarray(features, np.float64))


class Evaluator:
    """KID against real images of a plan: the same ones, from the same noise, every time.

    Attributes:
        held_out: whether the real images are held out; otherwise the model is trained on them.

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
        real_images = np.ascontiguousarray(plan.images.stored[real])
        self._kid = Kid(real_images, plan.blueprint.space, network)

    def kid(self, net: Any) -> Work[dict[str, float]]:
        """`kid` and `kid_standard_error` of images drawn with a network of the plan's kind, as
        `sample` draws them by default."""
        drawings = drawn(self.plan, net, self.images, self.device)
        return (yield from self._kid.measure(drawings, self.images))
