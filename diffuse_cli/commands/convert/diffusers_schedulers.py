"""A process and a sampler as a scheduler of diffusers, both ways: `convert` reads and writes them.

Betas are computed as diffusers does. If one of our schedules has the same, the model file names it.
Networks of diffusers take t itself, for any number of timesteps. This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffuse_cli.config.parsers import parse_betas
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.core import SCHEDULES
from diffuse_cli.core.schedules import cosine
from diffuse_cli.models.blueprint import make_process
from diffuse_cli.system import ModelFileError, shorten, show

BETA_ENDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("DDPMScheduler", "DDIMScheduler", "DDIMInverseScheduler", "PNDMScheduler",
         "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler",
         "EulerAncestralDiscreteScheduler"),
        (1e-4, 0.02),
    ),
    "HeunDiscreteScheduler": (0.00085, 0.012),
}  # fmt: skip
"""The schedulers that are read, with their defaults of `beta_start` and `beta_end`."""

OWN = "_diffuse"
"""The field of a configuration for what diffusers has no word for: the names of classes, where the
label embedding has a row for "no class" after theirs, and the variance, where the scheduler has no
field for it. diffusers keeps and ignores fields that begin with an underscore."""

TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "fixed_large_log": "large",
    "learned_range": "learned",
}
"""Their words for our targets and variances. The first of several is written."""


def _linear(count: int, start: float, end: float) -> list[float]:
    return [start + (end - start) * i / (count - 1) for i in range(count)]


def _scaled_linear(count: int, start: float, end: float) -> list[float]:
    return [root**2 for root in _linear(count, math.sqrt(start), math.sqrt(end))]


def _sigmoid(count: int, start: float, end: float) -> list[float]:
    return [start + (end - start) / (1 + math.exp(-x)) for x in _linear(count, -6, 6)]


BETAS: dict[str, Callable[[int, float, float], Sequence[float]]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": lambda count, start, end: cosine(count),
    "sigmoid": _sigmoid,
}
"""Betas by `beta_schedule`, from their number, `beta_start` and `beta_end`."""

CLOSE, EXACT = 1e-6, 1e-12
"""The largest relative difference of betas that are taken for those of our schedule, as schedulers
use float32, and of betas that are written as a schedule of diffusers."""


def _match(candidate: Sequence[float], betas: Sequence[float], tolerance: float) -> bool:
    """Whether two lists of betas are equal up to a relative difference."""
    pairs = zip(candidate, betas, strict=True)
    return all(math.isclose(a, b, rel_tol=tolerance) for a, b in pairs)


def read_scheduler(path: Path, config: Mapping[str, Any], learned: bool) -> dict[str, Any]:
    """Return the fields of the `DiffusionConfig` that a `scheduler_config.json` describes.

    Args:
        learned: whether the network has channels for a learned variance.

    Raises:
        ModelFileError: a value that is not known.
    """

    def unknown(name: str, value: Any, values: Iterable[str]) -> ModelFileError:
        listed = f"Known are: {', '.join(values)}"
        return ModelFileError(f"{show(path)}: {name} is {shorten(repr(value))}", listed)

    def known(name: str, default: Any, values: Collection[str]) -> Any:
        if (value := config.get(name, default)) not in values:
            raise unknown(name, value, values)
        return value

    kind = known("_class_name", None, BETA_ENDS)
    known("timestep_type", "discrete", ("discrete",))
    if config.get("trained_betas") is not None:
        betas = list(parse_betas(list(config["trained_betas"])))
    else:
        schedule = known("beta_schedule", "linear", BETAS)
        count = config.get("num_train_timesteps", 1000)
        if not isinstance(count, int) or not 2 <= count <= 100_000:
            raise ValueError(f"num_train_timesteps is {count!r}, not 2 to 100,000")
        start, end = BETA_ENDS[kind]
        ends = float(config.get("beta_start", start)), float(config.get("beta_end", end))
        betas = list(parse_betas(list(BETAS[schedule](count, *ends))))
    process: dict[str, Any] = {"betas": tuple(betas)}
    for name, make_betas in SCHEDULES.items():
        if _match(named := make_betas(len(betas)), betas, CLOSE):
            process, betas = {"schedule": name, "num_timesteps": len(betas)}, list(named)
            break
    target = known("prediction_type", "epsilon", TARGETS)
    if config.get("predict_epsilon", True) is not True:
        raise unknown("prediction_type", target, TARGETS)
    own_fields = config.get(OWN)
    own_variance = own_fields.get("variance_type") if isinstance(own_fields, Mapping) else None
    default = "learned_range" if learned else "fixed_small"
    variance = config.get("variance_type") or own_variance or default
    if variance not in VARIANCES:
        raise unknown("variance_type", variance, VARIANCES)
    return {
        **process,
        "target": TARGETS[target],
        "variance": VARIANCES[variance],
        # Betas that end without signal have nothing to rescale.
        "zero_terminal_snr": bool(config.get("rescale_betas_zero_snr")) and betas[-1] != 1,
    }


# -- scheduler ------------------------------------------------------------------------------------

# The schedulers of UniPC and DPM-Solver++ have no switch that clips x_0. Dynamic thresholding whose
# largest value is 1 does it: s, the percentile, is kept between 1 and that (Saharia et al. 2022,
# sec. 2.3).

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
    **{
        name: Scheduler(
            "DPMSolverMultistepScheduler",
            fields={**MULTISTEP, "algorithm_type": algorithm, "solver_type": "midpoint"},
        )
        for name, algorithm in (("dpmpp-2m", "dpmsolver++"), ("dpmpp-2m-sde", "sde-dpmsolver++"))
    },
    "unipc": Scheduler(
        "UniPCMultistepScheduler",
        pipeline=None,
        fields={**MULTISTEP, "solver_type": "bh2", "predict_x0": True},
    ),
}
"""Schedulers by the names of our samplers, with the options that these have by default."""

UNTIL_ZERO = "linspace"
"""The spacing of `DDPMScheduler` with any variance but the posterior's. It adds noise at every
timestep but 0, so also at the end of a sampling run that does not visit that one."""


def scheduler_fields(scheduler: Scheduler, diffusion: DiffusionConfig) -> dict[str, Any]:
    """Return the fields of the scheduler for a process.

    The betas are those before they are rescaled to zero terminal SNR, by a name or each. Solvers of
    diffusers must know whether they are rescaled, or end without signal themselves.
    """
    betas = make_process(replace(diffusion, zero_terminal_snr=False)).betas.tolist()
    ends = betas[0], betas[-1]
    fit = (k for k in BETAS if k != "sigmoid" and _match(BETAS[k](len(betas), *ends), betas, EXACT))
    kind = next(fit, None)
    spoken = {"beta_schedule": kind, "beta_start": ends[0], "beta_end": ends[1]}
    variance = {"variance_type": _word(VARIANCES, diffusion.variance)}
    own_fields = {OWN: variance} if diffusion.variance != "small" else {}
    noisy = scheduler.variance and own_fields
    return {
        "_class_name": scheduler.name,
        "num_train_timesteps": diffusion.num_timesteps,
        **(spoken if kind else {"trained_betas": betas}),
        "rescale_betas_zero_snr": diffusion.zero_terminal_snr or betas[-1] == 1,
        "prediction_type": _word(TARGETS, diffusion.target),
        **(variance if scheduler.variance else own_fields),
        "timestep_spacing": UNTIL_ZERO if noisy else "trailing",
        "steps_offset": 0,
        **scheduler.fields,
    }


def _word(words: Mapping[str, str], name: str) -> str:
    """Return the first of diffusers' words for a name."""
    return next(word for word, meaning in words.items() if meaning == name)
