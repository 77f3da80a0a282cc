"""Options of commands as keywords of `train`, `Model.sample` and `evaluate`.

Written by docs/render_options.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, SupportsFloat, SupportsIndex, TypeAlias, TypedDict

from diffuse_cli.api.calls import Data

Int: TypeAlias = SupportsIndex
Float: TypeAlias = SupportsFloat | SupportsIndex
Path: TypeAlias = str | os.PathLike[str]


class GenerationOptions(TypedDict, total=False):
    """Options of both `Model.sample` and `evaluate`."""

    weights: str | None
    variance: str | None
    batch_size: Int | None
    precision: str | None
    device: str | None
    spacing: str | None
    threshold: Float | None
    guidance_interval: str | Sequence[Float] | None
    guide_with: Path | None
    guidance: Float | None
    weak_guidance: Float | None
    eta: Float | None
    order: Int | None
    start: str | None
    given: Data | None


class TrainOptions(TypedDict, total=False):
    """Options of `train` other than its parameters."""

    strict: bool | None
    workers: Int | None
    layout: str | None
    rate: Int | None
    alpha: bool | None
    bits: Int | None
    num_timesteps: Int | None
    schedule: str | None
    betas: Path | Sequence[Float] | None
    log_snr_shift: Float | None
    zero_terminal_snr: bool | None
    rescale_timesteps: bool | None
    target: str | None
    variance: str | None
    steps: Int | None
    minutes: Float | None
    size: Int | str | Sequence[Int] | None
    preset: str | None
    batch_size: Int | None
    classes: bool | None
    auto_resume: bool | None
    medium: str | None
    channels: Int | None
    transform: str | None
    given: Data | None
    condition_on: str | Sequence[str] | None
    flip: bool | None
    augment: str | Sequence[str] | None
    background: str | None
    fit: str | None
    cache: Int | str | None
    width: Int | None
    init: Path | None
    wiener: bool | None
    network: str | None
    lr: Float | None
    optimizer: str | None
    warmup: Int | None
    weight_decay: Float | None
    grad_clip: Float | None
    accumulation: Int | None
    loss: str | None
    weighting: str | None
    timestep_draw: str | None
    label_dropout: Float | None
    given_dropout: Float | None
    given_kind: str | None
    given_noise: Float | None
    ema_decay: Float | None
    ema_lengths: Int | None
    seed: Int | None
    precision: str | None
    device: str | None
    compile: bool | None
    gradient_checkpointing: bool | None
    open: bool | None
    stop_at: Int | None
    save_every: Int | None
    preview_every: Int | None
    eval_every: Int | None
    eval_images: Int | None
    keep: str | None
    keep_raw: bool | None
    keep_weak: bool | None
    log: str | None
    log_every: Int | None
    unet: Mapping[str, Any] | None
    vit: Mapping[str, Any] | None


class SampleOptions(GenerationOptions, total=False):
    """Options of `Model.sample` other than its parameters."""

    on_vector: Path | Iterable[Any] | None
    range: str | Sequence[Int] | None
    mask: Data | None
    degrade: bool | None
    then: Path | None


class EvalOptions(GenerationOptions, total=False):
    """Options of `evaluate` other than its parameters."""

    strict: bool | None
    workers: Int | None
    condition_on: Path | None
    seed: Int | None
    steps: Int | None
    sampler: str | None
    timesteps: Int | str | None
    respaced: Int | None
    plot: Path | None
    ode_steps: Int | None
    members: Int | None
    features: str | None
    feature_weights: Path | None
    background: str | None
    fit: str | None
    layout: str | None
    rate: Int | None
    train_n: Int | None
    pairs: Path | None
