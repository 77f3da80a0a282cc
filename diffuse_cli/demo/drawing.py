"""The picture and the animation of `noise-demo`.

Rows are processes, columns timesteps, all with the same noise; below are plots of log-SNR and of
the variances of signal and noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli import pictures
from diffuse_cli.events import Progress, Work
from diffuse_cli.pictures import COLORS, FAINT, Pixels, Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from PIL import Image
    from torch import Tensor

    from diffuse_cli.core import Process, Space

    Levels = Callable[[Tensor], Tensor]

PURE_NOISE = -8.0
"""The log-SNR of pure noise, with 1.8 % of the image left."""

FORMULA = (
    r"$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$,"
    r"   $\varepsilon \sim \mathcal{N}(0, I)$, the same in every picture"
)


@dataclass(frozen=True)
class Scene:
    """What is shown: the image and noise are (C, H, W), x0 in [-1, 1]."""

    title: str
    x0: Tensor
    noise: Tensor
    space: Space
    processes: Mapping[str, Process]
    num_timesteps: int

    def times(self, count: int) -> list[int]:
        """At most `count` timesteps from 0 to T - 1, evenly spaced."""
        last = self.num_timesteps - 1
        count = min(count, last + 1)
        return [round(i * last / (count - 1)) for i in range(count)]

    def noised(self, name: str, t: int) -> Pixels:
        """x_t as pixels (C, H, W)."""
        x_t = self.processes[name].diffuse(self.x0[None], t, self.noise[None])
        pixels: Pixels = self.space.to_stored(x_t)[0].numpy()
        return pixels


# -- the picture ----------------------------------------------------------------------------------

LEFT, RIGHT, TOP, BOTTOM = 1.1, 0.35, 0.86, 0.56  # inches, as everything below
CONTENT, GAP, PITCH = 9.2, 0.08, 0.66  # width of a full line; between pictures; at least
WIDEST, HIGHEST, LOWEST, PER_LINE = 2.2, 2.0, 0.45, 12
PAGE = 12.6  # the most height of all lines, unless they would be lower than LOWEST
HEAD, FOOT, BETWEEN = 0.22, 0.28, 0.06  # over and under a line of pictures; between schedules
PLOT, PLOT_GAP, PLOT_HEAD, LEGEND = 2.15, 0.75, 0.34, 0.2
DPI = 192


@dataclass(frozen=True)
class Lines:
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
    def of(rows: int, count: int, height: int, width: int) -> Lines:
        """The layout of `count` pictures of a size in pixels, for `rows` processes."""
        lines = math.ceil(count / PER_LINE)
        columns = math.ceil(count / lines)
        highest = min(HIGHEST, max(PAGE / (rows * lines) - HEAD - FOOT, LOWEST))
        w = min((CONTENT + GAP) / columns - GAP, WIDEST, highest * width / height)
        h = w * height / width
        zoom = max(1, math.ceil(DPI * w / width))
        pitch, line = max(PITCH, w + GAP), HEAD + h + FOOT
        return Lines(columns, lines, w, h, pitch, line, zoom, zoom * width / w)


def draw(scene: Scene, steps: int) -> Image.Image:
    """The picture of a scene at `steps` timesteps."""
    times = scene.times(steps)
    lines = Lines.of(len(scene.processes), len(times), *scene.x0.shape[-2:])
    content = max(lines.columns * lines.pitch - GAP, 6.6)
    block = lines.lines * lines.line + BETWEEN
    saved = HEAD - 0.04 if lines.lines == 1 else 0.0  # t stands over the first process only
    tops = [TOP + row * (block - saved) for row in range(len(scene.processes))]
    legend = tops[-1] + block + LEGEND
    plots = legend + LEGEND + PLOT_HEAD
    sheet = Sheet(LEFT + content + RIGHT, plots + PLOT + BOTTOM, lines.dpi)
    bold: dict[str, Any] = {"fontweight": "bold", "parse_math": False}
    sheet.text(LEFT, 0.38, scene.title, content, fontsize=13, **bold)
    sheet.text(LEFT, 0.66, FORMULA, fontsize=9.5, color=FAINT)
    for row, top in enumerate(tops):
        _row(sheet, scene, row, times, lines, top)
    _legend(sheet, scene, legend, content)
    width = (content - PLOT_GAP) / 2
    _log_snr(sheet.axes(LEFT, plots, width, PLOT), scene, times)
    _variances(sheet.axes(LEFT + width + PLOT_GAP, plots, width, PLOT), scene, times)
    return sheet.render()


def _row(sheet: Sheet, scene: Scene, row: int, times: list[int], lines: Lines, top: float) -> None:
    """One process: its name, and its pictures with t above and alpha-bar below."""
    name, process = list(scene.processes.items())[row]
    middle = top + HEAD + (lines.lines - 1) * lines.line / 2 + lines.height / 2
    style: dict[str, Any] = {"fontweight": "bold", "parse_math": False, "ha": "right"}
    style |= {"color": pictures.color(row), "va": "center"}
    sheet.text(LEFT - 0.16, middle, name, LEFT - 0.28, fontsize=10.5, **style)
    for i, t in enumerate(times):
        x = LEFT + i % lines.columns * lines.pitch + (lines.pitch - GAP - lines.width) / 2
        y = top + i // lines.columns * lines.line + HEAD
        center = x + lines.width / 2
        sheet.image(x, y, scene.noised(name, t), lines.zoom)
        if row == 0 or lines.lines > 1:
            sheet.text(center, y - 0.06, f"$t$ = {t}", ha="center", fontsize=8)
        level = rf"$\bar\alpha$ = {pictures.readable(process.alpha_bar(t))}"
        sheet.text(center, y + lines.height + 0.17, level, ha="center", fontsize=7.5, color=FAINT)


# -- the plots ------------------------------------------------------------------------------------

DASHES = ("-", "--", ":")
CURVE: dict[str, Any] = {"clip_on": False, "zorder": 3, "marker": "o", "markersize": 5,
                         "markeredgecolor": "white", "markeredgewidth": 0.8}  # fmt: skip


def _legend(sheet: Sheet, scene: Scene, y: float, content: float) -> None:
    """The legend of both plots, in one line."""
    pitch = min(content / len(scene.processes), 1.6)
    for i, name in enumerate(scene.processes):
        style: dict[str, Any] = {"va": "center", "parse_math": False}
        sheet.text(LEFT + i * pitch, y, "●", color=pictures.color(i), fontsize=9, **style)
        sheet.text(LEFT + i * pitch + 0.15, y, name, pitch - 0.25, fontsize=9, **style)


def _plot(axes: Axes, scene: Scene, title: str, times: list[int], levels: Levels) -> list[Line2D]:
    """Plot `levels` of each alpha-bar over t / T, with marks at `times`; returns the lines.

    Later lines are thinner: of two that coincide both are seen.
    """
    axes.set_title(title, loc="left", fontsize=9.5, pad=9)
    axes.set_xlim(0, 1)
    axes.set_xlabel("$t\\,/\\,T$", fontsize=9)
    axes.tick_params(length=0)
    x = [t / scene.num_timesteps for t in range(scene.num_timesteps)]
    drawn: list[Line2D] = []
    count = len(scene.processes)
    for i, process in enumerate(scene.processes.values()):
        style = {**CURVE, "color": pictures.color(i), "linestyle": DASHES[i // len(COLORS) % 3]}
        style |= {"linewidth": 1.6 + 1.4 * (count - 1 - i) / count, "markevery": times}
        drawn += axes.plot(x, levels(process.alpha_bars).tolist(), **style)
    return drawn


def _log_snr(axes: Axes, scene: Scene, times: list[int]) -> list[Line2D]:
    """log-SNR over time, -inf at the lower edge; marks signal = noise and pure noise."""
    title = r"log-SNR,  $\log\,\bar\alpha_t\,/\,(1-\bar\alpha_t)$  in nats"
    drawn = _plot(axes, scene, title, times, lambda a: a.log() - (1 - a).log())
    values = np.ma.masked_invalid([line.get_ydata() for line in drawn])
    low, high = min(values.min(), PURE_NOISE - 4), max(values.max(), 4)
    low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)
    axes.set_ylim(low, high)
    for line in drawn:
        line.set_ydata(np.maximum(line.get_ydata(), low))
    axes.axhline(0, color="#9a9a9a", linewidth=0.9, zorder=1)
    axes.axhspan(low, PURE_NOISE, color="#f3f3f3", linewidth=0, zorder=0)
    note: dict[str, Any] = {"fontsize": 7.5, "color": FAINT, "textcoords": "offset points"}
    axes.annotate("signal = noise", (1, 0), (-3, 3), ha="right", va="bottom", **note)
    axes.annotate("pure noise", (0, PURE_NOISE), (4, -3), va="top", **note)
    if values.mask.any():
        axes.annotate("−∞", (1, low), (-9, 2), ha="right", va="bottom", **{**note, "fontsize": 9})
    return drawn


def _variances(axes: Axes, scene: Scene, times: list[int]) -> None:
    """alpha-bar over time, with 1 - alpha-bar on the right scale."""
    title = r"variance of signal $\bar\alpha_t$ (left) and noise $1-\bar\alpha_t$ (right)"
    _plot(axes, scene, title, times, lambda a: a)
    axes.set_ylim(0, 1)
    right = axes.secondary_yaxis("right", functions=(partial(np.subtract, 1),) * 2)
    right.tick_params(length=0, labelsize=8, labelcolor=FAINT, pad=6)
    right.spines["right"].set(color="#9a9a9a", linewidth=0.7)


# -- the animation --------------------------------------------------------------------------------

FRAMES, SECONDS, HOLD, FRAME_DPI, FRAME_WIDTH, FRAME_GAP = 40, 4.0, 1.5, 100, 2.0, 0.14
FRAME_COLUMNS, FRAME_TOP, FRAME_HEAD, FRAME_LEFT = 5, 0.42, 0.28, 0.62
NOISE = 1_800_000  # pixels times zoom of all frames; noise does not compress: 3 or 4 MB


def animate(scene: Scene) -> Work[bytes]:
    """The picture of each process side by side, over the log-SNR, from t = 0 to T - 1."""
    count = len(scene.processes)
    _, height, width = scene.x0.shape
    zoom = max(1, round(FRAME_DPI * FRAME_WIDTH / max(height, width)))
    w, h = zoom * width / FRAME_DPI, zoom * height / FRAME_DPI
    lines = math.ceil(count / FRAME_COLUMNS)
    columns = math.ceil(count / lines)
    pitch, line = max(w, 0.9) + FRAME_GAP, FRAME_HEAD + h + FRAME_GAP
    content = max(columns * pitch - FRAME_GAP, 3.4)
    plot = FRAME_TOP + lines * line + 0.34
    sheet = Sheet(FRAME_LEFT + content + 0.28, plot + 1.8, FRAME_DPI)
    curves = _log_snr(sheet.axes(FRAME_LEFT, plot, content, 1.3), scene, [0])
    label = sheet.text(FRAME_LEFT + content / 2, 0.3, "", ha="center", fontsize=12)
    start = FRAME_LEFT + (content - (columns - 1) * pitch) / 2
    centers = [
        (start + i % columns * pitch, FRAME_TOP + i // columns * line + FRAME_HEAD)
        for i in range(count)
    ]
    for i, (name, (x, y)) in enumerate(zip(scene.processes, centers, strict=True)):
        style: dict[str, Any] = {"fontweight": "bold", "parse_math": False, "ha": "center"}
        sheet.text(x, y - 0.1, name, pitch, fontsize=10, color=pictures.color(i), **style)
    times = scene.times(max(8, min(FRAMES, NOISE // (count * height * width * zoom))))
    frames = []
    for done, t in enumerate(times, 1):
        label.set_text(f"$t$ = {t} of {scene.num_timesteps}")
        sheet.images.clear()
        for curve, name, (x, y) in zip(curves, scene.processes, centers, strict=True):
            curve.set_markevery([t])
            sheet.image(x - w / 2, y, scene.noised(name, t), zoom)
        frames.append(sheet.render())
        yield Progress("animating", done, len(times))
    return pictures.gif(frames, seconds=SECONDS, hold=HOLD)
