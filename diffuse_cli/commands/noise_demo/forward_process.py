"""The picture and the animation of `noise-demo`.

Rows are processes, columns timesteps, all with the same noise. Below are plots of log-SNR and of
the variances of signal and noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli.commands.noise_demo import demo_page
from diffuse_cli.commands.noise_demo.demo_page import FRAME_DPI, FRAME_GAP
from diffuse_cli.media import figures, render_samples
from diffuse_cli.media.figures import COLORS, FAINT, Pixels, Sheet
from diffuse_cli.system import Work

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


FRAMES, FRAME_WIDTH, FRAME_COLUMNS = 40, 2.0, 5
FRAME_TOP, FRAME_HEAD, FRAME_LEFT = 0.42, 0.28, 0.62
NOISE = 1_800_000  # pixels times zoom of all frames; noise does not compress: 3 or 4 MB


@dataclass(frozen=True)
class Scene:
    """Contents of the demonstration: the sample as the model sees it and the noise, (C, *size)."""

    title: str
    x0: Tensor
    noise: Tensor
    space: Space
    processes: Mapping[str, Process]

    @property
    def num_timesteps(self) -> int:
        """T of all processes."""
        return next(iter(self.processes.values())).num_timesteps

    def times(self, count: int) -> list[int]:
        """Return at most `count` timesteps from 0 to T - 1, evenly spaced."""
        return demo_page.spread_evenly(range(self.num_timesteps), count)

    def to_pixels(self, name: str, t: int) -> Pixels:
        """x_t as pixels (C, H, W)."""
        from diffuse_cli.sampling.generation import to_stored

        x_t = self.processes[name].diffuse(self.x0[None], t, self.noise[None])
        pixels: Pixels = render_samples(self.space, to_stored(self.space, x_t))[0]
        return pixels

    def draw(self, steps: int) -> Image.Image:
        """Draw the picture at `steps` timesteps."""
        times = self.times(steps)
        colors = {name: figures.color(i) for i, name in enumerate(self.processes)}
        rows = [
            demo_page.Row(
                name, colors[name], partial(self.to_pixels, name), partial(level, process)
            )
            for name, process in self.processes.items()
        ]
        plots = [partial(p, processes=self.processes, times=times) for p in (log_snr, _variances)]
        return demo_page.draw(self.title, FORMULA, rows, times, [*colors.items()], plots)

    def animate(self) -> Work[bytes]:
        """Animate the pictures of all processes, over the log-SNR, from t = 0 to T - 1."""
        names, count = list(self.processes), len(self.processes)
        first = self.to_pixels(names[0], 0)
        zoom, w, h = demo_page.choose_zoom(first, FRAME_WIDTH)
        lines = math.ceil(count / FRAME_COLUMNS)
        columns = math.ceil(count / lines)
        pitch, line = max(w, 0.9) + FRAME_GAP, FRAME_HEAD + h + FRAME_GAP
        content = max(columns * pitch - FRAME_GAP, 3.4)
        plot = FRAME_TOP + lines * line + 0.34
        sheet = Sheet(FRAME_LEFT + content + 0.28, plot + 1.8, FRAME_DPI)
        curves = log_snr(sheet.axes(FRAME_LEFT, plot, content, 1.3), self.processes, [0])
        label = sheet.text(FRAME_LEFT + content / 2, 0.3, "", ha="center", fontsize=12)
        start = FRAME_LEFT + (content - (columns - 1) * pitch) / 2
        centers = [
            (start + i % columns * pitch, FRAME_TOP + i // columns * line + FRAME_HEAD)
            for i in range(count)
        ]
        style: dict[str, Any] = {"fontweight": "bold", "parse_math": False, "ha": "center"}
        for i, (name, (x, y)) in enumerate(zip(names, centers, strict=True)):
            sheet.text(x, y - 0.1, name, pitch, fontsize=10, color=figures.color(i), **style)

        def frames(t: int) -> Iterator[tuple[float, float, Pixels]]:
            for curve, name, (x, y) in zip(curves, names, centers, strict=True):
                curve.set_markevery([t])
                yield x - w / 2, y, self.to_pixels(name, t)

        size = count * math.prod(first.shape[-2:]) * zoom
        times = self.times(max(8, min(FRAMES, NOISE // size)))
        return (yield from demo_page.animate(sheet, label, times, self.num_timesteps, zoom, frames))


def level(process: Process, t: int) -> str:
    """Return the caption of a timestep, its alpha-bar."""
    return rf"$\bar\alpha$ = {figures.format_fraction(process.alpha_bar(t))}"


# -- the plots ------------------------------------------------------------------------------------

DASHES = ("-", "--", ":")
CURVE: dict[str, Any] = {"clip_on": False, "zorder": 3, "marker": "o", "markersize": 5,
                         "markeredgecolor": "white", "markeredgewidth": 0.8}  # fmt: skip


def set_time_axis(axes: Axes, title: str) -> None:
    """A plot over t / T."""
    axes.set_title(title, loc="left", fontsize=9.5, pad=9)
    axes.set_xlim(0, 1)
    axes.set_xlabel("$t\\,/\\,T$", fontsize=9)
    axes.tick_params(length=0)


def _plot(
    axes: Axes, processes: Mapping[str, Process], title: str, times: list[int], levels: Levels
) -> list[Line2D]:
    """Plot `levels` of each alpha-bar over t / T, with marks at `times`. Returns the lines.

    Later lines are thinner, so that lines that coincide are all visible.
    """
    set_time_axis(axes, title)
    lines: list[Line2D] = []
    count = len(processes)
    for i, process in enumerate(processes.values()):
        x = [t / process.num_timesteps for t in range(process.num_timesteps)]
        style = {**CURVE, "color": figures.color(i), "linestyle": DASHES[i // len(COLORS) % 3]}
        style |= {"linewidth": 1.6 + 1.4 * (count - 1 - i) / count, "markevery": times}
        lines += axes.plot(x, levels(process.alpha_bars).tolist(), **style)
    return lines


def log_snr(axes: Axes, processes: Mapping[str, Process], times: list[int]) -> list[Line2D]:
    """log-SNR over time, -inf at the lower edge. Marks signal = noise and pure noise."""
    title = r"log-SNR,  $\log\,\bar\alpha_t\,/\,(1-\bar\alpha_t)$  in nats"
    lines = _plot(axes, processes, title, times, lambda a: a.log() - (1 - a).log())
    values = np.ma.masked_invalid([line.get_ydata() for line in lines])
    low, high = min(values.min(), PURE_NOISE - 4), max(values.max(), 4)
    low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)
    axes.set_ylim(low, high)
    for line in lines:
        line.set_ydata(np.maximum(line.get_ydata(), low))
    axes.axhline(0, color="#9a9a9a", linewidth=0.9, zorder=1)
    axes.axhspan(low, PURE_NOISE, color="#f3f3f3", linewidth=0, zorder=0)
    note: dict[str, Any] = {"fontsize": 7.5, "color": FAINT, "textcoords": "offset points"}
    axes.annotate("signal = noise", (1, 0), (-3, 3), ha="right", va="bottom", **note)
    axes.annotate("pure noise", (0, PURE_NOISE), (4, -3), va="top", **note)
    if values.mask.any():
        axes.annotate("−∞", (1, low), (-9, 2), ha="right", va="bottom", **{**note, "fontsize": 9})
    return lines


def _variances(axes: Axes, processes: Mapping[str, Process], times: list[int]) -> None:
    """alpha-bar over time, with 1 - alpha-bar on the right scale."""
    title = r"variance of signal $\bar\alpha_t$ (left) and noise $1-\bar\alpha_t$ (right)"
    _plot(axes, processes, title, times, lambda a: a)
    axes.set_ylim(0, 1)
    right = axes.secondary_yaxis("right", functions=(partial(np.subtract, 1),) * 2)
    right.tick_params(length=0, labelsize=8, labelcolor=FAINT, pad=6)
    right.spines["right"].set(color="#9a9a9a", linewidth=0.7)
