"""What numbers mean where one could be misled by them, in sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

SIGNIFICANT = 3
"""Standard errors from which a difference is called one."""

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
    """Copies are near in both spaces; blurred images are in pixels alone, noise in neither."""
    shares = [f"memorized_{space}" for space in ("features", "pixels")]
    if any(name not in values for name in shares):
        return
    expected = values["memorized_expected"]
    least = {name: values[name] - SIGNIFICANT * values[f"{name}_standard_error"] for name in shares}
    ranks = [values[f"memorized_z_{space}"] for space in ("features", "pixels")]
    if min(ranks) > SIGNIFICANT and all(value > expected for value in least.values()):
        yield (
            f"memorisation: {values[shares[0]]:.0%} of the generated images in features, and "
            f"{values[shares[1]]:.0%} in pixels, are as near to a training image as the nearest "
            f"{expected:.0%} of held-out images; --pairs FILE.png shows them"
        )


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
