"""The core as the reader of an example uses it: names, arguments, and draws nobody passes in."""

import inspect

import pytest
import torch

from diffuse_cli import core
from diffuse_cli.core import Denoiser, Process, clip, guidance, guide, loss, losses, sample
from diffuse_cli.core.guidance import WrappedDenoiser, autoguide, find_process, interval, threshold

PROCESS = Process(core.cosine(20))
SHAPE = (3, 1, 4, 4)


def net(x, t, *, label=None):
    return x / 2 if label is None else x / 2 + label.reshape(-1, 1, 1, 1)


DENOISER = Denoiser(net, PROCESS, "v")


def test_ten_lines_train_and_sample():
    denoiser = Denoiser(core.unet(channels=1, size=8, width=8, groups=4), PROCESS, target="v")
    for x0 in torch.zeros(4, 1, 8, 8).split(2):
        loss(denoiser, x0).mean().backward()
    assert all(p.grad is not None for p in denoiser.net.parameters())
    x = sample(denoiser, (2, 1, 8, 8), steps=3, sampler="unipc", seed=0)
    assert (x.shape, x.requires_grad) == ((2, 1, 8, 8), False)


@pytest.mark.parametrize("build", [core.unet, core.vit])
def test_networks_compute_in_float64(build):
    denoiser = Denoiser(build(channels=1, size=8, width=64).double(), PROCESS)
    x0 = torch.linspace(-1, 1, 64, dtype=torch.float64).reshape(1, 1, 8, 8)
    assert loss(denoiser, x0).dtype == torch.float64
    assert sample(denoiser, x0.shape, steps=2, noise=x0).dtype == torch.float64


def test_another_default_device_changes_nothing():
    """A program may have set "cuda"; no operation works between the CPU and "meta"."""
    x0 = torch.zeros(SHAPE)
    before = loss(DENOISER, x0, seed=1), sample(DENOISER, SHAPE, steps=2, seed=1)
    with torch.device("meta"):
        denoiser = Denoiser(net, Process(core.cosine(20)), "v")
        for sampler in ("ddpm", "unipc"):
            sample(denoiser, SHAPE, steps=2, seed=1, sampler=sampler)
        after = loss(denoiser, x0, seed=1), sample(denoiser, SHAPE, steps=2, seed=1)
    assert all(map(torch.equal, before, after))


@pytest.mark.parametrize("table", core.TABLES)
def test_entries_can_be_imported_by_name(table):
    own = getattr(core, table).entries
    for name in own:
        assert getattr(core, name.replace("-", "_")) is not None
    assert {core.cosine, core.unipc, core.min_snr} == {
        core.SCHEDULES["cosine"], core.SAMPLERS["unipc"], core.WEIGHTINGS["min-snr"],
    }  # fmt: skip


def test_a_name_of_no_table_is_refused():
    with pytest.raises(ImportError, match="cosin"):
        from diffuse_cli.core import cosin  # noqa: F401
    from diffuse_cli.core import muon  # a module, though an optimizer has its name

    assert muon.__name__ == "diffuse_cli.core.muon"


@pytest.mark.parametrize("name", core.LOSSES)
def test_a_loss_draws_by_its_seed(name):
    x0 = torch.linspace(-1, 1, 48).reshape(SHAPE)
    draw = torch.Generator().manual_seed(3)
    t = torch.randint(20, (3,), generator=draw)
    noise = torch.randn(SHAPE, generator=draw)
    variance = "learned" if name == "hybrid" else "small"
    twice = Denoiser(lambda x, t: torch.cat([x, x], 1), PROCESS, "v", variance)
    denoiser = twice if name == "hybrid" else DENOISER
    wanted = core.LOSSES[name](denoiser, x0, t, noise)
    assert torch.equal(loss(denoiser, x0, name, seed=3), wanted)
    assert torch.equal(loss(denoiser, x0, name, t=t, noise=noise), wanted)
    weight = core.losses.weights("min-snr", denoiser)[t].float()
    weighed = loss(denoiser, x0, name, t=t, noise=noise, weighting="min-snr")
    assert torch.allclose(weighed, core.LOSSES[name](denoiser, x0, t, noise, weight))


def test_samples_follow_seed_noise_and_conditions():
    first, again, other = (sample(DENOISER, SHAPE, steps=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    assert torch.equal(sample(DENOISER, SHAPE, steps=4, noise=noise), first)
    label = torch.tensor([0.0, 1.0, 2.0])
    told = sample(guide(DENOISER, 2), SHAPE, steps=4, noise=noise, label=label)
    assert torch.equal(told[0], first[0])
    assert not torch.equal(told[1], first[1])
    noisy, plain = (
        sample(DENOISER, SHAPE, steps=4, sampler="ddim", eta=eta, seed=1) for eta in (1, 0)
    )
    assert not torch.equal(noisy, plain)


def test_wrappers_carry_the_process():
    wrapped = (clip(DENOISER), guide(DENOISER, 2), threshold(DENOISER, 0.9),
               autoguide(DENOISER, DENOISER, 2), interval(DENOISER, DENOISER, 0, 1),
               clip(guide(DENOISER, 2)), clip(lambda x, t: DENOISER(x, t), PROCESS))  # fmt: skip
    for each in wrapped:
        assert isinstance(each, WrappedDenoiser)
        assert find_process(each) is PROCESS
    with pytest.raises(core.InvalidArgument, match="process is needed"):
        clip(lambda x, t: DENOISER(x, t))


# -- the names that scripts outside of the repository rely on, with their arguments ---------------

CALLS = {
    "Process": (core.Process, "betas"),
    "diffuse": (core.Process.diffuse, "self x0 t noise"),
    "posterior": (core.Process.posterior, "self x0 x_t t s"),
    "prior": (core.Process.prior, "self x0"),
    "log_snr": (core.Process.log_snr, "self t"),
    "times": (core.Process.times, "self n spacing"),
    "Process.respaced": (core.Process.respaced, "self times"),
    "Denoiser": (core.Denoiser, "net process target variance"),
    "Denoiser.respaced": (core.Denoiser.respaced, "self times"),
    "Prediction": (core.Prediction, "x0 eps raw log_var"),
    "State": (core.State, "x x0 t"),
    "Bits": (core.Bits, "total prior terms"),
    "Gaussian": (core.Gaussian, "mean log_var"),
    "bits_per_dim": (core.bits_per_dim, "denoiser x0 *noise *clip **cond"),
    "clip": (guidance.clip, "denoise process"),
    "guide": (guidance.guide, "denoise scale"),
    "weights": (losses.weights, "name denoiser"),
    **{f"loss {n}": (f, "denoiser x0 t noise weight **cond") for n, f in core.LOSSES.items()},
    **{f"sampler {n}": (f, "denoise process x times *noise") for n, f in core.SAMPLERS.items()},
    **{f"schedule {n}": (f, "num_timesteps") for n, f in core.SCHEDULES.items()},
    **{f"weighting {n}": (f, "snr") for n, f in core.WEIGHTINGS.items()},
    **{f"degradation {n}": (d.apply, "self x0") for n, d in core.DEGRADATIONS.items()},
    **{f"inverse {n}": (d.pinv, "self y") for n, d in core.DEGRADATIONS.items()},
    **{
        f"restoration {n}": (r.__call__, "denoise process degradation y")
        for n, r in core.RESTORATIONS.items()
    },
    **{f"network {n}": (m.build, "config space conditions") for n, m in core.NETWORKS.items()},
}
STARS = {inspect.Parameter.KEYWORD_ONLY: "*", inspect.Parameter.VAR_KEYWORD: "**"}


@pytest.mark.parametrize("name", list(CALLS))
def test_the_arguments_of_the_contract_come_first_and_no_other_is_required(name):
    call, wanted = CALLS[name]
    found = list(inspect.signature(call).parameters.values())
    names = [STARS.get(p.kind, "") + p.name for p in found]
    expected = wanted.split()
    positional = [n for n in expected if n[0] != "*"]
    # A schedule and a weighting may call their one argument as they like.
    if len(positional) > 1 or expected != positional:
        assert names[: len(positional)] == positional
    assert set(expected[len(positional) :]) <= set(names)
    more = [p for p, n in zip(found, names, strict=True) if n.lstrip("_") not in expected]
    assert all(p.default is not p.empty for p in more if STARS.get(p.kind) != "**")
