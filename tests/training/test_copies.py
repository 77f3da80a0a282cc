"""Copies of training images: a run of few images looks for them, and keeps a model without."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import MODEL, WHOLE, log_rows, mostly_slow
from lab import QUICK
from PIL import Image

from diffuse_cli.core.conditions import ConditioningArray, Conditions
from diffuse_cli.metrics.memorization import Signs, find_signs
from diffuse_cli.system.events import StopRequest, finish
from diffuse_cli.training import chores, monitor, overfitting, previews, validation
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.validation import CopyMeasure
from training.conftest import BEST, measure_by_step, step_of

LINE = ("--steps", 12, "--preview-every", 2)
COPIES, NONE = Signs("serious", 9), Signs("", 0)


@pytest.fixture
def looks(monkeypatch, undrawn):
    """Let the looks find copies at these steps; return the steps of the looks."""
    monkeypatch.setattr(chores, "plan_looks", lambda plan, steps: chores.Looks(2, 4))
    asked: list[int] = []

    def find(*steps):
        def found(self):
            yield from ()
            step = self.trainer.ema.updates
            asked.append(step)
            return {"memorized_pixels": 0.1}, COPIES if step in steps else NONE

        monkeypatch.setattr(monitor.Monitor, "find_copies", found)
        return asked

    return find


# -- what is kept ---------------------------------------------------------------------------------


def test_the_last_weights_without_copies_are_kept_and_it_is_said(quick, looks):
    asked = looks(8, 10, 12)
    ran = quick(*LINE, "--json").ok()
    assert asked == [2, 4, 6, 8, 10, 12]
    assert step_of(MODEL) == 6
    assert (ran.json["step"], ran.json["kept"], ran.json["copies_from"]) == (12, 6, 8)
    said = "The model file has step 6: from step 8 on, samples were copies of training images"
    assert said in ran.err
    assert ran.err.count("samples are copies") == 3
    assert ran.err.count("no signs of copies") == 3
    assert [m["step"] for m in log_rows() if "memorized_pixels" in m] == asked
    assert not BEST.exists()


def test_a_run_without_copies_keeps_the_last_weights_to_the_byte(quick, looks):
    looks(4)
    ran = quick(*LINE, "--json")
    assert step_of(MODEL) == 12
    assert "The model file has step" not in ran.err
    assert "Samples of this model" not in ran.err
    assert ran.json["copies_from"] is None
    quick(*LINE, "--keep", "last", "-o", WHOLE)
    assert MODEL.read_bytes() == WHOLE.read_bytes()


def test_a_run_of_copies_only_says_so(quick, looks, monkeypatch):
    """An overfitting warning names no best file without one."""
    looks(*range(13))
    monkeypatch.setattr(overfitting.Overfitting, "add_measurement", lambda self, now: "overfitting")
    ran = quick(*LINE)
    assert step_of(MODEL) == 12
    assert "Samples of this model are copies: from step 2 on" in ran.err
    assert "Add images, or train for fewer steps" in ran.err
    assert "warning: overfitting\n" in ran.err


def test_the_lowest_kid_is_not_that_of_copies(quick, looks, monkeypatch):
    """Copies have the best KID."""
    looks(8, 10, 12)
    measure_by_step(monkeypatch, {4: 0.5, 6: 0.7, 8: 0.3, 12: 0.1}, lambda step: None)
    ran = quick(*LINE, "--eval-every", 2, "--eval-images", 6, "--json").ok()
    assert ran.json["best"]["step"] == step_of(BEST) == step_of(MODEL) == 4
    assert quick(*LINE, "--eval-every", 2, "--keep", "last", "--overwrite").code == 0
    assert step_of(MODEL) == 12


def test_keep_best_is_the_lowest_kid(quick, looks, monkeypatch):
    """A resumed run can add evaluations: the weights that were kept so far have no KID."""
    looks()
    measure_by_step(monkeypatch, {4: 0.5, 6: 0.7}, lambda step: None)
    assert quick(*LINE, "--eval-every", 2, "--keep", "best").code == 0
    assert step_of(MODEL) == 4
    assert quick(*LINE, "--stop-at", 2, "--overwrite").code == 0
    ran = quick("--resume", "--eval-every", 2, "--json").ok()
    assert ran.json["best"]["step"] == step_of(BEST) == 4
    assert step_of(MODEL) == 12


@pytest.mark.parametrize("stop", mostly_slow([7, 8, 3, 11]))
def test_a_resumed_run_keeps_the_same(quick, looks, stop):
    """Where --stop-at ends nothing is looked for, as an uninterrupted run would not look there."""
    asked = looks(8, 10, 12)
    assert quick(*LINE, "-o", WHOLE).code == 0
    whole = [*asked]
    asked.clear()
    assert quick(*LINE, "--stop-at", stop).code == 0
    assert step_of(MODEL) in (stop, 6)
    assert quick(*LINE, "--resume").code == 0
    assert asked == whole
    assert MODEL.read_bytes() == WHOLE.read_bytes()
    assert step_of(MODEL) == 6


# -- what is looked for ---------------------------------------------------------------------------


@pytest.fixture
def plan(quick, trainers):
    """The plan of a run on the images."""
    assert quick("--steps", 1).code == 0
    return trainers[0].plan


def test_copies_are_found_and_new_images_are_not(plan):
    """Images without others held out are references of each other."""
    data, space = plan.data, plan.blueprint.space
    stored = np.ascontiguousarray(data.images.stored[data.train])
    network = validation.choose_network(space, stored, torch.device("cpu"))
    measure = CopyMeasure(plan, network)
    rng = np.random.default_rng(0)
    moved = np.clip(stored.astype(int) + rng.integers(-1, 2, stored.shape), 0, 255)
    for samples, level in ((moved.astype(stored.dtype), "serious"), (255 - stored, "")):
        values = finish(measure.compare(np.concatenate([samples] * 2)))
        signs = find_signs(values, 2 * len(stored))
        assert signs.level == level
        assert 0 < values["memorized_noticed"] <= 1
    alone = replace(plan, data=replace(data, held_out=np.zeros(0, np.int64)))
    values = finish(CopyMeasure(alone, network).compare(stored))
    assert values["memorized_references"] <= len(data.train)
    assert find_signs(values, len(stored)).level == "serious"


def test_a_run_that_may_become_longer_is_ready_to_look(quick, trainers, monkeypatch):
    """--minutes hold more steps on a quicker machine."""
    for few, ready in ((1, True), (1000, False)):
        monkeypatch.setattr(chores, "FEW", few)
        assert quick("--minutes", 0.05, "--overwrite").code == 0
        trainer = trainers[-1]
        judges = monitor.Monitor(trainer, RunDirectory(MODEL), StopRequest())
        assert judges._looks is None
        finish(judges.load_judges())
        assert (judges._copies is not None) is ready


def test_a_run_of_equal_images_has_no_references(diffuse, tmp_path, monkeypatch):
    """Nothing is known of copies there, and the run ends."""
    (tmp_path / "same").mkdir()
    for k in range(10):
        Image.new("L", (8, 8), 100).save(tmp_path / f"same/{k}.png")
    monkeypatch.setattr(chores, "plan_looks", lambda plan, steps: chores.Looks(2, 4))
    ran = diffuse("train", tmp_path / "same", "--config", QUICK, "--steps", 2).ok()
    assert "no signs of copies, of which there are too few images to be sure" in ran.err


@pytest.mark.parametrize("every", [10, 125, 5000])
def test_looks_take_a_small_part_of_the_run(plan, every, monkeypatch):
    monkeypatch.setattr(chores, "preview_spacing", lambda *_: every)
    known = chores.FEATURES * len(plan.data.images)
    for steps in (10, 100, 1000, 5000, 100_000):
        looks = chores.plan_looks(plan, steps)
        affordable = steps * previews.passes_of_step(plan) / chores.LOOKS_SHARE
        if looks is None:
            fewest = chores.passes_of_comparing(plan, chores.FEWEST_COMPARED)
            assert affordable < known + fewest
            continue
        assert looks.every % every == 0
        assert chores.FEWEST_COMPARED <= looks.count <= chores.MOST_COMPARED
        times = -(-steps // looks.every)
        assert times * chores.passes_of_comparing(plan, looks.count) + known <= affordable
        fewer = times * looks.count < chores.FEWEST_COMPARED * -(-steps // every)
        assert looks.every == every or fewer


def test_many_images_and_conditions_of_images_are_not_compared(plan, monkeypatch):
    """A model that is conditioned on images is asked for its training images."""
    monkeypatch.setattr(chores, "preview_spacing", lambda *_: 10**5)
    assert chores.plan_looks(plan, 10**6)
    conditions = Conditions(given=ConditioningArray(channels=1, what="mask:half"))
    told = replace(plan, blueprint=replace(plan.blueprint, conditions=conditions))
    assert chores.plan_looks(told, 10**6) is None
    monkeypatch.setattr(chores, "MANY", len(plan.data.train))
    assert chores.plan_looks(plan, 10**6) is None
