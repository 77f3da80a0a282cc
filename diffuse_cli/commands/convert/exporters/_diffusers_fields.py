"""A U-Net as the fields of diffusers' `UNet2DModel`: as `importers.diffusers` reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from diffuse_cli.config import DiffusionConfig
from diffuse_cli.core.networks.unet import Config
from diffuse_cli.models.blueprint import Blueprint, make_process

PLAIN = "Train with --preset small or base"
PICTURES = "It draws pictures of 8 bits, grey or in colour"

Lack = tuple[str, object, str]
"""A field, its value, and what to do about it."""


def lacks(blueprint: Blueprint) -> Iterator[Lack]:
    """What of a model `UNet2DModel`, its schedulers and pipelines have no word for."""
    space, conditions = blueprint.space, blueprint.conditions
    if space.medium != "image":
        yield "medium", space.medium, PICTURES
    if space.levels != 256:
        yield "levels", space.levels, PICTURES
    if space.layout is not None:
        yield "layout", space.layout, PICTURES
    if space.channels not in (1, 3):
        yield "channels", space.channels, PICTURES
    if conditions.given is not None:
        yield "given", conditions.given.what, "Its pipelines give a U-Net no other image"
    if conditions.table is not None:
        yield "condition-on", ", ".join(c.name for c in conditions.table.columns), "It knows labels"
    if not isinstance(blueprint.config, Config):
        yield "network", blueprint.network, "It reads the U-Net: train with --network unet"
    else:
        yield from _of_network(blueprint.config, space.size)
    if blueprint.diffusion.target not in ("eps", "x0", "v"):
        yield "target", blueprint.diffusion.target, "Train with --target v, eps or x0"
    count = blueprint.process.num_timesteps
    if blueprint.process.timesteps.tolist() != list(range(count)):
        yield "rescale_timesteps", f"true over {count:,} timesteps", "Train with 1,000 timesteps"


def _of_network(config: Config, size: tuple[int, ...]) -> Iterator[Lack]:
    if config.patch != 1:
        yield "patch", config.patch, f"{PLAIN}, or [unet] patch = 1 in --config"
    if config.multipliers[0] != 1:
        yield "multipliers", list(config.multipliers), "Its first level is as wide as width says"
    if config.block != "resnet":
        yield "block", config.block, PLAIN
    if config.time_embedding != "sinusoidal":
        yield "time_embedding", config.time_embedding, PLAIN
    if config.time_width not in (None, config.width):
        yield "time_width", config.time_width, "Leave it out of the network's settings"
    if len(head_widths(config, size)) > 1:
        name = "heads" if config.heads_up is None else "heads_up"
        hint = "All of its heads are equally wide: train with head_width"
        yield name, getattr(config, name), hint


def head_widths(config: Config, size: tuple[int, ...]) -> set[int | None]:
    """The widths of attention heads; None, as in diffusers, where each layer has a single head."""
    widths = [w for w, attends in zip(config.widths, config.attends(size), strict=True) if attends]
    down = [(w, config.heads_at(w)) for w in (*widths, config.widths[-1])]
    up = [(w, config.upward.heads_at(w)) for w in widths]
    if all(heads == 1 for _, heads in down + up):
        return {None}
    return {width // heads for width, heads in down + up}


def unet_fields(blueprint: Blueprint) -> dict[str, Any]:
    """The fields of the `UNet2DModel` that is the network, of which `lacks` says nothing.

    A label embedding has a row for "no class" after those of the classes, and diffusers no word for
    it: `_diffuse` tells it, with the names. Names that begin with an underscore are kept there and
    have no effect.
    """
    config, space, classes = blueprint.config, blueprint.space, blueprint.conditions.classes
    assert isinstance(config, Config)
    (head_width,) = head_widths(config, space.size)
    height, width = space.size
    attends = config.attends(space.size)
    resampling = "resnet" if config.resblock_updown else "conv"
    return {
        "_class_name": "UNet2DModel",
        **({"_diffuse": {"classes": list(classes)}} if classes else {}),
        "sample_size": height if height == width else [height, width],
        "in_channels": space.channels,
        "out_channels": blueprint.out_channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": config.freq_shift,
        "flip_sin_to_cos": config.flip_sin_to_cos,
        "down_block_types": _kinds(attends, "Down", config.resblock_updown),
        "up_block_types": _kinds(attends, "Up", config.resblock_updown)[::-1],
        "block_out_channels": config.widths,
        "layers_per_block": config.blocks,
        "mid_block_scale_factor": 1,
        "downsample_padding": config.downsample_padding,
        "downsample_type": resampling,
        "upsample_type": resampling,
        "dropout": config.dropout,
        "act_fn": "silu",
        "attention_head_dim": head_width,
        "norm_num_groups": config.groups,
        # Without it, scale and shift leave out a norm in the middle.
        "attn_norm_num_groups": config.groups if config.scale_shift else None,
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        "add_attention": True,
        "class_embed_type": None,
        "num_class_embeds": len(classes) + 1 if classes else None,
    }


def _kinds(attends: list[bool], way: str, by_resnet: bool) -> list[str]:
    """The blocks of each level on one way; the level at its end keeps its size."""
    last = len(attends) - 1 if way == "Down" else 0
    plain = [f"Resnet{way}sampleBlock2D" if by_resnet and i != last else f"{way}Block2D"
             for i in range(len(attends))]  # fmt: skip
    return [
        f"Attn{way}Block2D" if attend else kind for attend, kind in zip(attends, plain, strict=True)
    ]


# -- scheduler ------------------------------------------------------------------------------------

# A process and a sampler as a scheduler of diffusers: as `importers.diffusers` reads it.
#
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


def scheduler_fields(scheduler: Scheduler, diffusion: DiffusionConfig) -> dict[str, Any]:
    """The fields of the scheduler for a process."""
    from diffuse_cli.commands.convert.importers.diffusers import TARGETS, VARIANCES

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
    from diffuse_cli.commands.convert.importers.diffusers import BETAS

    betas = make_process(replace(diffusion, zero_terminal_snr=False)).betas.tolist()
    ends = {"rescale_betas_zero_snr": diffusion.zero_terminal_snr or betas[-1] == 1}
    for kind in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        there = BETAS[kind](len(betas), betas[0], betas[-1])
        if all(math.isclose(a, b, rel_tol=EXACT) for a, b in zip(there, betas, strict=True)):
            return {"beta_schedule": kind, "beta_start": betas[0], "beta_end": betas[-1], **ends}
    return {"trained_betas": betas, **ends}
