"""Rows of pictures over timesteps: the page and the animation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diffuse_cli.media import figures
from diffuse_cli.media.figures import FAINT, Pixels, Sheet, matplotlib_style
from diffuse_cli.system import Progress, Work

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text
    from PIL import Image


LEFT, RIGHT, TOP, BOTTOM = 1.1, 0.35, 0.86, 0.56  # inches, as everything below
CONTENT, GAP, PITCH = 9.2, 0.08, 0.66  # width of a full line; between pictures; at least
WIDEST, HIGHEST, LOWEST, PER_LINE = 2.2, 2.0, 0.45, 12
PAGE = 12.6  # the most height of all lines, unless they would be lower than LOWEST
HEAD, FOOT, BETWEEN = 0.22, 0.28, 0.06  # over and under a line of pictures; between schedules
PLOT, PLOT_GAP, PLOT_HEAD, LEGEND = 2.15, 0.75, 0.34, 0.2
DPI = 192


def spread_evenly(times: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of the timesteps, evenly spaced from the first to the last."""
    last, count = len(times) - 1, min(count, len(times))
    return [times[round(i * last / (count - 1))] for i in range(count)]


@dataclass(frozen=True)
class Layout:
    """The layout of one process's pictures, in inches.

    Attributes:
        columns, lines: pictures per line, lines per process.
        width, height: of a picture.
        pitch, line: from one picture to the next, and from one line to the next.
        zoom, dpi: dots per pixel and per inch.
    """

    columns: int
    lines: int
    width: float
    height: float
    pitch: float
    line: float
    zoom: int
    dpi: float

    @staticmethod
    def of(rows: int, count: int, height: int, width: int) -> Layout:
        """Return the layout of `count` pictures of a size in pixels, for `rows` processes."""
        lines = math.ceil(count / PER_LINE)
        columns = math.ceil(count / lines)
        highest = min(HIGHEST, max(PAGE / (rows * lines) - HEAD - FOOT, LOWEST))
        w = min((CONTENT + GAP) / columns - GAP, WIDEST, highest * width / height)
        h = w * height / width
        zoom = max(1, math.ceil(DPI * w / width))
        pitch, line = max(PITCH, w + GAP), HEAD + h + FOOT
        return Layout(columns, lines, w, h, pitch, line, zoom, zoom * width / w)


@dataclass(frozen=True)
class Row:
    """Pictures of one kind.

    Attributes:
        name: on the left, in `color`.
        pictures: pixels (C, H, W) by timestep. Other places stay empty.
        captions: texts under pictures, by timestep.
    """

    name: str
    color: str
    pictures: Mapping[int, Pixels]
    captions: Mapping[int, str] = field(default_factory=dict)


def draw(
    title: str,
    formula: str,
    rows: Sequence[Row],
    times: Sequence[int],
    legend: Sequence[tuple[str, str]],
    plots: Sequence[Callable[[Axes], object]],
) -> Image.Image:
    """Return the page.

    Args:
        formula: under the title.
        times: of the pictures in each row.
        legend: names and colors of what the plots show.
        plots: what draws each, side by side.
    """
    height, width = rows[0].pictures[times[0]].shape[-2:]
    lines = Layout.of(len(rows), len(times), height, width)
    content = max(lines.columns * lines.pitch - GAP, 6.6)
    block = lines.lines * lines.line + BETWEEN
    saved = HEAD - 0.04 if lines.lines == 1 else 0.0  # t stands over the first row only
    tops = [TOP + row * (block - saved) for row in range(len(rows))]
    key = tops[-1] + block + LEGEND
    below = key + LEGEND + PLOT_HEAD
    sheet = Sheet(LEFT + content + RIGHT, below + PLOT + BOTTOM, lines.dpi)
    bold: dict[str, Any] = {"fontweight": "bold", "parse_math": False}
    with matplotlib_style():
        sheet.text(LEFT, 0.38, title, content, fontsize=13, **bold)
        sheet.text(LEFT, 0.66, formula, content, fontsize=9.5, color=FAINT)
        for i, (row, top) in enumerate(zip(rows, tops, strict=True)):
            _row(sheet, row, times, lines, top, headed=i == 0 or lines.lines > 1)
        _legend(sheet, legend, key, content)
    side = (content - PLOT_GAP * (len(plots) - 1)) / len(plots)
    for i, plot in enumerate(plots):
        plot(sheet.axes(LEFT + i * (side + PLOT_GAP), below, side, PLOT))
    return sheet.render()


def _row(
    sheet: Sheet, row: Row, times: Sequence[int], lines: Layout, top: float, *, headed: bool
) -> None:
    """A row's name and its pictures, with t above them if `headed`."""
    middle = top + HEAD + (lines.lines - 1) * lines.line / 2 + lines.height / 2
    style: dict[str, Any] = {"fontweight": "bold", "parse_math": False, "ha": "right"}
    style |= {"color": row.color, "va": "center"}
    sheet.text(LEFT - 0.16, middle, row.name, LEFT - 0.28, fontsize=10.5, **style)
    for i, t in enumerate(times):
        if t not in row.pictures:
            continue
        x = LEFT + i % lines.columns * lines.pitch + (lines.pitch - GAP - lines.width) / 2
        y = top + i // lines.columns * lines.line + HEAD
        center = x + lines.width / 2
        sheet.image(x, y, row.pictures[t], lines.zoom)
        if headed:
            sheet.text(center, y - 0.06, f"$t$ = {t}", ha="center", fontsize=8)
        below = y + lines.height + 0.17
        caption = row.captions.get(t, "")
        sheet.text(center, below, caption, ha="center", fontsize=7.5, color=FAINT)


def _legend(sheet: Sheet, legend: Sequence[tuple[str, str]], y: float, content: float) -> None:
    """The legend of the plots, in one line."""
    pitch = min(content / len(legend), max(1.6, 0.075 * max(len(n) for n, _ in legend) + 0.4))
    for i, (name, color) in enumerate(legend):
        style: dict[str, Any] = {"va": "center", "parse_math": False}
        sheet.text(LEFT + i * pitch, y, "●", color=color, fontsize=9, **style)
        sheet.text(LEFT + i * pitch + 0.15, y, name, pitch - 0.25, fontsize=9, **style)


# -- the animation --------------------------------------------------------------------------------

SECONDS, HOLD, FRAME_DPI, FRAME_GAP = 4.0, 1.5, 100, 0.14


def choose_zoom(pixels: Pixels, side: float) -> tuple[int, float, float]:
    """Return the dots per pixel of a picture about `side` inches wide, its width and its height."""
    height, width = pixels.shape[-2:]
    zoom = max(1, round(FRAME_DPI * side / max(height, width)))
    return zoom, zoom * width / FRAME_DPI, zoom * height / FRAME_DPI


def animate(
    sheet: Sheet,
    label: Text,
    times: Sequence[int],
    num_timesteps: int,
    zoom: int,
    pictures: Callable[[int], Iterable[tuple[float, float, Pixels]]],
) -> Work[bytes]:
    """Render a sheet at each timestep.

    Args:
        label: names the timestep.
        pictures: returns the place and the pixels of each picture at a timestep.
    """
    frames: list[Image.Image] = []
    for t in times:
        label.set_text(f"$t$ = {t} of {num_timesteps}")
        sheet.images.clear()
        for x, y, pixels in pictures(t):
            sheet.image(x, y, pixels, zoom)
        frames.append(sheet.render())
        yield Progress("animating", len(frames), len(times))
    return figures.encode_gif(frames, seconds=SECONDS, hold=HOLD)
