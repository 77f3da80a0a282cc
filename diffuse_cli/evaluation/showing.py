"""The images of an evaluation that people look at: on the page of pairs and in the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffuse_cli.evaluation.images import Labelled, Pixels
from diffuse_cli.evaluation.neighbors import Twin, worst
from diffuse_cli.evaluation.parts import Evaluation

SAMPLES, OF_CLASS, TWINS = 64, 10, 12
"""How many of each side, of each class on each side, and how many pairs of nearest images."""

CLASSES = 20
"""How many classes, the first ones."""


@dataclass(frozen=True)
class ClassImages:
    """Images of one class, each side (N, C, H, W)."""

    name: str
    generated: Pixels
    real: Pixels


@dataclass(frozen=True)
class Shown:
    """What a report shows.

    Attributes:
        generated, real: the first images of each side.
        names: the name of each label.
        classes: images of the first `CLASSES` classes that both sides have.
        more_classes: how many more there are.
        twins: the pairs of `twins`, if training images are known.
    """

    generated: Labelled
    real: Labelled
    names: tuple[str, ...]
    classes: tuple[ClassImages, ...]
    more_classes: int
    twins: tuple[Twin, ...]


def choose(evaluation: Evaluation, names: Sequence[str]) -> Shown:
    """The first images of a finished evaluation, overall and by class, and the worst pairs."""
    fakes, real = evaluation.fakes, evaluation.real
    assert fakes is not None
    look = evaluation.look
    both = [
        ClassImages(name, *(look(side.of_class(k).samples[:OF_CLASS]) for side in (fakes, real)))
        for k, name in enumerate(names)
        if (fakes.labels == k).any() and (real.labels == k).any()
    ]
    return Shown(
        generated=Labelled(look(fakes.samples[:SAMPLES]), fakes.labels[:SAMPLES]),
        real=Labelled(look(real.samples[:SAMPLES]), real.labels[:SAMPLES]),
        names=tuple(names),
        classes=tuple(both[:CLASSES]),
        more_classes=max(0, len(both) - CLASSES),
        twins=tuple(twins(evaluation, TWINS)) if evaluation.training else (),
    )


def twins(evaluation: Evaluation, count: int) -> list[Twin]:
    """The pairs of `neighbors.worst` in a finished evaluation whose training images are known."""
    fakes, training, look = evaluation.fakes, evaluation.training, evaluation.look
    assert fakes is not None
    assert training is not None
    return [
        Twin(pair, look(fakes.samples[[pair.sample]])[0], look(training.samples[[pair.place]])[0])
        for pair in worst(evaluation.nearest, count)
    ]
