"""`diffuse noise-demo`: the forward process of one image, as a picture for a lecture.

Options are checked before anything heavy is imported.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.commands.noise_demo import listening, subjects
from diffuse_cli.commands.noise_demo.forward_process import (
    FRAME_COLUMNS,
    PURE_NOISE,
    Scene,
    animate,
    draw,
)
from diffuse_cli.commands.noise_demo.subjects import Subject
from diffuse_cli.config import DemoConfig, DiffusionConfig
from diffuse_cli.config.noise_demo_options import ForwardConfig, ReverseConfig
from diffuse_cli.config.options import first_given
from diffuse_cli.media import MEDIA, checked_size, figures
from diffuse_cli.system import files, outputs
from diffuse_cli.system.errors import UsageError, lookup, translating
from diffuse_cli.system.events import Notice, Progress, Work

if TYPE_CHECKING:
    from diffuse_cli.core import Process

LARGEST_SIDE = 512


def demonstrate(config: DemoConfig) -> Work[tuple[Path, ...]]:
    """Draw the picture, and what else is asked for; returns the paths written.

    Raises:
        UsageError: an unknown schedule, betas that are no process, a size too large to draw, or an
            output that is not .png.
        OutputError: an output exists or cannot be written.
        DataError: the image is missing or cannot be read.
    """
    with contextlib.ExitStack() as stack:
        paths = _outputs(config, stack)
        if config.model is not None:
            contents = yield from _of_model(config)
        else:
            contents = yield from _of_schedules(config)
        for path, content in zip(paths, contents, strict=True):
            files.write_bytes(path, content)
    return paths


def _of_schedules(config: DemoConfig) -> Work[list[bytes]]:
    """The picture, and the page and the animation if they are asked for."""
    rows = settings(config)

    from diffuse_cli.models.blueprint import make_process

    processes = {name: make_process(row) for name, row in rows.items()}
    sample = yield from subjects.read(config)
    scene = _scene(config, sample, processes)
    yield from _warning(scene)
    yield Progress("drawing", 0, 1)
    contents = [figures.png(draw(scene, config.steps))]
    yield Progress("drawing", 1, 1)
    if config.html:
        times = scene.times(config.steps)
        noised = {name: {t: scene.stored(name, t) for t in times} for name in processes}
        contents.append(listening.page(scene.title, noised, times, scene.space))
    if config.gif:
        small = sample.shrunk(100 if len(processes) <= FRAME_COLUMNS else 64)
        contents.append((yield from animate(_scene(config, small, processes))))
    return contents


def _of_model(config: DemoConfig) -> Work[list[bytes]]:
    """The same for a model: its own process, at its own size."""
    from dataclasses import replace

    from diffuse_cli.commands.noise_demo import reverse_process, showing
    from diffuse_cli.data import read_images
    from diffuse_cli.media import like
    from diffuse_cli.sampling.generation import load_denoiser
    from diffuse_cli.system.devices import machine

    assert config.model is not None
    subjects.check_there(config.image)
    with machine("fp32") as accelerator:
        loaded = yield from load_denoiser(config.model, config.weights, accelerator)
        space, fit = loaded.space, config.fit or loaded.fit
        config = replace(config, background=config.background or loaded.background)
        sample = yield from subjects.read(config, space, fit)
        journey = yield from reverse_process.travel(
            config, sample.values, loaded, accelerator.device
        )
        if config.data is not None:
            images = yield from read_images(
                config.data,
                **like(space),
                background=str(config.background),
                fit=fit,
                medium=space.medium,
            )
            forward, reverse = yield from reverse_process.nearest(journey, images.stored)
            journey = replace(journey, forward_near=forward, reverse_near=reverse)
    yield Progress("drawing", 0, 1)
    contents = [figures.png(showing.draw(journey, config.steps))]
    yield Progress("drawing", 1, 1)
    if config.html:
        times = showing.times_of(journey, config.steps)
        contents.append(listening.page(journey.title, showing.heard(journey), times, space))
    if config.gif:
        contents.append((yield from showing.animate(journey)))
    return contents


def settings(config: DemoConfig) -> dict[str, DiffusionConfig]:
    """The processes to show by name: schedules, and a file of betas."""
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
    own = DiffusionConfig(num_timesteps=config.num_timesteps, betas=config.betas, **shared)  # type: ignore[arg-type]
    shared["num_timesteps"] = own.num_timesteps
    rows = {name: DiffusionConfig(schedule=name, **shared) for name in names}
    if config.betas is not None:
        name = _short(Path(config.betas).name, 20)
        rows[name if name not in rows else f"{name} (file)"] = own
    return rows


def _short(name: str, most: int) -> str:
    """The start and end of a file's name, in about `most` characters."""
    name = files.show(name)
    return name if len(name) <= most else f"{name[: most * 2 // 3]} … {name[-most // 3 :]}"


def _outputs(config: DemoConfig, stack: contextlib.ExitStack) -> tuple[Path, ...]:
    """The paths to write, claimed until the stack ends; checks them and `--size`."""
    image = Path(config.image)
    out = Path(config.out) if config.out is not None else Path(f"{image.stem}.noise-demo.png")
    if config.html:
        listening.check(subjects.medium_of(config.image, None), config.image)
    wanted = {".html": config.html, ".gif": config.gif}
    named = {".png": out, **{end: out.with_suffix(end) for end, on in wanted.items() if on}}
    paths = [
        stack.enter_context(outputs.claimed(path, end, config.overwrite, read=config.image))
        for end, path in named.items()
    ]
    with translating():
        size = checked_size(subjects.medium_of(config.image, None), config.size)
    if size is not None and len(size) > 1 and max(size) > LARGEST_SIDE:
        raise UsageError(f"--size must be at most {LARGEST_SIDE} a side, not {max(size)}")
    if config.model is not None and (flag := first_given(config, ForwardConfig)):
        raise UsageError(f"{flag}: a model has its own", "Leave out --model, or this")
    if config.model is None and (flag := first_given(config, ReverseConfig)):
        raise UsageError(f"{flag} goes with --model", "Give both, or neither")
    if config.fit is not None and config.size is None and config.model is None:
        raise UsageError("--fit goes with --size or --model", "Give both, or neither")
    return tuple(paths)


def _scene(config: DemoConfig, sample: Subject, processes: Mapping[str, Process]) -> Scene:
    import torch

    from diffuse_cli.system.rng import draw_noise

    space = sample.space
    noise = draw_noise(config.seed, "noise-demo", shape=space.shape)
    total = next(iter(processes.values())).num_timesteps
    rescaled = f",  log-SNR shifted by {config.log_snr_shift:+g}" if config.log_snr_shift else ""
    rescaled += ",  zero terminal SNR" if config.zero_terminal_snr else ""
    title = f"Forward process of {_short(Path(config.image).name, 42)},  T = {total}{rescaled}"
    x0 = space.to_model(torch.tensor(sample.values[None]))[0]
    return Scene(title, x0, noise, space, processes, total)


def _warning(scene: Scene) -> Iterator[Notice]:
    """Warn of processes whose last step is not pure noise."""
    last = scene.num_timesteps - 1
    kept = [
        f"{name} {math.sqrt(process.alpha_bar(last)):.1%} (log-SNR {process.log_snr(last):.1f})"
        for name, process in scene.processes.items()
        if process.log_snr(last) > PURE_NOISE
    ]
    if kept:
        yield Notice(
            f"with T = {last + 1} part of the {MEDIA[scene.space.medium].ONE} is left in x_{last}: "
            f"{', '.join(kept)}; sampling starts from pure noise, a log-SNR below "
            f"{PURE_NOISE:.0f}: use --zero-terminal-snr, another schedule or more timesteps",
            warning=True,
        )
