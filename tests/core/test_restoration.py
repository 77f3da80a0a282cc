"""Restoration against the posterior of Gaussian data, which is known in closed form.

With the exact denoiser everything is affine in the start and the draws: one batch, a sample for
each of their elements, tells mean and covariance of what a sampler makes, without chance.
"""

from functools import cache, partial

import pytest
import torch
from networks import plan, randomized
from oracles import exact_denoise, gaussian_denoise, generator, process_of, zero_snr

from diffuse_cli.core import DEGRADATIONS, RESTORATIONS, SAMPLERS, Denoiser, Process
from diffuse_cli.core.degradations import parse
from diffuse_cli.core.guidance import clip
from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.restoration import solve
from diffuse_cli.core.samplers import OF_DISTILLED, sample

methods = pytest.mark.parametrize("method", list(RESTORATIONS))
SHAPE, D = (2, 2, 4), 16
COSINE, FLOW = process_of("cosine", 1000), process_of("flow", 1000)


def data():
    """The mean and covariance of samples, correlated over space and channels."""
    root = torch.randn(D, D, generator=generator(1), dtype=torch.float64) / 4
    covariance = 0.3 * root @ root.mT + 0.02 * torch.eye(D)
    return 0.2 * torch.randn(D, generator=generator(2), dtype=torch.float64), covariance


MEAN, COVARIANCE = data()


def degraded(form):
    """A degradation, its matrix, and what it leaves of a sample."""
    a = parse(form).fit_shape(SHAPE)
    u = torch.rand(1, a.uniforms, generator=generator(6), dtype=torch.float64)
    a = a.draw_parts(u)
    matrix = a.apply(torch.eye(D, dtype=torch.float64).reshape(D, *SHAPE)).flatten(1).mT
    z = torch.randn(D, generator=generator(3), dtype=torch.float64)
    x = (MEAN + torch.linalg.cholesky(COVARIANCE) @ z).reshape(1, *SHAPE)
    noise = torch.randn(a.apply(x).shape, generator=generator(4), dtype=torch.float64)
    return a, matrix, a.observe(x, noise)


def posterior(matrix, y, sigma, mean=MEAN, covariance=COVARIANCE):
    """Mean and covariance of x_0 given y = A x_0 + sigma n."""
    seen = matrix @ covariance @ matrix.mT + sigma**2 * torch.eye(len(matrix))
    gain = covariance @ matrix.mT @ torch.linalg.pinv(seen, rtol=1e-10, hermitian=True)
    return mean + gain @ (y.flatten() - matrix @ mean), covariance - gain @ matrix @ covariance


@cache
def drawn_by(sampler, n):
    """Which noise it asks for: the start, and those of its steps."""
    asked = {n}

    def noise(k):
        asked.add(k)
        return x

    x = torch.zeros(1, *SHAPE, dtype=torch.float64)
    for _ in SAMPLERS[sampler](exact_denoise(COSINE), COSINE, x, COSINE.times(n), noise=noise):
        pass
    return sorted(asked)


def sampled(sampler, denoise, process, n):
    """Mean and covariance of what a sampler makes: of no draws, and of the unit ones beside."""
    used = drawn_by(sampler, n)
    draws = {k: torch.zeros(1 + len(used) * D, D, dtype=torch.float64) for k in used}
    for i, k in enumerate(used):
        draws[k][1 + i * D : 1 + (i + 1) * D] = torch.eye(D)
    draws = {k: draw.reshape(-1, *SHAPE) for k, draw in draws.items()}
    make = SAMPLERS[sampler]
    *_, state = make(denoise, process, draws[n], process.times(n), noise=draws.__getitem__)
    mean, effects = state.x.flatten(1).split([1, len(used) * D])
    effects = effects - mean
    return mean[0], effects.mT @ effects


@cache
def errors(method, form, sampler, n, process=COSINE):
    """Of the mean, by how far y moves it; of the covariance, by its own size.

    In as many iterations as solve it exactly, one for each number that is observed.
    """
    a, matrix, y = degraded(form)
    exact = gaussian_denoise(process, MEAN, COVARIANCE)
    told = {"iterations": int(torch.linalg.matrix_rank(matrix))}
    wrapped = RESTORATIONS[method](exact, process, a, y, **(told if method == "mmps" else {}))
    mean, covariance = sampled(sampler, wrapped, process, n)
    true_mean, true_covariance = posterior(matrix, y, a.sigma)
    off = (mean - true_mean).norm() / (true_mean - MEAN).norm()
    return float(off), float((covariance - true_covariance).norm() / true_covariance.norm())


FORMS = ["mask:half", "low-res:2", "grey", "mask:half+noise:0.2", "blur:0.7+noise:0.1",
         "noise:0.3"]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "process", "within"),
    [
        *((form, COSINE, 2e-4) for form in FORMS),
        *((form, FLOW, 1e-5) for form in FORMS),
        ("mask:half+noise:0.2", zero_snr(), 1e-5),
        *((form, COSINE, 2e-4) for form in ("mask:random", "mask:box", "downsample-channels:2")),
    ],
)
def test_mmps_has_the_mean_of_the_posterior_and_comes_to_its_covariance(form, process, within):
    """Also from a start without signal."""
    off, few = errors("mmps", form, "ddim", 12, process=process)
    off_many, many = errors("mmps", form, "ddim", 48, process=process)
    assert max(off, off_many) < within
    assert many < 0.4 * few
    assert few < 0.375 or process is not COSINE


@methods
def test_the_first_timestep_of_a_flow_may_be_one_of_many(method):
    a, _, y = degraded("low-res:2+noise:0.2")
    restored = RESTORATIONS[method](gaussian_denoise(FLOW, MEAN, COVARIANCE), FLOW, a, y)
    x = torch.randn(1, *SHAPE, generator=generator(9), dtype=torch.float64)
    for t in (999, 400):
        assert torch.allclose(restored(x, torch.tensor([t])).x0, restored(x, t).x0, atol=1e-6)


@pytest.mark.parametrize("sampler", sorted(set(SAMPLERS) - OF_DISTILLED))
def test_any_sampler_draws_from_the_posterior(sampler):
    off, spread = errors("mmps", "mask:half", sampler, 20)
    assert off < 2e-4
    assert spread < 0.35


@pytest.mark.parametrize("sigma", [0.005, 0.3])
@pytest.mark.parametrize("form", [*FORMS, "blur:2", "downsample-channels:2", "noise:0.2"])
def test_the_weight_of_y_is_that_of_bayes(form, sigma):
    a, matrix, _ = degraded(form)
    count = len(matrix)
    y = torch.randn(2, count, generator=generator(3), dtype=torch.float64)
    shape = a.apply(torch.zeros(1, *SHAPE, dtype=torch.float64)).shape[1:]
    for variance in (1.0, 0.04):
        inside = torch.linalg.inv(
            variance * matrix @ matrix.mT + sigma**2 * torch.eye(count, dtype=torch.float64)
        )
        wanted = y @ (matrix.mT @ inside @ matrix @ torch.linalg.pinv(matrix)).mT
        found = a.weigh(y.reshape(2, *shape), variance, sigma).flatten(1)
        assert torch.allclose(found, wanted, atol=1e-8 * float(wanted.abs().max()))


@pytest.mark.parametrize("method", ["pigdm", "mmps"])
def test_a_process_without_a_signal_is_refused(method):
    process = Process([1.0])
    a, _, y = degraded("low-res:2")
    denoise = RESTORATIONS[method](gaussian_denoise(COSINE, MEAN, COVARIANCE), process, a, y)
    with pytest.raises(InvalidArgument, match="no timestep has a signal"):
        denoise(torch.zeros(1, *SHAPE, dtype=torch.float64), 0)


@pytest.mark.parametrize("form", FORMS)
def test_the_bias_of_the_others_is_known(form):
    """A gradient is nearer than none. Both know y, and neither what y says of the rest."""
    (without, _), (with_one, _) = (errors(name, form, "ddim", 16) for name in ("ddnm", "pigdm"))
    assert 0.05 < with_one < without < 1


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("form", ["mask:half", "low-res:2", "grey", "blur:0.7", "mask:strokes"])
def test_ddnm_without_noise_ends_at_y(form, sampler):
    a, _, y = degraded(form)
    denoise = RESTORATIONS["ddnm"](gaussian_denoise(COSINE, MEAN, COVARIANCE), COSINE, a, y)
    x = torch.randn(1, *SHAPE, generator=generator(5), dtype=torch.float64)
    *_, state = SAMPLERS[sampler](denoise, COSINE, x, COSINE.times(8), noise=lambda k: 0 * x)
    assert torch.allclose(a.apply(state.x), y, atol=1e-9)


@pytest.mark.parametrize("method", list(RESTORATIONS))
@pytest.mark.parametrize(
    "form",
    ["noise:0.3", "mask:half+noise:0.5", "low-res:2", "low-res:2+noise:0.2", "blur:0.7+noise:0.2"],
)
def test_all_are_exact_for_independent_data_of_unit_variance(form, method):
    """That is what `ddnm` and `pigdm` assume."""
    mean, one = torch.zeros(D, dtype=torch.float64), torch.eye(D, dtype=torch.float64)
    a, matrix, y = degraded(form)
    alike = gaussian_denoise(COSINE, mean, one)
    # The two channels are degraded alike: there are no more than D / 2 different singular values.
    told = {"iterations": D // 2} if method == "mmps" else {}
    wrapped = RESTORATIONS[method](alike, COSINE, a, y, **told)
    found, covariance = sampled("unipc", wrapped, COSINE, 20)
    true_mean, true_covariance = posterior(matrix, y, a.sigma, mean, one)
    assert torch.allclose(found, true_mean, atol=2e-3)
    assert torch.allclose(covariance, true_covariance, atol=0.03)


# -- any denoiser ---------------------------------------------------------------------------------


@methods
@pytest.mark.parametrize("t", [0, 500, 37.5, 999, torch.tensor([0, 400])], ids=str)
def test_the_prediction_is_consistent_and_hands_on_the_rest(method, t):
    asked = []

    def net(x, shown, label=None):
        asked.append(label)
        return torch.cat([x.sin(), x], 1)

    denoiser = Denoiser(net, COSINE, "v", "learned")
    a = parse("low-res:2")
    x = torch.randn(2, 1, 4, 4, generator=generator(1), dtype=torch.float64)
    y = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    found = RESTORATIONS[method](denoiser, COSINE, a, y)(x, t, label="cat")
    alpha, sigma = COSINE.alpha_sigma(t, like=x)
    assert torch.allclose(alpha * found.x0 + sigma * found.eps, x)
    assert asked == ["cat"]
    assert found.x0.shape == x.shape
    assert not found.x0.requires_grad
    assert not x.requires_grad
    assert not found.log_var(t, -1).requires_grad
    assert torch.equal(found.log_var(t, -1), denoiser(x, t).log_var(t, -1))


@methods
def test_samples_of_a_batch_do_not_know_each_other(method):
    made = plan(8, 3, width=8, groups=4, multipliers=(1, 2), blocks=1)
    denoiser = Denoiser(randomized(made), COSINE, "v")
    a = parse("blur:1+noise:0.05")
    x = torch.randn(3, 3, 8, 8, generator=generator(1))
    y = torch.rand(3, 3, 8, 8, generator=generator(2))
    whole = RESTORATIONS[method](denoiser, COSINE, a, y)(x, 300).x0
    for i in range(3):
        alone = RESTORATIONS[method](denoiser, COSINE, a, y[i : i + 1])(x[i : i + 1], 300).x0
        assert torch.allclose(alone, whole[i : i + 1], atol=1e-4)


@methods
@pytest.mark.parametrize("form", [kind.EXAMPLE for kind in DEGRADATIONS.values()])
def test_it_works_where_no_gradient_is_kept_and_at_snr_0_and_reads_nothing_back(method, form):
    process, a = zero_snr(), parse(form).fit_shape((2, 4, 4))
    for device in ("cpu", "meta"):
        weight = torch.nn.Parameter(torch.tensor(0.3, device=device))
        denoiser = Denoiser(lambda x, t, w=weight: w * x.tanh(), process, "v")
        x = torch.randn(2, 2, 4, 4, generator=generator(1)).to(device)
        y = a.apply(0.3 * x.flip(0))
        with torch.no_grad():
            wrapped = clip(RESTORATIONS[method](denoiser, process, a, y), process)
            made = sample(wrapped, x.shape, steps=5, sampler="ddpm", noise=x)
        assert made.is_meta or bool(made.isfinite().all())
        assert made.shape == x.shape
        assert weight.grad is None


@methods
@pytest.mark.parametrize("form", ["blur:2", "blur:2+noise:0.3"])
def test_what_of_y_no_sample_gives_changes_nothing(method, form):
    """High frequencies in a blurred picture, as rounding to levels leaves some."""
    a, _, y = degraded(form)
    noise = torch.randn(y.shape, generator=generator(8), dtype=torch.float64)
    beside = noise - a.apply(a.pinv(noise))
    assert float(beside.norm()) > 0.5
    x = torch.randn(1, *SHAPE, generator=generator(9), dtype=torch.float64)
    restored = partial(RESTORATIONS[method], gaussian_denoise(COSINE, MEAN, COVARIANCE), COSINE, a)
    assert torch.allclose(restored(y)(x, 300).x0, restored(y + beside)(x, 300).x0, atol=1e-9)


def test_the_solver_solves_and_its_residual_never_grows():
    matrices = torch.randn(4, 6, 6, generator=generator(1), dtype=torch.float64)  # not symmetric
    wanted = torch.randn(4, 6, generator=generator(2), dtype=torch.float64)
    wanted[3] = 0

    def apply(v):
        return (matrices @ v[..., None]).squeeze(-1)

    left = torch.stack([(wanted - apply(solve(apply, wanted, n))).norm(dim=1) for n in range(9)])
    assert bool((left[1:] <= left[:-1] + 1e-12).all())
    assert float(left[6].max()) < 1e-9
    assert bool(solve(apply, wanted, 8)[3].eq(0).all())
