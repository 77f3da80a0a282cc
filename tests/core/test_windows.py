"""A model of small samples on larger ones."""

from __future__ import annotations

import itertools

import pytest
import torch
from oracles import exact_denoiser, generator, process_of

from diffuse_cli.core import SAMPLERS, VARIANCES, Denoiser, Prediction
from diffuse_cli.core.errors import InvalidArgument
from diffuse_cli.core.guidance import clip
from diffuse_cli.core.windows import Tiling, windowed

FULL = process_of("cosine", 50)
TIMES = [5, 20.5, torch.tensor([5, 49])]


def large(*whole, batch=2, channels=1):
    return torch.randn(batch, channels, *whole, generator=generator(), dtype=torch.float64)


@pytest.mark.parametrize("whole", [(4,), (9, 4), (7, 4, 5)], ids=str)
@pytest.mark.parametrize("overlap", [0, 0.25, 0.5, 0.9])
def test_windows_cover_all_from_edge_to_edge_and_overlap(whole, overlap):
    side = 4
    tiling = Tiling(whole, (side,) * len(whole), overlap)
    covered = torch.zeros(1, 1, *whole)
    for place in tiling.places:
        assert covered[place].shape[2:] == tiling.size
        covered[place] += 1
    assert int(covered.min()) == 1
    for axis, length in enumerate(whole):
        starts = tiling.starts(axis)
        assert (starts[0], starts[-1]) == (0, length - side)
        steps = [b - a for a, b in itertools.pairwise(starts)]
        assert all(0 < step <= max(1, side * (1 - overlap)) for step in steps)


def test_windows_are_as_few_as_the_overlap_allows():
    assert Tiling((64,), (32,), 0).starts(0) == [0, 32]
    assert Tiling((64,), (32,), 0.5).starts(0) == [0, 16, 32]
    assert Tiling((65,), (32,), 0).starts(0) == [0, 16, 33]
    assert Tiling((32,), (32,), 0.5).starts(0) == [0]


@pytest.mark.parametrize("whole", [(3, 8), (8,), (4, 8, 8)], ids=str)
def test_a_sample_that_no_window_fits_in_is_refused(whole):
    with pytest.raises(InvalidArgument, match=r"smaller than the model's 4x4"):
        windowed(exact_denoiser(FULL, "v"), (4, 4))(large(*whole), 5)


@pytest.mark.parametrize("t", TIMES, ids=str)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("batch", [1, 5, 64])
def test_a_model_of_single_pixels_does_not_notice_windows(t, variance, batch):
    """What is said of a pixel does not depend on its place: the mean over windows is that."""
    shown = 2 if variance == "learned" else 1
    denoiser = Denoiser(lambda x, t: (x.tanh()).repeat(1, shown, 1, 1), FULL, "v", variance)
    x = large(7, 10)
    plain, merged = denoiser(x, t), windowed(denoiser, (4, 4), batch=batch)(x, t)
    for name in ("x0", "eps"):
        torch.testing.assert_close(getattr(merged, name), getattr(plain, name))
    one = torch.as_tensor(merged.log_var(t))
    torch.testing.assert_close(one, torch.as_tensor(plain.log_var(t)))


def test_a_window_as_large_as_the_sample_is_the_model_alone():
    denoiser, x = exact_denoiser(FULL, "v", "large"), large(4, 4)
    assert torch.equal(windowed(denoiser, (4, 4))(x, 5).x0, denoiser(x, 5).x0)


def place_of_a_window(x, t, **cond):
    """x_0 is the mean of the window, so that each window says something else."""
    return x.mean((1, 2), keepdim=True).expand_as(x)


def test_windows_count_most_in_their_middle():
    denoiser, x = Denoiser(place_of_a_window, FULL, "x0"), large(6, batch=1)
    first, second = x[0, 0, :4].mean(), x[0, 0, 2:].mean()
    found = windowed(denoiser, (4,))(x, 5).x0[0, 0]
    wanted = [first, first, (2 * first + second) / 3, (first + 2 * second) / 3, second, second]
    torch.testing.assert_close(found, torch.stack(wanted))


@pytest.mark.parametrize("t", TIMES, ids=str)
def test_x_t_is_kept(t):
    x, denoiser = large(7, 10), Denoiser(lambda x, t: x.mean() * x, FULL, "v")
    found = windowed(clip(denoiser, FULL), (4, 4))(x, t)
    alpha, sigma = FULL.level(t, like=x)
    torch.testing.assert_close(alpha * found.x0 + sigma * found.eps, x)


def test_windows_are_told_their_own_condition():
    """An array is cut like x_t, a label of each sample repeated, anything else handed on."""

    def told(x_t, t, *, given, label, none):
        assert none is None
        return Prediction(given + label.reshape(-1, 1, 1, 1), x_t)

    given, label = large(7, 10), torch.tensor([10, 20])
    found = windowed(told, (4, 4), batch=4)(large(7, 10), 5, given=given, label=label, none=None)
    torch.testing.assert_close(found.x0, given + label.reshape(-1, 1, 1, 1))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers_go_with_windows(sampler):
    denoise = windowed(exact_denoiser(FULL, "v"), (4, 4))
    x = large(4, 6)
    *_, last = SAMPLERS[sampler](denoise, FULL, x, FULL.times(5), noise=lambda k: large(4, 6))
    assert last.x.shape == x.shape
    assert torch.isfinite(last.x).all()


def test_windows_on_meta():
    x = torch.empty(2, 1, 7, 10, device="meta")
    assert windowed(Denoiser(lambda x, t: x, FULL, "v"), (4, 4))(x, 5).x0.is_meta
