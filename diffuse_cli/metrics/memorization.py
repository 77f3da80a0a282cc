"""Memorisation: whether generated images are closer to training images than chance explains.

The distances of generated images to their nearest training images are compared with those of
references, which are no copies: held-out images and, if these are few, training images against all
others. This is the test of Meehan et al. 2020 ("A Non-Parametric Test to Detect Data-Copying") over
the whole space at once. In pixels it finds copies, in features also moved or recoloured ones
(Somepalli et al. 2023, "Diffusion Art or Digital Forgery?"). In pixels, blurred or empty images are
close to everything without being copies: trust what both spaces agree on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from diffuse_cli.media import Array
from diffuse_cli.metrics.inputs import MetricInputs
from diffuse_cli.metrics.presentation import (
    SIGNIFICANT,
    Facts,
    Measured,
    MetricNumber,
    Remark,
    Values,
    lost,
    with_error,
)
from diffuse_cli.metrics.sample_statistics import share_difference_error

NEEDS = ("nearest",)

QUANTILE = 0.05
"""The share of references that count as close."""

FEW = 0.1
"""If the closest reference alone is more than this share, there are too few references."""

SPACES = {"features": "as the network sees it", "pixels": "pixel by pixel"}

NUMBERS = tuple(
    MetricNumber(f"{key}_{space}", f"{label} in {space}", says.format(words), "below", ideal,
                 "copies", axis="share")
    for key, label, ideal, says in (
        ("memorized", "near", "memorized_expected",
         "Share of the generated samples that are nearer to a training sample, {}, than nearly all "
         "real ones that are no copies."),
        ("memorized_rank", "nearer", 0.5,
         "Chance that a generated sample is nearer to its closest training sample, {}, than a real "
         "one that is no copy."),
    )
    for space, words in SPACES.items()
)  # fmt: skip

BESIDE = (
    "memorized_expected",
    "memorized_references",
    *(f"memorized_z_{space}" for space in SPACES),
)


def remarks(facts: Facts) -> Iterator[Remark]:
    """Copies are near in both spaces; blurred images may be near in one. Of what features say
    nothing of, distances in numbers alone are known, which are never more than a hint.

    The threshold is twice the expected share, because new images without the harder classes are
    also a little nearer to training images. Images unlike real ones are not judged.
    """
    spaces = [space for space in SPACES if f"memorized_{space}" in facts]
    one, many = facts.words.one, facts.words.many
    if not spaces:
        needed = (
            "the model's own training data as DATA, with a part that was held out"
            if facts.model
            else f"DATA of 40 {many} or more, of which training would hold out a part"
        )
        words = f"whether {many} are copies of training {many} was not measured. That needs "
        yield Remark("memorisation", "fine", words + needed)
        return
    values = facts.values
    expected = values["memorized_expected"]
    yield Remark(
        "reference",
        "note",
        f"for {many} near to training {many} it is the share, {Measured(expected)}, of real {many} "
        "that are no copies but as near",
    )
    shares = {space: facts[f"memorized_{space}"] for space in spaces}
    nearer = [s for s in spaces if values[f"memorized_z_{s}"] > SIGNIFICANT]
    near = [s for s in nearer if shares[s].value > 2 * expected + SIGNIFICANT * shares[s].error]
    words = (
        f"{_how_many(shares, many)} as near to a training {one} as the nearest {expected:.0%} of "
        f"{many} that are no copies"
    )
    if len(near) == len(SPACES):
        yield Remark("memorisation", "serious", f"{words}; --pairs FILE.png shows them")
    elif near:
        look = "those of little detail can be, too: look at them with"
        yield Remark("memorisation", "possible", f"{words}; {look} --pairs FILE.png")
    elif lost(values):
        words = f"not judged, as the generated {many} are too unlike real ones"
        yield Remark("memorisation", "fine", words)
    else:
        more = any(share.value > 2 * expected for share in shares.values())
        sign = "no clear sign" if nearer or more else "no sign"
        doubts = "".join(_doubts(values, nearer, more, many))
        yield Remark("memorisation", "fine", f"{sign}: {words}{doubts}")


def _how_many(shares: Mapping[str, Measured], many: str) -> str:
    pixels = f"{shares['pixels'].value:.0%}"
    if "features" not in shares:
        return f"{pixels} of the generated {many} are, by their numbers alone,"
    features = f"{shares['features'].value:.0%}"
    return f"{features} of the generated {many} in features, and {pixels} in pixels, are"


def _doubts(values: Values, nearer: list[str], more: bool, many: str) -> Iterator[str]:
    """What speaks for copies, or against the numbers, where there is no clear sign of copies."""
    if nearer:
        each = " and ".join(f"{values[f'memorized_rank_{s}']:.2f} in {s}" for s in nearer)
        yield (
            f". But the chance that one is nearer than a real image would be is {each}, where "
            f"0.50 is expected: {many} of few kinds are, too; look at the nearest ones"
        )
    elif more:
        yield ". More than expected, but it can be chance: look at the nearest ones"
    if values["memorized_expected"] > FEW:
        yield ". There are so few of these that only much copying would be seen"


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """For each space `memorized_SPACE` and `memorized_rank_SPACE`, with standard errors.

    The first is the share of samples that are closer to a training image than all but 5 % of the
    references; a model that copies nothing has `memorized_expected`. The second is the chance that
    a sample is closer than a reference; such a model has one half. `memorized_z_SPACE` is how many
    standard errors it is above that (Mann & Whitney 1947).
    """
    result: dict[str, float] = {}
    for space, nearest in evaluation.nearest.items():
        samples, references = nearest.samples, usable(nearest.references)
        n, m = len(samples), len(references)
        if min(n, m) < 2:
            continue
        share, error, expected = close(samples, references)
        sides = _sides(samples, references)
        rank = float(sides[0].mean())
        result |= {
            **with_error(f"memorized_{space}", share, error),
            "memorized_expected": expected,
            "memorized_references": float(m),
            **with_error(f"memorized_rank_{space}", rank, _rank_error(*sides)),
            f"memorized_z_{space}": (rank - 0.5) / math.sqrt((n + m + 1) / (12 * n * m)),
        }
    return result


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Those of shares and of chances, where the references are the same.

    The chances' is that of two correlated ones by DeLong et al. 1988.
    """
    result: dict[str, float] = {}
    for space in a.nearest:
        one, other = a.nearest[space], b.nearest[space]
        references = usable(one.references)
        if min(len(one.samples), len(references)) < 2:
            continue
        if not np.array_equal(references, usable(other.references)):
            continue
        near, far = (_near(side.samples, references) for side in (one, other))
        pairs = zip(*(_sides(side.samples, references) for side in (one, other)), strict=True)
        result |= {
            f"memorized_{space}": math.hypot(
                share_difference_error(near[0], far[0]), far[1] - near[1]
            ),
            f"memorized_rank_{space}": _rank_error(*(theirs - ours for ours, theirs in pairs)),
        }
    return result


def usable(references: Array) -> Array:
    """References (M,) whose nearest image is at a finite distance."""
    return references[np.isfinite(references)]


def close(samples: Array, references: Array) -> tuple[float, float, float]:
    """The share of samples (N,) below a low quantile of references (M,).

    Returns:
        The share, its standard error, and the share for equal distributions: k / (M + 1) are below
        the k-th smallest of M, whatever the distribution.
    """
    n, (near, scatter) = len(samples), _near(samples, references)
    share = float(near.mean())
    adjusted = (share * n + 1) / (n + 2)
    error = math.hypot(math.sqrt(adjusted * (1 - adjusted) / n), scatter)
    return share, error, _quantile(references) / (len(references) + 1)


def _quantile(references: Array) -> int:
    """k, where references below the k-th smallest of M are close."""
    return max(1, int(QUANTILE * (len(references) + 1)))


def _near(samples: Array, references: Array) -> tuple[Array, float]:
    """Which samples (N,) are close, and how far their share scatters with the references."""
    m, k, ordered = len(references), _quantile(references), np.sort(references)
    # The rank of the quantile scatters as the count of references below it does.
    places = math.sqrt(k * (1 - k / (m + 1)))
    low, high = max(k - 1 - math.ceil(places), 0), min(k - 1 + math.ceil(places), m - 1)
    between = (samples < ordered[high]).mean() - (samples < ordered[low]).mean()
    return samples < ordered[k - 1], float(between) * places / max(high - low, 1)


def _sides(samples: Array, references: Array) -> tuple[Array, Array]:
    """Of each sample, the share of references that are farther, (N,); of each reference, the share
    of samples that are closer, (M,); ties halved. The mean of either is the chance that a sample is
    closer than a reference."""
    return 1 - _below(references, samples), _below(samples, references)


def _rank_error(of_samples: Array, of_references: Array) -> float:
    """The standard error of that chance (DeLong et al. 1988), at least that of one more image on
    the wrong side."""
    n, m = len(of_samples), len(of_references)
    variance = of_samples.var(ddof=1) / n + of_references.var(ddof=1) / m
    return math.sqrt(max(float(variance), 1 / (min(n, m) + 2) ** 2))


def _below(values: Array, limits: Array) -> Array:
    """The share of values below each limit, equal ones halved."""
    ordered = np.sort(values)
    sides = [np.searchsorted(ordered, limits, side) for side in ("left", "right")]
    return np.asarray((sides[0] + sides[1]) / (2 * len(values)))
