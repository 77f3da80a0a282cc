"""`load` a model file to generate samples, and `evaluate` models or samples against real images."""

from __future__ import annotations

import contextlib
import copy
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

from accelerate.utils import gather_object
from torch import nn

from diffuse_cli.api import calls, keywords
from diffuse_cli.api.generated_samples import Samples
from diffuse_cli.config.eval_options import EvalConfig
from diffuse_cli.config.parsers import to_plain
from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.core import Denoiser, Space
from diffuse_cli.evaluation import evaluation_run
from diffuse_cli.evaluation.results import EvaluationResult
from diffuse_cli.media import MEDIA
from diffuse_cli.metrics import METRICS, Measurement, read_measurement
from diffuse_cli.models import model_file
from diffuse_cli.sampling.cascade import generate_arrays
from diffuse_cli.sampling.model_loading import choose_precision, make_denoiser
from diffuse_cli.system import Progress, UsageError, files, lookup, replace_nonfinite
from diffuse_cli.system.accelerator import open_accelerator


def load(path: str | os.PathLike[str]) -> Model:
    """Read and check a model.

    Args:
        path: a model file, a run directory, a checkpoint, or `hf://ORG/NAME`.

    Raises:
        ModelFileError: the file is missing, damaged, or not a model of `diffuse`.
    """
    return Model(calls.run_work(model_file.find(calls.path_of("path", path))))


OF_FILES = {"out", "gif", "grid", "members", "moments", "overwrite"}
"""Options of `diffuse sample` for output."""

RENAMED = {"classes": "Pass label", "model": "Load it"}
"""Options of `diffuse sample` that `Model.sample` does not have, with advice."""


class Model:
    """A model, which is in memory.

    Attributes:
        path: the path of the file.
        sha256: the SHA-256 of the file.
        step: the number of training steps.
        classes: the names for `sample(label=...)`. Empty without classes.
        space: medium, channels, size and levels of a sample.
    """

    def __init__(self, file: model_file.ModelFile) -> None:
        self._file = file
        self.path, self.sha256, self.step = file.path, file.sha256, file.model.step
        self.classes: tuple[str, ...] = file.model.blueprint.conditions.classes
        self.space: Space = file.model.blueprint.space

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.space.shape))
        return f"<Model {files.show(self.path)}: {shape} {self.space.medium}, step {self.step:,}>"

    @property
    def info(self) -> dict[str, Any]:
        """The object that `diffuse info MODEL --json` prints."""
        info: dict[str, Any] = json.loads(json.dumps(replace_nonfinite(self._file.facts())))
        return info

    def sample(
        self,
        n: keywords.Int | None = None,
        *,
        seed: keywords.Int = 0,
        label: str | keywords.Int | Sequence[str | keywords.Int] | None = None,
        on: Mapping[str, Any] | None = None,
        steps: keywords.Int | None = None,
        sampler: str | None = None,
        progress: Callable[[Progress], object] | None = None,
        **options: Unpack[keywords.SampleOptions],
    ) -> Samples:
        """Generate samples, as `diffuse sample` does.

        Args:
            n: the number of samples, by default 16, or for a model trained with `given`, the number
                for each input. `range=(a, b)` replaces it.
            seed: the seed. Sample k of a seed is the same for any n.
            label: classes to generate, which alternate. All by default.
            on: values of metadata columns, such as `{"age": 40}`. Several values alternate.
            steps: by default as the model file recommends, or as for `diffuse sample`.
            sampler: a name, by default like `steps`.
            progress: a function to call with the progress.
            options: other options of `diffuse sample`, such as `guidance=2` or `batch_size=32`.
                `given` and `mask` may be an image of Pillow, or samples in memory.

        Raises:
            UsageError: options do not suit the model or each other.
            DataError: the conditioning images cannot be used.
        """
        if of_files := sorted(OF_FILES & options.keys()):
            text = f"{of_files[0]}: only the command writes files"
            raise UsageError(text, "Leave it out", option=of_files[0])
        if renamed := sorted(RENAMED.keys() & options.keys()):
            text = f"sample: there is no option '{renamed[0]}'"
            raise UsageError(text, RENAMED[renamed[0]], code="unknown_setting")
        columns = [
            (name, value)
            for name, values in (on or {}).items()
            for value in _list_values(f"on: {name}", values)
        ]
        if missing := [name for name, value in columns if value is None]:
            text, hint = f"on: {missing[0]} is None", "Leave out columns without a value"
            raise UsageError(text, hint, code="invalid_value", option="on")
        column_texts = [f"{name}={value}" for name, value in columns]
        typed: dict[str, Any] = {**options, "n": n, "seed": seed, "steps": steps}
        typed |= {"sampler": sampler, "on": tuple(column_texts) or None, "model": str(self.path)}
        typed |= {"classes": None if label is None else [*map(str, _list_values("label", label))]}
        with contextlib.ExitStack() as stack, calls.convert_errors():
            config = SampleConfig.from_dict(calls.convert_keywords(typed, stack), "sample")
            samples, space, start = calls.run_work(generate_arrays(config, self._file), progress)
            MEDIA[space.medium].prepare()
        return Samples(samples, space, start)

    def denoiser(
        self, *, weights: str = "ema", precision: str = "fp32", device: str = "auto"
    ) -> Denoiser:
        """Return the denoiser for the samplers of `diffuse_cli.core`, without gradients.

        It maps x_t (B, *shape) and t (B,) to a prediction of x_0 and eps.

        Args:
            weights: `ema`, or `raw` or `weak` if the file has them.

        Raises:
            ModelFileError: the file does not have these weights.
        """
        with (
            calls.use_torch_defaults(),
            calls.convert_errors(),
            open_accelerator(precision, device) as accelerator,
        ):
            exact = choose_precision(self._file.model, precision, accelerator)
            return make_denoiser(self._file.model, weights, accelerator, exact)

    def network(self, weights: str = "ema") -> nn.Module:
        """Return a trainable copy of the network on the CPU, with weights as for `denoiser`."""
        with calls.use_torch_defaults(), calls.convert_errors():
            net: nn.Module = copy.deepcopy(self._file.model.network(weights))
        return net.requires_grad_(True)


def _list_values(name: str, value: Any) -> Iterable[Any]:
    """Return one value, or a list of values, as a list.

    Raises:
        UsageError: the list is empty, which options take for the default.
    """
    value = to_plain(value)
    listed = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if listed and not value:
        option = name.partition(":")[0]
        text = f"{name} is an empty list"
        raise UsageError(text, "Leave it out", code="invalid_value", option=option)
    return value if listed else (value,)


# -- evaluate -------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Evaluation(Mapping[str, Measurement]):
    """Metrics: a mapping from a key of the command's JSON, such as `kid`, to its value and standard
    error (0 if there is none).

    Attributes:
        numbers: the metrics as plain numbers. The standard error of `key` is `key_standard_error`.
        classes: the metrics of each class.
        real, generated: the number of samples on each side.
        part: the part of the data with the real images: `held-out` or `all`.
        remarks: warnings to read before you use the metrics.
        json: the object that `diffuse eval --json` prints.
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
    data: calls.Data,
    *,
    n: keywords.Int = 1000,
    metrics: Sequence[str] | None = None,
    progress: Callable[[Progress], object] | None = None,
    **options: Unpack[keywords.EvalOptions],
) -> Evaluation:
    """Evaluate a model, or samples, against real images, as `diffuse eval` does.

    Args:
        model: a model or its path, generated samples, or a folder of images.
        data: a path, or samples in memory, as for `train`.
        n: the most samples on each side.
        metrics: the metrics to compute, such as `["kid", "likelihood"]`. By default all that suit.
        progress: a function to call with the progress.
        options: other options of `diffuse eval`, such as `steps=10` or `timesteps=4`.

    Raises:
        DataError: the data cannot be used.
        ModelFileError: the model is missing or damaged.
        UsageError: options do not suit the model or each other.
    """
    if "report" in options:
        raise UsageError("report: only the command writes pages", "Leave it out", option="report")
    named = (metrics,) if isinstance(metrics, str) else metrics
    named = None if named is None else tuple(named)
    if named == ():
        hint = "Leave it out for all metrics that suit"
        raise UsageError("metrics is an empty list", hint, code="invalid_value", option="metrics")
    for name in named or ():
        lookup(METRICS, name, "metrics")
    with contextlib.ExitStack() as stack, calls.convert_errors():
        typed = calls.convert_keywords({**options, "n": n, "metrics": named}, stack)
        subject = model.path if isinstance(model, Model) else model
        typed["subject"] = stack.enter_context(calls.open_data(subject, "model"))
        typed["data"] = stack.enter_context(calls.open_data(data))
        config = EvalConfig.from_dict(typed, "evaluate")
        accelerator = stack.enter_context(open_accelerator(config.precision, config.device))
        file = model._file if isinstance(model, Model) else None
        scores = calls.run_work(
            evaluation_run.evaluate(config, accelerator, model_file=file), progress
        )
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
        remarks=tuple(map(calls.replace_flags, facts["remarks"])),
        json=facts,
    )
