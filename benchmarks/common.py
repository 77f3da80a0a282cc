"""What the benchmarks share: models and real images in memory, samples, features, the machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

from diffuse_cli.core import Space
from diffuse_cli.core.data_gaussian import DataGaussian
from diffuse_cli.core.samplers import sampler_options
from diffuse_cli.data import Dataset, read_images
from diffuse_cli.metrics import kid, precision_recall
from diffuse_cli.metrics.features import extract_features, find_weights, load_network
from diffuse_cli.metrics.features.feature_choice import build_random_network
from diffuse_cli.sampling.conditioning import Condition
from diffuse_cli.sampling.generation import collect, generate_batches
from diffuse_cli.sampling.model_loading import LoadedModel
from diffuse_cli.sampling.sampling_settings import Guide, SamplingSettings
from diffuse_cli.system.events import finish
from diffuse_cli.system.rng import permutation

Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def machine() -> dict[str, Any]:
    """The processor and what it has for matrices, the GPU, threads, and torch."""
    has = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    extensions = ("avx2", "avx512_bf16", "amx_bf16", "amx_tile", "bf16")
    found = {
        "processor": _processor(),
        "extensions": [name for name in extensions if has.get(name)],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    """The processor's name, or its architecture where the system does not say."""
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def read(source: str, size: tuple[int, int] | None = None) -> Dataset:
    """The images of a folder."""
    return finish(read_images(source, size=size))


def pictures(paths: Sequence[str]) -> Pixels:
    """Drawn images, (N, C, H, W)."""
    found = [np.array(Image.open(path)) for path in paths]
    return np.stack([p[None] if p.ndim == 2 else p.transpose(2, 0, 1) for p in found])


def held_out(images: Dataset, n: int) -> Pixels:
    """n images that training never saw, of every class: images come in the order of their names."""
    own = np.flatnonzero(images.held_out)
    return np.ascontiguousarray(images.stored[own[permutation(0, 0, len(own))[:n]]])


def some(images: Dataset, n: int) -> Pixels:
    """n of all images, of every class."""
    return np.ascontiguousarray(images.stored[permutation(0, 0, len(images))[:n]])


def features(pixels: Pixels, accelerator: Accelerator) -> np.ndarray[Any, Any]:
    """Features of EfficientNet-Lite0, (N, 1280)."""
    network = load_network(
        "efficientnet-lite0", accelerator.device, finish(find_weights("efficientnet-lite0"))
    )
    return np.asarray(finish(extract_features(network, pixels)), np.float64)


def random_features(real: Pixels, pixels: Pixels, accelerator: Accelerator) -> np.ndarray[Any, Any]:
    """Return features of a network with random weights, which `real` scales."""
    space = Space(channels=real.shape[1], size=real.shape[2:])
    network = build_random_network(space, real, accelerator.device)
    return np.asarray(finish(extract_features(network, pixels)), np.float64)


def sample(
    loaded: LoadedModel,
    n: int,
    accelerator: Accelerator,
    *,
    steps: int,
    sampler: str = "ddim",
    spacing: str | None = None,
    times: tuple[float, ...] | None = None,
    condition: Condition | None = None,
    guide: Guide | None = None,
    start: DataGaussian | None = None,
    noise_levels: tuple[float, float] | None = None,
    seed: int = 0,
    **options: float | None,
) -> tuple[Pixels, float]:
    """n images of a model, and the seconds they took."""
    began = time.monotonic()
    settings = SamplingSettings(
        sampler=sampler,
        steps=steps,
        spacing=spacing,
        times=times,
        options=sampler_options(sampler, **options),
        condition=condition,
        guide=guide,
        start=start,
        noise_levels=noise_levels,
        seed=seed,
    )
    space, device = loaded.space, accelerator.device
    drawings = generate_batches(loaded.denoiser, settings, range(n), space=space, device=device)
    pixels = finish(collect(drawings, space, n))
    return np.stack([pixels[i] for i in range(n)]), time.monotonic() - began


def to_uint8(x: torch.Tensor) -> Pixels:
    """Samples in [-1, 1] as 8-bit levels."""
    levels: Pixels = Space(channels=x.shape[1], size=x.shape[2:]).to_stored(x).cpu().numpy()
    return levels


def distance(real: np.ndarray[Any, Any], fake: np.ndarray[Any, Any]) -> dict[str, float]:
    """KID of two arrays of features, with its standard error."""
    return {name: round(value, 5) for name, value in kid.estimate_kid(real, fake).items()}


def shares(real: np.ndarray[Any, Any], fake: np.ndarray[Any, Any]) -> dict[str, float]:
    """Precision and recall of two arrays of features."""
    found = precision_recall.measure_fractions(real, fake)
    return {name: round(found[name].value(), 4) for name in ("precision", "recall")}


def looks(real: Pixels, fake: Pixels) -> dict[str, float]:
    """Return what the eye sees first, against real images.

    As fractions of theirs: the standard deviation of the images' mean levels, the mean standard
    deviation within images, and the fine detail, which is the mean absolute Laplacian. And the mean
    level less theirs.
    """

    def seen(pixels: Pixels) -> tuple[float, float, float, float]:
        x = pixels.astype(np.float64)
        flat = x.reshape(len(x), -1)
        around = x[..., :-2, 1:-1] + x[..., 2:, 1:-1] + x[..., 1:-1, :-2] + x[..., 1:-1, 2:]
        detail = np.abs(around - 4 * x[..., 1:-1, 1:-1]).mean()
        return float(flat.mean(1).std()), float(flat.std(1).mean()), float(detail), float(x.mean())

    (means, within, detail, mean), own = seen(fake), seen(real)
    return {
        "means": round(means / own[0], 4),
        "within": round(within / own[1], 4),
        "detail": round(detail / own[2], 4),
        "brightness": round(mean - own[3], 2),
    }


def names(paths: Sequence[str]) -> dict[str, Path]:
    """Models by the stem of their file."""
    return {Path(path).stem: Path(path) for path in paths}
