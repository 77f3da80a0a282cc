"""The core as the reader of an example uses it: names, and draws that nobody passes in."""

import pytest
import torch

from diffuse_cli import core
from diffuse_cli.core import Denoiser, Process, clip, guide, loss, sample
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
