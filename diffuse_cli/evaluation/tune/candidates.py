"""Choose the sampling settings that `tune` tries."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from diffuse_cli.config import eval_options
from diffuse_cli.config.eval_options import EvalConfig, TuneConfig
from diffuse_cli.config.options import convert_options
from diffuse_cli.config.sample_options import (
    GAUSSIAN,
    NOISE,
    DrawConfig,
    SamplerChoice,
    describe_interval,
)
from diffuse_cli.core import SAMPLERS
from diffuse_cli.core.samplers import OF_DISTILLED, default_spacing
from diffuse_cli.data.summary import plural
from diffuse_cli.metrics.features.feature_choice import words_of
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.models.model_file import StoredModel
from diffuse_cli.sampling.conditioning import guidance_scale
from diffuse_cli.sampling.setting_search import MIDDLE, WEAK_CANDIDATES, Levels, add_autoguidance
from diffuse_cli.system import Notice, UsageError, Work


def list_steps(config: TuneConfig, distilled: bool) -> tuple[int, ...]:
    """Return the numbers of steps to try, also those that are more than the model's timesteps."""
    return config.steps or (eval_options.FEW_STEPS if distilled else eval_options.TUNED_STEPS)


def make_draw_config(config: TuneConfig, model: StoredModel) -> DrawConfig:
    """Return the options of the first settings, with autoguidance turned off."""
    guided = config.guide_with or model.weak
    scale = next((s for s in config.weak_guidance or () if s != 1), None)  # refused if not guided
    scales = {
        "guidance": config.guidance[0] if config.guidance else None,
        "weak_guidance": 1.0 if guided else scale,
    }
    return convert_options(config, DrawConfig, steps=None, **scales)


def make_eval_config(config: TuneConfig, setting: SamplerChoice) -> EvalConfig:
    """Return the options of `eval` for a setting, whatever the model file recommends."""
    options = {
        **{name: value for name, value in vars(setting).items() if name != "times"},
        "start": setting.start or NOISE,
        "spacing": config.spacing or default_spacing(setting.sampler, setting.steps),
        "guidance_interval": setting.guidance_interval or config.guidance_interval,
    }
    return convert_options(config, EvalConfig, plot=None, **options)


def first_settings(
    config: TuneConfig, model: StoredModel, choice: SamplerChoice
) -> list[SamplerChoice]:
    """Return every sampler with every number of steps that the model has timesteps for.

    A distilled model has its own samplers and default steps.

    Args:
        choice: the guidance scales of all of them.

    Raises:
        UsageError: all numbers of steps are too large, or a sampler is for distilled models.
    """
    distilled = model.distilled is not None
    timesteps = model.blueprint.diffusion.num_timesteps
    steps = [n for n in dict.fromkeys(list_steps(config, distilled)) if n <= timesteps]
    if not steps:
        text = f"all --steps are more than the model's {timesteps} timesteps"
        raise UsageError(text, f"Set --steps {timesteps} or less")
    samplers = config.samplers or tuple(s for s in SAMPLERS if (s in OF_DISTILLED) == distilled)
    wrong = [sampler for sampler in samplers if sampler in OF_DISTILLED and not distilled]
    if wrong:
        text = f"--samplers {wrong[0]} is for distilled models, and this model is not distilled"
        raise UsageError(text, "Leave it out")
    scales = choice.guidance, choice.weak_guidance
    return [SamplerChoice(sampler, n, *scales) for sampler in samplers for n in steps]


def list_other_scales(
    config: TuneConfig, model: StoredModel, guidance: float | None
) -> tuple[float, ...]:
    """Return the guidance scales to try in addition to `guidance`, which compares samplers.

    Empty for a model without classes or without an unconditional prediction, and for a distilled
    model, which has its guidance in its weights.

    Raises:
        UsageError: the model does not support a scale of `--guidance`.
    """
    draw_config = make_draw_config(config, model)
    for scale in config.guidance or ():
        guidance_scale(replace(draw_config, guidance=scale), model)
    if guidance is None or model.distilled is not None:
        return ()
    scales = eval_options.TUNED_GUIDANCE if model.has_unconditional else ()
    return tuple(s for s in dict.fromkeys(config.guidance or scales) if s != guidance)


def list_weak_scales(config: TuneConfig, blueprint: Blueprint) -> list[tuple[float, Levels]]:
    """Return the scales and noise levels of autoguidance to try.

    They leave out the scale 1, which turns it off and was tried before. Noise levels would limit
    the guidance of a condition, too, so a model with conditions has none.
    """
    scales = config.weak_guidance or eval_options.TUNED_WEAK
    pairs: list[tuple[float, Levels]] = [(s, None) for s in dict.fromkeys(scales) if s != 1]
    if not (config.weak_guidance or config.guidance_interval or blueprint.conditions):
        pairs += [pair for pair in WEAK_CANDIDATES if pair[1]]
    return pairs


def add_weak_scales(
    setting: SamplerChoice, scales: Sequence[tuple[float, Levels]], blueprint: Blueprint
) -> Iterator[SamplerChoice]:
    """Yield a setting with the scales and noise levels of `list_weak_scales`."""
    evaluations = 1 if setting.guidance in (None, 1) else 2
    for scale, levels in scales:
        yield add_autoguidance(setting, scale, blueprint, levels, evaluations)


def list_start_steps(
    config: TuneConfig, model: StoredModel, first: Sequence[SamplerChoice]
) -> list[int]:
    """Return the numbers of steps to try from a Gaussian start.

    Conditional and distilled models have no such start.
    """
    conditional_or_distilled = bool(model.blueprint.conditions) or model.distilled is not None
    if not config.try_starts or conditional_or_distilled or model.blueprint.gaussian is None:
        return []
    process = model.blueprint.process
    max_steps = process.from_log_snr(model.blueprint.gaussian.log_snr)
    return sorted({setting.steps for setting in first if setting.steps <= max_steps})


def add_gaussian_start(
    setting: SamplerChoice, steps: Sequence[int], blueprint: Blueprint
) -> list[SamplerChoice]:
    """Return a setting from a Gaussian start, in several numbers of steps.

    Autoguidance takes fewer steps, for the same number of evaluations.
    """
    choices = [replace(setting, steps=n, start=GAUSSIAN) for n in steps]
    scale, levels = setting.weak_guidance, setting.guidance_interval
    if scale in (None, 1):
        return choices
    guided = [add_autoguidance(choice, scale, blueprint, levels) for choice in choices]
    return list(dict.fromkeys(guided))


def report_work(
    config: TuneConfig,
    model: StoredModel,
    first: Sequence[SamplerChoice],
    scales: Sequence[float],
    weak_scales: Sequence[tuple[float, Levels]],
    starts: Sequence[int],
) -> Work[int]:
    """Report the steps that are left out and the settings to try, and return their number."""
    steps = dict.fromkeys(setting.steps for setting in first)
    many = words_of(model.blueprint.space).many
    requested_steps = dict.fromkeys(list_steps(config, model.distilled is not None))
    if left_out := [n for n in requested_steps if n not in steps]:
        listed = ", ".join(map(str, left_out))
        timesteps = model.blueprint.diffusion.num_timesteps
        yield Notice(f"skipping {listed} steps: the model has only {timesteps} timesteps")
    in_middle = sum(levels is not None for _, levels in weak_scales)
    further = {
        plural(len(scales), "more guidance scale"): len(scales),
        plural(len(weak_scales) - in_middle, "autoguidance scale"): len(weak_scales) - in_middle,
        f"{in_middle}{describe_interval(MIDDLE)}": in_middle,
        "a Gaussian start": len(starts),
    }
    guidance = first[0].guidance
    under = "" if guidance is None else f" at guidance {guidance:g}"
    also = "".join(f", and {words}" for words, number in further.items() if number)
    total = len(first) + sum(further.values())
    yield Notice(
        f"tune: {plural(total, 'setting')} of {config.n:,} {many}, {total * config.n:,} in all: "
        f"{plural(len(first) // len(steps), 'sampler')} at {', '.join(map(str, steps))} steps"
        f"{under}{also}"
    )
    return total
