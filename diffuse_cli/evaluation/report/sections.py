"""The contents of the sections on numbers and images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from markupsafe import Markup

from diffuse_cli.evaluation.evaluation_run import Evaluated
from diffuse_cli.evaluation.image_sets import Labelled
from diffuse_cli.evaluation.report import charts
from diffuse_cli.evaluation.report.charts import Dot
from diffuse_cli.evaluation.report.templates import Picture, row_of
from diffuse_cli.evaluation.showing import Shown
from diffuse_cli.metrics import QUESTIONS, Number, Values, class_numbers, measured, shown

SAMPLE, SMALL, LARGE = 56, 48, 84
"""Approximate sides of an image on the screen: among many, in a row, in a pair."""

DATA_BUDGET = 200_000
"""Uncompressed bytes of pixels that one set of images may have."""


# -- numbers --------------------------------------------------------------------------------------


def numbers(found: Evaluated) -> dict[str, Any]:
    """Every number under the question that it answers, and a plot for each axis."""
    groups = []
    for question, group in groupby(shown(found.values), lambda n: n.question):
        members = list(group)
        groups.append(
            {
                "question": QUESTIONS[question],
                "rows": [(n, n.text(found.values), n.reference(found.values)) for n in members],
                "plots": list(_plots(question, members, found.values)),
            }
        )
    return {
        "groups": groups,
        "words": found.words,
        "notes": [r for r in found.remarks if r.level == "note"],
    }


def _plots(question: str, there: Sequence[Number], values: Values) -> Iterator[Markup]:
    """Dots of the numbers of one axis, if there are two of them or a reference."""
    for place, axis in enumerate(dict.fromkeys(n.axis for n in there if n.axis)):
        members = [n for n in there if n.axis == axis and n.quoted(values)]
        rows = [Dot(n.label, measured(values, n.key), n.reference(values)) for n in members]
        if len(rows) > 1 or any(row.reference for row in rows):
            said = "; ".join(f"{n.label} {n.text(values)}" for n in members)
            yield charts.dots(f"{question}-{place}", rows, f"Plot: {said}", axis)


# -- images ---------------------------------------------------------------------------------------


def samples(found: Evaluated, images: Shown) -> dict[str, Any]:
    """The first images of both sides, unpicked."""
    sides = []
    for title, side, count in (
        ("Generated", images.generated, found.generated),
        ("Real", images.real, found.real),
    ):
        room = max(4, DATA_BUDGET // min(int(side.samples[0].size), SAMPLE**2 * 3))
        kept = side.samples[:room]
        words = [
            _alt(f"{title.lower()} {found.words.one} {k}", k, side, images.names)
            for k in range(len(kept))
        ]
        sides.append((title, row_of(kept, words, SAMPLE), count))
    return {"sides": sides}


def _alt(what: str, k: int, images: Labelled, names: Sequence[str]) -> str:
    label = int(images.labels[k])
    named = f" of class {names[label]}" if 0 <= label < len(names) else ""
    return f"{what}{named}"


def classes(found: Evaluated, images: Shown) -> dict[str, Any]:
    """For each class, a row of images of both sides, and its numbers."""
    columns = class_numbers(found.classes)
    rows = [
        [name, f"{v['generated']:,}", f"{v['real']:,}"]
        + [n.text(v) if n.quoted(v) else "–" for n in columns]
        for name, v in found.classes.items()
    ]
    return {
        "model": bool(found.model),
        "words": found.words,
        "grid": list(_class_images(images, found.words.one)),
        "more": images.more_classes,
        "columns": columns,
        "rows": rows,
    }


def _class_images(
    images: Shown, what: str
) -> Iterator[tuple[str, list[tuple[str, list[Picture]]]]]:
    if not images.classes:
        return
    size = 2 * min(int(images.classes[0].generated[0].size), SMALL**2 * 3)
    room = max(2, 2 * DATA_BUDGET // (len(images.classes) * size))
    for one in images.classes:
        cells = []
        for side, pixels in (("generated", one.generated), ("real", one.real)):
            kept = pixels[:room]
            words = [f"{side} {what} {k} of class {one.name}" for k in range(len(kept))]
            cells.append((side, row_of(kept, words, SMALL)))
        yield one.name, cells


def answers(images: Shown) -> dict[str, Any]:
    """A row for each of the first real images: what was given of it, and what stands for it."""
    sides = images.answers
    size = len(sides) * min(int(next(iter(sides.values()))[0].size), LARGE**2 * 3)
    room = max(3, DATA_BUDGET // size)
    rows = zip(*(of[:room] for of in sides.values()), strict=True)
    words = [[f"{name}, of image {k}" for name in sides] for k in range(room)]
    return {
        "names": list(sides),
        "rows": [row_of(row, said, LARGE) for row, said in zip(rows, words, strict=False)],
    }


def nearest(found: Evaluated, images: Shown) -> dict[str, Any]:
    """The generated images nearest to training images, each beside that image."""
    pairs, one = [], found.words.one
    for twin in images.twins:
        words = (f"generated {one} {twin.pair.sample}", f"its nearest training {one}")
        pairs.append((row_of((twin.generated, twin.training), words, LARGE), twin.pair))
    said = [r for r in found.remarks if r.kind == "memorisation"]
    return {"pairs": pairs, "remarks": said, "words": found.words}
