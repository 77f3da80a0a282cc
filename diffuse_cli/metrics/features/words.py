"""What is said of samples of a space."""

from __future__ import annotations

from collections.abc import Mapping

from diffuse_cli.core.space import Space
from diffuse_cli.media import MEDIA
from diffuse_cli.metrics import Words
from diffuse_cli.metrics.features import RANDOM


def words_of(space: Space) -> Words:
    """The words of a space's medium."""
    kind = MEDIA[space.medium]
    low, high = getattr(kind, "LOW_HIGH", ("low", "high"))
    channels = getattr(kind, "CHANNELS", {}).get(space.channels, ())
    return Words(kind.MANY, getattr(kind, "POINTS", "points"), low, high, channels, kind.ONE)


def network_of(features: Mapping[str, str]) -> str:
    """The feature network, as `FeatureNetwork.described` has it, in words."""
    name = features.get("name", "")
    return "random features" if name == RANDOM else f"features of {name}"


def part_of(part: str, words: Words) -> str:
    """Which of the real samples were measured, `held-out` or `all`, in words."""
    return {"held-out": f"held-out {words.many}", "all": f"all {words.many} of DATA"}[part]
