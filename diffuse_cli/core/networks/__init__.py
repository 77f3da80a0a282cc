"""Networks, one architecture a file, as `Network` describes.

A network that runs its blocks through an attribute `run_block` (`plainly` until it is set) can be
trained with gradient checkpointing. In `ends` it may name modules that Muon leaves to AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.registry import Modules
from diffuse_cli.core.space import Space

if TYPE_CHECKING:
    from torch import Tensor, nn

Run = Callable[..., "Tensor"]


@dataclass(frozen=True)
class Ends:
    """The tensors of a network whose shapes depend on what a model is of, by name.

    With them a model of some channels and conditions becomes one of others.

    Attributes:
        input: its second dimension is the channels of the sample and then of what is given.
        output, output_bias: their first dimension is the channels of the sample, and then of its
            variance if that is learned.
        classes: a row for each class, and one for "no class".
        class_bias: a bias that a row is added to.
        columns: the module with an embedding of each column, added to the same: tensors of column k
            begin with its name and k.

    Where samples are cut into patches, each channel is followed by its other places in the patch.
    """

    input: str
    output: str
    output_bias: str
    classes: str
    class_bias: str
    columns: str


class Network(Protocol):
    """A module of this folder.

    It may also have, as `unet` does: `adapt`, to fit a preset to a space; `ENDS`, its `Ends`;
    `resized(config, before, after)`, the configuration whose weights are the same at another size,
    if it is not the same itself; `OF_SIZE`, the settings that follow from a size;
    `at_width(settings, width, published)`, those of a table of settings that suit another width;
    and `full_rank(config, space)`, the nearest configuration whose output can hold noise in every
    dimension, which is the same one if it can itself.

    Attributes:
        Config: `Settings` such as widths and heads, and nothing about the data.
    """

    Config: type[Any]

    def build(
        self, config: Any, space: Space, conditions: Conditions, out_channels: int | None = None
    ) -> nn.Module:
        """A network with random weights, called as `net(x, t, **cond)`.

        x is (B, C, *size), t (B,) in 0 ... 1000, and the result (B, out_channels, *size).

        Raises:
            InvalidArgument: the space does not suit the configuration.
        """
        ...

    def describe(self, config: Any, space: Space) -> list[str]:
        """The network in a line or two, for `diffuse info`."""
        ...


NETWORKS: Mapping[str, Network] = Modules("networks", __name__, __path__, helpers=("layers",))


def build_for(
    network: Network,
    channels: int,
    size: int | tuple[int, ...],
    conditions: Conditions | None = None,
    out_channels: int | None = None,
    **settings: Any,
) -> nn.Module:
    """Build a network with random weights for samples of a shape.

    Args:
        size: one number for square images.
        out_channels: `channels` by default; twice as many with a learned variance.
        settings: fields of the network's `Config`.

    Raises:
        InvalidArgument: a wrong setting, or a size that does not suit the network.
    """
    space = Space(channels=channels, size=(size, size) if isinstance(size, int) else size)
    config = network.Config(**settings)
    return network.build(config, space, conditions or Conditions(), out_channels)


def plainly(block: Run, *inputs: object) -> Tensor:
    """Run a block."""
    return block(*inputs)


def checkpointed(block: Run, *inputs: object) -> Tensor:
    """Run a block, keep only its inputs, and run it again for the gradient (Chen et al. 2016).

    Dropout drops the same elements the second time.
    """
    from torch.utils.checkpoint import checkpoint

    h: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=True)
    return h


def count_parameters(module: nn.Module) -> int:
    """The number of parameters of a network."""
    return sum(p.numel() for p in module.parameters())


def widest(config: Any) -> int | None:
    """The most channels of a configuration's feature maps, if it says."""
    return max(getattr(config, "widths", None) or [getattr(config, "width", 0)]) or None
