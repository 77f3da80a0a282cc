"""Compare two models on the same real images and from the same noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from diffuse_cli import metrics
from diffuse_cli.config.eval_options import CompareConfig, EvalConfig
from diffuse_cli.config.options import convert_options
from diffuse_cli.evaluation import evaluation_run, image_sets
from diffuse_cli.evaluation.metric_inputs import EvaluationRun
from diffuse_cli.metrics import Measurement, MetricNumber, Values, Words
from diffuse_cli.metrics.features import feature_choice
from diffuse_cli.models import image_conditioning
from diffuse_cli.sampling.model_loading import LoadedModel
from diffuse_cli.system import Notice, UsageError, Work, files
from diffuse_cli.system.accelerator import describe_environment


@dataclass(frozen=True)
class Difference:
    """Difference of a metric between two models.

    Attributes:
        number: the presentation of the metric.
        gap: B's value minus A's.
        paired: whether the standard error uses pairs of images, not independent evaluations.
        better: `A` or `B` if the difference is significant and a direction is better, else empty.
    """

    number: MetricNumber
    gap: Measurement
    paired: bool
    better: str


@dataclass(frozen=True)
class PairedComparison:
    """Evaluations of two models.

    Attributes:
        values: all metrics of each model.
        differences: the differences of common metrics that depend on the model, in `eval`'s order.
        real, generated: the number of images on each side.
        part: the part of the real images: `held-out` or `all`.
        settings: the sampling settings of each model.
    """

    values: tuple[dict[str, float], dict[str, float]]
    differences: tuple[Difference, ...]
    real: int
    generated: int
    part: str
    features: dict[str, str]
    settings: tuple[dict[str, Any], dict[str, Any]]
    fingerprint: str
    words: Words
    made_with: dict[str, str]


def compare_models(
    config: CompareConfig, models: Sequence[LoadedModel], accelerator: Accelerator
) -> Work[PairedComparison | None]:
    """Evaluate two models of one space. Returns None on all processes except the first.

    Raises:
        DataError: DATA cannot be used.
        UsageError: an option does not suit a model, or the backgrounds or fits differ.
    """
    configs = [
        convert_options(config, EvalConfig, subject=path, data=config.data)
        for path in (config.a, config.b)
    ]
    for name in ("background", "fit"):
        defaults = [getattr(model, name) for model in models]
        if getattr(config, name) is None and defaults[0] != defaults[1]:
            text = f"the two models were trained with --{name} {defaults[0]} and {defaults[1]}"
            raise UsageError(text, f"Set --{name} for both", code="model_mismatch")
    given = (model.model.blueprint.conditions.given for model in models)
    image_conditioning.check_pairs_option(config.given, *given)
    settings = []
    for eval_config, model in zip(configs, models, strict=True):
        base = yield from evaluation_run.prepare_settings(eval_config, model, accelerator)
        settings.append(base)
    measure_config, space = configs[0], models[0].space
    trained = yield from feature_choice.load_trained_network(measure_config, space, accelerator)
    sides = yield from image_sets.read_common_sides(measure_config, models)
    sides[0].check()
    network = yield from feature_choice.choose_network(
        measure_config, trained, space, sides[0].real.samples, accelerator.device
    )
    evaluations, values, described = [], [], []
    for eval_config, model, base, side in zip(configs, models, settings, sides, strict=True):
        yield Notice(f"evaluating {files.show(eval_config.subject)}")
        sampling = image_sets.set_conditions(base, model, side, eval_config.seed)
        evaluations.append(
            EvaluationRun(
                eval_config, accelerator, network, model, sampling, side.real, side.more, None,
                side.training, space=side.space,
            )
        )  # fmt: skip
        values.append((yield from evaluation_run.compute_metrics(evaluations[-1])))
        facts = evaluation_run.describe(base, eval_config, model)
        described.append({**facts, "timesteps": eval_config.timesteps})
    if not accelerator.is_main_process:
        return None
    return PairedComparison(
        values=(values[0], values[1]),
        differences=differences(values, _paired_errors(evaluations)),
        real=len(sides[0].real),
        generated=config.n,
        part=sides[0].part,
        features=network.describe(),
        settings=(described[0], described[1]),
        fingerprint=sides[0].fingerprints["data"],
        words=sides[0].words,
        made_with=describe_environment(accelerator),
    )


def _paired_errors(evaluations: Sequence[EvaluationRun]) -> dict[str, float]:
    """Return the standard errors of differences of two finished evaluations, by key."""
    errors: dict[str, float] = {}
    of_a, of_b = (evaluation.metrics for evaluation in evaluations)
    for name, metric in of_a.items():
        if name in of_b:
            errors |= metric.difference_errors(*evaluations)
    return errors


def differences(values: Sequence[Values], paired: Values) -> tuple[Difference, ...]:
    """Return the differences of metrics that both models have.

    Args:
        paired: the known standard errors of differences. Others combine as independent.
    """
    rows = []
    for shape in metrics.select_numbers({k: v for k, v in values[0].items() if k in values[1]}):
        if not shape.direction and shape.question != "other":
            continue  # a property of the real images
        a, b = (metrics.read_measurement(side, shape.key) for side in values)
        error = paired.get(shape.key, math.hypot(a.error, b.error))
        gap, better = Measurement(b.value - a.value, error), ""
        if all(map(shape.can_show, values)):
            better = _find_better(gap, shape.direction)
        rows.append(Difference(shape, gap, shape.key in paired, better))
    return tuple(rows)


def _find_better(gap: Measurement, direction: str) -> str:
    """Return the significantly better side, or an empty string."""
    above, below = {"lower": ("A", "B"), "higher": ("B", "A")}.get(direction, ("", ""))
    if not gap.error > 0:
        return ""
    if gap.is_above(Measurement(0.0)):
        return above
    return below if Measurement(0.0).is_above(gap) else ""
