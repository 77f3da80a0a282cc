"""The network, and the process that it learns to reverse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffuse_cli.errors import UsageError
from diffuse_cli.options import Config, option
from diffuse_cli.parsing import Size, parse_betas, parse_ints, parse_size


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Config):
    """The shape of a U-Net (the ADM topology; Dhariwal & Nichol 2021, section 3).

    Attributes:
        size: (height, width) of the images.
        channels: image channels in, and out where the variance is not learned.
        out_channels: channels of the output; None is `channels`.
        patch: pixels a side that are one position of the feature maps (Luhman & Luhman 2022). The
            network sees patch^2 times the channels at 1 / patch of the size; its levels halve that.
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
    patch: int = option(1, "Pixels a side of one position of the first level.", low=1, high=16)
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
        factor = self.patch * 2 ** (len(self.multipliers) - 1)
        if any(side % factor for side in self.size):
            height, width = self.size
            raise UsageError(
                f"a network of {len(self.multipliers)} levels halves {len(self.multipliers) - 1} "
                f"times{self._of_patches}, which {height}x{width} does not allow",
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
        side = min(self.size) // self.patch
        return [side >> i in self.attention for i in range(len(self.multipliers))]

    @property
    def _of_patches(self) -> str:
        return f" patches of {self.patch}x{self.patch}" if self.patch > 1 else ""

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
        rescale_timesteps: the network is shown t * 1000 / T, which is on one scale for every T; a
            model from elsewhere may have been shown t itself.
    """

    num_timesteps: int = option(
        None,
        "Timesteps T of the forward process.",
        low=2,
        high=100_000,
        shown=TIMESTEPS_SHOWN,
        group="Process",
    )
    schedule: str = option("cosine", "Noise schedule.", table="schedules", group="Process")
    betas: tuple[float, ...] | None = option(
        None, "Read the betas from a file.", parse=parse_betas, metavar="FILE", group="Process"
    )
    zero_terminal_snr: bool = option(
        False, "Rescale the betas to end in pure noise (not with target eps).", group="Process"
    )
    rescale_timesteps: bool = option(
        True, "Show the network t * 1000 / T instead of t.", group="Process"
    )
    target: str = option("v", "What the network predicts.", table="targets", group="Process")
    variance: str = option(
        "small", "Variance of the reverse process.", table="variances", group="Process"
    )

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
