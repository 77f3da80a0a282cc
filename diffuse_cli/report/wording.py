"""What each number is, in a sentence for someone who meets it for the first time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Values = Mapping[str, float]


@dataclass(frozen=True)
class Entry:
    """A number of an evaluation.

    Attributes:
        says: what it is.
        better: which way is better.
        reference: what a perfect model reaches: a key of the values, a number, or None.
    """

    label: str
    says: str
    better: str
    reference: str | float | None = None


@dataclass(frozen=True)
class Group:
    """Numbers that answer one question; `entries` by their keys."""

    title: str
    says: str
    entries: Mapping[str, Entry]


_NEAR = "Share of the generated images that are nearer to a training image, {}, than nearly all real images that are no copies."  # noqa: E501
_RANK = "Chance that a generated image is nearer to its closest training image, {}, than a real image that is no copy."  # noqa: E501

GROUPS = (
    Group(
        "Do generated images look like real ones?",
        "A network that was trained on photographs turns every image into a list of features; the "
        "generated and the real images are two clouds of points, and these numbers are distances "
        "between the clouds. Real images against other real ones show what a perfect model would "
        "reach.",
        {
            "kid": Entry(
                "KID",
                "Kernel inception distance: how different the two clouds are. It does not depend "
                "on how many images were measured.",
                "lower is better",
                "kid_floor",
            ),
            "frechet_distance": Entry(
                "Fréchet distance",
                "Distance of the two clouds' means and spreads. It falls as more images are "
                "measured: compare it at equal numbers of images only.",
                "lower is better",
                "frechet_floor",
            ),
            "frechet_infinity": Entry(
                "Fréchet distance, infinite n",
                "An estimate of what it would come to with endlessly many images.",
                "lower is better",
                0.0,
            ),
        },
    ),
    Group(
        "Is each image plausible, and is there enough variety?",
        "Two questions apart: a model can draw one good image over and over, or a great variety "
        "of bad ones.",
        {
            "precision": Entry(
                "precision",
                "Share of the generated images that lie among the real ones: plausible images.",
                "higher is better",
            ),
            "recall": Entry(
                "recall",
                "Share of the real images that lie among the generated ones: variety.",
                "higher is better",
            ),
            "density": Entry(
                "density",
                "As precision, but counts how many real images are around each generated one.",
                "1 is best",
                1.0,
            ),
            "coverage": Entry(
                "coverage",
                "Share of the real images that have a generated one close by: variety.",
                "higher is better",
                1 - 2**-5,
            ),
        },
    ),
    Group(
        "Are generated images copies of training images?",
        "Each generated image was compared with its nearest training image, and so were real "
        "images that are no copies. Where generated images are much nearer, they are copies; the "
        "reference is what a model that copies nothing has. Pixels alone mislead (a blurred image "
        "is near everything): believe what pixels and features both say.",
        {
            "memorized_features": Entry(
                "near in features",
                _NEAR.format("as the network sees it"),
                "not above the reference",
                "memorized_expected",
            ),
            "memorized_pixels": Entry(
                "near in pixels",
                _NEAR.format("pixel by pixel"),
                "not above the reference",
                "memorized_expected",
            ),
            "memorized_rank_features": Entry(
                "nearer in features", _RANK.format("in features"), "not above one half", 0.5
            ),
            "memorized_rank_pixels": Entry(
                "nearer in pixels", _RANK.format("in pixels"), "not above one half", 0.5
            ),
        },
    ),
    Group(
        "How well does the model predict images?",
        "A model that knows what images look like can store a real one in few bits. Stored as it "
        "is, an image takes 8 bits per dimension (a dimension is one colour value of one pixel). "
        "The number is an upper bound, the sum of three parts. It says little about looks.",
        {
            "bits_per_dim": Entry(
                "bits per dimension", "The bound for real images; the sum.", "lower is better"
            ),
            "bits_prior": Entry(
                "prior, L_T", "What is still visible of an image in pure noise.", "0 is best", 0.0
            ),
            "bits_middle": Entry(
                "steps, L_1 ... L_T-1",
                "What all denoising steps but the last cost together.",
                "lower is better",
            ),
            "bits_decoder": Entry(
                "decoder, L_0", "What the last step, to exact pixel values, costs.",
                "lower is better",
            ),
            "bits_per_dim_train": Entry(
                "of training images", "The same bound for images the model was trained on.",
                "as for other images",
            ),
            "bits_per_dim_gap": Entry(
                "held-out less training",
                "How much more images cost that the model was not trained on. Clearly above 0: "
                "it has learned its training images by heart.",
                "0 is best",
                0.0,
            ),
        },
    ),
)  # fmt: skip

KNOWN = {key: entry for group in GROUPS for key, entry in group.entries.items()}

_REFERENCES = ("kid_floor", "frechet_floor", "memorized_expected")

UNSHOWN = ("floor_images", "memorized_references", "memorized_z_", *_REFERENCES)
"""Numbers that stand beside others or are in the JSON alone."""


def error_of(values: Values, key: str) -> float:
    """The standard error of a number, 0 where there is none."""
    found = values.get(f"{key}_standard_error", 0.0)
    return found if math.isfinite(found) else 0.0


def reference_of(values: Values, entry: Entry) -> tuple[float, float] | None:
    """What a perfect model reaches, and its error."""
    if isinstance(entry.reference, float):
        return entry.reference, 0.0
    if entry.reference is None or entry.reference not in values:
        return None
    key = entry.reference
    return values[key], error_of(values, key)


def number(value: float, error: float = 0.0) -> str:
    """A number to two digits of its error, with the error; to four decimals where there is none."""
    if not math.isfinite(value):
        return "not known"
    if not error > 0:
        return _signed(f"{round(value, 4) + 0:,.4f}".rstrip("0").rstrip("."))
    digits = max(0, min(6, 1 - math.floor(math.log10(error))))
    return _signed(f"{value:,.{digits}f} ± {error:,.{digits}f}")


def _signed(words: str) -> str:
    return words.replace("-", "−")


def measured(values: Values, key: str) -> str:
    """A number with its error; a dash where it was not measured."""
    return number(values[key], error_of(values, key)) if key in values else "–"


def others(values: Values) -> list[str]:
    """The keys that no group has, of metrics that were added since."""
    return [
        key
        for key in values
        if key not in KNOWN and not key.endswith("_standard_error") and not key.startswith(UNSHOWN)
    ]
