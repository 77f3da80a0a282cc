"""A model of another program and what its files do not say about it, or a model for one."""

from __future__ import annotations

from dataclasses import dataclass

from diffuse_cli.config.options import MODEL, OVERWRITE, Options, argument, option
from diffuse_cli.config.parsers import Size, parse_betas, parse_file, parse_license, parse_size
from diffuse_cli.system.errors import UsageError, flag


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(Options):
    """A model of another program, to be written as a model file, or the other way round.

    None stands for what the source or the preset says.
    """

    source: str = argument(
        "SOURCE", "Folder or file that another program saved, or with --to a model of diffuse."
    )
    where: str | None = option.optional(
        "Where to write, as with -o.",
        metavar="[OUT]",
        argument=True,
        place=True,
    )
    out: str | None = option.optional(
        "Model file to write, or what --to makes of one.",
        flag="-o",
        metavar="FILE|FOLDER",
        shown="model.safetensors, or diffusers, model.onnx or model.pt2 with --to",
    )
    to: str | None = option.optional(
        "Program to write SOURCE for, a model file or run directory of diffuse.",
        table="commands.convert.exporters.TARGETS",
        shown="by the suffix of -o, else a model file",
    )
    format: str | None = option.optional(
        "Program that saved SOURCE.",
        table="commands.convert.importers.FORMATS",
        shown="recognised by its content",
    )
    preset: str | None = option.optional(
        "Published network that SOURCE is: supplies what its files leave out.",
        table="config.presets.PRESETS",
    )
    overwrite: bool = option(False, OVERWRITE)
    weights: str | None = option.optional(
        "With --to: the averaged weights, or the raw ones.", table=("ema", "raw"), shown="ema"
    )
    sampler: str | None = option.optional(
        "With --to diffusers: the sampler whose scheduler is written.",
        table="core.samplers.SAMPLERS",
        shown="the model's, if pipelines of diffusers run it, else ddpm",
    )

    size: Size | None = option.data.optional(
        "Image size.", parse=parse_size, shown="from SOURCE or preset"
    )
    class_names: str | None = option.data.optional(
        "Text file with a class name on each line.",
        place=True,
        metavar="FILE",
        shown="0, 1, 2, ...",
    )

    heads: int | None = option.network.optional(
        "Attention heads (openai).", low=1, high=256, shown="from the preset"
    )
    head_width: int | None = option.network.optional(
        "Channels of each attention head (openai).", low=1, high=4096, shown="from the preset"
    )
    heads_upsample: int | None = option.network.optional(
        "Attention heads on the way up (openai): its --num_heads_upsample.",
        low=1,
        high=256,
        shown="as on the way down",
    )
    attention_order: str | None = option.network.optional(
        "Order of queries, keys and values (openai). new: trained with "
        "--use_new_attention_order True.",
        table=("legacy", "new"),
        shown="from the preset, else legacy",
    )

    schedule: str | None = option.process.optional(
        "Noise schedule.", table="core.schedules.SCHEDULES", shown="from SOURCE or preset"
    )
    betas: tuple[float, ...] | None = option.process.optional(
        "Read the betas from a file.", parse=parse_betas
    )
    num_timesteps: int | None = option.process.optional(
        "Timesteps T of the process.", low=2, high=100_000, shown="from SOURCE or preset"
    )
    rescale_timesteps: bool | None = option.process.optional(
        "The network was trained on t * 1000 / T instead of t.",
        shown="on for openai, off for diffusers",
    )
    target: str | None = option.process.optional(
        "What the network predicts.",
        table="core.targets.TARGETS",
        shown="from SOURCE or preset, else eps",
    )
    variance: str | None = option.process.optional(
        "Variance of the reverse process.",
        table="core.variances.VARIANCES",
        shown="from SOURCE or preset",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where is not None:
            if self.out is not None:
                raise UsageError("OUT and -o are the same", "Give one of them")
            object.__setattr__(self, "out", self.where)
            object.__setattr__(self, "where", None)
        pairs = (("schedule", "betas"), ("heads", "head_width"), ("heads_upsample", "head_width"))
        for one, other in pairs:
            if None not in (getattr(self, one), getattr(self, other)):
                raise UsageError(
                    f"{flag(one)} and {flag(other)} exclude each other", "Leave one of them out"
                )


# -- pushing --------------------------------------------------------------------------------------

# A model to be published on the hub.


@dataclass(frozen=True, kw_only=True)
class PushConfig(Options):
    """A model, and what its card says.

    Raises:
        UsageError: no licence.
    """

    model: str = argument("MODEL", MODEL)
    target: str = argument("TARGET", "The model's name on the hub, hf://ORG/NAME.")
    license: str | None = option.optional(
        "Licence under which others may use the model, as the hub writes it: mit, cc-by-4.0, "
        "other. It must be given.",
        parse=parse_license,
    )
    eval: str | None = option.optional(
        "Numbers for the card: a file of what diffuse eval --json printed.",
        parse=parse_file,
        metavar="FILE.json",
    )
    samples: str | None = option.optional(
        "Picture of samples for the card, such as grid.png.",
        parse=parse_file,
        metavar="FILE.png",
        shown="16 are drawn",
    )
    private: bool = option(False, "Let nobody else see a repository that is made.", control=True)
    out: str | None = option.optional(
        "Write the folder that would be pushed, and push nothing.",
        flag="-o",
        metavar="FOLDER",
    )
    overwrite: bool = option(False, OVERWRITE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.license is None:
            raise UsageError(
                "--license is missing: whoever finds the model must know what they may do with it",
                "Type --license mit, or the name of another",
            )
