"""The U-Net against diffusers, whose tensor names it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import Plan, batch, plan, randomized
from oracles import generator

from diffuse_cli.core.networks import count_parameters
from diffuse_cli.core.networks._unet_modules import SpatialAttention
from diffuse_cli.core.networks.layers import sinusoids
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.training.ema_weights import EmaAverage

SMALL: dict[str, Any] = {"width": 8, "groups": 4, "blocks": 1, "multipliers": (1, 2), "size": 8}
"""A network of four small feature maps; `attention` names those with attention."""

SHAPES: dict[str, dict[str, Any]] = {
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
        **SMALL, "norm_eps": 1e-6, "downsample_padding": 0, "freq_shift": 1,
        "flip_sin_to_cos": False, "scale_shift": False,
    },
}  # fmt: skip

FOREIGN: dict[str, dict[str, Any]] = {
    "norm_eps": {"norm_eps": 0.3},
    "downsample_padding": {"downsample_padding": 0},
    "freq_shift": {"freq_shift": 1},
    "flip_sin_to_cos": {"flip_sin_to_cos": False},
}
"""Options that only models from elsewhere need, one by one."""


def twin(made: Plan) -> Any:
    """The same network in diffusers."""
    diffusers = pytest.importorskip("diffusers")
    attends, widths, by_resnet = made.attends, made.config.widths, made.config.resblock_updown
    head_width = made.config.head_width
    if made.config.heads is not None:
        (attending,) = {w for w, a in zip(widths, attends, strict=True) if a} | {widths[-1]}
        head_width = attending // made.config.heads
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    plain = plain if by_resnet else ("DownBlock2D", "UpBlock2D")
    return diffusers.UNet2DModel(
        sample_size=made.space.size,
        in_channels=made.space.channels,
        out_channels=made.out_channels,
        down_block_types=["AttnDownBlock2D" if a else plain[0] for a in attends],
        up_block_types=["AttnUpBlock2D" if a else plain[1] for a in reversed(attends)],
        downsample_type="resnet" if by_resnet else "conv",
        upsample_type="resnet" if by_resnet else "conv",
        block_out_channels=widths,
        layers_per_block=made.config.blocks,
        attention_head_dim=head_width,
        norm_num_groups=made.config.groups,
        attn_norm_num_groups=made.config.groups,
        norm_eps=made.config.norm_eps,
        downsample_padding=made.config.downsample_padding,
        freq_shift=made.config.freq_shift,
        flip_sin_to_cos=made.config.flip_sin_to_cos,
        time_embedding_type={"sinusoidal": "positional"}.get(
            made.config.time_embedding, made.config.time_embedding
        ),
        resnet_time_scale_shift="scale_shift" if made.config.scale_shift else "default",
        num_class_embeds=made.num_classes + 1 if made.num_classes else None,
    ).eval()


def from_twin(other: Any, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor | None) -> Any:
    """What diffusers' network says at t. With Fourier features it reads the logarithm of what it
    is given, and divides its output by that."""
    if other.config.time_embedding_type == "fourier":
        given = (t.double() / 1000).exp()
        return other(x, given, class_labels=label).sample * given[:, None, None, None].float()
    return other(x, t, class_labels=label).sample


@pytest.mark.parametrize("shape", list(SHAPES))
@torch.no_grad()
def test_it_is_diffusers_network(shape: str):
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


@pytest.mark.parametrize("name", list(FOREIGN))
@torch.no_grad()
def test_an_option_for_models_from_elsewhere_is_diffusers_option(name: str):
    config = plan(**SMALL, **FOREIGN[name])
    net, other = randomized(config), twin(config)
    other.load_state_dict(net.state_dict(), strict=True)
    x, t = batch(config)
    found = net(x, t)
    assert torch.allclose(found, other(x, t).sample, atol=1e-4)
    assert not torch.allclose(found, randomized(plan(**SMALL))(x, t), atol=1e-2)


@torch.no_grad()
def test_memory_order_and_batch_do_not_change_it():
    config = plan(**SHAPES["attention everywhere"])
    net = randomized(config)
    x, t = batch(config, 4)
    together = net(x, t)
    last = net.to(memory_format=torch.channels_last)(
        x.contiguous(memory_format=torch.channels_last), t
    )
    assert torch.allclose(together, last, atol=1e-4)
    for i in range(4):
        assert torch.allclose(together[i], net(x[i : i + 1], t[i : i + 1])[0], atol=1e-4)


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


@torch.no_grad()
def test_a_network_without_classes_takes_no_notice_of_a_label():
    config = plan(**SHAPES["grey"])
    net = randomized(config)
    assert not any("class" in name for name in net.state_dict())
    x, t = batch(config)
    assert torch.equal(net(x, t), net(x, t, label=None))


# -- dropout and the start ------------------------------------------------------------------------


@torch.no_grad()
def test_dropout_acts_in_training_alone():
    config = plan(**SMALL, dropout=0.5)
    net = randomized(config)
    x, t = batch(config)
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert not torch.allclose(net(x, t), net(x, t), atol=1e-3)


def test_gradients_reach_a_new_network_in_three_steps():
    """`conv_out`; the last layers of the blocks and what leads past them; the rest."""
    net = plan(8, 1, width=8, groups=4, multipliers=(1, 2), blocks=1, attention=(4,)).build()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x = torch.randn(2, 1, 8, 8, generator=generator(1))
    reached: list[set[str]] = []
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


def test_a_new_network_predicts_zero_and_its_blocks_are_the_identity():
    config = plan(**SMALL)
    net = config.build()
    x, t = batch(config)
    assert bool((net(x, t) == 0).all())
    block = net.mid_block.resnets[0]
    h = torch.randn(2, 16, 4, 4, generator=generator(3))
    assert torch.equal(block(h, torch.ones(2, 32)), h)
    assert torch.equal(net.mid_block.attentions[0](h), h)


@pytest.mark.parametrize("resblock_updown", [False, True])
@pytest.mark.parametrize("scale_shift", [False, True])
def test_gradients_are_diffusers_gradients(scale_shift: bool, resblock_updown: bool):
    config = plan(**SMALL, attention=(4,), scale_shift=scale_shift, resblock_updown=resblock_updown)
    net, other = randomized(config), twin(config)
    other.load_state_dict(net.state_dict())
    x, t = batch(config)
    net(x, t).square().sum().backward()
    other(x, t).sample.square().sum().backward()
    expected = dict(other.named_parameters())
    for name, p in net.named_parameters():
        assert torch.allclose(p.grad, expected[name].grad, rtol=2e-3, atol=2e-3), name


def test_bfloat16_autocast_is_close():
    config = plan(**SHAPES["attention everywhere"])
    net = randomized(config)
    x, t = batch(config)
    with torch.no_grad():
        exact = net(x, t)
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(x, t).float()
    assert float((rough - exact).norm() / exact.norm()) < 0.05


# -- time -----------------------------------------------------------------------------------------


def test_sinusoids_are_cosines_then_sines():
    table = sinusoids(torch.tensor([0.0, 1.0, 250.5]), 8)
    assert table.shape == (3, 8)
    assert table[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    frequencies = torch.tensor([1.0, 0.1, 0.01, 0.001])
    angles = 250.5 * frequencies
    assert torch.allclose(table[2], torch.cat([angles.cos(), angles.sin()]), atol=1e-4)
    assert sinusoids(torch.tensor([5.0]), 9)[0, -1] == 0


def test_the_shift_makes_the_last_frequency_a_ten_thousandth():
    angles = sinusoids(torch.tensor([1000.0]), 6, shift=1)[0, 3:].asin()
    assert float(angles[2]) == pytest.approx(0.1, rel=1e-4)
    assert sinusoids(torch.tensor([1000.0]), 3, shift=1).isfinite().all()


def test_sines_come_first_where_cosines_do_not():
    t = torch.tensor([3.0, 40.0])
    cos, sin = sinusoids(t, 8).chunk(2, dim=1)
    assert torch.equal(sinusoids(t, 8, cos_first=False), torch.cat([sin, cos], dim=1))


FOURIER = plan(**SMALL, time_embedding="fourier")


def test_fourier_features_are_waves_of_t_over_a_thousand():
    net = FOURIER.build()
    weight = net.time_proj.weight
    assert weight.shape == (8,)
    found = net.time_proj(torch.tensor([0.0, 250.0]))
    angles = 2 * torch.pi * 0.25 * weight
    assert torch.equal(found[0], torch.tensor([1.0] * 8 + [0.0] * 8))
    assert torch.allclose(found[1], torch.cat([angles.cos(), angles.sin()]), atol=1e-4)


def test_fourier_frequencies_have_a_spread_of_16():
    few = {"multipliers": (1,), "blocks": 1, "attention": ()}
    wide = plan(**{**SMALL, **few, "width": 512, "time_embedding": "fourier"}).build()
    assert float(wide.time_proj.weight.std()) == pytest.approx(16, rel=0.1)


def test_fourier_frequencies_are_kept_not_trained_and_drawn_by_the_seed():
    made = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        made.append(FOURIER.build())
    first, same, other = (net.state_dict()["time_proj.weight"] for net in made)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert "time_proj.weight" not in dict(made[0].named_parameters())


def test_the_average_has_the_networks_frequencies():
    net = FOURIER.build()
    ema = EmaAverage(net, 0.9)
    kept = net.time_proj.weight.clone()
    with torch.no_grad():
        for _ in range(3):
            for p in net.parameters():
                p.add_(0.1)
            ema.update(net)
    assert torch.equal(ema.net.time_proj.weight, kept)
    assert not torch.equal(ema.net.conv_in.weight, net.conv_in.weight)


# -- shapes ---------------------------------------------------------------------------------------


def parameters(**config: Any) -> int:
    with torch.device("meta"):
        return count_parameters(plan(**config).build())


def test_the_published_networks_have_their_parameter_counts():
    cifar = {"width": 128, "multipliers": (1, 2, 2, 2)}
    ddpm = parameters(**cifar, blocks=2, attention=(16,), scale_shift=False)
    assert ddpm == 35_746_307
    improved = parameters(**cifar, blocks=3, attention=(16, 8), heads=4)
    assert round(improved / 1e5) == 525


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 9},
        {"size": (8, 9)},
        {"width": 10},
        {"width": 2, "multipliers": (2, 4)},
        {"multipliers": ()},
        {"heads": 2, "head_width": 4},
        {"head_width": 3},
        {"heads": 3},
        {"heads": 3, "attention": ()},
        {"heads": 2, "heads_up": 3},
        {"head_width": 4, "heads_up": 2},
        {"time_width": 1},
        {"norm_eps": 0.0},
        {"downsample_padding": 2},
        {"freq_shift": 2},
        {"channels": 0},
        {"dropout": 1.0},
        {"multipliers": (1, -2)},
        {"multipliers": (1, 10**6)},
        {"attention": "eight"},
    ],
    ids=str,
)
def test_a_network_that_cannot_be_is_refused(wrong: dict[str, Any]):
    with pytest.raises(InvalidArgument):
        plan(**{**SMALL, **wrong}).build()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"block": "convnxt"}, r"block: there is no 'convnxt'. Did you mean 'convnext'"),
        ({"time_embedding": "furier"}, r"time_embedding.* Did you mean 'fourier'"),
    ],
    ids=str,
)
def test_a_part_that_does_not_exist_is_refused(wrong: dict[str, Any], message: str):
    with pytest.raises(InvalidArgument, match=message):
        plan(**{**SMALL, **wrong}).build()


def test_heads_must_suit_the_levels_that_have_attention_alone():
    config = plan(**{**SMALL, "width": 12, "attention": (4,), "head_width": 8})
    assert config.build().mid_block.attentions[0].heads == 3


def test_the_way_up_can_have_other_heads():
    net = plan(**{**SMALL, "attention": (8, 4), "heads": 2, "heads_up": 4}).build()
    heads = {
        part: {m.heads for m in getattr(net, part).modules() if isinstance(m, SpatialAttention)}
        for part in ("down_blocks", "mid_block", "up_blocks")
    }
    assert heads == {"down_blocks": {2}, "mid_block": {2}, "up_blocks": {4}}


@pytest.mark.parametrize("kind", ["sinusoidal", "fourier"])
@pytest.mark.parametrize("block", ["resnet", "convnext"])
def test_the_time_can_have_a_width_other_than_the_first_levels(kind: str, block: str):
    net = plan(**{**SMALL, "time_width": 24, "time_embedding": kind, "block": block}).build()
    assert net.time_embedding.linear_2.weight.shape == (96, 96)
    assert net.conv_in.weight.shape[0] == SMALL["width"]
    assert net(torch.zeros(2, 3, 8, 8), torch.tensor([1.0, 9.0])).shape[0] == 2


def test_a_resolution_that_no_level_has_is_passed_over():
    net = plan(**SMALL, attention=(4, 7, 32)).build()
    assert [level.attend for level in net.down_blocks] == [False, True]
    assert [level.attend for level in net.up_blocks] == [True, False]
