"""The process that a network learns to reverse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffuse_cli.config.options import Config, process_option
from diffuse_cli.config.parsers import parse_betas
from diffuse_cli.system.errors import UsageError

TIMESTEPS = 1000
TIMESTEPS_SHOWN = f"{TIMESTEPS}, or the number of --betas"

LOG_SNR_SHIFT = (
    "Add this to the log-SNR of every timestep: -1.386 hides as much at twice the image size."
)


@dataclass(frozen=True, kw_only=True)
class DiffusionConfig(Config):
    """The forward process and what the network learns of its reverse.

    Attributes:
        num_timesteps: T; by default 1000, or the number of `betas`.
        schedule: None with `betas`.
        betas: the numbers, even if a file was given.
        rescale_timesteps: the network sees t * 1000 / T, the same scale for every T; a converted
            model may have seen t itself.
    """

    num_timesteps: int = process_option(
        None, "Timesteps T of the forward process.", low=2, high=100_000, shown=TIMESTEPS_SHOWN
    )
    schedule: str = process_option("cosine", "Noise schedule.", table="core.schedules.SCHEDULES")
    betas: tuple[float, ...] | None = process_option(
        None, "Read the betas from a file.", parse=parse_betas
    )
    log_snr_shift: float = process_option(0.0, LOG_SNR_SHIFT, low=-10, high=10)
    zero_terminal_snr: bool = process_option(
        False, "Rescale the betas to end in pure noise (not with target eps)."
    )
    rescale_timesteps: bool = process_option(True, "Show the network t * 1000 / T instead of t.")
    target: str = process_option("v", "What the network predicts.", table="core.targets.TARGETS")
    variance: str = process_option(
        "small", "Variance of the reverse process.", table="core.variances.VARIANCES"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "num_timesteps", timesteps_of(self.betas, self.num_timesteps))
        if self.betas is not None:
            object.__setattr__(self, "schedule", None)


def timesteps_of(betas: Sequence[float] | None, given: int | None) -> int:
    """The number of timesteps: `given`, else the number of betas, else 1000.

    Raises:
        UsageError: `given` is not the number of betas.
    """
    if betas is None:
        return TIMESTEPS if given is None else given
    if given not in (None, len(betas)):
        raise UsageError(
            f"--num-timesteps {given} is not the number of --betas, {len(betas)}", "Leave it out"
        )
    return len(betas)
