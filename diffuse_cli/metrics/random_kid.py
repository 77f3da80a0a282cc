"""KID of features from random weights, for samples for which there are no trained networks.

The estimate is the same as in `kid`. A network without training can distinguish many distributions
(Naeem et al. 2020), but not by the criteria of people. Its distances can be compared only with each
other, for samples of one space.
"""

from __future__ import annotations

from collections.abc import Iterator

from diffuse_cli.metrics import Facts, MetricInputs, MetricNumber, Remark, kid

NEEDS = ("random_features",)

NUMBERS = (
    MetricNumber(
        "kid_random",
        "KID, random features",
        "Kernel distance for features of a network with random weights, because no network was "
        "trained on this kind of data. Use it to compare models of the same data.",
        "lower",
        "kid_random_floor",
        "numbers",
        5,
        by_class=True,
        tolerance=0.0,
    ),
)

BESIDE = ("kid_random_floor",)


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """Return `kid_random`, and `kid_random_floor`, its value between two sets of real samples.

    Each has a standard error if there are at least 4 samples on each side.
    """
    return kid.compute_with_floor(evaluation, "kid_random")


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Return the standard error of `kid_random`, as for `kid`."""
    return {f"{key}_random": error for key, error in kid.difference_errors(a, b).items()}


def remarks(facts: Facts) -> Iterator[Remark]:
    """Report whether random features can distinguish generated and real samples."""
    if not {"kid_random", "kid_random_floor", "kid_random_standard_error"} <= {*facts.values}:
        return
    value, floor, many = facts["kid_random"], facts["kid_random_floor"], facts.words.many
    can = "can" if value.is_above(floor) else "cannot"
    words = (
        f"they {can} distinguish generated from real {many}: KID {value}, compared with {floor} "
        f"between two sets of real {many}"
    )
    yield Remark("random features", "finding", words)
