"""Distribution matching: for Gaussian data all of it is known."""

import pytest
import torch
from oracles import SPREAD, around, generator, process_of

from diffuse_cli.core import Denoiser, Prediction, distillation

COSINE = process_of("cosine", 1000)
MEAN = 0.3


def normal(n, seed):
    return torch.randn(n, 1, 2, 2, generator=generator(seed), dtype=torch.float64)


def times(n, process=COSINE):
    return distillation.matching_timesteps(process, torch.arange(n, dtype=torch.float64) / n)


TEACHER = around(COSINE, MEAN, SPREAD)


def test_samples_of_the_right_distribution_stay():
    """Critic and teacher, to which no gradient goes, agree on them, whatever each sample is."""
    weight = torch.ones((), dtype=torch.float64, requires_grad=True)

    def net(x_t, t, /, **cond):
        assert not torch.is_grad_enabled()
        guess = TEACHER(x_t, t)
        return Prediction(weight * guess.x0, guess.eps)

    x0 = (MEAN + SPREAD * normal(32, 1)).requires_grad_()
    found = distillation.distribution_matching_loss(
        x0, times(32), normal(32, 2), process=COSINE, teacher=net, critic=net
    )
    found.sum().backward()
    assert float(found.detach().abs().max()) == 0 == float(x0.grad.abs().max())
    assert weight.grad is None


def test_the_gradient_is_that_of_the_divergence():
    """KL(N(a, b^2 at t) || N(teacher at t)) has a gradient with respect to each sample, which is
    the difference of two scores; ours is along it, for each sample and time."""
    n, a, b = 64, 1.0, 0.7
    x0, noise, t = (a + b * normal(n, 3)).requires_grad_(), normal(n, 4), times(n)
    critic = around(COSINE, a, b)
    value = distillation.distribution_matching_loss(
        x0, t, noise, process=COSINE, teacher=TEACHER, critic=critic
    )
    value.sum().backward()

    alpha, sigma = COSINE.alpha_sigma(t, like=x0)
    x_t = alpha * x0.detach() + sigma * noise

    def score(mean, spread):
        return -(x_t - alpha * mean) / (alpha**2 * spread**2 + sigma**2)

    divergence = score(a, b) - score(MEAN, SPREAD)
    scale = (x0.detach() - TEACHER(x_t, t).x0).abs().flatten(1).mean(1).reshape(-1, 1, 1, 1)
    expected = sigma**2 / alpha * divergence / scale / 4  # a mean over 4 dimensions
    assert torch.allclose(x0.grad, expected, rtol=1e-9, atol=1e-12)
    way = (4 * expected).flatten(1)
    assert torch.allclose(value, way.square().mean(1) / 2)


def test_two_evaluations_draw_from_what_one_has_drawn():
    seen = []

    def net(x, shown, label):
        seen.append((torch.is_grad_enabled(), x.detach().clone(), shown.tolist(), label.tolist()))
        return 0.5 * x

    noise, again, labels = normal(2, 5), normal(2, 6), torch.tensor([3, 1])
    denoiser = Denoiser(net, COSINE, "x0")
    x0 = distillation.generate_samples(denoiser, noise, again, label=labels)
    first, second = COSINE.times(2)
    alone, both = seen
    assert (alone[0], alone[3]) == (False, [3, 1])
    assert (both[0], both[3]) == (True, [3, 1, 3, 1])
    shown = [float(COSINE.timesteps[k]) for k in (first, second)]
    assert alone[2] == pytest.approx([shown[0]] * 2)
    assert both[2] == pytest.approx([shown[0]] * 2 + [shown[1]] * 2)
    x_t = COSINE.diffuse(0.5 * noise, second, again)
    assert torch.allclose(both[1], torch.cat([noise, x_t]))
    assert torch.allclose(x0, 0.5 * torch.cat([noise, x_t]))


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_times_to_compare_at_are_of_the_process(count):
    """Between 2 % and 70 % of them; all that there may be, where they are few."""
    process = process_of("cosine", count)
    found = distillation.matching_timesteps(process, torch.linspace(0, 1 - 1e-7, 10_000))
    low, high = (0, count - 1) if count < 10 else (20, 699)
    assert (int(found.min()), int(found.max())) == (low, high)
    noise = normal(2, 7)
    drawn = distillation.generate_samples(Denoiser(lambda x, t: x, process, "v"), noise, noise)
    assert drawn.shape == (4, 1, 2, 2)
