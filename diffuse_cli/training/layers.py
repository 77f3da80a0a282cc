"""Layers of a training's configuration: flags, file, run directory, model, preset, default.

Each is what one source says. `merged` lays one over another: what the upper one says holds, and
what it brings with it, by `RULES`, takes the place of what the lower one says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from diffuse_cli.config import TrainConfig
from diffuse_cli.core.networks.unet import groups_at
from diffuse_cli.core.variances import LEARNED
from diffuse_cli.errors import UsageError, suggest
from diffuse_cli.options import from_dict, parsed
from diffuse_cli.presets import PRESETS

NAMES = frozenset(TrainConfig.__dataclass_fields__)


@dataclass(frozen=True)
class Layer:
    """What one source says of a training: options by name; one that it does not say is absent.

    Raises:
        UsageError: there is no such option, or its value cannot be.
    """

    said: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := [name for name in self.said if name not in NAMES]:
            raise UsageError(
                f"configuration: there is no option '{unknown[0]}'", suggest(unknown[0], NAMES)
            )
        object.__setattr__(self, "said", parsed(TrainConfig, self.said))

    def __contains__(self, name: str) -> bool:
        return name in self.said

    def get(self, name: str, default: Any = None) -> Any:
        """What it says of an option."""
        return self.said.get(name, default)

    def without(self, *names: str) -> Layer:
        """The layer that does not say these."""
        return Layer({k: v for k, v in self.said.items() if k not in names})

    def config(self) -> TrainConfig:
        """The configuration of the layer over the defaults.

        Raises:
            UsageError: it says nothing of the data, or options that exclude each other.
        """
        return from_dict(TrainConfig, self.said)


def merged(*layers: Layer) -> Layer:
    """One layer of several, the uppermost first."""
    below = Layer()
    for above in reversed(layers):
        for rule in RULES:
            below = rule(above, below)
        below = Layer({**below.said, **above.said})
    return below


# -- what an option brings with it ----------------------------------------------------------------

Rule = Callable[[Layer, Layer], Layer]
"""(above, below) to what is left of the layer below."""


def default_loss(variance: str) -> str:
    """The loss where none is given: a learned variance is learned from the bound."""
    return "hybrid" if variance in LEARNED else "simple"


def said(name: str, *fall: str) -> Rule:
    """Where the upper layer says `name`, these of the lower one fall."""
    return lambda above, below: below.without(*fall) if name in above else below


def network_of(name: str, *fall: str) -> Rule:
    """Where the upper layer has another `name`, the network of the lower one falls."""

    def rule(above: Layer, below: Layer) -> Layer:
        if name in above and below.get("architecture") and above.get(name) != below.get(name):
            return below.without("architecture", "width", *fall)
        return below

    return rule


def loss_of_variance(above: Layer, below: Layer) -> Layer:
    """With another variance the loss falls that was the default of the one before."""
    before = str(below.get("variance", "small"))
    if above.get("variance", before) != before and below.get("loss") == default_loss(before):
        return below.without("loss")
    return below


def levels_of_size(above: Layer, below: Layer) -> Layer:
    """A size brings its own levels."""
    return _settings(below, lambda k, v: k != "multipliers") if "size" in above else below


def network_of_width(above: Layer, below: Layer) -> Layer:
    """Of a network of another width, what does not divide the new one falls, and groups that
    followed from the old one."""
    if "width" not in above:
        return below
    width, followed = above.get("width"), _groups_followed(below)

    def stays(name: str, value: Any) -> bool:
        if name == "groups" and followed:
            return False
        if name in ("groups", "heads", "head_width", "heads_up"):
            return not (isinstance(value, int) and value and width % value)
        return name != "width"

    return _settings(below, stays)


def _groups_followed(layer: Layer) -> bool:
    """Whether the groups of a network are what its preset makes of its width."""
    settings, preset = layer.get("architecture"), layer.get("preset")
    width = settings.get("width") if isinstance(settings, Mapping) else None
    if not isinstance(settings, Mapping) or not isinstance(width, int) or width < 1:
        return False  # what it is will be refused in its place
    published = isinstance(preset, str) and preset in PRESETS and PRESETS[preset].published
    return bool(settings.get("groups") == groups_at(width, published))


def _settings(layer: Layer, stays: Callable[[str, Any], bool]) -> Layer:
    """The layer with those settings of its network that stay."""
    settings = layer.get("architecture")
    if not isinstance(settings, Mapping):
        return layer
    kept = {name: value for name, value in settings.items() if stays(name, value)}
    return Layer({**layer.said, "architecture": kept})


RULES: tuple[Rule, ...] = (
    network_of("preset", "network"),
    network_of("network", "preset"),
    network_of_width,
    levels_of_size,
    loss_of_variance,
    said("loss", "weighting"),
    said("betas", "num_timesteps"),
    said("schedule", "betas"),
)
