"""The early average that guides a model is that of its step, whatever happens afterwards."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import torch

from diffuse_cli.models import model_file
from diffuse_cli.training.optimization import ProgressSchedule
from diffuse_cli.training.run_directory import RunDirectory
from training.conftest import measure_by_step

MODEL, OTHER = Path("model.safetensors"), Path("other.safetensors")
RUN = ("--steps", 17)


@pytest.fixture
def weak(lab):
    """A model of 17 steps with its average after 3."""
    return lab.trained(*lab.quick, *RUN)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_is_taken_after_a_share_of_the_steps():
    for share, steps, taken in [
        (0.125, 1, 1), (0.125, 8, 1), (0.125, 9, 2), (0.125, 24, 3), (0.125, 800, 100),
        (0.25, 17, 5), (0.1, 30, 3), (0.07, 100, 7), (0.999, 10, 10),
    ]:  # fmt: skip
        course = ProgressSchedule.of(steps)
        assert [done for done in range(1, steps + 1) if course.passes(share, done)] == [taken]


def test_it_is_the_average_of_a_run_that_stopped_there_and_changes_nothing_else(quick, weak):
    """A run cannot turn it on afterwards."""
    found = model_file.load(weak)
    assert found.weak_step == 3
    quick(*RUN, "--stop-at", 3, "--no-keep-weak")
    assert same(found.weak, model_file.load(MODEL).ema)
    quick("--resume", "--keep-weak", "-q").fails(2, "--keep-weak")
    quick(*RUN, "--resume")
    plain = model_file.load(MODEL)
    assert same(found.ema, plain.ema)
    assert same(found.raw, plain.raw)
    assert (plain.weak, plain.weak_step) == (None, None)


@pytest.mark.parametrize("stop", [2, 3])
def test_stopped_and_resumed_equals_one_go(quick, weak, stop):
    """A share of its own in earlier files is ignored."""
    quick(*RUN, "--stop-at", stop)
    assert model_file.load(MODEL).weak_step == (None if stop == 2 else 3)
    config = Path("model.run/config.toml")
    config.write_text("weak_after = 0.25\n" + config.read_text())
    assert quick("--resume").code == 0
    assert MODEL.read_bytes() == weak.read_bytes()
    config.write_text("weak_after = 0.25\n" + config.read_text())
    assert quick("--config", config, "--steps", 1, "-o", OTHER).code == 0


def test_checkpoints_carry_it_and_are_models_with_it(quick, weak):
    quick(*RUN, "--save-every", 2, "--stop-at", 4)
    saved = RunDirectory(MODEL).load()[0]
    assert saved.state["weak_step"] == 3
    averages = {step: model_file.load(f"model.run/checkpoints/step-{step:08d}") for step in (2, 4)}
    assert averages[2].weak is None
    assert same(averages[4].weak, model_file.load(weak).weak)
    assert tomllib.loads(Path("model.run/config.toml").read_text())["keep_weak"] is True


def test_a_longer_run_keeps_what_it_has(quick, weak, lab, copy_run):
    copy_run(*lab.quick, *RUN)
    assert quick("--steps", 24, "--resume").code == 0
    found = model_file.load(MODEL)
    assert (found.step, found.weak_step) == (24, 3)
    assert same(found.weak, model_file.load(weak).weak)


def test_a_shorter_run_takes_it_at_once(quick):
    """After 2 of 17 steps it is not due, and of 9 steps it was due after 2."""
    assert quick(*RUN, "--stop-at", 2).code == 0
    assert model_file.load(MODEL).weak_step is None
    assert quick("--steps", 9, "--resume").code == 0
    assert model_file.load(MODEL).weak_step == 3


@pytest.mark.parametrize("step", [2, 4])
def test_the_best_model_has_it_from_its_step_on(quick, monkeypatch, step):
    """Its file is written again when weights of a later step are there."""
    measure_by_step(monkeypatch, {2: 0.9, step: 0.5, 6: 0.7}, lambda step: None)
    best = Path("model.best.safetensors")
    line = (*RUN, "--eval-every", 2, "--eval-images", 6)
    quick(*line, "--stop-at", 2)
    assert model_file.load(best).weak is None
    quick(*line, "--resume", "--stop-at", 6)
    found, own = model_file.load(best), model_file.load(MODEL)
    assert (found.step, found.weak_step, own.weak_step) == (step, 3 if step == 4 else None, 3)
    assert found.weak is None if step == 2 else same(found.weak, own.weak)
    before = best.read_bytes()
    best.unlink()
    quick(*line, "--resume", "--stop-at", 6)
    assert best.read_bytes() == before
