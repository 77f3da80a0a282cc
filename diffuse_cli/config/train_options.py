"""Options of `train`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffuse_cli.config import parsers, shared_options
from diffuse_cli.config.options import option
from diffuse_cli.config.sample_options import ComputeConfig
from diffuse_cli.core import NETWORKS
from diffuse_cli.core.settings import setting
from diffuse_cli.system import UsageError

CONSISTENCY = "consistency"
"""The loss of `distill`, which is not an option of `train`."""

WEIGHTED = frozenset({"vlb", CONSISTENCY})
"""Losses that have their own weights."""

WEIGHTING = "sigmoid"
"""The weighting of the other losses where none is named."""

NETWORK = "unet"
"""The network where neither it nor a preset is named."""

MOST_STEPS, STEP_LIMIT = 5000, 100_000_000
"""The most steps that a run takes by default, and the largest --steps."""

GIVEN_DROPOUT = 0.1
"""The default of --given-dropout."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(shared_options.DiffusionConfig, shared_options.FormConfig):
    """Everything that decides the weights of a model, and how its run is kept.

    Attributes:
        architecture: the settings of the network.
        teacher_guidance: the guidance scale of the model that a run distills.
    """

    data: str = option.argument("DATA", "Folder, zip, tar, parquet, npy, nc or hf:// name.")
    steps: int | None = option.optional(
        "Training steps.", low=1, high=STEP_LIMIT, shown=f"at most {MOST_STEPS}"
    )
    minutes: float | None = option.optional(
        "Train for X minutes in total, over all resumes, instead of --steps.",
        low=0.01,
        high=1e6,
        control=True,
    )
    out: str = option(
        "model.safetensors",
        "Model file, with its run directory created next to it.",
        flag="-o",
        control=True,
        place=True,
        metavar="FILE",
    )
    size: parsers.Size | None = option.optional(
        "Image size, or length of sounds in samples.",
        parse=parsers.parse_length,
        shown="from the data",
    )
    preset: str | None = option.network.optional(
        "Network with its training settings.",
        table="config.presets.PRESETS",
        shown="from image size and device",
    )
    batch_size: int | None = option.optional(
        "Images per step over all processes, which also scales the learning rate.",
        low=1,
        high=1_000_000,
        shown="64, or chosen with --minutes",
    )
    classes: bool = option(False, "Condition on classes, named by the folders of the images.")
    resume: bool = option(False, "Continue from the last checkpoint.", control=True)
    auto_resume: bool = option.run(
        False, "Continue a run, or start one if there is none, for requeued jobs.", control=True
    )
    overwrite: bool = option.overwrite(control=True)
    dry_run: bool = option(
        False, "Print the configuration and its cost without training.", control=True
    )

    medium: str | None = option.data.optional(
        "Kind of data.", table="media.MEDIA", shown="the most frequent kind in DATA"
    )
    channels: int | None = option.data.optional(
        "Channels: 1 for grey or mono, 2 for stereo, 3 for color.",
        low=1,
        high=64,
        shown="from the data",
    )
    transform: str | None = option.data.optional(
        "Transform of float arrays before standardization by channel.",
        table="core.space.TRANSFORMS",
        shown="none",
    )
    given: str | None = option.conditioning.optional(
        "Condition on images of the same names, or on a degradation, for example low-res:4.",
        parse=parsers.parse_given,
        place=True,
        metavar="FOLDER|DEGRADATION",
        shown="none, or as the --init model (nothing: drop it)",
    )
    condition_on: tuple[str, ...] | None = option.conditioning.optional(
        "Condition on metadata columns, for example age,zip:label, or on vectors in a file.",
        parse=parsers.parse_listed,
        metavar="COLUMN,...",
        shown="none",
    )
    flip: bool = option.data(
        False, "Mirror half of the training images, or the last axis of arrays."
    )
    augment: tuple[str, ...] | None = option.data.optional(
        "Change training samples at random, with the changes as inputs of the network.",
        table="core.augmentations.AUGMENTATIONS",
        parse=parsers.parse_augment,
        metavar="none|auto|NAME,...",
        shown="auto: if few samples are seen often",
    )
    background: str = option.data("white", shared_options.BACKGROUND, parse=parsers.parse_color)
    fit: str = option.data("crop", shared_options.FIT, table="media.FITS")

    cache: int | None = option.data.optional(
        "Memory or disk space for decoded images, for example 8GiB, or 0 for none.",
        parse=parsers.parse_bytes,
        control=True,
        shown="a quarter of free memory, or half of the free disk space if more",
    )

    width: int | None = option.network.optional(
        "Base width of the network, which also scales the learning rate.",
        low=2,
        high=4096,
        shown="from the preset",
    )
    init: str | None = option.network.optional(
        "Start from the weights and network of a model.", place=True, metavar="MODEL"
    )
    wiener: bool | None = option.network.optional(
        "Correct a Wiener filter, the best linear denoiser of the data.",
        shown="if the network reads patches, of at most 2048 values along a side",
    )
    network: str | None = option.network.optional(
        "Network architecture.", table="core.networks.NETWORKS", shown="from the preset"
    )
    architecture: Mapping[str, Any] = field(default_factory=dict)
    teacher_guidance: float | None = setting(None, low=0, high=100)

    lr: float | None = option.optimizer.optional(
        "Peak learning rate.", low=0, high=10, shown="from the preset"
    )
    optimizer: str | None = option.optimizer.optional(
        "Optimizer.",
        table="core.optimizers.OPTIMIZERS",
        shown="muon, or adamw for presets from papers",
    )
    warmup: int = option.optimizer(
        100, "Learning-rate warm-up steps, at most a tenth of the run.", low=0
    )
    weight_decay: float = option.optimizer(0.01, "Weight decay of AdamW.", low=0, high=10)
    grad_clip: float = option.optimizer(1.0, "Clip the gradient to this norm.", low=1e-6, high=1e6)
    accumulation: int = option.optimizer(
        1, "Split each batch into N passes to save memory.", low=1, high=100_000
    )
    loss: str | None = option.optimizer.optional(
        "Training loss.",
        table="core.losses.LOSSES",
        shown="simple, or hybrid for a learned variance",
    )
    weighting: str | None = option.optimizer.optional(
        "Weight of each timestep's loss, as a function of its SNR.",
        table="core.losses.WEIGHTINGS",
        shown=f"{WEIGHTING}, or none with vlb",
    )
    timestep_draw: str = option.optimizer(
        "uniform",
        "Draw timesteps uniformly, or more where the loss or its weight is large.",
        table="core.losses.TIMESTEP_DRAWS",
    )
    label_dropout: float = option.conditioning(
        0.1, "Fraction of images trained without class and metadata, for guidance.", low=0, high=1
    )
    given_dropout: float | None = option.conditioning.optional(
        "Fraction of images trained without the conditioning image, for guidance.",
        low=0,
        high=1,
        shown=f"{GIVEN_DROPOUT:g}",
    )
    given_kind: str | None = option.conditioning.optional(
        "Whether conditioning images are label maps, with a channel for each label.",
        table=("auto", "labels", "image"),
        shown="auto: label maps if they have a palette or the levels 0, 1, 2, ...",
    )
    given_noise: float | None = option.conditioning.optional(
        "Largest standard deviation of noise added to conditioning images in training.",
        low=0,
        high=10,
        shown="0",
    )
    ema_decay: float = option.optimizer(0.999, "Largest decay of the EMA weights.", low=0, below=1)
    ema_lengths: int | None = option.optimizer.optional(
        "Save at most N snapshots, from which diffuse ema chooses the EMA length.",
        low=4,
        high=1000,
        place=True,
        metavar="N",
        shown="none",
    )

    seed: int = option.run(0, "Seed of all random numbers.", low=0, high=2**63 - 1)
    precision: str = option.run(
        "auto", "Floating-point precision.", table="system.devices.PRECISIONS"
    )
    device: str = option.repeat(ComputeConfig, "device", place=True)
    compile: bool | None = option.run.optional(
        "Compile the network, which pays off in long runs on a GPU.",
        shown="on for CUDA with Triton, from 5000 steps or 20 minutes on",
    )
    gradient_checkpointing: bool = option.run(
        False, "Recompute activations to save memory, at some cost in speed.", control=True
    )
    open: bool = option.run(False, "Open the page of the run in a browser.", control=True)
    stop_at: int | None = option.run.optional(
        "Stop after this step, to continue later with --resume.", low=1, control=True
    )
    save_every: int | None = option.run.optional(
        "Steps between checkpoints.",
        low=1,
        control=True,
        shown="500 and at each preview, if saving takes under 1 % of the time",
    )
    preview_every: int | None = option.run.optional(
        "Steps between preview images and held-out losses.",
        low=1,
        place=True,
        shown="an eighth of the run, or more if previews are slow",
    )
    eval_every: int | None = option.run.optional(
        "Steps between KID measurements, which also keep the best model.",
        low=1,
        place=True,
        shown="never",
    )
    eval_images: int | None = option.run.optional(
        "Images generated for each KID measurement.", low=4, high=100_000, place=True, shown="256"
    )

    keep: str | None = option.output.optional(
        "Weights of the model file: the final ones, or the best of --eval-every.",
        table=("best", "last"),
        control=True,
        shown="the final ones, with few images the last without copies",
    )
    keep_raw: bool = option.output(
        False, "Also save the raw weights, before averaging, in the model file."
    )
    keep_weak: bool = option.output(
        True, "Save an early EMA checkpoint, for sample --guide-with self."
    )
    log: str | None = option.output.optional(
        "Also log to an experiment tracker.", table="system.accelerator.TRACKERS", control=True
    )
    log_every: int = option.output(50, "Steps between lines of metrics.jsonl.", low=1, control=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None and self.batch_size < self.accumulation:
            raise UsageError("--accumulation must not exceed --batch-size", code="invalid_value")
        if not isinstance(self.architecture, Mapping):
            name = self.network or NETWORK
            raise UsageError(f"[{name}] must be a table, not {self.architecture!r}")
        if self.resumes and self.overwrite:
            flag = "--resume" if self.resume else "--auto-resume"
            raise UsageError(f"{flag} and --overwrite exclude each other", code="options_conflict")
        if self.loss in WEIGHTED and self.weighting not in (None, "none"):
            text = f"--weighting does not suit --loss {self.loss}, which has its own weights"
            raise UsageError(text, code="options_conflict")

    @property
    def num_steps(self) -> int:
        """The steps of the run. Until the data is read, the most that it may take by default."""
        return self.steps or MOST_STEPS

    @property
    def images_per_step(self) -> int:
        """The images of a step. 0 until the plan of a run decides on them."""
        return self.batch_size or 0

    @property
    def distills(self) -> bool:
        """Whether the run distills the model at `init`."""
        return self.loss == CONSISTENCY

    @property
    def resumes(self) -> bool:
        """Whether to continue a run that is at `out`."""
        return self.resume or self.auto_resume


DATA_FACTS = ("size", "channels", "out_channels", "num_classes")
"""Facts of the data that a table [unet] also held in files of version 0.1."""

REMOVED = ("weak_after",)
"""Options of earlier versions, which are ignored in files."""


def from_file(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options in a file as fields of `TrainConfig`.

    In the file the settings of a network are a table of its name.

    Raises:
        UsageError: tables of several networks, or of one that the file does not name.
    """
    fields = {k: v for k, v in values.items() if k not in REMOVED}
    tables = [name for name in NETWORKS if name in fields and name != "network"]
    for name in tables:
        if fields.setdefault("network", name) != name:
            text = f"[{name}] does not suit network = {fields['network']!r}"
            raise UsageError(text, code="options_conflict", option="--network")
        table = fields.pop(name)
        if isinstance(table, Mapping):
            if "channels" in table:
                fields.setdefault("channels", table["channels"])
            table = {k: v for k, v in table.items() if k not in DATA_FACTS}
        fields["architecture"] = table
    return fields


def to_file(config: TrainConfig, **kinds: bool) -> dict[str, Any]:
    """Return the inverse of `from_file`; `kinds` are keywords of `Options.to_dict`."""
    fields = config.to_dict(**kinds)
    settings = fields.pop("architecture")
    if fields.get("init") and config.given is None:  # otherwise it would be the model's
        fields["given"] = "nothing"
    return {**fields, config.network or NETWORK: settings} if settings else fields
