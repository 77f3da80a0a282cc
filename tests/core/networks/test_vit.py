"""The transformer over patches: its formulas, its shapes, and the papers' numbers."""

import dataclasses
import math

import pytest
import torch
from networks import batch, plan, randomized
from oracles import generator
from torch.utils.flop_counter import FlopCounterMode

from diffuse_cli.core import NETWORKS, Conditions, Space
from diffuse_cli.core.conditions import (
    UNTOLD,
    ConditioningArray,
    LabelColumn,
    MetadataTable,
    NumberColumn,
)
from diffuse_cli.core.kernels import arrange_memory, arrange_weights, cast_weights
from diffuse_cli.core.networks import count_parameters, run_checkpointed
from diffuse_cli.core.networks.vit import Config, adapt
from diffuse_cli.core.registry import InvalidArgument

SMALL = {
    "network": "vit", "patch": 2, "width": 24, "depth": 3, "head_width": 12,
}  # fmt: skip
SIZES = {1: (16,), 2: (8, 4), 3: (4, 2, 6)}
AGE = NumberColumn(name="age", mean=40.0, deviation=10.0, low=18.0, high=90.0)
TABLE = MetadataTable(columns=(AGE, LabelColumn(name="site", values=("a", "b"))))

SHAPES = {
    "plain": plan(8, **SMALL),
    "bottleneck": plan(8, **SMALL, bottleneck=3),
    "context": plan(8, **SMALL, context=2),
    **{
        f"{dims}-d, all it can be told": dataclasses.replace(
            plan(size, 2, 4, **SMALL, context=2, bottleneck=5),
            conditions=Conditions(
                classes=("x", "y"), given=ConditioningArray(channels=1), table=TABLE
            ),
        )
        for dims, size in SIZES.items()
    },
}

shapes = pytest.mark.parametrize("made", SHAPES.values(), ids=list(SHAPES))
dimensions = pytest.mark.parametrize("dims", list(SIZES))


def told(made):
    """What a network is told of a batch of two."""
    if not made.conditions:
        return {}
    given = torch.randn(2, 2, *made.space.size, generator=generator(5))
    row = torch.tensor([[0.5, 1.0], [UNTOLD, UNTOLD]])
    return {"label": torch.tensor([0, 2]), "given": given, "row": row}


def run_first_block(net, *inputs, **conditions):
    """What the first block takes and gives where the network runs."""
    calls = []
    with net.blocks[0].register_forward_hook(lambda block, taken, h: calls.append((*taken, h))):
        net(*inputs, **conditions)
    (call,) = calls
    return call


# -- its formulas ---------------------------------------------------------------------------------


def by_hand(block, h, emb, at, heads):
    """A block, one position and head at a time, with turns as products of complex numbers."""

    def norm(x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(emb).chunk(6)
    own = block.attention
    x = norm(h) * (1 + scale1) + shift1
    width = h.shape[1] // heads
    pairs, axes = width // 2, len(at[0])
    each = pairs // axes
    angles = [
        [place[k // each] * 10_000 ** (-(k % each) / each) if k < each * axes else 0.0
         for k in range(pairs)]
        for place in at
    ]  # fmt: skip
    turns = torch.polar(torch.ones(len(at), pairs), torch.tensor(angles))
    mixed = []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        q, k, v = (project(x)[:, part] for project in (own.to_q, own.to_k, own.to_v))
        q, k = norm(q) * own.norm_q.weight, norm(k) * own.norm_k.weight
        q, k = (torch.complex(z[:, :pairs], z[:, pairs:]) * turns for z in (q, k))
        scores = (q @ k.conj().T).real / math.sqrt(width)
        mixed.append(scores.softmax(1) @ v)
    h = h + gate1 * own.to_out(torch.cat(mixed, 1))
    x = norm(h) * (1 + scale2) + shift2
    gate = block.mlp.gate(x)
    return h + gate2 * block.mlp.out(gate * gate.sigmoid() * block.mlp.value(x))


@dimensions
@torch.no_grad()
def test_a_block_is_its_formula(dims):
    made = plan(SIZES[dims], **SMALL)
    net, grid = randomized(made), tuple(side // 2 for side in SIZES[dims])
    at = list(torch.cartesian_prod(*(torch.arange(n) for n in grid)).reshape(-1, dims).tolist())
    h, emb, _, _, found = run_first_block(net, *batch(made))
    for own, one, expected in zip(h, emb, found, strict=True):
        assert torch.allclose(by_hand(net.blocks[0], own, one, at, heads=2), expected, atol=1e-4)


@dimensions
@torch.no_grad()
def test_places_tell_where_a_patch_is_in_what_is_the_same_everywhere(dims):
    net = randomized(plan(SIZES[dims], **SMALL))
    found = net(torch.ones(1, 3, *SIZES[dims]), torch.tensor([300.0]))
    corners = found[(slice(None), slice(None), *[slice(None, None, 2)] * dims)].flatten(2)
    assert bool((corners.std(2) > 0.01).all())


@torch.no_grad()
def test_places_are_parts_of_the_side():
    """Which is all that a block takes of an image of zeros."""
    net = plan(SIZES[1], **SMALL).build()
    inputs = ((torch.zeros(1, 3, 2 * n), torch.zeros(1)) for n in (8, 16))
    (once, *_), (twice, *_) = (run_first_block(net, *each) for each in inputs)
    assert torch.allclose(twice[0].unflatten(0, (8, 2)).mean(1), once[0], atol=0.2)
    assert once.shape == (1, 8, 24)
    assert len(once[0].unique(dim=0)) == 8


# -- every shape ----------------------------------------------------------------------------------


@shapes
def test_it_trains_every_weight_and_blocks_that_run_again_for_the_gradient_give_the_same(made):
    found = []
    for run in (None, run_checkpointed):
        net, (x, t) = randomized(made), batch(made)
        net.run_block = run or net.run_block
        y = net(x, t, **told(made))
        assert y.shape == (2, made.out_channels, *made.space.size)
        y.square().sum().backward()
        found.append([y, *(p.grad for p in net.parameters())])
    assert all(bool(p.isfinite().all()) and bool(p.any()) for p in found[0])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@shapes
@torch.no_grad()
def test_a_new_network_predicts_zero_and_it_is_itself_again_from_its_tensors_alone(made):
    net, (x, t) = made.build(), batch(made)
    assert not net(x, t, **told(made)).any()
    h, emb, _, _, same = run_first_block(net, x, t, **told(made))
    assert h.any()
    assert emb.any()
    assert torch.equal(same, h)
    net = randomized(made)
    with torch.device("meta"):
        again = made.build()
        assert again(x.to("meta"), t.to("meta")).shape == (2, made.out_channels, *made.space.size)
    again.load_state_dict({n: v.clone() for n, v in net.state_dict().items()}, assign=True)
    assert torch.equal(again.eval()(x, t), net(x, t))


@shapes
@torch.no_grad()
def test_nothing_told_is_the_label_after_the_last_zeros_and_not_a_number(made):
    net = randomized(made)
    x, t = batch(made)
    nothing = {"label": torch.tensor([2, 2]), "given": torch.zeros(2, 2, *made.space.size),
               "row": torch.full((2, 2), UNTOLD)}  # fmt: skip
    none = net(x, t)
    assert torch.equal(none, net(x, t, **{name: nothing[name] for name in told(made)}))
    for name, value in told(made).items():
        assert not torch.allclose(none[0], net(x, t, **{name: value})[0], atol=1e-3), name
    assert not torch.allclose(none, net(x, t + 5), atol=1e-3)


@shapes
@torch.no_grad()
def test_precision_memory_order_and_batch_do_not_change_it(made):
    net = randomized(made)
    x, t = batch(made)
    exact = net(x, t)
    assert torch.allclose(arrange_weights(net)(arrange_memory(x), t), exact, atol=1e-5)
    assert torch.allclose(net(x[1:], t[1:]), exact[1:], atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        rough = net(x, t).float()
        cast_weights(net, torch.bfloat16)
        assert torch.equal(net(x, t).float(), rough)
    assert float((rough - exact).norm() / exact.norm()) < 0.05


@torch.no_grad()
def test_weights_serve_at_another_size_and_dropout_acts_in_training_alone():
    small, large = (plan(size, **SMALL, context=1, dropout=0.5) for size in (8, (16, 12)))
    net, other = randomized(small), large.build().eval()
    other.load_state_dict(net.state_dict())
    x, t = batch(large)
    assert torch.equal(net(x, t), other(x, t))
    net.train()
    assert not torch.allclose(net(x, t), net(x, t), atol=1e-3)


# -- the papers' numbers --------------------------------------------------------------------------


def test_jit_b_has_its_parameters_and_operations():
    """131 M and 25 billion products of an evaluation, which the paper calls GFLOPs (Li & He 2025):
    without the weights that JiT's norms have beside the scale that follows from the time."""
    config = Config(patch=16, width=768, bottleneck=128, context=32)
    space, classes = Space(channels=3, size=(256, 256)), tuple(map(str, range(1000)))
    with torch.device("meta"):
        net = NETWORKS["vit"].build(config, space, Conditions(classes=classes))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.zeros(1, *space.shape), torch.zeros(1))
    assert count_parameters(net) + (2 * 12 + 1) * 768 == 131_123_712
    assert counter.get_total_flops() / 2e9 == pytest.approx(25.2, abs=0.05)


# -- what is refused, and what a preset becomes ----------------------------------------------------


WRONG = [
    ({"size": 9}, "size 9x9 cannot be cut into patches of 2. Choose a multiple of 2, or"),
    ({"size": (8, 7)}, "8 high x 7 wide"), ({"depth": 0}, "depth"), ({"patch": "two"}, "patch"),
    ({"size": 512, "patch": 1}, "512x512 has too many patches for attention: 262,144"),
    ({"width": 25}, "a width of 25 cannot be cut into heads of 12"), ({"bottleneck": 0}, "bottlen"),
    ({"head_width": 3}, "head_width must be even, not 3"),
    ({"head_width": 4, "size": (4, 4, 4)}, "head_width must be 6 or more in 3 dimensions"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=str)
def test_a_network_that_cannot_be_is_refused(wrong, message):
    with pytest.raises(InvalidArgument, match=message):
        plan(**{"size": 8, **SMALL, **wrong}).build()


PRESET = {"width": 384, "depth": 2, "head_width": 16, "bottleneck": 128, "positions": 256}


@pytest.mark.parametrize(
    ("size", "patch", "bottleneck"),
    [
        ((64, 64), 4, None), ((128, 128), 8, 128), ((256, 256), 16, 128), ((32, 32), 2, None),
        ((28, 28), 2, None), ((2, 2), 1, None), ((48, 64), 4, None), ((31, 33), 1, None),
        ((8192,), 32, None), ((32, 32, 32), 4, 128), ((512, 512), 16, 128), ((1024, 512), 16, 128),
    ],
)  # fmt: skip
def test_a_preset_has_the_smallest_patches_that_are_few_enough(size, patch, bottleneck):
    """But none of more values than twice the width."""
    space = Space(channels=3, size=size)
    config = adapt(PRESET, {}, space)
    assert (config.patch, config.bottleneck) == (patch, bottleneck)
    assert adapt(PRESET, {"patch": 1, "bottleneck": 7}, space).patch == 1
    assert NETWORKS["vit"].build(config, space, Conditions()).patch == patch


def test_a_typed_size_that_no_patches_divide_is_refused():
    space = Space(channels=1, size=(97, 97))
    with pytest.raises(InvalidArgument, match="97x97 cannot be cut into 256 patches or fewer") as e:
        adapt(PRESET, {}, space, exact=True)
    assert (e.value.argument, "multiple of 7" in str(e.value)) == ("size", True)
    assert adapt(PRESET, {}, space).patch == 1


@pytest.mark.parametrize(
    ("width", "head_width"), [(48, 16), (40, 10), (64, 16), (36, 12), (26, 2), (22, 2)]
)
def test_heads_become_narrower_until_they_divide_the_width(width, head_width):
    space = Space(channels=3, size=(8, 8))
    assert adapt(PRESET, {"width": width}, space).head_width == head_width
    with pytest.raises(InvalidArgument):
        adapt(PRESET, {"width": 40, "head_width": 16}, space)
    with pytest.raises(InvalidArgument, match="width"):
        adapt(PRESET, {"width": 37}, space)
