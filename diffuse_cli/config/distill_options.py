"""Options of `distill`."""

from __future__ import annotations

from dataclasses import dataclass

from diffuse_cli.config.options import MODEL, OVERWRITE, Options, argument, option
from diffuse_cli.config.shared_options import BESIDE

STEPS = 1000
"""Default steps of distilling."""

SHARE = 4
"""A step takes 1/SHARE of the model's batch: each of its samples costs as much as several."""


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Options):
    """Options of a distillation run that do not come from the model."""

    model: str = argument("MODEL", MODEL)
    data: str = argument("DATA", "Training data of the model, or similar data.")
    steps: int | None = option.optional("Training steps.", low=1, high=10**8, shown=f"{STEPS}")
    minutes: float | None = option.optional(
        "Distill for X minutes in total, over all resumes, instead of --steps.", low=0.01, high=1e6
    )
    out: str = option(
        "distilled.safetensors",
        "Model file, with its run directory created next to it.",
        flag="-o",
        metavar="FILE",
    )
    guidance: float | None = option.optional(
        "Guidance scale to distill, which cannot be changed later.",
        low=0,
        high=100,
        shown="the model's default",
    )
    resume: bool = option(False, "Continue from the last checkpoint.", control=True)
    overwrite: bool = option(False, OVERWRITE)
    given: str | None = option.data.optional(BESIDE, metavar="PATH")
    batch_size: int | None = option.optimizer.optional(
        "Sampling trajectories per step, over all processes.",
        low=1,
        high=1_000_000,
        shown="a quarter of the model's",
    )
    lr: float | None = option.optimizer.optional(
        "Peak learning rate.", low=0, high=10, shown="half of the model's"
    )
    workers: int | None = option.run.optional(
        "Threads that read images.", low=1, high=256, shown="one per core"
    )
    seed: int = option.run(0, "Seed of all random numbers.", low=0, high=2**63 - 1)
    precision: str = option.run(
        "auto", "Floating-point precision.", table="system.devices.PRECISIONS"
    )
    device: str = option.run(
        "auto", "Device (auto: a GPU if PyTorch finds one).", table="system.devices.DEVICES"
    )
    stop_at: int | None = option.run.optional(
        "Stop after this step, to continue later with --resume.", low=1
    )
    preview_every: int | None = option.run.optional(
        "Steps between preview images.", low=1, shown="an eighth of the steps"
    )
    save_every: int | None = option.run.optional(
        "Steps between checkpoints.",
        low=1,
        shown="500 and at each preview, if saving takes under 1 % of the time",
    )
    log_every: int = option.output(50, "Steps between lines of metrics.jsonl.", low=1)
