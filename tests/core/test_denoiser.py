"""What a network's output means."""

import pytest
import torch
from oracles import (
    exact_denoise,
    exact_denoiser,
    exact_net,
    generator,
    posterior_coefficients,
    process_of,
    zero_snr,
)

from diffuse_cli.core import TARGETS, Denoiser
from diffuse_cli.core.parameterization import STEPWISE
from diffuse_cli.core.registry import InvalidArgument

FULL = process_of("cosine", 50)


def images(batch=3, dtype=torch.float64, seed=0):
    return torch.randn(batch, 1, 2, 2, generator=generator(seed), dtype=dtype)


@pytest.mark.parametrize("t", [0, 1, 25, 49])
def test_the_coefficients_are_those_of_the_papers(t):
    alpha, sigma = FULL.alpha_sigma(t, like=FULL.betas)
    c1, c2 = posterior_coefficients(FULL, t)
    expected = {
        "eps": (0, 1), "x0": (1, 0), "v": (-sigma, alpha), "flow": (-1, 1),
        "mu": (c1 + c2 * alpha, c2 * sigma),
    }  # fmt: skip
    for name, pair in expected.items():
        assert TARGETS[name](alpha, sigma, c1, c2) == pytest.approx(pair), name


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("t", [0, 7, 7.0, 49, torch.tensor([0, 7, 49])], ids=str)
def test_the_inversion_recovers_image_and_noise(target, t):
    """A network that knows x_0 and eps is read back without loss, whatever its target."""
    x0, noise = images(seed=1), images(seed=2)
    x_t = FULL.diffuse(x0, t, noise)
    denoiser = Denoiser(lambda x, shown: None, FULL, target)
    at = int(t) if isinstance(t, float) else t
    a, b = denoiser.target_at(at, like=x0)
    denoiser.net = lambda x, shown: a * x0 + b * noise
    prediction = denoiser(x_t, t)
    assert torch.allclose(prediction.x0, x0, atol=1e-9)
    assert torch.allclose(prediction.eps, noise, atol=1e-9)
    assert torch.equal(prediction.raw, a * x0 + b * noise)


@pytest.mark.parametrize("target", list(TARGETS))
def test_prediction_is_consistent_between_timesteps_too(target):
    x_t = images()
    prediction = Denoiser(lambda x, shown: 0.3 * x + 0.1, FULL, target)(x_t, 12.4)
    alpha, sigma = FULL.alpha_sigma(12 if target in STEPWISE else 12.4, like=x_t)
    assert torch.allclose(alpha * prediction.x0 + sigma * prediction.eps, x_t, rtol=1e-10)


def test_the_network_is_shown_the_process_timesteps_and_the_conditions():
    seen = []

    def net(x, t, **cond):
        seen.append((t, cond))
        return x

    label = torch.tensor([1, 2, 0])
    denoiser = Denoiser(net, FULL, "v")
    denoiser(images(dtype=torch.float32), torch.tensor([0, 3, 49]), label=label)
    denoiser.respaced([49, 3])(images(dtype=torch.float32), 1)
    assert seen[0][0].tolist() == [0, 60, 980]
    assert seen[0][1]["label"] is label
    assert seen[1][0].tolist() == [980] * 3
    assert {t.dtype for t, _ in seen} == {torch.float32}


def test_a_respaced_mu_keeps_the_coefficients_it_was_trained_with():
    full = exact_denoiser(FULL, "mu")
    respaced = full.respaced([49, 3, 21, 8])
    anew = Denoiser(full.net, respaced.process, "mu")
    x = images()
    exact = exact_denoise(respaced.process)
    assert torch.allclose(respaced(x, 2).x0, exact(x, 2).x0, rtol=1e-9)
    assert not torch.allclose(anew(x, 2).x0, exact(x, 2).x0, rtol=0.1)
    twice = respaced.respaced([0, 2])
    assert torch.allclose(twice(x, 1).x0, exact(x, 2).x0, rtol=1e-9)


def test_eps_alone_is_refused_at_zero_snr_and_names_must_be_known():
    denoiser = Denoiser(None, FULL)
    assert (denoiser.target, denoiser.variance) == ("eps", "small")
    for names, match in [({"target": "epsilon"}, "'eps'"), ({"variance": "smal"}, "'small'")]:
        with pytest.raises(InvalidArgument, match=f"^{next(iter(names))}.*Did you mean {match}"):
            Denoiser(None, FULL, **names)
    with pytest.raises(InvalidArgument, match="'eps' is undefined"):
        Denoiser(lambda x, t: x, zero_snr(100), "eps")
    Denoiser(lambda x, t: x, zero_snr(100).respaced(range(99)), "eps")


@pytest.mark.parametrize("t", [5, 5.5, torch.tensor([0, 9, 49])], ids=str)
def test_predictions_have_the_dtype_of_the_images(t):
    nets = {target: exact_net(FULL, target) for target in TARGETS}
    for target, net in [*nets.items(), ("v", lambda x, t: x.bfloat16())]:
        for dtype in (torch.float64, torch.float32):
            prediction = Denoiser(net, FULL, target)(images(dtype=dtype), t)
            assert prediction.x0.dtype == prediction.eps.dtype == dtype


def test_mu_between_timesteps_is_read_at_the_nearest():
    denoiser = exact_denoiser(FULL, "mu")
    x = images()
    for time, nearest in ((20.4, 20), (20.6, 21), (48.9, 49)):
        assert torch.equal(denoiser(x, time).x0, denoiser(x, nearest).x0)
