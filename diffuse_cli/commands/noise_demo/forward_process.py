"""The picture and the animation of `noise-demo`.

Rows are processes, columns timesteps, all with the same noise; below are plots of log-SNR and of
the variances of signal and noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from diffuse_cli.commands.noise_demo import demo_page
from diffuse_cli.media import MEDIA, figures
from diffuse_cli.media.figures import COLORS, FAINT, Pixels, Sheet
from diffuse_cli.system.events import Progress, Work

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
    """What is shown: the sample as the model sees it and the noise, (C, *size)."""

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

    def stored(self, name: str, t: int) -> Any:
        """x_t as stored, (C, *size)."""
        x_t = self.processes[name].diffuse(self.x0[None], t, self.noise[None])
        return self.space.to_stored(x_t).numpy()[0]

    def noised(self, name: str, t: int) -> Pixels:
        """x_t as pixels (C, H, W)."""
        stored = self.stored(name, t)[None]
        pixels: Pixels = MEDIA[self.space.medium].look(stored, self.space)[0]
        return pixels


# -- the picture ----------------------------------------------------------------------------------


def draw(scene: Scene, steps: int) -> Image.Image:
    """The picture of a scene at `steps` timesteps."""
    times = scene.times(steps)
    colors = {name: figures.color(i) for i, name in enumerate(scene.processes)}
    rows = [
        demo_page.Row(name, colors[name], partial(scene.noised, name), partial(_level, process))
        for name, process in scene.processes.items()
    ]
    plots = (partial(plot, scene=scene, times=times) for plot in (log_snr, _variances))
    return demo_page.draw(scene.title, FORMULA, rows, times, list(colors.items()), list(plots))


def _level(process: Process, t: int) -> str:
    return rf"$\bar\alpha$ = {figures.readable(process.alpha_bar(t))}"


# -- the plots ------------------------------------------------------------------------------------

DASHES = ("-", "--", ":")
CURVE: dict[str, Any] = {"clip_on": False, "zorder": 3, "marker": "o", "markersize": 5,
                         "markeredgecolor": "white", "markeredgewidth": 0.8}  # fmt: skip


class Curves(Protocol):
    """What the plots show: processes by name."""

    @property
    def processes(self) -> Mapping[str, Process]: ...

    @property
    def num_timesteps(self) -> int: ...


def over_time(axes: Axes, title: str) -> None:
    """A plot over t / T."""
    axes.set_title(title, loc="left", fontsize=9.5, pad=9)
    axes.set_xlim(0, 1)
    axes.set_xlabel("$t\\,/\\,T$", fontsize=9)
    axes.tick_params(length=0)


def _plot(axes: Axes, scene: Curves, title: str, times: list[int], levels: Levels) -> list[Line2D]:
    """Plot `levels` of each alpha-bar over t / T, with marks at `times`; returns the lines.

    Later lines are thinner: of two that coincide both are seen.
    """
    over_time(axes, title)
    x = [t / scene.num_timesteps for t in range(scene.num_timesteps)]
    drawn: list[Line2D] = []
    count = len(scene.processes)
    for i, process in enumerate(scene.processes.values()):
        style = {**CURVE, "color": figures.color(i), "linestyle": DASHES[i // len(COLORS) % 3]}
        style |= {"linewidth": 1.6 + 1.4 * (count - 1 - i) / count, "markevery": times}
        drawn += axes.plot(x, levels(process.alpha_bars).tolist(), **style)
    return drawn


def log_snr(axes: Axes, scene: Curves, times: list[int]) -> list[Line2D]:
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


def _variances(axes: Axes, scene: Curves, times: list[int]) -> None:
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
    height, width = scene.noised(next(iter(scene.processes)), 0).shape[-2:]
    zoom = max(1, round(FRAME_DPI * FRAME_WIDTH / max(height, width)))
    w, h = zoom * width / FRAME_DPI, zoom * height / FRAME_DPI
    lines = math.ceil(count / FRAME_COLUMNS)
    columns = math.ceil(count / lines)
    pitch, line = max(w, 0.9) + FRAME_GAP, FRAME_HEAD + h + FRAME_GAP
    content = max(columns * pitch - FRAME_GAP, 3.4)
    plot = FRAME_TOP + lines * line + 0.34
    sheet = Sheet(FRAME_LEFT + content + 0.28, plot + 1.8, FRAME_DPI)
    curves = log_snr(sheet.axes(FRAME_LEFT, plot, content, 1.3), scene, [0])
    label = sheet.text(FRAME_LEFT + content / 2, 0.3, "", ha="center", fontsize=12)
    start = FRAME_LEFT + (content - (columns - 1) * pitch) / 2
    centers = [
        (start + i % columns * pitch, FRAME_TOP + i // columns * line + FRAME_HEAD)
        for i in range(count)
    ]
    for i, (name, (x, y)) in enumerate(zip(scene.processes, centers, strict=True)):
        style: dict[str, Any] = {"fontweight": "bold", "parse_math": False, "ha": "center"}
        sheet.text(x, y - 0.1, name, pitch, fontsize=10, color=figures.color(i), **style)
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
    return figures.gif(frames, seconds=SECONDS, hold=HOLD)
