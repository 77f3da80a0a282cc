"""Augmentations: exact changes, the parameters that the network receives, and unchanged samples."""

import numpy as np
import pytest
import torch
from oracles import generator

from diffuse_cli.core.augmentations import (
    AUGMENTATIONS,
    CONTRAST,
    FARTHEST,
    GAIN,
    SATURATION,
    augment,
    count_draws,
    count_parameters,
)
from diffuse_cli.media import MEDIA

SIZES = {"image": (16, 24), "array": (8, 8, 16), "audio": (64,)}


def images(*shape):
    return torch.randn(shape, generator=generator(1))


def change(name, x, *u):
    """Change one sample (C, *size) by these uniform numbers."""
    changed, told = AUGMENTATIONS[name].change(x[None], torch.tensor([u]))
    return changed[0], told[0].tolist()


@pytest.mark.parametrize("medium", SIZES)
def test_entries_of_a_medium_keep_the_shape_and_return_their_parameters(medium):
    x = images(5, 2, *SIZES[medium])
    assert MEDIA[medium].augmentations
    assert {name for m in MEDIA.values() for name in m.augmentations} >= {*AUGMENTATIONS.entries}
    for name in MEDIA[medium].augmentations:
        entry = AUGMENTATIONS[name]
        u = torch.rand(5, entry.draws, generator=generator(2))
        changed, told = entry.change(x, u)
        assert changed.shape == x.shape
        assert told.shape == (5, entry.parameters)
        assert told.abs().max() <= 2
        assert not torch.equal(changed, x)
        empty, zeros = (t.to("meta") for t in (x, u))
        found, parameters = entry.change(empty, zeros)
        assert (found.shape, parameters.shape) == (x.shape, told.shape)


@pytest.mark.parametrize("medium", SIZES)
def test_samples_that_are_not_chosen_stay_and_have_zeros(medium):
    names, x = MEDIA[medium].augmentations, images(64, 1, *SIZES[medium])
    u = torch.rand(64, count_draws(names), generator=generator(3))
    changed, told = augment(x, names, u)
    assert told.shape == (64, count_parameters(names))
    same = (changed == x).flatten(1).all(1)
    assert torch.equal(same, (told == 0).all(1))
    assert 0 < int(same.sum()) < 64
    assert torch.equal(augment(x, names, torch.ones_like(u))[0], x)
    assert torch.equal(augment(x, names, torch.ones_like(u))[1], torch.zeros_like(told))
    for k in range(8):  # each sample has its own draws
        alone, own = augment(x[k : k + 1], names, u[k : k + 1])
        assert torch.allclose(alone[0], changed[k], atol=1e-5)
        assert torch.equal(own[0], told[k])
    for name in set(names) - {"flip"}:  # the middle of every range changes nothing
        middle, zeros = change(name, x[0], *[0.5] * AUGMENTATIONS[name].draws)
        assert torch.allclose(middle, x[0], atol=1e-4)
        assert zeros == pytest.approx([0.0] * len(zeros), abs=1e-6)


def test_paired_samples_move_and_keep_their_values():
    names, x = MEDIA["image"].augmentations, images(32, 3, 16, 16)
    u = torch.rand(32, count_draws(names), generator=generator(5))
    moving = [name for name in names if AUGMENTATIONS[name].moves]
    both, told = augment(x, names, u, paired=True)
    alone = augment(x, moving, u[:, : count_draws(moving)])  # color comes last
    assert torch.equal(both, alone[0])
    assert torch.equal(told[:, : count_parameters(moving)], alone[1])
    assert not told[:, count_parameters(moving) :].any()


@pytest.mark.parametrize("size", [(9,), (16, 8), (8, 9, 10)])
@pytest.mark.parametrize("u", [0.0, 0.2, 0.5, 0.999])
def test_a_shift_reflects_at_the_border(size, u):
    x = images(2, *size)
    moved, told = change("shift", x, *[u] * 3)
    wanted = x.numpy()
    for axis, side in enumerate(size):
        steps = round((2 * u - 1) * FARTHEST * side)
        assert told[axis] == pytest.approx(steps / (FARTHEST * side))
        before, after = (max(steps, 0), max(-steps, 0))
        pad = [(0, 0)] * wanted.ndim
        pad[1 + axis] = before, after
        wanted = np.pad(wanted, pad, "reflect")
        wanted = wanted.take(range(after, after + side), 1 + axis)
    assert np.array_equal(moved.numpy(), wanted)
    assert told[len(size) :] == [0.0] * (3 - len(size))


def test_a_flip_mirrors_the_last_axis_and_gain_scales():
    x = images(3, 4, 6)
    moved, told = change("flip", x)
    assert torch.equal(moved, x.flip(-1))
    assert told == [1.0]
    louder, told = change("gain", x, 0.75)
    assert told == [0.5]
    assert torch.allclose(louder, 2 ** (GAIN * 0.5) * x)


@pytest.mark.parametrize(("u", "turns"), [(0.5, 0), (0.75, 1), (0.0, 2), (0.25, 3)])
def test_a_rotation_by_quarter_turns_is_exact(u, turns):
    x = images(2, 8, 8)
    moved, told = change("rotate", x, u)
    assert torch.allclose(moved, x.rot90(turns, (1, 2)), atol=1e-4)
    cos, sin = told
    assert (cos + 1) ** 2 + sin**2 == pytest.approx(1, abs=1e-5)


def test_a_rotation_of_a_wide_image_keeps_its_proportions():
    """A round blob stays round, and one beside the center moves by as many positions."""
    y, x = torch.meshgrid(torch.arange(16) - 7.5, torch.arange(32) - 15.5, indexing="ij")
    near, blob = (x**2 + y**2 < 49)[None], torch.exp(-(x**2 + y**2) / 8)[None]
    for u in (0.6, 0.75, 0.9):  # far from the center, the border's reflection shows
        assert torch.allclose(change("rotate", blob, u)[0][near], blob[near], atol=0.02)
    beside, below = (torch.exp(-(a**2 + (b - 2) ** 2) / 6)[None] for a, b in ((y, x), (x, y)))
    assert torch.allclose(change("rotate", beside, 0.25)[0][near], below[near], atol=0.02)


@pytest.mark.parametrize(("name", "u"), [("zoom", 0.0), ("zoom", 0.3), ("rotate", 0.6)])
def test_beyond_the_border_an_image_is_its_reflection(name, u):
    """A change of an image is the center of the same change of the image with its reflections."""
    x = images(2, 16, 16)
    continued = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (16, 16), (16, 16)], "symmetric"))
    center = change(name, continued, u)[0][:, 16:32, 16:32]
    assert torch.allclose(change(name, x, u)[0], center, atol=1e-4)


def test_a_zoom_keeps_the_center_and_changes_sizes_by_its_factor():
    y, x = torch.meshgrid(torch.arange(32) - 15.5, torch.arange(32) - 15.5, indexing="ij")
    disc = (x**2 + y**2 < 49).float()[None]
    for u in (0.0, 0.5, 1.0):
        moved, [told] = change("zoom", disc, u)
        assert told == pytest.approx(2 * u - 1)
        ratio = float(moved.sum() / disc.sum())
        assert ratio == pytest.approx(2 ** (2 * 0.4 * told), rel=0.04)
        assert float((moved * x).sum()) == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_color_changes_contrast_saturation_and_brightness(channels):
    x = images(channels, 4, 4)
    changed, told = change("color", x, 0.9, 0.1, 0.7)
    assert told == pytest.approx([0.8, -0.8, 0.4])
    colors = 3 if channels > 2 else 1
    grey = x[:colors].mean(0, keepdim=True)
    wanted = grey + 2 ** (SATURATION * 0.8) * (x[:colors] - grey)
    wanted = 2 ** (CONTRAST * -0.8) * wanted + 0.2 * 0.4
    assert torch.allclose(changed[:colors], wanted, atol=1e-6)
    assert torch.equal(changed[colors:], x[colors:])


@pytest.mark.parametrize("name", [name for name, entry in AUGMENTATIONS.items() if entry.moves])
def test_labels_move_with_their_image_and_stay_labels(name):
    draw = generator(0)
    labels = (torch.rand(32, 1, 8, 8, generator=draw) < 0.5).byte() * 7
    labels = labels.repeat_interleave(4, 2).repeat_interleave(4, 3)
    u = torch.rand(32, count_draws([name]), generator=draw)
    u[:, 0] = 0
    moved, _ = augment(labels, [name], u, paired=True)
    images, _ = augment(labels.float(), [name], u)
    assert moved.dtype == torch.uint8
    assert set(moved.unique().tolist()) == {0, 7}
    assert not torch.equal(moved, labels)
    assert float(((images > 3.5) == (moved == 7)).float().mean()) > 0.95
