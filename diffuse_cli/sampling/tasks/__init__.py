"""Tasks on pictures: read the model, plan the samples of each picture, and write them."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL.Image import Image
from torch import Tensor

from diffuse_cli.config.task_options import ImageTaskConfig
from diffuse_cli.core import Degradation, Denoise, State
from diffuse_cli.core.solvers import Noise
from diffuse_cli.media import Array, Size, figures, render_samples
from diffuse_cli.media.file_errors import public_name
from diffuse_cli.models.image_conditioning import Conditioner
from diffuse_cli.sampling import journal
from diffuse_cli.sampling.generation import to_stored
from diffuse_cli.sampling.job import (
    GRID_IMAGES,
    JobConfig,
    PartState,
    SampleFiles,
    SamplingJob,
    load_stage,
    open_folder,
)
from diffuse_cli.sampling.model_loading import LoadedModel, fit_windows, load_denoiser
from diffuse_cli.sampling.sampling_settings import SamplingSettings
from diffuse_cli.system import Notice, UsageError, Work, files, format_duration, plural
from diffuse_cli.system.memory import format_bytes
from diffuse_cli.system.processes import rank, world_size
from diffuse_cli.system.rng import image_noise

Bind = Callable[[Denoise], Denoise]


MEASURED = 8
"""Windows that are predicted to measure their time."""

WHOLE = 72
"""Bytes for each value of the samples that are generated together, measured with `unipc`."""


@dataclass(frozen=True)
class TaskPlan:
    """Plan of a task's samples, in the order of the pictures.

    Attributes:
        names: names of the pictures.
        steps: the number of states of each batch.
        states: a function that yields the states of a batch, of which the last is written. Its
            arguments are the index of each sample's picture, a function that binds a denoiser to
            the samples' conditions, and the noise.
        pictures: values of pictures and masks, which decide the samples.
        inputs: stored arrays that the grid shows before a picture's samples, (N, C, *size) each.
        described: entries of the manifest.
        gradients: the gradients of the denoiser that a step takes.
    """

    names: Sequence[str]
    steps: int
    states: Callable[[Sequence[int], Bind, Noise], Iterator[State]]
    pictures: Sequence[Array]
    inputs: Sequence[Array]
    described: Mapping[str, Any]
    gradients: int = 0


class TaskJob(SamplingJob):
    """Samples of a task on pictures.

    Args:
        states: a function that yields the states of some samples, of which the last is written.
        pictures: values of pictures and masks, which decide the samples.
        inputs: see `TaskPlan`.
    """

    def __init__(
        self,
        config: JobConfig,
        loaded: LoadedModel,
        indices: range,
        described: Mapping[str, Any],
        states: Callable[[range], Iterator[State]],
        steps: int,
        pictures: Sequence[Array],
        inputs: Sequence[Array] = (),
    ) -> None:
        described = {"n": config.n, "batch_size": config.batch_size, **described}
        digest = hashlib.sha256()
        for values in pictures:
            digest.update(f"{values.dtype.str} {values.shape}".encode() + values.tobytes())
        super().__init__(config, loaded.space, indices, described, {"pictures": digest.hexdigest()})
        self.states, self.steps, self.pictures, self.inputs = states, steps, pictures, inputs

    def generate_part(self, part: range, accelerator: Accelerator) -> Iterator[PartState]:
        """Generate samples, and yield states, of which the last has them."""
        for step, state in enumerate(self.states(part), 1):
            samples = to_stored(self.space, state.x) if step == self.steps else None
            yield PartState(step, self.steps, step / self.steps, samples)

    def make_grid(self, indices: Sequence[int]) -> Image:
        """Return a grid with a row for each picture and its samples, or one row of samples."""
        per = len(indices) // len(self.inputs[0]) if self.inputs else len(indices)
        columns = min(per, GRID_IMAGES)
        rows: list[Array] = []
        for i in range(max(1, min(len(indices) // per, GRID_IMAGES // columns))):
            rows += [stack[i] for stack in self.inputs]
            rows += [self.read(self.record.path(i * per + j)) for j in range(columns)]
        pictures = render_samples(self.space, np.stack(rows))
        return figures.arrange_grid(pictures, len(self.inputs) + columns)


PlanTask = Callable[[LoadedModel, SamplingSettings, bool], Work[TaskPlan]]
"""A function of a model, its settings, and whether it is conditioned on the picture."""


def run_task(
    config: ImageTaskConfig,
    task: str,
    plan_task: PlanTask,
    flag: str,
    degradation: Degradation | None = None,
    size: Callable[[LoadedModel], Size | None] = lambda loaded: None,
) -> Work[SampleFiles | None]:
    """Generate `config.n` samples for each picture, and write them with a grid and a manifest.

    Args:
        flag, degradation: see `is_conditioned`.
        size: a function that returns the size of the samples without `--size`, None for the
            model's size.

    Returns:
        The files, or None on every process except the first.

    Raises:
        OutputError: the folder already holds other samples, or cannot be written.
        ModelFileError: not a model file.
        UsageError: options that cannot be combined.
        DataError: a picture cannot be used.
    """
    with open_task(config, *config.inputs) as accelerator:
        options = (config.model, config.weights, accelerator, config.precision)
        earlier = None if config.overwrite else journal.read_earlier(Path(config.out))
        loaded = yield from load_denoiser(*options, earlier=earlier)
        loaded = loaded.enlarge(config.size or size(loaded))
        has_input = is_conditioned(loaded, degradation, flag)
        # Without classes and columns it is unconditional.
        stage = yield from load_stage(config, loaded, accelerator, has_input, every=False)
        settings, n, device = stage.settings, config.n, accelerator.device
        plan = yield from plan_task(loaded, settings, has_input)
        yield from report_input(loaded, has_input)
        if loaded.windows > 1:
            yield Notice(_describe_windows(loaded, settings, plan, n, device))

        def states(part: range) -> Iterator[State]:
            # Sample j starts from the same noise for all pictures and any number of samples.
            js = [k % n for k in part]

            def noise(k: int) -> Tensor:
                return image_noise(settings.seed, js, k, loaded.space.shape, device)

            def bind(denoise: Denoise) -> Denoise:
                condition = settings.condition
                return condition.bind(denoise, js, device) if condition else denoise

            return plan.states([k // n for k in part], bind, noise)

        described = {
            "task": task,
            **stage.describe(config),
            **stage.describe_conditions([*range(n)] * len(plan.names)),
            "inputs": [files.show(public_name(name)) for name in plan.names],
            **plan.described,
        }
        indices, pictures = range(len(plan.names) * n), plan.pictures
        job = TaskJob(config, loaded, indices, described, states, plan.steps, pictures, plan.inputs)
        return (yield from job.run(accelerator))


def _describe_windows(
    loaded: LoadedModel, settings: SamplingSettings, plan: TaskPlan, n: int, device: torch.device
) -> str:
    """Return the number of windows of a sample, and the time and memory of all samples."""
    space, blueprint, samples = loaded.space, loaded.model.blueprint, len(plan.names) * n
    count, size = fit_windows(blueprint, loaded.precision, device.type)
    x = torch.ones(min(count, MEASURED), *blueprint.space.shape, device=device)
    x.requires_grad_(plan.gradients > 0)
    denoise, t = settings.add_guidance(loaded.denoiser), blueprint.diffusion.num_timesteps // 2
    seconds = measure_seconds(denoise, x, t, plan.gradients) / len(x)
    share = math.ceil(samples / world_size())
    duration = format_duration(seconds * loaded.windows * share * plan.steps)
    together = min(share, settings.batch_size)
    size = max(size, size // count * together) + together * math.prod(space.shape) * WHOLE
    ways = "--method ddnm or " * (plan.gradients > 0) + "a smaller -n or " * (samples > 1)
    return (
        f"{space.size_text} in {loaded.windows:,} overlapping windows of "
        f"{blueprint.space.size_text}: {plural(samples, 'sample')} "
        f"take{'s' * (samples == 1)} about {duration} and {format_bytes(size)} of memory beyond "
        f"the program's. For less, pass {ways}fewer --steps"
    )


def measure_seconds(denoise: Denoise, x: Tensor, t: int, gradients: int) -> float:
    """Return the seconds of a prediction of x_0 from x, (B, C, *size), with its gradients."""
    for _ in range(2):  # the first run warms up
        began = time.perf_counter()
        total = denoise(x, t).x0.sum()
        for _ in range(gradients):
            torch.autograd.grad(total, x, retain_graph=True)
        total.item()  # waits for the device
    return time.perf_counter() - began


def is_conditioned(loaded: LoadedModel, degradation: Degradation | None, flag: str) -> bool:
    """Whether the model was trained for a degradation, and so is conditioned on the picture.

    Otherwise the model runs unconditionally, as in part of its training.

    Args:
        degradation: the degradation of the task, if any.
        flag: the option that sets it, for the message.

    Raises:
        UsageError: the model needs an input, and of another kind.
    """
    encoder = loaded.encoder
    if encoder is None:
        return False
    if degradation is not None and _fits(encoder, degradation):
        return True
    if encoder.given.dropout == 0:
        line = (
            f"{flag}: the model was trained {_purpose(encoder)} only, and always needs that input"
        )
        raise UsageError(line, f"Use diffuse {_command(encoder)}", code="option_unsuited")
    return False


def _fits(encoder: Conditioner, degradation: Degradation) -> bool:
    """Whether kind, noise and value are the model's. For masks, the value may differ."""
    trained = encoder.degradation
    if trained is None or (trained.NAME, trained.sigma) != (degradation.NAME, degradation.sigma):
        return False
    return trained.HIDES or trained.text == degradation.text


def _purpose(encoder: Conditioner) -> str:
    given = encoder.given
    return "on pairs" if given.is_paired else f"for {given.what}"


def _command(encoder: Conditioner) -> str:
    """Return a command line that suits the model."""
    degradation = encoder.degradation
    if degradation is None:
        return "sample MODEL --given FILE"
    if degradation.HIDES and not degradation.sigma:
        return "inpaint MODEL IMAGE --mask FILE"
    flag = " --degrade" if degradation.uniforms else ""
    return f"restore MODEL IMAGE --degradation {encoder.given.what}{flag}"


def report_input(loaded: LoadedModel, has_input: bool) -> Work[None]:
    """Report whether a model of --given is conditioned on the picture."""
    encoder = loaded.encoder
    if encoder is not None:
        use = "is conditioned on the picture" if has_input else "runs without an input here"
        yield Notice(f"the model was trained {_purpose(encoder)}, and {use}")


def open_task(config: JobConfig, *inputs: str) -> AbstractContextManager[Accelerator]:
    """Check and lock the output folder of a task, and set up its Accelerator.

    Raises:
        OutputError: the folder has samples of another origin, or cannot be written.
        UsageError: the folder contains an input.
    """
    folder = Path(config.out)
    if rank() == 0:
        journal.check_output_apart(folder, *inputs)
        journal.check_folder(folder, config.overwrite)
    return open_folder(folder, config.precision, config.device)
