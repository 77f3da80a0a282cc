"""Measures of generated images against real ones, one file each.

`METRICS` has an entry for each file of this folder, imported when it is looked up. A module has

- `NEEDS`, the parts of an evaluation that it reads, which `Parts` describes;
- `compute(evaluation) -> dict[str, float]`; the standard error of `key` is `key_standard_error`;
- `NUMBERS`, how its numbers are shown; other keys are shown under their own names;
- `BESIDE`, keys that are only in the JSON, or stand beside other numbers;
- `remarks(facts)`, sentences on what its numbers mean;
- `difference_errors(a, b)`, by key the standard error of the difference of two evaluations on the
  same real images, whose k-th generated images began with the same noise; where it is missing, the
  errors of both are combined as independent;
- `details(evaluation)`, what else it found, for the JSON and the report. These last five are
  optional.

The order of images does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from diffuse_cli.core.registry import Modules
from diffuse_cli.metrics.presentation import LEVELS
from diffuse_cli.metrics.presentation import QUESTIONS as QUESTIONS
from diffuse_cli.metrics.presentation import SIGNIFICANT as SIGNIFICANT
from diffuse_cli.metrics.presentation import Facts as Facts
from diffuse_cli.metrics.presentation import Measured as Measured
from diffuse_cli.metrics.presentation import Number as Number
from diffuse_cli.metrics.presentation import Question as Question
from diffuse_cli.metrics.presentation import Remark as Remark
from diffuse_cli.metrics.presentation import Values as Values
from diffuse_cli.metrics.presentation import Words as Words
from diffuse_cli.metrics.presentation import as_text as as_text
from diffuse_cli.metrics.presentation import listed as listed
from diffuse_cli.metrics.presentation import measured as measured
from diffuse_cli.metrics.presentation import with_error as with_error
from diffuse_cli.system.errors import UsageError

if TYPE_CHECKING:
    from diffuse_cli.media import Array
    from diffuse_cli.metrics.answers import Answers
    from diffuse_cli.metrics.channel_distributions import Marginals
    from diffuse_cli.metrics.memorization import Nearest
    from diffuse_cli.metrics.spectrum import Spectra


class Parts(Protocol):
    """The parts of an evaluation, of which a metric reads those that its `NEEDS` name.

    Attributes:
        real_features, fake_features, more_features: `features` or `random_features`, float32
            (N, d), (M, d) and (K, d);
            the last are of further real images, if there are any.
        landmarks: features of images known to be bad, by their names.
        bits, train_bits: bits per dimension of held-out and of training images, (N, 3) and (M, 3):
            L_T, L_1 + ... + L_T-1, L_0.
        floats: whether bits are those of a density of floats.
        nearest: distances to training images by the name of the space.
        answers: of a model that is given something, how what it draws fits that.
        marginals: of the numbers of real and generated samples, by channel.
        spectra: the power of real and generated samples by frequency.
        sides: the stored samples: real, generated and further real ones, (N, C, *size).
    """

    real_features: Array
    fake_features: Array
    more_features: Array
    landmarks: dict[str, Array]
    bits: Array
    train_bits: Array
    floats: bool
    nearest: dict[str, Nearest]
    answers: Answers
    marginals: Marginals
    spectra: Spectra

    @property
    def sides(self) -> tuple[Array, Array, Array]: ...


class Metric(Protocol):
    """What a file of this folder holds at least.

    `compute` raises a `UsageError` if there are too few images for it.
    """

    NEEDS: tuple[str, ...]

    def compute(self, evaluation: Any) -> dict[str, float]: ...


METRICS: Mapping[str, Metric] = Modules(
    "metrics",
    __name__,
    __path__,
    helpers=(
        "channel_distributions",
        "features",
        "nearest_neighbors",
        "presentation",
        "sample_statistics",
    ),
)


def numbers() -> list[Number]:
    """How the numbers of all metrics are shown, in order."""
    found = [n for metric in METRICS.values() for n in getattr(metric, "NUMBERS", ())]
    return sorted(found, key=lambda n: ([*QUESTIONS].index(n.question), n.place))


def label(key: str) -> str:
    """What people call a number."""
    return next((n.label for n in numbers() if n.key == key), key.replace("_", " "))


def shown(values: Values) -> list[Number]:
    """How these values are shown, in order; those that no metric describes come last."""
    known = numbers()
    beside = {key for metric in METRICS.values() for key in getattr(metric, "BESIDE", ())}
    named = {n.key for n in known} | beside
    others = [
        Number(key, key.replace("_", " "))
        for key in values
        if key not in named and not key.endswith("_standard_error")
    ]
    return [n for n in known if n.key in values] + others


def class_numbers(classes: Mapping[str, Values]) -> list[Number]:
    """The numbers shown for each class, if any class has them."""
    there = (n for n in numbers() if n.by_class)
    return [n for n in there if any(n.key in values for values in classes.values())]


def remarks(facts: Facts) -> list[Remark]:
    """What the numbers mean, by level."""
    speaking = (metric for metric in METRICS.values() if hasattr(metric, "remarks"))
    found = [remark for metric in speaking for remark in metric.remarks(facts)]
    return sorted(found, key=lambda remark: LEVELS.index(remark.level))


# -- what several metrics compute -----------------------------------------------------------------


def both(evaluation: Parts, metric: str) -> tuple[Array, Array]:
    """Real and fake features in float64; a `UsageError` for fewer than two on a side."""
    real, fake = evaluation.real_features, evaluation.fake_features
    if min(len(real), len(fake)) < 2:
        raise UsageError(
            f"{metric} needs two images on each side, not {len(real)} real and {len(fake)} fake",
            "Raise -n, or give more images",
        )
    return real.astype("float64"), fake.astype("float64")


def floor(evaluation: Parts) -> tuple[Array, Array] | None:
    """The `halves` of real features, in float64."""
    found = halves(evaluation.real_features, evaluation.more_features)
    return None if found is None else (found[0].astype("float64"), found[1].astype("float64"))


def halves(real: Array, more: Array) -> tuple[Array, Array] | None:
    """Two disjoint, equally large sets of real rows, to measure against each other.

    The real ones against further ones, or two halves of the real ones if these are larger; None if
    they would have fewer than two rows.
    """
    a, b = real, more
    if min(len(real), len(more)) < len(real) // 2:
        a, b = real[::2], real[1::2]
    n = min(len(a), len(b))
    return (a[:n], b[:n]) if n > 1 else None


def average(values: Array) -> tuple[float, float]:
    """The mean of independent values (N,) and its standard error, NaN for one value."""
    n = len(values)
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
