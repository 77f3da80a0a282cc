"""What a metric says of its numbers, as data, of which tables, JSON, report and docs are made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

Values = Mapping[str, float]

SIGNIFICANT = 3
"""Standard errors from which a difference is called one."""


class Measured(NamedTuple):
    """A value with its standard error, which is 0 or NaN where there is none.

    As text it is rounded to two digits of the error, or as the format says: `f"{measured:.4f}"`.
    """

    value: float
    error: float = 0.0

    def __format__(self, spec: str) -> str:
        value, error = self
        if not math.isfinite(value):
            return "not known"
        known = error > 0
        if spec:
            return f"{value:{spec}}" + (f" ± {error:{spec}}" if known else "")
        if not known:
            return _signed(f"{round(value, 4) + 0:,.4f}".rstrip("0").rstrip("."))
        digits = max(0, min(6, 1 - math.floor(math.log10(error))))
        return _signed(f"{value:,.{digits}f} ± {error:,.{digits}f}")

    def __str__(self) -> str:
        return format(self)

    def above(self, other: Measured) -> bool:
        """Whether it is significantly larger than another."""
        known = (e for e in (self.error, other.error) if math.isfinite(e))
        return self.value - other.value > SIGNIFICANT * math.hypot(*known)


def _signed(words: str) -> str:
    return words.replace("-", "−")


def measured(values: Values, key: str) -> Measured:
    """A number with its error."""
    return Measured(values[key], values.get(f"{key}_standard_error", 0.0))


# -- numbers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """What a group of numbers answers together, for people who have not met them before."""

    title: str
    says: str


QUESTIONS: Mapping[str, Question] = {
    "likeness": Question(
        "Do generated images look like real ones?",
        "A network that was trained on photographs turns every image into a list of features; the "
        "generated and the real images are two clouds of points, and these numbers are distances "
        "between the clouds. Real images against other real ones show what a perfect model would "
        "reach.",
    ),
    "variety": Question(
        "Is each image plausible, and is there enough variety?",
        "Two separate questions: a model can draw one good image over and over, or a great variety "
        "of bad ones.",
    ),
    "copies": Question(
        "Are generated images copies of training images?",
        "Each generated image was compared with its nearest training image, and so were real "
        "images that are no copies. Where generated images are much nearer, they are copies; the "
        "reference is what a model that copies nothing has. Pixels alone mislead (a blurred image "
        "is near everything): believe what pixels and features both say.",
    ),
    "prediction": Question(
        "How well does the model predict images?",
        "A model that knows what images look like can store a real one in few bits. Stored as it "
        "is, an image takes 8 bits per dimension (a dimension is one colour value of one pixel). "
        "The number is an upper bound, the sum of three parts. It says little about looks.",
    ),
    "other": Question("Other numbers", ""),
}
"""In the order in which they are shown; a metric names the one that its number answers."""

DIRECTIONS = {
    "lower": "lower is better",
    "higher": "higher is better",
    "reference": "best at the reference",
    "below": "best not above the reference",
    "": "",
}


@dataclass(frozen=True)
class Number:
    """How a number of an evaluation is shown.

    Attributes:
        key: its name in the values and in the JSON.
        says: what it is, in a sentence or two.
        direction: which way is better, one of `DIRECTIONS`.
        ideal: what a perfect model reaches: a number, or the key of another value.
        question: the one of `QUESTIONS` that it answers.
        place: lower ones are shown earlier among the numbers of their question.
        part: whether it is a part or a variant of the number above it.
        axis: numbers of a question with the same axis share a plot; no plot where it is empty.
        by_class: whether it is shown of each class, where images are few.
        unquoted: why these values make it misleading, or nothing; it is then not shown.
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

    def text(self, values: Values, spec: str = "") -> str:
        """The number with its error, or why it is not shown; a dash where it was not measured."""
        if self.key not in values:
            return "–"
        return self.unquoted(values) or format(measured(values, self.key), spec)

    def quoted(self, values: Values) -> bool:
        """Whether it was measured and may be shown."""
        return self.key in values and not self.unquoted(values)


def ordered(numbers: Iterable[Number]) -> list[Number]:
    """Numbers in the order in which they are shown."""
    questions = list(QUESTIONS)
    return sorted(numbers, key=lambda number: (questions.index(number.question), number.place))


# -- remarks --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What remarks are about.

    Attributes:
        values: the numbers of every metric.
        real, generated: images on each side.
        dim: features of an image.
        model: whether a model was measured, and not a folder of images.
    """

    values: Values
    real: int
    generated: int
    dim: int
    model: bool

    def __getitem__(self, key: str) -> Measured:
        return measured(self.values, key)

    def __contains__(self, key: object) -> bool:
        return key in self.values


LEVELS = ("serious", "possible", "poor", "finding", "fine", "caution", "note")
"""In this order: what went wrong, what was found, what misleads, what explains a table."""

WARNINGS = ("serious", "possible", "poor", "caution")
"""What is said in the terminal, too."""


@dataclass(frozen=True)
class Remark:
    """What numbers mean.

    Attributes:
        kind: what it is about, as people call it.
        level: one of `LEVELS`.
        words: a sentence with `{name}` where `numbers` go.
    """

    kind: str
    level: str
    words: str
    numbers: Mapping[str, float | str | Measured] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What the sentence is about."""
        return f"possible {self.kind}" if self.level == "possible" else self.kind

    @property
    def says(self) -> str:
        """The sentence, without a full stop."""
        return self.words.format(**self.numbers)

    @property
    def warns(self) -> bool:
        """Whether one could be misled by the numbers without it."""
        return self.level in WARNINGS

    def __str__(self) -> str:
        return f"{self.title}: {self.says}"
