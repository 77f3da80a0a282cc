"""What each command can be asked to do, as frozen dataclasses of options.

Names of table entries (`--schedule cosine`) are checked where their table is looked up, so this
module knows nothing of the core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffuse_cli.errors import UsageError
from diffuse_cli.options import (
    Config,
    Size,
    option,
    parse_betas,
    parse_color,
    parse_interval,
    parse_ints,
    parse_names,
    parse_size,
    parse_timesteps,
)

# -- the network and the process ------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Config):
    """The shape of a U-Net (the ADM topology; Dhariwal & Nichol 2021, section 3).

    Attributes:
        size: (height, width) of the images.
        channels: image channels in, and out where the variance is not learned.
        out_channels: channels of the output; None is `channels`.
        width: channels of the first level; the time embedding is four times as wide.
        attention: resolutions (the shorter side of a level's feature map) with attention; one that
            no level has is passed over, so that a list serves images of several sizes. The middle
            always has attention.
        heads, head_width: one of the two; `head_width` channels a head where `heads` is None, and
            one head where neither is given.
        block: a name in `core.blocks.BLOCKS`, for every residual block.
        resblock_updown: residual blocks change the size of feature maps, in place of convolutions
            (BigGAN up/down; section 3.1).
        groups: groups of every GroupNorm; each level's width is a multiple of it.
        num_classes: classes of the label embedding, beside the entry K for "none".
        time_embedding: a name in `core.unet.TIME_EMBEDDINGS`.
        norm_eps, downsample_padding, freq_shift, flip_sin_to_cos: as the code that a model comes
            from has them, under diffusers' names: what is added to the variance that GroupNorm
            divides by; padding of the convolutions that halve, 0 for the right and bottom edge
            alone; `shift` and `cos_first` of `core.unet.sinusoids`. The third says nothing of
            Fourier features, the second nothing of residual blocks that halve.
    """

    size: Size = option(
        (32, 32), "Height and width of the images.", parse=parse_size, metavar="H[xW]"
    )
    channels: int = option(3, "Channels of the images.", low=1, high=64)
    out_channels: int | None = option(None, "Channels of the output.", low=1, high=128)
    width: int = option(64, "Channels of the first level.", low=2, high=4096)
    multipliers: tuple[int, ...] = option(
        (1, 2, 2), "Width of each level, in multiples of the first.", parse=parse_ints
    )
    blocks: int = option(2, "Residual blocks a level.", low=1, high=16)
    attention: tuple[int, ...] = option(
        (8,), "Resolutions that have self-attention.", parse=parse_ints
    )
    heads: int | None = option(None, "Attention heads.", low=1, high=256)
    head_width: int | None = option(None, "Channels of an attention head.", low=1, high=4096)
    block: str = option("resnet", "Residual block: resnet or convnext.")
    resblock_updown: bool = option(False, "Residual blocks halve and double (BigGAN up/down).")
    scale_shift: bool = option(True, "The time scales and shifts the norm (adaptive group norm).")
    dropout: float = option(0.0, "Dropout in the residual blocks.", low=0, high=0.9)
    groups: int = option(32, "Groups of the normalisation.", low=1, high=1024)
    num_classes: int = option(0, "Classes of the label embedding.", low=0, high=1_000_000)
    time_embedding: str = option("sinusoidal", "What is shown of t: sinusoidal or fourier.")
    norm_eps: float = option(1e-5, "Added to the variance in the norms.", low=1e-12, high=1)
    downsample_padding: int = option(1, "Padding of the convolutions that halve.", low=0, high=1)
    freq_shift: int = option(0, "Shift of the sinusoids' frequencies.", low=0, high=1)
    flip_sin_to_cos: bool = option(True, "Cosines before sines in the time embedding.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.multipliers:
            raise UsageError("--multipliers needs at least one level")
        if self.heads is not None and self.head_width is not None:
            raise UsageError("heads and head_width exclude each other", "Give one of the two")
        factor = 2 ** (len(self.multipliers) - 1)
        if any(side % factor for side in self.size):
            height, width = self.size
            raise UsageError(
                f"a network of {len(self.multipliers)} levels halves {len(self.multipliers) - 1} "
                f"times, which {height}x{width} does not allow",
                f"Choose a --size that is a multiple of {factor}, or fewer levels",
            )
        for width in (self.width, *self.widths):
            self._check_width(width)
        for width, attends in zip(self.widths, self.attends, strict=True):
            if attends:
                self._check_heads(width)
        self._check_heads(self.widths[-1])

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [self.width * multiple for multiple in self.multipliers]

    @property
    def attends(self) -> list[bool]:
        """Whether the blocks of each level have attention; those of the middle always have."""
        return [min(self.size) >> i in self.attention for i in range(len(self.multipliers))]

    def _check_width(self, width: int) -> None:
        if width > 65_536:
            raise UsageError("--multipliers make a level of more than 65536 channels")
        if width % self.groups:
            raise UsageError(
                f"a level of {width} channels is not a multiple of {self.groups} groups",
                "Choose a width that is, or another number of groups",
            )

    def _check_heads(self, width: int) -> None:
        if width % self.heads_at(width):
            raise UsageError(f"a level of {width} channels cannot be cut into its attention heads")

    def heads_at(self, width: int) -> int:
        """Attention heads of a level of `width` channels."""
        if self.heads is not None:
            return self.heads
        if self.head_width is None:
            return 1
        if width % self.head_width:
            raise UsageError(f"a level of {width} channels has no heads of {self.head_width}")
        return width // self.head_width


TIMESTEPS = 1000
TIMESTEPS_SHOWN = f"{TIMESTEPS}, or the number of --betas"


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(Config):
    """The forward process and what the network learns of its reverse.

    Attributes:
        num_timesteps: T, which is 1000, or the number of `betas`, where it is not given.
        schedule: None with `betas`, which stand in its place.
        betas: the numbers themselves, also where a file of them was named.
    """

    num_timesteps: int = option(
        None, "Timesteps T of the forward process.", low=2, high=100_000, shown=TIMESTEPS_SHOWN
    )
    schedule: str = option("cosine", "Noise schedule.", table="schedules")
    betas: tuple[float, ...] | None = option(
        None, "File of betas, instead of a schedule.", parse=parse_betas, metavar="FILE"
    )
    zero_terminal_snr: bool = option(
        False, "Rescale the betas to end in pure noise (not with target eps)."
    )
    target: str = option("v", "What the network predicts.", table="targets")
    variance: str = option("small", "Variance of the reverse process.", table="variances")

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "num_timesteps", timesteps_of(self.betas, self.num_timesteps))
        if self.betas is not None:
            object.__setattr__(self, "schedule", None)


def timesteps_of(betas: Sequence[float] | None, given: int | None) -> int:
    """The number of timesteps: as given, else as many as there are betas, else 1000.

    Raises:
        UsageError: another number is given than there are betas.
    """
    if betas is None:
        return TIMESTEPS if given is None else given
    if given not in (None, len(betas)):
        raise UsageError(
            f"--num-timesteps {given} is not the number of --betas, {len(betas)}", "Leave it out"
        )
    return len(betas)


# -- the commands ---------------------------------------------------------------------------------

OVERWRITE = "Replace what is there."

SAMPLER, SAMPLING_STEPS = "unipc", 20
"""Chosen by the sweep of benchmarks/samplers.py."""

GUIDANCE = 2.0
"""The guidance scale of a model with classes where none is given."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DiffusionConfig):
    """Everything that decides the weights of a model, and how its run is kept."""

    data: str = option(help="Folder or zip of images.", argument=True, place=True, metavar="DATA")
    steps: int = option(5000, "Optimizer steps.", low=1, high=100_000_000)
    batch_size: int = option(
        64, "Images a step, over all processes and accumulation.", low=1, high=1_000_000
    )
    accumulation: int = option(1, "Forward passes a step, to save memory.", low=1, high=100_000)
    lr: float | None = option(None, "Peak learning rate.", low=0, high=10, shown="from the preset")
    warmup: int = option(100, "Steps over which the learning rate rises.", low=0)
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
    preset: str | None = option(
        None, "Network.", table="presets", shown="from image size and device"
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
    compile: bool = option(False, "Compile the network (worth it for long runs).")
    init: str | None = option(
        None, "Start from the weights and network of a model.", place=True, metavar="MODEL"
    )
    unet: Mapping[str, Any] = field(default_factory=dict)

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
        "Train about this long: measures, then fixes the steps.",
        low=0.01,
        high=1e6,
        control=True,
        shown="",
    )
    stop_at: int | None = option(
        None, "End after this step; --resume goes on.", low=1, control=True
    )
    resume: bool = option(False, "Go on from the last checkpoint.", control=True)
    dry_run: bool = option(
        False,
        "Print the complete configuration and what it costs, and train nothing.",
        control=True,
    )
    overwrite: bool = option(False, OVERWRITE, control=True)
    log: str | None = option(None, "Also log to a tracker.", table="trackers", control=True)
    save_every: int = option(500, "Steps between checkpoints.", low=1, control=True)
    preview_every: int = option(
        1000, "Steps between preview pictures and held-out losses.", low=1, control=True
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
        if self.batch_size < self.accumulation:
            raise UsageError("--accumulation must not exceed --batch-size")
        if not isinstance(self.unet, Mapping):
            raise UsageError(f"[unet] must be a table, not {self.unet!r}")
        if self.resume and self.overwrite:
            raise UsageError("--resume and --overwrite exclude each other")
        if self.loss == "vlb" and self.weighting not in (None, "none"):
            raise UsageError("--weighting does not go with --loss vlb, whose weights are its own")


@dataclass(frozen=True, kw_only=True)
class DrawConfig(Config):
    """How images are drawn from a model."""

    steps: int = option(
        SAMPLING_STEPS,
        "Steps, each of one network evaluation; of two with heun.",
        low=1,
        high=100_000,
    )
    sampler: str = option(SAMPLER, "Sampler.", table="samplers")
    spacing: str = option("trailing", "Which timesteps are visited.", table="spacings")
    eta: float | None = option(
        None, "Noise of ddim: 0 none, 1 that of ddpm.", low=0, high=1, shown="0"
    )
    order: int | None = option(None, "Order of unipc.", low=2, high=3, shown="2")
    threshold: float | None = option(
        None,
        "Percentile, for example 0.995, by which each estimate of the image is scaled back into "
        "range (dynamic thresholding), instead of being clipped.",
        low=0.01,
        high=1,
        shown="",
    )
    seed: int = option(0, "Seed of the noise.", low=0, high=2**63 - 1)
    batch_size: int = option(64, "Images at a time; does not change them.", low=1, high=100_000)
    precision: str = option("auto", "Precision of the arithmetic.", table="precisions")
    weights: str = option("ema", "Averaged weights, or the raw ones.", table="weights")
    guidance: float | None = option(
        None,
        "Guidance scale of a model with classes: 1 is the conditional model, 0 the unconditional.",
        low=0,
        high=100,
        shown=f"{GUIDANCE:g}",
    )
    guidance_interval: tuple[float, float] | None = option(
        None,
        "Noise levels sigma/alpha at which guidance acts; elsewhere its scale is 1.",
        parse=parse_interval,
        metavar="LOW,HIGH",
        shown="all",
    )

    @property
    def knobs(self) -> dict[str, float | None]:
        """What only some samplers take, None where it is not given."""
        return {"eta": self.eta, "order": self.order}


@dataclass(frozen=True, kw_only=True)
class SampleConfig(DrawConfig):
    """Images from a model file."""

    model: str = option(help="Model file.", argument=True, place=True, metavar="MODEL")
    n: int = option(16, "Number of images.", flag="-n", low=1, high=10_000_000)
    classes: tuple[str, ...] = option(
        (),
        "Class to draw; repeat it for several, which take turns.",
        flag="--class",
        parse=parse_names,
        metavar="NAME",
        shown="every class in turn",
    )
    out: str = option("samples", "Folder for the images.", flag="-o", metavar="FOLDER")
    grid: bool = option(True, "Write grid.png.")
    gif: bool = option(False, "Write denoising.gif.")
    overwrite: bool = option(False, OVERWRITE)


@dataclass(frozen=True, kw_only=True)
class EvalConfig(DrawConfig):
    """A model, or a folder of images, measured against real images."""

    subject: str = option(
        help="Model file, or folder of generated images.",
        argument=True,
        place=True,
        metavar="MODEL_OR_FOLDER",
    )
    data: str = option(
        help="Folder or zip of real images.", argument=True, place=True, metavar="DATA"
    )
    n: int = option(1000, "Images on each side.", flag="-n", low=2, high=10_000_000)
    timesteps: int | str = option(
        50, "Timesteps of the bound an image, or 'all'.", parse=parse_timesteps, metavar="N|all"
    )
    respaced: int | None = option(
        None,
        "Take the bound over so many of the model's timesteps, as a process of its own.",
        low=2,
        high=100_000,
        shown="all of them",
    )
    features: str = option("efficientnet-lite0", "Feature network.", table="features")
    background: str | None = option(
        None,
        "Colour behind transparent images.",
        parse=parse_color,
        metavar="COLOR",
        shown="the model's",
    )
    plot: str | None = option(
        None, "Write a plot of the bound by timestep.", metavar="FILE.png", shown=""
    )
    overwrite: bool = option(False, OVERWRITE)
    strict: bool = option(False, "End on the first bad file instead of skipping it.", control=True)
    workers: int | None = option(
        None, "Threads that read images.", low=1, high=256, shown="all cores"
    )


@dataclass(frozen=True, kw_only=True)
class DemoConfig(Config):
    """The forward process of one image, as a picture."""

    image: str = option(help="Image.", argument=True, place=True, metavar="IMAGE")
    schedule: tuple[str, ...] | None = option(
        None,
        "Noise schedule; repeat it to compare several.",
        table="schedules",
        parse=parse_names,
        shown="all of them",
    )
    betas: str | None = option(
        None, "File of betas to show beside the schedules.", place=True, metavar="FILE"
    )
    zero_terminal_snr: bool = option(False, "Rescale the betas to end in pure noise.")
    steps: int = option(8, "Pictures in a row.", low=2, high=64)
    num_timesteps: int | None = option(
        None, "Timesteps T of the process.", low=2, high=100_000, shown=TIMESTEPS_SHOWN
    )
    seed: int = option(0, "Seed of the noise.", low=0, high=2**63 - 1)
    size: Size | None = option(
        None,
        "Size the image is shown at.",
        parse=parse_size,
        metavar="H[xW]",
        shown="its own, at most 256",
    )
    background: str = option(
        "white", "Colour behind a transparent image.", parse=parse_color, metavar="COLOR"
    )
    out: str | None = option(
        None, "Picture to write.", flag="-o", metavar="FILE", shown="NAME.noise-demo.png"
    )
    gif: bool = option(False, "Write an animation beside the picture.")
    overwrite: bool = option(False, OVERWRITE)
