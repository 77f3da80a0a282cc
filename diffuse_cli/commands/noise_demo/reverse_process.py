"""What a model makes of a noised image, and how it draws one: `noise-demo --model`.

Two ways through the same timesteps. Forward: x_t of the image, and E[x_0 | x_t] as the model has
it. In reverse: x_t of an image drawn by `ddpm`, from the same noise, and the same estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffuse_cli.commands.noise_demo.demo_condition import Told, told
from diffuse_cli.config import DemoConfig
from diffuse_cli.core.samplers import SAMPLERS
from diffuse_cli.evaluation.examples import search
from diffuse_cli.media import looks
from diffuse_cli.models.blueprint import kept_in_range
from diffuse_cli.sampling.generation import Loaded, stored
from diffuse_cli.sampling.tasks.task_inputs import check_class
from diffuse_cli.system import files
from diffuse_cli.system.errors import UsageError, lookup
from diffuse_cli.system.events import Progress, Work
from diffuse_cli.system.rng import image_noise

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from diffuse_cli.core import Process, Space
    from diffuse_cli.core.denoiser import Denoise

    Array = npt.NDArray[Any]

STEPS, BATCH = 100, 25
"""Timesteps that are computed, of which the page shows some; and images evaluated at a time."""


@dataclass(frozen=True)
class Way:
    """One way through the timesteps: stored numbers (C, H, W) by timestep.

    Attributes:
        x: x_t.
        x0: what the model expects x_0 to be.
    """

    x: Mapping[int, Array]
    x0: Mapping[int, Array]


@dataclass(frozen=True)
class Near:
    """The image of DATA that is nearest to each estimate, by timestep, and its distance."""

    images: Mapping[int, Array]
    distances: Mapping[int, float]


@dataclass(frozen=True)
class Journey:
    """What is shown. Distances are root mean squared differences, in `unit`.

    Attributes:
        told: what the model is told on both ways, if it is given anything.
    """

    title: str
    image: Array
    process: Process
    forward: Way
    reverse: Way
    space: Space
    told: Told | None = None
    forward_near: Near | None = None
    reverse_near: Near | None = None

    @property
    def times(self) -> list[int]:
        """The timesteps, rising."""
        return list(self.forward.x)

    @property
    def num_timesteps(self) -> int:
        """T, as a `Scene` says it."""
        return self.process.num_timesteps

    @property
    def processes(self) -> dict[str, Process]:
        """The process, as a `Scene` says it."""
        return {"": self.process}

    def missed(self, t: int) -> float:
        """How far the estimate from the image's x_t is from the image."""
        return distance(*map(self.numbers, (self.forward.x0[t], self.image)))

    @property
    def unit(self) -> str:
        """Of distances: levels, or a channel's deviation."""
        return "deviations" if self.space.levels is None else "levels"

    def said(self, away: float) -> str:
        """A distance in few digits."""
        return f"{away:.2f}" if self.space.levels is None else f"{away:.0f}"

    def numbers(self, stored: Array) -> Array:
        """Stored numbers (..., C, *size) as they are compared: floats as the model sees them."""
        if self.space.levels is not None:
            return stored
        seen: Array = self.space.to_model(torch.from_numpy(np.ascontiguousarray(stored))).numpy()
        return seen

    def look(self, stored: Array) -> Array:
        """A stored sample as a picture, uint8 (1 or 3, H, W)."""
        seen: Array = looks(self.space, stored[None])[0]
        return seen


def distance(a: Array, b: Array) -> float:
    """The root mean squared difference."""
    return math.sqrt(float(((a.astype(float) - b) ** 2).mean()))


def travel(
    config: DemoConfig, values: Array, loaded: Loaded, device: torch.device
) -> Work[Journey]:
    """Both ways of a sample of the model's space, as stored.

    Raises:
        UsageError: the model has no such class, or no classes; --given is missing, or of no use.
        DataError: --given cannot be read.
    """
    process, space = loaded.denoiser.process, loaded.space
    last = process.num_timesteps - 1
    count = min(STEPS, last + 1)
    times = sorted({round(i * last / (count - 1)) for i in range(count)})
    x0 = space.to_model(torch.tensor(values[None], device=device))
    given = yield from told(config, values, loaded, device)
    denoise = kept_in_range(_telling(loaded, config.label, given, device), loaded.denoiser)
    noise = partial(image_noise, config.seed, [0], shape=space.shape, device=device)
    forward = yield from _forward(denoise, process, x0, noise(-1), times, loaded)
    reverse = yield from _reverse(denoise, process, noise, times, loaded)
    names = (files.show(Path(path).name) for path in (config.image, config.model or ""))
    title = f"{' and '.join(names)},  T = {last + 1}"
    return Journey(title, values, process, forward, reverse, space, given)


def _telling(
    loaded: Loaded, label: str | None, given: Told | None, device: torch.device
) -> Denoise:
    """The model, told a class, or none if it has classes, and what it is given."""
    conditions = loaded.model.blueprint.conditions
    names = {name: i for i, name in enumerate(conditions.classes)}
    if label is not None and not names:
        raise UsageError(
            "--class: the model was trained without classes", "Train one with --classes"
        )
    index = -1 if label is None else lookup(names, label, "--class")
    check_class(loaded, labelled=label is not None, told=given is not None)

    def denoise(x_t: Tensor, t: Any, /, **cond: Any) -> Any:
        labels = torch.full((len(x_t),), index, device=device)
        own = given.given.expand(len(x_t), *given.given.shape[1:]) if given else None
        return loaded.denoiser(x_t, t, **conditions.told(labels, own))

    return denoise


def _forward(
    denoise: Denoise,
    process: Process,
    x0: Tensor,
    noise: Tensor,
    times: Sequence[int],
    loaded: Loaded,
) -> Work[Way]:
    xs: dict[int, Array] = {}
    x0s: dict[int, Array] = {}
    for start in range(0, len(times), BATCH):
        part = list(times[start : start + BATCH])
        t = torch.tensor(part, device=x0.device)
        x_t = process.diffuse(x0.expand(len(part), *x0.shape[1:]), t, noise)
        xs |= zip(part, stored(loaded.space, x_t), strict=True)
        x0s |= zip(part, stored(loaded.space, denoise(x_t, t).x0), strict=True)
        yield Progress("predicting", len(xs), len(times))
    return Way(xs, x0s)


def _reverse(
    denoise: Denoise, process: Process, noise: Any, times: Sequence[int], loaded: Loaded
) -> Work[Way]:
    falling = [*reversed(times)]
    x = noise(-1)
    xs, x0s = {falling[0]: stored(loaded.space, x)[0]}, {}
    states = SAMPLERS["ddpm"](denoise, process, x, falling, noise=noise)
    for t, state in zip(falling, states, strict=True):
        x0s[t] = stored(loaded.space, state.x0)[0]
        if state.t >= 0:
            xs[int(state.t)] = stored(loaded.space, state.x)[0]
        yield Progress("drawing", len(x0s), len(times))
    return Way(dict(sorted(xs.items())), dict(sorted(x0s.items())))


def nearest(journey: Journey, data: Array) -> Work[tuple[Near, Near]]:
    """The nearest of some images to the estimates on both ways."""
    ways = journey.forward, journey.reverse
    queries = np.stack([way.x0[t] for way in ways for t in journey.times])
    found = yield from search(queries, queries[:0], data, np.arange(len(data)), see=journey.numbers)
    count, near = len(journey.times), []
    for k in range(len(ways)):
        part = slice(k * count, (k + 1) * count)
        near.append(
            Near(
                dict(zip(journey.times, data[found.places[part]], strict=True)),
                dict(zip(journey.times, map(float, found.samples[part]), strict=True)),
            )
        )
    return near[0], near[1]
