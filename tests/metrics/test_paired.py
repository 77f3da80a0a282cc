"""PSNR, SSIM, distances, inconsistency and diversity of images that are drawn from something."""

import math
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffuse_cli.core.conditions import ConditioningArray, Conditions
from diffuse_cli.core.space import Space
from diffuse_cli.evaluation.image_sets import LabeledSamples
from diffuse_cli.evaluation.input_builders import find_nearest_inputs
from diffuse_cli.metrics import METRICS, nearest_neighbors, numbers, select_numbers
from diffuse_cli.metrics.paired import (
    MOST,
    SPREAD,
    WINDOW,
    PairedValues,
    compare_regions,
    compute,
    compute_pixel_metrics,
    difference_errors,
    feature_distances,
    psnr,
    ssim,
)
from diffuse_cli.models.image_conditioning import Conditioner

DRAW = np.random.default_rng(0)


def images(n, *size, channels=3):
    return DRAW.integers(0, 256, (n, channels, *size), dtype=np.uint8)


def conditioner(what):
    """What conditions images of 8x8 in color."""
    conditions = Conditions(given=ConditioningArray(channels=3, what=what))
    blueprint = SimpleNamespace(conditions=conditions, space=Space(channels=3, size=(8, 8)))
    return Conditioner.from_blueprint(blueprint)


def test_psnr_is_that_of_a_known_error():
    truth = images(4, 8, 8) // 2
    assert psnr(truth, truth, 255).tolist() == [MOST] * 4
    for off in (1, 10, 100):
        found = psnr(truth + np.uint8(off), truth, 255)
        assert np.allclose(found, 20 * math.log10(255 / off))
    assert np.allclose(psnr(truth / 127.5 + 0.1, truth / 127.5, 2), 20 * math.log10(2 / 0.1))


def by_the_formula(x, y, span):
    """SSIM of two arrays (*size), place by place (Wang et al. 2004, eqs. 6, 13 to 16)."""
    side = min(WINDOW, *x.shape)
    line = np.exp(-((np.arange(side) - (side - 1) / 2) ** 2) / (2 * SPREAD**2))
    w = line
    for _ in x.shape[1:]:
        w = np.multiply.outer(w, line)
    w /= w.sum()
    found = []
    for corner in product(*(range(n - side + 1) for n in x.shape)):
        cut = tuple(slice(c, c + side) for c in corner)
        a, b = x[cut].astype(float), y[cut].astype(float)
        ma, mb = (w * a).sum(), (w * b).sum()
        va, vb = (w * (a - ma) ** 2).sum(), (w * (b - mb) ** 2).sum()
        ab = (w * (a - ma) * (b - mb)).sum()
        c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
        found.append((2 * ma * mb + c1) * (2 * ab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2)))
    return float(np.mean(found))


@pytest.mark.parametrize("size", [(16,), (13, 14), (5, 7), (12, 11, 13)])
def test_ssim_is_the_formula_place_by_place(size):
    x = images(2, *size, channels=2)
    y = np.clip(x + DRAW.normal(0, 20, x.shape), 0, 255).astype(np.uint8)
    wanted = [
        np.mean([by_the_formula(p[c], q[c], 255) for c in range(2)])
        for p, q in zip(x, y, strict=True)
    ]
    assert np.allclose(ssim(x, y, 255), wanted, atol=1e-12)
    assert np.allclose(ssim(x, x, 255), 1)
    assert np.allclose(ssim(x / 127.5, y / 127.5, 2), wanted, atol=1e-12)


def test_images_of_the_right_spread_are_as_far_from_each_other_as_from_the_real_one():
    given = DRAW.normal(128, 20, (400, 1, 8, 8))
    truth, first, second = (given + DRAW.normal(0, 10, given.shape) for _ in range(3))
    right = compute_pixel_metrics(truth, first, second, {"given": given}, 255)
    assert right["diversity"].mean() == pytest.approx(right["distance_to_real"].mean(), rel=0.01)
    assert right["diversity"].mean() == pytest.approx(10 * math.sqrt(2) * 2 / 255, rel=0.01)
    same = compute_pixel_metrics(truth, given, given, {"given": given, "nearest": truth}, 255)
    assert same["diversity"].max() == 0
    assert same["psnr"].mean() > right["psnr"].mean() + 2  # the mean of what is plausible
    assert np.allclose(same["psnr"], same["psnr_of_given"])
    assert (same["psnr_of_nearest"] == MOST).all()
    assert "psnr_of_given" not in compute_pixel_metrics(truth, first, second, {}, 255)


def test_the_distance_in_features_is_that_of_each_image():
    truth = DRAW.normal(size=(5, 16)).astype(np.float32)
    found = feature_distances(truth, truth + np.float32(0.5), {"given": truth})
    assert np.allclose(found["feature_distance"], 0.5)
    assert found["feature_distance_of_given"].tolist() == [0] * 5


@pytest.mark.parametrize(
    "what", ["low-res:4", "grey", "mask:random", "mask:half+noise:0.1", "pairs"]
)
def test_the_nearest_training_image_is_the_one_that_looks_alike_where_it_is_known(
    what, monkeypatch
):
    monkeypatch.setattr(nearest_neighbors, "BLOCK", 7)
    encoder, truth = conditioner(what), images(6, 8, 8)
    pairs = images(20, 8, 8) if what == "pairs" else None
    known = LabeledSamples(images(20, 8, 8), np.full(20, -1), pairs)
    places = np.array([3, 19, 0, 7, 12, 6])
    inputs = encoder.choose_inputs(truth, None if pairs is None else pairs[places], 5)
    # What is unknown of the right image is another's, and far off.
    seen = inputs.encode(range(6), torch.device("cpu"))[:, -1:].numpy() > 0
    known.samples[places] = np.where(seen, truth, 255 - truth)
    found = find_nearest_inputs(encoder, inputs, 6, known, 5)
    assert found.tolist() == places.tolist()


@pytest.mark.parametrize("what", ["low-res:4", "grey", "mask:random", "blur:1"])
def test_what_fits_is_consistent_and_noise_is_not(what):
    encoder, truth, rows = conditioner(what), images(9, 8, 8), [8, 0, 1, 2, 3, 4, 5, 6, 7]
    assert np.array_equal(encoder.measure_residuals(truth, truth, 3, rows), np.zeros(9))
    assert (encoder.measure_residuals(images(9, 8, 8), truth, 3, rows) > 0.02).all()
    off = conditioner(f"{what}+noise:0.1").measure_residuals(truth, truth, 3, rows)
    assert off.mean() == pytest.approx(0.1 * math.sqrt(2 / math.pi), rel=0.25)


def test_a_mask_is_the_one_that_the_image_was_drawn_with():
    encoder, truth = conditioner("mask:random"), images(12, 8, 8)
    inputs = encoder.degraded_inputs(truth, 3, "given")
    known = inputs.encode(range(12), torch.device("cpu"))[:, -1:].numpy()
    painted = np.where(known > 0, truth, 255 - truth)
    assert np.array_equal(encoder.measure_residuals(painted, truth, 3, range(12)), np.zeros(12))
    assert (encoder.measure_residuals(painted, truth, 4, range(12)) > 0).all()


def test_numbers_have_errors_and_those_of_a_class_are_its_own():
    values = {"psnr": np.array([1.0, 2.0, 6.0]), "ssim": np.array([0.5, 0.5, 0.8])}
    answers = PairedValues(values, np.arange(3))
    found = compute(SimpleNamespace(paired_values=answers))
    assert found["psnr"] == 3
    assert found["psnr_standard_error"] == pytest.approx(math.sqrt(7 / 3))
    part = answers[np.array([True, False, True, True])]  # of four real images, three were answered
    assert part.values["psnr"].tolist() == [1, 6]
    other = PairedValues({"psnr": values["psnr"] + [1, 1, 4]}, np.arange(3))
    sides = (SimpleNamespace(paired_values=values) for values in (answers, other))
    apart = difference_errors(*sides)
    assert apart == {"psnr": pytest.approx(1.0)}
    lacking = SimpleNamespace(
        paired_values=PairedValues({"mean": np.full(3, np.nan)}, np.arange(3))
    )
    assert compute(lacking) == difference_errors(lacking, lacking) == {}
    assert compute(SimpleNamespace(paired_values=PairedValues({}, np.zeros(0, int)))) == {}


def test_every_number_is_shown():
    own = {n.key for n in numbers() if n.question == "answers"} | set(METRICS["paired"].BESIDE)
    others = {name: images(2, 8, 8) for name in ("given", "nearest")}
    made = compute_pixel_metrics(*(images(2, 8, 8) for _ in range(3)), others, 255)
    apart = feature_distances(*(images(2, 8, 8) for _ in range(2)), others)
    assert own == {*made, *apart, "inconsistency", "inconsistency_of_real"}
    assert all(n.part or n.ideal in own for n in METRICS["paired"].NUMBERS)


def test_intensity_in_the_region_of_a_label_is_a_mean_over_images_that_have_it():
    maps = np.array([[0, 0, 1, 1], [0, 0, 0, 0]], np.uint8).reshape(2, 1, 2, 2)
    truth = np.array([[10, 20, 100, 100], [30, 30, 30, 30]]).reshape(2, 1, 2, 2).repeat(3, 1)
    first, second = truth + 2, truth * np.array([1, 1, 2]).reshape(1, 3, 1, 1)
    values = compare_regions(maps, {0: "a", 1: "b"}, truth, [first, second])
    found = compute(SimpleNamespace(paired_values=PairedValues(values, np.arange(2))))
    assert found["mean_in_a_of_real"] == pytest.approx(22.5)
    assert found["mean_in_a"] == pytest.approx((24.5 + 30) / 2)
    assert found["mean_in_a_of_real_standard_error"] == pytest.approx(7.5)
    assert found["spread_in_a_of_real"] == pytest.approx(2.5)
    assert found["spread_in_a"] == pytest.approx((5 + 5 * 4 / 3) / 2 / 2)
    assert (found["mean_in_b_of_real"], found["spread_in_b"]) == pytest.approx((100, 0))
    assert math.isnan(found["mean_in_b_standard_error"])
    shown = {number.key: number for number in select_numbers(found)}
    assert [*shown] == ["mean_in_a", "spread_in_a", "mean_in_b", "spread_in_b"]
    assert shown["mean_in_a"].reference(found).value == pytest.approx(22.5)
