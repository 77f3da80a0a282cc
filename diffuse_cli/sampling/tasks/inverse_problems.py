"""`diffuse inpaint`, `upscale` and `restore`: samples that fit a degraded picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from diffuse_cli.config.task_options import (
    METHOD,
    METHOD_OF_FLOATS,
    TOLD,
    InpaintConfig,
    ObservationConfig,
    RestoreConfig,
    UpscaleConfig,
)
from diffuse_cli.core import (
    DEGRADATIONS,
    RESTORATIONS,
    SAMPLERS,
    Degradation,
    State,
    degradations,
    restoration,
    samplers,
)
from diffuse_cli.core.guidance import clamp_denoised
from diffuse_cli.core.solvers import Noise
from diffuse_cli.media import Array, Size
from diffuse_cli.models.image_conditioning import check_observed_files, observed_space
from diffuse_cli.sampling import input_pictures
from diffuse_cli.sampling.generation import to_stored
from diffuse_cli.sampling.job import SampleFiles
from diffuse_cli.sampling.model_loading import LoadedModel
from diffuse_cli.sampling.sampling_settings import SamplingSettings
from diffuse_cli.sampling.tasks import Bind, TaskPlan, run_task
from diffuse_cli.system import UsageError, Work, translate_errors
from diffuse_cli.system.rng import draw_noise, philox

JUMPS = 10
"""Parts into which --jumps divides the sampling steps."""


@dataclass(frozen=True)
class Observation:
    """Degraded pictures.

    Attributes:
        names: names of the pictures.
        degradation: the degradation, without random numbers if it is random.
        u: its random numbers, (N, uniforms).
        y: the degraded pictures, (N, ...), on the model's scale.
        pictures: values of pictures and masks, which decide the samples.
        whole: the original pictures as stored, if they are known.
    """

    names: Sequence[str]
    degradation: Degradation
    u: Tensor
    y: Tensor
    pictures: Sequence[Array]
    whole: Array | None = None

    def select(self, rows: Sequence[int], device: torch.device) -> tuple[Degradation, Tensor]:
        """Return the degradation of some pictures, and the degraded pictures."""
        chosen = list(rows)
        return self.degradation.draw_parts(self.u[chosen].to(device)), self.y[chosen].to(device)


def inpaint(config: InpaintConfig) -> Work[SampleFiles | None]:
    """Generate the masked part of each picture, or the transparent part without a mask.

    See `tasks.run_task`.
    """

    def observe(loaded: LoadedModel) -> Work[Observation]:
        if config.mask is None:  # refuse a folder before it is read
            mask = input_pictures.read_alpha_mask(config.image, loaded, config.fit)
        pictures = yield from input_pictures.read(config.image, loaded, config.fit, loaded.space)
        if config.mask is not None:
            mask = input_pictures.read_mask(config.mask, loaded, config.fit, pictures.sizes)
        yield from pictures.notices
        degradation = DEGRADATIONS["mask"](mask=torch.from_numpy(mask))  # type: ignore[call-arg]
        return _degrade(config, loaded, pictures, degradation, mask)

    return (yield from _restore(config, "inpaint", DEGRADATIONS["mask"](), "--mask", observe))


def upscale(config: UpscaleConfig) -> Work[SampleFiles | None]:
    """Generate each picture `factor` times larger (see `tasks.run_task`)."""
    degradation, flag = degradations.parse(f"low-res:{config.factor}"), f"--factor {config.factor}"
    observe = partial(_read_observation, config, degradation=degradation, flag="--factor")
    size = partial(input_pictures.enlarge_size, config.image, factor=config.factor)
    return (yield from _restore(config, "upscale", degradation, flag, observe, size))


def restore(config: RestoreConfig) -> Work[SampleFiles | None]:
    """Generate originals of each degraded picture (see `tasks.run_task`)."""
    degradation = degradations.parse(config.degradation)
    flag = f"--degradation {degradation.text}"

    def observe(loaded: LoadedModel) -> Work[Observation]:
        with translate_errors():
            uniforms = degradation.fit_shape(loaded.space.shape).uniforms
        if uniforms and not config.degrade:
            text = f"--degradation {degradation.text} draws its own mask, not the mask of the input"
            hint = "Pass --degrade, or use diffuse inpaint --mask FILE"
            raise UsageError(text, hint, code="option_needs")
        if not config.degrade:
            return (yield from _read_observation(config, loaded, degradation, "--degradation"))
        pictures = yield from input_pictures.read(config.image, loaded, config.fit, loaded.space)
        yield from pictures.notices
        return _degrade(config, loaded, pictures, degradation)

    return (yield from _restore(config, "restore", degradation, flag, observe))


def _read_observation(
    config: ObservationConfig, loaded: LoadedModel, degradation: Degradation, flag: str
) -> Work[Observation]:
    """Read degraded pictures."""
    with translate_errors(lambda _: flag):
        fitted = degradation.fit_shape(loaded.space.shape)
        space = observed_space(loaded.space, fitted)
    check_observed_files(loaded.space, space, fitted)
    pictures = yield from input_pictures.read(config.image, loaded, config.fit, space)
    yield from pictures.notices
    y = space.to_model(torch.from_numpy(np.array(pictures.values)))
    u = _draw_uniforms(config.seed, fitted, len(y))
    # The unknown part is shown grey. Samples do not depend on the file's values there.
    realization = fitted.draw_parts(u)
    y = realization.apply(realization.pinv(y))
    input_pictures.check_transform(y, space, pictures.names)
    return Observation(pictures.names, fitted, u, y, [pictures.values])


def _degrade(
    config: ObservationConfig,
    loaded: LoadedModel,
    whole: input_pictures.Pictures,
    degradation: Degradation,
    *masks: Array,
) -> Observation:
    """Degrade original pictures."""
    fitted, values = degradation.fit_shape(loaded.space.shape), whole.values
    x0 = loaded.space.to_model(torch.from_numpy(np.array(values)))
    u = _draw_uniforms(config.seed, fitted, len(x0))
    shape = degradation.observation_shape(loaded.space.shape) if degradation.sigma else (0,)
    noise = [draw_noise(config.seed, "observed", i, shape=shape) for i in range(len(x0))]
    y = fitted.draw_parts(u).observe(x0, torch.stack(noise))
    input_pictures.check_transform(y, loaded.space, whole.names)
    return Observation(whole.names, fitted, u, y, [values, *masks], values)


def _draw_uniforms(seed: int, degradation: Degradation, count: int) -> Tensor:
    """Return random numbers for each picture, (N, uniforms)."""
    draws = [philox(seed, "degraded", i).random(degradation.uniforms) for i in range(count)]
    return torch.from_numpy(np.stack(draws)).float()


def _restore(
    config: ObservationConfig,
    task: str,
    requested_degradation: Degradation,
    flag: str,
    observe: Callable[[LoadedModel], Work[Observation]],
    size: Callable[[LoadedModel], Size | None] = lambda loaded: None,
) -> Work[SampleFiles | None]:
    def plan_task(
        loaded: LoadedModel, settings: SamplingSettings, has_input: bool
    ) -> Work[TaskPlan]:
        method = _choose_method(config, flag, has_input, floats=loaded.space.levels is None)
        observation = yield from observe(loaded)
        times = settings.resolve_times(loaded.denoiser.process)
        path = samplers.split_path(times, max(1, round(len(times) / JUMPS)), config.jumps)
        steps = samplers.count_steps(path)
        in_range = partial(clamp_denoised, denoiser=loaded.denoiser, percentile=settings.threshold)

        def states(rows: Sequence[int], bind: Bind, noise: Noise) -> Iterator[State]:
            start, process = noise(-1), loaded.denoiser.process
            degradation, y = observation.select(rows, start.device)
            guided = bind(settings.add_guidance(loaded.denoiser))
            if has_input and loaded.encoder:
                given = loaded.encoder.encode_observations(y, degradation)
                guided = partial(guided, given=given)
            if method == TOLD:
                denoise = in_range(guided)
            elif (fit := RESTORATIONS[method]).gradients:  # clamping has no gradient
                denoise = in_range(fit(guided, process, degradation, y))
            else:
                denoise = fit(in_range(guided), process, degradation, y)
            sample = partial(SAMPLERS[settings.sampler], denoise, process, **settings.options)
            visited = samplers.sample_with_jumps(sample, process, start, path, noise=noise)
            for step, state in enumerate(visited, 1):
                if step == steps and not degradation.sigma:
                    bounded = loaded.space.levels is not None
                    x = restoration.enforce_consistency(state.x, degradation, y, bounded=bounded)
                    state = replace(state, x=x)
                yield state

        text, pictures = observation.degradation.text, _show_pictures(observation, loaded)
        described = {"method": method, "degradation": text, "jumps": config.jumps}
        if isinstance(config, RestoreConfig) and config.degrade:
            described["degrade"] = True
        gradients = 0 if method == TOLD else RESTORATIONS[method].gradients
        files = (observation.names, steps, states, observation.pictures, pictures)
        return TaskPlan(*files, described, gradients)

    return (yield from run_task(config, task, plan_task, flag, requested_degradation, size))


def _choose_method(config: ObservationConfig, flag: str, has_input: bool, floats: bool) -> str:
    """Return the method that makes samples fit.

    Raises:
        UsageError: `--method given` for a model that was not trained for the degradation, or a
            method whose samples must be clipped, for floats.
    """
    default = METHOD_OF_FLOATS if floats else METHOD
    if config.method == TOLD and not has_input:
        text = f"--method {TOLD}: the model was not trained for {flag}"
        hint = f"Leave it out, or pass --method {default}"
        raise UsageError(text, hint, code="option_unsuited")
    method = config.method or (TOLD if has_input else default)
    if floats and method != TOLD and RESTORATIONS[method].clipped:
        text = f"--method {method} is for samples of a limited range, and these are floats"
        raise UsageError(text, f"Use --method {default}", code="option_unsuited")
    return method


def _show_pictures(observation: Observation, loaded: LoadedModel) -> list[Array]:
    """Return the original pictures, if they are known, and the degraded pictures, as stored."""
    degradation = observation.degradation.draw_parts(observation.u)
    same = observation.y.shape[1:] == loaded.space.shape
    degraded = to_stored(loaded.space, observation.y if same else degradation.pinv(observation.y))
    return [degraded] if observation.whole is None else [observation.whole, degraded]
