"""A set of images: its statistics for training, and its defects."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffuse_cli.commands._cli import Rows, brief, format_rest, label_lines
from diffuse_cli.commands._cli.model_facts import describe_labels
from diffuse_cli.commands.info import duplicates as near
from diffuse_cli.config.shared_options import InfoConfig
from diffuse_cli.core import Space, dimensions
from diffuse_cli.data import (
    Dataset,
    Summary,
    is_images,
    label_maps,
    read_cells,
    read_images,
    samples,
)
from diffuse_cli.data.metadata_columns import describe_columns
from diffuse_cli.data.summary import describe_fit, format_sizes, remark_lines, skip_lines
from diffuse_cli.media import MEDIA, Array, figures, render_samples, resolve_layout
from diffuse_cli.media.image.planes import to_pixels
from diffuse_cli.system import (
    DataError,
    Notice,
    Table,
    Work,
    files,
    outputs,
    plural,
    show,
    translate_errors,
)

MAP_OVER = 2**30
"""Bytes beyond which pixels are mapped from a temporary file."""


@dataclass(frozen=True)
class DataReport:
    """Facts about a set of images.

    Attributes:
        size: (height, width) after resizing.
        held_out: images that `train` would not train on.
        near_duplicates: among images that differ; None if they are too small to compare.
        blank: almost blank images, which are not compared.
        ends: the levels that are -1 and 1 to the network; None for floats.
        top: the highest level that a value can have; None for floats.
        out: the contact sheet, if asked for.
        columns: metadata columns, each in words.
        labels: the fractions of labels in some of the images, if they are label maps.
    """

    config: InfoConfig
    summary: Summary
    size: tuple[int, ...]
    held_out: int
    pixels: near.Spread
    duplicates: near.Copies
    near_duplicates: near.Copies | None
    blank: int
    fingerprint: str
    ends: tuple[int, int] | None
    top: int | None
    out: Path | None
    columns: Mapping[str, str]
    labels: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        size = dict(zip(("height", "width"), self.size, strict=True)) if len(self.size) == 2 else {}
        return {
            "kind": "data",
            "path": self.config.path,
            **self.summary.to_dict(),
            "size": size or list(self.size),
            "held_out": self.held_out,
            "pixels": asdict(self.pixels),
            **({"range": list(self.ends)} if self.ends not in (None, (0, self.top)) else {}),
            **({"pixels_scaled": asdict(self.pixels.rescale(*self.ends))} if self.ends else {}),
            "duplicates": asdict(self.duplicates),
            "near_duplicates": self.near_duplicates and asdict(self.near_duplicates),
            "blank": self.blank,
            "fingerprint": self.fingerprint,
            "contact_sheet": str(self.out) if self.out else None,
            **({"columns": dict(self.columns)} if self.columns else {}),
            **({"labels": dict(self.labels)} if self.labels else {}),
        }

    def list_parts(self) -> list[str | Table]:
        """Return a table of the facts."""
        return [Table(_rows(self), head=False)]


def inspect_data(config: InfoConfig) -> Work[DataReport]:
    """Read the images once and describe them. See `inspect`."""
    with translate_errors():
        layout = resolve_layout(config.layout, config.alpha)
    with (
        outputs.claim_option(config, "out", ".png") as out,
        tempfile.TemporaryDirectory(prefix="diffuse-info-") as folder,
    ):
        images = yield from read_images(
            config.path,
            size=config.size,
            background=config.background or "white",
            fit=config.fit or "crop",
            layout=layout,
            bits=config.bits,
            rate=config.rate,
            strict=config.strict,
            workers=config.workers,
            cache=Path(folder),
            map_over=MAP_OVER,
            single=not is_images(Path(config.path)),
            keep=kept_bytes(folder),
        )
        report = yield from _report(config, images, out)
        if out is not None:
            page = yield from make_sheet(images)
            files.write_bytes(out, figures.encode_png(page))
        return report


def kept_bytes(folder: str) -> int:
    """Return the bytes to keep, in memory or a temporary file. Others are decoded repeatedly."""
    return max(MAP_OVER, files.free_space(Path(folder)) // 2)


def _report(config: InfoConfig, images: Dataset, out: Path | None) -> Work[DataReport]:
    top = {"uint8": 255, "uint16": 65_535}.get(images.stored.dtype.name)
    pictured = top is not None and images.stored.ndim == 4
    ends = samples.limit_levels(images.estimated_space, images.stored).level_range if top else None
    everything = np.arange(len(images))
    if pictured and ends is not None:
        pixels, hashed, blank = yield from near.measure_images(images, ends)
    else:
        statistics = samples.moments(
            images.estimated_space, images.stored, everything, images.names
        )
        pixels = near.Spread(*(tuple(values.tolist()) for values in statistics))
    roots, similar = images.first_copies, None
    if pictured and near.can_compare(images.stored):
        different = np.flatnonzero((roots == everything) & ~blank)
        alike = yield from near.group_similar(images.stored, hashed, different)
        similar = near.count_copies(images, alike, different)
    return DataReport(
        config=config,
        summary=images.summary,
        size=images.estimated_space.size,
        held_out=int(images.held_out.sum()),
        pixels=pixels,
        duplicates=near.count_copies(images, roots, everything),
        near_duplicates=similar,
        blank=int(blank.sum()) if pictured else 0,
        fingerprint=images.fingerprint,
        ends=ends,
        top=top,
        out=out,
        columns=(yield from _columns(config, images)),
        labels=label_maps.measure_fractions(config.path) if images.medium == "image" else {},
    )


def _columns(config: InfoConfig, images: Dataset) -> Work[dict[str, str]]:
    """Return the metadata columns, in words. A broken table is a warning."""
    if not images.summary.tables:
        return {}
    try:
        cells = read_cells(config.path, images.names)
    except DataError as error:
        yield Notice(str(error), warning=True)
        return {}
    for line in cells.lines:
        yield Notice(line, warning=True)
    return describe_columns(cells, np.flatnonzero(~images.held_out))


# -- rows -----------------------------------------------------------------------------------------

MOST = 5
"""The most sizes, and names in a group of copies, to list."""

MOST_CLASSES = 20


def _rows(report: DataReport) -> Rows:
    summary, many = report.summary, MEDIA[report.summary.medium].many
    ignored = f"; {plural(summary.unnamed, 'file')} not named as {many}" if summary.unnamed else ""
    fitted = describe_fit(summary.sizes, report.size, report.config.fit or "crop", summary.medium)
    skipped = (line.removeprefix("skipped ") for line in skip_lines(summary.skipped))
    unused = (line.removeprefix("ignored ") for line in summary.ignored_lines())
    usable = summary.format_samples(summary.usable)
    held_out = f"{report.held_out:,} held out" if report.held_out else "none held out"
    return [
        ("data", summary.source),
        (many, f"{summary.usable:,} usable of {summary.found:,}{ignored}"),
        *label_lines("skipped", skipped),
        *label_lines("ignored", unused),
        *label_lines("remarks", remark_lines(summary.remarks, usable)),
        ("sizes", _sizes(summary.sizes)),
        ("modes", _counts(summary.modes)),
        ("train", f"at {dimensions(report.size)}{fitted}, {summary.kind}; {held_out}"),
        *label_lines("classes", _classes(report)),
        *label_lines("labels", describe_labels(report.labels, report.labels.values())),
        *label_lines("columns", (f"{brief(k)}: {text}" for k, text in report.columns.items())),
        *label_lines("pixels" if report.top else "numbers", _pixels(report)),
        *label_lines("duplicates", _copies(report, report.duplicates, " = ")),
        *label_lines("near duplicates", _format_near_duplicates(report)),
        ("fingerprint", report.fingerprint),
        *label_lines("origin", [summary.origin] if summary.origin else []),
        *([("contact sheet", show(report.out))] if report.out else []),
    ]


def _sizes(sizes: Mapping[tuple[int, ...], int]) -> str:
    if len(sizes) == 1:
        return format_sizes(sizes)
    ranked = sorted(sizes.items(), key=lambda item: -item[1])
    listed = [f"{count:,} of {dimensions(size[::-1])}" for size, count in ranked[:MOST]]
    return f"{format_sizes(sizes)}; {', '.join(listed)}{format_rest(len(ranked) - MOST)}"


def _counts(counts: Mapping[str, int], limit: int = MOST) -> str:
    """`L 12, RGB 3`: the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{show(name)} {count:,}" for name, count in ranked[:limit])
    return listed + format_rest(len(ranked) - limit)


def _classes(report: DataReport) -> list[str]:
    classes, medium = report.summary.classes, MEDIA[report.summary.medium]
    if not classes:
        return [f"none: the {medium.many} are not in class folders"]
    smallest, largest = min(classes.values()), max(classes.values())
    size = f"{largest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
    noun = medium.one if largest == 1 else medium.many
    lines = [f"{plural(len(classes), 'class', 'classes')} of {size} {noun}"]
    if report.summary.unlabelled:
        unlabelled = report.summary.format_samples(report.summary.unlabelled)
        lines.append(f"{unlabelled} outside the class folders")
    return [*lines, _counts(classes, MOST_CLASSES)]


def _pixels(report: DataReport) -> list[str]:
    if report.top is None:
        values = (" ".join(f"{v:.4g}" for v in stats) for stats in vars(report.pixels).values())
        return ["mean {}, deviation {}".format(*values)]
    assert report.ends is not None
    scaled, part = report.pixels.rescale(*report.ends), report.ends != (0, report.top)
    limits = ", which is {:,} to {:,}: samples use no other levels".format(*report.ends)
    return [
        f"mean {_numbers(report.pixels.mean, 2)}, deviation {_numbers(report.pixels.std, 2)} "
        f"of {report.top}",
        f"mean {_numbers(scaled.mean, 4)}, deviation {_numbers(scaled.std, 4)} in [-1, 1]"
        f"{limits if part else ''}",
    ]


def _numbers(values: Iterable[float], digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)


def _format_near_duplicates(report: DataReport) -> list[str]:
    many = MEDIA[report.summary.medium].many
    if report.near_duplicates is None:
        pictured = report.top is not None and len(report.size) == 2
        return [f"not searched: the {many} are {'too small' if pictured else 'no pictures'}"]
    lines = _copies(report, report.near_duplicates, " ~ ")
    if report.blank:
        lines.append(f"not searched among {report.blank:,} almost blank {many}")
    return lines


def _copies(report: DataReport, copies: near.Copies, sign: str) -> list[str]:
    if not copies.groups:
        return ["none"]
    one, many = MEDIA[report.summary.medium].one, MEDIA[report.summary.medium].many
    surplus = plural(copies.surplus, f"surplus {one}", f"surplus {many}")
    lines = [f"{plural(copies.groups, 'group')}, {surplus}"]
    if copies.across_classes:
        lines.append(f"{plural(copies.across_classes, 'group')} in more than one class")
    if copies.across_split:
        held_out = plural(copies.across_split, f"held-out {one}", f"held-out {many}")
        lines.append(
            f"{held_out} with a copy among the training {many}, which flatters held-out numbers"
        )
    for group in copies.first:
        more = f", ... ({group.count:,})" if group.count > len(group.names) else ""
        lines.append(sign.join(map(show, group.names)) + more)
    if copies.groups > len(copies.first):
        lines.append("...")
    return lines


# -- sheet ----------------------------------------------------------------------------------------

# A contact sheet: images spread evenly over a set.

SHOWN = 64
"""Most images on a sheet without classes."""

COLUMNS, ROWS = 10, 50
"""Most images of a class, and classes, on a sheet."""

SIDE = 128
"""Larger images are scaled down to this."""


def make_sheet(images: Dataset) -> Work[Image.Image]:
    """Return the sheet. With classes, a named row for each and for images outside them.

    Yields a `Notice` if there are more classes than rows.
    """
    space = samples.limit_levels(images.estimated_space, images.stored)
    if not images.class_names:
        indices = samples.select_evenly(np.arange(len(images)), SHOWN)
        return figures.arrange_grid(_shrink_images(images, space, indices))
    labels = list(range(len(images.class_names)))
    if (images.labels == -1).any():
        labels.append(-1)
    if len(labels) > ROWS:
        yield Notice(f"the contact sheet shows {ROWS} of {len(labels):,} classes")
    chosen = [labels[i] for i in samples.select_evenly(np.arange(len(labels)), ROWS)]
    rows = [
        samples.select_evenly(np.flatnonzero(images.labels == label), COLUMNS) for label in chosen
    ]
    sheet = figures.arrange_grid(_fill_rows(images, space, rows), columns=max(map(len, rows)))
    names = [*map(brief, images.class_names), "no class"]
    return figures.name_rows(sheet, [names[label] for label in chosen])


def _fill_rows(images: Dataset, space: Space, rows: Sequence[Array]) -> Array:
    """Return the images of each row, with short rows filled up with white."""
    small = [_shrink_images(images, space, row) for row in rows]
    page = np.full((len(rows), max(map(len, rows)), *small[0].shape[1:]), 255, np.uint8)
    for i, row in enumerate(small):
        page[i, : len(row)] = row
    return page.reshape(-1, *page.shape[2:])


def _shrink_images(images: Dataset, space: Space, chosen: Array) -> Array:
    """Images at the size on the sheet."""
    pictures = (render_samples(space, images.stored[[k]])[0] for k in chosen)
    shrunk = (figures.shrink_image(figures.to_image(pixels), SIDE) for pixels in pictures)
    return np.stack([*map(to_pixels, shrunk)])
