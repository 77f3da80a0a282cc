"""Training losses and their weights."""

import math

import pytest
import torch
from oracles import exact_denoiser, exact_net, generator, process_of, zero_snr

from diffuse_cli.core import LOSSES, TARGETS, WEIGHTINGS, Denoiser, Process, losses
from diffuse_cli.core.losses import weights
from diffuse_cli.core.registry import InvalidArgument

FULL = process_of("cosine", 50)


def batch(n, seed=0, shape=(1, 2, 3)):
    return torch.randn(n, *shape, generator=generator(seed), dtype=torch.float64)


def levels(n):
    """Images of whole 8-bit levels."""
    return torch.randint(0, 256, (n, 1, 2, 3), generator=generator(5)).double() / 127.5 - 1


# -- losses ---------------------------------------------------------------------------------------


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
    assert 0 < abs(float(slope.grad)) < math.inf


def test_a_weight_is_a_factor_of_simple_alone():
    x0, noise, t = levels(4), batch(4), torch.tensor([0, 1, 20, 49])
    weight = torch.tensor([0.5, 2.0, 0.0, 3.0], dtype=torch.float64)
    denoiser = exact_denoiser(FULL, "v", "learned")
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


def test_weightings_have_the_published_digits_and_formulas():
    process = process_of("linear", 1000)
    snr = process.alpha_bars / (1 - process.alpha_bars)
    assert float(snr[100]) == pytest.approx(8.5366695772, abs=1e-10)
    at = {t: weights("min-snr", Denoiser(None, process, t)) for t in ("eps", "v", "x0")}
    assert float(at["eps"][100]) == pytest.approx(0.5857085078, abs=1e-10)
    assert float(at["v"][100]) == pytest.approx(0.5242920455, abs=1e-10)
    assert bool((at["x0"][:130] == 5).all())
    assert float(at["x0"][130]) < 5
    p2 = weights("p2", Denoiser(None, process, "eps"))
    assert torch.allclose(p2, 1 / (1 + snr), rtol=1e-9)
    bump = math.e / 4 / ((snr.log() - 2) / 2).cosh()
    assert torch.allclose(weights("sigmoid", Denoiser(None, process, "v")), bump, rtol=1e-9)


@pytest.mark.parametrize("bias", [0.0, 2.0])
def test_sigmoid_is_the_weight_of_hoogeboom_et_al_over_uniform_log_snr(bias):
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    log_snr = -2 * (u * math.pi / 2).tan().log()  # of the schedule `cosine`
    drawn = losses.sigmoid(log_snr.exp(), bias) / log_snr.exp()
    grid = torch.linspace(-60, 60, 100_001, dtype=torch.float64)
    uniform = torch.trapezoid((bias - grid).sigmoid() * (-((grid - 1) ** 2)).exp(), grid)
    seen = (drawn * (-((log_snr - 1) ** 2)).exp()).mean()
    assert float(seen * 2 * math.pi) == pytest.approx(float(uniform), rel=1e-6)


@pytest.mark.parametrize("target", ["x0", "v", "flow", "mu"])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weight_of_zero_at_the_last_timestep_becomes_the_mean_of_the_others(name, target):
    denoiser = Denoiser(None, zero_snr(100), target)
    weight = weights(name, denoiser)
    a, _ = denoiser.coefficients
    own = float(WEIGHTINGS[name](torch.zeros(1, dtype=torch.float64)) / a[-1] ** 2)
    assert own == (1 / float(a[-1]) ** 2 if name == "flow" else 0)
    assert float(weight[-1]) == pytest.approx(own or float(weight[:-1].mean()))
    assert bool(weight.isfinite().all())


def test_a_single_timestep_without_signal_keeps_its_weight():
    assert weights("min-snr", Denoiser(None, Process([1.0]), "x0")).tolist() == [0.0]


def test_an_unknown_weighting_is_refused():
    with pytest.raises(InvalidArgument, match=r"^weighting.*Did you mean 'min-snr'"):
        weights("minsnr", Denoiser(None, FULL))
