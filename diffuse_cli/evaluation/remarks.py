"""What numbers mean where one could be misled by them, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

SIGNIFICANT = 3
"""Standard errors from which a difference is called one."""

PER_CLASS = {
    "bits_per_dim": "bits per dimension",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
}
"""What is said of each class. The Fréchet distance of a few images is bias."""

Values = Mapping[str, float]


def remarks(values: Values, images: int, dim: int) -> list[str]:
    """The sentences that hold of these numbers, the most serious first.

    Args:
        values: each metric's numbers by name.
        images: on the smaller side.
        dim: features of an image.
    """
    return [line for rule in RULES for line in rule(values, images, dim)]


def _memorized(values: Values, images: int, dim: int) -> Iterator[str]:
    """Copies are near in both spaces; blurred images may be in one.

    Twice what is expected is asked for: without its harder classes a set of new images is a little
    nearer to training images, too.
    """
    spaces = ("features", "pixels")
    if any(f"memorized_{space}" not in values for space in spaces):
        return
    expected = values["memorized_expected"]
    near = [
        values[f"memorized_z_{space}"] > SIGNIFICANT
        and values[f"memorized_{space}"]
        > 2 * expected + SIGNIFICANT * values[f"memorized_{space}_standard_error"]
        for space in spaces
    ]
    found = (
        f"memorisation: {values['memorized_features']:.0%} of the generated images in features, "
        f"and {values['memorized_pixels']:.0%} in pixels, are as near to a training image as the "
        f"nearest {expected:.0%} of images that are no copies"
    )
    if all(near):
        yield f"{found}; --pairs FILE.png shows them"
    elif any(near):
        yield f"possible {found}; blurred images can be, too: look at them with --pairs FILE.png"


def _overfitted(values: Values, images: int, dim: int) -> Iterator[str]:
    gap = values.get("bits_per_dim_gap")
    if gap is not None and gap > SIGNIFICANT * values["bits_per_dim_gap_standard_error"]:
        yield (
            f"overfitting: held-out images cost {gap:.4f} bits per dimension more than training "
            "images do; train for fewer steps, or on more images"
        )


def _biased(values: Values, images: int, dim: int) -> Iterator[str]:
    """A covariance of fewer images than features has no full rank."""
    if "frechet_distance" in values and images <= dim:
        yield (
            f"Fréchet distance: n = {images:,} is not above the {dim:,} features, so that most of "
            "it is bias; compare it at equal n only, or compare KID"
        )


RULES: tuple[Callable[[Values, int, int], Iterator[str]], ...] = (_memorized, _overfitted, _biased)
