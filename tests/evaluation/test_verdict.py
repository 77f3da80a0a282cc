"""The verdict of an evaluation, in plain words."""

from functools import partial

import pytest

from diffuse_cli.evaluation.results import FEWEST, summarize
from diffuse_cli.metrics import Remark, Words

KNOWN = {
    "kid_floor": 0.0, "kid_floor_standard_error": 0.001,
    "kid_of_blurred": 0.2, "kid_of_blurred_standard_error": 0.005,
    "kid_of_mean": 0.5, "kid_of_mean_standard_error": 0.005,
    "kid_of_noise": 0.9, "kid_of_noise_standard_error": 0.005,
}  # fmt: skip
SERIOUS = Remark("memorization", "serious", "")
POSSIBLE = Remark("memorization", "possible", "")
IMAGES, SOUNDS = Words("images", one="image"), Words("sounds", one="sound")

judge = partial(summarize, count=FEWEST)


@pytest.mark.parametrize(
    ("kid", "remarks", "said"),
    [
        (0.95, [], "Not recognizable yet: train longer"),
        (0.6, [], "Not recognizable yet: train longer"),
        (0.2, [], "No better than blurred images yet: train longer"),
        (0.1, [], "Better than blurred images, but different from the real images: train longer"),
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


def test_without_a_kid_there_is_no_verdict():
    assert judge({"bits_per_dim": 3.0}, [], IMAGES, model=True) == ""
    assert judge({"kid": 0.1}, [], IMAGES, model=True).startswith("Too few images")


def test_few_samples_are_not_called_close():
    values = {"kid": 0.001, "kid_standard_error": 0.1}
    said = summarize(values, [], IMAGES, count=6, model=True)
    assert said == "Too few images to tell how close: 6, and 30 are needed"
