"""Summary of a source: counts, classes, and skipped files with the reasons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffuse_cli.core import dimensions
from diffuse_cli.media import MEDIA, Size, advice, file_errors
from diffuse_cli.system import DataError, plural, show

NAMED = 5
"""Number of files that are named for each reason."""

Skips = Mapping[str, tuple[int, tuple[str, ...]]]


@dataclass(frozen=True)
class Summary:
    """Result of `read_images`.

    Attributes:
        source: the escaped path of the folder or zip file.
        found: the number of files named as the medium's, and folders that could not be listed.
        usable: the number of samples read from them.
        channels: the channels of each stored sample; 1 is grey, 3 is color.
        sizes: the number of samples of each original (width, height).
        modes: the number of samples of each original Pillow mode.
        greyed: the number of color images that were read as grey.
        classes: the number of samples of each class, in the order of the labels.
        unlabelled: the number of samples outside class folders.
        skipped: the count and the first names for each reason.
        others: the number of other files.
        unread: the number of other files that `advice` covers, by extension.
        remarks: as `skipped`, for usable samples.
        tables: the names of metadata tables.
        medium: a name in `MEDIA`.
        layout: the layout of the samples. Empty if the medium has only one.
        origin: a name to pass for the same samples on any machine. Empty for local samples.
        quantities: as in `Space`.
    """

    source: str
    found: int
    usable: int
    channels: int
    sizes: Mapping[Size, int] = field(default_factory=dict)
    modes: Mapping[str, int] = field(default_factory=dict)
    greyed: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    unlabelled: int = 0
    skipped: Skips = field(default_factory=dict)
    others: int = 0
    unread: Mapping[str, int] = field(default_factory=dict)
    remarks: Skips = field(default_factory=dict)
    tables: tuple[str, ...] = ()
    medium: str = "image"
    layout: str = ""
    origin: str = ""
    quantities: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the summary for people, one sentence per line."""
        parts = [
            f"{self.format_samples(self.usable)} in {self.source}",
            self.kind,
            format_sizes(self.sizes),
        ]
        if self.classes:
            parts.append(plural(len(self.classes), "class", "classes"))
        lines = [", ".join(parts)]
        if self.greyed:
            kinds, max_channels = MEDIA[self.medium].kinds, MEDIA[self.medium].most_channels
            whole = f"{self.format_samples(self.greyed)} in {kinds[max_channels]}"
            lines.append(f"{whole}, read as {kinds[1]}")
        if self.classes and self.unlabelled:
            lines.append(f"{self.format_samples(self.unlabelled)} outside the class folders")
        lines += [*skip_lines(self.skipped), *self.ignored_lines()]
        if self.unnamed:
            many = MEDIA[self.medium].many
            lines.append(f"ignored {plural(self.unnamed, 'file')} not named as {many}")
        return lines

    def check_finite(self) -> None:
        """Check that no sample was left out for its values, which would flatter the others.

        Raises:
            DataError: samples have NaN or infinite values.
        """
        count, names = self.skipped.get(file_errors.MISSING, (0, ()))
        if count:
            fraction = f"{count:,} of {self.format_samples(self.found)}"
            text = f"NaN or infinite values in {fraction} in {self.source}: {show(names[0])}"
            raise DataError(text, "Generate them again, or remove them to measure the others")

    def format_samples(self, count: int) -> str:
        """Return `1 image` or `2 images`, in the medium's words."""
        return plural(count, MEDIA[self.medium].one, MEDIA[self.medium].many)

    def describe_resizing(self, result: Size, fit: str) -> str:
        """Describe how samples were resized without a size. Empty if none were."""
        kind = MEDIA[self.medium]
        if list(self.sizes) == [result[::-1]]:
            return ""
        subject = f"all {kind.many} are" if len(self.sizes) == 1 else f"{kind.many} of"
        cut = describe_fit(self.sizes, result, fit, self.medium)
        return f"{subject} {format_sizes(self.sizes)}: {kind.fitted} to {dimensions(result)}{cut}"

    def suggest_size(self, result: Size) -> str:
        """Suggest a --size for samples that were resized."""
        kind, usual_size = MEDIA[self.medium], max(self.sizes, key=self.sizes.__getitem__)
        usual, side = min(usual_size), kind.sides[len(result)]
        if kind.fitted != "resized" and len(self.sizes) == 1:
            return f"pass --size {'x'.join(map(str, usual_size[::-1]))} to keep them whole"
        if usual > side:
            return f"pass --size {2 * side} for more detail"
        if usual < side:
            return f"pass --size {usual} to keep the usual size"
        return "pass --size for another size"

    @property
    def kind(self) -> str:
        """The kind of samples: `grey`, `color`, `4 channels of float32`."""
        medium = MEDIA[self.medium]
        if self.channels in medium.kinds and self.layout not in medium.alike:
            return str(medium.kinds[self.channels])
        numbers = " and ".join(sorted(self.modes))
        return f"{plural(self.channels, 'channel')} of {numbers}"

    @property
    def unnamed(self) -> int:
        """The number of other files that `advice` does not cover."""
        return self.others - sum(self.unread.values())

    def ignored_lines(self) -> Iterable[str]:
        """Yield a sentence for each kind of other files that `advice` covers."""
        hints = advice()
        for extension, count in sorted(self.unread.items(), key=lambda item: -item[1]):
            yield f"ignored {count:,} {extension} ({hints.get(extension, 'not read')})"

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON values, with sizes such as `640x480` (width x height)."""
        values = {
            **vars(self),
            "sizes": {"x".join(map(str, size)): count for size, count in self.sizes.items()},
            "skipped": _reasons_to_dict(self.skipped),
            "remarks": _reasons_to_dict(self.remarks),
            "tables": list(self.tables),
            "quantities": list(self.quantities),
        }
        rare = {"greyed", "unread", "remarks", "tables", "medium", "layout", "origin", "quantities"}
        usual: tuple[Any, ...] = (0, "", "image", [], {})
        return {k: value for k, value in values.items() if k not in rare or value not in usual}


def from_dict(values: Mapping[str, Any]) -> Summary:
    """Return the summary that `to_dict` wrote."""
    attrs = dict(values)
    sizes = {tuple(map(int, text.split("x"))): count for text, count in attrs.pop("sizes").items()}
    skipped, remarks = (
        {reason: (one["count"], tuple(one["first"])) for reason, one in attrs.pop(name, {}).items()}
        for name in ("skipped", "remarks")
    )
    tables = tuple(attrs.pop("tables", ()))
    return Summary(sizes=sizes, skipped=skipped, remarks=remarks, tables=tables, **attrs)


def _reasons_to_dict(reasons: Skips) -> dict[str, Any]:
    return {why: {"count": count, "first": list(names)} for why, (count, names) in reasons.items()}


def skip_lines(skipped: Skips) -> Iterable[str]:
    """Yield a sentence for each reason, the most frequent first."""
    for count, text in _rank_reasons(skipped):
        yield f"skipped {plural(count, 'file')}, {text}"


def remark_lines(remarks: Skips, usable: str) -> Iterable[str]:
    """Yield a sentence for each remark, the most frequent first; `usable` is as in `10 images`."""
    for count, text in _rank_reasons(remarks):
        yield f"{count:,} of {usable}, {text}"


def _rank_reasons(reasons: Skips) -> Iterable[tuple[int, str]]:
    """Yield the count of each reason, the most frequent first, and the reason with names."""
    for reason, (count, names) in sorted(reasons.items(), key=lambda item: -item[1][0]):
        yield count, f"{reason}: {format_names(names, count)}"


def format_names(names: Sequence[str], count: int, format_name: Callable[[str], str] = show) -> str:
    """Return the first `NAMED` of `count` names, and dots if there are more."""
    more = ", ..." if count > min(len(names), NAMED) else ""
    return ", ".join(map(format_name, names[:NAMED])) + more


def skip_counts(skipped: Skips) -> str:
    """Return the reasons with their counts, such as `3 not an image, 1 empty file`."""
    ranked = sorted(skipped.items(), key=lambda item: -item[1][0])
    return ", ".join(f"{count:,} {reason}" for reason, (count, _) in ranked)


def format_sizes(sizes: Mapping[Size, int]) -> str:
    """Return `28x28`, or `12 sizes from 28x28 to 1500 high x 2000 wide` by area.

    Args:
        sizes: the number of samples of each (width, height).
    """
    ordered = sorted(sizes, key=lambda s: (math.prod(s), s))
    smallest, largest = (dimensions(size[::-1]) for size in (ordered[0], ordered[-1]))
    return smallest if len(ordered) == 1 else f"{len(ordered):,} sizes from {smallest} to {largest}"


def describe_fit(sizes: Iterable[Size], size: Size, fit: str, medium: str) -> str:
    """Describe the change of samples of `sizes` (width, height) at `size` (height, width).

    An example is `, cropped at the center by up to 44 %`. Empty if no sample changes its shape.
    """
    change = MEDIA[medium].fits[fit]
    target_size = size[::-1]
    lost, added, bent = [0.0], [0.0], [0.0]
    for original_size in sizes:
        kept_part, filled_part = change(original_size, target_size)
        scales = [b / a for a, b in zip(kept_part, filled_part, strict=True)]
        lost.append(1 - math.prod(kept_part) / math.prod(original_size))
        added.append(1 - math.prod(filled_part) / math.prod(target_size))
        bent.append(max(scales) / min(scales) - 1)
    where = MEDIA[medium].cropped
    changes = {
        f"cropped {where} by up to {{}} %": lost,
        "up to {} % of it padding": added,
        "stretched by up to {} %": bent,
    }
    # Fractions such as 1e-16 are rounding.
    percents = {text: math.ceil(round(100 * max(parts), 6)) for text, parts in changes.items()}
    return "".join(", " + text.format(percent) for text, percent in percents.items() if percent)
