"""Networks in one, two and three dimensions."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from conftest import mostly_slow
from networks import batch, plan, randomized
from oracles import generator

from diffuse_cli.core import LOSSES, SAMPLERS, SCHEDULES, Denoiser, Process
from diffuse_cli.core.kernels import arrange_memory, arrange_weights
from diffuse_cli.core.networks.layers import fold_patches, unfold_patches

SIZES = {1: (16,), 2: (8, 4), 3: (8, 4, 4)}
dimensions = pytest.mark.parametrize("dims", list(SIZES))


UNET = {"width": 8, "groups": 4, "multipliers": (1, 2), "blocks": 1, "attention": (2,)}
VIT = {"network": "vit", "width": 24, "depth": 2, "head_width": 12, "patch": 2}
NETS = {"unet": UNET, "cut": {**UNET, "patch": 2, "block": "convnext"}, "vit": VIT}
ONCE = [(2, "unet"), (1, "cut"), (3, "vit")]
OTHERS = sorted({*product(SIZES, NETS)} - {*ONCE})


@pytest.mark.parametrize(("dims", "name"), mostly_slow(ONCE + OTHERS, always=len(ONCE)))
def test_a_network_learns_and_draws(dims, name):
    torch.manual_seed(0)
    steps = 60 if name == "vit" else 40
    made = plan(SIZES[dims], 2, 2, **NETS[name])
    net, process = made.build(), Process(SCHEDULES["cosine"](100))
    denoiser = Denoiser(net, process, "x0")
    place = torch.linspace(-1, 1, SIZES[dims][0]).reshape(-1, *[1] * (dims - 1))
    sample = place.expand(SIZES[dims])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        sign = torch.randint(2, (8, 2, *[1] * dims)) * 2 - 1
        x0, t = sign * sample, torch.randint(100, (8,))
        loss = LOSSES["simple"](denoiser, x0, t, torch.randn(x0.shape)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert sum(losses[-8:]) < 0.6 * sum(losses[:8])
    with torch.no_grad():
        x = torch.randn(3, *made.space.shape)
        *_, end = SAMPLERS["ddim"](denoiser, process, x, process.times(5), noise=lambda k: x)
    assert end.x.shape == x.shape
    assert bool(end.x.isfinite().all())


@dimensions
def test_laid_out_for_speed_it_computes_the_same(dims):
    made = plan(SIZES[dims], 2, width=8, groups=4, multipliers=(1, 2), blocks=1)
    net, (x, t) = randomized(made), batch(made)
    expected = net(x, t)
    found = arrange_weights(net)(arrange_memory(x), t)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert (net.conv_in.weight.stride()[1] == 1) == (dims == 2)


@dimensions
@pytest.mark.parametrize("patch", [1, 2, 4])
def test_folding_has_an_inverse_and_keeps_patches_together(dims, patch):
    size = tuple(patch * (2 + i) for i in range(dims))
    x = torch.randn(2, 3, *size, generator=generator(1))
    cut = fold_patches(x, patch)
    assert cut.shape == (2, 3 * patch**dims, *(side // patch for side in size))
    assert torch.equal(unfold_patches(cut, patch), x)
    if dims == 2:
        assert torch.equal(cut, F.pixel_unshuffle(x, patch))
    corner = x[(slice(None), slice(None), *[slice(patch)] * dims)]
    assert torch.equal(cut[(..., *[0] * dims)], corner.flatten(1))
