"""The process that a network learns to reverse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffuse_cli.errors import UsageError
from diffuse_cli.options import Config, option
from diffuse_cli.parsing import parse_betas

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
