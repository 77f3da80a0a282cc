"""Whether noise of every dimension passes through a network: if not, samples have static."""

import math

import pytest
import torch
from networks import batch, plan, randomized

from diffuse_cli.core import NETWORKS

UNET = {"multipliers": (1, 1), "blocks": 1, "groups": 1, "attention": ()}
VIT = {"network": "vit", "depth": 2, "head_width": 6}


@pytest.mark.parametrize(
    ("settings", "channels", "size", "rank"),
    [
        ({**UNET, "width": 16, "patch": 2}, 3, (8, 8), 192),
        ({**UNET, "width": 16, "patch": 4}, 2, (8, 8), 4 * 16),
        ({**UNET, "width": 6, "patch": 1}, 4, (8, 4), 128),
        ({**UNET, "width": 4, "patch": 1}, 6, (8, 8), 64 * 4),
        ({**UNET, "width": 8, "patch": 4}, 1, (32,), 32),
        ({**UNET, "width": 8, "patch": 8}, 2, (64,), 8 * 8),
        ({**UNET, "width": 16, "patch": 2}, 1, (4, 4, 4), 64),
        ({**VIT, "width": 24, "patch": 2}, 3, (8, 8), 192),
        ({**VIT, "width": 24, "patch": 4}, 3, (8, 8), 4 * 24),
        ({**VIT, "width": 24, "patch": 2, "bottleneck": 6}, 3, (8, 8), 16 * 6),
    ],
)  # fmt: skip
def test_the_rank_of_a_network_is_that_of_its_table_entry(settings, channels, size, rank):
    """Of how its output changes with its input: full, or at most the width at each position."""
    made = plan(size, channels, **settings)
    net, (x, t), numbers = randomized(made), batch(made, 1), math.prod(made.space.shape)
    copies = x.expand(numbers, *made.space.shape).clone().requires_grad_()
    each = net(copies, t.expand(numbers)).flatten(1).diagonal().sum()
    (jacobian,) = torch.autograd.grad(each, copies)
    found = int(torch.linalg.matrix_rank(jacobian.flatten(1).double(), rtol=1e-5))
    full = NETWORKS[made.network].full_rank(made.config, made.space) == made.config
    assert full == (rank == numbers)
    assert found == numbers if full else found <= rank
