"""What metrics read, each part computed when first needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from accelerate import Accelerator

from diffuse_cli.config import EvalConfig
from diffuse_cli.core.space import Space
from diffuse_cli.evaluation.answering import answered, given_itself, nearest
from diffuse_cli.evaluation.bounds import Bound, joined, measure
from diffuse_cli.evaluation.cache import cached, computed
from diffuse_cli.evaluation.images import Labelled, Training, inputs_of
from diffuse_cli.evaluation.neighbors import search
from diffuse_cli.evaluation.team import Team, draw_share, gathered
from diffuse_cli.events import Work
from diffuse_cli.features import FeatureNetwork
from diffuse_cli.media import Array, judged
from diffuse_cli.metrics.answers import Answers, feature_distances
from diffuse_cli.metrics.landmarks import landmarks
from diffuse_cli.metrics.memorization import Nearest
from diffuse_cli.resolving import DrawSettings
from diffuse_cli.sampling import Loaded, looks

ANSWERED, ANSWERED_AT_ONCE, ANSWERS_SHOWN = 1000, 16, 10
"""Most real images whose generated ones are compared with them, how many at a time, and how many
are shown."""


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
        lacking = set()
        if self.loaded is None:
            lacking |= {"bits", "train_bits"}
        if self.loaded is None or not self.loaded.model.blueprint.conditions.given:
            lacking |= {"answers"}
        if self.training is None:
            lacking |= {"train_bits", "nearest"}
        if not judged(self.space.medium):
            lacking |= {"features", "landmarks", "answers"}
        return lacking.isdisjoint(needs)

    def of_class(self, label: int) -> Evaluation:
        """A finished evaluation, of one class alone."""
        ours, theirs = self.real.labels == label, self.generated.labels == label
        part = replace(
            self,
            real=self.real[ours],
            fakes=self.generated[theirs],
            bits=_of(self.bits, ours),
            real_features=_of(self.real_features, ours),
            fake_features=_of(self.fake_features, theirs),
            more_features=_of(self.more_features, self.more.labels == label),
            landmarks={},  # of all images
            answers=self.answers[ours],
        )
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


def _of(values: Array, chosen: Array) -> Array:
    """The chosen values, or none if none were made."""
    return values[chosen] if len(values) else values


def _make_bits(evaluation: Evaluation) -> Work[None]:
    """The bound of each real image."""
    timesteps = evaluation.config.timesteps
    evaluation.bound = yield from _bound(evaluation, evaluation.real, timesteps, "likelihood")
    evaluation.bits = evaluation.bound.parts()


def _make_train_bits(evaluation: Evaluation) -> Work[None]:
    """The bound of an equal number of training images, at half as many timesteps each.

    Fewer images would save as much, and cost far more precision: images differ more than timesteps.
    """
    assert evaluation.training is not None
    evaluation.train = evaluation.training.first(len(evaluation.real))
    whole = evaluation.config.timesteps
    timesteps = whole if isinstance(whole, str) else max(2, (whole + 1) // 2)
    task = "likelihood of training images"
    bound = yield from _bound(evaluation, evaluation.train, timesteps, task)
    evaluation.train_bits = bound.parts()


def _bound(
    evaluation: Evaluation, images: Labelled, timesteps: int | str, task: str
) -> Work[Bound]:
    """The bound of each image, on the model's process or a respaced one."""
    config, loaded = evaluation.config, evaluation.loaded
    assert loaded is not None
    denoiser = loaded.denoiser
    if config.respaced is not None:
        denoiser = denoiser.respaced(denoiser.process.times(config.respaced))
    own = evaluation.team.share(len(images), config.batch_size)
    bound = yield from measure(
        denoiser,
        images,
        loaded.model.blueprint,
        own,
        given=inputs_of(loaded, images, config.seed),
        timesteps=timesteps,
        seed=config.seed,
        batch_size=config.batch_size,
        device=evaluation.accelerator.device,
        task=task,
    )
    return joined(evaluation.team.gather(bound))


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
    if judged(evaluation.space.medium):
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


def _make_answers(evaluation: Evaluation) -> Work[None]:
    """The first two images of what each real image is given, against it; the second is drawn for
    `ANSWERED` of them, if it is not there already."""
    yield from evaluation.make("features")
    config, loaded, settings = evaluation.config, evaluation.loaded, evaluation.settings
    assert loaded is not None
    assert settings is not None
    real, fakes, team = evaluation.real, evaluation.generated.samples, evaluation.team
    count = min(len(real), len(fakes), ANSWERED)
    second = fakes[len(real) : len(real) + count]
    if len(second) < count:
        device = evaluation.accelerator.device
        mine = yield from draw_share(settings, loaded, count, device, team, len(real))
        second = gathered(mine, count, team, len(real))
    others, features = yield from _instead(evaluation, count)
    if not evaluation.accelerator.is_main_process:
        return
    every = range(count)
    found = [
        answered(
            loaded,
            real.samples[list(rows)],
            [fakes[list(rows)], second[list(rows)]],
            {name: images[list(rows)] for name, images in others.items()},
            config.seed,
            rows,
        )
        for rows in (every[k : k + ANSWERED_AT_ONCE] for k in range(0, count, ANSWERED_AT_ONCE))
    ]
    values = {key: np.concatenate([part[key] for part in found]) for key in found[0]}
    own, theirs = evaluation.fake_features[:count], evaluation.real_features[:count]
    values |= feature_distances(theirs, own, features)
    sides = {
        "given": others.get("given"),
        "drawn": fakes,
        "drawn again": second,
        "real": real.samples,
        "nearest in training": others.get("nearest"),
    }
    first = {k: of[: min(count, ANSWERS_SHOWN)] for k, of in sides.items() if of is not None}
    evaluation.answers = Answers(values, np.arange(count), first)


def _instead(evaluation: Evaluation, count: int) -> Work[tuple[dict[str, Array], dict[str, Array]]]:
    """What could stand for the first real images without a model, and its features, by name: what
    they are given, and the nearest of `train_n` training images."""
    loaded, real, seed = evaluation.loaded, evaluation.real, evaluation.config.seed
    assert loaded is not None
    images: dict[str, Array] = {}
    features: dict[str, Array] = {}
    inputs = inputs_of(loaded, real, seed)
    assert inputs is not None
    if (given := given_itself(loaded, inputs, count)) is not None:
        images["given"] = given
        look = evaluation.look(given)
        features["given"] = yield from computed(evaluation.network, look, evaluation.team)
    if evaluation.training is not None and len(evaluation.train_features):
        known = evaluation.training.first(len(evaluation.train_features))
        places = nearest(loaded, inputs, count, known, seed)
        images["nearest"] = known.samples[places]
        features["nearest"] = evaluation.train_features[places]
    return images, features


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
    "bits": _make_bits,
    "train_bits": _make_train_bits,
    "generated": _make_generated,
    "features": _make_features,
    "landmarks": _make_landmarks,
    "nearest": _make_nearest,
    "answers": _make_answers,
}
