"""The U-Net against diffusers, whose tensor names it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from oracles import generator

from diffuse_cli.config import UNetConfig
from diffuse_cli.core import UNet
from diffuse_cli.core.unet import count_parameters, sinusoids
from diffuse_cli.errors import UsageError

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
}  # fmt: skip


def randomised(config: UNetConfig) -> UNet:
    """A network none of whose weights is zero."""
    net = UNet(config)
    g = generator(1)
    with torch.no_grad():
        for name, p in net.named_parameters():
            fan = p[0].numel() if p.ndim > 1 else 1
            p.copy_(torch.randn(p.shape, generator=g) * (0.3 if p.ndim == 1 else fan**-0.5))
            if "norm" in name and name.endswith("weight"):
                p.add_(1)
    return net.eval()


def twin(config: UNetConfig) -> Any:
    """The same network in diffusers."""
    diffusers = pytest.importorskip("diffusers")
    levels = range(len(config.multipliers))
    attends = [min(config.size) >> i in config.attention for i in levels]
    widths = [config.width * m for m in config.multipliers]
    head_width = config.head_width
    if config.heads is not None:
        (attending,) = {w for w, a in zip(widths, attends, strict=True) if a} | {widths[-1]}
        head_width = attending // config.heads
    return diffusers.UNet2DModel(
        sample_size=config.size,
        in_channels=config.channels,
        out_channels=config.out_channels or config.channels,
        down_block_types=["AttnDownBlock2D" if a else "DownBlock2D" for a in attends],
        up_block_types=["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)],
        block_out_channels=widths,
        layers_per_block=config.blocks,
        attention_head_dim=head_width,
        norm_num_groups=config.groups,
        attn_norm_num_groups=config.groups,
        norm_eps=1e-5,
        resnet_time_scale_shift="scale_shift" if config.scale_shift else "default",
        num_class_embeds=config.num_classes + 1 if config.num_classes else None,
    ).eval()


def batch(config: UNetConfig, n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, config.channels, *config.size, generator=generator(2))
    return x, torch.tensor([3.0, 977.0, 0.0, 250.25])[:n]


@pytest.mark.parametrize("shape", list(SHAPES))
@torch.no_grad()
def test_it_is_diffusers_network(shape: str):
    config = UNetConfig(**SHAPES[shape])
    net, other = randomised(config), twin(config)
    other.load_state_dict(net.state_dict(), strict=True)
    x, t = batch(config)
    label = torch.tensor([0, 2]) if config.num_classes else None
    expected = other(x, t, class_labels=label).sample
    found = net(x, t, label=label)
    assert found.shape == (2, config.out_channels or config.channels, *config.size)
    assert float(expected.std()) > 0.1
    assert torch.allclose(found, expected, atol=1e-4)


@torch.no_grad()
def test_memory_order_and_batch_do_not_change_it():
    config = UNetConfig(**SHAPES["attention everywhere"])
    net = randomised(config)
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
    config = UNetConfig(**SHAPES["classes"])
    net = randomised(config)
    assert net.class_embedding.weight.shape == (4, 32)
    x, t = batch(config)
    none = net(x, t)
    assert torch.equal(none, net(x, t, label=torch.tensor([3, 3])))
    assert torch.equal(none, net(x, t, label=None))
    assert not torch.allclose(none, net(x, t, label=torch.tensor([0, 1])), atol=1e-3)


@torch.no_grad()
def test_a_network_without_classes_takes_no_notice_of_a_label():
    config = UNetConfig(**SHAPES["grey"])
    net = randomised(config)
    assert not any("class" in name for name in net.state_dict())
    x, t = batch(config)
    assert torch.equal(net(x, t), net(x, t, label=None))


# -- dropout and the start ------------------------------------------------------------------------


@torch.no_grad()
def test_dropout_acts_in_training_alone():
    config = UNetConfig(**SMALL, dropout=0.5)
    net = randomised(config)
    x, t = batch(config)
    assert torch.equal(net(x, t), net(x, t))
    net.train()
    assert not torch.allclose(net(x, t), net(x, t), atol=1e-3)


def test_a_new_network_predicts_zero_and_its_blocks_are_the_identity():
    config = UNetConfig(**SMALL)
    net = UNet(config)
    x, t = batch(config)
    assert bool((net(x, t) == 0).all())
    block = net.mid_block.resnets[0]
    h = torch.randn(2, 16, 4, 4, generator=generator(3))
    assert torch.equal(block(h, torch.ones(2, 32)), h)
    assert torch.equal(net.mid_block.attentions[0](h), h)


@pytest.mark.parametrize("shape", ["ddpm-cifar10", "attention everywhere", "classes"])
def test_every_weight_is_trained(shape: str):
    config = UNetConfig(**SHAPES[shape])
    net = randomised(config)
    x, t = batch(config)
    net(x, t, label=torch.tensor([0, 3]) if config.num_classes else None).square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name
        if not name.endswith("to_k.bias"):  # softmax takes no notice of it
            assert float(p.grad.abs().max()) > 0, name


@pytest.mark.parametrize("scale_shift", [False, True])
def test_gradients_are_diffusers_gradients(scale_shift: bool):
    config = UNetConfig(**SMALL, attention=(4,), scale_shift=scale_shift)
    net, other = randomised(config), twin(config)
    other.load_state_dict(net.state_dict())
    x, t = batch(config)
    net(x, t).square().sum().backward()
    other(x, t).sample.square().sum().backward()
    expected = dict(other.named_parameters())
    for name, p in net.named_parameters():
        assert torch.allclose(p.grad, expected[name].grad, rtol=2e-3, atol=2e-3), name


def test_bfloat16_autocast_is_close():
    config = UNetConfig(**SHAPES["attention everywhere"])
    net = randomised(config)
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


# -- shapes ---------------------------------------------------------------------------------------


def parameters(**config: Any) -> int:
    with torch.device("meta"):
        return count_parameters(UNet(UNetConfig(**config)))


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
        {"multipliers": ()},
        {"heads": 2, "head_width": 4},
        {"head_width": 3},
        {"heads": 3},
        {"channels": 0},
        {"dropout": 1.0},
        {"multipliers": (1, -2)},
        {"multipliers": (1, 10**6)},
        {"attention": "eight"},
    ],
    ids=str,
)
def test_a_network_that_cannot_be_is_a_usage_error(wrong: dict[str, Any]):
    with pytest.raises(UsageError):
        UNetConfig(**{**SMALL, **wrong})
