"""Inputs of metrics, each part computed when it is first needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from accelerate import Accelerator

from diffuse_cli.config.eval_options import EvalConfig
from diffuse_cli.core import Space
from diffuse_cli.evaluation.image_sets import FEWEST, LabeledSamples, TrainingSamples
from diffuse_cli.evaluation.likelihood import VariationalBound
from diffuse_cli.media import Array, can_judge, render_samples
from diffuse_cli.metrics import METRICS, Metric, MetricInputs
from diffuse_cli.metrics.channel_distributions import measure_marginals
from diffuse_cli.metrics.features import FeatureNetwork
from diffuse_cli.sampling.model_loading import LoadedModel
from diffuse_cli.sampling.sampling_settings import SamplingSettings
from diffuse_cli.system import Notice, UsageError
from diffuse_cli.system.team import Team

OF_TRAINING = "the model's training data as DATA, with a held-out part, and --train-n above 0"

REQUIREMENTS = {
    "bits": "a model",
    "train_bits": OF_TRAINING,
    "ode_bits": "a model that is not distilled",
    "nearest": OF_TRAINING,
    "paired_values": "a model that is conditioned on images",
    "ensembles": "a model that is conditioned on images or arrays, or --members with a folder",
    "features": "images",
    "baseline_features": "images",
    "random_features": "arrays, sounds or stacks",
}
"""Requirements of parts that cannot always be made."""


def find_missing_parts(space: Space, loaded: LoadedModel | None, *, training: bool) -> set[str]:
    """Return the parts that cannot be made for samples of a space.

    Args:
        loaded: the model; None for a folder of samples.
        training: whether training samples are known.
    """
    missing = set()
    if loaded is None:
        missing |= {"bits", "train_bits"}
    if loaded is None or not loaded.model.blueprint.conditions.given:
        missing |= {"paired_values", "ensembles"}
    if loaded is None or loaded.model.distilled is not None:
        missing |= {"ode_bits"}
    if not training:
        missing |= {"train_bits", "nearest"}
    if can_judge(space):
        return missing | {"random_features"}
    return missing | {"features", "baseline_features", "paired_values"}


def report_unmeasured(metrics: Sequence[str], missing: Set[str]) -> Iterator[Notice]:
    """Report the metrics that need parts which cannot be made, and why.

    Raises:
        UsageError: there is no other metric.
    """
    unmeasured = [name for name in metrics if not missing.isdisjoint(METRICS[name].NEEDS)]
    for name in unmeasured:
        need = next(need for need in METRICS[name].NEEDS if need in missing)
        text = f"--metrics {name} needs {REQUIREMENTS[need]}"
        if len(unmeasured) == len(metrics):
            random = name == "kid" and "random_features" not in missing
            hint = "Use --metrics random-kid" if random else "Remove it"
            raise UsageError(text, hint, code="option_unsuited")
        yield Notice(f"{text}: skipped", warning=True)


@dataclass
class EvaluationRun(MetricInputs):
    """Evaluation in progress: samples of both sides, and the parts computed from them.

    Attributes:
        fakes: the generated samples, once they exist.
        training: the training samples, if they are known and wanted.
        made_parts: the parts that exist, see `input_builders.make_part`.
        members: the stored members of a folder, see `Sides`.
        first_ensembles: the members of the first real images, and their conditioning images.
    """

    config: EvalConfig
    accelerator: Accelerator
    network: FeatureNetwork
    loaded: LoadedModel | None
    settings: SamplingSettings | None
    real: LabeledSamples
    more: LabeledSamples
    fakes: LabeledSamples | None = None
    training: TrainingSamples | None = None
    bound: VariationalBound | None = None
    train: LabeledSamples | None = None
    train_features: Array = field(default_factory=lambda: np.zeros((0, 0)))
    made_parts: set[str] = field(default_factory=set)
    members: Any = None
    first_ensembles: list[tuple[Array, Array | None]] = field(default_factory=list)

    def look(self, samples: Array) -> Array:
        """Convert stored samples to pictures, uint8 (N, 1 or 3, H, W)."""
        return render_samples(self.space, samples)

    @property
    def generated(self) -> LabeledSamples:
        """Generated images, which must exist."""
        assert self.fakes is not None
        return self.fakes

    @property
    def model_and_settings(self) -> tuple[LoadedModel, SamplingSettings]:
        """Model and sampling settings, for an evaluation of a model."""
        assert self.loaded is not None
        assert self.settings is not None
        return self.loaded, self.settings

    @property
    def team(self) -> Team:
        """Processes of this evaluation."""
        return Team.from_accelerator(self.accelerator)

    @property
    def missing_parts(self) -> set[str]:
        """Parts that cannot be made."""
        training = self.training
        missing = find_missing_parts(self.space, self.loaded, training=training is not None)
        if self.loaded is None and self.config.members:
            missing -= {"ensembles"}
        if training and len(training.held_out) < FEWEST:  # the real images are all of DATA
            missing |= {"train_bits"}
        return missing

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """Metrics that are wanted and can be measured, by name."""
        options, missing = vars(self.config), self.missing_parts
        measurable = {n: m for n, m in METRICS.items() if missing.isdisjoint(m.NEEDS)}
        if self.config.metrics is None:
            defaults = measurable.items()
            return {n: m for n, m in defaults if not m.OPTION or options[m.OPTION] is not None}
        requested = [*map(METRICS.current, self.config.metrics)]
        return {n: m for n, m in measurable.items() if n in requested}

    def select_class(self, label: int) -> EvaluationRun:
        """Return a finished evaluation, restricted to one class."""
        real_rows, more_rows = self.real.labels == label, self.more.labels == label
        fake_rows = real_rows[:0] if self.fakes is None else self.fakes.labels == label
        part = replace(
            self,
            real=self.real[real_rows],
            more=self.more[more_rows],
            fakes=None if self.fakes is None else self.fakes[fake_rows],
            bits=_rows(self.bits, real_rows),
            ode_bits=_rows(self.ode_bits, real_rows),
            real_features=_rows(self.real_features, real_rows),
            fake_features=_rows(self.fake_features, fake_rows),
            more_features=_rows(self.more_features, more_rows),
            baseline_features={},  # of all images
        )
        if "paired_values" in self.made_parts:
            part.paired_values = self.paired_values[real_rows]
        if "ensembles" in self.made_parts:
            part.ensembles = self.ensembles[real_rows]
        if "marginals" in self.made_parts:
            part.marginals = measure_marginals(*part.sides)
        if "spectra" in self.made_parts:
            part.spectra = self.spectra.of(real_rows, fake_rows, more_rows)
        if self.train is not None:
            part.train_bits = self.train_bits[self.train.labels == label]
        if training := self.training:
            alone = training.pool.labels[training.order[: training.reference_count]]
            references = np.concatenate([training.held_out.labels, alone]) == label
            part.nearest = {
                space: near.select(fake_rows, references[: len(near.references)])
                for space, near in self.nearest.items()
            }
        return part

    @property
    def sides(self) -> tuple[Array, Array, Array]:
        """Stored samples of real, generated and further real images."""
        return self.real.samples, self.generated.samples, self.more.samples


def _rows(values: Array, chosen: Array) -> Array:
    """Select rows, or return the values unchanged if they are empty."""
    return values[chosen] if len(values) else values
