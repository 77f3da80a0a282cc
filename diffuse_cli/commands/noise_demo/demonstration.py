"""`diffuse noise-demo`: the forward process of one image, as a picture for a lecture.

Options are checked before anything heavy is imported.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli.commands.noise_demo.forward_process import FRAME_COLUMNS, PURE_NOISE, Scene
from diffuse_cli.config.noise_demo_options import DemoConfig, ForwardConfig, ReverseConfig
from diffuse_cli.config.options import find_changed_flag
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.core import Space, dimensions
from diffuse_cli.media import MEDIA, Array, ReadSettings, figures, media_by_extension, settings_for
from diffuse_cli.system import (
    Notice,
    Progress,
    UsageError,
    Work,
    files,
    lookup,
    outputs,
    translate_errors,
)

if TYPE_CHECKING:
    from diffuse_cli.commands.noise_demo.reverse_process import Trajectories
    from diffuse_cli.core import Process


LARGEST_SIDE = 512


def demonstrate(config: DemoConfig) -> Work[tuple[Path, ...]]:
    """Draw the picture, and what else is asked for. Returns the paths written.

    Raises:
        UsageError: an unknown schedule, betas that are not a process, a size too large to draw, or
            an output that is not .png.
        OutputError: an output exists or cannot be written.
        DataError: the image is missing or cannot be read.
    """
    with contextlib.ExitStack() as stack:
        paths = _outputs(config, stack)
        scene, small = yield from (_prepare_schedules if config.model is None else _prepare_model)(
            config
        )
        yield Progress("drawing", 0, 1)
        contents = [figures.encode_png(scene.draw(config.steps))]
        yield Progress("drawing", 1, 1)
        if config.gif:
            contents.append((yield from small.animate()))
        for path, content in zip(paths, contents, strict=True):
            files.write_bytes(path, content)
    return paths


def _prepare_schedules(config: DemoConfig) -> Work[tuple[Scene, Scene]]:
    """Return the processes of some schedules, at the sample's size and small enough to be
    animated."""
    rows = choose_processes(config)

    from diffuse_cli.models.blueprint import make_process

    processes = {name: make_process(row) for name, row in rows.items()}
    sample = yield from read_sample(config, panels=len(rows) * config.steps)
    scene = _scene(config, sample, processes)
    yield from _warn_of_signal(scene)
    if not config.gif:
        return scene, scene
    small = sample.shrink(100 if len(processes) <= FRAME_COLUMNS else 64)
    return scene, _scene(config, small, processes)


def _prepare_model(config: DemoConfig) -> Work[tuple[Trajectories, Trajectories]]:
    """Return the process of a model, at its own size, and the model's estimates."""
    from diffuse_cli.commands.noise_demo import reverse_process
    from diffuse_cli.data import read_images
    from diffuse_cli.media.image.decoding import read_image
    from diffuse_cli.sampling.generation import load_denoiser
    from diffuse_cli.system.accelerator import open_accelerator

    assert config.model is not None
    if medium_of(config.image) == "image":
        read_image(config.image)  # one that cannot be read is refused before the model is read
    with open_accelerator("fp32") as accelerator:
        loaded = yield from load_denoiser(config.model, config.weights, accelerator)
        space, fit = loaded.space, config.fit or loaded.fit
        config = replace(config, background=config.background or loaded.background)
        sample = yield from read_sample(config, space, fit)
        journey = yield from reverse_process.compute_trajectories(
            config, sample.values, loaded, accelerator.device
        )
        if config.data is not None:
            images = yield from read_images(
                config.data,
                **settings_for(space),
                background=str(config.background),
                fit=fit,
                medium=space.medium,
            )
            forward, reverse = yield from reverse_process.nearest(journey, images.stored)
            journey = replace(journey, forward_near=forward, reverse_near=reverse)
    return journey, journey


def choose_processes(config: DemoConfig) -> dict[str, DiffusionConfig]:
    """Return the processes to show by name: schedules, and a file of betas."""
    from diffuse_cli.core import SCHEDULES

    names = tuple(SCHEDULES) if config.schedule is None else config.schedule
    if not names:
        raise UsageError("--schedule must name at least one")
    for name in names:
        lookup(SCHEDULES, name, "--schedule")
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


def _outputs(config: DemoConfig, stack: contextlib.ExitStack) -> tuple[Path, ...]:
    """Return the paths to write, claimed until the stack ends. Checks them and `--size`."""
    image = Path(config.image)
    out = Path(config.out) if config.out is not None else Path(f"{image.stem}.noise-demo.png")
    outputs.check_suffix(out, ".png")
    medium = MEDIA[medium_of(config.image)]
    if config.layout and config.layout not in medium.layouts:
        raise UsageError(f"--layout is for arrays, and {files.show(image)} is none", "Leave it out")
    named = {".png": out} | ({".gif": out.with_suffix(".gif")} if config.gif else {})
    paths = [
        stack.enter_context(outputs.claim_output(path, end, config.overwrite, read=config.image))
        for end, path in named.items()
    ]
    with translate_errors():
        size = medium.resolve_size(config.size)
    if size is not None and len(size) > 1 and max(size) > LARGEST_SIDE:
        raise UsageError(f"--size must be at most {LARGEST_SIDE} a side, not {max(size)}")
    if config.model is not None and (flag := find_changed_flag(config, ForwardConfig)):
        raise UsageError(f"{flag}: a model has its own", "Leave out --model, or this")
    if config.model is None and (flag := find_changed_flag(config, ReverseConfig)):
        raise UsageError(f"{flag} goes with --model", "Give both, or neither")
    if config.fit is not None and config.size is None and config.model is None:
        raise UsageError("--fit goes with --size or --model", "Give both, or neither")
    return tuple(paths)


def _scene(config: DemoConfig, sample: DemoSample, processes: Mapping[str, Process]) -> Scene:
    import torch

    from diffuse_cli.system.rng import draw_noise

    space = sample.space
    noise = draw_noise(config.seed, "noise-demo", shape=space.shape)
    total = next(iter(processes.values())).num_timesteps
    rescaled = f",  log-SNR shifted by {config.log_snr_shift:+g}" if config.log_snr_shift else ""
    rescaled += ",  zero terminal SNR" if config.zero_terminal_snr else ""
    name = _shorten_name(Path(config.image).name, 42)
    title = f"Forward process of {name},  T = {total}{rescaled}"
    x0 = space.to_model(torch.tensor(sample.values[None]))[0]
    return Scene(title, x0, noise, space, processes)


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


# -- subjects -------------------------------------------------------------------------------------

# The sample that `noise-demo` begins with.

WHITE = "white"
"""The background where none is asked for."""

OWN_SIDE, PIXELS = 256, 1_000_000
"""Largest side of an image, and most pixels of all panels, without --size. Noise does not compress:
a million of its pixels take about 3 MB."""


@dataclass(frozen=True, eq=False)
class DemoSample:
    """A sample as stored, (C, *size), and its space."""

    values: Array
    space: Space

    def shrink(self, side: int) -> DemoSample:
        """Return an image scaled down to a largest side. Anything else as it is."""
        from diffuse_cli.media.image.planes import to_pixels

        if self.space.medium != "image":
            return self
        values = to_pixels(figures.shrink_image(figures.to_image(self.values), side))
        return replace(self, values=values, space=replace(self.space, size=values.shape[1:]))


def medium_of(path: str) -> str:
    """Return the medium of a file by its extension, or by its bytes if another medium claims it."""
    file = Path(path)
    extension = file.suffix.lower()
    with contextlib.suppress(OSError):  # the reader reports why
        for name, kind in MEDIA.items():
            if extension in kind.claimed and file.is_file() and kind.claims(file.read_bytes()):
                return name
    return media_by_extension().get(extension, "image")


def read_sample(
    config: DemoConfig, space: Space | None = None, fit: str | None = None, panels: int = 1
) -> Work[DemoSample]:
    """Return the sample, at the size and of the numbers of a model, or its own.

    Args:
        panels: the number of panels that show an image, if it keeps its size.

    Raises:
        DataError: it is missing or cannot be read.
        UsageError: a size of another number of sides.
    """
    medium = space.medium if space else medium_of(config.image)
    with translate_errors():
        size = MEDIA[medium].resolve_size(config.size)
    if medium == "image" and space is None:
        return (yield from _read_own_image(config, panels))
    from diffuse_cli.data.samples import limit_levels, measure_space
    from diffuse_cli.sampling.tasks.task_inputs import read_picture, rgb

    MEDIA[medium].prepare()
    fields: Mapping[str, Any] = {"size": size, "layout": config.layout}
    fields = settings_for(space) if space else fields
    settings = ReadSettings(**fields, fit=fit or "crop", background=rgb(config.background or WHITE))
    path = Path(config.image)
    files_there = (file.read_bytes() for file in [path] if file.is_file())
    with translate_errors():
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
    return DemoSample(values, space)


def _read_own_image(config: DemoConfig, panels: int) -> Work[DemoSample]:
    """Return an image at the requested size, or its own up to a limit, in 8 bits."""
    from diffuse_cli.media import image
    from diffuse_cli.media.image.decoding import read_image
    from diffuse_cli.media.image.planes import fit_image, to_pixels
    from diffuse_cli.sampling.tasks.task_inputs import rgb

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
    return DemoSample(values, image.space(values[None]))
