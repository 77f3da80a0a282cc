"""Measure a model, or a folder of images, against real images."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from diffuse_cli import metrics
from diffuse_cli.config.eval_options import OF_FOLDERS, OF_MODELS, EvalConfig, TuneConfig
from diffuse_cli.config.options import find_changed_flag
from diffuse_cli.data import is_images
from diffuse_cli.evaluation import examples, image_sets, input_builders, likelihood
from diffuse_cli.evaluation.metric_inputs import (
    REQUIREMENTS,
    EvaluationRun,
    find_missing_parts,
    report_unmeasured,
)
from diffuse_cli.evaluation.results import EvaluationResult
from diffuse_cli.metrics import Remark, Words
from diffuse_cli.metrics.features import feature_choice
from diffuse_cli.models.model_file import ModelFile
from diffuse_cli.sampling import model_loading, sampling_settings
from diffuse_cli.sampling.model_loading import LoadedModel, load_denoiser
from diffuse_cli.sampling.sampling_settings import SamplingSettings
from diffuse_cli.system import Notice, UsageError, Work, files, outputs
from diffuse_cli.system.accelerator import describe_environment, reuse_accelerator


def evaluate(
    config: EvalConfig,
    accelerator: Accelerator | None = None,
    *,
    model_file: ModelFile | None = None,
) -> Work[EvaluationResult | None]:
    """Measure a model file, or a folder of images, against real images.

    Yields `Progress` and `Notice`. Returns None on all processes except the first.

    Args:
        accelerator: the caller's accelerator, or None to set one up.
        model_file: the model, if it is loaded already.

    Raises:
        DataError, ModelFileError, UsageError: the configuration cannot be used.
        OutputError: an output exists already, or cannot be written.
    """
    began = time.monotonic()
    subject = Path(config.subject)
    folder = model_file is None and is_images(subject)
    if folder and (flag := find_changed_flag(config, *OF_MODELS)):
        text = f"{flag} needs a model, and {files.show(subject)} is a folder of images"
        raise UsageError(text, "Remove it, or pass a model file", code="option_unsuited")
    if not folder and (flag := find_changed_flag(config, *OF_FOLDERS)):
        text = f"{flag} needs a folder of samples: {files.show(subject)} has its own {flag[2:]}"
        raise UsageError(text, "Remove it", code="option_unsuited")
    with (
        outputs.claim_option(config.plot, ".png", config.overwrite, "--plot") as plot,
        outputs.claim_option(config.pairs, ".png", config.overwrite, "--pairs") as page,
        reuse_accelerator(accelerator, config.precision, config.device) as accelerator,
    ):
        loaded, settings = None, None
        if not folder:
            loaded = yield from load_denoiser(
                model_file or subject, config.weights, accelerator, config.precision
            )
            settings = yield from prepare_settings(config, loaded, accelerator)
            yield from sampling_settings.report_settings(settings)
            lacks = find_missing_parts(loaded.space, loaded, training=config.train_n > 0)
            # Notices follow once DATA is read, which may differ from the training data.
            list(report_unmeasured(config.metrics or (), lacks))
        space = loaded.space if loaded else None
        trained = yield from feature_choice.load_trained_network(config, space, accelerator)
        read = image_sets.read_sides(config, loaded) if loaded else image_sets.read_folder(config)
        sides = yield from read
        sides.check()
        if loaded and settings:
            settings = image_sets.set_conditions(settings, loaded, sides, config.seed)
            yield from _report_conditions(sides, loaded)
        training = sides.training if config.train_n else None
        if page and training is None:
            raise UsageError(
                "--pairs needs the model's training data as DATA, with a held-out part",
                f"Use the training data, 40 {sides.words.many} or more, without --train-n 0",
                code="option_unsuited",
            )
        network = yield from feature_choice.choose_network(
            config, trained, sides.space, sides.real.samples, accelerator.device
        )
        evaluation = EvaluationRun(
            config, accelerator, network, loaded, settings, sides.real, sides.more, sides.fakes,
            training, space=sides.space, members=sides.members,
        )  # fmt: skip
        yield from report_unmeasured(config.metrics or (), evaluation.missing_parts)
        values = yield from compute_metrics(evaluation)
        if config.metrics is None:
            yield from input_builders.make_part(evaluation, "generated")
        if not accelerator.is_main_process:
            return None
        if plot and evaluation.bound:
            name, density = files.show(subject.name), evaluation.floats
            files.write_bytes(plot, likelihood.plot_bound(evaluation.bound, name, density=density))
        if page:
            twins = examples.find_image_pairs(evaluation, examples.PAIRS)
            files.write_bytes(page, examples.plot_pairs(twins, sides.words))
        return _make_result(evaluation, sides, values, began, plot, page)


def _make_result(
    evaluation: EvaluationRun,
    sides: image_sets.Sides,
    values: dict[str, float],
    began: float,
    plot: Path | None,
    page: Path | None,
) -> EvaluationResult:
    """Return the result of a finished evaluation, with its remarks and the images of the report."""
    config, loaded, settings = evaluation.config, evaluation.loaded, evaluation.settings
    described: dict[str, Any] = {}
    if loaded and settings:
        described = describe(settings, config, loaded)
        described |= {"timesteps": config.timesteps, "respaced": config.respaced}
    if "ode_bits" in evaluation.made_parts:
        described["ode_steps"] = config.ode_steps or likelihood.ODE_STEPS
    real, words = len(sides.real), sides.words
    generated = 0 if evaluation.fakes is None else len(evaluation.fakes)
    dim = evaluation.fake_features.shape[1]
    details = {k: m.details(evaluation) for k, m in evaluation.metrics.items() if m.details}
    facts = metrics.Facts(
        values, real, generated, dim, loaded is not None, sides.space.bins, details, words
    )
    return EvaluationResult(
        values=values,
        classes=_measure_classes(evaluation, sides.classes),
        terms=evaluation.bound.group_by_time() if evaluation.bound else [],
        details=details,
        real=real,
        generated=generated,
        part=sides.part,
        features=evaluation.network.describe(),
        settings=described,
        seconds=round(time.monotonic() - began, 3),
        model=_model_facts(loaded) if loaded else {},
        fingerprints=sides.fingerprints,
        made_with=describe_environment(evaluation.accelerator),
        plot=plot,
        pairs=page,
        report=Path(config.report) if config.report else None,
        remarks=[*metrics.remarks(facts), *_remark_choice(settings, sides.part, words)],
        words=words,
        images=examples.choose_images(evaluation, sides.classes) if config.report else None,
    )


def _report_conditions(sides: image_sets.Sides, loaded: LoadedModel) -> Work[None]:
    """Report the conditions of generated samples, for a conditional model."""
    conditions, many = loaded.model.blueprint.conditions, sides.words.many
    if conditions.given:
        inputs = f"the paired {many}" if conditions.given.is_paired else conditions.given.what
        yield Notice(f"conditioned on the real {many}: {inputs}")
    elif sides.real.rows is not None:
        yield Notice(f"conditioned on the metadata of the real {many}")
    elif conditions and image_sets.classes_of(sides):
        yield Notice("generating classes in the proportions of DATA")
    elif conditions:
        yield Notice("DATA has none of the model's classes: generating all evenly")


def _remark_choice(settings: SamplingSettings | None, part: str, words: Words) -> Iterator[Remark]:
    """Yield a note if `tune` may have chosen the sampling settings with the real samples."""
    if settings and settings.recommendations and part == "held-out":
        text = (
            f"if tune chose the recommended settings ({settings.recommendations}) with the same "
            f"held-out {words.many}, KID can be a little too low. Evaluate other {words.many} "
            "before you publish it"
        )
        yield Remark("recommended settings", "note", text)


def prepare_settings(
    config: EvalConfig, loaded: LoadedModel, accelerator: Accelerator
) -> Work[SamplingSettings]:
    """Resolve the sampling settings of a model.

    Raises:
        UsageError: there are more timesteps than the model has.
    """
    guide = yield from model_loading.load_guide(config, loaded, accelerator)
    names = config.metrics
    bound = names is None or any("bits" in metrics.METRICS[name].NEEDS for name in names)
    settings = sampling_settings.resolve_settings(config, loaded.model, guide=guide, bound=bound)
    process = loaded.denoiser.process
    settings.resolve_times(process)
    if config.respaced is not None and config.respaced > process.num_timesteps:
        raise UsageError(
            f"--respaced {config.respaced} is more than the model's {process.num_timesteps} "
            "timesteps",
            f"Set --respaced {process.num_timesteps} or less",
            code="invalid_value",
        )
    if config.ode_steps is not None and loaded.model.distilled is not None:
        text = "--ode-steps needs a model that is not distilled"
        raise UsageError(text, "Remove it", code="option_unsuited")
    if config.members and loaded.encoder is None:
        text = f"--members needs {REQUIREMENTS['ensembles']}"
        raise UsageError(text, "Remove it", code="option_unsuited")
    return settings


def compute_metrics(evaluation: EvaluationRun) -> Work[dict[str, float]]:
    """Compute every metric whose parts can be made. Only the first process gets the values."""
    values: dict[str, float] = {}
    for metric in evaluation.metrics.values():
        for need in metric.NEEDS:
            yield from input_builders.make_part(evaluation, need)
        if evaluation.accelerator.is_main_process:
            values |= metric.compute(evaluation)
    return values


def _measure_classes(run: EvaluationRun, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Compute the metrics of every class with two or more images on each side that there is."""
    class_values: dict[str, dict[str, float]] = {}
    for label, name in enumerate(names):
        sides = {"real": run.real} | ({"generated": run.fakes} if run.fakes is not None else {})
        counts = {name: int((side.labels == label).sum()) for name, side in sides.items()}
        if min(counts.values()) < 2:
            continue
        values: dict[str, float] = {"real": 0, "generated": 0, **counts}
        part = run.select_class(label)
        for metric in run.metrics.values():
            values |= metric.compute(part)
        class_values[name] = values
    return class_values


DISTILLED = {"teacher": "teacher_sha256", "guidance": "teacher_guidance"}
"""Names in the JSON of a model file's facts about its teacher."""


def describe(
    settings: SamplingSettings, config: EvalConfig | TuneConfig, loaded: LoadedModel
) -> dict[str, Any]:
    """Describe the sampling settings, for comparisons of metrics."""
    conditions = loaded.model.blueprint.conditions
    given, table = conditions.given, conditions.table
    return {
        **settings.describe_steps(),
        "threshold": settings.threshold,
        "seed": settings.seed,
        **settings.options,
        **settings.describe_guidance(),
        **({"given": given.what} if given else {}),
        **({"columns": list(table.names)} if table else {}),
        "weights": config.weights,
        "precision": loaded.precision,
        "model_sha256": loaded.sha256,
        **{DISTILLED[key]: value for key, value in (loaded.model.distilled or {}).items()},
    }


def _model_facts(loaded: LoadedModel) -> dict[str, Any]:
    """Return facts of the model file, as JSON."""
    model = loaded.model
    return {
        "step": model.step,
        "parameters": model.parameters,
        "shape": list(loaded.space.shape),
        "num_timesteps": loaded.denoiser.process.num_timesteps,
        "classes": list(model.blueprint.conditions.classes),
        "versions": dict(model.versions),
    }
