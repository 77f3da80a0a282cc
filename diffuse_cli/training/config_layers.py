"""Layers of a training's configuration: flags, file, run directory, model, preset, defaults.

Each holds what one source gives. `merged` lays one over another: an option of the upper layer
holds, and `RULES` drop from the lower one what belongs to the value it replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffuse_cli.config.options import from_dict, parsed
from diffuse_cli.config.presets import PRESETS, network_of
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core.networks import NETWORKS
from diffuse_cli.core.variances import LEARNED


class Layer(dict[str, Any]):
    """The options that one source gives, by name.

    Raises:
        UsageError: a value that cannot be parsed.
    """

    def __init__(self, given: Mapping[str, Any] | None = None) -> None:
        super().__init__(parsed(TrainConfig, given or {}))

    def without(self, *names: str) -> Layer:
        """The layer without these options."""
        return Layer({k: v for k, v in self.items() if k not in names})

    @property
    def network(self) -> Mapping[str, Any]:
        """The settings of its network; none if they are not a table, which is refused later."""
        settings = self.get("architecture")
        return settings if isinstance(settings, Mapping) else {}

    def trait(self, name: str, default: Any) -> Any:
        """What the module of its network has by this name."""
        network = network_of(self.get("network"), self.get("preset"))
        return getattr(NETWORKS.get(network), name, default)

    def keeping(self, settings: Mapping[str, Any]) -> Layer:
        """The layer with these settings of its network, if it has any."""
        return Layer({**self, "architecture": settings}) if self.network else self

    def config(self) -> TrainConfig:
        """The configuration of the layer over the defaults.

        Raises:
            UsageError: no data, an unknown option, or options that exclude each other.
        """
        return from_dict(TrainConfig, self)


def merged(*layers: Layer) -> Layer:
    """One layer of several, the uppermost first."""
    below = Layer()
    for above in reversed(layers):
        for rule in RULES:
            below = rule(above, below)
        below = Layer({**below, **above})
    return below


# -- what an option brings with it ----------------------------------------------------------------

Rule = Callable[[Layer, Layer], Layer]
"""(above, below) to what is left of the layer below."""


def default_loss(variance: str) -> str:
    """The loss where none is given: a learned variance is learned from the bound."""
    return "hybrid" if variance in LEARNED else "simple"


def drops(name: str, *dropped: str) -> Rule:
    """If the upper layer gives `name`, drop these from the lower one."""
    return lambda above, below: below.without(*dropped) if name in above else below


def drops_network(name: str, *dropped: str) -> Rule:
    """If both layers have a `name`, and not the same one, drop the network of the lower one."""

    def rule(above: Layer, below: Layer) -> Layer:
        if name in above and name in below and above.get(name) != below.get(name):
            return below.without("architecture", "width", *dropped)
        return below

    return rule


def loss_of_variance(above: Layer, below: Layer) -> Layer:
    """With another variance, drop a loss that was the default of the old one."""
    before = str(below.get("variance", "small"))
    if above.get("variance", before) != before and below.get("loss") == default_loss(before):
        return below.without("loss")
    return below


def network_of_size(above: Layer, below: Layer) -> Layer:
    """Another size has levels or patches of its own, but for a network with weights."""
    sizes = above.get("size"), below.get("size")
    if "init" in above or None in sizes or sizes[0] == sizes[1]:
        return below
    followed = below.trait("OF_SIZE", frozenset())
    return below.keeping({k: v for k, v in below.network.items() if k not in followed})


def network_of_width(above: Layer, below: Layer) -> Layer:
    """With another width, drop settings of the network that do not suit it."""
    if "width" not in above:
        return below
    preset = below.get("preset")
    published = isinstance(preset, str) and preset in PRESETS and PRESETS[preset].published
    at_width = below.trait("at_width", other_width)
    return below.keeping(at_width(below.network, above.get("width"), published))


def other_width(settings: Mapping[str, Any], width: int, published: bool) -> dict[str, Any]:
    """The settings of a network that says nothing of them, at another width."""
    return {name: value for name, value in settings.items() if name != "width"}


RULES: tuple[Rule, ...] = (
    drops_network("preset", "network"),
    drops_network("network", "preset"),
    network_of_width,
    network_of_size,
    loss_of_variance,
    drops("loss", "weighting"),
    drops("betas", "num_timesteps"),
    drops("schedule", "betas"),
    drops("steps", "minutes"),
)
