"""What decides the weights of a model, and how its run is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffuse_cli.config.options import OVERWRITE, argument, option, to_dict
from diffuse_cli.config.parsers import (
    Size,
    parse_bytes,
    parse_color,
    parse_given,
    parse_length,
    parse_listed,
)
from diffuse_cli.config.shared_options import (
    ALPHA,
    BACKGROUND,
    BITS,
    FIT,
    LAYOUT,
    OWN_BITS,
    RATE,
    DiffusionConfig,
    ReadingConfig,
)
from diffuse_cli.core.networks import NETWORKS
from diffuse_cli.system.errors import UsageError

WEIGHTED = frozenset({"vlb", "consistency"})
"""Losses that have weights of their own."""

NETWORK = "unet"
"""The network where neither it nor a preset is named."""

GIVEN_DROPOUT = 0.1
"""The default of --given-dropout."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DiffusionConfig, ReadingConfig):
    """Everything that decides the weights of a model, and how its run is kept."""

    data: str = argument("DATA", "Folder, zip, tar, parquet, npy or hf:// name.")
    steps: int = option(5000, "Training steps.", low=1, high=100_000_000)
    minutes: float | None = option.optional(
        "Train for X minutes in total, over all resumes; it sets the steps.",
        low=0.01,
        high=1e6,
        control=True,
    )
    out: str = option(
        "model.safetensors",
        "Model file; its run directory lies beside it.",
        flag="-o",
        control=True,
        place=True,
        metavar="FILE",
    )
    size: Size | None = option.optional(
        "Image size, or the length of sounds in samples. Images of a single size up to 64 keep it; "
        "others become 64x64.",
        parse=parse_length,
        shown="from the data",
    )
    preset: str | None = option.network.optional(
        "Network.", table="config.presets.PRESETS", shown="from image size and device"
    )
    batch_size: int | None = option.optional(
        "Images per step, over all processes; scales the learning rate.",
        low=1,
        high=1_000_000,
        shown="64; chosen with --minutes",
    )
    classes: bool = option(False, "Learn classes: the names of the folders.")
    resume: bool = option(False, "Continue from the last checkpoint.", control=True)
    auto_resume: bool = option.run(
        False, "Continue a run, or start one if there is none: for requeued jobs.", control=True
    )
    overwrite: bool = option(False, OVERWRITE, control=True)
    dry_run: bool = option(
        False, "Print the configuration and its cost, without training.", control=True
    )

    medium: str | None = option.data.optional(
        "What the samples are.", table="media.MEDIA", shown="that of most files in DATA"
    )
    channels: int | None = option.data.optional(
        "Channels: 1 for grey or mono, 2 for stereo, 3 for colour.",
        low=1,
        high=64,
        shown="from the data",
    )
    layout: str | None = option.data.optional(
        LAYOUT, table="media.shapes.LAYOUTS", shown="L, HW, CHW or CDHW, by their number"
    )
    alpha: bool = option.data(False, ALPHA)
    bits: int | None = option.data.optional(BITS, low=8, high=16, shown=OWN_BITS)
    rate: int | None = option.data.optional(
        RATE, low=1000, high=384_000, shown="the usual one in the data, at most 16000"
    )
    transform: str | None = option.data.optional(
        "Transform of the floats of arrays, before they are standardised by channel.",
        table="core.space.TRANSFORMS",
        shown="none",
    )
    given: str | None = option.data.optional(
        "Learn images from another that is given: a folder or zip of images with the same names, "
        "or what is made of the images themselves, such as low-res:4, grey or mask:random. "
        "--given nothing leaves out what a model of --init is given.",
        parse=parse_given,
        place=True,
        metavar="FOLDER|DEGRADATION",
        shown="nothing is given",
    )
    condition_on: tuple[str, ...] | None = option.data.optional(
        "Learn images by columns of metadata.csv or metadata.jsonl, a table in DATA that names "
        "each image in its column file_name: numbers, or labels (age,site; zip:label for numbers "
        "that are labels).",
        parse=parse_listed,
        metavar="COLUMN,...",
        shown="no table is read",
    )
    flip: bool = option.data(
        False, "Mirror half of the images, left to right; of arrays the last axis."
    )
    background: str = option.data("white", BACKGROUND, parse=parse_color)
    fit: str = option.data("crop", FIT, table="media.FITS")

    cache: int | None = option.data.optional(
        "Keep at most this much of the decoded images, in memory or, over a quarter of it, in a "
        "file in the run directory; decode the others as they are used (8GiB, 0).",
        parse=parse_bytes,
        control=True,
        shown="a quarter of the memory, or half of what is free on the disk if that is more",
    )

    width: int | None = option.network.optional(
        "Base width of the network; scales the learning rate.",
        low=2,
        high=4096,
        shown="from the preset",
    )
    init: str | None = option.network.optional(
        "Start from the weights and network of a model.", place=True, metavar="MODEL"
    )
    network: str | None = option.network.optional(
        "Network architecture.", table="core.networks.NETWORKS", shown="the preset's"
    )
    architecture: Mapping[str, Any] = field(default_factory=dict)

    lr: float | None = option.optimiser.optional(
        "Peak learning rate.", low=0, high=10, shown="from the preset"
    )
    optimizer: str | None = option.optimiser.optional(
        "Optimizer.",
        table="core.optimizers.OPTIMIZERS",
        shown="muon; adamw with the presets of papers",
    )
    warmup: int = option.optimiser(
        100, "Learning-rate warm-up steps, at most a tenth of the run.", low=0
    )
    weight_decay: float = option.optimiser(0.01, "Weight decay of AdamW.", low=0, high=10)
    grad_clip: float = option.optimiser(1.0, "Clip the gradient to this norm.", low=1e-6, high=1e6)
    accumulation: int = option.optimiser(
        1, "Split each batch into N passes, to save memory.", low=1, high=100_000
    )
    loss: str | None = option.optimiser.optional(
        "Training loss.",
        table="core.losses.LOSSES",
        shown="simple; hybrid for a learned variance",
    )
    weighting: str | None = option.optimiser.optional(
        "Weight of each timestep's loss, as a function of its SNR.",
        table="core.losses.WEIGHTINGS",
        shown="min-snr; none with vlb",
    )
    timestep_draw: str = option.optimiser(
        "uniform",
        "Draw timesteps uniformly, or more where the loss, or its weight, is large.",
        table="core.timesteps.TIMESTEP_DRAWS",
    )
    teacher_guidance: float | None = option.optimiser.optional(
        "With --loss consistency: follow the model of --init guided at this scale.",
        low=0,
        high=100,
        shown="unguided",
    )
    label_dropout: float = option.optimiser(
        0.1,
        "Share of images whose class and row of the table are hidden in training, for guidance; "
        "from as many again, some columns are.",
        low=0,
        high=1,
    )
    given_dropout: float | None = option.optimiser.optional(
        "Share of images trained without what is given, for guidance.",
        low=0,
        high=1,
        shown=f"{GIVEN_DROPOUT:g}",
    )
    given_noise: float | None = option.optimiser.optional(
        "Add noise to what is given in training, of a deviation up to this in [-1, 1], so that "
        "samples of another model may be given.",
        low=0,
        high=10,
        shown="0",
    )
    ema_decay: float = option.optimiser(
        0.999, "Largest decay of the weight average.", low=0, below=1
    )
    ema_lengths: int | None = option.optimiser.optional(
        "Save N snapshots for choosing the EMA length afterwards, with diffuse ema.",
        low=4,
        high=1000,
        place=True,
        metavar="N",
        shown="none",
    )

    seed: int = option.run(0, "Seed of all random draws.", low=0, high=2**63 - 1)
    precision: str = option.run(
        "auto", "Precision of the arithmetic.", table="system.devices.PRECISIONS"
    )
    device: str = option.run(
        "auto",
        "Device; auto is a GPU where PyTorch sees one.",
        table="system.devices.DEVICES",
        place=True,
    )
    compile: bool = option.run(False, "Compile the network: pays off in long runs on a GPU.")
    gradient_checkpointing: bool = option.run(
        False, "Save memory by recomputing activations, at some speed.", control=True
    )
    stop_at: int | None = option.run.optional(
        "Stop after this step; --resume continues.", low=1, control=True
    )
    save_every: int | None = option.run.optional(
        "Steps between checkpoints.",
        low=1,
        control=True,
        shown="500, and with each preview, if saving takes under 1 % of the time",
    )
    preview_every: int | None = option.run.optional(
        "Steps between preview pictures and held-out losses.",
        low=1,
        place=True,
        shown="an eighth of the steps, more if previews would take over a fifth of the time",
    )
    eval_every: int | None = option.run.optional(
        "Steps between measurements of KID, of arrays and sounds that of random features; also "
        "keeps the best model.",
        low=1,
        place=True,
        shown="never",
    )
    eval_images: int | None = option.run.optional(
        "Images generated for each measurement.", low=4, high=100_000, place=True, shown="256"
    )

    keep_raw: bool = option.output(
        False, "Also save the raw weights, before averaging, in the model file."
    )
    keep_weak: bool = option.output(
        False,
        "Also keep an early average (--weak-after) in the model file, for sample "
        "--guide-with self.",
    )
    weak_after: float = option.output(
        0.125, "Share of the steps after which --keep-weak takes its average.", low=0.001, below=1
    )
    log: str | None = option.output.optional(
        "Also log to a tracker.", table="system.devices.TRACKERS", control=True
    )
    log_every: int = option.output(50, "Steps between lines of metrics.jsonl.", low=1, control=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None and self.batch_size < self.accumulation:
            raise UsageError("--accumulation must not exceed --batch-size")
        if not isinstance(self.architecture, Mapping):
            name = self.network or NETWORK
            raise UsageError(f"[{name}] must be a table, not {self.architecture!r}")
        if self.goes_on and self.overwrite:
            flag = "--resume" if self.resume else "--auto-resume"
            raise UsageError(f"{flag} and --overwrite exclude each other")
        if self.loss in WEIGHTED and self.weighting not in (None, "none"):
            raise UsageError(
                f"--weighting does not go with --loss {self.loss}, which has its own weights"
            )

    @property
    def goes_on(self) -> bool:
        """Whether to continue a run that is at `out`."""
        return self.resume or self.auto_resume


DATA_FACTS = ("size", "channels", "out_channels", "num_classes")
"""Facts of the data that a table [unet] also held in files of version 0.1."""


def from_file(values: Mapping[str, Any]) -> dict[str, Any]:
    """The options in a file as fields of `TrainConfig`.

    In the file the settings of a network are a table of its name.

    Raises:
        UsageError: tables of several networks, or of one that the file does not name.
    """
    fields = dict(values)
    tables = [name for name in NETWORKS if name in fields and name != "network"]
    for name in tables:
        if fields.setdefault("network", name) != name:
            raise UsageError(f"[{name}] does not go with network = {fields['network']!r}")
        table = fields.pop(name)
        if isinstance(table, Mapping):
            if "channels" in table:
                fields.setdefault("channels", table["channels"])
            table = {k: v for k, v in table.items() if k not in DATA_FACTS}
        fields["architecture"] = table
    return fields


def to_file(config: TrainConfig, **kinds: bool) -> dict[str, Any]:
    """The inverse of `from_file`; `kinds` are keywords of `config.options.to_dict`."""
    fields = to_dict(config, **kinds)
    settings = fields.pop("architecture")
    return {**fields, config.network or NETWORK: settings} if settings else fields
