"""The sections of the page, each a function of what was found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from diffuse_cli import pictures
from diffuse_cli.evaluation import Evaluated
from diffuse_cli.evaluation.images import Labelled
from diffuse_cli.evaluation.remarks import PER_CLASS
from diffuse_cli.evaluation.showing import Shown
from diffuse_cli.report import charts
from diffuse_cli.report.charts import Dot
from diffuse_cli.report.elements import Child, Markup, element, join, picture, table
from diffuse_cli.report.verdict import copies, why_no_training
from diffuse_cli.report.wording import (
    GROUPS,
    KNOWN,
    Entry,
    Group,
    Values,
    error_of,
    measured,
    number,
    others,
    reference_of,
)

SAMPLE, SMALL, LARGE = 56, 48, 84
"""About so many pixels of the screen are the sides of an image: among many, in a row, in a pair."""

DATA_BUDGET = 200_000
"""Bytes of pixels, before they are compressed, that one set of images may have."""


def section(title: str, name: str, *children: Child) -> Markup:
    """A part of the page with its heading; `name` is what links call it."""
    return element("section", element("h2", title, id=name), *children, aria_labelledby=name)


def paragraph(*children: Child, class_: str | None = None) -> Markup:
    """A paragraph."""
    return element("p", *children, class_=class_)


# -- numbers --------------------------------------------------------------------------------------


def numbers(found: Evaluated) -> Markup:
    """Every metric in its group, with what it is and a plot where it stands beside a reference."""
    values = found.values
    floor = values.get("floor_images")
    parts: list[Child] = [
        paragraph(
            "± is one standard error: measured again with other images of the same kind, a number "
            "would in two of three cases lie within it, and nearly always within three times it. ",
            f"“Reference” is what a perfect model would reach{_floor_text(floor)}. ",
            "In the plots a bar is one standard error to each side.",
        )
    ]
    parts += [_group(group, values) for group in GROUPS if {*group.entries} & {*values}]
    if rest := others(values):
        rows = [[key.replace("_", " "), measured(values, key)] for key in rest]
        parts += [element("h3", "Other numbers"), table(["number", "measured"], rows)]
    return join(*parts)


def _floor_text(floor: float | None) -> str:
    if floor is None:
        return ""
    n = f"{floor:,.0f}"
    return f"; for the first distances it is that of {n} real images from {n} other real ones"


def _group(group: Group, values: Values) -> Markup:
    there = {key: entry for key, entry in group.entries.items() if key in values}
    rows = [_row(key, entry, values) for key, entry in there.items()]
    return join(
        element("h3", group.title),
        paragraph(group.says),
        table(["number", "measured", "reference"], rows, class_="metrics"),
        _plots(group, there, values),
    )


def _row(key: str, entry: Entry, values: Values) -> list[Child]:
    reference = reference_of(values, entry)
    shown: Child = "–"
    if reference is not None:
        shown = number(*reference)
    label = [entry.label, element("small", f"{entry.says} {entry.better.capitalize()}.")]
    return [label, measured(values, key), shown]


def _plots(group: Group, there: dict[str, Entry], values: Values) -> list[Markup]:
    """Dots of the numbers of one scale; each distance has a plot of its own."""
    place = GROUPS.index(group)
    if place == 0:
        return [
            _dots(f"metric-{key}", {key: entry}, values, "")
            for key, entry in there.items()
            if isinstance(entry.reference, str) and entry.reference in values
        ]
    if place == 3:
        there = {k: e for k, e in there.items() if k in ("bits_per_dim", "bits_per_dim_train")}
        if len(there) < 2:
            return []
    return [_dots(f"metrics-{place}", there, values, "share" if place < 3 else "bits")]


def _dots(name: str, there: dict[str, Entry], values: Values, xlabel: str) -> Markup:
    rows = []
    for key, entry in there.items():
        reference = reference_of(values, entry) or (None, 0.0)
        rows.append(
            Dot(entry.label, values[key], error_of(values, key), reference[0], reference[1])
        )
    said = "; ".join(f"{entry.label} {measured(values, key)}" for key, entry in there.items())
    has = any(row.reference is not None for row in rows)
    plot = charts.dots(name, rows, f"Plot: {said}", xlabel, "reference" if has else "")
    return element("figure", plot)


# -- images ---------------------------------------------------------------------------------------


def samples(shown: Shown, found: Evaluated) -> Markup:
    """The first images of both sides, chosen by nobody."""
    sides = [("Generated", shown.generated), ("Real", shown.real)]
    counts = {"Generated": found.generated, "Real": found.real}
    parts = []
    for title, images in sides:
        kept = images.pixels[: _affordable(images.pixels)]
        what = f"the first {len(kept):,} of {counts[title]:,}, none picked"
        words = [_alt(title, k, images, shown.names) for k in range(len(kept))]
        parts.append(
            element(
                "div",
                element("h3", title, " ", element("small", what)),
                _images(kept, words, SAMPLE),
            )
        )
    return element("div", parts, class_="sides")


def _alt(title: str, k: int, images: Labelled, names: Sequence[str]) -> str:
    label = int(images.labels[k])
    named = f" of class {names[label]}" if 0 <= label < len(names) else ""
    return f"{title.lower()} image {k}{named}"


def _affordable(pixels: pictures.Pixels) -> int:
    """How many of images (N, C, H, W) the page has room for, at least four."""
    return max(4, DATA_BUDGET // min(int(pixels[0].size), SAMPLE**2 * 3))


def _images(pixels: pictures.Pixels, words: Iterable[str], side: int) -> Markup:
    shown = [_picture(p, alt, side) for p, alt in zip(pixels, words, strict=True)]
    return element("div", shown, class_="images")


def _picture(pixels: pictures.Pixels, alt: str, side: int) -> Markup:
    """Pixels at whole multiples of their size, about `side` wide, so that each is a square."""
    return picture(pixels, alt, side, zoom=max(1, round(side / max(pixels.shape[1:]))))


def classes(shown: Shown, found: Evaluated) -> Markup:
    """A row of images for each class on both sides, then its numbers."""
    if not found.classes and not shown.classes:
        return paragraph(_no_classes(found))
    room = max(2, 2 * DATA_BUDGET // (max(1, len(shown.classes)) * _size(shown)))
    body = []
    for one in shown.classes:
        cells = []
        for side, pixels in (("generated", one.generated), ("real", one.real)):
            kept = pixels[:room]
            words = [f"{side} image {k} of class {one.name}" for k in range(len(kept))]
            cells.append(element("td", _images(kept, words, SMALL), data_side=side))
        body.append(element("tr", element("th", one.name, scope="row"), cells))
    head = [element("th", name, scope="col") for name in ("class", "generated", "real")]
    grid = element(
        "table", element("thead", element("tr", head)), element("tbody", body), class_="classes"
    )
    more = f"{shown.more_classes:,} more classes are not shown." if shown.more_classes else None
    return join(
        element("h3", "Images"), grid, more and paragraph(more), element("h3", "Numbers"),
        _class_table(found),
    )  # fmt: skip


def _no_classes(found: Evaluated) -> str:
    if found.model:
        return (
            "The model draws images of one kind, or DATA has no folders with the names of the "
            "model's classes: there is nothing to compare class by class."
        )
    return "The two folders have no class folders of the same names to compare class by class."


def _size(shown: Shown) -> int:
    pixels = shown.classes[0].generated[0] if shown.classes else np.zeros(1)
    return 2 * min(int(pixels.size), SMALL**2 * 3)


def _class_table(found: Evaluated) -> Markup:
    if not found.classes:
        return paragraph("No class has two images or more on both sides, so none was measured.")
    keys = [key for key in PER_CLASS if any(key in v for v in found.classes.values())]
    rows = [
        [name, f"{v['generated']:,}", f"{v['real']:,}", *(measured(v, key) for key in keys)]
        for name, v in found.classes.items()
    ]
    head = ["class", "generated", "real", *(PER_CLASS[key] for key in keys)]
    ways = "; ".join(f"{PER_CLASS[key]}: {KNOWN[key].better}" for key in keys)
    said = "A class has fewer images than the whole, so that its errors are larger. "
    return join(
        paragraph(said, f"{ways[0].upper()}{ways[1:]}."), table(head, rows, class_="counts")
    )


def twins(shown: Shown, found: Evaluated) -> Markup:
    """The generated images that are nearest to training images, each beside that image."""
    if not shown.twins:
        return paragraph("There is nothing to show. ", why_no_training(found))
    figures = []
    for twin in shown.twins:
        pair = twin.pair
        both = [
            _picture(twin.generated, f"generated image {pair.sample}", LARGE),
            _picture(twin.training, "its nearest training image", LARGE),
        ]
        caption = f"image {pair.sample}: {pair.ratio:.2f} in {pair.space}"
        figures.append(
            element(
                "figure",
                element("div", both, class_="images"),
                element("figcaption", caption),
            )
        )
    said = {
        "yes": "By the numbers above, the model memorised training images.",
        "perhaps": "By the numbers above, the model may have memorised training images.",
        "no": "By the numbers above, there is no sign that the model memorised training images.",
    }[copies(found)]
    return join(
        paragraph(element("strong", said)),
        paragraph(
            "These are the generated images (left) that are nearest to any training image (right), "
            "the worst first. The number is their distance: 0 is an exact copy, and 1 is how far "
            "a real image that is no copy usually is from its nearest training image."
        ),
        element("div", figures, class_="twins"),
    )
