"""`UNet2DModel` of diffusers with its scheduler: a pipeline's folder, its `unet/`, or a file there.

Tensors have the names of `UNet`, except old attention layers. `config.json` has the network,
`scheduler_config.json` the process. A folder that `convert.exporters` wrote also names the classes,
and has a row for "no class" in the label embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffuse_cli.commands.convert.importers._assembly import Foreign, Net, attention_at, network
from diffuse_cli.commands.convert.importers._foreign_files import (
    Source,
    read_json,
    read_weights,
    rejecting,
)
from diffuse_cli.config import ConvertConfig
from diffuse_cli.config.parsers import parse_betas, parse_size
from diffuse_cli.core.schedules import SCHEDULES, cosine
from diffuse_cli.core.variances import channels_out
from diffuse_cli.system import file_types
from diffuse_cli.system.errors import ModelFileError, UsageError
from diffuse_cli.system.events import Notice
from diffuse_cli.system.files import brief, show

OPTIONS: tuple[str, ...] = ()

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")

ONLY: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
}
"""The values that `UNet` supports, the default first."""

DEFAULTS: dict[str, Any] = {
    **{name: values[0] for name, values in ONLY.items()},
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
    "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "dropout": 0.0,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
"""The fields of `UNet2DModel` with their defaults."""

DOWN = {"DownBlock2D": "UpBlock2D", "AttnDownBlock2D": "AttnUpBlock2D",
        "ResnetDownsampleBlock2D": "ResnetUpsampleBlock2D"}  # fmt: skip
"""The supported levels on the way down, with those on the way up."""

OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Attention layers by their names before diffusers 0.15."""


OWN = "_diffuse"
"""The field of `config.json` that says what diffusers cannot; it keeps and ignores such names."""


def recognises(source: Source) -> bool:
    """A folder with `config.json`, there or in `unet/`, or a file with tensors of these names."""
    if source.path.is_dir():
        return file_types.is_folder(source.path)
    return file_types.is_of("diffusers", source.tensors)


def read(source: Source, config: ConvertConfig) -> Foreign:
    """The network, process and weights of a `UNet2DModel`."""
    folder = _folder(source)
    _check_pipeline(folder)
    described = folder / "config.json"
    with rejecting(described):
        said = read_json(described)
        fields = _fields(described, said)
        classes = _classes(described, said)
        unet = _network(source, config, fields, len(classes))
    process, notices = read_process(folder, unet)
    return Foreign(
        unet=unet,
        diffusion=process,
        tensors=_tensors(source, folder),
        classes=classes,
        notices=notices,
    )


# -- files ----------------------------------------------------------------------------------------


def _folder(source: Source) -> Path:
    """The folder of the network."""
    folder = source.path if source.path.is_dir() else source.path.parent
    if source.path.is_dir() and not (folder / "config.json").is_file():
        folder = folder / "unet"
    if not (folder / "config.json").is_file():
        raise ModelFileError(
            f"{source.name} has no config.json of a UNet2DModel beside its weights",
            "Give the folder that diffusers wrote",
        )
    return folder


def _check_pipeline(folder: Path) -> None:
    """Refuse the network of a pipeline that has other models."""
    for index in (folder / "model_index.json", folder.parent / "model_index.json"):
        if not index.is_file():
            continue
        others = [n for n in read_json(index) if n[:1] != "_" and n not in ("unet", "scheduler")]
        if others:
            raise ModelFileError(
                f"{show(index)} is of a pipeline with {brief(', '.join(others))}",
                "Only unconditional and class-conditional image networks are supported",
            )


def _tensors(source: Source, folder: Path) -> dict[str, Any]:
    """The weights, by today's names."""
    tensors = source.tensors
    if source.path.is_dir():
        there = [folder / name for name in WEIGHTS if (folder / name).is_file()]
        if not there:
            raise ModelFileError(
                f"{show(folder)} has no {WEIGHTS[0]}",
                "Weights of another name can be given as SOURCE",
            )
        tensors = read_weights(there[0])
    renamed = {}
    for name, tensor in tensors.items():
        *path, layer, kind = name.split(".") if name.count(".") > 1 else ("", name, "")
        known = "attentions" in path and layer in OLD_NAMES
        renamed[".".join([*path, OLD_NAMES[layer], kind]) if known else name] = tensor
    return renamed


# -- the network ----------------------------------------------------------------------------------


def _classes(path: Path, said: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes where the label embedding has a row for none, in `OWN`."""
    own = said.get(OWN)
    if own is None:
        return ()
    classes = own.get("classes") if isinstance(own, dict) else None
    usable = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not usable or not classes or len(set(classes)) < len(classes):
        raise _lacking(path, OWN, own)
    if said.get("num_class_embeds") != len(classes) + 1:
        raise _lacking(path, "num_class_embeds", said.get("num_class_embeds"))
    return tuple(classes)


def _fields(path: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `UNet2DModel`, checked to be supported."""
    kind = said.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise ModelFileError(f"{show(path)} is of a {brief(kind)}, not a UNet2DModel")
    own = {name: value for name, value in said.items() if not name.startswith("_")}
    if unknown := [name for name in own if name not in DEFAULTS and own[name] is not None]:
        raise _lacking(path, unknown[0], own[unknown[0]])
    fields = {**DEFAULTS, **own}
    for name, values in ONLY.items():
        if fields[name] not in values:
            raise _lacking(path, name, fields[name])
    if fields["time_embedding_dim"] not in (None, 4 * fields["block_out_channels"][0]):
        raise _lacking(path, "time_embedding_dim", fields["time_embedding_dim"])
    groups = fields["attn_norm_num_groups"]
    if groups is None and fields["resnet_time_scale_shift"] == "scale_shift":
        raise ModelFileError(
            f"{show(path)}: attention without a norm in the middle block is not supported",
            "diffusers leaves the norm out with scale_shift and no attn_norm_num_groups",
        )
    if groups not in (fields["norm_num_groups"], None):
        raise _lacking(path, "attn_norm_num_groups", groups)
    return fields


def _lacking(path: Path, name: str, value: Any) -> ModelFileError:
    return ModelFileError(f"{show(path)}: {brief(name)} = {brief(repr(value))} is not supported")


def _network(source: Source, config: ConvertConfig, fields: Mapping[str, Any], classes: int) -> Net:
    """The network that the fields describe, with so many classes if they are named."""
    where = _folder(source) / "config.json"
    widths = list(fields["block_out_channels"])
    if not all(isinstance(w, int) and w > 0 and w % widths[0] == 0 for w in widths):
        raise _lacking(where, "block_out_channels", widths)
    attends, updown = _levels(where, fields, len(widths))
    size = config.size
    if size is None and fields["sample_size"] is None:
        raise UsageError(f"{source.name} does not say its image size", "Give --size")
    size = parse_size(fields["sample_size"]) if size is None else size
    return network(where, config, size, {
        "channels": fields["in_channels"],
        "out_channels": fields["out_channels"],
        "width": widths[0],
        "multipliers": [w // widths[0] for w in widths],
        "blocks": fields["layers_per_block"],
        "attention": attention_at(size, attends),
        "head_width": fields["attention_head_dim"],
        "resblock_updown": updown,
        "scale_shift": fields["resnet_time_scale_shift"] == "scale_shift",
        "dropout": fields["dropout"],
        "groups": fields["norm_num_groups"],
        "num_classes": classes or fields["num_class_embeds"] or 0,
        "norm_eps": fields["norm_eps"],
        "downsample_padding": fields["downsample_padding"],
        "freq_shift": fields["freq_shift"],
        "flip_sin_to_cos": fields["flip_sin_to_cos"],
    })  # fmt: skip


def _levels(path: Path, fields: Mapping[str, Any], count: int) -> tuple[list[bool], bool]:
    """Which levels have attention, and whether residual blocks do the resampling."""
    down, up = (
        [str(kind).removeprefix("UNetRes") for kind in fields[f"{way}_block_types"]]
        for way in ("down", "up")
    )
    if len(down) != count or not set(down) <= set(DOWN):
        raise _lacking(path, "down_block_types", down)
    attends = [kind.startswith("Attn") for kind in down]
    by_resnet = _by_resnet(down, fields["downsample_type"])
    if len(by_resnet) > 1:
        raise _lacking(path, "down_block_types", down)
    mirrored = [kind.startswith("Attn") for kind in reversed(up)] == attends
    alike = _by_resnet(up, fields["upsample_type"]) == by_resnet
    if not mirrored or not alike or not set(up) <= set(DOWN.values()):
        raise _lacking(path, "up_block_types", up)
    return attends, True in by_resnet


def _by_resnet(kinds: list[str], attending: str) -> set[bool]:
    """Whether residual blocks resample, of every level but the last; `attending` says it for levels
    with attention."""
    return {
        attending == "resnet" if kind.startswith("Attn") else kind.startswith("Resnet")
        for kind in kinds[:-1]
    }


# -- scheduler ------------------------------------------------------------------------------------

# The process that a scheduler of diffusers describes.
#
# Its betas are computed as diffusers does; if one of our schedules has the same, the model file
# names the schedule. Networks of diffusers take t itself, whatever the number of timesteps.

SCHEDULERS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("DDPMScheduler", "DDIMScheduler", "DDIMInverseScheduler", "PNDMScheduler",
         "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler",
         "EulerAncestralDiscreteScheduler"),
        (1e-4, 0.02),
    ),
    "HeunDiscreteScheduler": (0.00085, 0.012),
}  # fmt: skip
"""Schedulers with the same fields for betas, with their defaults of `beta_start` and `beta_end`."""

TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "fixed_large_log": "large",
    "learned_range": "learned",
}


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

CLOSE = 1e-6
"""Betas with a smaller relative difference are equal in float32, which schedulers use."""


def read_process(folder: Path, unet: Net) -> tuple[dict[str, Any], tuple[Notice, ...]]:
    """The fields of a process, and what to tell the user."""
    learned = unet.out_channels == channels_out("learned", unet.space.channels)
    shown = {"rescale_timesteps": False}
    there = (folder, folder / "scheduler", folder.parent / "scheduler")
    paths = [place / "scheduler_config.json" for place in there]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        text = f"network from {show(folder / 'config.json')}; there is no scheduler_config.json"
        return {**shown, "variance": "learned" if learned else "small"}, (Notice(text),)
    said = read_json(path)
    with rejecting(path):
        if (name := said.get("_class_name")) not in SCHEDULERS:
            raise _untold(path, "_class_name", name, SCHEDULERS)
        if (told := said.get("timestep_type", "discrete")) != "discrete":
            raise _untold(path, "timestep_type", told, ("discrete",))
        betas = _betas(path, said)
        target = said.get("prediction_type", "epsilon")
        if target not in TARGETS or said.get("predict_epsilon", True) is not True:
            raise _untold(path, "prediction_type", target, TARGETS)
        variance = said.get("variance_type") or ("learned_range" if learned else "fixed_small")
        if variance not in VARIANCES:
            raise _untold(path, "variance_type", variance, VARIANCES)
    found = {
        **shown,
        **betas,
        "target": TARGETS[target],
        "variance": VARIANCES[variance],
        "zero_terminal_snr": bool(said.get("rescale_betas_zero_snr")) and not _ends(betas),
    }
    return found, _notices(folder, path, said)


def _untold(path: Path, name: str, value: Any, known: Any) -> ModelFileError:
    return ModelFileError(
        f"{show(path)}: {name} is {brief(repr(value))}", f"Known are: {', '.join(known)}"
    )


def _betas(path: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """The betas of a scheduler, or our schedule with the same."""
    if said.get("trained_betas") is not None:
        betas = list(parse_betas(list(said["trained_betas"])))
    else:
        kind = said.get("beta_schedule", "linear")
        if kind not in BETAS:
            raise _untold(path, "beta_schedule", kind, BETAS)
        count = said.get("num_train_timesteps", 1000)
        if not isinstance(count, int) or not 2 <= count <= 100_000:
            raise ValueError(f"num_train_timesteps is {count!r}, not 2 to 100,000")
        first, last = SCHEDULERS[said["_class_name"]]
        start, end = float(said.get("beta_start", first)), float(said.get("beta_end", last))
        betas = list(parse_betas(list(BETAS[kind](count, start, end))))
    for name, schedule in SCHEDULES.items():
        pairs = zip(schedule(len(betas)), betas, strict=True)
        if all(math.isclose(a, b, rel_tol=CLOSE) for a, b in pairs):
            return {"schedule": name, "num_timesteps": len(betas)}
    return {"betas": tuple(betas)}


def _ends(said: Mapping[str, Any]) -> bool:
    """Whether betas end without signal, so that there is nothing to rescale."""
    betas = said.get("betas") or SCHEDULES[said["schedule"]](said["num_timesteps"])
    return bool(betas[-1] == 1)


def _notices(folder: Path, path: Path, said: Mapping[str, Any]) -> tuple[Notice, ...]:
    """The files that were read, and settings of sampling that a model file does not keep."""
    read = Notice(f"network from {show(folder / 'config.json')}, process from {show(path)}")
    if said.get("thresholding") and said.get("sample_max_value", 1.0) != 1:
        ratio = brief(said.get("dynamic_thresholding_ratio", 0.995))
        text = f"uses thresholding: sample with --threshold {ratio}"
    elif not said.get("clip_sample", True) or said.get("clip_sample_range", 1.0) != 1:
        text = "does not clip to [-1, 1]; `diffuse sample` does"
    else:
        return (read,)
    return read, Notice(f"{show(path)} {text}", warning=True)
