"""What another program's model is, where its files do not say it."""

from __future__ import annotations

from dataclasses import dataclass

from diffuse_cli.errors import UsageError
from diffuse_cli.options import OVERWRITE, Config, option
from diffuse_cli.parsing import Size, parse_betas, parse_size


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Config):
    """A model of another program, to be written as a model file.

    What is None is what the source or the preset says.
    """

    source: str = option(
        help="Folder or file of another program's model.",
        argument=True,
        place=True,
        metavar="SOURCE",
    )
    out: str = option("model.safetensors", "Model file to write.", flag="-o", metavar="FILE")
    format: str | None = option(
        None, "What SOURCE is.", table="formats", shown="seen from its content"
    )
    preset: str | None = option(
        None, "Published network that SOURCE is, for what its files do not say.", table="presets"
    )
    size: Size | None = option(
        None, "Image size.", parse=parse_size, metavar="H[xW]", shown="from SOURCE or preset"
    )
    schedule: str | None = option(
        None, "Noise schedule.", table="schedules", shown="from SOURCE or preset"
    )
    betas: tuple[float, ...] | None = option(
        None, "File of betas, instead of a schedule.", parse=parse_betas, metavar="FILE"
    )
    num_timesteps: int | None = option(
        None, "Timesteps T of the process.", low=2, high=100_000, shown="from SOURCE or preset"
    )
    target: str | None = option(
        None,
        "What the network predicts.",
        table="targets",
        shown="from SOURCE or preset, else eps",
    )
    variance: str | None = option(
        None, "Variance of the reverse process.", table="variances", shown="from SOURCE or preset"
    )
    rescale_timesteps: bool | None = option(
        None,
        "The network was shown t * 1000 / T, not t itself.",
        shown="on for openai, off for diffusers",
    )
    heads: int | None = option(
        None, "Attention heads (openai).", low=1, high=256, shown="from the preset"
    )
    head_width: int | None = option(
        None, "Channels of an attention head (openai).", low=1, high=4096, shown="from the preset"
    )
    heads_upsample: int | None = option(
        None,
        "Attention heads on the way up (openai), its --num_heads_upsample.",
        low=1,
        high=256,
        shown="as many as on the way down",
    )
    attention_order: str | None = option(
        None,
        "Order of queries, keys and values (openai): new is --use_new_attention_order True.",
        table="attention_orders",
        shown="from the preset, else legacy",
    )
    class_names: str | None = option(
        None,
        "Text file with the name of each class on a line of its own.",
        place=True,
        metavar="FILE",
        shown="0, 1, 2, ...",
    )
    overwrite: bool = option(False, OVERWRITE)

    def __post_init__(self) -> None:
        super().__post_init__()
        pairs = (("schedule", "betas"), ("heads", "head_width"), ("heads_upsample", "head_width"))
        for one, other in pairs:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                flags = (f"--{name.replace('_', '-')}" for name in (one, other))
                raise UsageError(
                    f"{' and '.join(flags)} exclude each other", "Leave one of them out"
                )
