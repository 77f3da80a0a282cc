"""A process and a sampler as a scheduler of diffusers: what `interop._scheduler` reads, backwards.

The schedulers of UniPC and DPM-Solver++ have no switch that clips x_0. Dynamic thresholding whose
largest value is 1 does it: s, the percentile, is kept between 1 and that (Saharia et al. 2022, sec.
2.3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from diffuse_cli.config import DiffusionConfig
from diffuse_cli.models.blueprint import make_process

CLIPPED = {"clip_sample": True, "clip_sample_range": 1.0, "thresholding": False}
THRESHOLDED = {"thresholding": True, "sample_max_value": 1.0}


@dataclass(frozen=True)
class Scheduler:
    """A scheduler of diffusers that does what one of our samplers does.

    Attributes:
        name: of its class.
        pipeline: the pipeline that runs it, or None: `DDPMPipeline` passes `step` what it does not
            take.
        variance: whether it has a field for the variance, and takes one that is learned.
        fields: its own.
    """

    name: str
    pipeline: str | None = "DDPMPipeline"
    variance: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)


MULTISTEP: dict[str, Any] = {
    **THRESHOLDED, "solver_order": 2, "lower_order_final": True, "final_sigmas_type": "zero",
}  # fmt: skip

SCHEDULERS = {
    "ddpm": Scheduler("DDPMScheduler", variance=True, fields=CLIPPED),
    "ddim": Scheduler(
        "DDIMScheduler", pipeline="DDIMPipeline", fields={**CLIPPED, "set_alpha_to_one": True}
    ),
    "dpmpp-2m": Scheduler(
        "DPMSolverMultistepScheduler",
        fields={**MULTISTEP, "algorithm_type": "dpmsolver++", "solver_type": "midpoint"},
    ),
    "dpmpp-2m-sde": Scheduler(
        "DPMSolverMultistepScheduler",
        fields={**MULTISTEP, "algorithm_type": "sde-dpmsolver++", "solver_type": "midpoint"},
    ),
    "unipc": Scheduler(
        "UniPCMultistepScheduler",
        pipeline=None,
        fields={**MULTISTEP, "solver_type": "bh2", "predict_x0": True},
    ),
}
"""By the names of our samplers, with the options that these have by default."""

UNTIL_ZERO = "linspace"
"""The spacing of `DDPMScheduler` with any variance but the posterior's. It adds noise at every
timestep but 0, so also at the end of a sampling that does not visit that one."""

EXACT = 1e-12
"""The relative difference under which betas are those of a schedule that diffusers can name."""


def fields(scheduler: Scheduler, diffusion: DiffusionConfig) -> dict[str, Any]:
    """The fields of the scheduler for a process."""
    from diffuse_cli.commands.convert.importers._scheduler import TARGETS, VARIANCES

    said = {name: word for word, name in reversed(TARGETS.items())}
    variance = next(word for word, name in VARIANCES.items() if name == diffusion.variance)
    noisy = scheduler.variance and diffusion.variance != "small"
    return {
        "_class_name": scheduler.name,
        "num_train_timesteps": diffusion.num_timesteps,
        **_betas(diffusion),
        "prediction_type": said[diffusion.target],
        **({"variance_type": variance} if scheduler.variance else {}),
        "timestep_spacing": UNTIL_ZERO if noisy else "trailing",
        "steps_offset": 0,
        **scheduler.fields,
    }


def _betas(diffusion: DiffusionConfig) -> dict[str, Any]:
    """The betas before they are rescaled to zero terminal SNR, by a name or each; and whether they
    are, or end without signal themselves, which solvers of diffusers must know."""
    from diffuse_cli.commands.convert.importers._scheduler import BETAS

    betas = make_process(replace(diffusion, zero_terminal_snr=False)).betas.tolist()
    ends = {"rescale_betas_zero_snr": diffusion.zero_terminal_snr or betas[-1] == 1}
    for kind in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        there = BETAS[kind](len(betas), betas[0], betas[-1])
        if all(math.isclose(a, b, rel_tol=EXACT) for a, b in zip(there, betas, strict=True)):
            return {"beta_schedule": kind, "beta_start": betas[0], "beta_end": betas[-1], **ends}
    return {"trained_betas": betas, **ends}
