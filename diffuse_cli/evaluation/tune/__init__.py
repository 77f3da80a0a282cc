"""`tune`: measure samplers, steps and guidance scales of a model, and recommend a setting.

It first tries every sampler with every number of steps at one guidance scale, then other scales
with the best sampler and steps. Autoguidance with the same number of evaluations follows, and then
a Gaussian start. Every setting uses the same noise and the same real images.
"""

from __future__ import annotations

from dataclasses import replace

from accelerate import Accelerator

from diffuse_cli.config.eval_options import TuneConfig
from diffuse_cli.evaluation import evaluation_run
from diffuse_cli.evaluation.image_sets import read_sides, set_conditions
from diffuse_cli.evaluation.results import TuningResult
from diffuse_cli.evaluation.tune import candidates, tradeoff_figure
from diffuse_cli.metrics.features.feature_cache import Team
from diffuse_cli.metrics.features.feature_choice import words_of
from diffuse_cli.models import model_file
from diffuse_cli.sampling.model_loading import load_guide
from diffuse_cli.sampling.sampling_settings import resolve_settings
from diffuse_cli.sampling.setting_search import (
    FeatureMeasure,
    SettingSearch,
    measure_images,
    recommend,
    warn_of_low_variety,
)
from diffuse_cli.system import Progress, Work
from diffuse_cli.system.accelerator import describe_environment, reuse_accelerator
from diffuse_cli.system.outputs import claim_option


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
        draw_config = candidates.make_draw_config(config, loaded.model)
        guide = yield from load_guide(draw_config, loaded, accelerator)
        base = resolve_settings(draw_config, loaded.model, guide=guide)
        base, words = replace(base, times=None, start=None), words_of(loaded.space)
        model, blueprint = loaded.model, loaded.model.blueprint
        first = candidates.first_settings(config, model, base.choice)
        scales = candidates.list_other_scales(config, model, base.choice.guidance)
        weak_scales = candidates.list_weak_scales(config, blueprint) if base.guide else ()
        starts = candidates.list_start_steps(config, model, first)
        total = yield from candidates.report_work(config, model, first, scales, weak_scales, starts)
        judge = yield from evaluation_run.load_feature_choice(config, loaded.space, accelerator)
        sides = yield from read_sides(config, loaded)
        sides.check()
        network = yield from evaluation_run.choose_network(config, judge, sides)
        team = Team.from_accelerator(accelerator)
        search = SettingSearch(
            denoiser=loaded.denoiser,
            blueprint=blueprint,
            base=set_conditions(base, loaded, sides, config.seed),
            measure=FeatureMeasure(network, sides.space, sides.real.samples, team, cached=True),
            n=config.n,
            total=total,
            measure_more=measure_images if network.pictures else None,
        )
        yield from search.measure.read_real()
        search.warm_up()
        yield from search.try_settings(first)
        best = recommend(search.trials)
        yield from search.try_settings(replace(best, guidance=scale) for scale in scales)
        best = recommend(search.trials)
        yield from search.try_settings(candidates.add_weak_scales(best, weak_scales, blueprint))
        best = recommend(search.trials)
        yield from search.try_settings(candidates.add_gaussian_start(best, starts, blueprint))
        best = recommend(search.trials)
        yield Progress("tuning", total, total)
        yield from warn_of_low_variety(search.trials, best, words.many)
        described = evaluation_run.describe(search.base, config, loaded)
        shared = {name for name in ("spacing", "guidance_interval") if getattr(config, name)}
        varied = {*vars(base.choice), "spacing"} - shared
        tuned = TuningResult(
            rows=tuple(search.trials),
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
            tradeoff_figure.write_tradeoff(plot, tuned, config.subject)
        if out:
            model_file.save(out, replace(loaded.model, sampling=tuned.recommended))
        return tuned
