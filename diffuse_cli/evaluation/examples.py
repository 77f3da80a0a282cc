"""Example images of an evaluation: nearest training images, and the images of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from diffuse_cli.core import Space
from diffuse_cli.evaluation.image_sets import LabeledSamples
from diffuse_cli.evaluation.metric_inputs import EvaluationRun
from diffuse_cli.media import Array, figures
from diffuse_cli.media.image.planes import to_pixels
from diffuse_cli.metrics import Words
from diffuse_cli.metrics.memorization import select_finite
from diffuse_cli.metrics.nearest_neighbors import NearestDistances

PAIRS, COLUMNS = 24, 4
"""Pairs on the page, and in a row."""

SIDE, DPI = 112, 150
"""Pixels per image side, and per inch."""

TITLE = "Generated {many} (left) and their nearest training {many} (right)"
UNDER = "Distance: 0 is a copy, and 1 is usual for real {many} that are not copies."


@dataclass(frozen=True)
class NearestPair:
    """Generated sample and its nearest training sample.

    Attributes:
        ratio: their distance, divided by the median distance of references to their nearest sample.
    """

    sample: int
    place: int
    space: str
    ratio: float

    def __str__(self) -> str:
        return f"{self.sample}: {self.ratio:.2f} in {self.space}"


ImagePair = tuple[NearestPair, Array, Array]
"""A pair, and its generated and training image, (C, H, W)."""


def find_closest_pairs(nearest: Mapping[str, NearestDistances], count: int) -> list[NearestPair]:
    """Return the samples nearest to training images, each in the space where it is nearer."""
    pairs: dict[int, NearestPair] = {}
    for space, distances in nearest.items():
        usual = max(float(np.median(select_finite(distances.references))), 1e-12)
        for i, distance in enumerate(distances.samples.tolist()):
            pair = NearestPair(i, int(distances.places[i]), space, distance / usual)
            pairs[i] = min(pairs.get(i, pair), pair, key=lambda p: p.ratio)
    return sorted(pairs.values(), key=lambda p: (p.ratio, p.sample))[:count]


def plot_pairs(twins: Sequence[ImagePair], words: Words) -> bytes:
    """Plot a page of pairs as PNG: each generated image next to its nearest training image."""
    image_pairs = [[*map(_resize_image, images)] for _, *images in twins]
    side = max(max(image.shape[1:]) for pair in image_pairs for image in pair) / DPI
    columns = min(COLUMNS, len(twins))
    pitch_x, pitch_y = max(2 * side + 0.35, 1.6), side + 0.4
    rows = math.ceil(len(twins) / columns)
    sheet = figures.Sheet(max(0.6 + columns * pitch_x, 7.0), 1.25 + rows * pitch_y, DPI)
    wide = sheet.width - 0.8
    sheet.text(0.4, 0.4, TITLE.format(many=words.many), wide, fontsize=11, fontweight="bold")
    sheet.text(0.4, 0.65, UNDER.format(many=words.many), wide, fontsize=8.5, color=figures.FAINT)
    for k, ((pair, *_), images) in enumerate(zip(twins, image_pairs, strict=True)):
        x, y = 0.4 + k % columns * pitch_x, 0.85 + k // columns * pitch_y
        for place, image in enumerate(images):
            sheet.image(x + place * (side + 0.05), y, image)
        sheet.text(x, y + side + 0.15, f"{words.one} {pair}", pitch_x - 0.15, fontsize=7.5)
    return figures.encode_png(sheet.render())


def _resize_image(image: Array) -> Array:
    """Resize an image to about `SIDE` pixels. Small images are enlarged by an integer factor."""
    zoom = max(1, SIDE // max(image.shape[1:]))
    large = figures.to_image(image.repeat(zoom, 1).repeat(zoom, 2))
    return to_pixels(figures.shrink_image(large, SIDE))


SAMPLES, OF_CLASS, TWINS = 64, 10, 12
"""The most images per side, images per class and side, and pairs of nearest images."""

FLOAT_RANGE = 3
"""Value at which pictures of floats are white, in standard deviations."""

CLASSES = 20
"""The most classes to show."""


@dataclass(frozen=True)
class ClassImages:
    """Images of one class, each side (N, C, H, W)."""

    name: str
    generated: Array
    real: Array


@dataclass(frozen=True)
class ReportImages:
    """Images of a report.

    Attributes:
        generated, real: the first images of each side.
        names: the name of each label.
        classes: images of the first `CLASSES` classes that both sides have.
        more_classes: the number of classes that are not shown.
        twins: the pairs of `find_image_pairs`, if training images are known.
        paired_images: for a model conditioned on images, the first real images, their conditioning
            images, and generated images and baselines, by name, (K, C, H, W).
        ensembles: the same for the first ensembles.
        maps: maps over all ensembles by their captions, (C, H, W).
    """

    generated: LabeledSamples
    real: LabeledSamples
    names: tuple[str, ...]
    classes: tuple[ClassImages, ...]
    more_classes: int
    twins: tuple[ImagePair, ...]
    paired_images: dict[str, Array]
    ensembles: dict[str, Array]
    maps: dict[str, Array]


def choose_images(evaluation: EvaluationRun, names: Sequence[str]) -> ReportImages:
    """Choose the first images of an evaluation, overall and by class, and the worst pairs."""
    sides, look = (evaluation.generated, evaluation.real), evaluation.look
    generated, real = (LabeledSamples(look(s.samples[:SAMPLES]), s.labels[:SAMPLES]) for s in sides)
    classes = [
        ClassImages(name, *(look(side[side.labels == k].samples[:OF_CLASS]) for side in sides))
        for k, name in enumerate(names)
        if all((side.labels == k).any() for side in sides)
    ]
    paired = "paired_values" in evaluation.made_parts
    first = evaluation.paired_values.first if paired else {}
    return ReportImages(
        generated=generated,
        real=real,
        names=tuple(names),
        classes=tuple(classes[:CLASSES]),
        more_classes=max(0, len(classes) - CLASSES),
        twins=tuple(find_image_pairs(evaluation, TWINS)) if evaluation.training else (),
        paired_images=dict(first),
        ensembles=_show_ensembles(evaluation),
        maps=_show_maps(evaluation),
    )


def _show_ensembles(evaluation: EvaluationRun) -> dict[str, Array]:
    """Return the first ensembles as pictures: condition, real sample, mean, spread, members."""
    columns: dict[str, list[Array]] = {}
    for k, (members, condition) in enumerate(evaluation.first_ensembles):
        spread, mean = members.std(0, ddof=1), members.mean(0)
        cells = {
            "real": evaluation.real.samples[k],
            "mean": np.rint(mean) if members.dtype.kind in "iu" else mean,
            "spread": _paint(evaluation.space, 2 * spread / max(spread.max(), 1e-30) - 1),
            **{f"member {j}": member for j, member in enumerate(members[:3])},
        }
        pictures = {} if condition is None else {"condition": condition}
        looks = {n: evaluation.look(v.astype(members.dtype)[None])[0] for n, v in cells.items()}
        for name, picture in {**pictures, **looks}.items():
            columns.setdefault(name, []).append(picture)
    return {name: np.stack(column) for name, column in columns.items()}


def _show_maps(evaluation: EvaluationRun) -> dict[str, Array]:
    """Return the maps of bias, and of spread / error in powers of two, as pictures."""
    if "ensembles" not in evaluation.made_parts:
        return {}
    scores = evaluation.ensembles
    bias = scores.maps["error"] / len(scores.fields)
    max_bias = max(float(np.abs(bias).max()), 1e-30)
    squares = (np.maximum(scores.maps[key], 1e-30) for key in ("squared_spread", "squared_error"))
    ratio = np.log2(np.divide(*squares)).clip(-2, 2) / 2
    pictures = {
        f"Bias: white is +{max_bias:.3g} and black is -{max_bias:.3g}": bias / max_bias,
        "Spread / error: white is 2 or more, grey is 1 and black is 1/2 or less": ratio,
    }
    space, look = evaluation.space, evaluation.look
    return {name: look(_paint(space, values)[None])[0] for name, values in pictures.items()}


def _paint(space: Space, values: Array) -> Array:
    """Return stored samples that look black at -1, grey at 0 and white at 1."""
    numbers = torch.from_numpy(values[None]).float() * (FLOAT_RANGE if space.levels is None else 1)
    stored: Array = space.to_stored(numbers)[0].numpy()
    return stored


def find_image_pairs(evaluation: EvaluationRun, count: int) -> list[ImagePair]:
    """Return the pairs of `find_closest_pairs` in a finished evaluation with known training
    images."""
    assert evaluation.training is not None
    fakes, pool = evaluation.generated.samples, evaluation.training.pool.samples
    look = evaluation.look
    return [
        (pair, look(fakes[[pair.sample]])[0], look(pool[[pair.place]])[0])
        for pair in find_closest_pairs(evaluation.nearest, count)
    ]
