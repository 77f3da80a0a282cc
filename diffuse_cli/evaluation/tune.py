"""`tune`: measure samplers, steps and guidance scales of a model, and recommend a setting.

It first tries every sampler with every number of steps at one guidance scale, then other scales
with the best sampler and steps. Autoguidance with the same number of evaluations follows, and then
a Gaussian start. Every setting uses the same noise and the same real images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from diffuse_cli.config import eval_options, sample_options
from diffuse_cli.config.eval_options import EvalConfig, TuneConfig
from diffuse_cli.config.options import convert_options
from diffuse_cli.config.sample_options import DrawConfig, SamplerChoice
from diffuse_cli.core import samplers
from diffuse_cli.evaluation import evaluation_run, image_sets, tradeoff_figure
from diffuse_cli.evaluation.results import FEWEST, TuningResult
from diffuse_cli.metrics import Words
from diffuse_cli.metrics.features import feature_choice
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.sampling import (
    conditioning,
    model_loading,
    sampling_settings,
    setting_search,
)
from diffuse_cli.sampling.setting_search import Levels
from diffuse_cli.system import Notice, Progress, UsageError, Work, files, outputs, plural
from diffuse_cli.system.accelerator import describe_environment, reuse_accelerator
from diffuse_cli.system.team import Team


def tune(config: TuneConfig, accelerator: Accelerator | None = None) -> Work[TuningResult]:
    """Measure settings of a model, and recommend one.

    Yields `Progress` and `Notice`. Returns the same on every process. Only the first writes files.

    Args:
        accelerator: the caller's accelerator, or None to set one up.

    Raises:
        DataError, ModelFileError, UsageError: an input cannot be used.
        OutputError: the plot or the model file exists already, or cannot be written.
    """
    with (
        outputs.claim_option(config.out, ".safetensors", config.overwrite) as out,
        outputs.claim_option(config.plot, ".png", config.overwrite, "--plot") as plot,
        reuse_accelerator(accelerator, config.precision, config.device) as accelerator,
    ):
        loaded = yield from model_loading.load_denoiser(
            config.subject, config.weights, accelerator, config.precision
        )
        draw_config = make_draw_config(config, loaded.model)
        guide = yield from model_loading.load_guide(draw_config, loaded, accelerator)
        base = sampling_settings.resolve_settings(draw_config, loaded.model, guide=guide)
        base = replace(base, times=None, start=None)
        model, blueprint = loaded.model, loaded.model.blueprint
        first = first_settings(config, model, base.choice)
        scales = list_other_scales(config, model, base.choice.guidance)
        weak_scales = list_weak_scales(config, blueprint) if base.guide else ()
        starts = list_start_steps(config, model, first)
        total = yield from report_work(config, model, first, scales, weak_scales, starts)
        space = loaded.space
        trained = yield from feature_choice.load_trained_network(config, space, accelerator)
        sides = yield from image_sets.read_sides(config, loaded)
        sides.check()
        real = sides.real.samples
        network = yield from feature_choice.choose_network(
            config, trained, space, real, accelerator.device
        )
        team = Team.from_accelerator(accelerator)
        search = setting_search.SettingSearch(
            denoiser=loaded.denoiser,
            blueprint=blueprint,
            base=image_sets.set_conditions(base, loaded, sides, config.seed),
            measure=setting_search.FeatureMeasure(network, space, real, team, cached=True),
            n=config.n,
            total=total,
            measure_more=setting_search.measure_images if network.pictures else None,
        )
        yield from search.measure.read_real()
        search.warm_up()
        yield from search.try_settings(first)
        best = setting_search.recommend(search.trials)
        yield from search.try_settings(replace(best, guidance=scale) for scale in scales)
        best = setting_search.recommend(search.trials)
        yield from search.try_settings(add_weak_scales(best, weak_scales, blueprint))
        best = setting_search.recommend(search.trials)
        yield from search.try_settings(add_gaussian_start(best, starts, blueprint))
        best = setting_search.recommend(search.trials)
        yield Progress("tuning", total, total)
        yield from setting_search.warn_of_low_variety(search.trials, best, sides.words.many)
        if min(config.n, len(real)) < FEWEST:
            text = f"{config.n:,} {sides.words.many} of each setting and {len(real):,} real ones"
            yield Notice(f"{text} may not tell settings apart: {FEWEST} are needed", warning=True)
        described = evaluation_run.describe(search.base, config, loaded)
        shared = {name for name in ("spacing", "guidance_interval") if getattr(config, name)}
        varied = {*vars(base.choice), "spacing"} - shared
        tuned = TuningResult(
            rows=tuple(search.trials),
            recommended=best,
            metric=network.kid,
            n=config.n,
            real=len(real),
            part=sides.part,
            features=network.describe(),
            settings={k: v for k, v in described.items() if k not in varied},
            device=describe_environment(accelerator)["device"],
            out=out,
            plot=plot,
            words=sides.words,
        )
        if not accelerator.is_main_process:
            return tuned
        if plot:
            name = files.show(Path(config.subject).name)
            files.write_bytes(plot, tradeoff_figure.plot_tradeoff(tuned, name))
        if out:
            model_file.save(out, replace(loaded.model, sampling=tuned.recommended))
        return tuned


# The settings to try.


def list_steps(config: TuneConfig, distilled: bool) -> tuple[int, ...]:
    """Return the numbers of steps to try, also those that are more than the model's timesteps."""
    return config.steps or (eval_options.FEW_STEPS if distilled else eval_options.TUNED_STEPS)


def make_draw_config(config: TuneConfig, model: model_file.StoredModel) -> DrawConfig:
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
        "start": setting.start or sample_options.NOISE,
        "spacing": config.spacing or samplers.default_spacing(setting.sampler, setting.steps),
        "guidance_interval": setting.guidance_interval or config.guidance_interval,
    }
    return convert_options(config, EvalConfig, plot=None, **options)


def first_settings(
    config: TuneConfig, model: model_file.StoredModel, choice: SamplerChoice
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
        raise UsageError(text, f"Set --steps {timesteps} or less", code="invalid_value")
    for_distilled = samplers.OF_DISTILLED
    names = config.samplers or [s for s in samplers.SAMPLERS if (s in for_distilled) == distilled]
    wrong = [sampler for sampler in names if sampler in for_distilled and not distilled]
    if wrong:
        text = f"--samplers {wrong[0]} is for distilled models, and this model is not distilled"
        raise UsageError(text, "Leave it out", code="option_unsuited")
    scales = choice.guidance, choice.weak_guidance
    return [SamplerChoice(sampler, n, *scales) for sampler in names for n in steps]


def list_other_scales(
    config: TuneConfig, model: model_file.StoredModel, guidance: float | None
) -> tuple[float, ...]:
    """Return the guidance scales to try in addition to `guidance`, which compares samplers.

    Empty for a model without classes or without an unconditional prediction, and for a distilled
    model, which has its guidance in its weights.

    Raises:
        UsageError: the model does not support a scale of `--guidance`.
    """
    draw_config = make_draw_config(config, model)
    for scale in config.guidance or ():
        conditioning.guidance_scale(replace(draw_config, guidance=scale), model)
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
        pairs += [pair for pair in setting_search.WEAK_CANDIDATES if pair[1]]
    return pairs


def add_weak_scales(
    setting: SamplerChoice, scales: Sequence[tuple[float, Levels]], blueprint: Blueprint
) -> list[SamplerChoice]:
    """Return a setting with the scales and noise levels of `list_weak_scales`."""
    evaluations = 1 if setting.guidance in (None, 1) else 2
    add = setting_search.add_autoguidance
    return [add(setting, scale, blueprint, levels, evaluations) for scale, levels in scales]


def list_start_steps(
    config: TuneConfig, model: model_file.StoredModel, first: Sequence[SamplerChoice]
) -> list[int]:
    """Return the numbers of steps to try from a Gaussian start.

    Conditional and distilled models have no such start.
    """
    blueprint = model.blueprint
    if not config.try_starts or blueprint.conditions or model.distilled is not None:
        return []
    steps = {setting.steps for setting in first}
    return sorted(n for n in steps if sampling_settings.can_start_from_gaussian(blueprint, n))


def add_gaussian_start(
    setting: SamplerChoice, steps: Sequence[int], blueprint: Blueprint
) -> list[SamplerChoice]:
    """Return a setting from a Gaussian start, in several numbers of steps.

    Autoguidance takes fewer steps, for the same number of evaluations.
    """
    choices = [replace(setting, steps=n, start=sample_options.GAUSSIAN) for n in steps]
    scale, levels = setting.weak_guidance, setting.guidance_interval
    if scale in (None, 1):
        return choices
    add = setting_search.add_autoguidance
    return list(dict.fromkeys(add(choice, scale, blueprint, levels) for choice in choices))


def report_work(
    config: TuneConfig,
    model: model_file.StoredModel,
    first: Sequence[SamplerChoice],
    scales: Sequence[float],
    weak_scales: Sequence[tuple[float, Levels]],
    starts: Sequence[int],
) -> Work[int]:
    """Report the steps that are left out and the settings to try, and return their number."""
    steps = dict.fromkeys(setting.steps for setting in first)
    many = Words.of(model.blueprint.space).many
    requested_steps = dict.fromkeys(list_steps(config, model.distilled is not None))
    if left_out := [n for n in requested_steps if n not in steps]:
        listed = ", ".join(map(str, left_out))
        timesteps = model.blueprint.diffusion.num_timesteps
        yield Notice(f"skipping {listed} steps: the model has only {timesteps} timesteps")
    in_middle = sum(levels is not None for _, levels in weak_scales)
    further = {
        plural(len(scales), "more guidance scale"): len(scales),
        plural(len(weak_scales) - in_middle, "autoguidance scale"): len(weak_scales) - in_middle,
        f"{in_middle}{sample_options.describe_interval(setting_search.MIDDLE)}": in_middle,
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
