"""Optimizers, against their definitions."""

import copy

import pytest
import torch
from oracles import generator
from torch import nn

from diffuse_cli.core import Conditions, Space, muon
from diffuse_cli.core.muon import COEFFICIENTS, LIKE_ADAM, MOMENTUM, Muon, orthogonalize
from diffuse_cli.core.networks import unet, vit
from diffuse_cli.core.optimizers import OPTIMIZERS, hidden_matrices

RATE = 0.03


def net():
    torch.manual_seed(0)
    shape = unet.Config(width=8, multipliers=(1, 2), blocks=1, attention=(), groups=2)
    return unet.build(shape, Space(channels=1, size=(8, 8)), Conditions(classes=("a", "b")))


def told(optimizer, scale, bad):
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(bad)


def with_gradients(made, seed):
    draws = generator(seed)
    for weight in made.parameters():
        weight.grad = torch.randn(weight.shape, generator=draws)


def state_of(made, optimizer):
    own = [value for w in made.parameters() for value in optimizer.state[w].values()]
    return [t.detach().clone() for t in (*made.parameters(), *own)]


# -- every optimizer ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_step_that_is_called_off_changes_nothing(name):
    made = net()
    optimizer = OPTIMIZERS[name](made, lr=RATE, weight_decay=0.1)
    for step, bad in enumerate([0.0, 1.0, 0.0]):
        with_gradients(made, step)
        if bad:
            for weight in made.parameters():
                weight.grad[0] = torch.nan
        before = state_of(made, optimizer)
        told(optimizer, 1.0, bad)
        for group in optimizer.param_groups:  # as training sets it before each step
            group["lr"] = RATE if step < 2 else 0.0
        optimizer.step()
        moved = [not torch.equal(a, w) for a, w in zip(before, made.parameters(), strict=False)]
        assert all(moved) if step == 0 else not any(moved)
        after = state_of(made, optimizer)
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=False)]
        assert all(same) == bool(bad)
        assert optimizer.param_groups[0]["lr"] == (RATE if step < 2 else 0.0)
        assert all(t.isfinite().all() for t in after)


def trained(name, steps=3, scale=1.0, stop=None):
    """Weights and state after some steps; with `stop` an optimizer of a saved state resumes."""
    made = net()
    optimizer = OPTIMIZERS[name](made, lr=RATE, weight_decay=0.1)
    for step in range(steps):
        if step == stop:
            saved = optimizer.state_dict()
            optimizer = OPTIMIZERS[name](made, lr=RATE, weight_decay=0.1)
            optimizer.load_state_dict(saved)
        with_gradients(made, step)
        for weight in made.parameters():
            weight.grad *= scale
        told(optimizer, scale, 0.0)
        optimizer.step()
    return state_of(made, optimizer)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_gradients_are_divided_by_the_scale_and_a_loaded_state_resumes(name):
    """A library's user saves by `state_dict`."""
    plain = trained(name)
    for one, other in zip(plain, trained(name, scale=8.0), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(a, b) for a, b in zip(plain, trained(name, stop=2), strict=True))


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize(
    "bare", [nn.Linear(4, 4, bias=False), nn.GroupNorm(2, 4)], ids=["matrices alone", "none"]
)
def test_a_network_may_have_no_matrix_or_nothing_else(name, bare):
    made = copy.deepcopy(bare)
    optimizer = OPTIMIZERS[name](made, lr=RATE, weight_decay=0.1)
    with_gradients(made, 0)
    told(optimizer, 1.0, 0.0)
    optimizer.step()
    pairs = zip(made.parameters(), bare.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in pairs)


# -- Muon -----------------------------------------------------------------------------------------


def by_singular_values(x):
    """What `orthogonalize` does, one singular value at a time."""
    u, s, v = torch.linalg.svd(x / x.norm(dim=(1, 2), keepdim=True), full_matrices=False)
    a, b, c = COEFFICIENTS
    for _ in range(5):
        s = a * s + b * s**3 + c * s**5
    return u @ torch.diag_embed(s) @ v


SHAPES = [(2, 4, 9), (1, 9, 4), (3, 6, 20), (2, 20, 6), (1, 7, 7), (1, 4, 4), (2, 6, 5)]


@pytest.mark.parametrize("shapes", [*([shape] for shape in SHAPES), SHAPES], ids=str)
def test_orthogonal_brings_singular_values_near_1(shapes):
    """Several stacks in their own order, those of one side, lying or standing, in one go."""
    stacks = [torch.randn(s, generator=generator(k)).double() for k, s in enumerate(shapes)]
    for x, found in zip(stacks, orthogonalize(stacks), strict=True):
        assert torch.allclose(found, by_singular_values(x), rtol=1e-9, atol=1e-9)
        s = torch.linalg.svdvals(found)
        assert 0.3 < float(s.min()) < float(s.max()) < 1.3
        assert torch.equal(orthogonalize([torch.zeros(x.shape)])[0], torch.zeros(x.shape))


@pytest.mark.parametrize("at_once", [1, 500])
def test_weights_move_alike_however_many_move_together(monkeypatch, at_once):
    """By as much as under Adam."""
    results = []
    for most in (at_once, 2**22):
        monkeypatch.setattr(muon, "AT_ONCE", most)
        made = net()
        optimizer = OPTIMIZERS["muon"](made, lr=RATE, weight_decay=0.0)
        with_gradients(made, 0)
        weight = made.mid_block.resnets[0].conv1.weight
        before = weight.detach().clone()
        optimizer.step()
        size = float((weight.detach() - before).square().mean().sqrt()) / RATE
        assert 0.7 * LIKE_ADAM < size < 1.2 * LIKE_ADAM
        results.append(state_of(made, optimizer))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_float32_suffices_for_singular_values_of_a_ten_thousandth():
    """Their squares, in the products of a matrix with itself, are about its rounding errors."""
    u, _, v = torch.linalg.svd(torch.randn(3, 32, 288, generator=generator()), full_matrices=False)
    x = u @ torch.diag_embed(torch.logspace(0, -4, 32).expand(3, 32)) @ v
    found, exact = orthogonalize([x])[0], by_singular_values(x.double())
    assert float((found - exact).abs().max()) < 1e-3
    assert torch.allclose(muon.newton_schulz(x), found, atol=1e-3)  # what GPUs do


def test_matrices_follow_the_momentum_made_orthogonal_and_others_adamw():
    """Jordan et al. 2024, with Nesterov's momentum, at the size of Adam's updates (Liu et al.
    2025)."""
    draws = generator()
    conv, plain = (nn.Parameter(torch.randn(s, generator=draws)) for s in ((4, 3, 3, 3), (5,)))
    twin = nn.Parameter(plain.detach().clone())
    expected, momentum = conv.detach().clone(), torch.zeros(4, 27)
    betas, decay = (0.9, 0.99), 0.1
    muon = Muon([conv], [plain], lr=RATE, betas=betas, weight_decay=decay)
    adamw = torch.optim.AdamW([twin], lr=RATE, betas=betas, weight_decay=decay, fused=True)
    for _ in range(4):
        conv.grad = torch.randn(conv.shape, generator=draws)
        plain.grad = torch.randn(plain.shape, generator=draws)
        twin.grad = plain.grad.clone()
        muon.step()
        adamw.step()
        g = conv.grad.flatten(1)
        momentum = MOMENTUM * momentum + (1 - MOMENTUM) * g
        ahead = MOMENTUM * momentum + (1 - MOMENTUM) * g
        moved = by_singular_values(ahead[None])[0] * LIKE_ADAM * 27**0.5
        expected -= RATE * moved.reshape(conv.shape)
        assert torch.allclose(conv, expected, rtol=1e-4, atol=1e-5)
        assert torch.equal(plain, twin)


def test_the_ends_of_networks_and_depthwise_convolutions_are_left_to_adamw():
    names = {name for name, _ in hidden_matrices(net())}
    assert "down_blocks.0.resnets.0.conv1.weight" in names
    assert "mid_block.attentions.0.to_q.weight" in names
    outside = {name for name, w in net().named_parameters() if w.ndim > 1} - names
    assert {name.split(".")[-2] for name in outside} == {
        "conv_in", "conv_out", "linear_1", "linear_2", "class_embedding", "time_emb_proj",
    }  # fmt: skip
    shape = vit.Config(patch=2, width=8, depth=2, head_width=4, bottleneck=3, context=2)
    made = vit.build(shape, Space(channels=1, size=(8, 8)), Conditions(classes=("a", "b")))
    kinds = {name.split(".")[-2] for name, _ in hidden_matrices(made)}
    assert kinds == {"to_q", "to_k", "to_v", "to_out", "gate", "value", "out"}
    both = nn.ModuleDict({"deep": nn.Conv2d(6, 6, 7, groups=6), "wide": nn.Conv2d(6, 24, 1)})
    assert [name for name, _ in hidden_matrices(both)] == ["wide.weight"]
