"""Presentation of metrics in tables, JSON, the report and the docs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from diffuse_cli.core import Space

Values = Mapping[str, float]

SIGNIFICANT = 3
"""Number of standard errors above which a difference is called significant."""


FULL, LEAST, SMALL, LARGE = 1e-9, 1e-300, 1e-6, 1e15
"""Limits of rounding. A standard error below `FULL` times the value is beyond the value's digits.
Numbers below `LEAST` are shown as 0. Numbers outside `SMALL` ... `LARGE` have a power of ten."""


def format_number(value: float, error: float = 0.0, sign: str = "") -> str:
    """Return a number rounded to two digits of its standard error, or to four digits without.

    Args:
        error: the standard error, or 0, infinity or NaN if it is not known.
        sign: `+` to show the sign of positive numbers too.
    """
    if not math.isfinite(value):
        return "not known"
    value = value if abs(value) > LEAST else 0.0
    has_error = LEAST < error < math.inf
    within = has_error and error > FULL * abs(value)
    smallest, digits = (error, 2) if within else (abs(value), 4)
    largest = max(abs(value), error if within else 0.0)
    power = 0 if largest == 0 or SMALL <= largest < LARGE else _exponent(largest, digits)
    places = digits - 1 - _exponent(smallest, digits) + power
    if not within:
        places = max(0, places)
    texts = [_decimals(value / 10.0**power, places, sign)]
    if within:
        texts.append(_decimals(error / 10.0**power, places))
    elif "." in texts[0]:
        texts = [texts[0].rstrip("0").rstrip(".")]
    words = " ± ".join(texts)
    if power:
        words = f"({words})e{power}" if within else f"{words}e{power}"
    if has_error and not within:
        words += f" ± {error:.1e}"
    return words.replace("-", "−")


def _exponent(value: float, digits: int) -> int:
    """Return the power of ten of the first digit of a number, after rounding to some digits."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])


def _decimals(value: float, places: int, sign: str = "") -> str:
    """Return a number rounded to a number of decimals. If that is negative, to a power of ten."""
    return f"{round(value, places) + 0.0:{sign},.{max(0, places)}f}"


class Measurement(NamedTuple):
    """Value with its standard error, 0 or NaN if unknown. Its text is `format_number`."""

    value: float
    error: float = 0.0

    def __format__(self, spec: str) -> str:
        return format_number(self.value, self.error, spec)

    def __str__(self) -> str:
        return format(self)

    def to_entries(self, key: str) -> dict[str, float]:
        """Return the value and its standard error by their keys."""
        return {key: self.value, f"{key}_standard_error": self.error}

    def is_above(self, reference: Measurement) -> bool:
        """Whether it is significantly larger than another."""
        errors = (e for e in (self.error, reference.error) if math.isfinite(e))
        return self.value - reference.value > SIGNIFICANT * math.hypot(*errors)


def read_measurement(values: Values, key: str) -> Measurement:
    """Return a value with its standard error."""
    return Measurement(values[key], values.get(f"{key}_standard_error", 0.0))


def read_floor(values: Values, key: str) -> Measurement:
    """Return a kernel distance between real samples, by default 0, as its mean."""
    has_floor = f"{key}_floor" in values
    return read_measurement(values, f"{key}_floor") if has_floor else Measurement(0.0)


def format_measurement(values: Values, key: str) -> str:
    """Return a value with its standard error as text, or a dash if it was not measured."""
    return str(read_measurement(values, key)) if key in values else "–"


@dataclass(frozen=True)
class Question:
    """Question that a group of metrics answers, with an explanation for new readers."""

    title: str
    says: str


QUESTIONS: Mapping[str, Question] = {
    "likeness": Question(
        "Do generated images look like real images?",
        "A network trained on photographs turns each image into a list of features. Generated and "
        "real images are then two clouds of points, and these metrics are distances between the "
        "clouds. The distance between two sets of real images shows what a perfect model would "
        "reach.",
    ),
    "numbers": Question(
        "Do their values have the same statistics?",
        "These metrics compare the values of samples directly, for images their brightness, "
        "colors and detail. They need no network, have plain units, and work for every kind of "
        "data. Samples can agree in all of them and still look different.",
    ),
    "variety": Question(
        "Is each image plausible, and is there enough variety?",
        "These are two questions: a model can generate the same good image again and again, or a "
        "great variety of bad images.",
    ),
    "answers": Question(
        "Does an image fit its conditioning image?",
        "These metrics are for models with a conditioning image, for example a small image. Many "
        "images can fit it, and the real image is one of them. If a model generates all of them, "
        "its images are as far from the real image as from each other.",
    ),
    "ensembles": Question(
        "Is the spread of an ensemble right?",
        "An ensemble is several samples with the same condition, its members. If they are "
        "plausible, the real sample looks like one more member, and members differ from each other "
        "as much as their mean is wrong.",
    ),
    "copies": Question(
        "Are generated samples copies of training samples?",
        "Each generated sample is compared with its nearest training sample, and so are real "
        "samples that are not copies. Generated samples that are much nearer are copies. The "
        "reference is the value of a model that never copies. Distances in pixels, or in the "
        "values of other samples, can mislead, because a blurred image is near to everything. For "
        "images, trust the result only if pixels and features agree.",
    ),
    "prediction": Question(
        "How well does the model predict samples?",
        "A good model can compress a real sample to few bits. Without compression, an 8-bit image "
        "takes 8 bits per dimension (a dimension is one color value of one pixel). The value is "
        "an upper bound and the sum of three parts. It hardly depends on how samples look.",
    ),
    "other": Question("Other metrics", ""),
}
"""Questions in the order of the tables, to which each `MetricNumber` refers."""

DIRECTIONS = {
    "lower": "lower is better",
    "higher": "higher is better",
    "reference": "best at the reference",
    "below": "best not above the reference",
    "": "",
}


@dataclass(frozen=True)
class MetricNumber:
    """Presentation of a value of an evaluation.

    Attributes:
        key: the name in the values and in the JSON.
        label: the name in tables.
        says: the description, in one or two sentences.
        direction: the better direction, one of `DIRECTIONS`.
        ideal: the value of a perfect model: a number, or the key of another value.
        question: the question in `QUESTIONS` that it answers.
        place: the order among the values of a question, lowest first.
        part: whether it is a part or a variant of the value above it.
        axis: the name of the plot that it shares with other values of the question, or empty for
            no plot.
        by_class: whether it is also shown for each class, with fewer images.
        unquoted: a function of the values that returns the reason why this value would mislead,
            which is shown instead, or an empty string.
        tolerance: the difference from the reference up to which samples are called close: a number,
            or the key of another value. None if the verdict does not depend on this value.
    """

    key: str
    label: str
    says: str = ""
    direction: str = ""
    ideal: float | str | None = None
    question: str = "other"
    place: int = 0
    part: bool = False
    axis: str = ""
    by_class: bool = False
    unquoted: Callable[[Values], str] = lambda values: ""
    tolerance: float | str | None = None

    @property
    def direction_text(self) -> str:
        """The direction in words."""
        return DIRECTIONS[self.direction]

    def reference(self, values: Values) -> Measurement | None:
        """Return the value of a perfect model."""
        return _resolve(self.ideal, values)

    def is_far(self, values: Values) -> bool:
        """Whether it is significantly worse than the reference, and by more than the tolerance."""
        reference, tolerance = self.reference(values), _resolve(self.tolerance, values)
        if reference is None or tolerance is None or not self.can_show(values):
            return False
        value = read_measurement(values, self.key)
        above = self.direction != "higher" and value.is_above(reference)
        below = self.direction != "lower" and reference.is_above(value)
        return (above or below) and abs(value.value - reference.value) > tolerance.value

    def text(self, values: Values) -> str:
        """Return the value with its standard error, or the reason why it is not shown.

        It is a dash if the value was not measured.
        """
        reason = self.unquoted(values) if self.key in values else ""
        return reason or format_measurement(values, self.key)

    def can_show(self, values: Values) -> bool:
        """Whether it was measured and may be shown."""
        return self.key in values and not self.unquoted(values)


def _resolve(number: float | str | None, values: Values) -> Measurement | None:
    """Return a number, or the value of a key, or None if there is none."""
    if isinstance(number, str):
        return read_measurement(values, number) if number in values else None
    return None if number is None else Measurement(number)


@dataclass(frozen=True)
class Words:
    """Words for samples of a kind, for example images.

    Attributes:
        many: the plural, such as "images".
        points: the plural of their elements, such as "pixels".
        low, high: the words for too small and too large values, such as "dark" and "bright".
        channels: the names of channels. Channels without a name get a number.
        one: the singular, such as "image".
    """

    many: str = "samples"
    points: str = "points"
    low: str = "low"
    high: str = "high"
    channels: Sequence[str] = ()
    one: str = "sample"

    @classmethod
    def of(cls, space: Space) -> Words:
        """Return the words for samples of a space."""
        from diffuse_cli.media import MEDIA

        kind = MEDIA[space.medium]
        named = space.layout not in kind.alike
        channels = tuple(kind.channel_names.get(space.channels, ())) if named else ()
        channels = space.quantities or channels
        return cls(kind.many, kind.points, *kind.low_high, channels, kind.one)

    def name_part(self, part: str) -> str:
        """Return words for the measured part of the real samples, `held-out` or `all`."""
        return {"held-out": f"held-out {self.many}", "all": f"all {self.many} of DATA"}[part]

    def channel(self, k: int) -> str:
        """Return the name of the k-th channel."""
        return self.channels[k] if k < len(self.channels) else f"channel {k}"


def join_names(names: Sequence[str]) -> str:
    """Return names as a list in words: `a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


@dataclass(frozen=True)
class Facts:
    """Results of an evaluation for remarks.

    Attributes:
        values: the values of all metrics.
        real, generated: the numbers of real and generated images.
        dim: the number of features per image.
        model: whether a model was evaluated, not a folder of images.
        levels: the number of levels of samples, or None for floats.
        details: the details of metrics, by name.
        words: the words for samples.
    """

    values: Values
    real: int
    generated: int
    dim: int
    model: bool
    levels: int | None
    details: Mapping[str, Any] = field(default_factory=dict)
    words: Words = field(default_factory=Words)

    @property
    def raw_bits(self) -> Measurement:
        """The bits per dimension of an uncompressed sample, infinity for floats."""
        return Measurement(math.log2(self.levels) if self.levels else math.inf)

    def __getitem__(self, key: str) -> Measurement:
        return read_measurement(self.values, key)

    def __contains__(self, key: object) -> bool:
        return key in self.values


LEVELS = ("serious", "possible", "poor", "finding", "fine", "caution", "note")
"""Levels of remarks in the order of output: failures, findings, cautions, and notes on tables."""

WARNINGS = ("serious", "possible", "poor", "caution")
"""Levels that the terminal shows too."""


@dataclass(frozen=True)
class Remark:
    """Remark on the meaning of values.

    Attributes:
        kind: the subject in words.
        level: one of `LEVELS`.
        says: a sentence without a full stop.
    """

    kind: str
    level: str
    says: str

    @property
    def title(self) -> str:
        """The heading of the sentence."""
        return f"possible {self.kind}" if self.level == "possible" else self.kind

    @property
    def warns(self) -> bool:
        """Whether values could mislead without the remark."""
        return self.level in WARNINGS

    def __str__(self) -> str:
        return f"{self.title}: {self.says}"


# Baseline images, which are bad by construction. Their KID shows how bad generated images are.

BASELINES = {"blurred": "blurred real images", "mean": "their mean image", "noise": "noise"}
"""Names of the baselines, with `kid_of_NAME` as the key of their KID, and words for them."""


def rank_baselines(values: Values) -> tuple[list[str], list[str], list[str]]:
    """Return the baselines whose KID is below, close to, and above the generated images' KID.

    Baselines that cannot be distinguished from real images, such as blurred images of smooth
    things, are left out. If generated images cannot be distinguished either, the first two lists
    are empty.
    """
    groups: tuple[list[str], list[str], list[str]] = ([], [], [])
    if "kid" not in values:
        return groups
    kid = read_measurement(values, "kid")
    floor = read_floor(values, "kid")
    differs = "kid_standard_error" in values and kid.is_above(floor)
    for name in BASELINES:
        if f"kid_of_{name}" in values:
            baseline = read_measurement(values, f"kid_of_{name}")
            place = 0 if differs and kid.is_above(baseline) else 2 if baseline.is_above(kid) else 1
            if baseline.is_above(floor) and (differs or place == 2):
                groups[place].append(name)
    return groups


def fails_baselines(values: Values) -> bool:
    """Whether generated images are not nearer to real images than a baseline."""
    return any(rank_baselines(values)[:2])
