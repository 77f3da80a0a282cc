"""What is said of numbers: nothing that flatters, and nothing that is not significant."""

import math
from functools import partial

import pytest

from diffuse_cli.metrics import Facts, Measurement, Words, memorization, numbers, remarks

facts = partial(Facts, words=Words("images", "pixels", one="image"))

MEMORIZED = {
    "memorized_expected": 0.05, "memorized_references": 100.0,
    "memorized_features": 0.5, "memorized_pixels": 0.6,
    "memorized_features_standard_error": 0.05, "memorized_pixels_standard_error": 0.05,
    "memorized_z_features": 9.0, "memorized_z_pixels": 9.0,
    "memorized_rank_features": 0.9, "memorized_rank_pixels": 0.9,
}  # fmt: skip
BITS = {"bits_per_dim": 4.0, "bits_per_dim_standard_error": 0.1}
GAP = {"bits_per_dim_gap": 0.4, "bits_per_dim_gap_standard_error": 0.1}


@pytest.mark.parametrize(
    ("values", "images", "starts"),
    [
        (MEMORIZED, 2000, ["memorization: 50%"]),
        (MEMORIZED | {"memorized_features": 0.06}, 2000, ["possible memorization: 6% of"]),
        (MEMORIZED | {"memorized_features": 0.24, "memorized_pixels": 0.24}, 2000, []),
        (MEMORIZED | {"memorized_z_features": 2.0}, 2000, ["possible memorization: 50%"]),
        (MEMORIZED | {"memorized_z_features": 2.0, "memorized_z_pixels": 2.0}, 2000, []),
        (MEMORIZED | {"memorized_pixels_standard_error": 0.3}, 2000, ["possible memorization"]),
        (GAP, 2000, ["overfitting: held-out images cost 0.40 ± 0.10"]),
        (GAP | {"bits_per_dim_gap": 0.29}, 2000, []),
        (GAP | {"bits_per_dim_gap": -0.9}, 2000, []),
        ({"frechet_distance": 1.0}, 1281, []),
        ({"frechet_distance": 1.0}, 1280, ["Fréchet distance: 1,280 images are too few for 1,280"]),
        (MEMORIZED | GAP, 2000, ["memorization", "overfitting"]),
    ],
)
def test_what_is_significant_is_said(values, images, starts):
    every = remarks(facts(BITS | values, 2000, images, 1280, True, 256))
    found = [str(remark) for remark in every if remark.warns]
    assert [line[: len(start)] for line, start in zip(found, starts, strict=True)] == starts


STANDING = {
    "kid": 0.3, "kid_floor": 0.0, "kid_of_blurred": 0.8, "kid_of_mean": 1.9, "kid_of_noise": 1.3,
    **{f"kid{name}_standard_error": 0.03
       for name in ("", "_floor", "_of_blurred", "_of_mean", "_of_noise")},
}  # fmt: skip
SHARES = {"precision": 0.6, "precision_standard_error": 0.05,
          "recall": 0.2, "recall_standard_error": 0.05}  # fmt: skip
NO_COPIES = {
    "memorized_expected": 0.05, "memorized_references": 100.0,
    "memorized_rank_features": 0.3, "memorized_rank_pixels": 0.3,
    **{f"memorized_{space}": 0.0 for space in memorization.SPACES},
    **{f"memorized_{space}_standard_error": 0.01 for space in memorization.SPACES},
    **{f"memorized_z_{space}": -3.0 for space in memorization.SPACES},
}  # fmt: skip


def said(kind, model=True, **values):
    """The level and the sentence of the one remark of a kind."""
    [found] = [r for r in remarks(facts(values, 500, 500, 10, model, 256)) if r.kind == kind]
    return found.level, found.says


@pytest.mark.parametrize(
    ("changed", "level", "words"),
    [
        ({}, "finding", "lower than for blurred real images (0.800 ± 0.030), their mean image"),
        ({"kid": 1.0}, "poor", "worse than blurred real images (0.800 ± 0.030). Train longer"),
        ({"kid": 0.85}, "poor", "not clearly better than blurred real images (0.800 ± 0.030)"),
        ({"kid": 1.25}, "poor",
         "worse than blurred real images (0.800 ± 0.030), and not clearly better than noise"),
        ({"kid": 2.5}, "poor", "worse than blurred real images (0.800 ± 0.030), their mean image "),
        ({"kid": 1.25, "kid_of_blurred": 1.27}, "poor",
         "not clearly better than blurred real images (1.270 ± 0.030) and noise (1.300 ± 0.030). "),
        ({"kid": 2.5}, "poor", "(1.900 ± 0.030) and noise (1.300 ± 0.030). Train longer"),
        # Smooth images that are blurred are no worse than real ones: nothing to compare with.
        ({"kid_of_blurred": 0.05, "kid": 0.2}, "finding", "lower than for their mean image"),
        ({"kid": 0.05}, "finding", "500 images on each side there is no measurable difference"),
        ({"kid": 2.0, "kid_standard_error": math.nan}, "poor", "worse than"),
    ],
)  # fmt: skip
def test_likeness_is_told_by_images_known_to_be_bad(changed, level, words):
    found = said("likeness", **STANDING | changed)
    assert found[0] == level
    assert words in found[1]


def test_images_differ_where_their_error_is_known():
    values = {"kid": 0.9, "kid_floor": 0.1}
    assert "no measurable difference" in said("likeness", **values)[1]
    assert "differ measurably" in said("likeness", **values, kid_standard_error=0.1)[1]


def test_images_unlike_real_ones_are_not_praised():
    """Neither for plausibility nor for being no copies, which are said of them too."""
    assert said("memorization", **STANDING | MEMORIZED | {"kid": 1.0})[0] == "serious"
    bad = STANDING | SHARES | NO_COPIES | {"kid": 1.0}
    kinds = {r.kind: r for r in remarks(facts(bad, 500, 500, 10, True, 256))}
    assert "plausibility and variety" not in kinds
    assert kinds["memorization"].says == (
        "not judged, because the generated images are too different from real images"
    )
    flat = {"memorized_pixels": 1.0, "memorized_z_pixels": 9.0}
    assert said("memorization", **bad | flat)[0] == "fine"
    good = STANDING | SHARES | NO_COPIES
    assert said("memorization", **good | flat)[0] == "possible"
    assert "plausible, but lack variety" in said("plausibility and variety", **good)[1]
    assert said("memorization", **good)[1].startswith("no sign: 0% of")


@pytest.mark.parametrize("recall", [0.0, 0.009])
def test_precision_is_not_quoted_where_recall_is_0(recall):
    few = SHARES | {"recall": recall, "recall_standard_error": 0.01}
    shown = {number.key: number for number in numbers()}
    for key in ("precision", "density"):
        assert shown[key].text({**few, key: 0.6}) == "not shown, because recall is 0"
        assert not shown[key].can_show({**few, key: 0.6})
        assert shown[key].text({**SHARES, key: 0.6}).startswith("0.6")
    assert shown["recall"].text(few) == f"{Measurement(recall, 0.01)}"
    words = said("plausibility and variety", **few)[1]
    assert "60%" not in words
    assert "hardly any variety" in words


@pytest.mark.parametrize(
    ("levels", "bits", "stored"),
    [(256, 8.9, "8"), (256, 8.2, None), (16, 3.6, None), (16, 4.9, "4"), (512, 8.9, None),
     (None, 9, None)],
)  # fmt: skip
def test_more_bits_than_storing_takes_are_called_so(levels, bits, stored):
    """Of overfitting there is no sign to speak of then, as the model predicts neither part."""
    values = {"bits_per_dim": bits, "bits_per_dim_standard_error": 0.1}
    gap = GAP | {"bits_per_dim_gap": 0.0}
    found = {r.kind: r for r in remarks(facts(values | gap, 9, 9, 10, True, levels))}
    assert {*found} == {"bits per dimension" if stored else "overfitting", "memorization"}
    if stored:
        words = f"{bits:.2f} ± 0.10 is worse than storing the pixels"
        assert str(found["bits per dimension"]).count(words) == 1
        assert found["bits per dimension"].level == "poor"
        assert f"which takes {stored}: " in found["bits per dimension"].says


def test_a_gap_below_zero_is_not_said_to_be_zero():
    words = said("overfitting", **BITS | GAP | {"bits_per_dim_gap": -1.0})[1]
    assert words == ("no sign: held-out images cost −1.00 ± 0.10 bits per dimension more than "
                     "training images, which is not clearly above 0")  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, ["no sign: 0% of", "too few references to notice copies"]),
        ({"memorized_features": 1.0}, ["no clear sign: 100% of", "can be chance. Look at the"]),
        ({"memorized_rank_features": 0.83, "memorized_z_features": 9.0},
         ["no clear sign: 0% of", "is 0.83 in features"]),
        ({"memorized_noticed": 0.01}, ["with 1% copies would be noticed with 95% probability"]),
    ],
)  # fmt: skip
def test_near_images_are_not_called_none(changed, words):
    level, found = said("memorization", **NO_COPIES | changed)
    assert level == "fine"
    assert [part for part in words if part not in found] == []


@pytest.mark.parametrize(
    ("fraction", "level", "words"),
    [
        (0.03, "fine", "no sign"),
        (0.04, "fine", "no clear sign"),
        (0.07, "fine", "35 of the generated images are closer to training images than"),
        (0.1, "serious", "50 of the generated images are closer to training images than"),
    ],
)
def test_a_few_copies_are_counted(fraction, level, words):
    """Of 500 samples, with 100 references, 36 could not be chance, and 17 are doubtful."""
    assert memorization.fewest_copies(500, 100) == 36
    assert memorization.fewest_copies(500, 100, memorization.DOUBT) == 17
    found = said("memorization", **NO_COPIES | {"memorized_copies": fraction})
    assert found[0] == level
    assert words in found[1]


def test_distances_in_numbers_alone_are_a_hint_at_most():
    """Of sounds and arrays, features say nothing."""
    alone = {k: v for k, v in MEMORIZED.items() if not k.endswith("features")}
    nearest = {"memorized_copies": 0.5}
    for values, count in ((alone, 0), (alone | nearest, 250)):
        assert memorization.find_signs(values, 500) == memorization.Signs("possible", count)
    assert memorization.find_signs(MEMORIZED | nearest, 500).level == "serious"
    assert said("memorization", **alone)[0] == "possible"
    words = Words("sounds", one="sound")
    sound = {r.kind: r for r in remarks(Facts(alone, 500, 500, 10, True, None, words=words))}
    assert str(sound["memorization"]) == (
        "possible memorization: 60% of the generated sounds are, by their values only, as close "
        "to a training sound as the closest 5% of real sounds that are not copies. Sounds with "
        "little detail can be so too. To see them, add --pairs FILE.png"
    )
    assert sound["reference"].says.startswith("for memorization rates, it is the rate 0.05 of real")


def test_why_copies_were_not_looked_for():
    for model, words in ((True, "own training data"), (True, "--train-n"), (False, "40 images")):
        assert words in said("memorization", model)[1]


def test_a_ratio_has_few_digits():
    for decibels, power in ((6.0, "3.98 times"), (700.0, "1e+70 times")):
        values = {"fine_detail": decibels, "fine_detail_standard_error": 0.1}
        assert f"have {power} the power of real" in said("fine detail", **values)[1]
