"""Generated images, which the processes of an evaluation draw together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from diffuse_cli.evaluation.team import Team
from diffuse_cli.events import Work
from diffuse_cli.resolving import DrawSettings
from diffuse_cli.sampling import collect, draw

if TYPE_CHECKING:
    import torch

    from diffuse_cli.core.denoiser import Denoiser
    from diffuse_cli.core.space import Space

Pixels = npt.NDArray[np.uint8]


def draw_share(
    settings: DrawSettings,
    denoiser: Denoiser,
    n: int,
    *,
    space: Space,
    device: torch.device,
    team: Team,
) -> Work[dict[int, Pixels]]:
    """This process's share of n images, uint8 (C, H, W) by index."""
    own = team.share(n, settings.batch_size)
    mine: dict[int, Pixels] = {}
    drawings = draw(settings, denoiser, own, space=space, device=device)
    yield from collect(drawings, space, len(own), mine)
    return mine


def gathered(mine: dict[int, Pixels], n: int, team: Team) -> Pixels:
    """The images of every process in their order, (n, C, H, W); each process must call it."""
    pixels = {i: image for part in team.gather(mine) for i, image in part.items()}
    return np.stack([pixels[i] for i in range(n)])
