"""A set of images: its statistics for training, and its defects."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from diffuse_cli.commands._cli import Report, brief, format_rest, label_lines
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
from diffuse_cli.media import MEDIA, Array, Medium, figures, render_samples, resolve_layout
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


def inspect_data(config: InfoConfig) -> Work[Report]:
    """Read the images once and describe them. See `inspect`."""
    with translate_errors():
        layout = resolve_layout(config.layout, config.alpha)
    with (
        outputs.claim_option(config.out, ".png", config.overwrite) as out,
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
        report = yield from _describe(config, images, out)
        if out is not None:
            page = yield from make_sheet(images)
            files.write_bytes(out, figures.encode_png(page))
        return report


def kept_bytes(folder: str) -> int:
    """Return the bytes to keep, in memory or a temporary file. Others are decoded repeatedly."""
    return max(MAP_OVER, files.free_space(Path(folder)) // 2)


def _describe(config: InfoConfig, images: Dataset, out: Path | None) -> Work[Report]:
    summary, size = images.summary, images.estimated_space.size
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
    duplicates = near.count_copies(images, roots, everything)
    held_out, blanks = int(images.held_out.sum()), int(blank.sum()) if pictured else 0
    columns = yield from _columns(config, images)
    labels = label_maps.measure_fractions(config.path) if images.medium == "image" else {}
    sides = dict(zip(("height", "width"), size, strict=True)) if len(size) == 2 else list(size)
    values = {
        "kind": "data",
        "path": config.path,
        **summary.to_dict(),
        "size": sides,
        "held_out": held_out,
        "pixels": asdict(pixels),
        **({"range": list(ends)} if ends not in (None, (0, top)) else {}),
        **({"pixels_scaled": asdict(pixels.rescale(*ends))} if ends else {}),
        "duplicates": asdict(duplicates),
        "near_duplicates": similar and asdict(similar),
        "blank": blanks,
        "fingerprint": images.fingerprint,
        "contact_sheet": str(out) if out else None,
        **({"columns": columns} if columns else {}),
        **({"labels": labels} if labels else {}),
    }
    medium = MEDIA[summary.medium]
    searched = "too small" if pictured else "no pictures"
    near_lines = [f"not searched: the {medium.many} are {searched}"]
    if similar is not None:
        near_lines = _copies(similar, " ~ ", medium)
        if blanks:
            near_lines.append(f"not searched among {blanks:,} almost blank {medium.many}")
    ignored = f"; {plural(summary.unnamed, 'file')} not named as {medium.many}"
    usable = f"{summary.usable:,} usable of {summary.found:,}"
    fitted = describe_fit(summary.sizes, size, config.fit or "crop", summary.medium)
    held = f"{held_out:,} held out" if held_out else "none held out"
    skipped = (line.removeprefix("skipped ") for line in skip_lines(summary.skipped))
    unused = (line.removeprefix("ignored ") for line in summary.ignored_lines())
    remarks = remark_lines(summary.remarks, summary.format_samples(summary.usable))
    rows = [
        ("data", summary.source),
        (medium.many, usable + (ignored if summary.unnamed else "")),
        *label_lines("skipped", skipped),
        *label_lines("ignored", unused),
        *label_lines("remarks", remarks),
        ("sizes", _sizes(summary.sizes)),
        ("modes", _counts(summary.modes)),
        ("train", f"at {dimensions(size)}{fitted}, {summary.kind}; {held}"),
        *label_lines("classes", _classes(summary)),
        *label_lines("labels", describe_labels(labels, labels.values())),
        *label_lines("columns", (f"{brief(k)}: {text}" for k, text in columns.items())),
        *label_lines("pixels" if top else "numbers", _pixels(pixels, ends, top)),
        *label_lines("duplicates", _copies(duplicates, " = ", medium)),
        *label_lines("near duplicates", near_lines),
        ("fingerprint", images.fingerprint),
        *label_lines("origin", [summary.origin] if summary.origin else []),
        *([("contact sheet", show(out))] if out else []),
    ]
    return values, [Table(rows, head=False)]


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


def _classes(summary: Summary) -> list[str]:
    classes, medium = summary.classes, MEDIA[summary.medium]
    if not classes:
        return [f"none: the {medium.many} are not in class folders"]
    smallest, largest = min(classes.values()), max(classes.values())
    size = f"{largest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
    noun = medium.one if largest == 1 else medium.many
    lines = [f"{plural(len(classes), 'class', 'classes')} of {size} {noun}"]
    if summary.unlabelled:
        lines.append(f"{summary.format_samples(summary.unlabelled)} outside the class folders")
    return [*lines, _counts(classes, MOST_CLASSES)]


def _pixels(pixels: near.Spread, ends: tuple[int, int] | None, top: int | None) -> list[str]:
    """Return the statistics of levels up to `top`, with `ends` at -1 and 1, or of floats."""
    if ends is None:
        values = (" ".join(f"{v:.4g}" for v in stats) for stats in vars(pixels).values())
        return ["mean {}, deviation {}".format(*values)]
    scaled, limits = pixels.rescale(*ends), ""
    if ends != (0, top):
        limits = ", which is {:,} to {:,}: samples use no other levels".format(*ends)
    return [
        f"mean {_numbers(pixels.mean, 2)}, deviation {_numbers(pixels.std, 2)} of {top}",
        f"mean {_numbers(scaled.mean, 4)}, deviation {_numbers(scaled.std, 4)} in [-1, 1]{limits}",
    ]


def _numbers(values: Iterable[float], digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)


def _copies(copies: near.Copies, sign: str, medium: Medium) -> list[str]:
    if not copies.groups:
        return ["none"]
    one, many = medium.one, medium.many
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
