"""Overfitting is said once, where it is there, and not where it is not."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
from conftest import log_rows, mostly_slow

from diffuse_cli.training.overfitting import HeldOutLosses, Overfitting, has_risen
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.trainer import Trainer

EACH = np.random.default_rng(0).uniform(0.5, 1.5, 100)


def at(step, rise, training, count=100):
    """A look at which each image's loss has risen by `rise`, give or take 0.01."""
    changes = np.random.default_rng(step).normal(0, 1, 100)
    changes = rise + 0.01 * (changes - changes.mean()) / changes.std(ddof=1)
    return HeldOutLosses(step, tuple((EACH + changes)[:count]), training)


def curve(*rises, training=-0.1, count=100):
    """Looks at steps 1, 2, ..."""
    return [at(k + 1, rise, 1 + training * k, count) for k, rise in enumerate(rises)]


FALLS_AND_RISES = (0.3, 0.2, 0.1, 0.0, 0.0, 0.1, 0.2, 0.3)


def told(looks):
    watch = Overfitting()
    return [watch.add_measurement(look) for look in looks]


def test_the_error_is_of_paired_differences():
    """The losses themselves spread by 0.3, their changes by 0.01."""
    one, other = at(1, 0.0, 1.0), HeldOutLosses(2, tuple(EACH), 1.0)
    assert one.paired_error(other) == pytest.approx(0.001)


@pytest.mark.parametrize(("rise", "risen"), [(0.9, False), (1.1, True)])
def test_a_rise_counts_in_standard_errors(rise, risen):
    """Means of three that are four steps apart, with errors of 1: 4 sqrt(2 / 3) is 3.27."""
    means = [3.27 / 4 * rise * k for k in range(7)]
    assert has_risen(means, 1.0) == risen
    assert not has_risen(means, 1.5)


def test_it_is_said_once_with_the_step_of_the_best():
    texts = [text for text in told(curve(*FALLS_AND_RISES)) if text]
    assert len(texts) == 1
    assert "best at step 4 and has risen from" in texts[0]
    assert "the training loss fell from 0.7 to" in texts[0]


def test_a_rise_counts_while_the_training_loss_falls_and_with_enough_images():
    for more in ({"training": 0.0}, {"training": 0.1}, {"count": 7}):
        assert not any(told(curve(*FALLS_AND_RISES, **more)))
    assert any(told(curve(*FALLS_AND_RISES, count=8)))
    accident = (0.3, 0.2, 0.1, 0.0, 0.2, 0.0, 0.0, 0.1)
    assert not any(told(curve(*accident)))


@pytest.mark.parametrize(("looks", "jitter"), mostly_slow([(8, 4.0), (16, 1.0), (50, 2.0)]))
def test_plateaus_raise_few_false_alarms_and_rises_are_noticed(looks, jitter):
    """Curves with jitter of so many paired errors, which fall, and then stay or rise."""
    rng, k = np.random.default_rng(0), np.arange(looks)
    falls = 20 * np.exp(-k / (looks / 6))
    rises = 8 * jitter * np.maximum(0, 2 * k / looks - 1)
    false, true = 0, 0
    for _ in range(300):
        own = falls + jitter * rng.normal(size=looks)
        false += any(has_risen(own[:n], 1.0) for n in range(1, looks + 1))
        true += any(has_risen((own + 4 * rises)[:n], 1.0) for n in range(1, looks + 1))
    assert false <= 0.025 * 300
    assert true > 0.8 * 300


def test_the_state_goes_through_json():
    looks = curve(*FALLS_AND_RISES)
    plain = [bool(text) for text in told(looks)]
    for cut in range(len(looks) + 1):
        one, texts = Overfitting(), []
        for i, look in enumerate(looks):
            if i == cut:
                one = Overfitting.from_state(json.loads(json.dumps(asdict(one))))
            texts.append(bool(one.add_measurement(look)))
        assert texts == plain


# -- a run ----------------------------------------------------------------------------------------


@pytest.fixture
def rising(undrawn, monkeypatch):
    """Held-out losses that rise from step 10 on."""

    def losses(self):
        rise = max(0, self.ema.updates - 10) + 2 * max(0, 10 - self.ema.updates)
        return torch.from_numpy(EACH[:20] * (1 + 0.01 * rise))

    monkeypatch.setattr(Trainer, "held_out_losses", losses)


LOOKING = ("--steps", 40, "--preview-every", 5, "--log-every", 1, "--lr", 0.005)
SAID = "warning: overfitting: the held-out loss was best at step 10"


def test_the_training_loss_is_the_mean_since_the_look_before(quick, rising):
    """A resumed run says once that it overfits."""
    first = quick(*LOOKING, "--stop-at", 12).err
    best = RunDirectory("model.safetensors").load()[0].state["watch"]["overfitting"]["best"]
    losses = {m["step"]: m["loss"] for m in log_rows() if "loss" in m}
    assert best["step"] == 10
    assert best["training"] == pytest.approx(sum(losses[k] for k in range(6, 11)) / 5)
    said = first + quick("--resume", *LOOKING).err
    assert said.count("overfitting") == said.count(SAID) == 1


def test_a_run_that_only_improves_says_nothing(quick, undrawn, monkeypatch):
    falling = lambda self: torch.from_numpy(EACH[:20] / (1 + self.ema.updates))  # noqa: E731
    monkeypatch.setattr(Trainer, "held_out_losses", falling)
    assert "overfitting" not in quick(*LOOKING).err
