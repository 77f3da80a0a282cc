"""Which network's features compare samples of a space with real ones.

Networks that were trained on photographs say something of images, and nothing of arrays and sounds:
those have the features of a network with random weights, whose distances are numbers of another
name (`FeatureNetwork.kid`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffuse_cli.media import judged
from diffuse_cli.metrics.features import FeatureNetwork

if TYPE_CHECKING:
    import torch

    from diffuse_cli.core.space import Space
    from diffuse_cli.media import Array
    from diffuse_cli.system.events import Work


@dataclass(frozen=True)
class Judge:
    """Chooses the network once samples are read.

    Attributes:
        trained: that of images; None where it is not needed.
    """

    trained: FeatureNetwork | None
    device: torch.device

    def of(self, space: Space, real: Array) -> FeatureNetwork:
        """The network for samples of a space; random features are standardised by the real ones,
        (N, C, *size) as stored."""
        if self.trained is not None and judged(space):
            return self.trained
        from diffuse_cli.metrics.features.feature_choice import random_network_for

        return random_network_for(space, real, self.device)


def find_judge(
    space: Space | None, device: torch.device, trained: Work[FeatureNetwork]
) -> Work[Judge]:
    """Find what judges samples of a space, before the work on them begins.

    Args:
        space: None while it is not known.
        trained: finds the network of images, where it may be needed.
    """
    needed = space is None or judged(space)
    return Judge((yield from trained) if needed else None, device)
