"""Networks that turn images into features, one file each.

`FEATURES` has an entry for each file of this folder (`efficientnet-lite0` is
`efficientnet_lite0.py`), and imports it when it is looked up, so that listing names is free. Such
a module has `find() -> Work[Path]`, which finds or downloads its weights file, and
`load(device, file) -> FeatureNetwork`. A file that starts with an underscore is no network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from diffuse_cli.core.registry import Modules
from diffuse_cli.errors import UsageError, lookup
from diffuse_cli.events import Progress, Work

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
        resize: how it resizes the pixels first, in words.
    """

    name: str
    dim: int
    weights: str
    device: torch.device
    forward: Callable[[torch.Tensor], torch.Tensor]
    resize: str = ""

    def described(self) -> dict[str, str]:
        """What one needs to know of it to compare numbers with others."""
        return {"name": self.name, "weights_sha256": self.weights, "resize": self.resize}


class FeatureModule(Protocol):
    """What a file of this folder holds."""

    def find(self) -> Work[Path]:
        """Where its weights lie on this machine, downloaded if they must be."""
        ...

    def load(self, device: str | torch.device, file: Path) -> FeatureNetwork:
        """The network on `device` with the weights of `file`, once its checksum is right."""
        ...


FEATURES: Mapping[str, FeatureModule] = Modules("features", __name__, __path__)


def find(name: str) -> Work[Path]:
    """Where the weights of a network of `FEATURES` lie, downloaded if they must be.

    Raises:
        UsageError: no such network.
        ModelFileError: the weights cannot be had.
    """
    return (yield from lookup(FEATURES, name, "--features").find())


def load(name: str, device: str | torch.device, file: Path) -> FeatureNetwork:
    """A network of `FEATURES` with the weights of `file`, once their checksum is right.

    Raises:
        UsageError: no such network.
        ModelFileError: the weights are others than the published ones.
    """
    return lookup(FEATURES, name, "--features").load(device, file)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Inside the block a GPU convolves and multiplies in float32.

    In TF32, which it may be told or choose to take instead, features would differ by 1e-3.
    """
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def usual_batch(network: FeatureNetwork) -> int:
    """Images at a time: 16 on a CPU, where larger batches are no faster, and 256 elsewhere."""
    return 16 if network.device.type == "cpu" else 256


def extract(
    network: FeatureNetwork, pixels: np.ndarray[Any, Any], *, batch_size: int | None = None
) -> Work[np.ndarray[Any, Any]]:
    """Features of images, in their order, yielding `Progress("features", done, total)`.

    Args:
        pixels: uint8, (N, C, H, W); one channel is grey and is repeated, three are RGB.
        batch_size: images at a time, which changes the features by rounding only; `usual_batch`
            where None.

    Returns:
        float32, (N, network.dim), as the generator's value.

    Raises:
        UsageError: images of neither one nor three channels.
    """
    import numpy as np
    import torch

    if pixels.dtype != np.uint8 or pixels.ndim != 4:
        raise ValueError(f"uint8 (N, C, H, W) is needed, not {pixels.dtype} {pixels.shape}")
    size = usual_batch(network) if batch_size is None else batch_size
    total, channels, height, width = pixels.shape
    if channels not in (1, 3):
        raise UsageError(f"features need images of 1 or 3 channels, not {channels}")
    features = np.empty((total, network.dim), dtype=np.float32)
    for start in range(0, total, size):
        # torch.tensor copies: pixels may be a read-only memory map.
        batch = torch.tensor(pixels[start : start + size], device=network.device)
        # The mode must not stay on over the yield: it would reach the caller's own arithmetic.
        with torch.inference_mode():
            found = network.forward(batch.expand(-1, 3, height, width))
        features[start : start + size] = found.cpu().numpy()
        yield Progress("features", start + len(batch), total)
    return features
