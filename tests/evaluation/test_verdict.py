"""The verdict of an evaluation, in plain words."""

from functools import partial

import numpy as np
import pytest

from diffuse_cli.core.space import Space
from diffuse_cli.evaluation.results import FEWEST, summarize
from diffuse_cli.metrics import METRICS, MetricInputs, Remark, Words, numbers
from diffuse_cli.metrics.channel_distributions import measure_marginals
from diffuse_cli.metrics.spectrum import measure_spectra

KNOWN = {
    "kid_floor": 0.0, "kid_floor_standard_error": 0.001,
    "kid_of_blurred": 0.2, "kid_of_blurred_standard_error": 0.005,
    "kid_of_mean": 0.5, "kid_of_mean_standard_error": 0.005,
    "kid_of_noise": 0.9, "kid_of_noise_standard_error": 0.005,
}  # fmt: skip
SERIOUS = Remark("memorization", "serious", "")
POSSIBLE = Remark("memorization", "possible", "")
ALIKE = Remark("under-dispersive", "poor", "")
IMAGES, SOUNDS = Words("images", one="image"), Words("sounds", one="sound")

judge = partial(summarize, count=FEWEST)


@pytest.mark.parametrize(
    ("kid", "remarks", "said"),
    [
        (0.95, [], "Not recognizable yet: train longer"),
        (0.6, [], "Not recognizable yet: train longer"),
        (0.2, [], "No better than blurred images yet: train longer"),
        (0.1, [], "Better than blurred images, but different from the real images: train longer"),
        (0.1, [ALIKE], "Better than blurred images, but different from the real images"),
        (0.02, [], "Close to the real images"),
        (0.001, [], "Close to the real images"),
        (0.02, [POSSIBLE], "Close to the real images. Some may be copies of training images"),
        (0.02, [SERIOUS], "Copies: generated images repeat training images"),
    ],
)
def test_a_model_is_judged_by_its_kid_and_copies(kid, remarks, said):
    values = {**KNOWN, "kid": kid, "kid_standard_error": 0.002}
    assert judge(values, remarks, IMAGES, model=True) == said
    assert "longer" not in judge(values, remarks, IMAGES, model=False)


def test_a_baseline_that_says_nothing_is_not_named():
    values = {**KNOWN, "kid": 0.1, "kid_standard_error": 0.002}
    alone = {key: value for key, value in values.items() if "_of_" not in key}
    assert judge(alone, [], IMAGES, model=False) == "Different from the real images"
    assert judge({**alone, "kid": 0.001}, [], IMAGES, model=False) == "Close to the real images"
    smooth = {**KNOWN, "kid_of_blurred": -0.001, "kid_standard_error": 0.002}
    assert judge({**smooth, "kid": 0.0003}, [], IMAGES, model=False) == "Close to the real images"
    assert judge({**smooth, "kid": 0.1}, [], IMAGES, model=False).startswith("Different")


def test_sounds_are_judged_by_random_features():
    values = {"kid_random": 0.1, "kid_random_standard_error": 0.01, "kid_random_floor": 0.0}
    assert judge(values, [], SOUNDS, model=False) == "Different from the real sounds"
    assert judge({**values, "kid_random": 0.01}, [], SOUNDS, model=True).startswith("Close")


def test_without_a_kid_or_with_few_samples_there_is_no_verdict():
    assert judge({"bits_per_dim": 3.0}, [], IMAGES, model=True) == ""
    assert judge({"kid": 0.1}, [], IMAGES, model=True).startswith("Too few images")
    values = {"kid": 0.001, "kid_standard_error": 0.1}
    said = summarize(values, [], IMAGES, count=6, model=True)
    assert said == "Too few images to tell how close: 6, and 30 are needed"


LIMITED = [number for number in numbers() if number.tolerance is not None]


def values_at(number, tolerances, error):
    """A close KID, and a number this many tolerances on the wrong side of its reference."""
    values = {**KNOWN, "kid": 0.001, "kid_standard_error": 0.002}
    reference, tolerance = number.ideal, number.tolerance
    if isinstance(reference, str):
        values[reference] = reference = 0.5
    if isinstance(tolerance, str):
        values[tolerance] = tolerance = 3.0
    sign = -1 if number.direction == "higher" else 1
    apart = tolerances * (tolerance or 0.05)
    return {**values, number.key: reference + sign * apart, f"{number.key}_standard_error": error}


@pytest.mark.parametrize("number", LIMITED, ids=lambda number: number.key)
def test_no_metric_of_a_close_evaluation_is_far_from_its_reference(number):
    far = judge(values_at(number, 1.1, 0.01), [], IMAGES, model=True)
    assert far == f"Different from the real images in {number.label}: train longer"
    for tolerances, error in ((1.1, 9.0), (-1.1 * (number.direction != "reference"), 0.01)):
        said = judge(values_at(number, tolerances, error), [], IMAGES, model=True)
        assert said == "Close to the real images"
    if number.tolerance:
        assert judge(values_at(number, 0.9, 0.001), [], IMAGES, model=True).startswith("Close")
    if number.key == "mean_variety":  # which lies on both sides
        far = judge(values_at(number, -1.1, 0.01), [], IMAGES, model=False)
        assert far == "Different from the real images in variety of means"


def fields(seed, count=60, side=16, shift=0.0):
    """Gaussian fields, each shifted up or down."""
    rng = np.random.default_rng(seed)
    signs = rng.choice([-shift, shift], (count, 1, 1, 1))
    return (rng.normal(size=(count, 1, side, side)) + signs).astype(np.float32)


def test_shifted_fields_are_not_close(diffuse):
    for name, shift in (("real", 0.0), ("shifted", 0.25)):
        np.save(f"{name}.npy", fields(len(name), shift=shift))
    metrics = "random-kid,marginals,spectrum"
    ran = diffuse("eval", "shifted.npy", "real.npy", "--metrics", metrics).ok()
    assert ran.out.startswith("Different from the real arrays in variety of means.\n")
    assert "the means of generated arrays differ too much from each other: " in ran.out


@pytest.mark.parametrize("levels", [None, 256])
def test_equal_samples_are_called_close(levels):
    """Of 200 pairs of each of five kinds of data, 97 to 100 % were, with 30 to 5,000 samples."""
    scale = () if levels else (1.0,)
    space, said = Space(channels=1, size=(6, 6), levels=levels, mean=scale, std=scale), []
    for seed in range(40):
        sides = [fields(3 * seed + k, 40, 6) for k in range(3)]
        real, fake, more = (side.reshape(40, -1).astype(np.float32) for side in sides)
        if levels:
            sides = [(30 * side + 128).clip(0, 255).astype(np.uint8) for side in sides]
        run = MetricInputs(space=space, real_features=real, fake_features=fake, more_features=more)
        run.marginals, run.spectra = measure_marginals(*sides), measure_spectra(*sides)
        names = ("marginals", "spectrum", "kid" if levels else "random-kid", "precision-recall")
        values = {k: v for name in names for k, v in METRICS[name].compute(run).items()}
        said.append(judge(values, [], IMAGES, model=False))
    assert said.count("Close to the real images") >= 38
