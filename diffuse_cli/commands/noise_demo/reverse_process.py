"""Estimates of a model from a noised image, and its sampling path: `noise-demo --model`.

Two ways through the same timesteps. Forward: x_t of the image, and E[x_0 | x_t] as the model has
it. In reverse: x_t of an image drawn by `ddpm`, from the same noise, and the same estimate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffuse_cli import media
from diffuse_cli.commands.noise_demo import demo_page, forward_process
from diffuse_cli.config.task_options import DemoConfig
from diffuse_cli.core import SAMPLERS
from diffuse_cli.core.guidance import clamp_denoised
from diffuse_cli.data import read_images
from diffuse_cli.media import MEDIA, Array, figures
from diffuse_cli.media.image.decoding import read_image
from diffuse_cli.metrics import nearest_neighbors
from diffuse_cli.sampling.conditioning import check_request, find_labels
from diffuse_cli.sampling.generation import to_stored
from diffuse_cli.sampling.input_pictures import check_transform
from diffuse_cli.sampling.model_loading import LoadedModel, load_denoiser
from diffuse_cli.system import Progress, UsageError, Work, files
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.system.rng import image_noise

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image
    from torch import Tensor

    from diffuse_cli.core import Denoise, Process, Space


STEPS, BATCH = 100, 25
"""Timesteps that are computed, of which the page shows some, and images evaluated at a time."""


FORMULA = (
    r"forward: the {one} with noise $\varepsilon$;   reverse, from right to left: what is drawn "
    r"from the same $\varepsilon$;   expected: $E[x_0|x_t]$ by the model"
)
GIVEN = ", conditioned on the image"

BLUE, RED, GREEN = (figures.color(i) for i in range(3))

WIDTH, HEAD = 1.6, 0.7
NAMES = ("forward", "expected", "reverse", "expected")


@dataclass(frozen=True)
class DemoCondition:
    """Conditioning input of a model for an image.

    Attributes:
        what: `pairs`, or the degradation that made it of the image.
        given: the keyword of the denoiser, (1, C', *size).
        picture: a picture of it, uint8 (1 or 3, H, W).
    """

    what: str
    given: Tensor
    picture: Array


def read_condition(
    config: DemoConfig, image: Array, loaded: LoadedModel, device: torch.device
) -> Work[DemoCondition | None]:
    """Return the conditioning image (C, H, W); None for an unconditional model.

    Its degradation is made of the image. The other half of a pair is --given.

    Raises:
        UsageError: --given is missing, or has no use.
        DataError: it cannot be read.
    """
    encoder = loaded.encoder
    if encoder is None:
        if config.given is not None:
            text = "--given: the model was trained without"
            raise UsageError(text, "Leave it out", code="option_unsuited")
        return None
    if encoder.degradation is not None:
        if config.given is not None:
            raise UsageError(
                f"--given: the model is conditioned on {encoder.given.what} of the "
                f"{MEDIA[loaded.space.medium].one}",
                "Leave it out",
                code="option_unsuited",
            )
        inputs = encoder.degraded_inputs(image[None], config.seed, "given")
    else:
        if config.given is None:
            text = "the model was trained on pairs"
            hint = "Pass --given FILE, the conditioning image"
            raise UsageError(text, hint, code="missing_argument", option="--given")
        pair_config = replace(config, image=config.given)
        pair, _ = yield from forward_process.read_sample(pair_config, encoder.input_space)
        stored = encoder.match_labels(pair[None], config.given)
        inputs = encoder.stored_inputs(stored)
    given = inputs.encode([0], device)
    return DemoCondition(encoder.given.what, given, encoder.look(given)[0])


@dataclass(frozen=True)
class DemoTrajectory:
    """One way through the timesteps: stored numbers (C, H, W) by timestep.

    Attributes:
        x: x_t.
        x0: the model's estimate of x_0.
        nearest: the image of DATA that is nearest to the estimate. Empty without DATA.
        distances: the distance of that image from the estimate.
    """

    x: Mapping[int, Array]
    x0: Mapping[int, Array]
    nearest: Mapping[int, Array] = field(default_factory=dict)
    distances: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Trajectories:
    """Contents of the demonstration. Distances are root mean squared differences, in levels or,
    without them, in a channel's standard deviations.

    Attributes:
        condition: conditioning image on both paths, if any.
    """

    title: str
    image: Array
    process: Process
    forward: DemoTrajectory
    reverse: DemoTrajectory
    space: Space
    condition: DemoCondition | None = None

    @property
    def timesteps(self) -> list[int]:
        """The timesteps, rising."""
        return list(self.forward.x)

    def measure_distance(self, t: int) -> float:
        """Distance of the estimate from the image's x_t to the image."""
        a, b = (
            nearest_neighbors.to_comparable(self.space, sample)
            for sample in (self.forward.x0[t], self.image)
        )
        return math.sqrt(float(((a.astype(float) - b) ** 2).mean()))

    def format_distance(self, away: float) -> str:
        """Return a distance in few digits."""
        return f"{away:.2f}" if self.space.levels is None else f"{away:.0f}"

    def look(self, stored: Array) -> Array:
        """Return a stored sample as a picture, uint8 (1 or 3, H, W)."""
        picture: Array = media.render_samples(self.space, stored[None])[0]
        return picture

    def draw(self, steps: int) -> Image.Image:
        """Draw the page, with at most `steps` pictures in a row."""
        times, given = demo_page.spread_evenly(self.timesteps, steps), self.condition

        def look(samples: Mapping[int, Array]) -> dict[int, Array]:
            return {t: self.look(samples[t]) for t in times}

        levels = forward_process.format_levels(self.process, times)
        errors = {t: f"off by {self.format_distance(self.measure_distance(t))}" for t in times}
        rows = [
            demo_page.Row("forward", BLUE, look(self.forward.x), levels),
            demo_page.Row("expected", BLUE, look(self.forward.x0), errors),
            demo_page.Row("reverse", RED, look(self.reverse.x)),
            demo_page.Row("expected", RED, look(self.reverse.x0)),
        ]
        one = MEDIA[self.space.medium].one
        legend = [(f"from the {one}", BLUE)]
        if given is not None:
            first, what = {times[0]: given.picture}, {times[0]: given.what}
            rows.append(demo_page.Row("given", figures.FAINT, first, what))
        if self.reverse.nearest:
            distances = self.reverse.distances
            away = {t: f"{self.format_distance(distances[t])} away" for t in times}
            rows.append(demo_page.Row("nearest", GREEN, look(self.reverse.nearest), away))
            legend += [(f"from the nearest {one} of DATA", GREEN), ("the same in reverse", RED)]
        plots: list[Callable[[Axes], object]] = [
            partial(_distances, journey=self),
            partial(forward_process.log_snr, processes={"": self.process}, times=times),
        ]
        formula = FORMULA.replace("{one}", one) + (GIVEN if given else "")
        return demo_page.draw(self.title, formula, rows, times, legend, plots)

    def animate(self) -> Work[bytes]:
        """Animate both ways and the expected samples on them, from t = T - 1 to 0."""
        zoom, w, h = demo_page.choose_zoom(self.look(self.image), WIDTH)
        pitch = max(w, 0.9) + demo_page.FRAME_GAP
        width = len(NAMES) * pitch
        sheet = figures.Sheet(
            width + demo_page.FRAME_GAP, HEAD + h + demo_page.FRAME_GAP, demo_page.FRAME_DPI
        )
        label = sheet.text(width / 2, 0.26, "", ha="center", fontsize=11)
        lefts = [
            demo_page.FRAME_GAP + i * pitch + (pitch - demo_page.FRAME_GAP - w) / 2
            for i in range(len(NAMES))
        ]
        for name, x_left, color in zip(NAMES, lefts, (BLUE, BLUE, RED, RED), strict=True):
            sheet.text(x_left + w / 2, HEAD - 0.08, name, ha="center", fontsize=9, color=color)
        sides = [side for way in (self.forward, self.reverse) for side in (way.x, way.x0)]

        def pictures(t: int) -> Iterator[tuple[float, float, figures.Pixels]]:
            for x_left, side in zip(lefts, sides, strict=True):
                yield x_left, HEAD, self.look(side[t])

        times, total = self.timesteps[::-1], self.process.num_timesteps
        return (yield from demo_page.animate(sheet, label, times, total, zoom, pictures))


def prepare(config: DemoConfig) -> Work[Trajectories]:
    """Return the process of a model, at its own size, and the model's estimates on both ways.

    Raises:
        UsageError: the model has no such class, or no classes; --given is missing, or of no use.
        DataError: the image, --given or --data cannot be read.
    """
    assert config.model is not None
    names = [files.show(Path(path).name) for path in (config.image, config.model)]
    if forward_process.medium_of(config.image) == "image":
        read_image(config.image)  # one that cannot be read is refused before the model is read
    with open_accelerator("fp32") as accelerator:
        loaded = yield from load_denoiser(config.model, config.weights, accelerator)
        if loaded.model.distilled is not None:
            text = f"--model {files.show(config.model)}: distilled models do not predict E[x_0|x_t]"
            hint = "Pass the model that was distilled"
            raise UsageError(text, hint, code="option_unsuited", path=config.model)
        device, space, fit = accelerator.device, loaded.space, config.fit or loaded.fit
        config = replace(config, background=config.background or loaded.background, fit=fit)
        values, _ = yield from forward_process.read_sample(config, space)
        images = None
        if config.data is not None:
            images = yield from read_images(
                config.data,
                **media.settings_for(space),
                background=str(config.background),
                fit=fit,
                medium=space.medium,
            )
        process = loaded.denoiser.process
        total = process.num_timesteps
        times = demo_page.spread_evenly(range(total), STEPS)
        x0 = space.to_model(torch.tensor(values[None], device=device))
        check_transform(x0, space, [config.image])
        given = yield from read_condition(config, values, loaded, device)
        denoise = clamp_denoised(
            _bind_condition(loaded, config.label, given, device), loaded.denoiser
        )
        noise = partial(image_noise, config.seed, [0], shape=space.shape, device=device)
        forward = yield from _forward(denoise, x0, noise(-1), times, loaded)
        reverse = yield from _reverse(denoise, noise, times, loaded)
        if images is not None:
            forward, reverse = yield from _find_nearest(space, images.stored, forward, reverse)
    title = f"{' and '.join(names)},  T = {total}"
    return Trajectories(title, values, process, forward, reverse, space, given)


def _bind_condition(
    loaded: LoadedModel,
    label: str | None,
    given: DemoCondition | None,
    device: torch.device,
) -> Denoise:
    """Return the denoiser, conditioned on a class or none and on a conditioning image."""
    conditions = loaded.model.blueprint.conditions
    labels = find_labels(conditions, () if label is None else (label,))
    check_request(loaded.model, labels, None, given is not None)
    index = labels[0] if labels else -1

    def denoise(x_t: Tensor, t: Any, /, **cond: Any) -> Any:
        indices = torch.full((len(x_t),), index, device=device)
        inputs = given.given.expand(len(x_t), *given.given.shape[1:]) if given else None
        return loaded.denoiser(x_t, t, **conditions.make_keywords(indices, inputs))

    return denoise


def _forward(
    denoise: Denoise,
    x0: Tensor,
    noise: Tensor,
    times: Sequence[int],
    loaded: LoadedModel,
) -> Work[DemoTrajectory]:
    xs: dict[int, Array] = {}
    x0s: dict[int, Array] = {}
    for start in range(0, len(times), BATCH):
        part = list(times[start : start + BATCH])
        t = torch.tensor(part, device=x0.device)
        x_t = loaded.denoiser.process.diffuse(x0.expand(len(part), *x0.shape[1:]), t, noise)
        xs |= zip(part, to_stored(loaded.space, x_t), strict=True)
        x0s |= zip(part, to_stored(loaded.space, denoise(x_t, t).x0), strict=True)
        yield Progress("predicting", len(xs), len(times))
    return DemoTrajectory(xs, x0s)


def _reverse(
    denoise: Denoise, noise: Any, times: Sequence[int], loaded: LoadedModel
) -> Work[DemoTrajectory]:
    falling = [*reversed(times)]
    x = noise(-1)
    xs, x0s = {falling[0]: to_stored(loaded.space, x)[0]}, {}
    states = SAMPLERS["ddpm"](denoise, loaded.denoiser.process, x, falling, noise=noise)
    for t, state in zip(falling, states, strict=True):
        x0s[t] = to_stored(loaded.space, state.x0)[0]
        if state.t >= 0:
            xs[int(state.t)] = to_stored(loaded.space, state.x)[0]
        yield Progress("drawing", len(x0s), len(times))
    return DemoTrajectory(dict(sorted(xs.items())), dict(sorted(x0s.items())))


def _find_nearest(
    space: Space, data: Array, *ways: DemoTrajectory
) -> Work[tuple[DemoTrajectory, ...]]:
    """Return the ways with the nearest of some images to each estimate."""
    queries = np.stack([x0 for way in ways for x0 in way.x0.values()])
    see = partial(nearest_neighbors.to_comparable, space)
    hits = yield from nearest_neighbors.find_nearest(
        queries, queries[:0], data, np.arange(len(data)), see=see
    )
    parts = zip(
        ways, np.split(hits.places, len(ways)), np.split(hits.samples, len(ways)), strict=True
    )
    return tuple(
        replace(
            way,
            nearest=dict(zip(way.x0, data[places], strict=True)),
            distances=dict(zip(way.x0, away, strict=True)),
        )
        for way, places, away in parts
    )


def _distances(axes: Axes, journey: Trajectories) -> None:
    """Distance of the expected x_0 from the image, and from its nearest of DATA, over t / T."""
    times, total = journey.timesteps, journey.process.num_timesteps
    unit = "deviations" if journey.space.levels is None else "levels"
    forward_process.set_time_axis(
        axes, f"expected $x_0$: how far away it is, in {unit} (root mean square)"
    )
    x = [t / total for t in times]
    style: dict[str, Any] = {"linewidth": 1.8, "clip_on": False, "zorder": 3}
    missed = [journey.measure_distance(t) for t in times]
    axes.plot(x, missed, color=BLUE, **style)
    for way, color in ((journey.forward, GREEN), (journey.reverse, RED)):
        if way.distances:
            axes.plot(x, [way.distances[t] for t in times], color=color, **style)
    axes.set_ylim(bottom=0)
