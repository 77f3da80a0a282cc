"""Training losses and their weights."""

import math

import pytest
import torch
from oracles import (
    SAID,
    exact_denoiser,
    exact_net,
    gain,
    generator,
    posterior_coefficients,
    process_of,
    zero_snr,
)

from diffuse_cli.core import LOSSES, TARGETS, VARIANCES, WEIGHTINGS, Denoiser, Process, losses
from diffuse_cli.core.losses import weights
from diffuse_cli.core.registry import InvalidArgument

FULL = process_of("cosine", 50)
RESPACED = sorted(FULL.times(10))


def batch(n, seed=0, shape=(1, 2, 3)):
    return torch.randn(n, *shape, generator=generator(seed), dtype=torch.float64)


def levels(n):
    """Images of whole 8-bit levels."""
    return torch.randint(0, 256, (n, 1, 2, 3), generator=generator(5)).double() / 127.5 - 1


# -- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", list(TARGETS))
def test_simple_is_the_mean_squared_error_of_the_target(target):
    t = torch.arange(50)
    x0, noise, wrong = batch(50, 1), batch(50, 2), batch(50, 3)
    denoiser = Denoiser(lambda x, shown: wrong, FULL, target)
    expected = []
    for i in range(50):
        alpha, sigma = FULL.alpha_sigma(i, like=x0)
        a, b = TARGETS[target](alpha, sigma, *posterior_coefficients(FULL, i))
        expected.append(((wrong[i] - a * x0[i] - b * noise[i]) ** 2).mean())
    assert torch.allclose(LOSSES["simple"](denoiser, x0, t, noise), torch.stack(expected))


@pytest.mark.parametrize("variance", list(VARIANCES))
def test_vlb_at_the_first_timestep_is_the_decoder(variance):
    x0, noise = levels(4), batch(4, 2)
    denoiser = exact_denoiser(FULL, "v", variance)
    t = torch.zeros(4, dtype=torch.long)
    alpha, sigma = FULL.alpha_sigma(0, like=x0)
    mean = gain(alpha, sigma) * (alpha * x0 + sigma * noise)
    log_var = FULL.coefficients(1, like=x0).log_beta_tilde
    if variance == "learned":
        log_var += (SAID + 1) / 2 * (math.log(FULL.betas[0]) - log_var)
    std = math.exp(log_var / 2)

    def below(edge):
        z = (edge - mean) / std
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    upper = torch.where(x0 > 0.999, 1.0, below(x0 + 1 / 255))
    lower = torch.where(x0 < -0.999, 0.0, below(x0 - 1 / 255))
    expected = -(upper - lower).clamp(min=1e-12).log2().flatten(1).mean(1)
    assert torch.allclose(LOSSES["vlb"](denoiser, x0, t, noise), expected, rtol=1e-9)


def test_vlb_of_an_int_is_that_of_a_tensor():
    denoiser = exact_denoiser(FULL, "eps", "large")
    x0, noise = levels(3), batch(3, 2)
    for i in (0, 1, 20, 49):
        tensor = LOSSES["vlb"](denoiser, x0, torch.full((3,), i), noise)
        x_t = FULL.diffuse(x0, i, noise)
        term = losses.bound_term(FULL, denoiser(x_t, i), x0, x_t, i)
        assert torch.allclose(tensor, term, rtol=1e-9)


def test_vlb_is_not_clipped():
    x0, noise = levels(2), batch(2, 2)
    t = torch.tensor([30, 49])
    far = LOSSES["vlb"](Denoiser(lambda x, t: x0 + 5, FULL, "x0"), x0, t, noise)
    near = LOSSES["vlb"](Denoiser(lambda x, t: x0 + 2.5, FULL, "x0"), x0, t, noise)
    assert torch.allclose(far, 4 * near)


@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_conditions_reach_the_network_once_and_the_loss_can_be_trained(loss):
    slope = torch.tensor(0.5, requires_grad=True)
    seen = []

    def net(x, t, **cond):
        seen.append(cond)
        return torch.cat([slope * x, x], 1)

    label = torch.arange(3)
    denoiser = Denoiser(net, FULL, "v", "learned")
    value = LOSSES[loss](denoiser, levels(3), torch.tensor([0, 4, 49]), batch(3), label=label)
    value.mean().backward()
    assert seen == [{"label": label}]
    assert math.isfinite(float(slope.grad))
    assert float(slope.grad) != 0


@pytest.mark.parametrize("variance", list(VARIANCES))
def test_hybrid_is_simple_and_a_thousandth_of_the_bound(variance):
    x0, noise, t = levels(4), batch(4), torch.tensor([0, 1, 20, 49])
    weight = torch.tensor([0.5, 2.0, 0.0, 3.0], dtype=torch.float64)
    denoiser = exact_denoiser(FULL, "v", variance)
    simple, vlb = (LOSSES[name](denoiser, x0, t, noise) for name in ("simple", "vlb"))
    assert torch.equal(LOSSES["simple"](denoiser, x0, t, noise, weight), weight * simple)
    found = LOSSES["hybrid"](denoiser, x0, t, noise, weight)
    assert torch.allclose(found, weight * simple + 50 / 1000 * vlb, rtol=1e-12)


@pytest.mark.parametrize("target", list(TARGETS))
def test_in_hybrid_the_bound_teaches_the_variance_and_not_the_mean(target):
    """The gradient of the mean is that of simple alone, and of the variance that of the bound."""
    x0, noise, t = levels(4), batch(4), torch.tensor([0, 1, 20, 49])
    exact = exact_net(FULL, target)

    def gradients(loss):
        mean, spread = (torch.tensor(v, requires_grad=True, dtype=torch.float64) for v in (0.9, 0))

        def net(x, shown):
            return torch.cat([mean * exact(x, shown), spread * x], 1)

        LOSSES[loss](Denoiser(net, FULL, target, "learned"), x0, t, noise).sum().backward()
        return mean.grad, spread.grad

    hybrid, simple, vlb = (gradients(loss) for loss in ("hybrid", "simple", "vlb"))
    assert float(hybrid[0]) == pytest.approx(float(simple[0]), rel=1e-12)
    assert simple[1] is None or float(simple[1]) == 0
    assert float(hybrid[1]) == pytest.approx(50 / 1000 * float(vlb[1]), rel=1e-12)
    assert float(vlb[1]) != 0
    assert float(vlb[0]) != 0


# -- weightings -----------------------------------------------------------------------------------

WEIGHTED = sorted(set(WEIGHTINGS) - {"none"})
DIVISORS = {
    "eps": lambda snr, c1: snr,
    "x0": lambda snr, c1: 1 + 0 * snr,
    "v": lambda snr, c1: snr + 1,
    "flow": lambda snr, c1: (1 + snr.sqrt()) ** 2,
    "mu": lambda snr, c1: c1**2,
}


def snr_of(process):
    return process.alpha_bars / (1 - process.alpha_bars)


def first_coefficients(process):
    """c1 of every timestep."""
    found = [posterior_coefficients(process, i)[0] for i in range(process.num_timesteps)]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("target", list(DIVISORS))
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weighting_is_divided_by_the_targets_factor(name, target):
    process = process_of("linear", 1000)
    snr = snr_of(process)
    found = weights(name, Denoiser(None, process, target))
    divisor = DIVISORS[target](snr, first_coefficients(process))
    assert found.dtype == torch.float64
    assert torch.allclose(found, WEIGHTINGS[name](snr) / divisor, rtol=1e-6)


def test_min_snr_has_the_published_digits():
    process = process_of("linear", 1000)
    snr = snr_of(process)
    assert float(snr[100]) == pytest.approx(8.5366695772, abs=1e-10)
    at = {t: float(weights("min-snr", Denoiser(None, process, t))[100]) for t in ("eps", "v", "x0")}
    assert at["eps"] == pytest.approx(0.5857085078, abs=1e-10)
    assert at["v"] == pytest.approx(0.5242920455, abs=1e-10)
    assert at["x0"] == pytest.approx(5)


@pytest.mark.parametrize("bias", [0.0, 2.0])
def test_sigmoid_is_the_weight_of_hoogeboom_et_al_over_uniform_log_snr(bias):
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    log_snr = -2 * (u * math.pi / 2).tan().log()  # of the schedule `cosine`
    drawn = losses.sigmoid(log_snr.exp(), bias) / log_snr.exp()
    grid = torch.linspace(-60, 60, 100_001, dtype=torch.float64)
    uniform = torch.trapezoid((bias - grid).sigmoid() * (-((grid - 1) ** 2)).exp(), grid)
    seen = (drawn * (-((log_snr - 1) ** 2)).exp()).mean()
    assert float(seen * 2 * math.pi) == pytest.approx(float(uniform), rel=1e-6)


def test_sigmoid_weighs_v_by_a_bump_around_its_bias():
    process = process_of("cosine", 1000)
    log_snr = snr_of(process).log()
    found = weights("sigmoid", Denoiser(None, process, "v"))
    assert torch.allclose(found, math.e / 4 / ((log_snr - 2) / 2).cosh(), rtol=1e-9)


def test_p2_is_the_weight_of_choi_et_al():
    process = process_of("linear", 1000)
    found = weights("p2", Denoiser(None, process, "eps"))
    assert torch.allclose(found, 1 / (1 + snr_of(process)), rtol=1e-9)


def test_min_snr_leaves_its_cap_at_130():
    weight = weights("min-snr", Denoiser(None, process_of("linear", 1000), "x0"))
    assert int((weight < 5).nonzero()[0]) == 130
    assert bool((weight[:130] == 5).all())


@pytest.mark.parametrize("target", ["x0", "v", "flow", "mu"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weight_of_zero_at_the_last_timestep_becomes_the_mean_of_the_others(name, target):
    denoiser = Denoiser(None, zero_snr(100), target)
    weight = weights(name, denoiser)
    a, _ = denoiser.coefficients
    own = float(WEIGHTINGS[name](torch.zeros(1, dtype=torch.float64)) / a[-1] ** 2)
    assert own == (1 / float(a[-1]) ** 2 if name == "flow" else 0)
    assert float(weight[-1]) == pytest.approx(own or float(weight[:-1].mean()))
    assert float(weight[-1]) > 0
    assert bool(weight.isfinite().all())


def test_a_single_timestep_without_signal_keeps_its_weight():
    weight = weights("min-snr", Denoiser(None, Process([1.0]), "x0"))
    assert weight is not None
    assert weight.tolist() == [0.0]


def test_an_unknown_weighting_is_refused():
    with pytest.raises(InvalidArgument, match=r"^weighting.*Did you mean 'min-snr'"):
        weights("minsnr", Denoiser(None, FULL))
