"""The forward process of one sample: `noise-demo`.

Rows are processes, columns timesteps, all with the same noise. Below are plots of log-SNR and of
the variances of signal and noise.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli import media
from diffuse_cli.commands.noise_demo import demo_page
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.config.task_options import DemoConfig
from diffuse_cli.core import SCHEDULES, Space, dimensions
from diffuse_cli.media import MEDIA, figures
from diffuse_cli.system import Notice, UsageError, Work, files, translate_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D
    from PIL import Image
    from torch import Tensor

    from diffuse_cli.core import Process

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


@dataclass(frozen=True, eq=False)
class Scene:
    """Contents of the demonstration: a sample as stored, (C, *size), and the seed of its noise."""

    title: str
    values: media.Array
    seed: int
    space: Space
    processes: Mapping[str, Process]

    @cached_property
    def x0(self) -> Tensor:
        """The sample as the model sees it, (C, *size)."""
        import torch

        return self.space.to_model(torch.tensor(self.values[None]))[0]

    @cached_property
    def noise(self) -> Tensor:
        """The noise of all pictures, (C, *size)."""
        from diffuse_cli.system.rng import draw_noise

        return draw_noise(self.seed, "noise-demo", shape=self.space.shape)

    @property
    def num_timesteps(self) -> int:
        """T of all processes."""
        return next(iter(self.processes.values())).num_timesteps

    def shrink(self) -> Scene:
        """Return the scene of an image scaled down for an animation. Anything else as it is."""
        from diffuse_cli.media.image.planes import to_pixels

        if self.space.medium != "image":
            return self
        side = 100 if len(self.processes) <= FRAME_COLUMNS else 64
        values = to_pixels(figures.shrink_image(figures.to_image(self.values), side))
        return replace(self, values=values, space=replace(self.space, size=values.shape[1:]))

    def times(self, count: int) -> list[int]:
        """Return at most `count` timesteps from 0 to T - 1, evenly spaced."""
        return demo_page.spread_evenly(range(self.num_timesteps), count)

    def to_pixels(self, name: str, t: int) -> figures.Pixels:
        """x_t as pixels (C, H, W)."""
        from diffuse_cli.sampling.generation import to_stored

        x_t = self.processes[name].diffuse(self.x0[None], t, self.noise[None])
        pixels: figures.Pixels = media.render_samples(self.space, to_stored(self.space, x_t))[0]
        return pixels

    def draw(self, steps: int) -> Image.Image:
        """Draw the picture at `steps` timesteps."""
        times = self.times(steps)
        colors = {name: figures.color(i) for i, name in enumerate(self.processes)}
        rows = [
            demo_page.Row(
                name,
                colors[name],
                {t: self.to_pixels(name, t) for t in times},
                format_levels(process, times),
            )
            for name, process in self.processes.items()
        ]
        plots = [partial(p, processes=self.processes, times=times) for p in (log_snr, variances)]
        return demo_page.draw(self.title, FORMULA, rows, times, [*colors.items()], plots)

    def animate(self) -> Work[bytes]:
        """Animate the pictures of all processes, over the log-SNR, from t = 0 to T - 1."""
        small, names, count = self.shrink(), list(self.processes), len(self.processes)
        first = small.to_pixels(names[0], 0)
        zoom, w, h = demo_page.choose_zoom(first, FRAME_WIDTH)
        lines = math.ceil(count / FRAME_COLUMNS)
        columns = math.ceil(count / lines)
        pitch, line = max(w, 0.9) + demo_page.FRAME_GAP, FRAME_HEAD + h + demo_page.FRAME_GAP
        content = max(columns * pitch - demo_page.FRAME_GAP, 3.4)
        plot = FRAME_TOP + lines * line + 0.34
        sheet = figures.Sheet(FRAME_LEFT + content + 0.28, plot + 1.8, demo_page.FRAME_DPI)
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

        def frames(t: int) -> Iterator[tuple[float, float, figures.Pixels]]:
            for curve, name, (x, y) in zip(curves, names, centers, strict=True):
                curve.set_markevery([t])
                yield x - w / 2, y, small.to_pixels(name, t)

        size = count * math.prod(first.shape[-2:]) * zoom
        times = self.times(max(8, min(FRAMES, NOISE // size)))
        return (yield from demo_page.animate(sheet, label, times, self.num_timesteps, zoom, frames))


def format_levels(process: Process, times: Iterable[int]) -> dict[int, str]:
    """Return the alpha-bar of each timestep, for captions."""
    levels = {t: figures.format_fraction(process.alpha_bar(t)) for t in times}
    return {t: rf"$\bar\alpha$ = {level}" for t, level in levels.items()}


# -- preparing ------------------------------------------------------------------------------------


def prepare(config: DemoConfig) -> Work[Scene]:
    """Return the processes of some schedules, at the sample's size."""
    rows = choose_processes(config)

    from diffuse_cli.models.blueprint import make_process

    processes = {name: make_process(row) for name, row in rows.items()}
    values, space = yield from read_sample(config, panels=len(rows) * config.steps)
    shifted = f",  log-SNR shifted by {config.log_snr_shift:+g}" if config.log_snr_shift else ""
    rescaled = ",  zero terminal SNR" if config.zero_terminal_snr else ""
    name = _shorten_name(Path(config.image).name, 42)
    total = next(iter(processes.values())).num_timesteps
    title = f"Forward process of {name},  T = {total}{shifted}{rescaled}"
    scene = Scene(title, values, config.seed, space, processes)
    yield from _warn_of_signal(scene)
    return scene


def choose_processes(config: DemoConfig) -> dict[str, DiffusionConfig]:
    """Return the processes to show by name: schedules, and a file of betas."""
    names = tuple(dict(SCHEDULES.items())) if config.schedule is None else config.schedule
    if not names:
        raise UsageError("--schedule must name at least one", code="invalid_value")
    shared: dict[str, Any] = {
        "log_snr_shift": config.log_snr_shift,
        "zero_terminal_snr": config.zero_terminal_snr,
    }
    process = DiffusionConfig(num_timesteps=config.num_timesteps, betas=config.betas, **shared)  # type: ignore[arg-type]
    shared["num_timesteps"] = process.num_timesteps
    rows = {name: DiffusionConfig(schedule=name, **shared) for name in names}
    if config.betas is not None:
        name = _shorten_name(Path(config.betas).name, 20)
        rows[name if name not in rows else f"{name} (file)"] = process
    return rows


def _shorten_name(name: str, limit: int) -> str:
    """Return the start and end of a file's name, in about `limit` characters."""
    name = files.show(name)
    return name if len(name) <= limit else f"{name[: limit * 2 // 3]} … {name[-limit // 3 :]}"


def _warn_of_signal(scene: Scene) -> Iterator[Notice]:
    """Warn of processes whose last step is not pure noise."""
    last = scene.num_timesteps - 1
    ends = [
        f"{name} {math.sqrt(process.alpha_bar(last)):.1%} (log-SNR {process.log_snr(last):.1f})"
        for name, process in scene.processes.items()
        if process.log_snr(last) > PURE_NOISE
    ]
    if ends:
        yield Notice(
            f"x_{last} still has a part of the {MEDIA[scene.space.medium].one}: {', '.join(ends)}. "
            f"Pure noise, where sampling starts, has a log-SNR below {PURE_NOISE:.0f}. Add "
            "--zero-terminal-snr or more --num-timesteps, or choose another --schedule",
            warning=True,
        )


# -- the sample -----------------------------------------------------------------------------------

WHITE = "white"
"""The background where none is asked for."""

LARGEST_SIDE = 512
"""Largest side that can be asked for."""

OWN_SIDE, PIXELS = 256, 1_000_000
"""Largest side of an image, and most pixels of all panels, without --size. Noise does not compress:
a million of its pixels take about 3 MB."""


def check_sample_options(config: DemoConfig) -> None:
    """Refuse options that do not suit the medium of the file.

    Raises:
        UsageError: axes of something else than an array, or a size that is too large.
    """
    medium = MEDIA[medium_of(config.image)]
    if config.layout and config.layout not in medium.layouts:
        text = f"--layout is for arrays, and {files.show(Path(config.image))} is none"
        raise UsageError(text, "Leave it out", code="option_unsuited")
    with translate_errors():
        size = medium.resolve_size(config.size)
    if size is not None and len(size) > 1 and max(size) > LARGEST_SIDE:
        text = f"--size must be at most {LARGEST_SIDE} a side, not {max(size)}"
        raise UsageError(text, code="invalid_value")


def medium_of(path: str) -> str:
    """Return the medium of a file by its extension, or by its bytes if another medium claims it."""
    file = Path(path)
    extension = file.suffix.lower()
    with contextlib.suppress(OSError):  # the reader reports why
        for name, kind in MEDIA.items():
            if extension in kind.claimed and file.is_file() and kind.claims(file.read_bytes()):
                return name
    return media.media_by_extension().get(extension, "image")


def read_sample(
    config: DemoConfig, space: Space | None = None, panels: int = 1
) -> Work[tuple[media.Array, Space]]:
    """Return the sample as stored, (C, *size), and its space: a model's, or its own.

    Args:
        panels: the number of panels that show an image, if it keeps its size.

    Raises:
        DataError: it is missing or cannot be read.
    """
    medium = space.medium if space else medium_of(config.image)
    if medium == "image" and space is None:
        return (yield from _read_own_image(config, panels))
    from diffuse_cli.data.samples import limit_levels, measure_space
    from diffuse_cli.sampling.input_pictures import read_picture, rgb

    MEDIA[medium].prepare()
    fields = media.settings_for(space) if space else {"size": config.size, "layout": config.layout}
    settings = media.ReadSettings(
        **fields, fit=config.fit or "crop", background=rgb(config.background or WHITE)
    )
    path = Path(config.image)
    files_there = (file.read_bytes() for file in [path] if file.is_file())
    with translate_errors():
        settings = MEDIA[medium].resolve_settings(settings)
        settings, _ = MEDIA[medium].settled(settings, files_there)
    sample = read_picture(config.image, medium, settings)
    image_name = files.show(config.image)
    yield from (Notice(f"{image_name}: {text}", warning=True) for text in sample.remarks)
    values = np.array(sample.values)
    if space is None:
        space = replace(MEDIA[medium].space(values[None]), layout=sample.layout, rate=settings.rate)
        if space.levels is None:
            name = Path(config.image).name
            space = measure_space(space, values[None], np.zeros(1, np.int64), [name])
        space = limit_levels(space, values[None])
    return values, space


def _read_own_image(config: DemoConfig, panels: int) -> Work[tuple[media.Array, Space]]:
    """Return an image at the requested size, or its own up to a limit, in 8 bits."""
    from diffuse_cli.media.image.decoding import read_image
    from diffuse_cli.media.image.planes import fit_image, to_pixels
    from diffuse_cli.sampling.input_pictures import rgb

    background = config.background or WHITE
    picture, remarks = read_image(config.image, background)
    yield from (Notice(f"{files.show(config.image)}: {text}", warning=True) for text in remarks)
    if config.size:
        picture = fit_image(picture, config.size, config.fit or "crop", rgb(background))
    else:
        size, side = picture.size[::-1], min(OWN_SIDE, math.isqrt(PIXELS // panels))
        picture = figures.shrink_image(picture, side)
        if (sides := picture.size[::-1]) != size:
            more = tuple(min(2 * side, limit) for side, limit in zip(sides, size, strict=True))
            text = f"{files.show(config.image)} is {dimensions(size)}: shown at {dimensions(sides)}"
            yield Notice(f"{text}; pass --size {'x'.join(map(str, more))} for more detail")
    values = to_pixels(picture)
    return values, MEDIA["image"].space(values[None])


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
        style = {
            **CURVE,
            "color": figures.color(i),
            "linestyle": DASHES[i // len(figures.COLORS) % 3],
        }
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
    note: dict[str, Any] = {"fontsize": 7.5, "color": figures.FAINT, "textcoords": "offset points"}
    axes.annotate("signal = noise", (1, 0), (-3, 3), ha="right", va="bottom", **note)
    axes.annotate("pure noise", (0, PURE_NOISE), (4, -3), va="top", **note)
    if values.mask.any():
        axes.annotate("−∞", (1, low), (-9, 2), ha="right", va="bottom", **{**note, "fontsize": 9})
    return lines


def variances(axes: Axes, processes: Mapping[str, Process], times: list[int]) -> None:
    """alpha-bar over time, with 1 - alpha-bar on the right scale."""
    title = r"variance of signal $\bar\alpha_t$ (left) and noise $1-\bar\alpha_t$ (right)"
    _plot(axes, processes, title, times, lambda a: a)
    axes.set_ylim(0, 1)
    right = axes.secondary_yaxis("right", functions=(partial(np.subtract, 1),) * 2)
    right.tick_params(length=0, labelsize=8, labelcolor=figures.FAINT, pad=6)
    right.spines["right"].set(color="#9a9a9a", linewidth=0.7)
