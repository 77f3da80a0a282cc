"""A model of small samples on larger ones."""

import itertools
import math
from functools import partial

import pytest
import torch
from oracles import denoiser_with, generator, process_of

from diffuse_cli.core import VARIANCES, tiling
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.tiling import Tiling, tile_network

FULL = process_of("cosine", 50)
TIMES = [5, 20.5, torch.tensor([5, 49])]


def large(*whole, batch=2, channels=1):
    return torch.randn(batch, channels, *whole, generator=generator(), dtype=torch.float64)


@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.75, 0.9])
def test_windows_have_no_gaps_at_any_size_and_are_as_few_as_possible(monkeypatch, overlap):
    monkeypatch.setattr(tiling, "OVERLAP", overlap)
    for side, span in itertools.product(range(1, 25), range(60)):
        starts = Tiling((side + span,), (side,)).starts(0)
        steps = [b - a for a, b in itertools.pairwise(starts)]
        stride = max(1, math.floor(side * (1 - overlap)))
        assert (starts[0], starts[-1]) == (0, span)
        assert all(0 < step <= stride for step in steps), (side, span)
        assert len(starts) == 1 + math.ceil(span / stride)
    for whole in ((4,), (9, 4), (7, 4, 5)):
        cut, covered = Tiling(whole, (4,) * len(whole)), torch.zeros(1, 1, *whole)
        for place in cut.windows:
            assert covered[place].shape[2:] == cut.size
            covered[place] += 1
        assert int(covered.min()) == 1


@pytest.mark.parametrize("block", [2, 3, 4, 8])
def test_windows_begin_where_a_block_does(block):
    """So that a window of a low-res input is made of whole blocks."""
    for side, whole in itertools.product((2 * block, 4 * block, 6 * block), range(1, 60)):
        if whole * block >= side:
            assert not any(k % block for k in Tiling((whole * block,), (side,)).starts(0))


@pytest.mark.parametrize("whole", [(3, 8), (8,), (4, 8, 8)], ids=str)
def test_a_sample_that_no_window_fits_in_is_refused(whole):
    with pytest.raises(InvalidArgument, match=r"smaller than the model's 4x4"):
        tile_network(mean_of_window, (4, 4))(large(*whole), torch.zeros(2))


@pytest.mark.parametrize("t", TIMES, ids=str)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("room", [1, 5, 64])
def test_a_model_of_single_pixels_does_not_notice_windows(t, variance, room):
    """What is said of a pixel does not depend on its place: the mean over windows is that."""
    shown = 2 if variance == "learned" else 1

    def net(x, t):
        return (x.tanh() + t.reshape(-1, 1, 1, 1)).repeat(1, shown, 1, 1)

    x = large(7, 10)
    plain = denoiser_with(net, FULL, "v", variance)(x, t)
    tiled = tile_network(net, (4, 4), room=lambda: room)
    merged = denoiser_with(tiled, FULL, "v", variance)(x, t)
    for name in ("x0", "eps"):
        torch.testing.assert_close(getattr(merged, name), getattr(plain, name))
    torch.testing.assert_close(*(torch.as_tensor(p.log_var(t)) for p in (merged, plain)))


def mean_of_window(x, t, **cond):
    """So that each window says something else."""
    return x.mean((1, 2), keepdim=True).expand_as(x)


def test_windows_count_most_in_their_middle():
    x = large(6, batch=1)
    first, second = x[0, 0, :4].mean(), x[0, 0, 2:].mean()
    found = tile_network(mean_of_window, (4,))(x, torch.zeros(1))[0, 0]
    wanted = [first, first, (2 * first + second) / 3, (first + 2 * second) / 3, second, second]
    torch.testing.assert_close(found, torch.stack(wanted))


def test_windows_are_told_their_own_condition():
    """An array is cut like x_t, a label of each sample repeated, anything else handed on."""
    counts = []

    def told(x, t, more, *, given, label, none, hint):
        assert none is None
        assert hint.shape == (len(x), 1, 3, 3)  # of another size than the sample
        counts.append(len(x))
        return given + more + (label + t + hint.mean((1, 2, 3))).reshape(-1, 1, 1, 1)

    given, label, t = large(7, 10), torch.tensor([10, 20]), torch.tensor([100.0, 200.0])
    hint = torch.tensor([1000, 2000.0]).reshape(2, 1, 1, 1).expand(2, 1, 3, 3)
    net = tile_network(told, (4, 4), room=lambda: 5)
    found = net(large(7, 10), t, given.exp(), given=given, label=label, none=None, hint=hint)
    both = (label + t + torch.tensor([1000, 2000])).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(found, given + given.exp() + both)
    assert counts == [4] * 6  # 12 windows of 2 samples


@pytest.mark.parametrize(
    ("whole", "gradient", "parts"), [(300, False, [64] * 4 + [42]), (6, True, [4])]
)
def test_64_windows_are_predicted_at_a_time_by_default_and_a_single_part_once(
    whole, gradient, parts
):
    net, counts = counting()
    x = large(whole).requires_grad_(gradient)
    merged = tile_network(net, (4,))(x, torch.zeros(2))
    if gradient:
        merged.sum().backward()
    assert counts == parts


def mixed(x, t, *, given=0):
    """Each value depends on all values of its window, not linearly."""
    return (x.flatten(1).cumsum(1).reshape(x.shape) + given).sin().exp()


def counting(most=math.inf):
    """`mixed`, interrupted after so many calls, and how many windows each call has."""
    counts = []

    def net(x, t):
        counts.append(len(x))
        if len(counts) > most:
            raise KeyboardInterrupt
        return mixed(x, t)

    return net, counts


@pytest.mark.parametrize("room", [1, 3, 7, 64])
def test_parts_change_neither_the_estimate_nor_its_gradient(room):
    """Against windows that are cut and averaged one by one, with autograd's gradients."""
    x, given, cotangent = large(7, 10), large(7, 10), large(7, 10)
    tiling, t = Tiling((7, 10), (4, 4)), torch.zeros(2)

    def by_hand(x):
        weight = tiling.weight(x)
        total, weights = torch.zeros_like(x), torch.zeros_like(x)
        for place in tiling.windows:
            cover = torch.zeros_like(x)
            cover[place] = weight
            estimate = torch.zeros_like(x)
            estimate[place] = mixed(x[place], t, given=given[place])
            total, weights = total + cover * estimate, weights + cover
        return total / weights

    net = tile_network(mixed, (4, 4), room=lambda: room)
    for tiled in (lambda x: net(x, t, given=given), partial(net, t=t, given=given)):
        with torch.enable_grad():
            ours, theirs = (x.clone().requires_grad_() for _ in range(2))
            merged, wanted = tiled(ours), by_hand(theirs)
            torch.testing.assert_close(merged, wanted)
            for _ in range(2):  # as `mmps` asks
                (found,) = torch.autograd.grad(merged, ours, cotangent, retain_graph=True)
                torch.testing.assert_close(
                    found, torch.autograd.grad(wanted, theirs, cotangent, retain_graph=True)[0]
                )
    weights = [torch.ones((), dtype=torch.float64, requires_grad=True) for _ in range(2)]
    for weight, most in zip(weights, (room, 64), strict=True):
        net = tile_network(lambda x, t, w=weight: mixed(w * x, t), (4, 4), room=lambda m=most: m)
        net(x.clone().requires_grad_(), t).sum().backward()
    torch.testing.assert_close(weights[0].grad, weights[1].grad)


@pytest.mark.parametrize("room", [1, 2, 6])
def test_a_gradient_keeps_the_sample_and_not_its_windows(room):
    """And no more windows than there is room for are predicted at a time."""
    (net, counts), kept = counting(), {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = large(40, batch=1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        merged = tile_network(net, (4,), room=lambda: room)(x, torch.zeros(1))
    assert sum(kept.values()) < 3 * x.nbytes  # with the sum of weights
    windows = len(Tiling((40,), (4,)).windows)
    assert max(counts) == room
    assert sum(counts) == windows
    merged.sum().backward()
    assert max(counts) == room
    assert sum(counts) == 2 * windows


def test_an_error_ends_the_gradient_at_once():
    """As Ctrl-C does, which is raised where Python code runs: between two parts."""
    net, counts = counting(most=20)
    x = large(40, batch=1).requires_grad_()  # 19 windows
    merged = tile_network(net, (4,), room=lambda: 1)(x, torch.zeros(1))
    with pytest.raises(KeyboardInterrupt):
        merged.sum().backward()
    assert len(counts) == 21


def test_windows_on_meta_and_as_large_as_the_sample():
    x = torch.empty(2, 1, 7, 10, device="meta", requires_grad=True)
    net = tile_network(lambda x, t: x.sin(), (4, 4), room=lambda: 2)
    merged = net(x, torch.empty(2, device="meta"))
    assert torch.autograd.grad(merged.sum(), x)[0].is_meta
    x = large(4, 4)
    assert tile_network(lambda x, t: x, (4, 4))(x, torch.zeros(2)) is x
