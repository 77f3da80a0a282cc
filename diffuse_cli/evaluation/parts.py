"""What metrics read, each part computed when first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from accelerate import Accelerator

from diffuse_cli.config import EvalConfig
from diffuse_cli.core.space import Space
from diffuse_cli.errors import UsageError
from diffuse_cli.evaluation.answering import make_answers
from diffuse_cli.evaluation.bounds import Bound, make_bits, make_train_bits
from diffuse_cli.evaluation.cache import cached, computed
from diffuse_cli.evaluation.images import Labelled, Training
from diffuse_cli.evaluation.neighbors import search
from diffuse_cli.evaluation.team import Team, draw_share, gathered
from diffuse_cli.events import Notice, Work
from diffuse_cli.features import FeatureNetwork
from diffuse_cli.media import Array, judged
from diffuse_cli.metrics import METRICS, Metric
from diffuse_cli.metrics._numbers import Marginals
from diffuse_cli.metrics._numbers import measure as measure_marginals
from diffuse_cli.metrics._waves import Spectra
from diffuse_cli.metrics._waves import measure as measure_spectra
from diffuse_cli.metrics.answers import Answers
from diffuse_cli.metrics.landmarks import landmarks
from diffuse_cli.metrics.memorization import Nearest
from diffuse_cli.resolving import DrawSettings
from diffuse_cli.sampling import Loaded, looks

OF_TRAINING = "DATA that a model was trained on, with a held-out part"

WANTED = {
    "bits": "a model",
    "train_bits": OF_TRAINING,
    "nearest": OF_TRAINING,
    "answers": "a model of images that is given something",
    "features": "images",
    "landmarks": "images",
    "random_features": "arrays, sounds or stacks",
}
"""What parts need that cannot always be made."""


def lacking(space: Space, loaded: Loaded | None, *, training: bool) -> set[str]:
    """Return the parts that cannot be made for samples of a space.

    Args:
        loaded: the model; None for a folder of samples.
        training: whether training samples are known.
    """
    found = set()
    if loaded is None:
        found |= {"bits", "train_bits"}
    if loaded is None or not loaded.model.blueprint.conditions.given:
        found |= {"answers"}
    if not training:
        found |= {"train_bits", "nearest"}
    return found | ({"random_features"} if judged(space) else {"features", "landmarks", "answers"})


def unmeasured(asked: Sequence[str], lacks: Set[str]) -> Iterator[Notice]:
    """Yield the metrics that need parts which cannot be made, and why.

    Raises:
        UsageError: it is all that was asked for.
    """
    left_out = [name for name in asked if not lacks.isdisjoint(METRICS[name].NEEDS)]
    for name in left_out:
        need = next(need for need in METRICS[name].NEEDS if need in lacks)
        said = f"--metrics {name} needs {WANTED[need]}"
        if len(left_out) == len(asked):
            raise UsageError(said, "Leave it out")
        yield Notice(f"{said}: it is left out", warning=True)


@dataclass
class Evaluation:
    """An evaluation under way. Metrics read the parts that their `NEEDS` name."""

    config: EvalConfig
    accelerator: Accelerator
    network: FeatureNetwork
    loaded: Loaded | None
    settings: DrawSettings | None
    real: Labelled
    more: Labelled
    fakes: Labelled | None = None
    training: Training | None = None
    space: Space = field(kw_only=True)
    bound: Bound | None = None
    bits: Array = field(default_factory=lambda: np.zeros((0, 3)))
    train: Labelled | None = None
    train_bits: Array = field(default_factory=lambda: np.zeros((0, 3)))
    real_features: Array = field(default_factory=lambda: np.zeros((0, 0)))
    fake_features: Array = field(default_factory=lambda: np.zeros((0, 0)))
    more_features: Array = field(default_factory=lambda: np.zeros((0, 0)))
    train_features: Array = field(default_factory=lambda: np.zeros((0, 0)))
    landmarks: dict[str, Array] = field(default_factory=dict)
    nearest: dict[str, Nearest] = field(default_factory=dict)
    answers: Answers = field(default_factory=lambda: Answers({}, np.zeros(0, np.int64)))
    marginals: Marginals | None = None
    spectra: Spectra | None = None
    made: set[str] = field(default_factory=set)

    def look(self, samples: Array) -> Array:
        """Stored samples as pictures, uint8 (N, 1 or 3, H, W), for feature networks and people."""
        return looks(self.space, samples)

    @property
    def floats(self) -> bool:
        """Whether samples are floats, whose bound is a density's."""
        return self.space.levels is None

    def numbers(self, samples: Array) -> Array:
        """Stored samples as numbers that can be compared: floats as the model sees them."""
        if self.space.levels is not None:
            return samples
        seen: Array = self.space.to_model(torch.from_numpy(np.ascontiguousarray(samples))).numpy()
        return seen

    @property
    def generated(self) -> Labelled:
        """The generated images, once they are drawn."""
        assert self.fakes is not None
        return self.fakes

    @property
    def team(self) -> Team:
        """The processes of this evaluation."""
        return Team.of(self.accelerator)

    def make(self, part: str) -> Work[None]:
        """Make a part of `PARTS`, once."""
        if part not in self.made:
            self.made.add(part)
            yield from PARTS[part](self)

    def can_measure(self, needs: tuple[str, ...]) -> bool:
        """Whether these parts can be made."""
        return self.lacking.isdisjoint(needs)

    @property
    def lacking(self) -> set[str]:
        """The parts that cannot be made."""
        return lacking(self.space, self.loaded, training=self.training is not None)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        """The metrics that are wanted and can be measured, by name."""
        wanted = METRICS if self.config.metrics is None else self.config.metrics
        found = ((name, METRICS[name]) for name in METRICS if name in wanted)
        return {name: metric for name, metric in found if self.can_measure(metric.NEEDS)}

    def of_class(self, label: int) -> Evaluation:
        """A finished evaluation, of one class alone."""
        ours, theirs = self.real.labels == label, self.generated.labels == label
        others = self.more.labels == label
        part = replace(
            self,
            real=self.real[ours],
            more=self.more[others],
            fakes=self.generated[theirs],
            bits=_rows(self.bits, ours),
            real_features=_rows(self.real_features, ours),
            fake_features=_rows(self.fake_features, theirs),
            more_features=_rows(self.more_features, others),
            landmarks={},  # of all images
            answers=self.answers[ours],
        )
        if self.marginals is not None:
            part.marginals = part.measure_marginals()
        if self.spectra is not None:
            part.spectra = self.spectra.of(ours, theirs, others)
        if self.train is not None:
            part.train_bits = self.train_bits[self.train.labels == label]
        if training := self.training:
            alone = training.labels[training.order[: training.alone]]
            own = np.concatenate([training.held_out.labels, alone]) == label
            part.nearest = {
                space: Nearest(
                    found.samples[theirs],
                    found.references[own[: len(found.references)]],
                    found.places[theirs],
                )
                for space, found in self.nearest.items()
            }
        return part

    def measure_marginals(self) -> Marginals:
        """The marginals of its samples, once they are drawn."""
        return measure_marginals(*self.sides)

    @property
    def sides(self) -> tuple[Array, Array, Array]:
        """The stored samples of real images, of generated ones and of further real ones."""
        return self.real.samples, self.generated.samples, self.more.samples


def _rows(values: Array, chosen: Array) -> Array:
    """Some rows, or none where nothing was measured."""
    return values[chosen] if len(values) else values


def _make_generated(evaluation: Evaluation) -> Work[None]:
    """The images that a model draws."""
    if evaluation.fakes is None:
        evaluation.fakes = yield from _generate(evaluation)


def _make_features(evaluation: Evaluation) -> Work[None]:
    """Features of real, generated and training images; a model generates first."""
    yield from evaluation.make("generated")
    assert evaluation.fakes is not None
    network, team, look = evaluation.network, evaluation.team, evaluation.look
    real, fakes = look(evaluation.real.samples), look(evaluation.fakes.samples)
    evaluation.real_features = yield from cached(network, real, team, tell=True)
    evaluation.fake_features = yield from computed(network, fakes, team)
    more, known = evaluation.more, 0
    if training := evaluation.training:
        first = training.first(evaluation.config.train_n)
        evaluation.train_features = yield from cached(network, look(first.samples), team)
        known = len(first) if evaluation.loaded else 0  # `more` are the first training images
    if len(more) <= known:
        evaluation.more_features = evaluation.train_features[: len(more)]
    elif len(more):
        evaluation.more_features = yield from cached(network, look(more.samples), team)


def _make_random_features(evaluation: Evaluation) -> Work[None]:
    """Features of a network with random weights, of both sides and of further real samples."""
    yield from evaluation.make("generated")
    network, team = evaluation.network, evaluation.team
    real, fakes, more = evaluation.sides
    evaluation.real_features = yield from computed(network, real, team)
    evaluation.fake_features = yield from computed(network, fakes, team)
    if len(more):
        evaluation.more_features = yield from computed(network, more, team)


def _make_landmarks(evaluation: Evaluation) -> Work[None]:
    """Features of images known to be bad."""
    made = landmarks(evaluation.look(evaluation.real.samples))
    pixels = np.concatenate([*made.values()])
    features = yield from cached(evaluation.network, pixels, evaluation.team)
    ends = np.cumsum([len(images) for images in made.values()])
    evaluation.landmarks = dict(zip(made, np.split(features, ends[:-1]), strict=True))


def _make_nearest(evaluation: Evaluation) -> Work[None]:
    """Distances to the nearest training image: in pixels among all, in features among `train_n`."""
    training, known = evaluation.training, evaluation.config.train_n
    assert training is not None
    if evaluation.network.pictures:
        yield from _nearest_in_features(evaluation, training)
        known = len(evaluation.train_features)
    yield from evaluation.make("generated")
    evaluation.nearest["pixels"] = yield from search(
        evaluation.generated.samples,
        training.held_out.samples,
        training.samples,
        training.order,
        min(training.alone, known),
        evaluation.numbers,
    )


def _nearest_in_features(evaluation: Evaluation, training: Training) -> Work[None]:
    yield from evaluation.make("features")
    held_out, features = training.held_out, evaluation.train_features
    theirs = evaluation.real_features
    if evaluation.loaded is None:  # a model's real images are the held-out ones
        theirs = yield from cached(
            evaluation.network, evaluation.look(held_out.samples), evaluation.team
        )
    # The expected share depends on the number of references, so it is the same in both spaces.
    order, alone = np.arange(len(features)), min(training.alone, len(features))
    near = yield from search(evaluation.fake_features, theirs, features, order, alone)
    evaluation.nearest["features"] = replace(near, places=training.order[near.places])


def _make_marginals(evaluation: Evaluation) -> Work[None]:
    """What the numbers of both sides are, on the first process."""
    yield from evaluation.make("generated")
    if evaluation.accelerator.is_main_process:
        evaluation.marginals = evaluation.measure_marginals()


def _make_spectra(evaluation: Evaluation) -> Work[None]:
    """The power of both sides by frequency, on the first process."""
    yield from evaluation.make("generated")
    if evaluation.accelerator.is_main_process:
        evaluation.spectra = measure_spectra(*evaluation.sides)


def _generate(evaluation: Evaluation) -> Work[Labelled]:
    n, loaded, settings = evaluation.config.n, evaluation.loaded, evaluation.settings
    assert loaded is not None
    assert settings is not None
    device, team = evaluation.accelerator.device, evaluation.team
    mine = yield from draw_share(settings, loaded, n, device, team)
    wanted = settings.condition
    labels = [wanted.label(i) if wanted else -1 for i in range(n)]
    return Labelled(gathered(mine, n, team), np.array(labels, np.int64))


PARTS: dict[str, Callable[[Evaluation], Work[None]]] = {
    "bits": make_bits,
    "train_bits": make_train_bits,
    "generated": _make_generated,
    "features": _make_features,
    "random_features": _make_random_features,
    "landmarks": _make_landmarks,
    "nearest": _make_nearest,
    "answers": make_answers,
    "marginals": _make_marginals,
    "spectra": _make_spectra,
}
