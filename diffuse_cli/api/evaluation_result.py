"""`evaluate`: metrics of a model or its samples against real images."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from accelerate.utils import gather_object

from diffuse_cli.api.calls import (
    Data,
    convert_errors,
    convert_keywords,
    open_data,
    replace_flags,
    run_work,
)
from diffuse_cli.api.generated_samples import Samples
from diffuse_cli.api.keywords import EvalOptions, Int
from diffuse_cli.api.loaded_model import Model
from diffuse_cli.config.eval_options import EvalConfig
from diffuse_cli.config.options import from_dict
from diffuse_cli.evaluation.evaluation_run import evaluate as measure
from diffuse_cli.evaluation.results import EvaluationResult
from diffuse_cli.metrics import METRICS, Measurement, read_measurement
from diffuse_cli.system import Progress, UsageError, lookup, replace_nonfinite
from diffuse_cli.system.accelerator import open_accelerator


@dataclass(frozen=True, eq=False)
class Evaluation(Mapping[str, Measurement]):
    """The numbers of an evaluation: a mapping from the keys of the command's JSON, such as `kid`,
    to the value and its standard error (0 where there is none).

    Attributes:
        numbers: the same as plain numbers. The error of `key` is `key_standard_error`.
        classes: the numbers of each class.
        real, generated: how many samples on each side.
        part: the part of the data that the real images are from: `held-out` or `all`.
        remarks: what should be read before the numbers are used.
        json: what `diffuse eval --json` prints.
    """

    numbers: Mapping[str, float]
    classes: Mapping[str, Mapping[str, float]]
    real: int
    generated: int
    part: str
    remarks: tuple[str, ...]
    json: Mapping[str, Any]

    def __getitem__(self, key: str) -> Measurement:
        return read_measurement(self.numbers, key)

    def __iter__(self) -> Iterator[str]:
        return (key for key in self.numbers if not key.endswith("_standard_error"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def evaluate(
    model: Model | Samples | str | os.PathLike[str],
    data: Data,
    *,
    n: Int = 1000,
    metrics: Sequence[str] | None = None,
    progress: Callable[[Progress], object] | None = None,
    **options: Unpack[EvalOptions],
) -> Evaluation:
    """Measure a model, or samples, against real images, as `diffuse eval` does.

    Args:
        model: a model or its path, generated samples, or a folder of images.
        data: a path, or samples in memory, as for `train`.
        n: most samples on each side.
        metrics: which to measure, such as `["kid", "likelihood"]`. All that suit by default.
        progress: a function that receives the progress.
        options: others of `diffuse eval`, such as `steps=10` or `timesteps=4`.

    Raises:
        DataError, ModelFileError, UsageError: as the command.
    """
    if "report" in options:
        raise UsageError("report: only the command writes pages", "Leave it out")
    named = (metrics,) if isinstance(metrics, str) else metrics
    named = None if named is None else tuple(named)
    if named == ():
        raise UsageError("metrics is an empty list", "Leave it out to measure all that suit")
    for name in named or ():
        lookup(METRICS, name, "metrics")
    with contextlib.ExitStack() as stack, convert_errors():
        typed = convert_keywords({**options, "n": n, "metrics": named}, stack)
        subject = model.path if isinstance(model, Model) else model
        typed["subject"] = stack.enter_context(open_data(subject, "model"))
        typed["data"] = stack.enter_context(open_data(data))
        config = from_dict(EvalConfig, typed, "evaluate")
        accelerator = stack.enter_context(open_accelerator(config.precision, config.device))
        file = model._file if isinstance(model, Model) else None
        scores = run_work(measure(config, accelerator, model_file=file), progress)
        of_first: Evaluation = gather_object([scores and _make_evaluation(config, scores)])[0]
    return of_first


def _make_evaluation(config: EvalConfig, scores: EvaluationResult) -> Evaluation:
    facts = json.loads(json.dumps(replace_nonfinite(scores.to_json(config))))
    return Evaluation(
        numbers=scores.values,
        classes=scores.classes,
        real=scores.real,
        generated=scores.generated,
        part=scores.part,
        remarks=tuple(map(replace_flags, facts["remarks"])),
        json=facts,
    )
