"""`evaluate`: a model, or a folder of images, measured against real images."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from diffuse_cli import files, pictures
from diffuse_cli.config import EvalConfig
from diffuse_cli.core.likelihood import bound_terms, prior_bits, strata
from diffuse_cli.core.samplers import knobs
from diffuse_cli.data import Images, read_images
from diffuse_cli.errors import ModelFileError, lookup
from diffuse_cli.events import Notice, Progress, Work
from diffuse_cli.features import FEATURES, extract
from diffuse_cli.metrics import METRICS
from diffuse_cli.options import Size
from diffuse_cli.runtime import draw_noise, machine, permutation, philox, resolve_precision
from diffuse_cli.sampling import Loaded, collect, draw, load_denoiser

if TYPE_CHECKING:
    from accelerate import Accelerator

Pixels = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]


PICKLES = {".pt", ".pth", ".ckpt"}
"""Zip files, as torch writes them, that hold no images."""


@dataclass(frozen=True)
class Evaluated:
    """The numbers of an evaluation, and what one needs to compare them with others.

    Attributes:
        values: each metric's numbers by name.
        real, generated: how many images on each side.
        part: which of the real images: `held-out` or `all`.
        features: name and weights hash of the feature network.
    """

    values: dict[str, float]
    real: int
    generated: int
    part: str
    features: dict[str, str]
    settings: dict[str, Any]
    seconds: float


@dataclass
class Evaluation:
    """An evaluation under way: what its metrics may read, made part by part when first needed."""

    config: EvalConfig
    accelerator: Accelerator
    loaded: Loaded | None
    real: Pixels
    fakes: Pixels | None = None
    bits: Array = field(default_factory=lambda: np.zeros((0, 3)))
    real_features: Array = field(default_factory=lambda: np.zeros((0, 0)))
    fake_features: Array = field(default_factory=lambda: np.zeros((0, 0)))
    network: dict[str, str] = field(default_factory=dict)
    made: set[str] = field(default_factory=set)

    def make(self, part: str) -> Work[None]:
        """Make a part of `PARTS`, once."""
        if part not in self.made:
            self.made.add(part)
            yield from PARTS[part](self)

    def can_measure(self, needs: tuple[str, ...]) -> bool:
        """Whether the parts can be made: likelihood needs a model."""
        return self.loaded is not None or "bits" not in needs


def evaluate(config: EvalConfig) -> Work[Evaluated | None]:
    """Measure a model file, or a folder of images, against real images.

    Yields `Progress` and `Notice`.

    Returns:
        `Evaluated`, or None on every process but the first.

    Raises:
        DataError, ModelFileError, UsageError: what was named cannot be used.
    """
    began = time.monotonic()
    folder = _is_images(config.subject)
    chosen = knobs(config.sampler, eta=config.eta)
    with machine(resolve_precision(config.precision)) as accelerator:
        if not accelerator.is_main_process:
            return None
        loaded = None if folder else load_denoiser(config.subject, config.weights, accelerator)
        if loaded is not None:
            loaded.denoiser.process.times(config.steps, config.spacing)
        real, part, fakes = yield from _images(config, loaded)
        evaluation = Evaluation(config, accelerator, loaded, real, fakes)
        values: dict[str, float] = {}
        for name in METRICS:
            metric = METRICS[name]
            if evaluation.can_measure(metric.NEEDS):
                for need in metric.NEEDS:
                    yield from evaluation.make(need)
                values |= metric.compute(evaluation)
        return Evaluated(
            values=values,
            real=len(real),
            generated=config.n if evaluation.fakes is None else len(evaluation.fakes),
            part=part,
            features=evaluation.network,
            settings=_settings(config, chosen, loaded.sha256) if loaded else {},
            seconds=round(time.monotonic() - began, 3),
        )


def _settings(config: EvalConfig, chosen: dict[str, float], sha256: str) -> dict[str, Any]:
    names = ("sampler", "steps", "spacing", "seed", "weights", "timesteps")
    return {
        **{name: getattr(config, name) for name in names},
        **chosen,
        "precision": resolve_precision(config.precision),
        "model_sha256": sha256,
    }


# -- images ---------------------------------------------------------------------------------------


def _is_images(subject: str) -> bool:
    """Whether the subject is a folder or zip of images; a model file otherwise.

    Raises:
        ModelFileError: there is nothing of that name.
    """
    path = Path(subject)
    if not path.exists():
        raise ModelFileError(f"no such model file or folder: {files.show(path)}")
    return path.is_dir() or (path.suffix not in PICKLES and zipfile.is_zipfile(path))


def _images(config: EvalConfig, loaded: Loaded | None) -> Work[tuple[Pixels, str, Pixels | None]]:
    """The real images, which part of DATA they are, and the images of a folder to compare."""
    if loaded is not None:
        unet = loaded.model.unet
        background = config.background or str(loaded.model.data.get("background", "white"))
        images = yield from _read(config, config.data, unet.size, unet.channels, background)
        yield from _tell(images)
        chosen, part = _held_out(images, loaded)
        yield Notice(f"real images: {_part_text(part)}, {len(chosen):,} of {len(images):,}")
        return _choose(config, images.pixels, chosen), part, None
    theirs = yield from _read_alike(config, config.subject)
    images = yield from _read(config, config.data, theirs.size, None, config.background or "white")
    yield from _tell(theirs, images)
    fakes = _choose(config, theirs.pixels, np.arange(len(theirs)))
    return _choose(config, images.pixels, np.arange(len(images))), "all", fakes


def _tell(*sets: Images) -> Work[None]:
    """What was found, and what was skipped and why."""
    for images in sets:
        for line in images.summary.lines():
            yield Notice(line)


def _part_text(part: str) -> str:
    return {"held-out": "the part that was never trained on", "all": "all"}[part]


def _held_out(images: Images, loaded: Loaded) -> tuple[npt.NDArray[np.int64], str]:
    """The held-out images where these are the training data, else all."""
    same = images.fingerprint == loaded.model.data.get("fingerprint")
    if same and images.held_out.any():
        return np.flatnonzero(images.held_out), "held-out"
    return np.arange(len(images)), "all"


def _choose(config: EvalConfig, pixels: Pixels, chosen: npt.NDArray[np.int64]) -> Pixels:
    """At most n of the chosen images, in an order of their own."""
    order = permutation(config.seed, 0, len(chosen))[: config.n]
    return np.ascontiguousarray(pixels[chosen[order]])


def _read(
    config: EvalConfig, source: str, size: Size | None, channels: int | None, background: str
) -> Work[Images]:
    return (
        yield from read_images(
            source,
            size=size,
            channels=channels,
            background=background,
            strict=config.strict,
            workers=config.workers,
        )
    )


def _read_alike(config: EvalConfig, source: str) -> Work[Images]:
    """Generated images at their own size, where they have one in common."""
    background = config.background or "white"
    images = yield from _read(config, source, None, None, background)
    sizes = list(images.summary.sizes)
    if len(sizes) == 1 and sizes[0] != images.size[::-1]:
        width, height = sizes[0]
        images = yield from _read(config, source, (height, width), None, background)
    return images


# -- the parts ------------------------------------------------------------------------------------


def _make_bits(evaluation: Evaluation) -> Work[None]:
    """Bits per dimension of each real image, in three parts, (N, 3)."""
    config, loaded = evaluation.config, evaluation.loaded
    assert loaded is not None
    total = loaded.denoiser.process.num_timesteps
    groups = strata(total, total if config.timesteps == "all" else int(config.timesteps))
    rows, done = [], 0
    for start in range(0, len(evaluation.real), config.batch_size):
        batch = evaluation.real[start : start + config.batch_size]
        x0 = pictures.from_uint8(batch, evaluation.accelerator.device)
        indices = range(start, start + len(batch))
        middle = torch.zeros(len(batch), device=x0.device)
        decoder = middle
        terms = bound_terms(loaded.denoiser, x0, _bound_draws(config.seed, groups, indices, x0))
        for k, (group, term) in enumerate(zip(groups, terms, strict=True)):
            if k == 0:
                decoder = term
            else:
                middle = middle + term * len(group)
            part = len(batch) * (k + 1) // len(groups)
            yield Progress("likelihood", done + part, len(evaluation.real))
        done += len(batch)
        prior = prior_bits(loaded.denoiser, x0)
        rows.append(torch.stack([prior, middle, decoder], 1).cpu().double().numpy())
    evaluation.bits = np.concatenate(rows)


def _bound_draws(
    seed: int, groups: list[range], indices: range, x0: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """For each stratum a timestep and noise for each image, keyed by the image."""
    for k, group in enumerate(groups):
        times = [int(philox(seed, "bits-time", i, k).integers(len(group))) for i in indices]
        noise = torch.stack([draw_noise(seed, "bits", i, k, shape=x0.shape[1:]) for i in indices])
        yield torch.tensor(times, device=x0.device) + group.start, noise.to(x0.device)


def _make_features(evaluation: Evaluation) -> Work[None]:
    """Features of real and generated images; generates where there is a model."""
    if evaluation.fakes is None:
        evaluation.fakes = yield from _generate(evaluation)
    device = evaluation.accelerator.device
    network = lookup(FEATURES, evaluation.config.features, "--features").load(device)
    evaluation.network = {"name": network.name, "weights_sha256": network.weights}
    evaluation.real_features = yield from extract(network, evaluation.real)
    evaluation.fake_features = yield from extract(network, evaluation.fakes)


def _generate(evaluation: Evaluation) -> Work[Pixels]:
    config, loaded = evaluation.config, evaluation.loaded
    assert loaded is not None
    pixels: dict[int, Pixels] = {}
    drawings = draw(
        loaded.denoiser,
        shape=loaded.shape,
        indices=range(config.n),
        seed=config.seed,
        times=loaded.denoiser.process.times(config.steps, config.spacing),
        device=evaluation.accelerator.device,
        sampler=config.sampler,
        batch_size=config.batch_size,
        options=knobs(config.sampler, eta=config.eta),
    )
    yield from collect(drawings, config.n, pixels)
    return np.stack([pixels[i] for i in sorted(pixels)])


PARTS: dict[str, Callable[[Evaluation], Work[None]]] = {
    "bits": _make_bits,
    "features": _make_features,
}
