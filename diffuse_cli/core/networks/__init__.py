"""Networks, one architecture per file. `Network` describes their interface.

A network that runs its blocks through an attribute `run_block`, by default `run_directly`, can be
trained with gradient checkpointing. With a method `add_augmentation(parameters)` and a keyword
`augment`, as `ConditionedNetwork` has them, it can be trained with augmentation. Its attribute
`ends` can list modules that AdamW updates instead of Muon.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.conditions import Conditions
from diffuse_cli.core.registry import InvalidArgument, Modules
from diffuse_cli.core.settings import Settings, fields_by_name
from diffuse_cli.core.space import Space

if TYPE_CHECKING:
    from torch import Tensor, nn

Run = Callable[..., "Tensor"]
Size = tuple[int, ...]


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


@dataclass(frozen=True)
class Network:
    """Architecture, as a module of this folder or another object defines it.

    The object has attributes with the names of these fields. It can leave out those with a default.

    Attributes:
        Config: the `Settings` of the architecture, such as widths and heads, without the data's.
        build: a function of (config, space, conditions, out_channels) that returns a network with
            random weights. The network is called as `net(x, t, **cond)`, with x (B, C, *size) and
            t (B,) in 0 ... 1000, and returns (B, out_channels, *size), by default C channels. It
            raises `InvalidArgument` if the configuration does not work for the space.
        describe: a function of (config, space) that describes the network in one or two lines, for
            `diffuse info`.
        adapt: a function that fits a preset to a space, as in `unet`, or None to use its settings
            as they are.
        resized: a function of (config, before, after) that returns the configuration with the same
            weights at another size.
        at_width: a function of (settings, width, published) that returns the settings that are
            valid at another width.
        full_rank: a function of (config, space) that returns the nearest configuration whose output
            can hold noise in every dimension.
        width: a function of (config) that returns the width that scales the learning rate, or None.
            By default it is the setting `width`.
        widest: a function of (config) that returns the most channels of a block, or None. By
            default it is the setting `width`.
        patch: a function of (config) that returns the side of the patches that become a position.
            By default it is the setting `patch`, or 1.
        OF_SIZE: the settings that depend on the size.
        ENDS: the tensors that depend on channels and conditions, or None if they are unknown.
    """

    Config: type[Any]
    build: Callable[..., nn.Module]
    describe: Callable[[Any, Space], list[str]]
    adapt: Callable[..., Settings] | None = None
    resized: Callable[[Any, Size, Size], Any] = lambda config, before, after: config
    at_width: Callable[[Mapping[str, Any], Any, bool], dict[str, Any]] = (
        lambda settings, width, published: {n: v for n, v in settings.items() if n != "width"}
    )
    full_rank: Callable[[Any, Space], Any] = lambda config, space: config
    width: Callable[[Any], int | None] = lambda config: config.to_dict().get("width")
    widest: Callable[[Any], int | None] = lambda config: config.to_dict().get("width")
    patch: Callable[[Any], int] = lambda config: config.to_dict().get("patch", 1)
    OF_SIZE: Collection[str] = frozenset()
    ENDS: Ends | None = None


class _Networks(Modules[Network]):
    """Table of the modules of this folder as `Network`."""

    def __getitem__(self, name: str) -> Network:
        module, attributes = super().__getitem__(name), fields_by_name(Network)
        for required in ("Config", "build", "describe"):
            if not hasattr(module, required):
                text = f"the extension {name} cannot be loaded: it has no {required}"
                raise InvalidArgument(text, "Update it, or uninstall it")
        return Network(**{a: getattr(module, a) for a in attributes if hasattr(module, a)})


NETWORKS: Mapping[str, Network] = _Networks("networks", __name__, __path__, helpers=("layers",))


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


def largest_patch(patch: int, features: int, space: Space) -> int | None:
    """Return the largest divisor of `patch` whose patches have at most `features` values, if any.

    A position of `features` numbers becomes a patch by a linear map, so patches with more values
    cannot hold noise in every dimension.
    """
    sides = (p for p in range(patch, 0, -1) if patch % p == 0)
    return next((p for p in sides if space.channels * p**space.dims <= features), None)
