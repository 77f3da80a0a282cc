"""Options of `convert`, `push` and `distill`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from diffuse_cli.config import options, parsers, shared_options
from diffuse_cli.config.options import Options, option
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.system import UsageError, flag

of_process = partial(option.repeat, shared_options.DiffusionConfig)
of_training = partial(option.repeat, TrainConfig)
"""Options of the process of a model, and of `train`."""


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig(Options):
    """The runtime of a page that samples in a browser."""

    runtime: str | None = option.output.optional(
        "Package or folder of onnxruntime-web, for the page.",
        metavar="TGZ|FOLDER",
        shown="fetched by npm",
    )


@dataclass(frozen=True, kw_only=True)
class ConvertConfig(RuntimeConfig):
    """A model of another program, to be written as a model file, or the other way round.

    None stands for the value of the source or the preset.
    """

    source: str = option.argument(
        "SOURCE", "Folder or file of another program, or with --to a diffuse model."
    )
    where: str | None = option.optional("Output, the same as -o.", metavar="[OUT]", argument=True)
    out: str | None = option.optional(
        "Model file to write, or with --to a folder or file.",
        flag="-o",
        metavar="FILE|FOLDER",
        shown="model.safetensors, or diffusers, model.onnx, model.pt2 or page with --to",
    )
    to: str | None = option.optional(
        "Program to write the model for.",
        table="commands.convert.exporters.TARGETS",
        shown="from the suffix of -o, else a model file",
    )
    format: str | None = option.optional(
        "Program that saved SOURCE.",
        table="commands.convert.importers.FORMATS",
        shown="detected from its content",
    )
    preset: str | None = option.optional(
        "Published network of SOURCE, for settings that its files lack.",
        table="config.presets.PRESETS",
    )
    overwrite: bool = option.overwrite()
    weights: str | None = option.optional(
        "With --to: averaged weights (ema), or raw weights.", table=("ema", "raw"), shown="ema"
    )
    sampler: str | None = option.optional(
        "With --to diffusers: sampler whose scheduler is written.",
        table="core.samplers.SAMPLERS",
        shown="the model's, if diffusers has its scheduler, else ddpm",
    )
    single_file: bool = option.output(
        False, "With --to page: write one HTML file that has all others."
    )

    size: parsers.Size | None = option.data.optional(
        "Image size.", parse=parsers.parse_size, shown="from SOURCE or preset"
    )
    class_names: str | None = option.data.optional(
        "Text file with a class name on each line.", metavar="FILE", shown="0, 1, 2, ..."
    )

    heads: int | None = option.network.optional(
        "Attention heads (openai).", low=1, high=256, shown="from the preset"
    )
    head_width: int | None = option.network.optional(
        "Channels of each attention head (openai).", low=1, high=4096, shown="from the preset"
    )
    heads_upsample: int | None = option.network.optional(
        "Attention heads in the decoder (openai), its --num_heads_upsample.",
        low=1,
        high=256,
        shown="as in the encoder",
    )
    attention_order: str | None = option.network.optional(
        "Order of queries, keys and values (new: openai's --use_new_attention_order True).",
        table=("legacy", "new"),
        shown="from the preset, else legacy",
    )

    schedule: str | None = of_process("schedule", default=None, shown="from SOURCE or preset")
    betas: tuple[float, ...] | None = of_process("betas")
    num_timesteps: int | None = option.process.optional(
        "Timesteps T of the process.", low=2, high=100_000, shown="from SOURCE or preset"
    )
    rescale_timesteps: bool | None = of_process(
        "rescale_timesteps", default=None, shown="on for openai, off for diffusers"
    )
    target: str | None = of_process("target", default=None, shown="from SOURCE or preset, else eps")
    variance: str | None = of_process("variance", default=None, shown="from SOURCE or preset")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.where is not None:
            if self.out is not None:
                text, hint = "OUT and -o are the same", "Pass one of them"
                raise UsageError(text, hint, code="options_conflict", option="-o")
            object.__setattr__(self, "out", self.where)
            object.__setattr__(self, "where", None)
        pairs = (("schedule", "betas"), ("heads", "head_width"), ("heads_upsample", "head_width"))
        for first, second in pairs:
            if None not in (getattr(self, first), getattr(self, second)):
                raise options.conflict_error(flag(first), flag(second))


# -- pushing --------------------------------------------------------------------------------------

# A model to be published on the hub.


@dataclass(frozen=True, kw_only=True)
class PushConfig(RuntimeConfig):
    """A model, and the contents of its card.

    Raises:
        UsageError: no license, or options that exclude each other.
    """

    model: str = option.model()
    target: str = option.argument("TARGET", "Name on the Hugging Face Hub, hf://ORG/NAME.")
    license: str | None = option.optional(
        "License of the model (required), for example mit or cc-by-4.0.",
        parse=parsers.parse_license,
    )
    eval: str | None = option.optional(
        "Metrics for the card, from diffuse eval --json.",
        parse=parsers.parse_file,
        metavar="FILE.json",
    )
    samples: str | None = option.optional(
        "Image of samples for the card, for example grid.png.",
        parse=parsers.parse_file,
        metavar="FILE.png",
        shown="16 new samples",
    )
    demo: bool = option(False, "Add demo.html, a page that samples in a browser.")
    private: bool = option(False, "Make a new repository private.", control=True)
    out: str | None = option.optional(
        "Write the folder that would be pushed, without pushing.", flag="-o", metavar="FOLDER"
    )
    overwrite: bool = option.overwrite()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.runtime is not None and not self.demo:
            raise options.needs_error("--runtime", "--demo")
        if self.private and self.out is not None:
            text = "--private has no effect with -o"
            raise UsageError(text, "Leave one of them out", code="options_conflict")
        if self.license is None:
            text = "--license is missing: the Hub shows under which terms others may use the model"
            hint = "Pass a license, for example --license mit"
            raise UsageError(text, hint, code="missing_argument")


# -- distill --------------------------------------------------------------------------------------

DISTILL_STEPS = 1000
"""Default steps of `distill`."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(shared_options.ConditionsConfig):
    """Options of a distillation run that do not come from the model."""

    model: str = option.model()
    data: str = option.argument("DATA", "Training data of the model, or similar data.")
    steps: int | None = of_training("steps", shown=f"{DISTILL_STEPS}")
    minutes: float | None = option.optional(
        "Distill for X minutes in total, over all resumes, instead of --steps.", low=0.01, high=1e6
    )
    out: str = of_training("out", default="distilled.safetensors")
    guidance: float | None = option.optional(
        "Guidance scale to distill, which cannot be changed later.",
        low=0,
        high=100,
        shown="the model's default",
    )
    resume: bool = of_training("resume")
    overwrite: bool = option.overwrite()
    batch_size: int | None = option.optimizer.optional(
        "Sampling trajectories per step, over all processes.",
        low=1,
        high=1_000_000,
        shown="a quarter of the model's",
    )
    lr: float | None = of_training("lr", shown="half of the model's")
    workers: int | None = option.run.optional(
        "Threads that read images.", low=1, high=256, shown="one per core"
    )
    seed: int = of_training("seed")
    precision: str = of_training("precision")
    device: str = of_training("device")
    stop_at: int | None = of_training("stop_at")
    preview_every: int | None = option.run.optional(
        "Steps between preview images.", low=1, shown="an eighth of the steps"
    )
    save_every: int | None = of_training("save_every")
    log_every: int = of_training("log_every")
