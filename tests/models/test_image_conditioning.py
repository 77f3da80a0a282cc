"""What a model is told of what it is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from diffuse_cli.config.task_options import is_degradation
from diffuse_cli.core.conditions import ConditioningArray
from diffuse_cli.core.degradations import DEGRADATIONS, Degradation
from diffuse_cli.core.space import Space
from diffuse_cli.models.image_conditioning import Conditioner, observed_space
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.rng import GivenDraws

CPU = torch.device("cpu")
SPACE = Space(channels=4, size=(8, 8))
SAMPLES = np.random.default_rng(0).integers(0, 256, (20, 4, 8, 8), dtype=np.uint8)


def encoder(what="pairs", channels=4, space=SPACE, **fields):
    return Conditioner(ConditioningArray(channels=channels, what=what, **fields), space)


def draws(own, positions):
    return own.draw_numbers(5, "given", 3, positions, CPU)


def test_what_is_told_of_a_row_depends_on_nothing_but_its_place():
    own = encoder("mask:random+noise:0.2")
    whole = own.degraded_inputs(SAMPLES, 5, "given").encode(range(20), CPU)
    told = own.degraded_inputs(SAMPLES, 5, "given").encode([13, 2, 33], CPU)
    assert torch.equal(told, whole[[13, 2, 13]])
    assert not torch.equal(own.degraded_inputs(SAMPLES, 6, "given").encode([0], CPU), whole[:1])
    assert torch.equal(own.choose_inputs(SAMPLES, None, 5).encode(range(20), CPU), whole)


def test_draws_belong_to_positions_of_the_batch():
    own = encoder("mask:box+noise:0.1", noise=0.5)
    whole = draws(own, range(19))
    for part in (range(8), range(3, 11), range(18, 19)):
        for name, value in draws(own, part)._asdict().items():
            assert torch.equal(value, getattr(whole, name)[part.start : part.stop])
    assert whole.u.shape == (19, 4)
    assert whole.noise.shape == whole.more.shape == (19, 4, 8, 8)
    assert draws(encoder(), range(4)).noise.shape == (4, 0)


@pytest.mark.parametrize("name", list(DEGRADATIONS))
@pytest.mark.parametrize("size", [(8,), (8, 12), (4, 8, 4)])
def test_every_degradation_is_told_at_the_size_of_the_sample(name, size):
    what, space = DEGRADATIONS[name].EXAMPLE, Space(channels=4, size=size)
    if name == "low-res":
        what = "low-res:2"
    own = encoder(what, space=space)
    x0 = torch.randn(3, 4, *size, generator=torch.Generator().manual_seed(0))
    told = own.encode_samples(x0, draws(own, range(3)))
    assert told.shape == (3, 5, *size)
    assert set(told[:, -1].unique().tolist()) <= {0.0, 1.0}
    assert own.input_space.size == tuple(own.degradation.observation_shape(space.shape)[1:])
    if not own.masks and not own.degradation.sigma:
        y = own.degradation.apply(x0)
        assert torch.equal(own.encode_observations(y), told)
    drawn = GivenDraws(*(values.to("meta") for values in draws(own, range(3))))
    with torch.device("meta"):
        assert own.add_noise(own.encode_samples(x0.to("meta"), drawn), drawn).shape == told.shape


def test_noise_stays_where_something_is_known():
    own = encoder("mask:half", noise=0.5)
    x0 = torch.zeros(64, 4, 8, 8)
    drawn = draws(own, range(64))
    told = own.add_noise(own.encode_samples(x0, drawn), drawn)
    assert not told[..., 4:].any()
    assert torch.equal(told[:, -1, :, :4], torch.ones(64, 8, 4))
    spreads = told[:, :-1, :, :4].flatten(1).std(1)
    assert torch.allclose(spreads, 0.5 * drawn.level, rtol=0.3)
    plain = encoder("mask:half")
    assert plain.add_noise(told, drawn) is told


def test_what_is_told_can_be_looked_at():
    told = encoder().stored_inputs(SAMPLES).encode([3, 24], CPU)
    assert told.shape == (2, 5, 8, 8)
    assert np.array_equal(encoder().render_input(told), SAMPLES[[3, 4]])
    known = np.zeros((1, 1, 8, 8), bool)
    known[..., :4] = True
    part = encoder("mask:half").masked_inputs(SAMPLES, known).encode([3], CPU)
    assert torch.equal(part[:, :-1, :, :4], told[:1, :-1, :, :4])
    assert not part[..., 4:].any()
    assert torch.equal(part[:, -1:], torch.from_numpy(known).float())


def test_what_is_hidden_need_not_have_a_logarithm():
    space = Space(channels=1, size=(4,), levels=None, mean=(0.0,), std=(1.0,), transform="log")
    stored = np.array([[[1, 1, 0, 0]]], np.float32)
    known = np.array([[[True, True, False, False]]])
    told = encoder("mask:half", 1, space).masked_inputs(stored, known).encode([0], CPU)
    assert told.tolist() == [[[0, 0, 0, 0], [1, 1, 0, 0]]]


@pytest.mark.parametrize(
    ("what", "channels"), [("low-res:3", 4), ("low-res:2", 3), ("gray", 4), ("mask:x", 4)]
)
def test_what_does_not_suit_the_samples_is_refused(what, channels):
    with pytest.raises(UsageError):
        encoder(what, channels)


def floats(mean, std, size=(8,)):
    return Space(channels=len(mean), size=size, levels=None, mean=mean, std=std)


@pytest.mark.parametrize(
    ("what", "mean", "std"),
    [("grey", (2.5,), (3.0,)), ("downsample-channels:2", (1.5, 3.5), (3.0, 3.0))],
)
def test_averaged_floats_are_what_their_file_says(what, mean, std):
    space = floats((1.0, 2.0, 3.0, 4.0), (3.0,) * 4)
    own = encoder(what, space=space)
    assert (own.input_space.mean, own.input_space.std) == (mean, std)
    stored = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    seen = own.degradation.apply(stored)
    known = own.degradation.apply(space.to_model(stored))
    assert torch.allclose(own.input_space.to_model(seen), known, atol=1e-6)
    told = own.stored_inputs(seen.numpy()).encode([0, 1], CPU)
    assert torch.allclose(told, own.encode_samples(space.to_model(stored), draws(own, range(2))))


def test_averages_of_floats_with_other_deviations_are_refused():
    space = floats((0.0,) * 4, (1.0, 1.0, 2.0, 2.0))
    assert encoder("downsample-channels:2", space=space).input_space.std == (1.0, 2.0)
    assert encoder("low-res:2", space=space).input_space.std == space.std
    with pytest.raises(UsageError, match="grey averages channels, but their standard"):
        encoder("grey", space=space)


def test_a_degradation_is_known_by_its_name():
    assert all(map(is_degradation, ("grey", "low-res:4", "blur:2+noise:0.1", "noise")))
    assert not any(map(is_degradation, ("./grey", "edges", "grey/", "greys", "a+b", "")))


@dataclass(frozen=True, kw_only=True, eq=False)
class MonoHalf(Degradation):
    """Mean of both channels at every second sample, as another package could add it."""

    NAME, EXAMPLE = "mono-half", "mono-half"

    def apply(self, x0):
        return x0.mean(1, keepdim=True)[..., ::2]


def test_averaged_channels_of_fewer_samples_have_a_lower_rate():
    stereo = Space(channels=2, size=(64,), medium="audio", levels=None, rate=16000,
                   mean=(0.0, 1.0), std=(0.5, 0.5))  # fmt: skip
    mono = observed_space(stereo, MonoHalf())
    assert (mono.channels, mono.size, mono.mean, mono.std) == (1, (32,), (0.5,), (0.5,))
    assert mono.rate == 8000
