"""What decides the weights of a model, and how its run is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffuse_cli.config.model import DiffusionConfig
from diffuse_cli.errors import UsageError
from diffuse_cli.options import OVERWRITE, option
from diffuse_cli.parsing import Size, parse_color, parse_size


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DiffusionConfig):
    """Everything that decides the weights of a model, and how its run is kept."""

    data: str = option(help="Folder or zip of images.", argument=True, place=True, metavar="DATA")
    steps: int = option(5000, "Training steps.", low=1, high=100_000_000)
    minutes: float | None = option(
        None,
        "Train for about this long: measures the speed, then sets the steps.",
        low=0.01,
        high=1e6,
        control=True,
        shown="",
    )
    out: str = option(
        "model.safetensors",
        "Model file; its run directory lies beside it.",
        flag="-o",
        control=True,
        metavar="FILE",
    )
    size: Size | None = option(
        None,
        "Image size; images of one size up to 64 keep it, others become 64x64.",
        parse=parse_size,
        metavar="H[xW]",
        shown="from the data",
    )
    preset: str | None = option(
        None, "Network.", table="presets", shown="from image size and device", group="Network"
    )
    batch_size: int | None = option(
        None,
        "Images per step; the learning rate follows.",
        low=1,
        high=1_000_000,
        shown="64; with --minutes, what suits",
    )
    classes: bool = option(False, "Learn classes: the names of the folders.")
    resume: bool = option(False, "Continue from the last checkpoint.", control=True)
    overwrite: bool = option(False, OVERWRITE, control=True)
    dry_run: bool = option(
        False, "Print the configuration and what it costs; train nothing.", control=True
    )

    flip: bool = option(False, "Mirror half of the images.", group="Data")
    background: str = option(
        "white",
        "Colour behind transparent images.",
        parse=parse_color,
        metavar="COLOR",
        group="Data",
    )
    strict: bool = option(
        False, "Stop at the first bad file instead of skipping it.", control=True, group="Data"
    )
    workers: int | None = option(
        None,
        "Threads that read images.",
        low=1,
        high=256,
        control=True,
        shown="all cores",
        group="Data",
    )

    width: int | None = option(
        None,
        "Base width of the network; the learning rate follows.",
        low=2,
        high=4096,
        shown="from the preset",
        group="Network",
    )
    init: str | None = option(
        None,
        "Start from the weights and network of a model.",
        place=True,
        metavar="MODEL",
        group="Network",
    )
    unet: Mapping[str, Any] = field(default_factory=dict)

    lr: float | None = option(
        None,
        "Peak learning rate.",
        low=0,
        high=10,
        shown="from the preset",
        group="Optimisation",
    )
    warmup: int = option(
        100,
        "Steps of learning-rate warm-up, at most a tenth of all.",
        low=0,
        group="Optimisation",
    )
    weight_decay: float = option(
        0.01, "Weight decay of AdamW.", low=0, high=10, group="Optimisation"
    )
    grad_clip: float = option(
        1.0, "Clip the gradient to this norm.", low=1e-6, high=1e6, group="Optimisation"
    )
    accumulation: int = option(
        1,
        "Split each step into N passes, to save memory.",
        low=1,
        high=100_000,
        group="Optimisation",
    )
    loss: str | None = option(
        None,
        "Training loss.",
        table="losses",
        shown="simple; hybrid for a learned variance",
        group="Optimisation",
    )
    weighting: str | None = option(
        None,
        "Weight of each timestep's loss, by its SNR.",
        table="weightings",
        shown="min-snr; none with vlb",
        group="Optimisation",
    )
    timestep_draw: str = option(
        "uniform",
        "Draw timesteps uniformly, or more where the loss is large.",
        table="timestep_draws",
        group="Optimisation",
    )
    label_dropout: float = option(
        0.1,
        "Share of images trained without their class, for guidance.",
        low=0,
        high=1,
        group="Optimisation",
    )
    ema_decay: float = option(
        0.999, "Largest decay of the weight average.", low=0, below=1, group="Optimisation"
    )
    ema_lengths: int | None = option(
        None,
        "Save N snapshots for choosing the EMA length afterwards, with diffuse ema.",
        low=4,
        high=1000,
        place=True,
        metavar="N",
        shown="none",
        group="Optimisation",
    )

    seed: int = option(0, "Seed of all random draws.", low=0, high=2**63 - 1, group="Run")
    precision: str = option("auto", "Precision of the arithmetic.", table="precisions", group="Run")
    compile: bool = option(
        False, "Compile the network; worth it for long runs on a GPU.", group="Run"
    )
    gradient_checkpointing: bool = option(
        False, "Save memory by computing activations twice; slower.", control=True, group="Run"
    )
    stop_at: int | None = option(
        None, "Stop after this step; --resume continues.", low=1, control=True, group="Run"
    )
    save_every: int | None = option(
        None,
        "Steps between checkpoints.",
        low=1,
        control=True,
        shown="500; more where saving would take over 1 % of the time",
        group="Run",
    )
    preview_every: int = option(
        1000,
        "Steps between preview pictures and held-out losses.",
        low=1,
        control=True,
        group="Run",
    )
    eval_every: int | None = option(
        None,
        "Steps between measurements of KID; the best model is kept beside the last.",
        low=1,
        place=True,
        shown="never",
        group="Run",
    )
    eval_images: int | None = option(
        None,
        "Images generated for each measurement.",
        low=4,
        high=100_000,
        place=True,
        shown="256",
        group="Run",
    )

    keep_raw: bool = option(
        False, "Also keep the weights before averaging in the model file.", group="Output"
    )
    log: str | None = option(
        None, "Also log to a tracker.", table="trackers", control=True, group="Output"
    )
    log_every: int = option(
        50, "Steps between lines of metrics.jsonl.", low=1, control=True, group="Output"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size is not None and self.batch_size < self.accumulation:
            raise UsageError("--accumulation must not exceed --batch-size")
        if not isinstance(self.unet, Mapping):
            raise UsageError(f"[unet] must be a table, not {self.unet!r}")
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite exclude each other")
        if self.loss == "vlb" and self.weighting not in (None, "none"):
            raise UsageError("--weighting does not go with --loss vlb, whose weights are its own")
