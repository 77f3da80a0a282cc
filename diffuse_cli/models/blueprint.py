"""Build the network, process and denoiser of a model or a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diffuse_cli.config.presets import translate_network_errors
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.core import NETWORKS, SCHEDULES, Conditions, Settings, Space, output_channels
from diffuse_cli.core.schedules import shift_log_snr, zero_terminal_snr
from diffuse_cli.system import lookup, translate_errors

if TYPE_CHECKING:
    from torch import nn

    from diffuse_cli.core import DataGaussian, Denoiser, Process, Reference
    from diffuse_cli.core.networks import Network


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """Description of a model without its weights.

    Attributes:
        space: the space of the samples.
        network: a name in `NETWORKS`.
        config: the network's `Config`.
        conditions: the conditions of the network.
        diffusion: the process, target and variance.
        wiener: whether the network corrects the Wiener filter of `gaussian`.
        gaussian: the Gaussian of the training data, if it was measured.
    """

    space: Space
    network: str
    config: Settings
    conditions: Conditions
    diffusion: DiffusionConfig
    wiener: bool = False
    gaussian: DataGaussian | None = None

    @property
    def architecture(self) -> Network:
        """The entry of the network in `NETWORKS`."""
        return NETWORKS[self.network]

    @property
    def out_channels(self) -> int:
        """The number of output channels of the network."""
        return output_channels(self.diffusion.variance, self.space.channels)

    @property
    def input_space(self) -> Space:
        """The space of the network's input: x_t and the estimate of the Wiener filter, if any."""
        space = self.space
        if not self.wiener:
            return space
        return replace(space, channels=2 * space.channels, mean=2 * space.mean, std=2 * space.std)

    def build(self) -> nn.Module:
        """Return the network with random weights.

        Raises:
            UsageError: the network does not suit the space.
        """
        return build(*self._parts)

    def build_on_meta(self) -> nn.Module:
        """Return the network without weights, on the meta device. Raises as `build`."""
        return build_on_meta(*self._parts)

    @cached_property
    def process(self) -> Process:
        """The forward process.

        Raises:
            UsageError: as `make_process`.
        """
        return make_process(self.diffusion)

    def check_network(self) -> None:
        """Refuse a network that cannot be built. Raises as `build`."""
        shapes(*self._parts)

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor of the network by name. Allocates nothing."""
        return shapes(*self._parts)

    @property
    def _parts(self) -> tuple[str, Settings, Space, Conditions, int]:
        return self.network, self.config, self.input_space, self.conditions, self.out_channels

    def denoiser(self, net: Any, room: Callable[[], int] | None = None) -> Denoiser:
        """Return a network with the model's process, target, variance and Wiener filter.

        It predicts samples larger than the model's in windows.

        Args:
            room: a function that returns the most windows to predict at a time.

        Raises:
            UsageError: as `make_denoiser`.
        """
        from diffuse_cli.core import Reference
        from diffuse_cli.core.tiling import tile_network

        reference = None
        if self.wiener:
            assert self.gaussian
            denoise = tile_network(self.gaussian.denoise, self.space.size)
            reference = Reference(denoise, self.gaussian.scale)
        net = tile_network(net, self.space.size, room=room)
        return make_denoiser(net, self.diffusion, self.process, self.space.bins, reference)


def build(
    network: str, config: Settings, space: Space, conditions: Conditions, out_channels: int
) -> nn.Module:
    """Return a network with random weights.

    Raises:
        UsageError: the name is unknown, or the network does not suit the space.
    """
    module = lookup(NETWORKS, network, "--network")
    with translate_network_errors(network):
        return module.build(config, space, conditions, out_channels)


def build_on_meta(
    network: str, config: Settings, space: Space, conditions: Conditions, out_channels: int
) -> nn.Module:
    """Return a network without weights, on the meta device. Raises as `build`."""
    import torch

    from diffuse_cli.core.networks.layers import SkipInitialization

    with torch.device("meta"), SkipInitialization():
        return build(network, config, space, conditions, out_channels)


@lru_cache(maxsize=32)
def shapes(
    network: str, config: Settings, space: Space, conditions: Conditions, out_channels: int
) -> Mapping[str, tuple[int, ...]]:
    """Return the shape of each tensor of a network by name. Allocates nothing.

    The result is cached, because a command needs the shapes for the configuration, the model file
    and the checkpoint.
    """
    net = build_on_meta(network, config, space, conditions, out_channels)
    return MappingProxyType({name: tuple(t.shape) for name, t in net.state_dict().items()})


def make_process(diffusion: DiffusionConfig) -> Process:
    """Return the forward process of a configuration.

    Raises:
        UsageError: the schedule is unknown, or the betas do not define a process.
    """
    from diffuse_cli.core import Process

    betas: Sequence[float] | None = diffusion.betas
    if betas is None:
        betas = lookup(SCHEDULES, str(diffusion.schedule), "--schedule")(diffusion.num_timesteps)
    with translate_errors(lambda _: "--schedule" if diffusion.betas is None else "--betas"):
        if diffusion.log_snr_shift:
            betas = shift_log_snr(betas, diffusion.log_snr_shift)
        if diffusion.zero_terminal_snr:
            betas = zero_terminal_snr(betas)
        return Process(betas, None if diffusion.rescale_timesteps else range(len(betas)))


def make_denoiser(
    net: Any,
    diffusion: DiffusionConfig,
    process: Process | None = None,
    levels: int | None = 256,
    reference: Reference | None = None,
) -> Denoiser:
    """Return a network with a configuration's target and variance, and a reference.

    Args:
        process: the process of the configuration, if it is made already.

    Raises:
        UsageError: a name is unknown, the betas do not define a process, or the target is undefined
            under it.
    """
    from diffuse_cli.core import Denoiser

    process = process or make_process(diffusion)
    with translate_errors():
        target, variance = diffusion.target, diffusion.variance
        return Denoiser(net, process, target, variance, levels, reference=reference)
