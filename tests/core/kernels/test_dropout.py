"""Dropout: how often, how much, and what of its gradient."""

import pytest
import torch

from diffuse_cli.core.kernels import Dropout

SHAPE = (4, 16, 33, 31)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels-last"])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_a_share_is_dropped_and_the_rest_is_scaled(p, last):
    torch.manual_seed(0)
    order = torch.channels_last if last else torch.contiguous_format
    x = torch.ones(SHAPE).contiguous(memory_format=order)
    y = Dropout(p)(x)
    assert y.is_contiguous(memory_format=order)
    dropped = (y == 0).float()
    spread = (p * (1 - p) / x.numel()) ** 0.5
    assert float(dropped.mean()) == pytest.approx(p, abs=5 * spread)
    assert torch.allclose(y[y != 0], torch.tensor(1 / (1 - p)), rtol=1e-4)
    # Nothing of place: by sample, by channel and by row alike, and one element tells nothing of
    # the next three, which come from the same number.
    for other in ((1, 2, 3), (0, 2, 3), (0, 1, 3)):
        n = x.numel() / dropped.mean(other).numel()
        assert float((dropped.mean(other) - p).abs().max()) < 6 * (p * (1 - p) / n) ** 0.5
    flat = dropped.permute(0, 2, 3, 1).flatten() - p
    for lag in (1, 2, 3, 4):
        assert abs(float((flat[lag:] * flat[:-lag]).mean())) < 6 * p * (1 - p) / len(flat) ** 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_gradient_drops_what_the_value_dropped_and_the_dtype_stays(dtype):
    torch.manual_seed(2)
    x = torch.ones(SHAPE, dtype=dtype, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert y.dtype == dtype
    assert {0.0, 2.0} == set(y.unique().tolist())


def test_it_depends_on_the_seed_alone():
    x = torch.ones(SHAPE)
    drop = Dropout(0.2)
    torch.manual_seed(3)
    one, two = drop(x), drop(x)
    torch.manual_seed(3)
    assert drop(x).equal(one)
    assert not one.equal(two)


def test_nothing_is_drawn_where_nothing_is_dropped():
    x = torch.ones(SHAPE)
    state = torch.get_rng_state()
    assert Dropout(0.0)(x) is x
    assert Dropout(0.5).eval()(x) is x
    assert torch.get_rng_state().equal(state)
