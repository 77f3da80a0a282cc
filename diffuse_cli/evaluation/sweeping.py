"""A sweep over samplers, steps and guidance: what each costs and gives, and the recommended one.

It goes along one axis after the other: all samplers with all steps under one guidance, then
guidance at the sampler and steps that were found. Every setting draws the same images of one seed,
each from the same noise, and is measured against the same real ones.
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
from diffuse_cli.config import SWEPT_STEPS, EvalConfig, Setting
from diffuse_cli.data import is_images
from diffuse_cli.errors import UsageError
from diffuse_cli.evaluation import tradeoff
from diffuse_cli.evaluation.cache import cached, computed
from diffuse_cli.evaluation.evaluating import Evaluated, describe, evaluate, find_network
from diffuse_cli.evaluation.generating import draw_share, gathered
from diffuse_cli.evaluation.images import read_sides
from diffuse_cli.evaluation.settings import (
    METRIC,
    SettingRow,
    SweptSettings,
    first_settings,
    guidance_scales,
    recommend,
)
from diffuse_cli.evaluation.team import Team
from diffuse_cli.events import Notice, Progress, Work
from diffuse_cli.features import FeatureNetwork
from diffuse_cli.metrics import frechet, kid
from diffuse_cli.options import differs
from diffuse_cli.outputs import asked
from diffuse_cli.resolving import DrawSettings, resolve
from diffuse_cli.runtime import machine_or
from diffuse_cli.sampling import Loaded, draw_as, load_denoiser, looks

if TYPE_CHECKING:
    from accelerate import Accelerator

Array = npt.NDArray[Any]


def sweep(config: EvalConfig, accelerator: Accelerator | None = None) -> Work[SweptSettings]:
    """Measure settings of a model, and recommend one.

    Yields `Progress` and `Notice`.

    Args:
        accelerator: the machine of a larger work, which ends it.

    Returns:
        The same on every process, of which the first writes.

    Raises:
        DataError, ModelFileError, UsageError: what was named cannot be used.
        OutputError: the plot or the model file exists already, or cannot be written.
    """
    _check(config)
    out, plot = asked(config, "out", ".safetensors"), asked(config, "plot", ".png")
    with machine_or(accelerator, config.precision) as accelerator:
        loaded = load_denoiser(config.subject, config.model_weights, accelerator)
        base = resolve(config, loaded.model)
        timesteps = loaded.denoiser.process.num_timesteps
        first = first_settings(config, base.setting.guidance, timesteps)
        scales = guidance_scales(config, loaded.model, base.setting.guidance)
        yield from _announce(config, first, scales, timesteps)
        network = yield from find_network(config, accelerator)
        sides = yield from read_sides(config, loaded)
        sides.check()
        team = Team.of(accelerator)
        real = np.asarray(
            (yield from cached(network, looks(sides.space, sides.real.pixels), team, tell=True)),
            np.float64,
        )
        measure = _Measure(config.n, loaded, base, network, real, team)
        measure.warm_up()
        total = len(first) + len(scales)
        rows: list[SettingRow] = []
        for setting in first:
            rows.append((yield from _counted(measure(setting), setting, len(rows), total)))
        found = recommend(rows)
        for scale in scales:
            setting = replace(found, guidance=scale)
            rows.append((yield from _counted(measure(setting), setting, len(rows), total)))
        yield Progress("sweep", total, total)
        writes = accelerator.is_main_process
        swept = SweptSettings(
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
    if plot and writes:
        picture = tradeoff.draw(swept, files.show(Path(config.subject).name))
        files.write_bytes(plot, pictures.png(picture))
    if out and writes:
        modelfile.save(out, replace(loaded.model, sampling=swept.recommended))
    return swept


def sweep_and_evaluate(config: EvalConfig) -> Work[tuple[SweptSettings, Evaluated] | None]:
    """A sweep, then an evaluation with the setting that it recommends, for `--report`.

    Returns:
        Both, or None on every process but the first.

    Raises:
        As `sweep` and `evaluate` do.
    """
    asked(config, "report", ".html")
    with machine_or(None, config.precision) as accelerator:
        swept = yield from sweep(config, accelerator)
        found = yield from evaluate(with_setting(config, swept.recommended), accelerator)
    return (swept, found) if found else None


def with_setting(config: EvalConfig, setting: Setting) -> EvalConfig:
    """The evaluation of one setting of a sweep, which writes none of the sweep's files."""
    return replace(
        config,
        sampler=setting.sampler,
        steps=setting.steps,
        guidance=setting.guidance,
        sweep=False,
        sweep_samplers=None,
        sweep_steps=None,
        sweep_guidance=None,
        out=None,
        plot=None,
    )


# -- before ---------------------------------------------------------------------------------------

NEVER = {
    "steps": "--sweep-steps says how many",
    "sampler": "--sweep-samplers says which",
    **dict.fromkeys(("eta", "order"), "Each sampler is tried as it is by default"),
    **dict.fromkeys(("pairs", "respaced"), "Leave one of them out"),
}
"""Options that have no meaning in a sweep, with what to do instead."""

OF_THE_PAGE = ("timesteps", "train_n")
"""Options of the evaluation that follows a sweep with --report."""


def _check(config: EvalConfig) -> None:
    """Refuse what does not go with a sweep, or is not said by a recommendation."""
    if is_images(Path(config.subject)):
        shown = files.show(Path(config.subject))
        raise UsageError(f"--sweep needs a model, and {shown} is a folder of images")
    for name, hint in NEVER.items():
        if getattr(config, name) is not None:
            raise UsageError(f"--{name} does not go with --sweep", hint)
    for name in OF_THE_PAGE:
        if config.report is None and differs(config, name):
            flag = "--" + name.replace("_", "-")
            raise UsageError(f"{flag} goes with --sweep where there is a --report", "Leave it out")
    unsaid = {
        "--spacing": config.spacing != type(config).spacing,
        "--threshold": config.threshold is not None,
        "--guidance-interval": config.guidance_interval is not None,
        "--weights raw": config.model_weights == "raw",
    }
    for flag, given in unsaid.items():
        if given and config.out is not None:
            raise UsageError(
                f"{flag} is not written into a model file, whose recommendation would be another's",
                "Leave it or -o out",
            )


def _announce(
    config: EvalConfig, first: Sequence[Setting], scales: Sequence[float], timesteps: int
) -> Work[None]:
    """How much work it will be, and what is left out."""
    steps = dict.fromkeys(setting.steps for setting in first)
    left_out = [n for n in dict.fromkeys(config.sweep_steps or SWEPT_STEPS) if n not in steps]
    if left_out:
        listed = ", ".join(map(str, left_out))
        yield Notice(f"left out, as the model has {timesteps} timesteps: {listed} steps")
    guidance = first[0].guidance
    under = "" if guidance is None else f" under guidance {guidance:g}"
    more = f", and {len(scales)} more guidance scales" if scales else ""
    count = len(first) + len(scales)
    yield Notice(
        f"sweep: {count} settings of {config.n:,} images, {count * config.n:,} in all: "
        f"{len(first) // len(steps)} samplers at {', '.join(map(str, steps))} steps{under}{more}"
    )


def _common(config: EvalConfig, base: DrawSettings, loaded: Loaded) -> dict[str, Any]:
    """What all settings of a sweep have in common."""
    varied = ("sampler", "steps", "guidance", "timesteps", "respaced")
    described = describe(config, base, loaded.sha256)
    return {name: value for name, value in described.items() if name not in varied}


def _name(device: torch.device) -> str:
    """A device as people call it: seconds of one are not those of another."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


# -- what it gives --------------------------------------------------------------------------------


@dataclass
class _Counter:
    """A network that counts the images it is shown."""

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

    def __call__(self, setting: Setting) -> Work[SettingRow]:
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
        return SettingRow(
            setting,
            self.team.from_first(values),
            seconds=sum(seconds for _, seconds in parts) / self.n,
            evaluations=sum(images for images, _ in parts) // self.n,
        )

    def _settings(self, setting: Setting) -> DrawSettings:
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
        """One batch by one step, so that the first setting does not pay for what comes once."""
        batch = range(min(self.n, self.base.batch_size))
        settings = replace(self.base, sampler="ddim", steps=1)
        denoiser, device = self.loaded.denoiser, self.network.device
        for _ in draw_as(settings, denoiser, batch, space=self.loaded.space, device=device):
            pass


def _counted(work: Work[SettingRow], setting: Setting, done: int, total: int) -> Work[SettingRow]:
    """The work on a setting, whose progress is a detail of the sweep's."""
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            row: SettingRow = stop.value
            return row
        if isinstance(event, Progress):
            inner = f"{setting}: {event.task} {event.done:,}/{event.total:,}"
            event = Progress("sweep", done, total, inner)
        yield event
