"""The parts of the U-Net, and the ways to put them together."""

import pytest
import torch
import torch.nn.functional as F
from covering_array import covering
from networks import batch, plan, randomized
from oracles import generator
from torch import nn

from diffuse_cli.core import kernels as kernel
from diffuse_cli.core.kernels import GroupNorm, attend, cast_weights
from diffuse_cli.core.networks import run_checkpointed
from diffuse_cli.core.networks._unet_modules import (
    BLOCKS,
    UNetParts,
    Upsample,
    double_size,
    halve_size,
    keep_size,
)
from diffuse_cli.core.networks.layers import TIME_EMBEDDINGS
from diffuse_cli.core.networks.unet import Config
from diffuse_cli.core.registry import InvalidArgument

TINY = {
    "size": 8, "channels": 2, "out_channels": 4, "width": 8, "groups": 4, "blocks": 1,
    "multipliers": (1, 2), "attention": (4,), "num_classes": 2,
}  # fmt: skip

HEADS = {"one head": {}, "heads": {"heads": 2}, "head_width": {"head_width": 4}}

PRODUCT = {
    " ".join((block, f"{scale_shift=}", f"{updown=}", time, heads)): plan(
        **TINY,
        block=block,
        scale_shift=scale_shift,
        resblock_updown=updown,
        time_embedding=time,
        **HEADS[heads],
    )
    for block, scale_shift, updown, time, heads in covering(
        BLOCKS, (False, True), (False, True), TIME_EMBEDDINGS, HEADS
    )
}
"""Combinations in which any three of the network's ingredients meet."""

combined = pytest.mark.parametrize("config", PRODUCT.values(), ids=list(PRODUCT))


# -- combinations ---------------------------------------------------------------------------------


@combined
def test_it_predicts_in_the_shape_of_its_output_and_trains_every_weight(config):
    net = randomized(config)
    x, t = batch(config)
    y = net(x, t, label=torch.tensor([0, 2]))
    assert y.shape == (2, 4, 8, 8)
    assert bool(y.isfinite().all())
    y.square().sum().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name
        if not name.endswith("to_k.bias"):  # softmax takes no notice of it
            assert float(p.grad.abs().max()) > 0, name


@combined
@torch.no_grad()
def test_time_and_class_matter_and_it_is_itself_again_from_its_tensors_alone(config):
    net, (x, t) = randomized(config), batch(config)
    y = net(x, t, label=torch.tensor([0, 1]))
    assert not torch.allclose(y, net(x, t + 5, label=torch.tensor([0, 1])), atol=1e-3)
    assert not torch.allclose(y, net(x, t, label=torch.tensor([1, 0])), atol=1e-3)
    assert not config.build()(x, t).any(), "a new network predicts zero"
    with torch.device("meta"):
        again = config.build()
    again.load_state_dict({n: v.clone() for n, v in net.state_dict().items()}, assign=True)
    assert torch.equal(again.eval()(x, t), net(x, t))
    again.run_block = run_checkpointed
    assert torch.equal(again(x, t), net(x, t)), "where there is no gradient"


@combined
def test_weights_that_are_cast_beforehand_compute_the_same(config):
    """What autocast does in every evaluation, but once: to the last bit."""
    net, (x, t) = randomized(config), batch(config)
    x = x.contiguous(memory_format=torch.channels_last)

    def infer():
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            return net(x, t)

    before = infer()
    with torch.no_grad():
        exact = net(x, t)
    assert float((before.float() - exact).norm() / exact.norm()) < 0.1
    cast_weights(net, torch.bfloat16)
    assert infer().equal(before)
    kinds = {type(m): p.dtype for m in net.modules() for p in m.parameters(recurse=False)}
    assert kinds[nn.Linear] == torch.bfloat16
    assert kinds[GroupNorm] == torch.float32


# -- blocks ---------------------------------------------------------------------------------------

PARTS = UNetParts(Config(width=8, groups=4, multipliers=(1, 2), attention=()), 2)


def randomize(block):
    g = generator(4)
    with torch.no_grad():
        for p in block.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * 0.3)
    return block


@pytest.mark.parametrize("block", list(BLOCKS))
@pytest.mark.parametrize("after", [8, 16])
@pytest.mark.parametrize(("resize", "side"), [(keep_size, 8), (halve_size, 4), (double_size, 16)])
@torch.no_grad()
def test_a_new_block_is_its_shortcut(block, after, resize, side):
    made = BLOCKS[block](PARTS, 8, after, resize)
    x, emb = torch.randn(2, 8, 8, 8, generator=generator(5)), torch.ones(2, 32)
    y = made(x, emb)
    assert y.shape == (2, after, side, side)
    assert torch.allclose(y, made.conv_shortcut(resize(x)), atol=1e-6)


def test_sizes_change_by_means_and_nearest_neighbors():
    x = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    assert halve_size(x).tolist() == [[[[4.0]]]]
    assert double_size(x)[0, 0].tolist() == [
        [1, 1, 3, 3], [1, 1, 3, 3], [5, 5, 7, 7], [5, 5, 7, 7],
    ]  # fmt: skip


@pytest.mark.parametrize("scale_shift", [False, True])
@torch.no_grad()
def test_a_convnext_block_is_what_it_says(scale_shift):
    config = plan(**{**TINY, "scale_shift": scale_shift, "norm_eps": 0.1}).config
    block = randomize(BLOCKS["convnext"](UNetParts(config, 2), 8, 16, keep_size)).eval()
    g = generator(6)
    x, emb = torch.randn(2, 8, 5, 7, generator=g), torch.randn(2, 32, generator=g)
    w = block.state_dict()
    h = F.conv2d(x, w["dwconv.weight"], w["dwconv.bias"], padding=3, groups=8)
    time = emb @ w["time_emb_proj.weight"].T + w["time_emb_proj.bias"]
    time = time[:, :, None, None]
    if scale_shift:
        h = F.group_norm(h, 4, w["norm.weight"], w["norm.bias"], 0.1)
        h = h * (1 + time[:, :8]) + time[:, 8:]
    else:
        h = F.group_norm(h + time, 4, w["norm.weight"], w["norm.bias"], 0.1)
    assert w["pwconv1.weight"].shape == (64, 8, 1, 1)
    h = F.gelu(F.conv2d(h, w["pwconv1.weight"], w["pwconv1.bias"]))
    h = F.conv2d(h, w["pwconv2.weight"], w["pwconv2.bias"])
    expected = h + F.conv2d(x, w["conv_shortcut.weight"], w["conv_shortcut.bias"])
    assert torch.allclose(block(x, emb), expected, atol=1e-4)


@pytest.mark.parametrize("block", list(BLOCKS))
@torch.no_grad()
def test_dropout_acts_in_every_block(block):
    made = randomize(BLOCKS[block](UNetParts(plan(**TINY, dropout=0.5).config, 2), 8, 8, keep_size))
    x, emb = torch.randn(2, 8, 8, 8, generator=generator(5)), torch.ones(2, 32)
    assert not torch.allclose(made(x, emb), made(x, emb), atol=1e-3)
    made.eval()
    assert torch.equal(made(x, emb), made(x, emb))


# -- gradient checkpointing -----------------------------------------------------------------------


def gradients(net, config, half):
    """The gradients of a training step, and the state of the generator after it."""
    net.zero_grad(set_to_none=True)
    torch.manual_seed(7)
    x, t = batch(config)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        y = net(x, t, label=torch.tensor([1, 2]))
    y.float().square().sum().backward()
    return [p.grad for p in net.parameters()], torch.get_rng_state()


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("updown", [False, True])
@pytest.mark.parametrize("block", list(BLOCKS))
def test_checkpointing_gives_the_same_gradients_bit_for_bit(block, updown, half):
    config = plan(**TINY, block=block, resblock_updown=updown, dropout=0.4)
    net = randomized(config).train()
    runs = []
    net.mid_block.resnets[0].register_forward_pre_hook(lambda *_: runs.append(1))
    plain, state = gradients(net, config, half)
    assert len(runs) == 1
    net.run_block = run_checkpointed
    again, state_again = gradients(net, config, half)
    assert len(runs) == 3
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert torch.equal(state, state_again)


@pytest.mark.parametrize(
    "size", [(16,), (1,), (5, 6), (1, 1), (1, 3), (8, 4, 4), (1, 1, 1)], ids=str
)
def test_the_transposed_convolution_is_upsampling_and_convolution(size):
    torch.manual_seed(0)
    layer = Upsample(UNetParts(plan(**TINY).config, len(size)), 6).double()
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    found = layer(x, torch.zeros(2, 1))
    expected = layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert torch.allclose(found, expected, rtol=1e-12, atol=1e-13)
    dy = torch.randn_like(expected)
    inputs = (x, layer.conv.weight, layer.conv.bias)
    for one, two in zip(
        torch.autograd.grad(found, inputs, dy), torch.autograd.grad(expected, inputs, dy),
        strict=True,
    ):  # fmt: skip
        assert torch.allclose(one, two, rtol=1e-11, atol=1e-12)


def test_patches_are_channels_at_a_smaller_size():
    whole = randomized(plan(**{**TINY, "size": 16, "patch": 2, "attention": (8,)}))
    cut = plan(**{**TINY, "size": 8, "channels": 8, "out_channels": 16, "attention": (8,)}).build()
    cut.load_state_dict(whole.state_dict())
    x = torch.randn(3, 2, 16, 16, generator=generator(1))
    t = torch.tensor([0.0, 500.0, 999.0])
    label = torch.tensor([0, 1, 2])
    expected = F.pixel_shuffle(cut(F.pixel_unshuffle(x, 2), t, label), 2)
    assert expected.shape == (3, 4, 16, 16)
    assert torch.allclose(whole(x, t, label), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        InvalidArgument, match="size 8x8 does not suit a network of 2 levels on patches of 3x3"
    ):
        plan(**TINY, patch=3).build()
    assert plan(**{**TINY, "size": 12}, patch=3).attends == [True, False]


# -- attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attention", [attend, kernel.attend_unfused], ids=["fused", "two products"]
)
def test_attention_is_the_formula(attention):
    q, k, v = torch.randn(3, 2, 3, 5, 4, generator=generator(7), dtype=torch.float64)
    weights = torch.exp(torch.einsum("bhid,bhjd->bhij", q, k) / 2)
    expected = torch.einsum("bhij,bhjd->bhid", weights / weights.sum(3, keepdim=True), v)
    assert torch.allclose(attention(q, k, v), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "scores", "fused"),
    [(torch.bfloat16, 32, False), (torch.bfloat16, 31, True), (torch.float32, 32, True)],
)
def test_attention_in_bfloat16_keeps_no_more_scores_than_it_may(dtype, scores, fused, monkeypatch):
    called = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(kernel, "SCORES", scores)
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *qkv: called.append(1) or real(*qkv)
    )
    q, k, v = torch.randn(3, 2, 1, 4, 8, generator=generator(7))
    found = attend(q.to(dtype), k.to(dtype), v.to(dtype))
    assert bool(called) == fused
    assert torch.allclose(found.float(), real(q, k, v), atol=0.03)
