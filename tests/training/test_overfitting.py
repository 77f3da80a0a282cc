"""Overfitting is said once, where it is there, and not where it is not."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.trainer import Trainer
from diffuse_cli.training.validation import HeldOutLosses, Overfitting, has_risen

DRAW = np.random.default_rng(0)
EACH = DRAW.uniform(0.5, 1.5, 100)


def at(step, rise, training, spread=0.01, count=100):
    """A look at which each image's loss has risen by `rise`, give or take."""
    changes = DRAW.normal(0, 1, 100)
    changes = rise + spread * (changes - changes.mean()) / changes.std(ddof=1)
    return HeldOutLosses(step, tuple((EACH + changes)[:count]), training)


BASE = HeldOutLosses(10, tuple(EACH), 1.0)


def test_a_rise_is_measured_image_by_image():
    """The losses themselves spread by 0.3, their changes by 0.01: an error of 0.001."""
    assert has_risen(BASE, at(20, 0.00301, 0.9))
    assert not has_risen(BASE, at(20, 0.00299, 0.9))
    assert not has_risen(BASE, at(20, 0.00301, 0.9, spread=0.02))


def test_a_rise_counts_only_while_the_training_loss_falls():
    assert not has_risen(BASE, at(20, 0.1, 1.0))
    assert not has_risen(BASE, at(20, 0.1, 1.1))
    assert not has_risen(BASE, at(20, 0.1, None))
    assert not has_risen(HeldOutLosses(10, BASE.losses, None), at(20, 0.1, 0.9))


def test_too_few_images_say_nothing():
    assert not has_risen(HeldOutLosses(10, BASE.losses[:7], 1.0), at(20, 0.1, 0.9, count=7))
    assert has_risen(HeldOutLosses(10, BASE.losses[:8], 1.0), at(20, 0.1, 0.9, count=8))


def told(looks):
    watch = Overfitting()
    return [watch.add_measurement(look) for look in looks]


def test_it_is_said_once_at_the_second_look_with_the_step_of_the_best():
    looks = [at(5, 0.2, 1.1), BASE, *(at(10 + k, 0.01 * k, 1 - 0.1 * k) for k in range(1, 6))]
    first, *others = [text for text in told(looks) if text]
    assert told(looks)[:3] == [None] * 3
    assert others == []
    assert "best at step 10 and has risen from" in first
    assert "the training loss fell from 1 to 0.8" in first


def test_one_look_that_rises_is_an_accident():
    looks = [BASE, at(11, 0.1, 0.9), at(12, 0.001, 0.8), at(13, 0.1, 0.7), at(14, -0.1, 0.6)]
    assert told(looks) == [None] * 5


def test_the_state_goes_through_json():
    looks = [BASE, *(at(10 + k, 0.01 * k, 1 - 0.1 * k) for k in range(1, 4))]
    for cut in range(len(looks) + 1):
        one, texts = Overfitting(), []
        for i, look in enumerate(looks):
            if i == cut:
                one = Overfitting.from_state(json.loads(json.dumps(asdict(one))))
            texts.append(one.add_measurement(look))
        assert [bool(t) for t in texts] == [False, False, True, False]


# -- a run ----------------------------------------------------------------------------------------


@pytest.fixture
def rising(undrawn, monkeypatch):
    """Held-out losses that rise from step 10 on."""

    def losses(self):
        rise = max(0, self.ema.updates - 10) + 2 * max(0, 10 - self.ema.updates)
        return torch.from_numpy(EACH[:20] * (1 + 0.01 * rise))

    monkeypatch.setattr(Trainer, "held_out_losses", losses)


LOOKING = ("--steps", 25, "--preview-every", 5, "--log-every", 1, "--lr", 0.005)
SAID = "warning: overfitting: the held-out loss was best at step 10"


def test_a_run_says_it_once(quick, rising):
    ran = quick(*LOOKING)
    assert ran.code == 0
    assert ran.err.count("overfitting") == ran.err.count(SAID) == 1


def test_the_training_loss_is_the_mean_since_the_look_before(quick, rising):
    quick(*LOOKING, "--stop-at", 12)
    best = RunDirectory("model.safetensors").load()[0].state["watch"]["overfitting"]["best"]
    lines = map(json.loads, Path("model.run/metrics.jsonl").read_text().splitlines())
    losses = {m["step"]: m["loss"] for m in lines if "loss" in m}
    assert best["step"] == 10
    assert best["training"] == pytest.approx(sum(losses[k] for k in range(6, 11)) / 5)


@pytest.mark.parametrize("stop", [7, 18])
def test_a_resumed_run_says_it_once_too(quick, rising, stop):
    first = quick(*LOOKING, "--stop-at", stop).err
    then = quick("--resume", *LOOKING).err
    assert (first + then).count(SAID) == 1
    assert (first + then).count("overfitting") == 1


def test_a_run_that_only_improves_says_nothing(quick, undrawn):
    assert "overfitting" not in quick(*LOOKING).err
