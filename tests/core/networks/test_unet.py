"""The U-Net against diffusers, whose tensor names it has."""

import pytest
import torch
from networks import batch, plan, randomized
from oracles import generator

from diffuse_cli.core.networks._unet_modules import SpatialAttention
from diffuse_cli.core.networks.layers import sinusoids
from diffuse_cli.core.registry import InvalidArgument

SMALL = {"width": 8, "groups": 4, "blocks": 1, "multipliers": (1, 2), "size": 8}
"""A network of four small feature maps; `attention` names those with attention."""

SHAPES = {
    "ddpm-cifar10": {
        "size": 32, "width": 8, "groups": 4, "multipliers": (1, 2, 2, 2), "blocks": 2,
        "attention": (16,), "scale_shift": False,
    },
    "improved-ddpm": {
        "size": 32, "width": 8, "groups": 4, "multipliers": (1, 2, 2, 2), "blocks": 3,
        "attention": (16, 8), "heads": 4, "out_channels": 6,
    },
    "grey": {**SMALL, "channels": 1, "attention": (4,)},
    "no attention": {**SMALL, "attention": ()},
    "attention everywhere": {**SMALL, "channels": 4, "attention": (8, 4), "head_width": 4},
    "not square": {**SMALL, "size": (8, 12), "attention": (4,), "scale_shift": False},
    "tall": {**SMALL, "size": (16, 4), "attention": (2,), "heads": 2},
    "classes": {**SMALL, "attention": (4,), "num_classes": 3},
    "one level": {**SMALL, "multipliers": (1,), "attention": ()},
    "odd width": {**SMALL, "width": 9, "groups": 3, "attention": (4,)},
    "up and down": {
        **SMALL, "size": 16, "multipliers": (1, 2, 2), "attention": (8,), "resblock_updown": True,
    },
    "up and down, time added": {
        **SMALL, "attention": (8, 4), "resblock_updown": True, "scale_shift": False,
    },
    "up and down, no attention": {**SMALL, "attention": (), "resblock_updown": True},
    "fourier": {**SMALL, "time_embedding": "fourier", "flip_sin_to_cos": False},
    "tensorflow": {
        **SMALL, "norm_eps": 0.3, "downsample_padding": 0, "freq_shift": 1,
        "flip_sin_to_cos": False, "scale_shift": False,
    },
}  # fmt: skip


SAME = ("norm_eps", "downsample_padding", "freq_shift", "flip_sin_to_cos")


def twin(made):
    """The same network in diffusers."""
    diffusers = pytest.importorskip("diffusers")
    config, attends, widths = made.config, made.attends, made.config.widths
    by_resnet, head_width = config.resblock_updown, config.head_width
    if config.heads is not None:
        (attending,) = {w for w, a in zip(widths, attends, strict=True) if a} | {widths[-1]}
        head_width = attending // config.heads
    kind = "Resnet{}sampleBlock2D" if by_resnet else "{}Block2D"
    return diffusers.UNet2DModel(
        sample_size=made.space.size,
        in_channels=made.space.channels,
        out_channels=made.out_channels,
        down_block_types=["AttnDownBlock2D" if a else kind.format("Down") for a in attends],
        up_block_types=["AttnUpBlock2D" if a else kind.format("Up") for a in reversed(attends)],
        downsample_type="resnet" if by_resnet else "conv",
        upsample_type="resnet" if by_resnet else "conv",
        block_out_channels=widths,
        layers_per_block=config.blocks,
        attention_head_dim=head_width,
        norm_num_groups=config.groups,
        attn_norm_num_groups=config.groups,
        time_embedding_type=config.time_embedding.replace("sinusoidal", "positional"),
        resnet_time_scale_shift="scale_shift" if config.scale_shift else "default",
        num_class_embeds=made.num_classes + 1 if made.num_classes else None,
        **{name: getattr(config, name) for name in SAME},
    ).eval()


def from_twin(other, x, t, label):
    """What diffusers' network says at t. With Fourier features it reads the logarithm of what it
    is given, and divides its output by that."""
    if other.config.time_embedding_type == "fourier":
        given = (t.double() / 1000).exp()
        return other(x, given, class_labels=label).sample * given[:, None, None, None].float()
    return other(x, t, class_labels=label).sample


@pytest.mark.parametrize("shape", list(SHAPES))
@torch.no_grad()
def test_it_is_diffusers_network(shape):
    config = plan(**SHAPES[shape])
    net, other = randomized(config), twin(config)
    other.load_state_dict(net.state_dict(), strict=True)
    x, t = batch(config)
    label = torch.tensor([0, 2]) if config.num_classes else None
    expected = from_twin(other, x, t, label).float()
    found = net(x, t, label=label)
    assert found.shape == (2, config.out_channels, *config.space.size)
    assert float(expected.std()) > 0.1
    assert torch.allclose(found, expected, atol=1e-4)


# -- classes --------------------------------------------------------------------------------------


@torch.no_grad()
def test_no_label_is_the_label_after_the_last():
    config = plan(**SHAPES["classes"])
    net = randomized(config)
    assert net.class_embedding.weight.shape == (4, 32)
    x, t = batch(config)
    none = net(x, t)
    assert torch.equal(none, net(x, t, label=torch.tensor([3, 3])))
    assert torch.equal(none, net(x, t, label=None))
    assert not torch.allclose(none, net(x, t, label=torch.tensor([0, 1])), atol=1e-3)


# -- gradients ------------------------------------------------------------------------------------


def test_gradients_reach_a_new_network_in_three_steps():
    """`conv_out`; the last layers of the blocks and what leads past them; the rest."""
    net = plan(8, 1, width=8, groups=4, multipliers=(1, 2), blocks=1, attention=(4,)).build()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.randn(2, 1, 8, 8, generator=generator(1))
    reached = []
    for _ in range(3):
        optimizer.zero_grad()
        (net(x, torch.tensor([500.0, 500.0])) - x).square().mean().backward()
        reached.append({name for name, p in net.named_parameters() if p.grad.any()})
        optimizer.step()
    first, second, third = reached
    assert {name.split(".")[0] for name in first} == {"conv_out"}
    inside = ("conv1", "norm1", "norm2", "time_emb", "group_norm", "to_q", "to_k", "to_v")
    past = {name for name in third if not any(part in name for part in inside)}
    assert second == past
    blind = {name for name in third if name.endswith("to_k.bias")}  # softmax takes no notice of it
    assert third - blind == {n for n, _ in net.named_parameters() if not n.endswith("to_k.bias")}


@pytest.mark.parametrize("resblock_updown", [False, True])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_gradients_are_diffusers_gradients(scale_shift, resblock_updown):
    config = plan(**SMALL, attention=(4,), scale_shift=scale_shift, resblock_updown=resblock_updown)
    net, other = randomized(config), twin(config)
    other.load_state_dict(net.state_dict())
    x, t = batch(config)
    net(x, t).square().sum().backward()
    other(x, t).sample.square().sum().backward()
    expected = dict(other.named_parameters())
    for name, p in net.named_parameters():
        assert torch.allclose(p.grad, expected[name].grad, rtol=2e-3, atol=2e-3), name


# -- time -----------------------------------------------------------------------------------------


def test_sinusoids_are_cosines_then_sines_or_sines_first():
    table = sinusoids(torch.tensor([0.0, 1.0, 250.5]), 8)
    assert table.shape == (3, 8)
    assert table[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    angles = 250.5 * torch.tensor([1.0, 0.1, 0.01, 0.001])
    assert torch.allclose(table[2], torch.cat([angles.cos(), angles.sin()]), atol=1e-4)
    assert sinusoids(torch.tensor([5.0]), 9)[0, -1] == 0
    t = torch.tensor([3.0, 40.0])
    cos, sin = sinusoids(t, 8).chunk(2, dim=1)
    assert torch.equal(sinusoids(t, 8, cos_first=False), torch.cat([sin, cos], dim=1))
    shifted = sinusoids(torch.tensor([1000.0]), 6, shift=1)[0, 3:].asin()
    assert float(shifted[2]) == pytest.approx(0.1, rel=1e-4), "the last frequency: 1 / 10,000"
    assert sinusoids(torch.tensor([1000.0]), 3, shift=1).isfinite().all()


def test_fourier_features_are_waves_of_t_over_a_thousand_with_frequencies_of_the_seed():
    made = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        made.append(plan(**{**SMALL, "width": 512, "groups": 32}, time_embedding="fourier").build())
    first, same, other = (net.time_proj.weight for net in made)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert "time_proj.weight" not in dict(made[0].named_parameters())
    assert float(first.std()) == pytest.approx(16, rel=0.1)
    found = made[0].time_proj(torch.tensor([0.0, 250.0]))
    angles = 2 * torch.pi * 0.25 * first
    assert torch.equal(found[0], torch.tensor([1.0] * 512 + [0.0] * 512))
    assert torch.allclose(found[1], torch.cat([angles.cos(), angles.sin()]), atol=1e-4)


# -- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 9}, {"size": (8, 9)}, {"width": 10}, {"width": 2, "multipliers": (2, 4)},
        {"multipliers": ()}, {"multipliers": (1, -2)}, {"multipliers": (1, 10**6)},
        {"heads": 2, "head_width": 4}, {"head_width": 3}, {"heads": 3},
        {"heads": 3, "attention": ()}, {"heads": 2, "heads_up": 3},
        {"head_width": 4, "heads_up": 2}, {"time_width": 1}, {"norm_eps": 0.0},
        {"downsample_padding": 2}, {"freq_shift": 2}, {"channels": 0}, {"dropout": 1.0},
        {"attention": "eight"}, {"block": "convnxt"}, {"time_embedding": "furier"},
    ],
    ids=str,
)  # fmt: skip
def test_a_network_that_cannot_be_is_refused(wrong):
    with pytest.raises(InvalidArgument):
        plan(**{**SMALL, **wrong}).build()


def test_levels_attend_where_they_have_a_resolution_with_their_own_heads():
    net = plan(**{**SMALL, "attention": (8, 4, 7, 32), "heads": 2, "heads_up": 4}).build()
    heads = {
        part: {m.heads for m in getattr(net, part).modules() if isinstance(m, SpatialAttention)}
        for part in ("down_blocks", "mid_block", "up_blocks")
    }
    assert heads == {"down_blocks": {2}, "mid_block": {2}, "up_blocks": {4}}
    net = plan(**{**SMALL, "width": 12, "attention": (4, 7, 32), "head_width": 8}).build()
    assert net.mid_block.attentions[0].heads == 3
    assert [level.attend for level in net.down_blocks] == [False, True]
    assert [level.attend for level in net.up_blocks] == [True, False]


@pytest.mark.parametrize("kind", ["sinusoidal", "fourier"])
@pytest.mark.parametrize("block", ["resnet", "convnext"])
def test_the_time_can_have_a_width_other_than_the_first_levels(kind, block):
    net = plan(**{**SMALL, "time_width": 24, "time_embedding": kind, "block": block}).build()
    assert net.time_embedding.linear_2.weight.shape == (96, 96)
    assert net.conv_in.weight.shape[0] == SMALL["width"]
    assert net(torch.zeros(2, 3, 8, 8), torch.tensor([1.0, 9.0])).shape[0] == 2
