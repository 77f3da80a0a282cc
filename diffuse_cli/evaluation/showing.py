"""The images of an evaluation that people look at: on the page of pairs and in the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffuse_cli.evaluation.examples import Twin, worst
from diffuse_cli.evaluation.image_sets import Labelled
from diffuse_cli.evaluation.metric_inputs import Evaluation
from diffuse_cli.media import Array

SAMPLES, OF_CLASS, TWINS = 64, 10, 12
"""How many of each side, of each class on each side, and how many pairs of nearest images."""

CLASSES = 20
"""How many classes, the first ones."""


@dataclass(frozen=True)
class ClassImages:
    """Images of one class, each side (N, C, H, W)."""

    name: str
    generated: Array
    real: Array


@dataclass(frozen=True)
class Shown:
    """What a report shows.

    Attributes:
        generated, real: the first images of each side.
        names: the name of each label.
        classes: images of the first `CLASSES` classes that both sides have.
        more_classes: how many more there are.
        twins: the pairs of `twins`, if training images are known.
        answers: for a model that is given something, the first real images, what each was given,
            and what stands for it; by name, (K, C, H, W).
    """

    generated: Labelled
    real: Labelled
    names: tuple[str, ...]
    classes: tuple[ClassImages, ...]
    more_classes: int
    twins: tuple[Twin, ...]
    answers: dict[str, Array]


def choose(evaluation: Evaluation, names: Sequence[str]) -> Shown:
    """The first images of a finished evaluation, overall and by class, and the worst pairs."""
    sides, look = (evaluation.generated, evaluation.real), evaluation.look
    generated, real = (Labelled(look(s.samples[:SAMPLES]), s.labels[:SAMPLES]) for s in sides)
    both = [
        ClassImages(name, *(look(side[side.labels == k].samples[:OF_CLASS]) for side in sides))
        for k, name in enumerate(names)
        if all((side.labels == k).any() for side in sides)
    ]
    return Shown(
        generated=generated,
        real=real,
        names=tuple(names),
        classes=tuple(both[:CLASSES]),
        more_classes=max(0, len(both) - CLASSES),
        twins=tuple(twins(evaluation, TWINS)) if evaluation.training else (),
        answers={name: look(of) for name, of in evaluation.answers.first.items()},
    )


def twins(evaluation: Evaluation, count: int) -> list[Twin]:
    """The pairs of `neighbors.worst` in a finished evaluation whose training images are known."""
    fakes, training, look = evaluation.generated, evaluation.training, evaluation.look
    assert training is not None
    return [
        Twin(pair, look(fakes.samples[[pair.sample]])[0], look(training.samples[[pair.place]])[0])
        for pair in worst(evaluation.nearest, count)
    ]
