"""Checkpoints of OpenAI's improved-diffusion and guided-diffusion: a state dict and nothing else.

The tensors show the shape of the network. A preset or options give the attention heads, the image
size and the process. The rows of `qkv` are ordered by head and then query, key, value (`legacy`,
the only order of improved-diffusion), or the other way round (`new`, guided-diffusion's
`use_new_attention_order`). The label embedding has no row for "no class". It is zero here, which
gives the network without a label. As it was not trained so, `diffuse sample` does not guide it by
default.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from diffuse_cli.commands.convert.importers import assembly
from diffuse_cli.commands.convert.importers._foreign_files import ForeignSource
from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.config.parsers import Size
from diffuse_cli.config.presets import PRESETS
from diffuse_cli.core import InvalidArgument, parameterization
from diffuse_cli.system import ModelFileError, Notice, UsageError, file_types

OPTIONS = ("heads", "head_width", "heads_upsample", "attention_order")

GROUPS = 32
"""Groups of every GroupNorm in OpenAI's code."""

NEW_ORDER = ("adm-64",)
"""Presets whose published checkpoint uses the `new` order."""

ASSUMED = (
    "assumed {} attention heads on the way up, too: pass --heads-upsample N if it was trained with "
    "another --num_heads_upsample"
)

RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
QKV = ("to_q", "to_k", "to_v")
ATTENTION = {"group_norm": "norm", **dict.fromkeys(QKV, "qkv"), "to_out.0": "proj_out"}
ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "class_embedding": "label_emb",
}
"""OpenAI's layers by the names of `UNet`: in residual blocks, in attention and outside both."""


def recognizes(source: ForeignSource) -> bool:
    """Whether it is a file whose first layers have OpenAI's names."""
    return file_types.is_of("openai", source.tensors)


def read(source: ForeignSource, config: ConvertConfig) -> assembly.ForeignModel:
    """Return the network and weights of a checkpoint, which does not hold its process."""
    if not recognizes(source):
        text = f"{source.name} is not a checkpoint of OpenAI's: no input_blocks"
        raise ModelFileError(text, code="model_unsupported", path=source.path)
    state = source.tensors
    shape = _shape(source)
    heads = _heads(source, config, shape)
    size = _size(source, config, shape["attends"])
    attention = assembly.attention_at(size, shape.pop("attends"))
    if config.preset:
        shape["dropout"] = PRESETS[config.preset].settings.get("dropout", 0.0)
    fields = {**shape, **heads, "attention": attention}
    unet = assembly.read_net(source.path, config, size, fields)
    source_names = dict(_names(unet))
    order = config.attention_order or ("new" if config.preset in NEW_ORDER else "legacy")
    mapped_names = set(source_names.values())
    tensors = {name: tensor for name, tensor in state.items() if name not in mapped_names}
    for our_name, name in source_names.items():
        if name in state:
            tensors[our_name] = _part(unet, our_name, state[name], order)
    assumed = config.heads and config.heads_upsample is None and any(unet.attends)
    return assembly.ForeignModel(
        unet=unet,
        diffusion={"variance": _variance(unet, config.preset)},
        tensors=tensors,
        source_names=source_names,
        notices=(Notice(ASSUMED.format(config.heads)),) if assumed else (),
    )


# -- the shape ------------------------------------------------------------------------------------


def _shape(source: ForeignSource) -> dict[str, Any]:
    """Return the fields of the network that its tensors show; `attends`: the levels with
    attention."""
    state = source.tensors

    def sizes(name: str) -> list[int]:
        if name not in state:
            text = f"{source.name} is not a whole checkpoint: {name} is missing"
            raise ModelFileError(text, code="model_damaged", path=source.path)
        return [*state[name].shape, 0, 0]

    blocks, levels, updown = _blocks(source)
    firsts = [f"input_blocks.{1 + i * (blocks + 1)}" for i in range(levels)]
    width, channels = sizes("input_blocks.0.0.weight")[:2]
    time_width = sizes("time_embed.0.weight")[1]
    widths = [sizes(f"{first}.0.out_layers.3.weight")[0] for first in firsts]
    if not width or any(w == 0 or w % width for w in widths):
        raise ModelFileError(
            f"{source.name} has levels of {widths} channels, not multiples of the first's {width}",
            code="model_unsupported",
            path=source.path,
        )
    return {
        "channels": channels,
        "out_channels": sizes("out.2.weight")[0],
        "width": width,
        "time_width": None if time_width == width else time_width,
        "multipliers": tuple(w // width for w in widths),
        "blocks": blocks,
        "resblock_updown": updown,
        "scale_shift": sizes(f"{firsts[0]}.0.emb_layers.1.weight")[0] == 2 * widths[0],
        "groups": GROUPS,
        "num_classes": sizes("label_emb.weight")[0] if "label_emb.weight" in state else 0,
        "attends": [f"{first}.1.qkv.weight" in state for first in firsts],
    }


def _blocks(source: ForeignSource) -> tuple[int, int, bool]:
    """Residual blocks per level, levels, and whether residual blocks do the resampling.

    On the way up a level has one block more, and each level but the last ends with upsampling: a
    residual block or convolution after the first part of its last output block.
    """
    places = [match for name in source.tensors if (match := _PLACE.match(name))]
    outputs = {match["block"] for match in places}
    ups = {match["block"]: match["kind"] for match in places if match["part"] != "0"
           and match["kind"] in ("in_layers", "conv")}  # fmt: skip
    levels = len(ups) + 1
    if not outputs:
        text = f"{source.name} has no output_blocks: it is a classifier, not a diffusion model"
        raise ModelFileError(text, code="model_unsupported", path=source.path)
    if len(outputs) % levels or len(outputs) == levels:
        text = f"{source.name}: {len(outputs)} output blocks do not divide into {levels} levels"
        raise ModelFileError(text, code="model_unsupported", path=source.path)
    return len(outputs) // levels - 1, levels, "in_layers" in ups.values()


_PLACE = re.compile(r"output_blocks\.(?P<block>\d+)\.(?P<part>\d+)\.(?P<kind>\w+)")


def _heads(
    source: ForeignSource, config: ConvertConfig, shape: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the attention heads of the options, or else of the preset."""
    given: Mapping[str, Any] = vars(config)
    if not (config.heads or config.head_width) and config.preset:
        given = PRESETS[config.preset].settings
    heads = {name: given.get(name) for name in ("heads", "head_width")}
    up = config.heads_upsample
    if up and heads["head_width"]:
        raise UsageError(
            f"--heads-upsample does not suit --preset {config.preset}, "
            f"whose heads are {heads['head_width']} channels wide",
            "Leave it out, or pass --heads",
            code="options_conflict",
        )
    if any(heads.values()):
        return {**heads, "heads_up": None if up == heads["heads"] else up}
    fitting = [name for name, _ in PRESETS.items() if _fits_preset(name, shape)]
    alike = ", ".join(f"--preset {name}" for name in fitting)
    raise UsageError(
        f"{source.name} does not say its attention heads and its process",
        f"It has the shape of {alike}" if alike else "Pass --heads or --head-width, and --schedule",
        code="missing_argument",
        option="--heads",
    )


def _fits_preset(preset: str, shape: Mapping[str, Any]) -> bool:
    """Whether a checkpoint has the shape of a published preset."""
    side = 2 ** len(shape["attends"]) * 4
    fields = {name: value for name, value in shape.items() if name != "attends"}
    fields["attention"] = assembly.attention_at((side, side), shape["attends"])
    try:
        net = assembly.make_net({**fields, "heads": 1}, (side, side))
    except InvalidArgument:
        return False
    return PRESETS[preset].published and not assembly.find_difference(preset, net)


def _size(source: ForeignSource, config: ConvertConfig, attends: list[bool]) -> Size:
    """Return the image size of the options, or the one at which the preset's attention resolutions
    are at the levels with attention."""
    if config.size:
        return config.size
    at = PRESETS[config.preset].settings["attention"] if config.preset else ()
    if not at or True not in attends:
        text = f"{source.name} does not say its image size"
        raise UsageError(text, "Pass --size", code="missing_argument", option="--size")
    side = max(at) << attends.index(True)
    return side, side


def _variance(unet: assembly.Net, preset: str | None) -> str:
    """Learned if there are channels for it. Else the preset's, or `large`, OpenAI's default."""
    if unet.out_channels == 2 * unet.space.channels:
        return "learned"
    variance = str(PRESETS[preset].train.get("variance", "large")) if preset else "large"
    return "large" if variance in parameterization.LEARNED else variance


# -- the tensors ----------------------------------------------------------------------------------


def _names(unet: assembly.Net) -> Iterator[tuple[str, str]]:
    """Yield every tensor's name in `UNet`, with the name of OpenAI's tensor that it is or is part
    of."""
    places = dict(_places(unet))
    for name in unet.shapes:
        layer, kind = name.rsplit(".", 1)
        if layer in ENDS:
            yield name, f"{ENDS[layer]}.{kind}"
            continue
        place = next(p for p in places if name.startswith(p + "."))
        layer = layer.removeprefix(place + ".")
        parts = {"conv": "op" if "down" in place else "conv", **RESIDUAL, **ATTENTION}
        yield name, f"{places[place]}.{parts[layer]}.{kind}"


def _places(unet: assembly.Net) -> Iterator[tuple[str, str]]:
    """Yield every block's name in `UNet`, with OpenAI's name: there are a list of blocks down and
    one up.

    Downsampling follows a level in the list. Upsampling is a part of a level's last block.
    """
    levels, attends, blocks = len(unet.config.multipliers), unet.attends, unet.config.blocks
    for i in range(levels):
        first = 1 + i * (blocks + 1)
        for j in range(blocks):
            yield f"down_blocks.{i}.resnets.{j}", f"input_blocks.{first + j}.0"
            yield f"down_blocks.{i}.attentions.{j}", f"input_blocks.{first + j}.1"
        yield f"down_blocks.{i}.downsamplers.0", f"input_blocks.{first + blocks}.0"
    for layer, part in (("resnets.0", 0), ("attentions.0", 1), ("resnets.1", 2)):
        yield f"mid_block.{layer}", f"middle_block.{part}"
    for i, attend in enumerate(reversed(attends)):
        first = i * (blocks + 1)
        for j in range(blocks + 1):
            yield f"up_blocks.{i}.resnets.{j}", f"output_blocks.{first + j}.0"
            yield f"up_blocks.{i}.attentions.{j}", f"output_blocks.{first + j}.1"
        part = 2 if attend else 1
        yield f"up_blocks.{i}.upsamplers.0", f"output_blocks.{first + blocks}.{part}"


def _part(unet: assembly.Net, name: str, tensor: Tensor, order: str) -> Tensor:
    """Return the tensor `name` of `UNet` from OpenAI's: without the last side, of length 1, of
    attention's convolutions, and only the rows of `qkv` for queries, keys or values."""
    if ".attentions." in name and tensor.ndim == 3 and tensor.shape[-1] == 1:
        tensor = tensor.squeeze(-1)
    third = next((i for i, to in enumerate(QKV) if f".{to}." in name), None)
    if third is None:
        return tensor
    width, remainder = divmod(tensor.shape[0] if tensor.ndim else 0, 3)
    if remainder or width not in unet.config.widths:
        return tensor  # its shape is refused later
    if order == "new":
        return tensor.chunk(3)[third]
    config = unet.config.up_config if name.startswith("up_blocks.") else unet.config
    by_head: Tensor = tensor.unflatten(0, (config.heads_at(width), 3, -1))
    return by_head[:, third].flatten(0, 1)
