"""Every degradation: its pseudo-inverse, its transpose, its short form."""

import math

import pytest
import torch
from oracles import generator

from diffuse_cli.core import DEGRADATIONS
from diffuse_cli.core.degradations import CUTOFF, Mask, parse
from diffuse_cli.core.masks import LARGEST, MASKS, MOST, SMALLEST
from diffuse_cli.core.registry import InvalidArgument

FORMS = [
    *{kind.EXAMPLE: None for kind in DEGRADATIONS.values()},
    *(f"mask:{kind}" for kind in MASKS if kind != "half"),
    "low-res:2", "blur:0.5", "grey+noise:0.1",
]  # fmt: skip
SIZES = [(8,), (8, 12), (4, 8, 4)]
CHANNELS = 4

forms = pytest.mark.parametrize("form", FORMS)
sizes = pytest.mark.parametrize("size", SIZES, ids=str)


def made(form, size, batch=3):
    """Fitted and drawn, for a batch."""
    fitted = parse(form).fit_shape((CHANNELS, *size))
    u = torch.rand(batch, fitted.uniforms, generator=generator(1), dtype=torch.float64)
    return fitted.draw_parts(u)


def samples(size, batch=3):
    return torch.randn(batch, CHANNELS, *size, generator=generator(2), dtype=torch.float64)


@forms
@sizes
def test_the_pseudo_inverse_is_one(form, size):
    """Moore's and Penrose's four conditions."""
    a, x = made(form, size), samples(size)
    y = a.apply(x)
    z = torch.randn(y.shape, generator=generator(3), dtype=torch.float64)
    assert y.shape[1:] == parse(form).observation_shape((CHANNELS, *size))
    assert torch.allclose(a.apply(a.pinv(y)), y, atol=1e-12)
    assert torch.allclose(a.pinv(a.apply(a.pinv(z))), a.pinv(z), rtol=1e-10, atol=1e-10)
    other = samples(size).flip(0)
    assert torch.allclose((a.apply(a.pinv(z)) * y).sum(), (z * a.apply(a.pinv(y))).sum())
    seen, its = a.pinv(a.apply(x)), a.pinv(a.apply(other))
    assert torch.allclose((seen * other).sum(), (x * its).sum())


@forms
@sizes
def test_it_is_linear_with_its_transpose_sample_by_sample(form, size):
    a, x = made(form, size), samples(size)
    other, y = samples(size).flip(0), a.apply(x)
    assert torch.allclose(a.apply(2 * x - other), 2 * y - a.apply(other))
    z = torch.randn(y.shape, generator=generator(3), dtype=torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(a.apply(x), x, z)
    assert torch.allclose(gradient, a.transpose(z), atol=1e-12)
    fitted = parse(form).fit_shape((CHANNELS, *size))
    u = torch.rand(3, fitted.uniforms, generator=generator(1), dtype=torch.float64)
    for i in range(3):
        alone = fitted.draw_parts(u[i : i + 1])
        assert torch.allclose(alone.apply(x[i : i + 1]), y[i : i + 1])
        assert torch.equal(alone.pinv(y[i : i + 1]), a.pinv(y)[i : i + 1])


@forms
@sizes
def test_grey_stays_grey_and_the_range_is_kept(form, size):
    """A constant is degraded to itself, or to 0 where unknown."""
    a = made(form, size)
    flat = torch.full((3, CHANNELS, *size), 0.5, dtype=torch.float64)
    found = a.apply(flat)
    assert bool((((found - 0.5).abs() < 1e-12) | (found == 0)).all())
    assert bool((a.apply(samples(size).sign()).abs() < 1.2).all())


@forms
def test_in_float32_it_holds_to_rounding_and_its_form_comes_back(form):
    size = (32, 32)
    a, x = made(form, size), samples(size).clamp(-1, 1).float()
    y = a.apply(x)
    assert y.dtype == torch.float32
    assert torch.allclose(a.apply(a.pinv(y)), y, atol=2e-6)
    assert parse(form).text == form
    assert parse(parse(form).text) == parse(form) or isinstance(parse(form), Mask)


@forms
def test_a_degradation_reads_nothing_back(form):
    fitted = parse(form).fit_shape((CHANNELS, 8, 8))
    with torch.device("meta"):
        u, x = torch.empty(3, fitted.uniforms), torch.empty(3, CHANNELS, 8, 8)
    a = fitted.draw_parts(u)
    y = a.observe(x, a.apply(x))
    assert y.is_meta
    assert a.pinv(y).shape == a.transpose(y).shape == x.shape


FORMS_READ = [
    ("low-res", 4, 0), ("low-res:8", 8, 0), ("blur:1.5", 1.5, 0), ("blur:2+noise:0.1", 2, 0.1),
    ("mask:strokes", "strokes", 0), ("noise:0.3", 0.3, 0.3), ("mask", "half", 0),
    ("grey+noise:0.25", None, 0.25),
]  # fmt: skip
REFUSED = [
    ("lowres:4", "there is no 'lowres'. Did you mean 'low-res'?"), ("mask:hlaf", "mean 'half'?"),
    ("", "there is no ''. Choose from: low-res, mask"), ("blur:2+grey", "only noise can be added"),
    ("low-res:x", "'low-res:x': factor must be a whole number, not 'x'"), ("low-res:", "factor"),
    ("low-res:1", "factor must be at least 2, not 1"), ("noise:0.1+noise:0.2", "only noise can"),
    ("blur:nan", "width must be a finite number"), ("blur+noise:-1", "sigma must be at least 0"),
    ("grey:2", "'grey:2': takes no value. Write grey"),
]  # fmt: skip


def test_the_short_form_is_read_and_any_other_is_refused_in_words():
    for text, value, sigma in FORMS_READ:
        form = parse(text)
        assert value is None or getattr(form, form.VALUE) == value
        assert form.sigma == pytest.approx(sigma)
    for text, said in REFUSED:
        with pytest.raises(InvalidArgument) as raised:
            parse(text)
        assert raised.value.argument == "degradation"
        assert said in str(raised.value)


def test_samples_that_do_not_suit_it_are_refused():
    for form, shape, said in [
        ("low-res:4", (3, 30, 32), "multiples of 4, not 30 high x 32 wide"),
        ("grey", (1, 8, 8), "several channels, not 1"),
        ("blur:2", (1, 65_536), "sides of at most 16,384, not 65536"),
        ("downsample-channels:2", (3, 8), "a multiple of 2 channels, not 3"),
    ]:
        with pytest.raises(InvalidArgument, match=said):
            parse(form).fit_shape(shape)
    with pytest.raises(InvalidArgument, match="mask:box is random for each sample"):
        parse("mask:box").fit_shape((3, 8, 8)).apply(torch.zeros(1, 3, 8, 8))


# -- what each one is -----------------------------------------------------------------------------


def test_low_res_is_the_mean_over_blocks_and_grey_over_channels():
    x = torch.arange(8.0).reshape(1, 1, 2, 4)
    low = DEGRADATIONS["low-res"](factor=2)
    assert low.apply(x).tolist() == [[[[2.5, 4.5]]]]
    assert low.pinv(low.apply(x)).tolist() == [[[[2.5, 2.5, 4.5, 4.5]] * 2]]
    x, grey = torch.tensor([0.0, 0.3, 0.9]).reshape(1, 3, 1, 1), DEGRADATIONS["grey"]()
    assert torch.allclose(grey.pinv(grey.apply(x)), torch.full((1, 3, 1, 1), 0.4))


@pytest.mark.parametrize("width", [1.0, 2.5])
def test_blur_is_the_gaussian_sum_over_the_mirrored_picture(width):
    """Up to the frequencies that it removes."""
    side = 16
    x = torch.randn(1, 1, side, generator=generator(1), dtype=torch.float64)
    around = torch.cat([x, x.flip(2)], 2).repeat(1, 1, 5)
    at = torch.arange(around.shape[2], dtype=torch.float64)
    weights = torch.exp(-((at[:, None] - at[None]) ** 2) / (2 * width**2))
    wanted = (around @ (weights / weights.sum(1, keepdim=True)))[..., 4 * side : 5 * side]
    found = DEGRADATIONS["blur"](width=width).apply(x)
    assert float((found - wanted).abs().max()) < 2 * CUTOFF
    assert float((found - wanted).square().mean().sqrt()) < CUTOFF / 2


def test_a_known_mask_is_used_as_it_is():
    mask = (torch.rand(1, 1, 4, 6, generator=generator(1)) < 0.5).float()
    a = DEGRADATIONS["mask"](mask=mask).fit_shape((3, 4, 6))
    x = torch.randn(2, 3, 4, 6, generator=generator(2))
    assert torch.equal(a.apply(x), x * mask)
    assert a.uniforms == 0
    assert a.text == "mask"
    assert a.draw_parts(torch.empty(2, 0, device="meta")).mask.device.type == "meta"
    with pytest.raises(InvalidArgument, match="mask must be 8x8, not 4 high x 6 wide"):
        a.fit_shape((3, 8, 8))
    x = torch.tensor([1.0, -2.0, -math.inf, math.nan]).reshape(1, 1, 4)  # also where it is hidden
    assert parse("mask:half").apply(x).tolist() == [[[1, -2, 0, 0]]]


@sizes
@pytest.mark.parametrize("kind", list(MASKS))
def test_a_mask_is_zeros_and_ones_that_follow_their_numbers(kind, size):
    draw = MASKS[kind]
    u = torch.rand(200, draw.uniforms(size), generator=generator(4))
    known = draw(u, size)
    assert known.shape == (200, 1, *size)
    assert bool(((known == 0) | (known == 1)).all())
    assert 0.1 < float(known.mean()) < 0.95
    assert torch.equal(known, draw(u, size))
    if draw.uniforms(size):
        assert len({tuple(row) for row in known.flatten(1).tolist()}) > 20


def test_masks_have_their_place_size_share_and_thickness():
    known = MASKS["half"](torch.empty(1, 0), (2, 6))
    assert known.tolist() == [[[[1, 1, 1, 0, 0, 0]] * 2]]
    ends = torch.tensor([[0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.5]])
    small, large = 1 - MASKS["box"](ends, (8, 8))
    assert small[0].sum(1).tolist() == [6 if i < 8 * SMALLEST else 0 for i in range(8)]
    assert small[0, 0].tolist() == [0, 0, *[1] * 6]
    assert float(large.sum()) == 8 * LARGEST * 8 * SMALLEST
    u = torch.rand(1, 1 + 64 * 64, generator=generator(1))
    u[:, 0] = 1
    assert float(MASKS["random"](u, (64, 64)).mean()) == pytest.approx(MOST, abs=0.02)
    u = torch.zeros(1, MASKS["strokes"].uniforms((100, 100)))
    u[:, :] = torch.tensor([0.5, 0.0, 0.5, 1.0, 1.0]).repeat(4)
    hole = 1 - MASKS["strokes"](u, (100, 100))[0, 0]
    assert hole.sum(0).tolist() == [20.0] * 100


def test_noise_is_added_at_its_level():
    x, n = samples((4, 4)), torch.randn(3, CHANNELS, 4, 4, generator=generator(5))
    assert torch.allclose(parse("noise:0.3").observe(x, n), x + 0.3 * n)
    assert torch.equal(parse("mask:half").observe(x, n), parse("mask:half").apply(x))
    noisy = parse("mask:half+noise:0.1").observe(x, n)
    assert torch.equal(noisy, parse("mask:half").apply(x + 0.1 * n))
