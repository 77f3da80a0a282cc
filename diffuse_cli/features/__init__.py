"""Networks that turn images into features, one file each.

`FEATURES` has an entry for each file of this folder (`efficientnet-lite0` is
`efficientnet_lite0.py`), and imports it when it is looked up, so that listing names is free. Such
a module has `load(device) -> FeatureNetwork`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from diffuse_cli.errors import UsageError
from diffuse_cli.events import Progress, Work
from diffuse_cli.tables import Modules

if TYPE_CHECKING:
    import numpy as np
    import torch


@dataclass(frozen=True)
class FeatureNetwork:
    """A feature network, ready on a device.

    Attributes:
        name: its name in `FEATURES`.
        dim: features an image.
        weights: SHA-256 of its weights file: features of equal pixels, name and hash are equal.
        device: where it computes.
        forward: uint8 pixels (N, 3, H, W) on `device` -> float32 features (N, dim) there.
    """

    name: str
    dim: int
    weights: str
    device: torch.device
    forward: Callable[[torch.Tensor], torch.Tensor]


class FeatureModule(Protocol):
    """What a file of this folder holds."""

    def load(self, device: str | torch.device) -> FeatureNetwork:
        """The network with its weights on `device`, from files on this machine."""
        ...


FEATURES: Mapping[str, FeatureModule] = Modules(__name__, __path__)


def extract(
    network: FeatureNetwork, pixels: np.ndarray[Any, Any], *, batch_size: int | None = None
) -> Work[np.ndarray[Any, Any]]:
    """Features of images, in their order, yielding `Progress("features", done, total)`.

    Args:
        pixels: uint8, (N, C, H, W); one channel is grey and is repeated, three are RGB.
        batch_size: images at a time; it changes the features by rounding only. None is 16 on a
            CPU, where larger batches are no faster, and 256 elsewhere.

    Returns:
        float32, (N, network.dim), as the generator's value.

    Raises:
        UsageError: images of neither one nor three channels.
    """
    import numpy as np
    import torch

    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise ValueError(f"uint8 (N, C, H, W) is needed, not {pixels.dtype} {pixels.shape}")
    if batch_size is None:
        batch_size = 16 if network.device.type == "cpu" else 256
    total, channels, height, width = pixels.shape
    if channels not in (1, 3):
        raise UsageError(f"features need images of 1 or 3 channels, not {channels}")
    features = np.empty((total, network.dim), dtype=np.float32)
    for start in range(0, total, batch_size):
        # torch.tensor copies: pixels may be a read-only memory map.
        batch = torch.tensor(pixels[start : start + batch_size], device=network.device)
        # The mode must not stay on over the yield: it would reach the caller's own arithmetic.
        with torch.inference_mode():
            found = network.forward(batch.expand(-1, 3, height, width))
        features[start : start + batch_size] = found.cpu().numpy()
        yield Progress("features", start + len(batch), total)
    return features
