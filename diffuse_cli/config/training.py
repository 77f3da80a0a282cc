"""What decides the weights of a model, and how its run is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffuse_cli.config.model import DiffusionConfig
from diffuse_cli.core.networks import NETWORKS
from diffuse_cli.errors import UsageError
from diffuse_cli.options import OVERWRITE, option, to_dict
from diffuse_cli.parsing import Size, parse_color, parse_size


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DiffusionConfig):
    """Everything that decides the weights of a model, and how its run is kept."""

    data: str = option(help="Folder or zip of images.", argument=True, place=True, metavar="DATA")
    steps: int = option(5000, "Optimizer steps.", low=1, high=100_000_000)
    batch_size: int | None = option(
        None,
        "Images a step, over all processes and accumulation; the learning rate follows.",
        low=1,
        high=1_000_000,
        shown="64; what suits --minutes",
    )
    accumulation: int = option(1, "Forward passes a step, to save memory.", low=1, high=100_000)
    lr: float | None = option(None, "Peak learning rate.", low=0, high=10, shown="from the preset")
    warmup: int = option(
        100, "Steps over which the learning rate rises, a tenth of all at most.", low=0
    )
    weight_decay: float = option(0.01, "Weight decay of AdamW.", low=0, high=10)
    grad_clip: float = option(1.0, "Largest norm of the gradient.", low=1e-6, high=1e6)
    ema_decay: float = option(
        0.999, "Largest decay of the averaged weights.", low=0, high=0.9999999
    )
    loss: str | None = option(
        None, "Training loss.", table="losses", shown="simple; hybrid for a learned variance"
    )
    weighting: str | None = option(
        None, "Weight of the loss by SNR.", table="weightings", shown="min-snr; none with vlb"
    )
    timestep_draw: str = option(
        "uniform", "How timesteps are drawn: all alike, or by their loss.", table="timestep_draws"
    )
    classes: bool = option(False, "Condition the model on classes: the names of the folders.")
    label_dropout: float = option(
        0.1, "Share of images whose class is left out, for guidance.", low=0, high=1
    )
    seed: int = option(0, "Seed of every draw.", low=0, high=2**63 - 1)
    size: Size | None = option(
        None,
        "Image size; images of one size up to 64 keep it, others become 64x64.",
        parse=parse_size,
        metavar="H[xW]",
        shown="from the data",
    )
    medium: str | None = option(
        None, "What the samples are.", table="media", shown="what most files of DATA are"
    )
    channels: int | None = option(
        None, "Channels: 1 for grey, 3 for colour.", low=1, high=64, shown="from the data"
    )
    preset: str | None = option(
        None, "Network.", table="presets", shown="from image size and device"
    )
    network: str | None = option(
        None, "Architecture of the network.", table="networks", shown="the preset's"
    )
    width: int | None = option(
        None,
        "Base width of the network; the learning rate follows.",
        low=2,
        high=4096,
        shown="from the preset",
    )
    precision: str = option("auto", "Precision of the arithmetic.", table="precisions")
    flip: bool = option(False, "Mirror half of the images.")
    background: str = option(
        "white", "Colour behind transparent images.", parse=parse_color, metavar="COLOR"
    )
    keep_raw: bool = option(False, "Keep the weights before averaging in the model file too.")
    compile: bool = option(False, "Compile the network: for long runs on a GPU.")
    init: str | None = option(
        None, "Start from the weights and network of a model.", place=True, metavar="MODEL"
    )
    architecture: Mapping[str, Any] = field(default_factory=dict)

    strict: bool = option(False, "End on the first bad file instead of skipping it.", control=True)
    out: str = option(
        "model.safetensors",
        "Model file; its run directory lies beside it.",
        flag="-o",
        control=True,
        metavar="FILE",
    )
    minutes: float | None = option(
        None,
        "Train about this long, not counting evaluations: measures, then fixes the steps.",
        low=0.01,
        high=1e6,
        control=True,
        shown="",
    )
    stop_at: int | None = option(
        None, "End after this step; --resume goes on.", low=1, control=True
    )
    resume: bool = option(False, "Go on from the last checkpoint.", control=True)
    auto_resume: bool = option(
        False,
        "Go on where a run stands, begin one where none does: for jobs that are queued again.",
        control=True,
    )
    dry_run: bool = option(
        False,
        "Print the complete configuration and what it costs, and train nothing.",
        control=True,
    )
    overwrite: bool = option(False, OVERWRITE, control=True)
    log: str | None = option(None, "Also log to a tracker.", table="trackers", control=True)
    save_every: int | None = option(
        None,
        "Steps between checkpoints.",
        low=1,
        control=True,
        shown="500; more where saving would take over 1 % of the time",
    )
    preview_every: int = option(
        1000, "Steps between preview pictures and held-out losses.", low=1, control=True
    )
    eval_every: int | None = option(
        None,
        "Steps between evaluations: the KID of images drawn with the averaged weights. The best "
        "model is kept beside the last.",
        low=1,
        place=True,
        shown="none",
    )
    eval_images: int | None = option(
        None, "Images drawn for an evaluation.", low=4, high=100_000, place=True, shown="256"
    )
    ema_lengths: int | None = option(
        None,
        "Also keep averages of other lengths and save them so many times, for eval --ema-sweep.",
        low=4,
        high=1000,
        place=True,
        metavar="N",
        shown="none",
    )
    log_every: int = option(50, "Steps between lines of metrics.jsonl.", low=1, control=True)
    gradient_checkpointing: bool = option(
        False, "Compute activations again for the gradient: slower, in less memory.", control=True
    )
    workers: int | None = option(
        None, "Threads that read images.", low=1, high=256, control=True, shown="all cores"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None and self.batch_size < self.accumulation:
            raise UsageError("--accumulation must not exceed --batch-size")
        if not isinstance(self.architecture, Mapping):
            name = self.network or "unet"
            raise UsageError(f"[{name}] must be a table, not {self.architecture!r}")
        if self.goes_on and self.overwrite:
            flag = "--resume" if self.resume else "--auto-resume"
            raise UsageError(f"{flag} and --overwrite exclude each other")
        if self.loss == "vlb" and self.weighting not in (None, "none"):
            raise UsageError("--weighting does not go with --loss vlb, whose weights are its own")

    @property
    def goes_on(self) -> bool:
        """Whether a run that stands at `out` is gone on with."""
        return self.resume or self.auto_resume


DATA_FACTS = ("size", "channels", "out_channels", "num_classes")
"""What a table [unet] held besides its settings in files of version 0.1: facts of the data."""


def from_file(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options as a file has them, where the settings of a network are a table of its name, as
    fields of `TrainConfig`.

    Raises:
        UsageError: tables of several networks, or of another one than the file names.
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
    """A configuration as a file has it; keywords are those of `options.to_dict`."""
    fields = to_dict(config, **kinds)
    settings = fields.pop("architecture")
    return {**fields, config.network or "unet": settings} if settings else fields
