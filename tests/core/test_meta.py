"""On the meta device, which has no numbers: what reads one back, or mixes devices, fails.

Any two entries of different tables meet.
"""

import pytest
import torch
from covering_array import covering
from networks import plan
from oracles import denoiser_with

from diffuse_cli.core import (
    LOSSES,
    SAMPLERS,
    SCHEDULES,
    TARGETS,
    VARIANCES,
    Denoiser,
    Process,
    bits_per_dim,
    log_densities,
)
from diffuse_cli.core.data_gaussian import DataGaussian
from diffuse_cli.core.guidance import autoguide, clip, guide, guide_away, make_unconditional
from diffuse_cli.core.losses import WEIGHTINGS, weights
from diffuse_cli.core.parameterization import output_channels

PROCESS = Process(SCHEDULES["cosine"](10))


def made(target="v", variance="small"):
    """A denoiser without numbers whose network is one layer, a sample and labels."""
    with torch.device("meta"):
        layer = torch.nn.Conv2d(1, output_channels(variance, 1), 1)
        x, label = torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.long)

    def net(x, t, label=None):
        return layer(x) + t.reshape(-1, 1, 1, 1)

    return denoiser_with(net, PROCESS, target, variance), x, label


@pytest.mark.parametrize(
    ("loss", "target", "variance", "weighting", "times"),
    covering(LOSSES, TARGETS, VARIANCES, WEIGHTINGS, ("meta", "cpu"), strength=2),
)
def test_losses_read_nothing_back(loss, target, variance, weighting, times):
    denoiser, x, label = made(target, variance)
    t = torch.tensor([0, 9]).to(times)
    table = weights(weighting, denoiser)
    weight = None if table is None else table.float().to("meta")[t.to("meta")]
    found = LOSSES[loss](denoiser, x, t, x, weight, label=label)
    assert found.shape == (2,)
    assert found.is_meta


GUIDED = {
    "by no class": lambda denoiser: guide(denoiser, 2.0),
    "by a weaker model": lambda denoiser: autoguide(denoiser, made("eps")[0], 2.0),
    "by both": lambda denoiser: guide_away(
        denoiser, (make_unconditional(denoiser), 2.0), (made("x0")[0], 1.5)
    ),
}


@pytest.mark.parametrize(
    ("name", "variance", "guided", "spacing"),
    covering(SAMPLERS, VARIANCES, GUIDED, ("trailing", "karras"), strength=2),
)
def test_samplers_read_nothing_back(name, variance, guided, spacing):
    denoiser, x, label = made(variance=variance)

    def denoise(x_t, t, /):
        return clip(GUIDED[guided](denoiser), PROCESS)(x_t, t, label=label)

    times = PROCESS.times(4, spacing)
    *_, last = SAMPLERS[name](denoise, PROCESS, x, times, noise=lambda k: x)
    assert last.x.is_meta
    assert last.x.shape == x.shape


@pytest.mark.parametrize("size", [(8,), (8, 8), (8, 8, 8)], ids=str)
def test_the_network_its_gradient_and_the_bound_read_nothing_back(size):
    with torch.device("meta"):
        net = plan(size, 1, num_classes=2, width=8, groups=4, multipliers=(1, 2), blocks=1).build()
        x, label = torch.zeros(2, 1, *size), torch.zeros(2, dtype=torch.long)
    denoiser = Denoiser(net, PROCESS, "v")
    LOSSES["simple"](denoiser, x, label, x, label=label).mean().backward()
    assert net.conv_in.weight.grad.is_meta
    bits = bits_per_dim(denoiser.respaced([0, 9]), x, noise=lambda t: x)
    assert bits.terms.shape == (2, 2)
    *_, density = log_densities(denoiser, x, steps=2, probes=[x], label=label)
    assert density.is_meta
    assert density.shape == (2,)


def test_a_start_reads_nothing_back():
    _, x, _ = made()
    table = ((((0.5,) * 4,) * 4),)
    found = DataGaussian((4, 4), ((1.0,),), table, table).make_initial_noise(x, 0.3, 0.9)
    assert found.is_meta
    assert found.shape == x.shape
