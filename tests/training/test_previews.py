"""When previews are drawn, and who gets them."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import PREVIEW_STEPS, RUN, logged
from lab import QUICK
from PIL import Image

from diffuse_cli.core import Conditions
from diffuse_cli.media import figures
from diffuse_cli.system.accelerator import log_image
from diffuse_cli.training import chores
from diffuse_cli.training.chores import preview_spacing
from diffuse_cli.training.plan import Plan


def previews(run=RUN):
    return {int(p.stem[5:]): p.read_bytes() for p in sorted((run / "previews").iterdir())}


def plan_of(steps, batch_size=64, held_out=96, classes=0, train=0):
    config = SimpleNamespace(
        steps=steps, batch_size=batch_size, images_per_step=batch_size, num_timesteps=1000,
        label_dropout=0.1, loss="simple", preview_every=None, eval_every=None, save_every=None,
        keep_weak=True, distills=False,
    )  # fmt: skip
    conditions = Conditions(classes=tuple(map(str, range(classes))))
    blueprint = SimpleNamespace(conditions=conditions, wiener=False)
    images = np.arange(train + held_out)
    data = SimpleNamespace(held_out=images[train:], train=images[:train], images=images)
    return Plan(config, blueprint, data)


@pytest.mark.parametrize(
    ("plan", "every"),
    [
        (plan_of(5000), 625),
        (plan_of(1_000_000), 125_000),
        (plan_of(10_000, batch_size=8), 2600),  # a 150th of the time: 150 x (16 x 20 + 96) / 24
        (plan_of(1501, batch_size=8), 751),  # the middle
        (plan_of(301, batch_size=16), 151),
        (plan_of(301, batch_size=8), 174),  # a tenth: 10 x (16 x 20 + 96) / 24
        (plan_of(26, batch_size=8), 174),
        (plan_of(26, batch_size=8, held_out=10_000), 347),  # 512 of them are measured
        (plan_of(26, batch_size=8, classes=10), 307),  # guidance
    ],
)
def test_a_run_has_about_eight_previews_or_as_many_as_are_cheap(plan, every):
    assert preview_spacing(plan, plan.config.steps) == every


def test_the_images_that_are_measured_are_spread_over_all():
    """Held-out images are in the order of their folders."""
    measured = plan_of(1, held_out=5120).measured
    assert len(measured) == 512
    assert np.diff(measured).max() == 11
    assert (measured[0], measured[-1]) == (0, 5119)


def test_a_distilled_model_is_previewed_at_the_cost_of_its_own_steps():
    plan = plan_of(26, batch_size=8, classes=10)
    steps = SimpleNamespace(steps=2, guidance=1.0)
    plan = replace(plan, teacher=SimpleNamespace(sampling=lambda blueprint: steps))
    # Ten times the time, without guidance: 10 x (16 x 2 + 96) / (3 x 8).
    assert preview_spacing(plan, plan.config.steps) == 54


@pytest.mark.parametrize(
    ("train", "held_out", "batch_size", "steps"),
    [(3277, 172, 32, 3900), (1462, 84, 32, 4211), (1062, 57, 8, 3100), (100_000, 5000, 64, 2500)],
)
def test_ten_minutes_spend_a_fiftieth_on_chores_besides_trials(train, held_out, batch_size, steps):
    """Previews with held-out losses, looks for copies, and errors of x_0."""
    plan = plan_of(steps, batch_size, held_out, train=train)
    listed = list(chores.plan_chores(plan)(steps))
    costs = {chore.name: chore.times(0, steps) * chore.cost for chore in listed}
    assert sum(costs[name] for name in costs if name != chores.SETTINGS) <= steps / 50
    assert chores.COPIES not in costs, "each image is seen fewer than 100 times"
    assert next(chore for chore in listed if chore.name == chores.PREVIEW).times(0, steps) >= 2


@pytest.mark.parametrize(
    ("train", "held_out", "images"), [(38, 0, 38), (100, 9, 9), (3277, 172, 172)]
)
def test_errors_are_measured_on_images_that_there_are(train, held_out, images):
    plan = plan_of(1_000_000, held_out=held_out, train=train)
    assert chores.count_measured_images(plan, 1_000_000) == images


def test_a_resumed_run_has_the_previews_of_one_in_one_go(diffuse, images, monkeypatch):
    monkeypatch.setattr(chores, "SHARE", 0)
    Path("plain.toml").write_text(QUICK.read_text().replace("preview_every", "# preview_every"))
    line = ("train", images, "--config", "plain.toml", "--steps", 22, "-q")
    assert diffuse(*line, "-o", "whole.safetensors").code == 0
    assert list(previews(Path("whole.run"))) == [3, 6, 9, 12, 15, 18, 21, 22]
    assert diffuse(*line, "--stop-at", 9).code == 0
    assert diffuse("train", images, "--resume", "-q").code == 0
    assert previews() == previews(Path("whole.run"))


def test_a_typed_number_stays_with_the_run_and_may_change(quick):
    options = ("--steps", 12, "--preview-every", 4, "-q")
    assert quick(*options, "--stop-at", 4).code == 0
    assert tomllib.loads((RUN / "config.toml").read_text())["preview_every"] == 4
    assert quick("--resume", "--stop-at", 8, "--preview-every", 4).code == 0
    assert list(previews()) == [4, 8]
    assert quick("--resume", "--preview-every", 3).code == 0
    assert list(previews()) == [4, 8, 9, 12]


def test_a_checkpoint_is_saved_with_a_preview_for_others_to_see_the_same(quick, diffuse):
    assert quick("--steps", 10, "--preview-every", 4, "--stop-at", 5, "-q").code == 0
    assert [p.name for p in sorted((RUN / "checkpoints").iterdir())] == [
        "step-00000004", "step-00000005",
    ]  # fmt: skip
    line = ("-n", 16, "--precision", "fp32", "--steps", PREVIEW_STEPS)
    assert diffuse("sample", RUN / "checkpoints/step-00000004", *line).code == 0
    drawn = np.asarray(Image.open("samples/grid.png"), int)
    shown = np.asarray(Image.open(RUN / "previews/step-00000004.png"), int)
    assert np.abs(drawn - shown).max() <= 1


def test_tensorboard_gets_the_previews_and_the_kid(quick):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    line = ("--steps", 6, "--preview-every", 3, "--log", "tensorboard", "-q")
    assert quick(*line, "--eval-every", 6, "--eval-images", 4).code == 0
    images, kids = [], []
    for path in (RUN / "logs").rglob("events.out.tfevents*"):
        log = EventAccumulator(str(path), size_guidance={"images": 0})
        log.Reload()
        images += log.Images("preview") if log.Tags()["images"] else []
        kids += log.Scalars("kid") if "kid" in log.Tags()["scalars"] else []
    assert [image.step for image in images] == [3, 6]
    assert [kid.value for kid in kids] == pytest.approx(logged("kid"))
    for image in images:
        Path("logged.png").write_bytes(image.encoded_image_string)
        own = (Path("logged.png"), RUN / f"previews/step-{image.step:08d}.png")
        shown = [np.asarray(Image.open(path).convert("RGB")) for path in own]
        assert np.array_equal(*shown)


def test_each_tracker_gets_a_picture_as_it_takes_it():
    got = {}

    def taking(name):
        def log_images(values, step=None, **more):
            got[name] = (values["preview"].shape, step, more)

        return SimpleNamespace(name=name, log_images=log_images)

    grid = figures.arrange_grid(np.zeros((3, 1, 64, 64), np.uint8))
    trackers = [taking("tensorboard"), taking("wandb"), SimpleNamespace(name="mlflow")]
    log_image(SimpleNamespace(trackers=trackers), "preview", grid, 7)
    shape = (1, 130, 130, 3)
    assert got == {"tensorboard": (shape, 7, {"dataformats": "NHWC"}), "wandb": (shape, 7, {})}
