"""Networks that turn images into features, one file each (see `FeatureModule`).

`FEATURES` imports an entry when it is looked up, so listing the names is free.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from diffuse_cli.core.registry import Modules
from diffuse_cli.system.errors import UsageError, lookup
from diffuse_cli.system.events import Progress, Work

if TYPE_CHECKING:
    import numpy as np
    import torch

    from diffuse_cli.core.space import Space
    from diffuse_cli.media import Array
    from diffuse_cli.metrics.features._weights import Weights


KIDS = ("kid", "kid_random")
"""The keys of kernel distances among the metrics: of networks that see pictures, and of others.
They are different numbers, and are not compared."""


RANDOM = "random"
"""The name of the network with random weights."""


@dataclass(frozen=True)
class FeatureNetwork:
    """A feature network, ready on a device.

    Attributes:
        name: its name in `FEATURES`.
        dim: features per image.
        weights: SHA-256 of its weights file: features of equal pixels, name and hash are equal.
        forward: uint8 pixels (N, 3, H, W) on `device` -> float32 features (N, dim) there.
        resize: how it resizes the pixels first, in words.
        pictures: whether it sees pixels; if not, stored samples of one space.
    """

    name: str
    dim: int
    weights: str
    device: torch.device
    forward: Callable[[torch.Tensor], torch.Tensor]
    resize: str = ""
    pictures: bool = True

    def described(self) -> dict[str, str]:
        """What a published number must name, as JSON."""
        return {"name": self.name, "weights_sha256": self.weights, "resize": self.resize}

    @property
    def kid(self) -> str:
        """The key of the kernel distance of its features, one of `KIDS`."""
        return KIDS[0 if self.pictures else 1]

    def seen(self, space: Space, samples: Array) -> Array:
        """What it sees of stored samples (N, C, *size)."""
        from diffuse_cli.media import looks

        return looks(space, samples) if self.pictures else samples


class FeatureModule(Protocol):
    """What a file of this folder holds.

    Attributes:
        PUBLISHED: its weights.
        DIM: features per image.
        RESIZE: how `preprocess` resizes, in words.
    """

    PUBLISHED: Weights
    DIM: int
    RESIZE: str

    def build(self, file: Path) -> torch.nn.Module:
        """The network with the weights of `file`, on the CPU, for inference.

        Raises a `ModelFileError` if the file cannot be read, or is not the published one.
        """
        ...

    def preprocess(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 RGB (N, 3, H, W) -> the network's input, float32."""
        ...


FEATURES: Mapping[str, FeatureModule] = Modules(
    "features", __name__, __path__, helpers=("feature_choice",)
)


def find(name: str) -> Work[Path]:
    """The path of a network's weights, which are downloaded if they are not on this machine.

    Raises a `UsageError` for an unknown network, a `ModelFileError` without its weights.
    """
    return (yield from lookup(FEATURES, name, "--features").PUBLISHED.find())


def load(name: str, device: str | torch.device, file: Path) -> FeatureNetwork:
    """A network of `FEATURES` on `device`, float32, with the weights of `file`.

    Raises a `UsageError` for an unknown network, and what its `build` does.
    """
    import torch

    module = lookup(FEATURES, name, "--features")
    device = torch.device(device)
    network = module.build(file).to(device)

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        with exact():
            features: torch.Tensor = network(module.preprocess(pixels))
        return features

    return FeatureNetwork(name, module.DIM, module.PUBLISHED.sha256, device, forward, module.RESIZE)


def ready(
    name: str, device: str | torch.device, file: str | Path | None = None
) -> Work[FeatureNetwork]:
    """`load`, of the file that is given or else of the one that `find` finds."""
    found = Path(file) if file is not None else (yield from find(name))
    return load(name, device, found)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Inside the block a GPU computes in float32; TF32 would change features by 1e-3."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def usual_batch(network: FeatureNetwork) -> int:
    """Batch size: 16 on a CPU, where larger batches are no faster, else 256."""
    return 16 if network.device.type == "cpu" else 256


def extract(
    network: FeatureNetwork, pixels: np.ndarray[Any, Any], *, batch_size: int | None = None
) -> Work[np.ndarray[Any, Any]]:
    """Features of samples, float32 (N, network.dim), in their order.

    Yields `Progress("features", done, total)`.

    Args:
        pixels: uint8 (N, C, H, W), grey or RGB; or what the network sees instead.
        batch_size: changes the features by rounding only; `usual_batch` if None.

    Raises:
        UsageError: images with neither one nor three channels.
    """
    import numpy as np
    import torch

    if network.pictures and (pixels.dtype != np.uint8 or pixels.ndim != 4):
        raise ValueError(f"pixels must be uint8 (N, C, H, W), not {pixels.dtype} {pixels.shape}")
    size = usual_batch(network) if batch_size is None else batch_size
    total, channels, *sides = pixels.shape
    if network.pictures and channels not in (1, 3):
        raise UsageError(f"features need images of 1 or 3 channels, not {channels}")
    features = np.empty((total, network.dim), dtype=np.float32)
    for start in range(0, total, size):
        # torch.tensor copies: pixels may be a read-only memory map.
        batch = torch.tensor(pixels[start : start + size], device=network.device)
        # Not around the yield: the mode would reach the caller's arithmetic.
        with torch.inference_mode():
            found = network.forward(batch.expand(-1, 3, *sides) if network.pictures else batch)
        features[start : start + size] = found.cpu().numpy()
        yield Progress("features", start + len(batch), total)
    return features
