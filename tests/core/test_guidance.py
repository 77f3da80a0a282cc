"""Wrappers of a denoiser."""

import math
from dataclasses import replace

import pytest
import torch
from oracles import generator, process_of, sigma_process, zero_snr

from diffuse_cli.core import Denoiser
from diffuse_cli.core.guidance import (
    autoguide,
    clip,
    guide,
    guide_away,
    interval,
    make_unconditional,
    threshold,
)

FULL = process_of("cosine", 50)
X = 3 * torch.randn(3, 1, 2, 2, generator=generator(), dtype=torch.float64)
LABEL = torch.tensor([0, 1, 2])


@pytest.mark.parametrize("t", [0, 20, 20.5, 49, torch.tensor([0, 20, 49])], ids=str)
def test_clip_bounds_the_image_and_keeps_x_t(t):
    denoiser = Denoiser(lambda x, t: 2 * x, FULL, "x0", "large")
    prediction = clip(denoiser, FULL)(X, t)
    alpha, sigma = FULL.alpha_sigma(t, like=X)
    assert float(prediction.x0.abs().max()) == 1
    assert torch.allclose(alpha * prediction.x0 + sigma * prediction.eps, X, rtol=1e-10)
    plain, clipped = denoiser(X / 30, t), clip(denoiser, FULL)(X / 30, t)
    assert torch.allclose(plain.x0, clipped.x0)
    assert torch.allclose(plain.eps, clipped.eps, rtol=1e-8)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda denoiser: clip(denoiser, FULL),
        lambda denoiser: threshold(denoiser, 0.9),
        lambda denoiser: autoguide(Denoiser(conditional, FULL, "x0", "large"), denoiser, 2),
    ],
    ids=["clip", "threshold", "autoguide"],
)
def test_a_wrapper_hands_on_the_conditions_and_the_variance(wrap):
    seen = []
    denoiser = Denoiser(lambda x, t, **cond: seen.append(cond) or x, FULL, "v", "large")
    found = wrap(denoiser)(X, 20, label=LABEL)
    assert seen == [{"label": LABEL}]
    assert found.log_var(20, 3) == denoiser(X, 20).log_var(20, 3)


def conditional(x, t, *, label=None):
    """x_0 is the label where there is one, -1 where there is none."""
    values = torch.full((len(x),), -1.0) if label is None else label.double()
    return values.reshape(-1, 1, 1, 1).expand_as(x)


@pytest.mark.parametrize("t", [5, torch.tensor([5, 20, 49])], ids=str)
def test_guidance_interpolates_and_extrapolates_linearly(t):
    """And has the variance of the conditional prediction."""
    denoiser = Denoiser(conditional, FULL, "x0", "large")

    def denoise(x, t, /, label=None):
        said = "free" if label is None else "given"
        return replace(denoiser(x, t, label=label), log_var=lambda t, s: said)

    given, free = denoiser(X, t, label=LABEL), denoiser(X, t)
    alpha, sigma = FULL.alpha_sigma(t, like=X)
    for scale in (0, 0.5, 1, 3.0, -1.0):
        guided = guide(denoise, scale)(X, t, label=LABEL)
        assert torch.allclose(guided.x0, free.x0 + scale * (given.x0 - free.x0))
        assert torch.allclose(guided.eps, free.eps + scale * (given.eps - free.eps))
        assert torch.allclose(alpha * guided.x0 + sigma * guided.eps, X)
        assert guided.log_var(5, 4) == "given"
        bounded = clip(guide(denoiser, scale), FULL)(X, t, label=LABEL)
        assert torch.equal(bounded.x0, guided.x0.clamp(-1, 1))


# -- a weaker model -------------------------------------------------------------------------------


def linear(slope, target="x0", variance="small"):
    """A denoiser whose x_0 is slope · x_t, whatever its target."""
    plain = Denoiser(lambda x, t: x, FULL, target)

    def net(x, t, label=None):
        at = int(t[0]) * FULL.num_timesteps // 1000
        alpha, sigma = FULL.alpha_sigma(at, like=x)
        a, b = plain.target_at(at, like=x)
        return a * slope * x + b * (1 - alpha * slope) / sigma * x

    return Denoiser(net, FULL, target, variance)


def untouchable(x_t, t, /, **cond):
    raise AssertionError("evaluated")


@pytest.mark.parametrize("t", [0, 20, 49])
@pytest.mark.parametrize("target", ["x0", "eps", "v"])
def test_a_weaker_model_of_any_target_is_moved_away_from_linearly(target, t):
    strong, weak = linear(0.5), linear(0.2, target)
    alpha, sigma = FULL.alpha_sigma(t, like=X)
    for scale in (0, 0.5, 1, 1.5, 3.0, -1.0):
        found = autoguide(strong, weak, scale)(X, t)
        slope = 0.2 + scale * (0.5 - 0.2)
        assert torch.allclose(found.x0, slope * X)
        assert torch.allclose(found.eps, (1 - alpha * slope) / sigma * X)
        assert torch.allclose(alpha * found.x0 + sigma * found.eps, X)


def test_scale_one_is_the_model_and_leaves_the_weaker_one_alone_and_zero_is_the_weaker_one():
    strong, weak = linear(0.5, variance="large"), linear(0.2, "v")
    plain, found = strong(X, 20), autoguide(strong, untouchable, 1)(X, 20)
    for name in ("x0", "eps", "raw"):
        assert torch.equal(getattr(found, name), getattr(plain, name))
    found, theirs = autoguide(strong, weak, 0)(X, 20), weak(X, 20)
    assert torch.equal(found.x0, theirs.x0)
    assert torch.equal(found.eps, theirs.eps)
    assert found.raw is None
    assert found.log_var(20, 3) == plain.log_var(20, 3) != theirs.log_var(20, 3)


def test_classes_and_a_weaker_model_push_each_on_its_own():
    """x_0 is 2 with its class and -1 without, and 1 of the weaker model."""
    strong = Denoiser(conditional, FULL, "x0")
    weak = Denoiser(lambda x, t, label=None: torch.ones_like(x), FULL, "x0")
    twos = torch.tensor([2, 2, 2])
    for scale, weak_scale in ((1, 1), (3, 1), (1, 3), (2, 1.5), (0, 2), (2, 0)):
        both = guide_away(strong, (make_unconditional(strong), scale), (weak, weak_scale))
        wanted = 2 + (scale - 1) * (2 - -1) + (weak_scale - 1) * (2 - 1)
        found = both(X, 20, label=twos)
        assert torch.allclose(found.x0, torch.full_like(X, wanted))
        alpha, sigma = FULL.alpha_sigma(20, like=X)
        assert torch.allclose(alpha * found.x0 + sigma * found.eps, X)
    for scale in (0, 2.5):
        one = guide_away(strong, (make_unconditional(strong), scale), (untouchable, 1))(
            X, 20, label=twos
        )
        assert torch.equal(one.x0, guide(strong, scale)(X, 20, label=twos).x0)
        one = guide_away(strong, (untouchable, 1), (weak, scale))(X, 20, label=twos)
        assert torch.equal(one.x0, autoguide(strong, weak, scale)(X, 20, label=twos).x0)


# -- dynamic thresholding -------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0, 20, 20.5, 49, torch.tensor([0, 20, 49])], ids=str)
def test_threshold_scales_each_image_back_by_its_own_percentile(t):
    scale = torch.tensor([0.5, 2.0, 8.0]).double().reshape(3, 1, 1, 1)
    guess = scale * torch.rand(3, 3, 8, 8, generator=generator(1), dtype=torch.float64)
    x = torch.randn(guess.shape, generator=generator(2), dtype=torch.float64)
    found = threshold(Denoiser(lambda x, t: guess, FULL, "x0", "large"), 0.9)(x, t)
    for image, before in zip(found.x0, guess, strict=True):
        s = max(1.0, float(before.abs().flatten().quantile(0.9)))
        assert torch.allclose(image, before.clamp(-s, s) / s)
    assert torch.equal(found.x0[0], guess[0])
    whole = threshold(Denoiser(lambda x, t: guess, FULL, "x0"), 1.0)(x, t)
    assert torch.allclose(whole.x0[2], guess[2] / guess[2].abs().max())
    assert float((found.x0.abs() == 1).double().mean((1, 2, 3))[2]) == pytest.approx(0.1, abs=0.01)
    alpha, sigma = FULL.alpha_sigma(t, like=x)
    assert torch.allclose(alpha * found.x0 + sigma * found.eps, x, rtol=1e-10)


# -- guidance in an interval ----------------------------------------------------------------------


def test_an_interval_is_of_noise_levels_open_below_and_holds_pure_noise_if_it_has_no_end():
    """sigma / alpha of 0.5, 1, 2, 4 at t = 0 ... 3."""
    process = sigma_process([0.5, 1.0, 2.0, 4.0])
    asked = []
    both = [lambda x, t, name=name, **cond: asked.append((name, t, cond)) for name in "io"]
    chosen = interval(*both, 0.9, 2.1, process)
    for t in (0, 1, 1.5, 2, 3):
        chosen(X, t, label=LABEL)
    assert [name for name, _, _ in asked] == list("oiiio")
    assert all(cond == {"label": LABEL} for _, _, cond in asked)
    level = math.exp(-process.log_snr(1) / 2)
    interval(*both, level, 9, process)(X, 1)
    interval(*both, 0, level, process)(X, 1)
    interval(*both, 1, math.inf, zero_snr(50))(X, 49)
    interval(*both, 1, 1e9, zero_snr(50))(X, 49)
    assert [name for name, _, _ in asked[-4:]] == ["o", "i", "i", "o"]
