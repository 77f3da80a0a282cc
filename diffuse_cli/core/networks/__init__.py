"""Networks, one architecture a file.

A module of this folder has

- `Config`, `Settings` of its own: widths, blocks, heads; nothing of the data;
- `build(config, space, conditions, out_channels) -> nn.Module`, called as `net(x, t, **cond)` with
  x (B, C, *size) and t (B,), real numbers on the scale 0 ... 1000; it gives (B, out_channels,
  *size). Raises `InvalidArgument` where the space does not suit the configuration;
- `describe(config, space) -> list[str]`, what `diffuse info` says of it.

A network that runs its blocks through an attribute `run_block` (`plainly`, until it is set) can
be trained with gradient checkpointing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.registry import Modules
from diffuse_cli.core.settings import Settings
from diffuse_cli.core.space import Space

if TYPE_CHECKING:
    from torch import Tensor, nn

Run = Callable[..., "Tensor"]


class Network(Protocol):
    """What a file of this folder holds."""

    Config: type[Settings]

    def build(
        self,
        config: Any,
        space: Space,
        conditions: Conditions,
        out_channels: int | None = None,
    ) -> nn.Module:
        """A network with random weights."""
        ...

    def describe(self, config: Any, space: Space) -> list[str]:
        """The network in a line or two."""
        ...


NETWORKS: Mapping[str, Network] = Modules("networks", __name__, __path__)


def plainly(block: Run, *inputs: object) -> Tensor:
    """Run a block of a network, and keep what its gradient needs."""
    return block(*inputs)


def checkpointed(block: Run, *inputs: object) -> Tensor:
    """Run a block of a network, keep its inputs alone, and run it again for its gradient.

    Chen et al. 2016. Dropout drops the same the second time, so that the gradient is the same.
    """
    from torch.utils.checkpoint import checkpoint

    h: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=True)
    return h


def count_parameters(module: nn.Module) -> int:
    """The number of trained numbers of a network."""
    return sum(p.numel() for p in module.parameters())
