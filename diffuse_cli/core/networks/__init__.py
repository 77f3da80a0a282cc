"""Networks, one architecture per file. `Network` describes their interface.

A network that runs its blocks through an attribute `run_block`, by default `run_directly`, can be
trained with gradient checkpointing. With a method `add_augmentation(parameters)` and a keyword
`augment`, as `ConditionedNetwork` has them, it can be trained with augmentation. Its attribute
`ends` can list modules that AdamW updates instead of Muon.
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
    """Names of the tensors of a network whose shapes depend on channels and conditions.

    Fine-tuning with other channels or conditions changes these tensors.

    Attributes:
        input: the weight whose second dimension is the channels of the sample, then of its
            estimate by a Wiener filter, if any, and of the conditioning array.
        output, output_bias: the weight and bias whose first dimension is the channels of the
            sample, followed by the channels of a learned variance.
        classes: the weight with a row for each class, and a last row for "no class".
        class_bias: the bias to which a row of `classes` is added.
        columns: the module with an embedding of each metadata column, which is also added there.
            Names of the tensors of column k begin with the module's name and k.

    If samples are cut into patches, each channel has one element per position in the patch.
    The defaults are the names in a `ConditionedNetwork`.
    """

    input: str
    output: str
    output_bias: str
    classes: str = "class_embedding.weight"
    class_bias: str = "time_embedding.linear_2.bias"
    columns: str = "row_embedding"


class Network(Protocol):
    """Module of this folder that defines an architecture.

    It can have more functions and constants, see `unet`:

    - `adapt` fits a preset to a space.
    - `ENDS` is its `Ends`.
    - `resized(config, before, after)` returns the configuration with the same weights at another
      size. Without it, the configuration does not change.
    - `OF_SIZE` is the set of settings that depend on the size.
    - `at_width(settings, width, published)` returns the settings that are valid at another width.
    - `full_rank(config, space)` returns the nearest configuration whose output can hold noise in
      every dimension.

    Attributes:
        Config: the `Settings` of the architecture, such as widths and heads, without the data's.
    """

    Config: type[Any]

    def build(
        self, config: Any, space: Space, conditions: Conditions, out_channels: int | None = None
    ) -> nn.Module:
        """Build a network with random weights, which is called as `net(x, t, **cond)`.

        x is (B, C, *size), t is (B,) in 0 ... 1000, and the result is (B, out_channels, *size).

        Raises:
            InvalidArgument: the configuration does not work for the space.
        """
        ...

    def describe(self, config: Any, space: Space) -> list[str]:
        """Describe the network in one or two lines, for `diffuse info`."""
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
        size: the spatial dimensions, or one number for square images.
        out_channels: the number of output channels, by default `channels`. A learned variance needs
            twice that number.
        settings: fields of the network's `Config`.

    Raises:
        InvalidArgument: a wrong setting, or a size for which the network does not work.
    """
    space = Space(channels=channels, size=(size, size) if isinstance(size, int) else size)
    config = network.Config(**settings)
    return network.build(config, space, conditions or Conditions(), out_channels)


def run_directly(block: Run, *inputs: object) -> Tensor:
    """Run a block."""
    return block(*inputs)


def run_checkpointed(block: Run, *inputs: object) -> Tensor:
    """Run a block, store only its inputs, and run it again for the gradient (Chen et al. 2016).

    Dropout drops the same elements in both runs.
    """
    from torch.utils.checkpoint import checkpoint

    h: Tensor = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=True)
    return h


def count_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a network."""
    return sum(p.numel() for p in module.parameters())


def largest_width(config: Any) -> int | None:
    """Return the largest width of a configuration, or None if it has no widths."""
    return max(getattr(config, "widths", None) or [getattr(config, "width", 0)]) or None
