"""Embedding of augmentation parameters: a network learns within few steps what is unchanged."""

import pytest
import torch
import torch.nn.functional as F
from conftest import mostly_slow
from networks import batch, plan, randomized
from oracles import generator, process_of

from diffuse_cli.core.augmentations import augment, count_draws, count_parameters
from diffuse_cli.media import MEDIA

STEPS, RATE, TIME = 150, 3e-3, 950
UNET = {"width": 16, "multipliers": (1,), "blocks": 1, "attention": (), "groups": 4}
VIT = {"network": "vit", "patch": 2, "width": 32, "depth": 2, "head_width": 16, "context": 0}


@pytest.mark.parametrize("settings", [UNET, VIT], ids=["unet", "vit"])
def test_zeros_have_no_effect_and_changes_have_one_before_training(settings):
    made = plan(size=8, channels=3, **settings)
    net, (x, t) = randomized(made), batch(made)
    net.add_augmentation(4)
    with torch.no_grad():
        unchanged = net(x, t)
        assert torch.equal(net(x, t, augment=torch.zeros(2, 4)), unchanged)
        changed = net(x, t, augment=torch.ones(2, 4))
    assert float((changed - unchanged).norm() / unchanged.norm()) > 0.1


@pytest.mark.parametrize(
    ("medium", "settings"),
    mostly_slow([("image", UNET), ("image", VIT), ("array", UNET), ("audio", UNET)], always=1),
    ids=["image-unet", "image-vit", "array-unet", "audio-unet"],
)
def test_a_short_training_does_not_mix_changed_samples_into_others(medium, settings):
    """At high noise, a network without parameters estimates the sample, not the mean of all.

    The mean of changed and unchanged samples is the estimate of a network that ignores parameters.
    """
    torch.manual_seed(0)
    names, rng, process = MEDIA[medium].augmentations, generator(), process_of("cosine", 1000)
    size = (8,) if medium == "audio" else (8, 8)
    net = plan(size=size, channels=3, **settings).build()
    net.add_augmentation(count_parameters(names))
    sample = torch.randn(3, *size, generator=rng)

    def change(count):
        draws = torch.rand(count, count_draws(names), generator=rng)
        return augment(sample.expand(count, *sample.shape), names, draws)

    def estimate(x0, parameters):
        t = torch.full((len(x0),), TIME)
        alpha, sigma = process.alpha_sigma(t, like=x0)
        noise = torch.randn(x0.shape, generator=rng)
        return net(alpha * x0 + sigma * noise, t.float(), augment=parameters)

    mixture = change(4096)[0].mean(0) - sample
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=0)
    for step in range(STEPS):
        x0, parameters = change(32)
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        optimizer.zero_grad()
        F.mse_loss(estimate(x0, parameters), x0).backward()
        optimizer.step()
    with torch.no_grad():
        bias = estimate(sample.expand(256, *sample.shape), None).mean(0) - sample
    leak = float((bias * mixture).sum() / (mixture * mixture).sum())
    assert abs(leak) < 0.2
