"""Memorization: whether generated images are closer to training images than by chance.

The distances of generated images to their nearest training images are compared with the distances
of references, which are not copies: held-out images and, if there are few, training images compared
with all other training images. This is the test of Meehan et al. 2020 ("A Non-Parametric Test to
Detect Data-Copying") over the whole space at once. In pixels it finds copies, and in features also
moved or recolored copies (Somepalli et al. 2023, "Diffusion Art or Digital Forgery?"). Blurred or
empty images are close to everything in pixels without being copies, so trust a result only if both
spaces agree. Features are compared for some training images and the nearest in pixels, so that both
spaces see the source of each copy that is close in both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from diffuse_cli.media import Array
from diffuse_cli.metrics import (
    SIGNIFICANT,
    Facts,
    Measurement,
    MetricInputs,
    MetricNumber,
    Remark,
    Values,
    estimates,
    presentation,
    read_measurement,
)
from diffuse_cli.metrics.nearest_neighbors import NearestDistances

NEEDS = ("nearest",)

QUANTILE = 0.05
"""Fraction of references that count as close."""

POWER, FRACTIONS = 0.95, (0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0)
"""Probability with which copies are noticed, and the fractions of copies to try."""

CHANCE, DOUBT = 0.00135, 0.05
"""Probabilities of a number of nearest samples without copies below which it is a sign of copies
(three standard errors), and below which it is named."""

REFERENCES = 200
"""Real images to compare with: those held out and, if they are fewer, training images."""

SPACES = ("features", "pixels")

NUMBERS = (
    MetricNumber("memorized_copies", "copies",
        "Fraction of generated samples that are, in every space, closer to a training sample than "
        "any real sample that is not a copy.", "below", 0.0, "copies", axis="fraction"),
    *(MetricNumber(f"{key}_{space}", f"{label} in {space}", says.format(space), "below", ideal,
                 "copies", axis="fraction")
    for key, label, ideal, says in (
        ("memorized", "memorization rate", "memorized_expected",
         "Fraction of generated samples whose nearest training sample in {} is closer than for 95 "
         "% of real samples that are not copies."),
        ("memorized_rank", "nearest-neighbor rank", 0.5,
         "Probability that a generated sample is closer to its nearest training sample in {} than "
         "a real sample that is not a copy."),
    )
    for space in SPACES),
)  # fmt: skip

BESIDE = (
    "memorized_expected",
    "memorized_references",
    "memorized_noticed",
    *(f"memorized_z_{space}" for space in SPACES),
)


def remarks(facts: Facts) -> Iterator[Remark]:
    """Report signs of memorization.

    Copies are close in both spaces, but blurred images can be close in one. For samples without
    features, only distances of values are known, which are at most a possible sign. The threshold
    is twice the expected rate, because new images without the harder classes are also a little
    closer to training images. Images that do not look like real images are not judged.
    """
    spaces = [space for space in SPACES if f"memorized_{space}" in facts]
    one, many = facts.words.one, facts.words.many
    if not spaces:
        needed = f"DATA must have at least 40 {many}, and --train-n must be above 0"
        if facts.model:
            needed = (
                "DATA must be the model's own training data, with a held-out part, and --train-n "
                "above 0"
            )
        words = f"not measured whether {many} are copies of training {many}. {needed}"
        yield Remark("memorization", "fine", words)
        return
    values = facts.values
    expected, references = values["memorized_expected"], int(values["memorized_references"])
    signs = find_signs(values, facts.generated)
    yield Remark(
        "reference",
        "note",
        f"for memorization rates, it is the rate {Measurement(expected)} of real {many} that are "
        "not copies",
    )
    rates = {space: facts[f"memorized_{space}"] for space in spaces}
    words = (
        f"{_percentages(rates, many)} as close to a training {one} as the closest {expected:.0%} "
        f"of real {many} that are not copies"
    )
    nearest = round(values.get("memorized_copies", 0.0) * facts.generated)
    doubtful = nearest >= fewest_copies(facts.generated, references, DOUBT)
    if doubtful:
        words = (
            f"{words}. {nearest:,} of the generated {many} are closer to training {many} "
            f"than all real {many} that are not copies"
        )
    if signs.level == "serious":
        yield Remark("memorization", "serious", f"{words}. To see them, add --pairs FILE.png")
    elif presentation.fails_baselines(values):
        words = f"not judged, because the generated {many} are too different from real {many}"
        yield Remark("memorization", "fine", words)
    elif signs.level:
        look = f"{many.capitalize()} with little detail can be so too. To see them, add"
        yield Remark("memorization", "possible", f"{words}. {look} --pairs FILE.png")
    else:
        ranked = [s for s in spaces if values[f"memorized_z_{s}"] > SIGNIFICANT]
        more = doubtful or any(rate.value > 2 * expected for rate in rates.values())
        sign = "no clear sign" if ranked or more else "no sign"
        doubts = "".join(_caveats(values, ranked, more, many))
        yield Remark("memorization", "fine", f"{sign}: {words}{doubts}")


@dataclass(frozen=True)
class Signs:
    """Signs of copies among generated samples.

    Attributes:
        level: `serious`, `possible`, or empty without signs.
        nearest: the number of samples that are nearer than all references, 0 if it can be chance.
    """

    level: str
    nearest: int


def find_signs(values: Values, generated: int) -> Signs:
    """Find signs of copies among a number of generated samples.

    With one space only, or if only one of two shows copies, they are possible. Without references
    nothing is known.
    """
    spaces = [space for space in SPACES if f"memorized_{space}" in values]
    if not spaces:
        return Signs("", 0)
    limit = Measurement(2 * values["memorized_expected"])
    copied = [
        space
        for space in spaces
        if values[f"memorized_z_{space}"] > SIGNIFICANT
        and read_measurement(values, f"memorized_{space}").is_above(limit)
    ]
    count = round(values.get("memorized_copies", 0.0) * generated)
    if count < fewest_copies(generated, int(values["memorized_references"])):
        count = 0
    if (count and len(spaces) == len(SPACES)) or len(copied) == len(SPACES):
        return Signs("serious", count)
    return Signs("possible" if count or copied else "", count)


def _percentages(rates: Mapping[str, Measurement], many: str) -> str:
    pixels = f"{rates['pixels'].value:.0%}"
    if "features" not in rates:
        return f"{pixels} of the generated {many} are, by their values only,"
    features = f"{rates['features'].value:.0%}"
    return f"{features} of the generated {many} in features, and {pixels} in pixels, are"


def _caveats(values: Values, ranked: list[str], more: bool, many: str) -> Iterator[str]:
    """Yield doubts about a result without a clear sign of copies."""
    if ranked:
        ranks = " and ".join(f"{values[f'memorized_rank_{s}']:.2f} in {s}" for s in ranked)
        yield (
            f". But the nearest-neighbor rank is {ranks}, where 0.50 is expected. A lack of "
            f"variety can cause this too, so look at the nearest {many}"
        )
    elif more:
        yield f". That is more than expected, but can be chance. Look at the nearest {many}"
    if "memorized_noticed" in values:
        fraction = f"{100 * values['memorized_noticed']:g}%"
        yield f". A model with {fraction} copies would be noticed with {POWER:.0%} probability"
    else:
        yield f". There are too few references to notice copies, or some equal training {many}"


def fewest_copies(n: int, m: int, chance: float = CHANCE) -> int:
    """Return how many of n samples must be nearer than all m references to be less likely than
    `chance`.

    For equal distributions, the n + m distances are in random order. Then c samples come first with
    probability n / (n + m) * (n - 1) / (n + m - 1) * ..., c factors, whatever the distribution. It
    is n + 1 if even all of them could be chance.
    """
    probability, count = 1.0, 0
    while probability > chance and count <= n:
        probability *= (n - count) / (n + m - count)
        count += 1
    return count


def count_training_references(held_out: int, train: int) -> int:
    """Return how many training images are references, each compared with all others."""
    return max(0, min(REFERENCES - held_out, train))


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """Return the numbers of `compare_distances`."""
    return compare_distances(evaluation.nearest)


def compare_distances(nearest_by_space: Mapping[str, NearestDistances]) -> dict[str, float]:
    """Return `memorized_SPACE` and `memorized_rank_SPACE` for each space, with standard errors.

    The first is the fraction of samples that are closer to a training image than 95 % of the
    references. For a model that never copies it is `memorized_expected`. The second is the
    probability that a sample is closer than a reference. Without copies it is one half.
    `memorized_z_SPACE` is its distance above one half in standard errors (Mann & Whitney 1947).
    `memorized_noticed` is the fraction of `find_noticed_fraction`.
    """
    result: dict[str, float] = {}
    nearer: list[Array] = []
    counts: list[int] = []
    for space, nearest in nearest_by_space.items():
        samples, references = nearest.samples, select_finite(nearest.references)
        n, m = len(samples), len(references)
        if min(n, m) < 2:
            continue
        near, scatter = _find_close(samples, references)
        above, below = estimates.rank_components(samples, references)
        rate, rank = float(near.mean()), float(above.mean())
        error = math.hypot(math.sqrt(estimates.fraction_variance(rate, n)), scatter)
        result |= {
            **Measurement(rate, error).to_entries(f"memorized_{space}"),
            # For every distribution, a fraction k / (M + 1) is below the k-th smallest of M.
            "memorized_expected": _quantile(references) / (m + 1),
            "memorized_references": float(m),
            **Measurement(rank, estimates.rank_error(above, below)).to_entries(
                f"memorized_rank_{space}"
            ),
            f"memorized_z_{space}": (rank - 0.5) / math.sqrt((n + m + 1) / (12 * n * m)),
        }
        nearer.append(samples < references.min())
        counts.append(m if references.min() > 0 else 0)  # no copy is nearer than at distance 0
    if nearer:
        copies = np.all(nearer, axis=0)
        fraction = float(copies.mean())
        deviation = math.sqrt(estimates.fraction_variance(fraction, len(copies)))
        result |= Measurement(fraction, deviation).to_entries("memorized_copies")
        if min(counts) and (noticed := find_noticed_fraction(len(copies), min(counts))):
            result["memorized_noticed"] = noticed
    return result


def find_noticed_fraction(n: int, m: int) -> float | None:
    """Return the smallest of `FRACTIONS` of copies that are noticed with probability `POWER`.

    Each of n samples is a copy with this probability, and nearer than all m references. The
    number of copies is noticed, with any other samples. None if even a set of copies is not
    noticed.
    """
    counts = torch.arange(fewest_copies(n, m), dtype=torch.float64)
    for fraction in FRACTIONS:
        number = torch.distributions.Binomial(n, torch.tensor(fraction, dtype=torch.float64))
        if 1 - number.log_prob(counts).exp().sum() >= POWER:
            return fraction
    return None


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Return the standard errors of rates and ranks, if the references are the same.

    Ranks are correlated, with the standard error of DeLong et al. 1988.
    """
    result: dict[str, float] = {}
    copies: list[list[Array]] = [[], []]
    for space in a.nearest:
        sides = a.nearest[space], b.nearest[space]
        references = select_finite(sides[0].references)
        if min(len(sides[0].samples), len(references)) < 2:
            continue
        if not np.array_equal(references, select_finite(sides[1].references)):
            continue
        close_a, close_b = (_find_close(side.samples, references) for side in sides)
        for side_copies, side in zip(copies, sides, strict=True):
            side_copies.append(side.samples < references.min())
        ranked = (estimates.rank_components(side.samples, references) for side in sides)
        pairs = zip(*ranked, strict=True)
        result |= {
            f"memorized_{space}": math.hypot(
                estimates.fraction_difference_error(close_a[0], close_b[0]),
                close_b[1] - close_a[1],
            ),
            f"memorized_rank_{space}": estimates.rank_error(*(y - x for x, y in pairs)),
        }
    if result:
        masks = (np.all(side_copies, axis=0) for side_copies in copies)
        result["memorized_copies"] = estimates.fraction_difference_error(*masks)
    return result


def select_finite(references: Array) -> Array:
    """Return the references (M,) with a finite distance to the nearest image."""
    return references[np.isfinite(references)]


def _quantile(references: Array) -> int:
    """Return k, for which references below the k-th smallest of M count as close."""
    return max(1, int(QUANTILE * (len(references) + 1)))


def _find_close(samples: Array, references: Array) -> tuple[Array, float]:
    """Return a mask of close samples (N,), and the error of their fraction by the references."""
    m, k, ordered = len(references), _quantile(references), np.sort(references)
    # The rank of the quantile has the standard error of the number of references below it.
    places = math.sqrt(k * (1 - k / (m + 1)))
    low, high = max(k - 1 - math.ceil(places), 0), min(k - 1 + math.ceil(places), m - 1)
    between = (samples < ordered[high]).mean() - (samples < ordered[low]).mean()
    return samples < ordered[k - 1], float(between) * places / max(high - low, 1)
