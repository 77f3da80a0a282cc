"""How metrics present their numbers, as data for the tables, JSON, report and docs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Values = Mapping[str, float]

SIGNIFICANT = 3
"""Differences of more standard errors than this are called significant."""


FULL, LEAST, SMALL, LARGE = 1e-9, 1e-300, 1e-6, 1e15
"""An error below `FULL` of the value is beyond its digits. Numbers below `LEAST` are 0; those that
are not from `SMALL` to `LARGE` have a power of ten."""


def significant(value: float, error: float = 0.0, sign: str = "") -> str:
    """Return a number with two digits of its standard error, or with four of its own if it has
    none.

    Args:
        error: 0, infinite or NaN if it is not known.
        sign: `+` to mark positive numbers too.
    """
    if not math.isfinite(value):
        return "not known"
    value = value if abs(value) > LEAST else 0.0
    known = LEAST < error < math.inf
    within = known and error > FULL * abs(value)
    least, digits = (error, 2) if within else (abs(value), 4)
    largest = max(abs(value), error if within else 0.0)
    power = 0 if largest == 0 or SMALL <= largest < LARGE else _exponent(largest, digits)
    places = digits - 1 - _exponent(least, digits) + power
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
    if known and not within:
        words += f" ± {error:.1e}"
    return words.replace("-", "−")


def _exponent(value: float, digits: int) -> int:
    """The power of ten of the first digit, once a number is rounded to some digits."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])


def _decimals(value: float, places: int, sign: str = "") -> str:
    """A number rounded to so many decimals, or, below 0, to a power of ten."""
    return f"{round(value, places) + 0.0:{sign},.{max(0, places)}f}"


class Measured(NamedTuple):
    """A value with its standard error, 0 or NaN if there is none; as text, `significant`."""

    value: float
    error: float = 0.0

    def __format__(self, spec: str) -> str:
        return significant(self.value, self.error, spec)

    def __str__(self) -> str:
        return format(self)

    def above(self, other: Measured) -> bool:
        """Whether it is significantly larger than another."""
        known = (e for e in (self.error, other.error) if math.isfinite(e))
        return self.value - other.value > SIGNIFICANT * math.hypot(*known)


def measured(values: Values, key: str) -> Measured:
    """A number with its error."""
    return Measured(values[key], values.get(f"{key}_standard_error", 0.0))


def as_text(values: Values, key: str) -> str:
    """Return a number with its error, or a dash if it was not measured."""
    return str(measured(values, key)) if key in values else "–"


def with_error(key: str, value: float, error: float) -> dict[str, float]:
    """A number and its standard error by their keys."""
    return {key: value, f"{key}_standard_error": error}


# -- numbers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What a group of numbers answers, for readers who are new to them."""

    title: str
    says: str


QUESTIONS: Mapping[str, Question] = {
    "likeness": Question(
        "Do generated images look like real ones?",
        "A network trained on photographs turns every image into a list of features. The generated "
        "and the real images are then two clouds of points, and these numbers are distances "
        "between the clouds. Real images against other real ones show what a perfect model would "
        "reach.",
    ),
    "numbers": Question(
        "Do their numbers agree?",
        "Measured on the numbers of samples themselves (of an image its brightness, colours and "
        "detail), without a network, so that it says what is wrong in plain units and holds for "
        "any kind of data. Samples can agree in all of this and look nothing alike.",
    ),
    "variety": Question(
        "Is each image plausible, and is there enough variety?",
        "Two separate questions: a model can draw one good image over and over, or a great variety "
        "of bad ones.",
    ),
    "answers": Question(
        "Does an image fit what it was drawn from?",
        "For a model that is given something, such as a small image. Many images may fit it; the "
        "real one is one of them. A model that draws from all of them is as far from the real one "
        "as its images are from each other.",
    ),
    "copies": Question(
        "Are generated samples copies of training samples?",
        "Each generated sample was compared with its nearest training sample, and so were real "
        "samples that are no copies. Generated samples that are much nearer are copies; the "
        "reference is what a model that copies nothing reaches. Pixels, and numbers of other "
        "samples, mislead alone (a blurred image is near everything): of images, trust what pixels "
        "and features agree on.",
    ),
    "prediction": Question(
        "How well does the model predict samples?",
        "A model that knows what samples look like can store a real one in few bits. Stored as it "
        "is, an 8-bit image takes 8 bits per dimension (a dimension is one colour value of one "
        "pixel). The number is an upper bound, the sum of three parts. It says little about looks.",
    ),
    "other": Question("Other numbers", ""),
}
"""In the order shown; each `MetricNumber` names the one that it answers."""

DIRECTIONS = {
    "lower": "lower is better",
    "higher": "higher is better",
    "reference": "best at the reference",
    "below": "best not above the reference",
    "": "",
}


@dataclass(frozen=True)
class MetricNumber:
    """How a number of an evaluation is shown.

    Attributes:
        key: its name in the values and in the JSON.
        says: what it is, in a sentence or two.
        direction: which way is better, one of `DIRECTIONS`.
        ideal: what a perfect model reaches: a number, or the key of another value.
        question: the one of `QUESTIONS` that it answers.
        place: its order among the numbers of its question, lower first.
        part: whether it is a part or a variant of the number above it.
        axis: numbers of a question with the same axis share a plot; empty for no plot.
        by_class: whether it is shown for each class, where images are few.
        unquoted: the reason why these values make it misleading, shown instead; else empty.
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

    @property
    def better(self) -> str:
        """The direction in words."""
        return DIRECTIONS[self.direction]

    def reference(self, values: Values) -> Measured | None:
        """What a perfect model reaches."""
        if isinstance(self.ideal, str):
            return measured(values, self.ideal) if self.ideal in values else None
        return None if self.ideal is None else Measured(self.ideal)

    def text(self, values: Values) -> str:
        """The number with its error, or why it is not shown; a dash if not measured."""
        reason = self.unquoted(values) if self.key in values else ""
        return reason or as_text(values, self.key)

    def quoted(self, values: Values) -> bool:
        """Whether it was measured and may be shown."""
        return self.key in values and not self.unquoted(values)


# -- remarks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Words:
    """What is said of samples of a kind.

    Attributes:
        many: what they are called.
        points: what they are made of.
        low, high: of numbers that are too small and too large.
        channels: their names; numbers without them.
        one: what a single one is called.
    """

    many: str = "samples"
    points: str = "points"
    low: str = "low"
    high: str = "high"
    channels: Sequence[str] = ()
    one: str = "sample"

    def channel(self, k: int) -> str:
        """The k-th channel."""
        return self.channels[k] if k < len(self.channels) else f"channel {k}"


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


@dataclass(frozen=True)
class Facts:
    """What remarks are about.

    Attributes:
        values: the numbers of every metric.
        real, generated: images on each side.
        dim: features per image.
        model: whether a model was measured, not a folder of images.
        levels: of each number of a sample; None for floats.
        details: those of the metrics, by name.
        words: what is said of the samples.
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
    def stored(self) -> Measured | None:
        """Bits per dimension of a sample stored as it is; None for floats."""
        return Measured(math.log2(self.levels)) if self.levels else None

    def __getitem__(self, key: str) -> Measured:
        return measured(self.values, key)

    def __contains__(self, key: object) -> bool:
        return key in self.values


LEVELS = ("serious", "possible", "poor", "finding", "fine", "caution", "note")
"""In the order shown: what went wrong, what was found, what misleads, what explains a table."""

WARNINGS = ("serious", "possible", "poor", "caution")
"""Levels that the terminal shows too."""


@dataclass(frozen=True)
class Remark:
    """What numbers mean.

    Attributes:
        kind: what it is about, in words.
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
        """Whether the numbers could mislead without it."""
        return self.level in WARNINGS

    def __str__(self) -> str:
        return f"{self.title}: {self.says}"


# -- baselines ------------------------------------------------------------------------------------

# Images known to be bad, whose KID shows how bad generated ones are.

BASELINES = {"blurred": "blurred real images", "mean": "their mean image", "noise": "noise"}
"""The KID of each is `kid_of_NAME`."""


def standing(values: Values) -> tuple[list[str], list[str], list[str]]:
    """The baselines that are nearer to real images than generated ones are, as near, and farther.

    Baselines not clearly unlike real images (blurred images of smooth things) are left out. If the
    generated images are not clearly unlike real ones, no baseline is nearer or as near.
    """
    found: tuple[list[str], list[str], list[str]] = ([], [], [])
    if "kid" not in values:
        return found
    kid = measured(values, "kid")
    floor = measured(values, "kid_floor") if "kid_floor" in values else Measured(0.0)
    told = "kid_standard_error" in values and kid.above(floor)
    for name in BASELINES:
        if f"kid_of_{name}" in values:
            baseline = measured(values, f"kid_of_{name}")
            place = 0 if told and kid.above(baseline) else 2 if baseline.above(kid) else 1
            if baseline.above(floor) and (told or place == 2):
                found[place].append(name)
    return found


def lost(values: Values) -> bool:
    """Whether generated images are no nearer to real ones than images known to be bad."""
    return any(standing(values)[:2])
