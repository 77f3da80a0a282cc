"""`diffuse vary`: a picture, noised part of the way and drawn again (SDEdit, Meng et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from diffuse_cli.config import VaryConfig
from diffuse_cli.core.samplers import SAMPLERS, State
from diffuse_cli.sampling.generation import Loaded, prepared
from diffuse_cli.sampling.sampling_settings import DrawSettings
from diffuse_cli.sampling.tasks import Made, Plan, make
from diffuse_cli.sampling.tasks.task_inputs import read
from diffuse_cli.sampling.tasks.telling import remark, tells
from diffuse_cli.system.events import Work

if TYPE_CHECKING:
    from diffuse_cli.core.solvers import Noise
    from diffuse_cli.sampling.tasks import Bind


def vary(config: VaryConfig) -> Work[Made | None]:
    """Draw variations of each picture; see `making.make`.

    The last `strength` of the sampler's times are visited, at least one.
    """

    def planning(loaded: Loaded, settings: DrawSettings, device: torch.device) -> Work[Plan]:
        found = yield from read(config.image, loaded, config.fit, loaded.space.shape)
        yield from found.notices
        yield from remark(loaded, told=False)
        x0 = loaded.space.to_model(torch.from_numpy(np.array(found.values)))
        process = loaded.denoiser.process
        every = settings.times_of(process)
        times = every[len(every) - max(1, round(config.strength * len(every))) :]
        denoise = prepared(loaded.denoiser, settings)

        def states(rows: Sequence[int], bind: Bind, noise: Noise) -> Iterator[State]:
            start = process.diffuse(x0[list(rows)].to(device), times[0], noise(-1))
            sample = partial(SAMPLERS[settings.sampler], **settings.options)
            yield from sample(bind(denoise), process, start, times, noise=noise)

        described = {"strength": config.strength}
        return Plan(found.names, len(times), states, [found.values], described)

    untold = partial(tells, degradation=None, flag="vary")
    return (yield from make(config, "vary", planning, tells=untold))
