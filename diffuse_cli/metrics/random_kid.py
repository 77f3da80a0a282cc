"""KID on features of random weights, for samples that no trained network has seen (`features`).

The estimate is that of `kid`. A network without training tells many distributions apart (Naeem et
al. 2020), and knows nothing of what matters to people: its distances compare only with
each other, on samples of one space.
"""

from __future__ import annotations

from collections.abc import Iterator

from diffuse_cli.metrics.inputs import MetricInputs
from diffuse_cli.metrics.kid import difference_errors as of_kid
from diffuse_cli.metrics.kid import of_features
from diffuse_cli.metrics.presentation import Facts, MetricNumber, Remark

NEEDS = ("random_features",)

NUMBERS = (
    MetricNumber(
        "kid_random",
        "KID, random features",
        "Kernel distance of features of a network with random weights, as none was trained on such "
        "data. It compares models of the same data; it does not say what looks right to people.",
        "lower",
        "kid_random_floor",
        "numbers",
        5,
        by_class=True,
    ),
)

BESIDE = ("kid_random_floor",)

NAME = "the kernel distance of random features"


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """`kid_random`, and `kid_random_floor`, that of real samples against other real ones; with
    standard errors of at least 4 samples on each side."""
    return of_features(evaluation, NAME, "kid_random")


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """As that of `kid`."""
    return {f"{key}_random": error for key, error in of_kid(a, b).items()}


def remarks(facts: Facts) -> Iterator[Remark]:
    """Whether random features tell generated samples from real ones."""
    if not {"kid_random", "kid_random_floor", "kid_random_standard_error"} <= {*facts.values}:
        return
    kid, least, many = facts["kid_random"], facts["kid_random_floor"], facts.words.many
    told = "tell" if kid.above(least) else "do not tell"
    words = f"{told} generated {many} from real ones: KID {kid}, and {least} between real ones"
    yield Remark("random features", "finding", words)
