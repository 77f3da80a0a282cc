"""Layers of the options for training: flags, file, run directory, model, preset, defaults.

Each layer holds the options of one source. `merge_layers` lays one over another: options of the
upper layer hold, and `RULES` drop the options of the lower layer that belong to a replaced value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffuse_cli.config.options import from_dict, parse_options
from diffuse_cli.config.presets import PRESETS, resolve_network
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import NETWORKS
from diffuse_cli.core.networks import Network
from diffuse_cli.core.parameterization import LEARNED


class Layer(dict[str, Any]):
    """Options from one source, by name.

    Raises:
        UsageError: a value cannot be parsed.
    """

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        super().__init__(parse_options(TrainConfig, given or {}))

    def without(self, *names: str) -> Layer:
        """Return the layer without these options."""
        return Layer({k: v for k, v in self.items() if k not in names})

    @property
    def network(self) -> Mapping[str, Any]:
        """Settings of the network. Empty if they are not a table, which is refused later."""
        settings = self.get("architecture")
        return settings if isinstance(settings, Mapping) else {}

    def find_network(self) -> Network | None:
        """Return the network, or None if there is no such network, which is refused later."""
        return NETWORKS.get(resolve_network(self.get("network"), self.get("preset")))

    def with_network(self, settings: Mapping[str, Any]) -> Layer:
        """Return the layer with these network settings if it has network settings."""
        return Layer({**self, "architecture": settings}) if self.network else self

    def config(self) -> TrainConfig:
        """Return the layer's options over the defaults.

        Raises:
            UsageError: the data is missing, an option is unknown, or options exclude each other.
        """
        return from_dict(TrainConfig, self)


def merge_layers(*layers: Layer) -> Layer:
    """Merge layers, the uppermost first."""
    below = Layer()
    for above in reversed(layers):
        for rule in RULES:
            below = rule(above, below)
        below = Layer({**below, **above})
    return below


Rule = Callable[[Layer, Layer], Layer]
"""Function of (above, below) that returns the layer below without replaced options."""


def default_loss(variance: str) -> str:
    """Return the default loss: a learned variance is trained with the variational bound."""
    return "hybrid" if variance in LEARNED else "simple"


def make_rule(name: str, *dropped: str) -> Rule:
    """Make a rule: if the upper layer sets `name`, drop these options from the lower layer."""
    return lambda above, below: below.without(*dropped) if name in above else below


def make_network_rule(name: str, *dropped: str) -> Rule:
    """Make a rule: if two layers set a different `name`, drop the network of the lower layer."""

    def rule(above: Layer, below: Layer) -> Layer:
        if name in above and name in below and above.get(name) != below.get(name):
            return below.without("architecture", "width", *dropped)
        return below

    return rule


def drop_default_loss(above: Layer, below: Layer) -> Layer:
    """Drop a loss that was the default for another variance."""
    before = str(below.get("variance", "small"))
    if above.get("variance", before) != before and below.get("loss") == default_loss(before):
        return below.without("loss")
    return below


def drop_size_settings(above: Layer, below: Layer) -> Layer:
    """Drop levels or patches that depend on the size, unless the network has weights already."""
    sizes, network = (above.get("size"), below.get("size")), below.find_network()
    if "init" in above or None in sizes or sizes[0] == sizes[1] or network is None:
        return below
    settings = {k: v for k, v in below.network.items() if k not in network.OF_SIZE}
    return below.with_network(settings)


def drop_width_settings(above: Layer, below: Layer) -> Layer:
    """Drop network settings that do not suit another width."""
    network = below.find_network()
    if "width" not in above or network is None:
        return below
    preset = below.get("preset")
    published = isinstance(preset, str) and preset in PRESETS and PRESETS[preset].published
    return below.with_network(network.at_width(below.network, above.get("width"), published))


RULES: tuple[Rule, ...] = (
    make_network_rule("preset", "network"),
    make_network_rule("network", "preset"),
    drop_width_settings,
    drop_size_settings,
    drop_default_loss,
    make_rule("loss", "weighting"),
    make_rule("betas", "num_timesteps"),
    make_rule("schedule", "betas"),
    make_rule("steps", "minutes"),
)
