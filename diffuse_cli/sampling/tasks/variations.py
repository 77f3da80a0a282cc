"""`diffuse interpolate` mixes the noise of two pictures, `diffuse vary` adds some to a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffuse_cli.config.sample_options import DrawConfig
from diffuse_cli.config.task_options import ENCODING_STEPS, InterpolateConfig, VaryConfig
from diffuse_cli.core import SAMPLERS, Denoise, State
from diffuse_cli.core.samplers import encode
from diffuse_cli.core.solvers import Noise
from diffuse_cli.media import Array
from diffuse_cli.sampling import input_pictures, tasks
from diffuse_cli.sampling.conditioning import report_out_of_range, resolve_condition
from diffuse_cli.sampling.generation import guide_denoiser
from diffuse_cli.sampling.job import SampleFiles
from diffuse_cli.sampling.model_loading import LoadedModel, load_denoiser
from diffuse_cli.sampling.sampling_settings import SamplingSettings
from diffuse_cli.system import DataError, Notice, Progress, UsageError, Work, show


class InterpolationJob(tasks.TaskJob):
    """Pictures between two input pictures."""

    @cached_property
    def psnr(self) -> list[float | None]:
        """PSNR of both reproduced inputs, see `measure_psnr`. All samples must be written."""
        written = (self.read(self.record.path(k)) for k in (0, self.indices[-1]))
        pairs = zip(self.pictures, written, strict=True)
        return [measure_psnr(end, sample, self.space.bins) for end, sample in pairs]

    def describe(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the PSNR of both reproduced inputs."""
        return {"psnr": self.psnr}


def interpolate(config: InterpolateConfig) -> Work[tuple[SampleFiles, list[float | None]] | None]:
    """Generate pictures from A to B.

    The noise from which `ddim` generates each is found exactly (`samplers.encode`), and mixed along
    the great circle between the two.

    Returns:
        The files, and how well A and B are reproduced from their noise: peak signal-to-noise ratios
        in dB, None for an exact copy. None on every process except the first.

    Raises:
        InvalidArgument: there are too few steps to find the noise of a picture.
        OutputError, ModelFileError, UsageError, DataError: see `tasks.run_task`.
    """
    with tasks.open_task(config, config.first, config.second) as accelerator:
        loaded = yield from load_denoiser(
            config.model, config.weights, accelerator, config.precision
        )
        tasks.is_conditioned(loaded, None, "interpolate")
        process, denoise = loaded.denoiser.process, _condition_denoiser(config, loaded)
        yield from report_out_of_range(loaded.model, config.on)
        names, ends = yield from _read_ends(config, loaded)
        yield from tasks.report_input(loaded, has_input=False)
        times = process.times(config.steps or min(ENCODING_STEPS, process.num_timesteps))
        x0 = loaded.space.to_model(torch.from_numpy(np.stack(ends)))
        input_pictures.check_transform(x0, loaded.space, names)
        x0 = x0.to(accelerator.device)
        for step, state in enumerate(encode(denoise, process, x0, times), 1):
            yield Progress("encoding", step, len(times))
            noise = state.x
        mixed = slerp(noise[0], noise[1], torch.linspace(0, 1, config.n).to(x0))

        def states(part: range) -> Iterator[State]:
            x = mixed[part.start : part.stop]
            return SAMPLERS["ddim"](denoise, process, x, times, noise=lambda k: x)

        described = {
            "task": "interpolate",
            "sampler": "ddim",
            "steps": len(times),
            "precision": loaded.precision,
            "model": {"sha256": loaded.sha256},
            "weights": config.weights,
            "class": config.label,
            **({"on": list(config.on)} if config.on else {}),
            **({"on_vector": list(config.on_vector[0])} if config.on_vector else {}),
            "inputs": [show(name) for name in names],
        }
        job = InterpolationJob(config, loaded, range(config.n), described, states, len(times), ends)
        sample_files = yield from job.run(accelerator)
        if sample_files is None:
            return None
        first, second = ("exactly" if p is None else f"with {p:.1f} dB PSNR" for p in job.psnr)
        name_a, name_b = (show(Path(name).name) for name in names)
        yield Notice(f"{name_a} is reproduced from its noise {first}, {name_b} {second}")
        return sample_files, job.psnr


def _read_ends(
    config: InterpolateConfig, loaded: LoadedModel
) -> Work[tuple[list[str], list[Array]]]:
    """Return the names and the stored values of A and B."""
    names, ends, notices = list[str](), [], list[Notice]()
    for path in (config.first, config.second):
        pictures = yield from input_pictures.read(path, loaded, config.fit, loaded.space)
        if (count := len(pictures.names)) != 1:
            raise DataError(f"{show(path)} holds {count:,} images", "Pass one of them", path=path)
        names += pictures.names
        ends.append(np.array(pictures.values[0]))
        notices += pictures.notices
    yield from dict.fromkeys(notices)
    return names, ends


def _condition_denoiser(config: InterpolateConfig, loaded: LoadedModel) -> Denoise:
    """Return the denoiser with its class and columns bound.

    x_0 is not clipped, because a clipped step has no inverse.
    """
    names = () if config.label is None else (config.label,)
    request, vectors = (DrawConfig(), loaded.model, names, config.on), config.on_vector or ()
    condition = resolve_condition(*request, vectors=vectors, every=False, has_input=False)
    if condition is None:
        return loaded.denoiser
    if len(set(condition.rows)) > 1:
        text = "--on and --on-vector set a column twice"
        raise UsageError(text, "Set it once", code="invalid_value")

    def conditioned(x_t: Tensor, t: Any, /, **cond: Any) -> Any:
        return condition.bind(loaded.denoiser, range(len(x_t)), x_t.device)(x_t, t)

    return conditioned


def slerp(a: Tensor, b: Tensor, fractions: Tensor) -> Tensor:
    """Return points between two, (N, *shape), along the great circle.

    Unlike linear interpolation, this keeps the norm of Gaussian noise.

    Args:
        fractions: the fraction of b, (N,), 0 for a.
    """
    cos = (a * b).sum() / (a.norm() * b.norm())
    angle = cos.clamp(-1, 1).acos()
    column = fractions.reshape(-1, *[1] * a.ndim)
    if float(angle.sin()) < 1e-4:  # almost a straight line
        return (1 - column) * a + column * b
    mixed: Tensor = (((1 - column) * angle).sin() * a + (column * angle).sin() * b) / angle.sin()
    return mixed


def measure_psnr(a: Array, b: Array, levels: int | None) -> float | None:
    """Return 10 log10(range^2 / mean squared error) of stored samples, None if they are equal.

    Args:
        levels: the number of levels of the samples. For None the range is the range of `a`, or 1
            if `a` is constant.
    """
    wide = float(levels - 1 if levels is not None else np.ptp(a)) or 1.0
    error = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 10 * math.log10(wide**2 / error) if error else None


def vary(config: VaryConfig) -> Work[SampleFiles | None]:
    """Generate variations of each picture (see `tasks.run_task`).

    A picture is noised part of the way and denoised again (SDEdit, Meng et al. 2022). Sampling
    visits the last fraction `strength` of the timesteps, at least one.
    """

    def plan_task(
        loaded: LoadedModel, settings: SamplingSettings, has_input: bool
    ) -> Work[tasks.TaskPlan]:
        pictures = yield from input_pictures.read(config.image, loaded, config.fit, loaded.space)
        yield from pictures.notices
        x0 = loaded.space.to_model(torch.from_numpy(np.array(pictures.values)))
        input_pictures.check_transform(x0, loaded.space, pictures.names)
        process = loaded.denoiser.process
        every = settings.resolve_times(process)
        times = every[len(every) - max(1, round(config.strength * len(every))) :]
        denoise = guide_denoiser(loaded.denoiser, settings)

        def states(rows: Sequence[int], bind: tasks.Bind, noise: Noise) -> Iterator[State]:
            first = noise(-1)
            start = process.diffuse(x0[list(rows)].to(first.device), times[0], first)
            sample = partial(SAMPLERS[settings.sampler], **settings.options)
            return sample(bind(denoise), process, start, times, noise=noise)

        values, described = [pictures.values], {"strength": config.strength}
        return tasks.TaskPlan(pictures.names, len(times), states, values, values, described)

    return (yield from tasks.run_task(config, "vary", plan_task, "vary"))
