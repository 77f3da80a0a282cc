"""The weaker model that another is guided by: read, checked to fit, and put on the device."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from diffuse_cli.config import OWN
from diffuse_cli.core.settings import dimensions
from diffuse_cli.data.metadata_columns import described
from diffuse_cli.sampling.generation import Loaded, load_denoiser, ready
from diffuse_cli.sampling.sampling_settings import DrawSettings
from diffuse_cli.system import files
from diffuse_cli.system.errors import ModelFileError, UsageError
from diffuse_cli.system.events import Work

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffuse_cli.core.conditions import Table
    from diffuse_cli.models.blueprint import Blueprint


def equipped(
    settings: DrawSettings, loaded: Loaded, accelerator: Accelerator, *, alone: bool = False
) -> Work[DrawSettings]:
    """The settings with the denoiser of their weaker model, if they have one.

    Args:
        loaded: the model that is guided.
        alone: the other processes do not read it.

    Raises:
        ModelFileError: no model file, or no weak average in the model's own.
        UsageError: a model that cannot guide this one.
    """
    guide = settings.guide
    if guide is None:
        return settings
    if guide.path == OWN:
        if loaded.model.weak is None:
            raise ModelFileError(
                f"--guide-with {OWN}: the model file has no weak average", _hint(loaded)
            )
        differentiable, sha256 = loaded.differentiable, loaded.sha256
        denoiser = ready(
            loaded.model, "weak", accelerator, loaded.precision, differentiable=differentiable
        )
    else:
        weaker = yield from load_denoiser(
            guide.path,
            "ema",
            accelerator,
            loaded.precision,
            alone=alone,
            differentiable=loaded.differentiable,
            typed=False,
        )
        check_fits(loaded, weaker, guide.path)
        denoiser, sha256 = weaker.denoiser, weaker.sha256
    return replace(settings, guide=replace(guide, denoiser=denoiser, sha256=sha256))


def _hint(loaded: Loaded) -> str:
    if loaded.model.training.get("keep_weak"):
        return "Its training had not come to the step after which it is taken: go on with --resume"
    return "Train with --keep-weak to have one, or name the file of a weaker model"


def check_fits(loaded: Loaded, weaker: Loaded, path: str) -> None:
    """Refuse to guide a model by one of other samples, another process or other classes.

    Targets, variances and networks may differ: what is combined is x_0 and eps.

    Raises:
        UsageError: it names what differs.
    """
    name = f"--guide-with {files.show(path)}"
    if loaded.sha256 == weaker.sha256:
        raise UsageError(f"{name} is the model itself", "Name a weaker one")
    own, theirs = loaded.model.blueprint, weaker.model.blueprint
    for what, same, said in (
        ("its samples are {}, the model's {}", own.space == theirs.space, _samples),
        ("its process is {}, the model's {}", _same_process(own, theirs), _process),
        ("its classes are {}, the model's {}", _classes(own) == _classes(theirs), _named),
        ("it is given {}, the model {}", _given(own) == _given(theirs), _given),
        ("it is told {}, the model {}", _table(own) == _table(theirs), _columns),
    ):
        if not same:
            raise UsageError(
                f"{name} does not fit: {what.format(said(theirs), said(own))}",
                "Name a model of the same data and schedule, smaller or trained for less",
            )


def _same_process(own: Blueprint, theirs: Blueprint) -> bool:
    return torch.equal(own.process.betas, theirs.process.betas)


def _samples(of: Blueprint) -> str:
    space = of.space
    numbers = "floats" if space.levels is None else f"{space.levels:,} levels"
    channels = "1 channel" if space.channels == 1 else f"{space.channels} channels"
    return f"{dimensions(space.size)} in {channels} of {numbers}"


def _process(of: Blueprint) -> str:
    diffusion = of.diffusion
    betas = "custom betas" if diffusion.betas else diffusion.schedule
    moved = (
        f" with log-SNR shifted by {diffusion.log_snr_shift:+g}" if diffusion.log_snr_shift else ""
    )
    zero = " at zero terminal SNR" if diffusion.zero_terminal_snr else ""
    return f"{betas}{moved}{zero} of {of.process.num_timesteps:,} timesteps"


def _classes(of: Blueprint) -> tuple[str, ...]:
    return of.conditions.classes


def _given(of: Blueprint) -> str:
    given = of.conditions.given
    return f"{given.what} of {given.channels} channels" if given else "nothing"


def _table(of: Blueprint) -> Table | None:
    return of.conditions.table


def _columns(of: Blueprint) -> str:
    table = of.conditions.table
    if table is None:
        return "no columns"
    return "; ".join(f"{files.brief(c.name)}, {described(c)}" for c in table.columns[:3])


def _named(of: Blueprint) -> str:
    names = of.conditions.classes
    shown = ", ".join(map(files.brief, names[:3]))
    return f"{shown}, ... ({len(names):,})" if len(names) > 3 else shown or "none"
