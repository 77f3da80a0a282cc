"""`tune`: measure samplers, steps and guidance scales of a model, and recommend a setting.

It first tries every sampler with every number of steps at one guidance scale, then other scales
with the best sampler and steps. Autoguidance with the same number of evaluations follows, then a
Gaussian start. Every setting uses the same noise and the same real images.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator

from diffuse_cli.config.eval_options import EvalConfig, TuneConfig
from diffuse_cli.config.options import convert_options
from diffuse_cli.config.sample_options import GAUSSIAN, NOISE, DrawConfig, SamplerChoice
from diffuse_cli.core.denoiser import Denoiser
from diffuse_cli.core.samplers import default_spacing
from diffuse_cli.data.summary import plural
from diffuse_cli.evaluation import evaluation_run
from diffuse_cli.evaluation.feature_cache import (
    FeatureMeasure,
    Team,
    gather_samples,
    generate_part,
)
from diffuse_cli.evaluation.image_sets import read_sides, set_conditions
from diffuse_cli.evaluation.results import EvaluationResult
from diffuse_cli.evaluation.tune import candidates, tradeoff_figure
from diffuse_cli.evaluation.tune.candidates import (
    Trial,
    TuningResult,
    add_autoguidance,
    recommend,
)
from diffuse_cli.media import figures
from diffuse_cli.metrics import frechet, precision_recall
from diffuse_cli.metrics.features.feature_choice import words_of
from diffuse_cli.metrics.presentation import format_measurement, make_entries
from diffuse_cli.models import model_file
from diffuse_cli.sampling.conditioning import guidance_scale
from diffuse_cli.sampling.generation import LoadedModel, generate_batches
from diffuse_cli.sampling.guidance_model import load_guide
from diffuse_cli.sampling.sampling_settings import SamplingSettings, resolve_settings
from diffuse_cli.system import files
from diffuse_cli.system.devices import describe_environment, reuse_accelerator
from diffuse_cli.system.errors import DivergedError
from diffuse_cli.system.events import Notice, Progress, Work
from diffuse_cli.system.outputs import claim_option

T = TypeVar("T")


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
        claim_option(config, "out", ".safetensors") as out,
        claim_option(config, "plot", ".png") as plot,
        reuse_accelerator(accelerator, config.precision, config.device) as accelerator,
    ):
        loaded = yield from evaluation_run.load_model(config, config.weights, accelerator)
        first_scale = config.guidance[0] if config.guidance else None
        asked_scale = next((s for s in config.weak_guidance or () if s != 1), None)
        draw_config = convert_options(
            config,
            DrawConfig,
            steps=None,
            guidance=first_scale,
            weak_guidance=1.0 if config.guide_with or loaded.model.weak else asked_scale,
        )
        guide = yield from load_guide(draw_config, loaded, accelerator)
        base = resolve_settings(draw_config, loaded.model, guide=guide)
        base = replace(base, times=None, start=None)
        timesteps = loaded.denoiser.process.num_timesteps
        scale, weak = base.choice.guidance, base.choice.weak_guidance
        distilled = loaded.model.distilled is not None
        first = candidates.first_settings(config, scale, timesteps, weak, distilled)
        scales = candidates.list_other_scales(config, loaded.model, scale)
        weak_scales = candidates.list_weak_scales(config) if base.guide else ()
        if distilled:  # its guidance is in its weights
            scales = ()
        for guidance in (*scales, *(config.guidance or ())):
            guidance_scale(replace(draw_config, guidance=guidance), loaded.model)
        starts = candidates.list_start_steps(config, loaded.model, first)
        words = words_of(loaded.space)
        more = _count_more_settings(scales, weak_scales, starts)
        yield from _report_work(config, first, more, loaded)
        judge = yield from evaluation_run.load_feature_choice(config, loaded.space, accelerator)
        sides = yield from read_sides(config, loaded)
        sides.check()
        base = set_conditions(base, loaded, sides, config.seed)
        team = Team.from_accelerator(accelerator)
        network = yield from evaluation_run.choose_network(config, judge, sides)
        against = yield from FeatureMeasure.of(network, sides.space, sides.real.samples, team)
        measure = _Measure(config.n, loaded, base, against)
        measure.warm_up()
        total = len(first) + sum(more.values())
        rows: list[Trial] = []

        def tried(settings: Iterable[SamplerChoice]) -> Work[SamplerChoice]:
            """Measure settings, and return the best of all so far."""
            for choice in settings:
                rows.append((yield from _nest_progress(measure(choice), choice, len(rows), total)))
            return recommend(rows)

        best = yield from tried(first)
        best = yield from tried(replace(best, guidance=scale) for scale in scales)
        best = yield from tried(add_autoguidance(best, scale) for scale in weak_scales)
        best = yield from tried(candidates.add_gaussian_start(best, starts))
        yield Progress("tuning", total, total)
        yield from _warn_of_low_variety(rows, best, words.many)
        described = evaluation_run.describe(base, config, loaded)
        varied = {*vars(base.choice), *(() if config.spacing else ("spacing",))}
        varied.remove("guidance_interval")  # the same for all
        tuned = TuningResult(
            rows=tuple(rows),
            recommended=best,
            metric=network.kid,
            n=config.n,
            real=len(sides.real),
            part=sides.part,
            features=network.describe(),
            settings={k: v for k, v in described.items() if k not in varied},
            device=describe_environment(accelerator)["device"],
            out=out,
            plot=plot,
            words=words,
        )
        if not accelerator.is_main_process:
            return tuned
        if plot:
            picture = tradeoff_figure.plot_tradeoff(tuned, files.show(Path(config.subject).name))
            files.write_bytes(plot, figures.encode_png(picture))
        if out:
            model_file.save(out, replace(loaded.model, sampling=tuned.recommended))
        return tuned


def tune_and_evaluate(
    config: TuneConfig,
) -> Work[tuple[TuningResult, EvalConfig, EvaluationResult] | None]:
    """Tune, then evaluate the recommended setting, for `--report`.

    Returns the settings tried, the configuration of the evaluation and its result, or None on all
    processes except the first.

    Raises:
        DiffuseError: as `tune` and `evaluate`.
    """
    with reuse_accelerator(None, config.precision, config.device) as accelerator:
        tuned = yield from tune(config, accelerator)
        setting = tuned.recommended
        named = setting.sampler, setting.steps
        chosen = convert_options(
            config,
            EvalConfig,
            **{k: v for k, v in vars(setting).items() if k not in ("times", "start")},
            # Not what the model recommended before.
            start=setting.start or NOISE,
            spacing=config.spacing or default_spacing(*named),
            plot=None,
        )
        result = yield from evaluation_run.evaluate(chosen, accelerator)
    return (tuned, chosen, result) if result else None


def _count_more_settings(
    scales: Sequence[float], weak_scales: Sequence[float], starts: Sequence[int]
) -> dict[str, int]:
    """Count the settings to try after the first, by description."""
    return {
        plural(len(scales), "more guidance scale"): len(scales),
        plural(len(weak_scales), "autoguidance scale"): len(weak_scales),
        "a Gaussian start": len(starts),
    }


def _report_work(
    config: TuneConfig,
    first: Sequence[SamplerChoice],
    more: Mapping[str, int],
    loaded: LoadedModel,
) -> Work[None]:
    """Report the amount of work, and the steps that are left out."""
    steps, many = dict.fromkeys(setting.steps for setting in first), words_of(loaded.space).many
    requested_steps = candidates.list_steps(config, loaded.model.distilled is not None)
    left_out = [n for n in dict.fromkeys(requested_steps) if n not in steps]
    if left_out:
        listed = ", ".join(map(str, left_out))
        timesteps = loaded.denoiser.process.num_timesteps
        yield Notice(f"skipping {listed} steps: the model has only {timesteps} timesteps")
    guidance = first[0].guidance
    under = "" if guidance is None else f" at guidance {guidance:g}"
    also = "".join(f", and {words}" for words, count in more.items() if count)
    count = len(first) + sum(more.values())
    yield Notice(
        f"tune: {plural(count, 'setting')} of {config.n:,} {many}, {count * config.n:,} in all: "
        f"{plural(len(first) // len(steps), 'sampler')} at {', '.join(map(str, steps))} steps"
        f"{under}{also}"
    )


def _warn_of_low_variety(rows: Sequence[Trial], best: SamplerChoice, many: str) -> Work[None]:
    """Warn if samples of the recommended setting vary much less than another setting's."""
    chosen = next(row for row in rows if row.setting == best)
    if (most_varied := candidates.find_more_varied(rows, chosen)) is None:
        return
    recall = format_measurement(chosen.values, "recall")
    highest = format_measurement(most_varied.values, "recall")
    yield Notice(
        f"the {many} of the recommended setting vary less: recall {recall}, and {highest} with "
        f"{most_varied.setting}. Look at them before you use it",
        warning=True,
    )


# -- measuring ------------------------------------------------------------------------------------


class _ImageCounter:
    """Counter of the images that networks evaluate."""

    images = 0

    def count_images(self, denoiser: Denoiser) -> Denoiser:
        """Return a copy of the denoiser that counts its images."""

        def counted(x: torch.Tensor, t: torch.Tensor, **cond: Any) -> torch.Tensor:
            self.images += len(x)
            return denoiser.net(x, t, **cond)

        twin = copy.copy(denoiser)
        twin.net = counted
        return twin


@dataclass(frozen=True)
class _Measure:
    """Measurement of a model's settings by n images."""

    n: int
    loaded: LoadedModel
    base: SamplingSettings
    against: FeatureMeasure

    def settings(self, setting: SamplerChoice) -> SamplingSettings:
        """Return the sampling settings of a choice."""
        condition, guide = self.base.condition, self.base.guide
        if condition is not None and setting.guidance is not None:
            condition = replace(condition, scale=setting.guidance)
        if guide is not None and setting.weak_guidance is not None:
            guide = replace(guide, scale=setting.weak_guidance)
        return replace(
            self.base,
            sampler=setting.sampler,
            steps=setting.steps,
            start=self.loaded.model.blueprint.gaussian if setting.start == GAUSSIAN else None,
            condition=condition,
            guide=guide,
        )

    def __call__(self, setting: SamplerChoice) -> Work[Trial]:
        settings, counter = self.settings(setting), _ImageCounter()
        if settings.guide is not None:
            weaker = counter.count_images(settings.guide.denoiser)
            settings = replace(settings, guide=replace(settings.guide, denoiser=weaker))
        began = time.perf_counter()
        loaded = replace(self.loaded, denoiser=counter.count_images(self.loaded.denoiser))
        against, team = self.against, self.against.team
        samples = yield from generate_part(settings, loaded, self.n, against.network.device, team)
        parts = team.gather((counter.images, time.perf_counter() - began))
        fake = yield from against.features(gather_samples(samples, self.n, team))
        values: dict[str, float] = {}
        if team.index == 0:
            values = against.kid(fake)
            if against.network.pictures:
                values |= frechet.estimate_frechet(against.real, fake).to_entries(
                    "frechet_distance"
                )
                if varied := precision_recall.measure_recall(against.real, fake):
                    values |= make_entries("recall", varied.value(), varied.error())
        return Trial(
            setting,
            team.from_first(values),
            seconds=sum(seconds for _, seconds in parts) / self.n,
            evaluations=sum(images for images, _ in parts) // self.n,
        )

    def warm_up(self) -> None:
        """Generate a batch in one step, so that the first setting does not pay one-off costs."""
        batch = range(min(self.n, self.base.batch_size))
        guide = replace(self.base.guide, scale=2.0) if self.base.guide else None
        settings = replace(self.base, sampler="ddim", steps=1, guide=guide)
        denoiser, device = self.loaded.denoiser, self.against.network.device
        for _ in generate_batches(
            denoiser, settings, batch, space=self.loaded.space, device=device
        ):
            pass


def _nest_progress(work: Work[T], setting: SamplerChoice, num_done: int, total: int) -> Work[T]:
    """Run the work of a setting, with its progress as a detail of the whole.

    Raises:
        DivergedError: its samples are not finite. The error names the setting.
    """
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            result: T = stop.value
            return result
        except DivergedError as error:
            error.message = f"{setting}: {error.message}"
            raise
        if isinstance(event, Progress):
            inner = f"{setting}: {event.task} {event.done:,}/{event.total:,}"
            event = Progress("tuning", num_done, total, inner)
        yield event
