"""Describe a folder or zip of images, a model file, or a run.

For images: how many are usable and why the others are not, sizes, classes, duplicates, pixel
statistics. For a model file: its network, process, classes and training. For a run directory, which
may be under way: how far it is, its losses, and its newest model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from diffuse_cli.commands._cli.console import Console, Rows, brief, clock, labelled, more
from diffuse_cli.config.options import to_toml
from diffuse_cli.config.shared_options import InfoConfig
from diffuse_cli.core.settings import dimensions
from diffuse_cli.metrics import Measured
from diffuse_cli.system.events import align_columns
from diffuse_cli.system.files import show

if TYPE_CHECKING:
    from diffuse_cli.commands.info.duplicates import Copies
    from diffuse_cli.commands.info.inspection import RunReport
    from diffuse_cli.commands.info.reports import DataReport

CONFIG = InfoConfig

MOST = 5
"""The most sizes, and names in a group of copies, to list."""

MOST_CLASSES = 20


def run(config: InfoConfig, console: Console) -> None:
    """Inspect, and print what was found."""
    from diffuse_cli.commands.info.inspection import ModelReport, RunReport, inspect
    from diffuse_cli.commands.info.reports import DataReport

    found = console.follow(inspect(config))
    model = found.model if isinstance(found, RunReport) else found
    if isinstance(model, ModelReport) and model.config:
        text = str(model.out) if model.out else to_toml(model.config)
        console.show(found.to_dict(), map(show, text.splitlines()))
        return
    rows = _run_rows(found) if isinstance(found, RunReport) else []
    if isinstance(model, ModelReport):
        from diffuse_cli.commands._cli.model_facts import model_rows

        rows += model_rows(model.found)
    elif isinstance(found, DataReport):
        rows = _data_rows(found, config.fit or "crop")
    console.show(found.to_dict(), align_columns(rows))


# -- images ---------------------------------------------------------------------------------------


def _data_rows(found: DataReport, fit: str) -> Rows:
    from diffuse_cli.data.summary import fitting, plural, remark_lines, skip_lines

    summary = found.summary
    many = summary.counted(2).partition(" ")[2]
    ignored = f"; {plural(summary.unnamed, 'file')} not named as {many}" if summary.unnamed else ""
    fitted = fitting(summary.sizes, found.size, fit, summary.medium)
    colour = summary.kind
    skipped = (line.removeprefix("skipped ") for line in skip_lines(summary.skipped))
    kept = f"{found.held_out:,} held out" if found.held_out else "none held out"
    return [
        ("data", summary.source),
        (many, f"{summary.usable:,} usable of {summary.found:,}{ignored}"),
        *labelled("skipped", skipped),
        *labelled("ignored", (line.removeprefix("ignored ") for line in summary.ignored())),
        *labelled("remarks", remark_lines(summary.remarks, summary.counted(summary.usable))),
        ("sizes", _sizes(summary.sizes)),
        ("modes", _counts(summary.modes)),
        ("train", f"at {dimensions(found.size)}{fitted}, {colour}; {kept}"),
        *labelled("classes", _classes(found)),
        *labelled("columns", (f"{brief(name)}: {text}" for name, text in found.columns.items())),
        *labelled("pixels" if found.top else "numbers", _pixels(found)),
        *labelled("duplicates", _copies(found, found.duplicates, " = ")),
        *labelled("near duplicates", _near(found)),
        ("fingerprint", found.fingerprint),
        *labelled("origin", [summary.origin] if summary.origin else []),
        *([("contact sheet", show(found.out))] if found.out else []),
    ]


def _sizes(sizes: Mapping[tuple[int, ...], int]) -> str:
    from diffuse_cli.data.summary import span

    if len(sizes) == 1:
        return span(sizes)
    ranked = sorted(sizes.items(), key=lambda item: -item[1])
    listed = [f"{count:,} of {dimensions(size[::-1])}" for size, count in ranked[:MOST]]
    return f"{span(sizes)}; {', '.join(listed)}{more(len(ranked) - MOST)}"


def _counts(counts: Mapping[str, int], most: int = MOST) -> str:
    """`L 12, RGB 3`: the most frequent first."""
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    listed = ", ".join(f"{show(name)} {count:,}" for name, count in ranked[:most])
    return listed + more(len(ranked) - most)


def _classes(found: DataReport) -> list[str]:
    from diffuse_cli.data.summary import plural

    classes = found.summary.classes
    if not classes:
        return [f"none: the {found.summary.counted(2).partition(' ')[2]} are not in class folders"]
    least, most = min(classes.values()), max(classes.values())
    each = f"{most:,}" if least == most else f"{least:,} to {most:,}"
    noun = found.summary.counted(most).partition(" ")[2]
    lines = [f"{plural(len(classes), 'class', 'classes')} of {each} {noun}"]
    if found.summary.unlabelled:
        lines.append(f"{found.summary.counted(found.summary.unlabelled)} outside the class folders")
    return [*lines, _counts(classes, MOST_CLASSES)]


def _pixels(found: DataReport) -> list[str]:
    if found.top is None:
        values = (" ".join(f"{v:.4g}" for v in own) for own in vars(found.pixels).values())
        return ["mean {}, deviation {}".format(*values)]
    assert found.ends is not None
    scaled, part = found.pixels.scaled(*found.ends), found.ends != (0, found.top)
    limits = ", which is {:,} to {:,}: samples use no other levels".format(*found.ends)
    return [
        f"mean {_numbers(found.pixels.mean, 2)}, deviation {_numbers(found.pixels.std, 2)} "
        f"of {found.top}",
        f"mean {_numbers(scaled.mean, 4)}, deviation {_numbers(scaled.std, 4)} in [-1, 1]"
        f"{limits if part else ''}",
    ]


def _numbers(values: Iterable[float], digits: int) -> str:
    return " ".join(f"{value:.{digits}f}" for value in values)


def _near(found: DataReport) -> list[str]:
    many = found.summary.counted(2).partition(" ")[2]
    if found.near_duplicates is None:
        pictured = found.top is not None and len(found.size) == 2
        return [f"not searched: the {many} are {'too small' if pictured else 'no pictures'}"]
    lines = _copies(found, found.near_duplicates, " ~ ")
    if found.blank:
        lines.append(f"not searched among {found.blank:,} almost blank {many}")
    return lines


def _copies(found: DataReport, copies: Copies, sign: str) -> list[str]:
    from diffuse_cli.data.summary import plural

    if not copies.groups:
        return ["none"]
    one, many = (found.summary.counted(count).partition(" ")[2] for count in (1, 2))
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


# -- a run ----------------------------------------------------------------------------------------


def _run_rows(found: RunReport) -> Rows:
    if found.process is not None:
        state = f"under way in process {found.process}"
        if found.seconds_left is not None:
            state += f", {clock(found.seconds_left)} left"
    else:
        state = "finished" if found.step >= found.steps else "stopped"
    held, speed = found.held_out_loss, found.images_per_second
    losses = [str(Measured(found.loss))] if found.loss is not None else []
    losses += [f"held-out {Measured(held)}"] if held is not None else []
    return [
        ("run", show(found.path)),
        ("progress", f"step {found.step:,} of {found.steps:,}, {state}"),
        ("loss", ", ".join(losses) or "none yet"),
        ("speed", f"{speed:,.0f} {_many(found)}/s" if speed is not None else "none yet"),
        *([("go on with", show(found.resume))] if found.resume else []),
    ]


def _many(found: RunReport) -> str:
    """Return the word for samples of a run, as far as it is known."""
    from diffuse_cli.media import MEDIA

    return MEDIA[found.model.found.model.blueprint.space.medium].many if found.model else "samples"
