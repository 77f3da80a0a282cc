"""Named networks, and the default network."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diffuse_cli.config.train_options import NETWORK, TrainConfig
from diffuse_cli.core import NETWORKS, Registry, Settings, Space
from diffuse_cli.core.settings import fields_by_name
from diffuse_cli.system import UsageError, lookup, translate_errors


@dataclass(frozen=True)
class Preset:
    """A network by name.

    Attributes:
        help: its number of parameters (at 32x32 in color, or as published) and its use.
        settings: values of the network's `Config`, which it adapts to the space.
        signals: those that differ in one dimension, where a position costs a third.
        train: fields of `TrainConfig` that it sets.
        published: a model of a paper, whose number of levels is fixed. Its image size is in `train`
            if it is larger than the default one.
        network: a name in `NETWORKS`.
    """

    help: str
    settings: Mapping[str, Any]
    train: Mapping[str, Any]
    published: bool = False
    network: str = NETWORK
    signals: Mapping[str, Any] = field(default_factory=dict)

    def resolve_settings(self, dims: int) -> Mapping[str, Any]:
        """Return the settings for a number of dimensions."""
        return {**self.settings, **self.signals} if dims == 1 else self.settings


DDPM: dict[str, Any] = {
    "scale_shift": False,
    "norm_eps": 1e-6,
    "downsample_padding": 0,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
}
"""Common settings of the networks of Ho et al. 2020. The last four follow their TensorFlow code."""

ADM: dict[str, Any] = {"attention": (8, 16, 32), "resblock_updown": True}
"""Common settings of the ImageNet networks of Dhariwal & Nichol 2021."""

DDPM_TRAINING: dict[str, Any] = {
    "schedule": "linear",
    "target": "eps",
    "loss": "simple",
    "weighting": "none",
    "optimizer": "adamw",
    "warmup": 5000,
    "ema_decay": 0.9999,
    "flip": True,
    "weight_decay": 0.0,
    "wiener": False,
    "augment": (),
}
"""Ho et al. 2020, appendix B. Their learning rate is constant. Here it falls to 0."""

OPENAI_TRAINING: dict[str, Any] = {
    "target": "eps",
    "variance": "learned",
    "loss": "hybrid",
    "weighting": "none",
    "optimizer": "adamw",
    "lr": 1e-4,
    "batch_size": 128,
    "warmup": 0,
    "ema_decay": 0.9999,
    "weight_decay": 0.0,
    "grad_clip": 1e6,
    "wiener": False,
    "augment": (),
}
"""Nichol & Dhariwal 2021, appendix A, and the READMEs of improved- and guided-diffusion. They do
not clip the gradient, and their learning rate is constant. Here it falls to 0."""

JIT: dict[str, Any] = {"head_width": 64, "bottleneck": 128, "context": 32, "positions": 256}
"""Common settings of the transformers of Li & He 2025, with their patches at 256 pixels."""

JIT_TRAINING: dict[str, Any] = {
    "schedule": "flow", "target": "x0", "weighting": "jit", "wiener": False,
    "augment": (),
}  # fmt: skip
"""Training of Li & He 2025: the network predicts x_0, the loss is the velocity's error."""

IDDPM_TRAINING = {**OPENAI_TRAINING, "schedule": "cosine", "num_timesteps": 4000}
ADM_TRAINING = {**OPENAI_TRAINING, "schedule": "linear", "batch_size": 256, "flip": True}


WHOLE: dict[str, Any] = {"finest": None}
"""Signals without patches, which save little where a position costs a third."""


def _shape(
    width: int, multipliers: tuple[int, ...], blocks: int, attention: tuple[int, ...], **more: Any
) -> dict[str, Any]:
    """Return the settings that every U-Net here has, and more."""
    named = {"width": width, "multipliers": multipliers, "blocks": blocks, "attention": attention}
    return {**named, **more}


def _published(help: str, settings: Mapping[str, Any], train: Mapping[str, Any]) -> Preset:
    """Return the U-Net of a paper."""
    return Preset(help, settings, train, published=True)


PRESETS: Registry[Preset] = Registry(
    "presets",
    {
        "tiny": Preset(
            "0.4 M parameters: minutes on a laptop's CPU",
            _shape(32, (1, 1, 1), 1, (), finest=32, patch=2),
            {"lr": 4e-3},
            signals={"width": 64, "finest": 512, "patch": 16},
        ),
        "slim": Preset(
            "0.3 M: half of tiny's channels, for faster steps",
            _shape(16, (1, 2, 2), 1, (), finest=32, patch=2),
            {"lr": 8e-3},
            signals={"patch": 16},
        ),
        "small": Preset(
            "6.9 M at 32x32: hours on a CPU, less on a GPU",
            _shape(64, (1, 2, 2), 2, (7, 8), finest=64),
            {"lr": 1e-3},
            signals=WHOLE,
        ),
        "base": Preset(
            "29 M at 32x32: one GPU",
            _shape(128, (1, 2, 2, 2), 2, (7, 8, 14, 16), head_width=64, finest=64),
            {"lr": 4e-4},
            signals=WHOLE,
        ),
        "large": Preset(
            "86 M at 32x32: several GPUs",
            _shape(192, (1, 2, 2, 2), 3, (7, 8, 14, 16), head_width=64, finest=64),
            {"lr": 2e-4},
            signals=WHOLE,
        ),
        "vit-s": Preset(
            "32.5 M: a transformer, for a GPU and 64 to 256 pixels",
            {"width": 384, "depth": 12, **JIT},
            {**JIT_TRAINING, "lr": 4e-4},
            network="vit",
        ),
        "vit-b": Preset(
            "130 M: a transformer of the width of JiT-B (Li & He 2025)",
            {"width": 768, "depth": 12, **JIT},
            {**JIT_TRAINING, "lr": 2e-4},
            network="vit",
        ),
        "ddpm-cifar10": _published(
            "35.7 M: the CIFAR-10 network of Ho et al. 2020",
            _shape(128, (1, 2, 2, 2), 2, (16,), dropout=0.1, **DDPM),
            {**DDPM_TRAINING, "lr": 2e-4, "variance": "large", "batch_size": 128},
        ),
        "ddpm-celebahq-256": _published(
            "114 M: the CelebA-HQ 256x256 network of Ho et al. 2020",
            _shape(128, (1, 1, 2, 2, 4, 4), 2, (16,), **DDPM),
            {**DDPM_TRAINING, "lr": 2e-5, "variance": "small", "batch_size": 64, "size": 256},
        ),
        "iddpm-cifar10": _published(
            "52.5 M: the CIFAR-10 network of Nichol & Dhariwal 2021",
            _shape(128, (1, 2, 2, 2), 3, (8, 16), heads=4, dropout=0.3),
            IDDPM_TRAINING,
        ),
        "iddpm-imagenet64": _published(
            "121 M: the ImageNet 64x64 network of Nichol & Dhariwal 2021",
            _shape(128, (1, 2, 3, 4), 3, (8, 16), heads=4),
            IDDPM_TRAINING,
        ),
        "adm-64": _published(
            "296 M with 1000 classes: the ImageNet 64x64 network of Dhariwal & Nichol 2021",
            _shape(192, (1, 2, 3, 4), 3, **ADM, head_width=64, dropout=0.1),
            {**ADM_TRAINING, "schedule": "cosine", "lr": 3e-4, "batch_size": 2048},
        ),
        "adm-128": _published(
            "422 M with 1000 classes: the ImageNet 128x128 network of Dhariwal & Nichol 2021",
            _shape(256, (1, 1, 2, 3, 4), 2, **ADM, heads=4),
            {**ADM_TRAINING, "size": 128},
        ),
        "adm-256": _published(
            "554 M with 1000 classes: the ImageNet 256x256 network of Dhariwal & Nichol 2021",
            _shape(256, (1, 1, 2, 2, 4, 4), 2, **ADM, head_width=64),
            {**ADM_TRAINING, "size": 256},
        ),
    },
)

BATCH = 64
"""The default batch size."""

DEFAULT_RATE = 1e-3
"""The learning rate of a network without presets."""


def resolve_network(name: str | None, preset: object) -> str:
    """Return the network that is named, or else that of a preset, if there is one."""
    if name is None and isinstance(preset, str) and preset in PRESETS:
        return PRESETS[preset].network
    return name or NETWORK


def first_preset(network: str | None) -> str | None:
    """Return the preset that a network stands for where no other is named: its first. None for the
    network that has one for every device, and for one without presets."""
    if network in (None, NETWORK):
        return None
    return next((name for name, p in PRESETS.items() if p.network == network), None)


def find_preset(name: str | None) -> Preset:
    """Return a preset by name; None stands for the network's defaults.

    Raises:
        UsageError: no such preset.
    """
    if name is None:
        return Preset("", {}, {"lr": DEFAULT_RATE})
    return lookup(PRESETS, name, "--preset")


def choose(config: TrainConfig, space: Space, device: str) -> str | None:
    """Return the named preset, else one that trains in a sensible time on this device; None for a
    network without presets."""
    if config.preset is not None:
        return config.preset
    if config.network not in (None, NETWORK):
        return first_preset(config.network)
    if device == "cpu":
        return "tiny"
    return "small" if min(space.size) <= 32 else "base"


def resolve_architecture(
    config: TrainConfig, preset_name: str | None, space: Space
) -> tuple[str, Settings]:
    """Return the name and settings of the network for a space: the preset's, then
    `config.architecture`.

    `config.width` replaces the preset's width. If both size and preset are given, a size that the
    preset cannot halve is refused. Otherwise the preset is adapted to it.

    Raises:
        UsageError: no such preset or network, one that does not suit the space, or two widths.
    """
    preset, given = find_preset(preset_name), dict(config.architecture)
    name = config.network or preset.network
    if preset_name is not None and name != preset.network:
        text = f"--preset {preset_name} is a '{preset.network}', not a '{name}'"
        raise UsageError(text, "Leave out --network or --preset", code="options_conflict")
    if config.width is not None:
        if given.get("width", config.width) != config.width:
            text = f"[{name}] width = {given['width']} differs from width = {config.width}"
            hint = "Leave one of them out"
            raise UsageError(text, hint, code="options_conflict", option=f"[{name}] width")
        given["width"] = config.width
    network = lookup(NETWORKS, name, "--network")
    fields = {**preset.resolve_settings(space.dims), **given}
    if config.width is not None and "width" not in fields_by_name(network.Config):
        text = f"--width: the network '{name}' has none"
        raise UsageError(text, "Leave it out", code="option_unsuited")
    if network.adapt is None:
        return name, network_config(name, fields)
    exact = config.size is not None and config.preset is not None
    with translate_network_errors(name):
        return name, network.adapt(fields, given, space, published=preset.published, exact=exact)


def network_config(name: str, values: Mapping[str, Any]) -> Settings:
    """Return the settings of a network from plain values, for example a TOML table.

    Raises:
        UsageError: no such network, or a setting that it refuses.
    """
    module = lookup(NETWORKS, name, "--network")
    with translate_network_errors(name):
        settings: Settings = module.Config.from_dict(values)
    return settings


def translate_network_errors(network: str) -> contextlib.AbstractContextManager[None]:
    """Turn `InvalidArgument` into a `UsageError` that names the network's TOML table."""
    return translate_errors(lambda a: "--size" if a == "size" else f"[{network}] {a}")


def scale_learning_rate(
    preset: str | None, width: int | None, batch_size: int, dims: int = 2
) -> float:
    """Return the learning rate of a preset at a width and a batch size, for `dims` dimensions.

    The rate is divided by the width: an output is a sum over `width` inputs, and Adam moves each
    weight by about the learning rate regardless of its gradient, so a rate of 1 / width moves
    outputs equally at any width. This is muP's rule for hidden layers (Yang et al. 2022, table 3),
    used here for all layers. It has not been measured.
    """
    base = find_preset(preset)
    rate: float = base.train.get("lr", DEFAULT_RATE)
    rate = scale_to_batch(rate, base.train.get("batch_size", BATCH), batch_size)
    return rate if width is None else rate * base.resolve_settings(dims).get("width", width) / width


def scale_to_batch(rate: float, before: int, after: int) -> float:
    """Return the learning rate of a batch size at another one.

    The rate is multiplied by the root of the batch size: the noise of a gradient falls with that
    root, while Adam's step size stays the same (Malladi et al. 2022).
    """
    scaled: float = rate * (after / before) ** 0.5
    return scaled
