"""`tune`: measure samplers, steps and guidance scales of a model, and recommend a setting.

First every sampler with every number of steps at one guidance scale, then other scales with the
best sampler and steps. Every setting draws from the same noise and is measured against the same
real images.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from diffuse_cli import files, modelfile, pictures
from diffuse_cli.config import DrawConfig, EvalConfig, SamplerChoice, TuneConfig
from diffuse_cli.evaluation.cache import cached, computed
from diffuse_cli.evaluation.evaluating import (
    Evaluated,
    describe,
    evaluate,
    find_network,
    load_model,
)
from diffuse_cli.evaluation.generating import draw_share, gathered
from diffuse_cli.evaluation.images import read_sides
from diffuse_cli.evaluation.team import Team
from diffuse_cli.events import Notice, Progress, Work
from diffuse_cli.features import FeatureNetwork
from diffuse_cli.metrics import frechet, kid
from diffuse_cli.options import converted
from diffuse_cli.outputs import asked
from diffuse_cli.resolving import DrawSettings, resolve
from diffuse_cli.runtime import machine_or
from diffuse_cli.sampling import Loaded, draw, looks
from diffuse_cli.sweeps import tradeoff
from diffuse_cli.sweeps.recommending import (
    METRIC,
    Tried,
    Tuned,
    first_settings,
    other_scales,
    recommend,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

Array = npt.NDArray[Any]


def tune(config: TuneConfig, accelerator: Accelerator | None = None) -> Work[Tuned]:
    """Measure settings of a model, and recommend one.

    Yields `Progress` and `Notice`.

    Args:
        accelerator: that of the caller, if it has one.

    Returns:
        The same on every process, of which the first writes.

    Raises:
        DataError, ModelFileError, UsageError: an input cannot be used.
        OutputError: the plot or the model file exists already, or cannot be written.
    """
    out, plot = asked(config, "out", ".safetensors"), asked(config, "plot", ".png")
    with machine_or(accelerator, config.precision) as accelerator:
        loaded = load_model(config, config.weights, accelerator)
        first_scale = config.guidance[0] if config.guidance else None
        drawn = converted(config, DrawConfig, steps=None, guidance=first_scale)
        base = resolve(drawn, loaded.model)
        timesteps = loaded.denoiser.process.num_timesteps
        first = first_settings(config, base.choice.guidance, timesteps)
        scales = other_scales(config, loaded.model, base.choice.guidance)
        yield from _announce(config, first, scales, timesteps)
        network = yield from find_network(config, accelerator)
        sides = yield from read_sides(config, loaded)
        sides.check()
        team = Team.of(accelerator)
        shown = looks(sides.space, sides.real.samples)
        real = np.asarray((yield from cached(network, shown, team, tell=True)), np.float64)
        measure = _Measure(config.n, loaded, base, network, real, team)
        measure.warm_up()
        total = len(first) + len(scales)
        rows: list[Tried] = []
        for setting in first:
            rows.append((yield from _counted(measure(setting), setting, len(rows), total)))
        found = recommend(rows)
        for scale in scales:
            setting = replace(found, guidance=scale)
            rows.append((yield from _counted(measure(setting), setting, len(rows), total)))
        yield Progress("tuning", total, total)
        tuned = Tuned(
            rows=tuple(rows),
            recommended=recommend(rows),
            metric=METRIC,
            n=config.n,
            real=len(sides.real),
            part=sides.part,
            features=network.described(),
            settings=_common(config, base, loaded),
            device=_name(accelerator.device),
            out=out,
            plot=plot,
        )
        if not accelerator.is_main_process:
            return tuned
    if plot:
        picture = tradeoff.plot(tuned, files.show(Path(config.subject).name))
        files.write_bytes(plot, pictures.png(picture))
    if out:
        modelfile.save(out, replace(loaded.model, sampling=tuned.recommended))
    return tuned


def tune_and_evaluate(
    config: TuneConfig,
) -> Work[tuple[Tuned, EvalConfig, Evaluated] | None]:
    """`tune`, then evaluate the setting that it recommends, for `--report`; raises what they do.

    Returns:
        What was tried, the evaluation and its result, or None on every process but the first.
    """
    asked(config, "report", ".html")
    with machine_or(None, config.precision) as accelerator:
        tuned = yield from tune(config, accelerator)
        chosen = evaluation_of(config, tuned.recommended)
        found = yield from evaluate(chosen, accelerator)
    return (tuned, chosen, found) if found else None


def evaluation_of(config: TuneConfig, setting: SamplerChoice) -> EvalConfig:
    """The evaluation of one setting, without a plot."""
    return converted(
        config,
        EvalConfig,
        sampler=setting.sampler,
        steps=setting.steps,
        guidance=setting.guidance,
        plot=None,
    )


def _announce(
    config: TuneConfig, first: Sequence[SamplerChoice], scales: Sequence[float], timesteps: int
) -> Work[None]:
    """Say how much work there is, and what is left out."""
    steps = dict.fromkeys(setting.steps for setting in first)
    left_out = [n for n in dict.fromkeys(config.steps) if n not in steps]
    if left_out:
        listed = ", ".join(map(str, left_out))
        yield Notice(f"left out, as the model has {timesteps} timesteps: {listed} steps")
    guidance = first[0].guidance
    under = "" if guidance is None else f" at guidance {guidance:g}"
    more = f", and {len(scales)} more guidance scales" if scales else ""
    count = len(first) + len(scales)
    yield Notice(
        f"tune: {count} settings of {config.n:,} images, {count * config.n:,} in all: "
        f"{len(first) // len(steps)} samplers at {', '.join(map(str, steps))} steps{under}{more}"
    )


def _common(config: TuneConfig, base: DrawSettings, loaded: Loaded) -> dict[str, Any]:
    """The options that all settings have in common."""
    varied = ("sampler", "steps", "guidance")
    described = describe(config, base, loaded.sha256)
    return {name: value for name, value in described.items() if name not in varied}


def _name(device: torch.device) -> str:
    """The device's own name: seconds depend on it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


# -- what it gives --------------------------------------------------------------------------------


@dataclass
class _Counter:
    """A network that counts the images it sees."""

    net: Callable[..., torch.Tensor]
    images: int = 0

    def __call__(self, x: torch.Tensor, t: torch.Tensor, **cond: Any) -> torch.Tensor:
        self.images += len(x)
        return self.net(x, t, **cond)


@dataclass(frozen=True)
class _Measure:
    """Measures settings of a model by n images against the same real ones, float64 features."""

    n: int
    loaded: Loaded
    base: DrawSettings
    network: FeatureNetwork
    real: Array
    team: Team

    def __call__(self, setting: SamplerChoice) -> Work[Tried]:
        counter = _Counter(self.loaded.denoiser.net)
        began = time.perf_counter()
        mine = yield from draw_share(
            self._settings(setting),
            self.loaded.model.blueprint.denoiser(counter),
            self.n,
            space=self.loaded.space,
            device=self.network.device,
            team=self.team,
        )
        parts = self.team.gather((counter.images, time.perf_counter() - began))
        pixels = gathered(mine, self.n, self.team)
        fake = np.asarray(
            (yield from computed(self.network, looks(self.loaded.space, pixels), self.team)),
            np.float64,
        )
        values = self._compare(fake) if self.team.index == 0 else {}
        return Tried(
            setting,
            self.team.from_first(values),
            seconds=sum(seconds for _, seconds in parts) / self.n,
            evaluations=sum(images for images, _ in parts) // self.n,
        )

    def _settings(self, setting: SamplerChoice) -> DrawSettings:
        wanted = self.base.condition
        if wanted is not None and setting.guidance is not None:
            wanted = replace(wanted, scale=setting.guidance)
        return replace(self.base, sampler=setting.sampler, steps=setting.steps, condition=wanted)

    def _compare(self, fake: Array) -> dict[str, float]:
        whole = frechet.fit(self.real, fake)
        return {
            **kid.estimate(self.real, fake),
            "frechet_distance": whole.value,
            "frechet_distance_standard_error": whole.error(),
        }

    def warm_up(self) -> None:
        """Draw a batch in one step: the first setting must not pay for one-off costs."""
        batch = range(min(self.n, self.base.batch_size))
        settings = replace(self.base, sampler="ddim", steps=1)
        denoiser, device = self.loaded.denoiser, self.network.device
        for _ in draw(denoiser, settings, batch, space=self.loaded.space, device=device):
            pass


def _counted(work: Work[Tried], setting: SamplerChoice, done: int, total: int) -> Work[Tried]:
    """Run the work on a setting, with its progress as a detail of the whole."""
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            row: Tried = stop.value
            return row
        if isinstance(event, Progress):
            inner = f"{setting}: {event.task} {event.done:,}/{event.total:,}"
            event = Progress("tuning", done, total, inner)
        yield event
