"""Shape of `vit`, and the sizes for which it works."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.settings import Settings, setting
from diffuse_cli.core.space import Space

LARGEST = 64
"""Longest side of a patch."""

POSITIONS = 2**14
"""Most patches of a sample. The cost of attention grows with their square."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Shape of a transformer over patches.

    Attributes:
        patch: the side of the patches, a divisor of the sample's sides.
        width: the length of the vector of each patch.
        depth: the number of blocks.
        head_width: the channels per attention head, an even divisor of the width.
        mlp: the ratio of the hidden width of an MLP to the width. A third is then removed because
            of the gate, so that the number of weights stays the same (Shazeer 2020, section 2).
        bottleneck: the width of a first linear layer for patches (Li & He 2025), or None to use a
            single linear layer.
        context: the number of further vectors for the conditions, which join the patches after a
            third of the blocks (Li & He 2025).
        dropout: the dropout of the results of attention and of the hidden features of MLPs.

    Raises:
        InvalidArgument: settings that do not make a network.
    """

    patch: int = setting(4, 1, LARGEST)
    width: int = setting(384, 2, 4096)
    depth: int = setting(12, 1, 128)
    head_width: int = setting(64, 2, 4096)
    mlp: float = setting(4.0, 0.5, 16)
    bottleneck: int | None = setting(None, 1, 4096)
    context: int = setting(0, 0, 1024)
    dropout: float = setting(0.0, 0, 0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head_width % 2:
            raise InvalidArgument(f"must be even, not {self.head_width}", argument="head_width")
        if self.width % self.head_width:
            text = f"a width of {self.width} cannot be cut into heads of {self.head_width}"
            raise InvalidArgument(text, f"Choose a multiple of {self.head_width}")

    @property
    def heads(self) -> int:
        """The number of attention heads."""
        return self.width // self.head_width

    @property
    def hidden_width(self) -> int:
        """The hidden width of an MLP."""
        return max(1, int(self.width * self.mlp * 2 / 3))

    @property
    def entry(self) -> int:
        """The block before which the context joins: a third of the depth, as in JiT."""
        return self.depth // 3

    def check(self, space: Space) -> None:
        """Refuse a space that the patches do not divide, or too many patches.

        Raises:
            InvalidArgument: the configuration does not work.
        """
        if any(side % self.patch for side in space.size):
            raise InvalidArgument(
                f"{space.size_text} cannot be cut into patches of {self.patch}",
                f"Choose a multiple of {self.patch}, or other patches",
                argument="size",
            )
        if (count := positions(self.patch, space)) > POSITIONS:
            text = f"{space.size_text} has too many patches for attention: {count:,}"
            hint = f"Choose a larger patch than {self.patch}, or a smaller size"
            raise InvalidArgument(text, hint, argument="size")
        if self.head_width < (min_width := 2 * space.dims):
            text = f"must be {min_width} or more in {space.dims} dimensions, not {self.head_width}"
            raise InvalidArgument(text, argument="head_width")


def positions(patch: int, space: Space) -> int:
    """Return the number of patches of a sample."""
    return math.prod(side // patch for side in space.size)
