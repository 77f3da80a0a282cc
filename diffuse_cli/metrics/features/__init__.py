"""Networks that turn images into features, one file each (see `FeatureModule`).

`FEATURES` imports an entry on look-up, so listing the names is cheap.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from diffuse_cli.core import Modules
from diffuse_cli.system import Progress, Work, lookup
from diffuse_cli.system.devices import restore_kernel_settings, set_product_precision

if TYPE_CHECKING:
    import numpy as np
    import torch

    from diffuse_cli.core import Space
    from diffuse_cli.media import Array
    from diffuse_cli.metrics.features.published_weights import Weights


KIDS = ("kid", "kid_random")
"""Keys of the two kernel distances: with networks for images, and with random features. They are
different metrics, which are not compared."""


RANDOM = "random"
"""Name of the network with random weights."""


def describe_network(features: Mapping[str, str]) -> str:
    """Return words for a feature network, from `FeatureNetwork.describe`."""
    name = features.get("name", "")
    return "random features" if name == RANDOM else f"features of {name}"


@dataclass(frozen=True)
class FeatureNetwork:
    """Feature network on a device.

    Attributes:
        name: the name in `FEATURES`.
        dim: the number of features per image.
        weights: the SHA-256 of its weights file. The same name, hash and pixels give the same
            features.
        forward: the function from uint8 pixels (N, 3, H, W) on `device` to float32 features
            (N, dim) there.
        resize: the description of the resizing of pixels.
        pictures: whether its input is pixels, not stored samples of a space.
    """

    name: str
    dim: int
    weights: str
    device: torch.device
    forward: Callable[[torch.Tensor], torch.Tensor]
    resize: str = ""
    pictures: bool = True

    def describe(self) -> dict[str, str]:
        """Return the description for published results, as JSON."""
        return {"name": self.name, "weights_sha256": self.weights, "resize": self.resize}

    @property
    def kid(self) -> str:
        """The key of the kernel distance of its features, one of `KIDS`."""
        return KIDS[0 if self.pictures else 1]

    def prepare_input(self, space: Space, samples: Array) -> Array:
        """Return the network's input for stored samples (N, C, *size)."""
        from diffuse_cli.media import render_samples

        return render_samples(space, samples) if self.pictures else samples


class FeatureModule(Protocol):
    """Contents of a file of this folder.

    Attributes:
        PUBLISHED: the weights.
        DIM: the number of features per image.
        RESIZE: the description of the resizing in `preprocess`.
    """

    PUBLISHED: Weights
    DIM: int
    RESIZE: str

    def build(self, file: Path) -> torch.nn.Module:
        """Build the network with the weights of `file`, on the CPU, for inference.

        Raises:
            ModelFileError: the file cannot be read, or is not the published file.
        """
        ...

    def preprocess(self, pixels: torch.Tensor) -> torch.Tensor:
        """Turn uint8 RGB (N, 3, H, W) into the network's input, float32."""
        ...


FEATURES: Mapping[str, FeatureModule] = Modules(
    "features", __name__, __path__, helpers=("feature_cache", "feature_choice", "published_weights")
)


def find_weights(name: str) -> Work[Path]:
    """Find a network's weights and return their path, after downloading them if necessary.

    Raises:
        UsageError: an unknown network.
        ModelFileError: the weights cannot be found.
    """
    return (yield from lookup(FEATURES, name, "--features").PUBLISHED.find())


def load_network(name: str, device: str | torch.device, file: Path) -> FeatureNetwork:
    """Load a network of `FEATURES` on `device`, float32, with the weights of `file`.

    Raises:
        UsageError: an unknown network.
        ModelFileError: the file cannot be read, or is not the published file.
    """
    import torch

    module = lookup(FEATURES, name, "--features")
    device = torch.device(device)
    network = module.build(file).to(device)

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        with use_float32():
            features: torch.Tensor = network(module.preprocess(pixels))
        return features

    return FeatureNetwork(name, module.DIM, module.PUBLISHED.sha256, device, forward, module.RESIZE)


@contextlib.contextmanager
def use_float32() -> Iterator[None]:
    """Make GPUs compute in float32 inside the block. TF32 would change features by 1e-3."""
    import torch

    cudnn = torch.backends.cudnn
    with restore_kernel_settings():
        set_product_precision("fp32")
        cudnn.enabled, cudnn.deterministic, cudnn.benchmark = True, True, False
        yield


def usual_batch(network: FeatureNetwork) -> int:
    """Return the default batch size: 16 on a CPU, where larger batches are not faster, else 256."""
    return 16 if network.device.type == "cpu" else 256


def extract_features(
    network: FeatureNetwork, pixels: np.ndarray[Any, Any], *, batch_size: int | None = None
) -> Work[np.ndarray[Any, Any]]:
    """Compute the features of samples in their order, float32 (N, network.dim).

    It yields `Progress("features", done, total)`.

    Args:
        pixels: uint8 (N, C, H, W), grey or RGB, or another input of the network.
        batch_size: the batch size, by default `usual_batch`. It changes features only by rounding.
    """
    import numpy as np
    import torch

    size = usual_batch(network) if batch_size is None else batch_size
    total, _, *sides = pixels.shape
    features = np.empty((total, network.dim), dtype=np.float32)
    for start in range(0, total, size):
        # torch.tensor copies: pixels may be a read-only memory map.
        batch = torch.tensor(pixels[start : start + size], device=network.device)
        # Not around the yield, because the mode would also apply to the caller.
        with torch.inference_mode():
            part = network.forward(batch.expand(-1, 3, *sides) if network.pictures else batch)
        features[start : start + size] = part.cpu().numpy()
        yield Progress("features", start + len(batch), total)
    return features
