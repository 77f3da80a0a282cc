"""Whether noise of every dimension passes through a network."""

import math

import pytest
import torch
import torch.nn.functional as F
from networks import batch, plan, randomized
from oracles import generator

from diffuse_cli.config.presets import choose, resolve_architecture
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import (
    LOSSES,
    NETWORKS,
    OPTIMIZERS,
    SAMPLERS,
    SCHEDULES,
    Conditions,
    Denoiser,
    Process,
    Space,
)
from diffuse_cli.core.kernels import arrange_weights

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


SIDE = 128


def smooth(count):
    """Images without texture, of little contrast, (count, 3, SIDE, SIDE)."""
    coarse = 0.1 * torch.randn(count, 3, 5, 5, generator=generator(0))
    return F.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=True)


def laplacian(x):
    """Each pixel's difference from its four neighbors, times 4, in levels of 255."""
    levels = (x.clamp(-1, 1) + 1) * 127.5
    kernel = torch.tensor([[0.0, -1, 0], [-1, 4, -1], [0, -1, 0]])
    return F.conv2d(levels.flatten(0, 1)[:, None], kernel[None, None])


def residual_noise(x):
    """The standard deviation of white noise with the median of these Laplacians."""
    return float(laplacian(x).abs().median()) / 0.6745 / 20**0.5


def trained(steps=200, crop=32):
    """The network that `diffuse train` takes for images of 128 pixels, which has learned the last
    fifth of the process from crops of smooth ones."""
    space, images, g = Space(channels=3, size=(SIDE, SIDE)), smooth(16), generator(1)
    config = TrainConfig(data="images")
    name, network = resolve_architecture(config, choose(config, space, "cpu"), space)
    torch.manual_seed(0)
    net = arrange_weights(NETWORKS[name].build(network, space, Conditions()))
    denoiser = Denoiser(net, Process(SCHEDULES["cosine"](1000)), target="v")
    optimizer = OPTIMIZERS["muon"](net, lr=0.0, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, step / 10) * (1 + math.cos(math.pi * step / steps))
        y, x = torch.randint(SIDE - crop + 1, (2,), generator=g).tolist()
        x0 = images[torch.randint(len(images), (8,), generator=g), :, y : y + crop, x : x + crop]
        t, noise = torch.randint(200, (8,), generator=g), torch.randn(x0.shape, generator=g)
        loss = LOSSES["simple"](denoiser, x0, t, noise).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return denoiser


@pytest.mark.slow
def test_samples_of_the_default_at_128_pixels_are_free_of_static():
    """Drawn from images under noise of 21 levels, of which patches of 4 leave 15."""
    denoiser, images = trained(), smooth(2)
    process, noise = denoiser.process, torch.randn(images.shape, generator=generator(2))
    times = [t for t in process.times(50) if t < 100]
    x = process.diffuse(images, torch.full((2,), times[0]), noise)
    assert residual_noise(x) > 20
    with torch.no_grad():
        *_, last = SAMPLERS["ddim"](denoiser, process, x, times, noise=lambda k: noise)
    assert residual_noise(last.x) <= 4
    assert laplacian(last.x).square().mean() >= laplacian(images).square().mean() / 2
