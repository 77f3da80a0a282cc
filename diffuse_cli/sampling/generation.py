"""Generate images with a model.

Noise is keyed by (seed, image, step), so image k of a seed is the same for any number of images,
batch size and number of processes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate.utils import gather_object

from diffuse_cli.core import SAMPLERS, Denoise, Denoiser, Space, Tiling
from diffuse_cli.core.kernels import arrange_weights, cast_weights
from diffuse_cli.core.networks import largest_width
from diffuse_cli.core.samplers import State
from diffuse_cli.core.tiling import WINDOWS
from diffuse_cli.data.summary import plural
from diffuse_cli.media import MEDIA, Array, Size
from diffuse_cli.metrics.features.feature_cache import ALONE, Team
from diffuse_cli.models import model_file
from diffuse_cli.models.activation_memory import SLACK, count_kept_bytes
from diffuse_cli.models.blueprint import clamp_denoised
from diffuse_cli.models.image_conditioning import Conditioner, ConditioningInputs
from diffuse_cli.sampling.sampling_settings import SamplingSettings
from diffuse_cli.system import DivergedError, Notice, Progress, Work, translate_errors
from diffuse_cli.system.devices import (
    PRECISIONS,
    hold_cuda_settings,
    resolve_precision,
    slow_precision,
)
from diffuse_cli.system.memory import free_memory_of_process
from diffuse_cli.system.rng import image_noise

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from diffuse_cli.models.blueprint import Blueprint


HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Data types of the precisions that use autocast."""


@dataclass(frozen=True)
class BatchState:
    """A batch of images by index, with the sampler's state after `step` of `steps`."""

    indices: Sequence[int]
    step: int
    steps: int
    state: State

    @property
    def done(self) -> bool:
        """Whether the state is the last one."""
        return self.step == self.steps


def generate_batches(
    denoiser: Denoiser,
    settings: SamplingSettings,
    indices: Sequence[int],
    *,
    space: Space,
    device: torch.device,
    given: ConditioningInputs | None = None,
) -> Iterator[BatchState]:
    """Generate the images with these indices, one batch after another.

    Args:
        given: inputs of these images, which replace the condition's.

    Raises:
        InvalidArgument: more steps than the process has timesteps.
    """
    process, condition = denoiser.process, settings.condition
    times, denoise = settings.resolve_times(process), guide_denoiser(denoiser, settings)
    sample = partial(SAMPLERS[settings.sampler], **settings.options)
    for start in range(0, len(indices), settings.batch_size):
        batch = indices[start : start + settings.batch_size]

        def noise(k: int, batch: Sequence[int] = batch) -> Tensor:
            return image_noise(settings.seed, batch, k, space.shape, device)

        bound = condition.bind(denoise, batch, device, given) if condition else denoise
        x = settings.start_state(noise(-1), process, times[0])
        states = sample(bound, process, x, times, noise=noise)
        for step, state in enumerate(states, 1):
            yield BatchState(batch, step, len(times), state)


def guide_denoiser(denoiser: Denoiser, settings: SamplingSettings) -> Denoise:
    """Return the denoiser that a sampler calls, with guidance and kept in range.

    A conditional model still needs its conditions bound.
    """
    guided = settings.add_guidance(settings.set_variance(denoiser))
    return clamp_denoised(guided, denoiser, settings.threshold)


def collect(drawings: Iterator[BatchState], space: Space, total: int) -> Work[dict[int, Array]]:
    """Run `drawings` to the end, and return each sample, stored (C, *size), by its index.

    Raises:
        DivergedError: samples are not finite.
    """
    samples_by_index: dict[int, Array] = {}
    for drawing in drawings:
        part = len(drawing.indices) * drawing.step / drawing.steps
        if drawing.done:
            samples = to_stored(space, drawing.state.x)
            samples_by_index.update(zip(drawing.indices, samples, strict=True))
            part = 0
        step = f"step {drawing.step}/{drawing.steps}"
        yield Progress("sampling", int(len(samples_by_index) + part), total, step)
    return samples_by_index


def generate_all(
    denoiser: Denoiser,
    settings: SamplingSettings,
    indices: range,
    *,
    space: Space,
    device: torch.device,
    team: Team = ALONE,
) -> Work[Array]:
    """Generate stored samples (N, C, *size) with these indices, a part of them in each process."""
    part = team.share(len(indices), settings.batch_size)
    indices = indices[part.start : part.stop]
    batches = generate_batches(denoiser, settings, indices, space=space, device=device)
    return team.gather_samples((yield from collect(batches, space, len(indices))))


def to_stored(space: Space, x: Tensor) -> Array:
    """Return samples (B, C, *size) of a model as stored numbers, on the CPU.

    Raises:
        DivergedError: samples are not finite.
    """
    stored = space.to_stored(x)
    finite = (x.isfinite() & stored.isfinite()).flatten(1).all(1)
    if broken := len(x) - int(finite.sum()):
        text = f"NaN or infinite values in {broken:,} of {plural(len(x), MEDIA[space.medium].one)}"
        hint = "Use more steps or another sampler, or train again with a lower --lr"
        raise DivergedError(text, hint).mark_local()
    numbers: Array = stored.cpu().numpy()
    return numbers.astype(np.uint16) if numbers.dtype == np.int32 else numbers


@dataclass(frozen=True)
class LoadedModel:
    """A model file's content and hash, and its denoiser on the device.

    Attributes:
        precision: the precision of the denoiser.
        size: the size of the samples, if it differs from the model's. Larger samples are computed
            in windows of the model's size.
    """

    model: model_file.StoredModel
    denoiser: Denoiser
    sha256: str
    precision: str
    size: Size | None = None

    @property
    def space(self) -> Space:
        """Space of the samples."""
        space = self.model.blueprint.space
        return space if self.size is None else replace(space, size=self.size)

    def enlarge(self, size: Size | None) -> LoadedModel:
        """Return the model for samples of another size, itself for None.

        Raises:
            UsageError: the model's window does not fit in the size.
        """
        if size is None:
            return self
        dims = self.model.blueprint.space.dims
        if len(size) != dims and len(set(size)) == 1:  # one number, for any number of dimensions
            size = size[:1] * dims
        with translate_errors(lambda _: "--size"):
            Tiling(size, self.model.blueprint.space.size)
        return replace(self, size=size)

    @cached_property
    def encoder(self) -> Conditioner | None:
        """Encoder of conditioning images, None for a model without them."""
        return Conditioner.from_blueprint(self.model.blueprint)

    @property
    def windows(self) -> int:
        """Number of windows of a sample."""
        return len(Tiling(self.space.size, self.model.blueprint.space.size).windows)

    @property
    def background(self) -> str:
        """Color behind transparent images in training."""
        return str(self.model.data.get("background", "white"))

    @property
    def fit(self) -> str:
        """Method that fitted images of another shape in training."""
        return str(self.model.data.get("fit", "crop"))


def load_denoiser(
    path: str | Path | model_file.ModelFile,
    weights: str,
    accelerator: Accelerator,
    precision: str | None = None,
    *,
    alone: bool = False,
    typed: bool = True,
    earlier: Any = None,
) -> Work[LoadedModel]:
    """Read a model and put its network on the device.

    Args:
        path: the path of the model, or the model that was found there.
        precision: a name in PRECISIONS. The model decides about `auto`. None is the accelerator's.
        alone: whether only this process reads the model.
        typed: whether the user passed `precision`, so that a slow one is worth a warning.
        earlier: the manifest of the samples to add to, whose precision replaces `auto`.

    Raises:
        ModelFileError: it is not a model (see `model_file.find`), or it has no such weights.
    """
    earlier_precision = earlier.get("precision") if isinstance(earlier, dict) else None
    if precision == "auto" and earlier_precision in ("fp32", "bf16"):
        precision, typed = earlier_precision, False
    file = path if isinstance(path, model_file.ModelFile) else (yield from _find_model(path, alone))
    exact = choose_precision(file.model, precision, accelerator)
    if not alone:  # processes may be on different machines
        exact = gather_object([exact])[0]
    if typed and precision is not None:
        for line in slow_precision(precision, accelerator.device.type):
            yield Notice(line, warning=True)
    denoiser = make_denoiser(file.model, weights, accelerator, exact)
    return LoadedModel(file.model, denoiser, file.sha256, exact)


def _find_model(path: str | Path, alone: bool) -> Work[model_file.ModelFile]:
    """Find the model at a path, the same on all processes."""
    file = yield from model_file.find(path)
    # A training run may save a checkpoint while these processes look for the newest one.
    while not alone and len(set(gather_object([file.sha256]))) > 1:
        file = yield from model_file.find(path)
    return file


def choose_precision(
    model: model_file.StoredModel, precision: str | None, accelerator: Accelerator
) -> str:
    """Return the exact precision of a model's network.

    `auto` is the precision of its training, if the device supports it. None is the accelerator's.
    """
    if precision is None:
        return {mode: name for name, mode in PRECISIONS.items()}[accelerator.mixed_precision]
    device, width = accelerator.device.type, largest_width(model.blueprint.config)
    model_precision = model.training.get("precision")
    return resolve_precision(precision, device, width, model_precision=model_precision)


def make_denoiser(
    model: model_file.StoredModel, weights: str, accelerator: Accelerator, precision: str
) -> Denoiser:
    """Return the denoiser of a model on the device, in an exact precision.

    Inputs may be on another device, which the output is on, too. The input can have a gradient, but
    the weights cannot.

    Raises:
        ModelFileError: the model has no such weights.
    """
    device = accelerator.device
    net = arrange_weights(model.network(weights).to(device))
    net.requires_grad_(False)
    half = HALVES.get(precision)
    if half is not None:
        cast_weights(net, half)

    def infer(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        cast = torch.autocast(device.type, half, enabled=half is not None)
        conditions = {k: v.to(device) if torch.is_tensor(v) else v for k, v in cond.items()}
        settings = hold_cuda_settings(device.type, precision)
        with settings, torch.inference_mode(not x.requires_grad), cast:
            y: Tensor = net(x.to(device), t.to(device), **conditions)
            return y.float().to(x.device)

    part = partial(fit_windows, model.blueprint, precision, device.type)
    return model.blueprint.denoiser(infer, room=lambda: part()[0])


def fit_windows(blueprint: Blueprint, precision: str, device: str) -> tuple[int, int]:
    """Return the number of windows to predict at a time, and the bytes that they take.

    The number is `WINDOWS`, halved until half of the free memory holds them with their gradient. So
    all machines with enough memory compute the same bytes.
    """
    image_bytes = count_kept_bytes(blueprint, precision != "fp32", False, device).image
    count, size = WINDOWS, int(image_bytes * SLACK.get(device, 1.0))
    while count > 1 and count * size > free_memory_of_process(device) // 2:
        count //= 2
    return count, count * size
