"""The work of `diffuse noise-demo`: the forward process of one image, as a picture for a lecture.

Rows are schedules and columns are timesteps, all with the same noise; under them stand log-SNR and
alpha-bar over time. Nothing heavy is imported before the request is known to be good.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli import files, pictures
from diffuse_cli.config import DemoConfig
from diffuse_cli.errors import OutputError, UsageError, lookup
from diffuse_cli.events import Notice, Progress, Work
from diffuse_cli.pictures import FAINT, Pixels, Sheet

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from PIL import Image
    from torch import Tensor

    from diffuse_cli.core import Process

    Levels = Callable[[Tensor], Tensor]

PURE_NOISE = -8.0
"""The log-SNR below which a picture is taken for pure noise: 1.8 % of the image is left."""

OWN_SIDE, LARGEST_SIDE = 256, 512
FORMULA = (
    r"$x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\varepsilon$,"
    r"   $\varepsilon \sim \mathcal{N}(0, I)$, the same in every picture"
)


@dataclass(frozen=True)
class Scene:
    """What is shown: a name, the image (C, H, W) in [-1, 1], its noise, processes by schedule."""

    name: str
    x0: Tensor
    noise: Tensor
    processes: Mapping[str, Process]
    num_timesteps: int

    def times(self, count: int) -> list[int]:
        """At most `count` timesteps from 0 to T - 1, evenly spaced."""
        last = self.num_timesteps - 1
        count = min(count, last + 1)
        return [round(i * last / (count - 1)) for i in range(count)]

    def noised(self, schedule: str, t: int) -> Pixels:
        """x_t as it is shown, (C, H, W): values outside [-1, 1] are clipped."""
        x_t = self.processes[schedule].diffuse(self.x0[None], t, self.noise[None])
        pixels: Pixels = pictures.to_uint8(x_t)[0]
        return pixels


def demonstrate(config: DemoConfig) -> Work[tuple[Path, ...]]:
    """Draw the picture, and with `config.gif` the animation; returns the paths written.

    Raises:
        UsageError: an unknown schedule, a size too large to draw, an output that is not .png.
        OutputError: an output exists already, or cannot be written.
        DataError: the image is missing or cannot be read.
    """
    from diffuse_cli.core import SCHEDULES

    schedules = {name: lookup(SCHEDULES, name, "--schedule") for name in config.schedule}
    paths = _outputs(config)

    from diffuse_cli.core import Process
    from diffuse_cli.data import fit, read_image

    picture = read_image(config.image, config.background)
    picture = fit(picture, config.size) if config.size else pictures.shrunk(picture, OWN_SIDE)
    processes = {name: Process(make(config.num_timesteps)) for name, make in schedules.items()}
    scene = _scene(config, picture, processes)
    yield from _warnings(scene)
    yield Progress("drawing", 0, 1)
    contents = [pictures.png(draw(scene, config.steps))]
    yield Progress("drawing", 1, 1)
    if config.gif:
        small = pictures.shrunk(picture, 100 if len(processes) <= 3 else 64)
        contents.append((yield from _animation(_scene(config, small, processes))))
    for path, content in zip(paths, contents, strict=True):
        files.write_bytes(path, content)
    return paths


def _outputs(config: DemoConfig) -> tuple[Path, ...]:
    """The paths to write, checked, as is what else can be without reading the image."""
    if not config.schedule:
        raise UsageError("--schedule must name at least one")
    image = Path(config.image)
    out = Path(config.out) if config.out is not None else Path(f"{image.stem}.noise-demo.png")
    if out.suffix.lower() != ".png":
        raise UsageError(f"-o must end in .png, not {files.show(out)!r}")
    if config.size is not None and max(config.size) > LARGEST_SIDE:
        raise UsageError(f"--size must be at most {LARGEST_SIDE} a side, not {max(config.size)}")
    paths = (out, out.with_suffix(".gif")) if config.gif else (out,)
    for path in paths:
        if os.path.realpath(path) == os.path.realpath(image):
            raise UsageError(f"{files.show(path)} is the image itself", "Choose another -o")
        files.check_writable(path)
        if (path.exists() or path.is_symlink()) and not config.overwrite:
            raise OutputError(f"{files.show(path)} exists already", "--overwrite replaces it")
    return paths


def _scene(config: DemoConfig, picture: Image.Image, processes: Mapping[str, Process]) -> Scene:
    from diffuse_cli.runtime import draw_noise

    levels = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
    noise = draw_noise(config.seed, "noise-demo", shape=levels.shape)
    name = files.show(Path(config.image).name)
    short = name if len(name) <= 44 else f"{name[:28]} … {name[-12:]}"
    return Scene(short, pictures.from_uint8(levels), noise, processes, config.num_timesteps)


def _warnings(scene: Scene) -> Iterator[Notice]:
    """A warning for every schedule whose last step is not noise alone."""
    from diffuse_cli.core import SCHEDULES, Process

    last = scene.num_timesteps - 1
    ends = {n: p.log_snr(last) for n, p in scene.processes.items()}
    if all(end <= PURE_NOISE for end in ends.values()):
        return
    every = {n: Process(make(last + 1)).log_snr(last) for n, make in SCHEDULES.items()}
    better = [n for n, end in every.items() if end <= PURE_NOISE]
    advice = f"use --schedule {' or '.join(better)}" if better else "raise --num-timesteps"
    for name, end in ends.items():
        if end > PURE_NOISE:
            kept = math.sqrt(scene.processes[name].alpha_bar(last))
            yield Notice(
                f"{name} with T = {last + 1} ends before pure noise: {kept:.1%} of the image is "
                f"left in x_{last} (log-SNR {end:.1f}, better below {PURE_NOISE:.0f}), but "
                f"sampling starts without it; {advice}",
                warning=True,
            )


# -- the picture ----------------------------------------------------------------------------------

LEFT, RIGHT, TOP, BOTTOM = 1.1, 0.35, 0.86, 0.56  # inches, as everything below
CONTENT, GAP, PITCH = 9.2, 0.08, 0.66  # width of a full line; between pictures; at least
WIDEST, HIGHEST, PER_LINE = 2.2, 2.0, 12
HEAD, FOOT, BETWEEN = 0.22, 0.34, 0.06  # over and under a line of pictures; between schedules
PLOT, PLOT_GAP, PLOT_HEAD = 2.15, 0.75, 0.34
DPI = 192


@dataclass(frozen=True)
class Lines:
    """How the pictures of one schedule are laid out, in one line or several.

    Attributes:
        columns, lines: pictures a line, lines a schedule.
        width, height: of a picture.
        pitch, line: from one picture to the next, and from one line to the next.
        zoom, dpi: dots a pixel and dots an inch, so that a picture is drawn dot by dot.
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
    def of(count: int, height: int, width: int) -> Lines:
        """The layout of `count` pictures of a size in pixels."""
        lines = math.ceil(count / PER_LINE)
        columns = math.ceil(count / lines)
        w = min((CONTENT + GAP) / columns - GAP, WIDEST, HIGHEST * width / height)
        h = w * height / width
        zoom = max(1, math.ceil(DPI * w / width))
        pitch, line = max(PITCH, w + GAP), HEAD + h + FOOT
        return Lines(columns, lines, w, h, pitch, line, zoom, zoom * width / w)


def draw(scene: Scene, steps: int) -> Image.Image:
    """The picture of a scene at `steps` timesteps."""
    times = scene.times(steps)
    lines = Lines.of(len(times), *scene.x0.shape[-2:])
    content = max(lines.columns * lines.pitch - GAP, 6.6)
    block = lines.lines * lines.line + BETWEEN
    saved = HEAD - 0.04 if lines.lines == 1 else 0.0  # t stands over the first schedule only
    tops = [TOP + row * (block - saved) for row in range(len(scene.processes))]
    plots = tops[-1] + block + PLOT_HEAD
    sheet = Sheet(LEFT + content + RIGHT, plots + PLOT + BOTTOM, lines.dpi)
    words = f"Forward process of {scene.name},  T = {scene.num_timesteps}"
    sheet.text(LEFT, 0.38, words, content, fontsize=13, fontweight="bold", parse_math=False)
    sheet.text(LEFT, 0.66, FORMULA, fontsize=9.5, color=FAINT)
    for row, top in enumerate(tops):
        _row(sheet, scene, row, times, lines, top)
    width = (content - PLOT_GAP) / 2
    _log_snr(sheet.axes(LEFT, plots, width, PLOT), scene, times)
    _alpha_bar(sheet.axes(LEFT + width + PLOT_GAP, plots, width, PLOT), scene, times)
    return sheet.render()


def _row(sheet: Sheet, scene: Scene, row: int, times: list[int], lines: Lines, top: float) -> None:
    """One schedule: its name, and its pictures with t over them and alpha-bar under them."""
    name, process = list(scene.processes.items())[row]
    middle = top + HEAD + (lines.lines - 1) * lines.line / 2 + lines.height / 2
    style = {"color": pictures.color(row), "fontweight": "bold", "ha": "right", "va": "center"}
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


def _plot(axes: Axes, scene: Scene, title: str, times: list[int], levels: Levels) -> list[Line2D]:
    """A quantity of every schedule over t / T, with marks at `times`; returns the lines."""
    total = scene.num_timesteps
    series = {n: levels(p.alpha_bars).tolist() for n, p in scene.processes.items()}
    axes.set_title(title, loc="left", fontsize=9.5, pad=9)
    axes.set_xlim(0, 1)
    axes.set_xlabel("$t\\,/\\,T$", fontsize=9)
    return pictures.curves(axes, [t / total for t in range(total)], series, times)


def _log_snr(axes: Axes, scene: Scene, times: list[int]) -> list[Line2D]:
    """log-SNR over time, with the line where signal equals noise and the floor of pure noise."""
    title = r"log-SNR,  $\log\,\bar\alpha_t\,/\,(1-\bar\alpha_t)$  in nats"
    drawn = _plot(axes, scene, title, times, lambda a: a.log() - (1 - a).log())
    values = np.ma.masked_invalid([line.get_ydata() for line in drawn])
    low, high = min(values.min(), PURE_NOISE - 4), max(values.max(), 4)
    low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)
    axes.set_ylim(low, high)
    axes.axhline(0, color="#9a9a9a", linewidth=0.9, zorder=1)
    axes.axhspan(low, PURE_NOISE, color="#f3f3f3", linewidth=0, zorder=0)
    note: dict[str, Any] = {"fontsize": 7.5, "color": FAINT, "textcoords": "offset points"}
    axes.annotate("signal = noise", (1, 0), (-3, 3), ha="right", va="bottom", **note)
    axes.annotate("pure noise", (0, PURE_NOISE), (4, -3), va="top", **note)
    return drawn


def _alpha_bar(axes: Axes, scene: Scene, times: list[int]) -> None:
    """alpha-bar over time, with the legend of both plots."""
    title = r"signal variance  $\bar\alpha_t$,  noise variance  $1-\bar\alpha_t$"
    _plot(axes, scene, title, times, lambda a: a)
    axes.set_ylim(0, 1)
    axes.legend(loc="upper right", handlelength=1.6, borderaxespad=0.2, frameon=False, fontsize=8.5)


# -- the animation --------------------------------------------------------------------------------

FRAMES, SECONDS, HOLD, FRAME_DPI, FRAME_WIDTH, FRAME_GAP = 40, 4.0, 1.5, 100, 2.0, 0.14
NOISE = 1_800_000  # pixels times zoom of all frames: noise does not compress, and 3 MB are enough


def _animation(scene: Scene) -> Work[bytes]:
    """The pictures of every schedule side by side, t running from 0 to T - 1 over the log-SNR."""
    count = len(scene.processes)
    _, height, width = scene.x0.shape
    zoom = max(1, round(FRAME_DPI * FRAME_WIDTH / max(height, width)))
    w, h = zoom * width / FRAME_DPI, zoom * height / FRAME_DPI
    pitch = max(w, 0.9) + FRAME_GAP
    content = max(count * pitch - FRAME_GAP, 3.4)
    start = 0.62 + (content - (count - 1) * pitch) / 2
    sheet = Sheet(content + 0.9, h + 2.98, FRAME_DPI)
    lines = _log_snr(sheet.axes(0.62, h + 1.18, content, 1.3), scene, [0])
    label = sheet.text(0.62 + content / 2, 0.3, "", ha="center", fontsize=12)
    for i, name in enumerate(scene.processes):
        style = {"color": pictures.color(i), "fontweight": "bold", "ha": "center"}
        sheet.text(start + i * pitch, 0.6, name, pitch, fontsize=10, **style)
    times = scene.times(max(8, min(FRAMES, NOISE // (count * height * width * zoom))))
    frames = []
    for done, t in enumerate(times, 1):
        label.set_text(f"$t$ = {t} of {scene.num_timesteps}")
        sheet.images.clear()
        for i, name in enumerate(scene.processes):
            lines[i].set_markevery([t])
            sheet.image(start + i * pitch - w / 2, 0.7, scene.noised(name, t), zoom)
        frames.append(sheet.render())
        yield Progress("animating", done, len(times))
    return pictures.gif(frames, seconds=SECONDS, hold=HOLD)
