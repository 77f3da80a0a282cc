"""One configuration from a command line, a file and the data, and what is chosen beside them."""

from __future__ import annotations

from itertools import product

import pytest

from diffuse_cli.core import LOSSES, VARIANCES, WEIGHTINGS
from diffuse_cli.core.losses import OF_LEARNED
from diffuse_cli.core.variances import LEARNED
from diffuse_cli.errors import UsageError
from diffuse_cli.options import from_dict, to_dict
from diffuse_cli.training.configuring import complete, configure

GREY = (8, 8), 1


def made(typed, filed=None, num_classes=0):
    return complete(configure({"data": "images", **typed}, filed), *GREY, num_classes)


def without(values):
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize("variance", list(VARIANCES))
@pytest.mark.parametrize(("loss", "weighting"), [*product((None, *LOSSES), (None, *WEIGHTINGS))])
def test_loss_and_weighting_follow_from_the_variance(variance, loss, weighting):
    typed = without({"variance": variance, "loss": loss, "weighting": weighting})
    if loss == "vlb" and weighting not in (None, "none"):
        with pytest.raises(UsageError, match="--weighting does not go with --loss vlb"):
            made(typed)
        return
    if loss in OF_LEARNED and variance not in LEARNED:
        with pytest.raises(UsageError, match="Give --variance learned, or --loss simple"):
            made(typed)
        return
    config = made(typed)
    assert config.loss == (loss or ("hybrid" if variance == "learned" else "simple"))
    assert config.weighting == (weighting or ("none" if loss == "vlb" else "min-snr"))
    assert config.unet["out_channels"] == (2 if variance == "learned" else 1)
    assert complete(config, *GREY) == config


@pytest.mark.parametrize(
    ("filed", "typed", "loss", "weighting"),
    [
        ("variance=learned", "", "hybrid", "min-snr"),
        ("variance=learned loss=simple", "", "simple", "min-snr"),
        ("variance=learned loss=hybrid weighting=p2", "", "hybrid", "p2"),
        ("variance=learned loss=hybrid", "variance=small", "simple", "min-snr"),
        ("variance=learned loss=hybrid weighting=p2", "variance=large", "simple", "p2"),
        ("variance=small loss=simple", "variance=learned", "hybrid", "min-snr"),
        ("loss=simple", "variance=learned", "hybrid", "min-snr"),
        ("loss=simple", "variance=large", "simple", "min-snr"),
        ("variance=learned loss=hybrid", "variance=learned", "hybrid", "min-snr"),
        ("variance=learned loss=vlb weighting=none", "variance=small", "vlb", "none"),
        ("variance=small loss=hybrid", "variance=learned", "hybrid", "min-snr"),
        ("variance=learned loss=hybrid", "loss=simple", "simple", "min-snr"),
        ("loss=vlb weighting=none", "loss=simple", "simple", "min-snr"),
        ("loss=simple weighting=p2", "loss=vlb", "vlb", "none"),
        ("loss=simple weighting=p2 variance=learned", "loss=hybrid", "hybrid", "min-snr"),
        (
            "loss=simple weighting=p2 variance=learned",
            "loss=hybrid weighting=none",
            "hybrid",
            "none",
        ),
    ],
)
def test_what_is_typed_wins_and_brings_its_own(filed, typed, loss, weighting):
    read = [dict(pair.split("=") for pair in words.split()) for words in (typed, filed)]
    config = made(*read)
    assert (config.loss, config.weighting) == (loss, weighting)


@pytest.mark.parametrize("variance", list(VARIANCES))
@pytest.mark.parametrize("num_classes", [0, 2, 1000])
def test_the_network_has_the_channels_and_classes_it_needs(variance, num_classes):
    for channels in (1, 3):
        typed = {"data": "images", "variance": variance, "classes": num_classes > 0}
        config = complete(configure(typed), (8, 8), channels, num_classes)
        assert config.unet["num_classes"] == num_classes
        assert config.unet["channels"] == channels
        assert config.unet["out_channels"] == channels * (2 if variance == "learned" else 1)
        again = from_dict(type(config), to_dict(config))
        assert complete(again, (8, 8), channels, num_classes) == config


def test_label_dropout_goes_with_classes():
    with pytest.raises(UsageError, match="--label-dropout goes with --classes"):
        made({"label_dropout": 0.2})
    with pytest.raises(UsageError, match="--label-dropout goes with --classes"):
        made({"label_dropout": 0.2, "classes": False}, {"classes": True})
    assert made({"label_dropout": 0.2, "classes": True}).label_dropout == 0.2
    assert made({"label_dropout": 0.2}, {"classes": True}).label_dropout == 0.2
    assert made({}, {"label_dropout": 0.1}).classes is False


def test_classes_of_another_number_than_the_networks_are_refused():
    with pytest.raises(UsageError, match="num_classes = 3 does not suit these images: it is 2"):
        made({}, {"classes": True, "unet": {"num_classes": 3}}, num_classes=2)


def test_a_typed_variance_or_classes_bring_their_channels_over_a_file():
    filed = to_dict(made({}, {}))
    assert made({"variance": "learned"}, filed).unet["out_channels"] == 2
    learned = to_dict(made({"variance": "learned"}, {}))
    assert made({"variance": "large"}, learned).unet["out_channels"] == 1
    assert made({"classes": True}, filed, num_classes=4).unet["num_classes"] == 4
    classes = to_dict(made({"classes": True}, {}, num_classes=4))
    assert made({"classes": False}, classes).unet["num_classes"] == 0
