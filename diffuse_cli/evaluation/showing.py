"""The images of an evaluation that a report shows: a few of each kind, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffuse_cli.evaluation.images import Labelled, Pixels
from diffuse_cli.evaluation.neighbors import Pair, worst
from diffuse_cli.evaluation.parts import Evaluation

SAMPLES, OF_CLASS, TWINS = 64, 10, 12
"""How many: of each side, of each class on each side, pairs of nearest images."""

CLASSES = 20
"""Classes that are shown, the first ones."""


@dataclass(frozen=True)
class ClassImages:
    """Images of one class, each side (N, C, H, W)."""

    name: str
    generated: Pixels
    real: Pixels


@dataclass(frozen=True)
class Twin:
    """A generated image and the training image that is nearest to it, (C, H, W)."""

    pair: Pair
    generated: Pixels
    training: Pixels


@dataclass(frozen=True)
class Shown:
    """What a report shows.

    Attributes:
        generated, real: the first images of each side.
        names: what their labels stand for.
        classes: images of each class that both sides have, of the first `CLASSES`.
        more_classes: how many more classes there are.
        twins: the pairs of `neighbors.worst`, where training images are known.
    """

    generated: Labelled
    real: Labelled
    names: tuple[str, ...]
    classes: tuple[ClassImages, ...]
    more_classes: int
    twins: tuple[Twin, ...]


def choose(evaluation: Evaluation, names: Sequence[str]) -> Shown:
    """The first images of a finished evaluation, of all and of each class, and the worst pairs."""
    fakes, real = evaluation.fakes, evaluation.real
    assert fakes is not None
    look = evaluation.look
    both = [
        ClassImages(name, *(look(side.of_class(k).pixels[:OF_CLASS]) for side in (fakes, real)))
        for k, name in enumerate(names)
        if (fakes.labels == k).any() and (real.labels == k).any()
    ]
    twins: list[Twin] = []
    if evaluation.training is not None:
        training = evaluation.training.pixels
        twins = [
            Twin(pair, look(fakes.pixels[[pair.sample]])[0], look(training[[pair.place]])[0])
            for pair in worst(evaluation.nearest, TWINS)
        ]
    return Shown(
        _first(evaluation, fakes), _first(evaluation, real), tuple(names), tuple(both[:CLASSES]),
        max(0, len(both) - CLASSES), tuple(twins),
    )  # fmt: skip


def _first(evaluation: Evaluation, images: Labelled) -> Labelled:
    return Labelled(evaluation.look(images.pixels[:SAMPLES]), images.labels[:SAMPLES])
