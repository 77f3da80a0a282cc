"""--init: what the weights of a model become for other channels, conditions and sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.core.conditions import ConditioningArray, Conditions
from diffuse_cli.core.networks import NETWORKS, vit
from diffuse_cli.core.networks.unet import ENDS, Config, resized
from diffuse_cli.core.space import Space
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.models.model_file import StoredModel
from diffuse_cli.training import weight_transfer

SMALL = {"width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,), "groups": 4}
B, K = 3, 2
TWO = ("dark", "light")


TRANSFORMER = vit.Config(patch=2, width=8, depth=3, head_width=4, bottleneck=6, context=2)


def blueprint(channels=1, size=8, patch=1, classes=(), given=None, variance="small"):
    config = TRANSFORMER
    if patch != "vit":
        config = Config(**SMALL | {"attention": (4 // patch,)}, patch=patch)
    return Blueprint(
        space=Space(channels=channels, size=(size, size)),
        network="vit" if patch == "vit" else "unet",
        config=config,
        conditions=Conditions(classes=classes, given=given),
        diffusion=DiffusionConfig(variance=variance, num_timesteps=20),
    )


def trained(own, **training):
    """A model of which no weight is zero."""
    torch.manual_seed(1)
    tensors = {name: torch.randn(shape) / 4 for name, shape in own.shapes.items()}
    return StoredModel(blueprint=own, ema=tensors, training=training)


def network(own, weights):
    net = own.build().eval()
    net.load_state_dict(dict(weights))
    return net


def both(model, wanted):
    """The network of a model, and the one that it becomes."""
    return network(model.blueprint, model.ema), network(
        wanted, weight_transfer.transfer(model, wanted)
    )


def noise(channels, size=8, seed=2):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(B, channels, size, size, generator=draw)


T = torch.tensor([0.0, 400.0, 999.0])


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


patches = pytest.mark.parametrize("patch", [1, 2, "vit"])
"""Of a U-Net; or a transformer, whose ends are others."""

variances = pytest.mark.parametrize("variance", ["small", "learned"])


@patches
@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ({}, {"given": ConditioningArray(channels=3, what="low-res:4")}, {"given": noise(4)}),
        ({"given": ConditioningArray(channels=1)}, {}, {}),
        ({}, {"classes": TWO}, {"label": torch.tensor([0, 1, K])}),
        ({}, {"classes": TWO}, {}),
        ({"classes": TWO}, {}, {}),
        ({"variance": "learned"}, {}, {}),
    ],
    ids=["given", "no longer given", "classes", "no class", "no classes", "no learned variance"],
)
def test_what_is_new_or_left_out_changes_nothing(patch, before, after, told):
    """It is as the model is where that is told nothing."""
    own, wanted = (blueprint(3, patch=patch, **more) for more in (before, after))
    old, new = both(trained(own, label_dropout=0.1), wanted)
    close(new(noise(3), T, **told), old(noise(3), T)[:, :3])


@patches
@variances
def test_grey_becomes_color_and_is_itself_of_grey(patch, variance):
    grey, color = (blueprint(n, patch=patch, variance=variance) for n in (1, 3))
    old, new = both(trained(grey), color)
    drawn = old(noise(1), T).repeat_interleave(3, dim=1)  # 3 of the mean, then 3 of the variance
    close(new(noise(1).expand(-1, 3, -1, -1), T), drawn)


@patches
def test_a_grey_model_that_becomes_one_of_color_sees_how_they_differ(patch):
    """Else neither its input nor its output could learn it from the other."""
    grey, color = trained(blueprint(1, patch=patch)), blueprint(3, patch=patch)
    _, new = both(grey, color)
    x = noise(3)
    assert not torch.allclose(new(x, T), new(x.mean(1, keepdim=True).expand(-1, 3, -1, -1), T))
    name = NETWORKS[color.network].ENDS.input
    read = [weight_transfer.transfer(grey, color, seed)[name] for seed in (0, 0, 1)]
    assert read[0].equal(read[1])
    assert not read[0].equal(read[2])


@patches
@variances
def test_color_becomes_grey_and_is_the_mean_of_what_it_was_of_grey(patch, variance):
    grey, color = (blueprint(n, patch=patch, variance=variance) for n in (1, 3))
    old, new = both(trained(color), grey)
    drawn = old(noise(1).expand(-1, 3, -1, -1), T)
    close(new(noise(1), T), drawn.unflatten(1, (-1, 3)).mean(2))


@patches
def test_a_channel_more_is_not_read_and_not_drawn_and_one_fewer_is_left_out(patch):
    three, four = (trained(blueprint(n, patch=patch)) for n in (3, 4))
    old, new = both(three, four.blueprint)
    drawn = new(noise(4), T)
    close(drawn[:, :3], old(noise(4)[:, :3], T))
    assert not drawn[:, 3].any()
    old, new = both(four, three.blueprint)
    x = noise(4) * torch.tensor([1.0, 1, 1, 0]).reshape(1, 4, 1, 1)
    close(new(x[:, :3], T), old(x, T)[:, :3])


@patches
def test_what_is_given_in_grey_may_be_given_in_color(patch):
    grey, color = (blueprint(3, patch=patch, given=ConditioningArray(channels=n)) for n in (1, 3))
    old, new = both(trained(grey), color)
    assert not torch.allclose(old(noise(3), T, given=noise(2)), old(noise(3), T))
    values, known = noise(2).split(1, dim=1)
    told = torch.cat([values.expand(-1, 3, -1, -1), known], 1)
    close(new(noise(3), T, given=told), old(noise(3), T, given=noise(2)))


@pytest.mark.parametrize("fixed", ["small", "large"])
@patches
def test_a_variance_that_is_learned_begins_as_the_fixed_one(patch, fixed):
    own = blueprint(3, patch=patch, variance=fixed)
    wanted = blueprint(3, patch=patch, variance="learned")
    nets = both(trained(own), wanted)
    old, new = (b.denoiser(net)(noise(3), 7) for b, net in zip((own, wanted), nets, strict=True))
    torch.testing.assert_close(new.x0, old.x0)
    expected = torch.as_tensor(old.log_var(7, 6)).float()
    torch.testing.assert_close(new.log_var(7, 6), expected.expand(noise(3).shape))


@pytest.mark.parametrize("dropout", [0, 0.1])
def test_a_new_class_among_others_is_as_none_or_as_their_mean(dropout):
    model = trained(blueprint(classes=TWO), label_dropout=dropout)
    old, new = both(model, blueprint(classes=("grey", "light")))
    light, grey = (torch.full((B,), k) for k in (1, 0))
    close(new(noise(1), T, label=light), old(noise(1), T, label=light))
    rows = weight_transfer.transfer(model, blueprint(classes=("grey", "light")))[ENDS.classes]
    dark, bright, none = model.ema[ENDS.classes]
    torch.testing.assert_close(rows[0], none if dropout else (dark + bright) / 2)
    if dropout:
        close(new(noise(1), T, label=grey), old(noise(1), T))


@patches
def test_all_of_it_at_once(patch):
    model = trained(blueprint(1, patch=patch, classes=TWO), label_dropout=0.1)
    given = ConditioningArray(channels=3)
    wanted = blueprint(3, size=16, patch=patch, given=given, variance="learned")
    if patch != "vit":  # whose configuration is the same at every size
        wanted = replace(wanted, config=resized(model.blueprint.config, (8, 8), (16, 16)))
    old, new = both(model, wanted)
    grey = old(noise(1), T).expand(-1, 3, -1, -1)
    drawn = new(noise(1).expand(-1, 3, -1, -1), T, given=noise(4))
    close(drawn[:, :3], grey)
    close(drawn[:, 3:], torch.full_like(grey, -1))


# -- another size ---------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [1, 4])
@pytest.mark.parametrize("after", [(16, 16), (48, 48), (32, 64), (128, 128)])
def test_at_another_size_it_is_the_same_network(patch, after):
    config = Config(**SMALL | {"multipliers": (1, 1, 1), "attention": (7, 8)}, patch=patch)
    own = replace(blueprint(size=32), config=config)
    space = Space(channels=1, size=after)
    wanted = replace(own, space=space, config=resized(config, (32, 32), after))
    assert wanted.shapes == own.shapes
    assert wanted.config.attends(after) == config.attends((32, 32))
    old, new = both(trained(own), wanted)
    close(new(noise(1, 32), T), old(noise(1, 32), T))
    assert new(torch.zeros(1, 1, *after), T[:1]).shape == (1, 1, *after)


def test_a_list_of_attention_that_serves_both_sizes_stays():
    config = Config(**SMALL | {"multipliers": (1, 1, 1), "attention": (7, 8)})
    assert resized(config, (28, 28), (32, 32)) is config
    assert resized(config, (32, 32), (64, 64)).attention == (16,)
    plain = replace(config, attention=())
    assert resized(plain, (32, 32), (64, 64)) is plain
