"""A model as the fields of diffusers' configurations, both ways: `convert` reads and writes them.

Networks of diffusers take t itself, for any number of timesteps. This module does not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffuse_cli.core import schedules
from diffuse_cli.core.networks.unet import Config
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system import ModelFileError, shorten, show

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
    "squaredcos_cap_v2": lambda count, start, end: schedules.cosine(count),
    "sigmoid": _sigmoid,
}
"""Betas by `beta_schedule`, from their number, `beta_start` and `beta_end`."""


def match_betas(candidate: Sequence[float], betas: Sequence[float], tolerance: float) -> bool:
    """Whether two lists of betas are equal up to a relative difference."""
    pairs = zip(candidate, betas, strict=True)
    return all(math.isclose(a, b, rel_tol=tolerance) for a, b in pairs)


# -- U-Net ----------------------------------------------------------------------------------------

SAME: dict[str, tuple[str, Any]] = {
    "in_channels": ("channels", 3),
    "layers_per_block": ("blocks", 2),
    "dropout": ("dropout", 0.0),
    "norm_num_groups": ("groups", 32),
    "norm_eps": ("norm_eps", 1e-5),
    "downsample_padding": ("downsample_padding", 1),
    "freq_shift": ("freq_shift", 0),
    "flip_sin_to_cos": ("flip_sin_to_cos", True),
}
"""Fields of `UNet2DModel` with the setting that has the same values, and the default there."""

FIXED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}
"""The values that `UNet` supports of fields that it has no setting for. The first is written."""

NORMS = ("default", "scale_shift")
"""`resnet_time_scale_shift` without our `scale_shift`, and with it."""

RESAMPLING = ("conv", "resnet")
"""`downsample_type` and `upsample_type` without our `resblock_updown`, and with it."""

ONLY = {
    **FIXED,
    "mid_block_type": ("UNetMidBlock2D",),
    "resnet_time_scale_shift": NORMS,
    "downsample_type": RESAMPLING,
    "upsample_type": RESAMPLING,
}
"""The values that are read, the default first."""

DEFAULTS: dict[str, Any] = {
    **{name: values[0] for name, values in ONLY.items()},
    **{name: default for name, (_, default) in SAME.items()},
    **dict.fromkeys(("sample_size", "time_embedding_dim", "attn_norm_num_groups")),
    **dict.fromkeys(("num_class_embeds", "num_train_timesteps")),
    "out_channels": 3,
    "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
    "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "attention_head_dim": 8,
}
"""The fields of `UNet2DModel` with their defaults."""


def block_kinds(way: str, attends: Sequence[bool], by_resnet: bool) -> list[str]:
    """Return the block of each level on the way `down` or `up`."""
    name = way.title()
    plain = f"Resnet{name}sampleBlock2D" if by_resnet else f"{name}Block2D"
    return [f"Attn{name}Block2D" if attend else plain for attend in attends]


def head_widths(config: Config, size: tuple[int, ...]) -> set[int | None]:
    """Return widths of attention heads; None, as in diffusers, if each layer has a single head."""
    widths = [w for w, attends in zip(config.widths, config.attends(size), strict=True) if attends]
    down = [(w, config.heads_at(w)) for w in (*widths, config.widths[-1])]
    up = [(w, config.up_config.heads_at(w)) for w in widths]
    if all(heads == 1 for _, heads in down + up):
        return {None}
    return {width // heads for width, heads in down + up}


def unet_fields(blueprint: Blueprint, label_dropout: float | None = None) -> dict[str, Any]:
    """Return the fields of the `UNet2DModel` that is a network in which `find_unsupported` finds
    nothing.

    Args:
        label_dropout: of the training of a network with classes, if it is known.
    """
    config, space, classes = blueprint.config, blueprint.space, blueprint.conditions.classes
    assert isinstance(config, Config)
    (head_width,) = head_widths(config, space.size)
    height, width = space.size
    settings = {**vars(config), "channels": space.channels}
    resampling = RESAMPLING[config.resblock_updown]
    down = config.attends(space.size)
    kinds = {
        # The last level keeps its size.
        f"{way}_block_types": [
            *block_kinds(way, attends, config.resblock_updown)[:-1],
            *block_kinds(way, attends, False)[-1:],
        ]
        for way, attends in (("down", down), ("up", down[::-1]))
    }
    return {
        "_class_name": "UNet2DModel",
        **({OWN: {"classes": list(classes), "label_dropout": label_dropout}} if classes else {}),
        **{name: values[0] for name, values in FIXED.items()},
        **{field: settings[name] for field, (name, _) in SAME.items()},
        "sample_size": height if height == width else [height, width],
        "out_channels": blueprint.out_channels,
        "block_out_channels": config.widths,
        **kinds,
        "downsample_type": resampling,
        "upsample_type": resampling,
        "attention_head_dim": head_width,
        # Without it, scale and shift leave out a norm in the middle.
        "attn_norm_num_groups": config.groups if config.scale_shift else None,
        "resnet_time_scale_shift": NORMS[config.scale_shift],
        "num_class_embeds": len(classes) + 1 if classes else None,
    }


def read_unet(
    path: Path, config: Mapping[str, Any]
) -> tuple[dict[str, Any], tuple[str, ...], float]:
    """Return the settings of the network that a `config.json` describes, the names of classes that
    have a row for "no class", and the label dropout in training.

    The settings are those of `UNet` and of the data, with `attends`, the levels with attention, in
    place of `attention`, and `sample_size`.

    Raises:
        ModelFileError: `UNet` does not support it.
    """
    fields = _check_fields(path, config)
    classes, label_dropout = _labels(path, config)
    widths = list(fields["block_out_channels"])
    if not all(isinstance(w, int) and w > 0 and w % widths[0] == 0 for w in widths):
        raise unsupported_error(path, "block_out_channels", widths)
    attends, updown = _levels(path, fields, len(widths))
    return (
        {
            **{name: fields[field] for field, (name, _) in SAME.items()},
            "sample_size": fields["sample_size"],
            "out_channels": fields["out_channels"],
            "width": widths[0],
            "multipliers": [w // widths[0] for w in widths],
            "attends": attends,
            "head_width": fields["attention_head_dim"],
            "resblock_updown": updown,
            "scale_shift": fields["resnet_time_scale_shift"] == NORMS[True],
            "num_classes": len(classes) or fields["num_class_embeds"] or 0,
        },
        classes,
        label_dropout,
    )


def unsupported_error(path: Path, key: str, value: Any) -> ModelFileError:
    """Return the error for a field of a file."""
    text = f"{show(path)}: {shorten(key)} = {shorten(repr(value))} is not supported"
    return ModelFileError(text, code="model_unsupported", path=path)


def _check_fields(path: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `UNet2DModel`, checked to be supported."""
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        text = f"{show(path)} is of a {shorten(kind)}, not a UNet2DModel"
        raise ModelFileError(text, code="model_unsupported", path=path)
    entries = {name: value for name, value in config.items() if not name.startswith("_")}
    if unknown := [name for name in entries if name not in DEFAULTS and entries[name] is not None]:
        raise unsupported_error(path, unknown[0], entries[unknown[0]])
    fields = {**DEFAULTS, **entries}
    possible = {
        **ONLY,
        "time_embedding_dim": (None, 4 * fields["block_out_channels"][0]),
        "attn_norm_num_groups": (fields["norm_num_groups"], None),
    }
    for name, values in possible.items():
        if fields[name] not in values:
            raise unsupported_error(path, name, fields[name])
    scaled = fields["resnet_time_scale_shift"] == NORMS[True]
    if fields["attn_norm_num_groups"] is None and scaled:
        raise ModelFileError(
            f"{show(path)}: attention without a norm in the middle block is not supported",
            "diffusers leaves the norm out with scale_shift and no attn_norm_num_groups",
            code="model_unsupported",
            path=path,
        )
    return fields


def _labels(path: Path, config: Mapping[str, Any]) -> tuple[tuple[str, ...], float]:
    """Return the names of the classes and the label dropout in `OWN`, none and 0 without it."""
    own_fields = config.get(OWN)
    if own_fields is None:
        return (), 0.0
    classes = own_fields.get("classes") if isinstance(own_fields, dict) else None
    usable = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not usable or not classes or len(set(classes)) < len(classes):
        raise unsupported_error(path, OWN, own_fields)
    if (rows := config.get("num_class_embeds")) != len(classes) + 1:
        raise unsupported_error(path, "num_class_embeds", rows)
    dropout = own_fields.get("label_dropout")
    if dropout is None:
        dropout = 0.0
    if not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
        raise unsupported_error(path, OWN, own_fields)
    return tuple(classes), float(dropout)


def _levels(path: Path, fields: Mapping[str, Any], count: int) -> tuple[list[bool], bool]:
    """Return which levels have attention, and whether residual blocks do the resampling."""
    down = [str(kind).startswith("Attn") for kind in fields["down_block_types"]]
    possible = [False, True]
    for way, attends in (("down", down), ("up", down[::-1])):
        kinds = [str(kind).removeprefix("UNetRes") for kind in fields[f"{way}_block_types"]]
        every = [block_kinds(way, attends, by_resnet) for by_resnet in (False, True)]
        if any(attends[:-1]):  # those change their size as this field says
            possible = [k for k in possible if RESAMPLING[k] == fields[f"{way}sample_type"]]
        possible = [k for k in possible if kinds[:-1] == every[k][:-1]]
        # The last level keeps its size, whatever its block.
        if not possible or len(kinds) != count or kinds[-1:] not in [e[-1:] for e in every]:
            raise unsupported_error(path, f"{way}_block_types", kinds)
    return down, possible[0]


PLAIN = "Train with --preset small or base"
PICTURES = "It generates 8-bit images, grey or in color"

Lack = tuple[str, object, str]
"""A field, its value, and what to do about it."""


def find_unsupported(blueprint: Blueprint) -> Iterator[Lack]:
    """Yield what of a model `UNet2DModel`, its schedulers and pipelines have no word for."""
    space, conditions = blueprint.space, blueprint.conditions
    pictures = {"medium": ("image",), "levels": (256,), "layout": (None,), "channels": (1, 3)}
    for name, possible in pictures.items():
        if (value := getattr(space, name)) not in possible:
            yield name, value, PICTURES
    if conditions.given is not None:
        yield "given", conditions.given.what, "Its pipelines give a U-Net no other image"
    if conditions.table is not None:
        yield "condition-on", ", ".join(c.name for c in conditions.table.columns), "It knows labels"
    if not isinstance(blueprint.config, Config):
        yield "network", blueprint.network, "It reads the U-Net: train with --network unet"
    else:
        yield from find_unsupported_network(blueprint.config, space.size)
    if blueprint.diffusion.target not in TARGETS.values():
        yield "target", blueprint.diffusion.target, "Train with --target v, eps or x0"
    if blueprint.diffusion.variance not in VARIANCES.values():
        yield "variance", blueprint.diffusion.variance, "Train with --variance small or large"
    if blueprint.wiener:
        yield "wiener", "true", "Train with --no-wiener"
    count = blueprint.process.num_timesteps
    if blueprint.process.timesteps.tolist() != list(range(count)):
        yield "rescale_timesteps", f"true over {count:,} timesteps", "Train with 1,000 timesteps"


def find_unsupported_network(config: Config, size: tuple[int, ...]) -> Iterator[Lack]:
    """Yield what of a network `UNet2DModel` has no word for."""
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
