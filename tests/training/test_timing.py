"""The time of a step is measured in bounded time, and a hopeless run is called so."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
from file_operations import giving

from diffuse_cli.core import Conditions, Space
from diffuse_cli.core.denoising_errors import POINTS
from diffuse_cli.system.events import Notice, Progress, finish
from diffuse_cli.training import run_length, time_estimate
from diffuse_cli.training.chores import preview_spacing
from diffuse_cli.training.configuration import complete_config, configure
from diffuse_cli.training.cost_estimate import TrainingEstimate, count_at_half_size
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.run_length import Forecast, warn_of_few_steps, warn_of_long_run
from diffuse_cli.training.time_budget import ENOUGH
from diffuse_cli.training.time_estimate import (
    QUICK,
    Stopwatch,
    estimate_step_seconds,
    fill_minutes,
)
from diffuse_cli.training.training_data import TrainingData


@dataclasses.dataclass(frozen=True)
class Images:
    stored: np.ndarray


def plan_of(side=32, channels=1, **given):
    config = configure({"data": "x", "preset": "tiny", **given})
    space = Space(channels=channels, size=(side, side))
    config, blueprint = complete_config(config, space, Conditions())
    images = Images(np.zeros((4, channels, side, side), np.uint8))
    return Plan(config, blueprint, TrainingData(images, np.arange(4), np.arange(0)))


@pytest.fixture
def machine(monkeypatch):
    """Steps take `fixed` seconds and `each` for every image of 32x32; the first one is `cold`."""
    now, steps = [0.0], []

    def make(fixed=0.0, each=0.01, cold=0.0):
        class Trainer:
            batches = SimpleNamespace(close=lambda: None)

            def __init__(self, plan, accelerator):
                self.pixels = math.prod(plan.blueprint.space.size) / 32**2

            def resize(self, images, parts):
                self.images, self.parts = images, parts

            def step(self, number):
                first = cold if not steps else 0
                now[0] += fixed * self.parts + each * self.images * self.pixels + first
                steps.append((self.images, self.parts, self.pixels))

            def wait(self):
                pass

        monkeypatch.setattr(time_estimate, "Trainer", Trainer)
        monkeypatch.setattr(Stopwatch, "measure_pass", giving(None))
        monkeypatch.setattr(time_estimate.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(time_estimate, "gather_object", lambda values: values)
        device = SimpleNamespace(type="cpu")
        accelerator = SimpleNamespace(num_processes=1, device=device, free_memory=lambda: None)
        return SimpleNamespace(accelerator=accelerator, now=now, steps=steps)

    return make


def filled(here, **given):
    """The plan with the steps that fill its minutes, and its budget."""
    plan = plan_of(**given)
    config, budget = run(fill_minutes(plan, here.accelerator))[0]
    return dataclasses.replace(plan, config=config), budget


def run(work):
    """The result of some work, and its events."""
    events = []
    return finish(work, events.append), events


# -- measuring ------------------------------------------------------------------------------------


def test_quick_steps_are_measured_as_they_will_be(machine):
    here = machine(fixed=0.02, each=0.001, cold=3)
    plan = plan_of(batch_size=64)
    found, _ = run(Stopwatch(plan, here.accelerator, 20).seconds(plan.config))
    assert found == pytest.approx(0.084)
    assert [images for images, *_ in here.steps[:9]] == [1] * 3 + [4] * 3 + [16] * 3
    assert {step[:2] for step in here.steps[9:]} == {(64, 1)}
    assert here.now[0] < 10


@pytest.mark.parametrize("each", [0.05, 0.5, 5.0, 15.0])
@pytest.mark.parametrize("parts", [1, 4])
def test_slow_steps_are_extrapolated_within_the_time_given(machine, each, parts):
    here = machine(fixed=0.1, each=each)
    plan = plan_of(batch_size=64, accumulation=parts)
    found, events = run(Stopwatch(plan, here.accelerator, 20).seconds(plan.config))
    assert found == pytest.approx(0.1 * parts + each * 64, rel=0.05)
    assert here.now[0] <= 20 + each
    assert all(isinstance(e, Progress) and e.done < e.total == 20 for e in events)
    assert len(events) == len(here.steps)


def test_what_a_step_takes_however_many_its_images_is_counted_once(machine):
    here = machine(fixed=1.0, each=0.05)
    plan = plan_of(batch_size=64)
    found, _ = run(Stopwatch(plan, here.accelerator, 20).seconds(plan.config))
    assert {images for images, *_ in here.steps} == {1, 4, 16}
    assert found == pytest.approx(1.0 + 0.05 * 64, rel=0.1)


def test_an_image_that_takes_longer_than_all_the_time_is_one_step(machine):
    here = machine(each=100.0)
    plan = plan_of(batch_size=64)
    found, _ = run(Stopwatch(plan, here.accelerator, 20).seconds(plan.config))
    assert (found, here.now[0]) == (6400, 100)


def test_a_large_image_is_first_tried_by_a_part_of_it(machine):
    """A whole one would take 5 minutes."""
    here = machine(each=300 / 64)
    plan = plan_of(side=256, channels=3, preset="ddpm-celebahq-256", batch_size=64)
    found, _ = run(Stopwatch(plan, here.accelerator, 20).seconds(plan.config))
    assert found == pytest.approx(300 * 64)
    assert set(here.steps) == {(1, 1, 4)}
    assert here.now[0] < 20 + 300 / 16


def test_a_large_image_on_a_quick_machine_is_measured_whole(machine):
    here = machine(each=0.0001)
    plan = plan_of(side=256, channels=3, preset="ddpm-celebahq-256", batch_size=64)
    found, _ = run(Stopwatch(plan, here.accelerator, 20).seconds(plan.config))
    assert found == pytest.approx(64 * 64 * 0.0001)
    assert here.steps[0] == (1, 1, 4)
    assert here.steps[-1] == (64, 1, 64)


def test_a_part_that_the_network_does_not_suit_is_left_out(machine, monkeypatch):
    """A quarter of the side is 72, which is halved three times; the network halves five times."""
    here = machine(each=0.0001)
    plan = plan_of(side=288, channels=3, preset="ddpm-celebahq-256", batch_size=1)
    fake = time_estimate.Trainer
    made = lambda plan, accelerator: (plan.blueprint.shapes, fake(plan, accelerator))[1]  # noqa: E731
    monkeypatch.setattr(time_estimate, "Trainer", made)
    found, _ = run(Stopwatch(plan, here.accelerator, 20).seconds(plan.config))
    assert found == pytest.approx(0.0001 * 288**2 / 32**2)


def test_a_network_that_compiles_is_measured_as_it_will_be(machine):
    here = machine(each=0.1, cold=60)
    plan = plan_of(batch_size=64, compile=True)
    found, _ = run(Stopwatch(plan, here.accelerator, 20).seconds(plan.config))
    assert found == pytest.approx(6.4)
    assert {step[:2] for step in here.steps} == {(64, 1)}


def test_a_dry_run_measures_briefly_unless_it_is_asked_to_measure(machine):
    here = machine(fixed=0.1, each=0.05)
    for measure in (False, True):
        plan = plan_of(batch_size=64, dry_run=True, measure=measure)
        watch = Stopwatch(plan, here.accelerator, 20)
        assert run(watch.seconds(plan.config))[0] == pytest.approx(3.3, rel=0.1)
        assert (QUICK < watch.spent <= 20) == measure


@pytest.mark.parametrize(("minutes", "seconds"), [(0.01, 1), (3, 9), (10, 20), (600, 20)])
def test_measuring_takes_at_most_a_share_of_the_minutes(machine, minutes, seconds):
    here = machine(each=seconds / 4)
    plan, budget = filled(here, minutes=minutes)
    assert here.now[0] <= seconds * 5 / 4
    assert budget.step == pytest.approx(seconds / 4 * plan.config.batch_size)


@pytest.mark.parametrize(("minutes", "times"), [(2, 2), (10, 5), (100, 8)])
def test_measuring_steps_and_what_comes_beside_them_fill_the_minutes(machine, minutes, times):
    """Previews of 320 passes, and the errors of four images at the end.

    24 passes are taken to last as long as a step of 8 images.
    """
    here = machine(fixed=0.02, each=0.005)
    plan, budget = filled(here, minutes=minutes, batch_size=8)
    assert 1 < budget.used == here.now[0] < 2
    assert budget.step == pytest.approx(0.06)
    steps = plan.config.steps
    previews = -(-steps // preview_spacing(plan, steps))
    assert previews == times
    expected = (minutes * 60 - here.now[0]) / 0.06 - (times * 320 + POINTS * 4) / 24
    assert steps == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("each", [0.0001, 0.005, 0.3])
def test_the_batch_does_not_depend_on_the_speed_of_a_busy_machine(machine, monkeypatch, each):
    """1,536 steps of 16 images at 128x128 take about 21 minutes of a thread in float32."""
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    here, large = machine(each=each), {"side": 128, "channels": 3, "precision": "fp32"}
    batches = {m: filled(here, minutes=m, **large)[0].config.batch_size for m in (12, 25, 40, 60)}
    assert batches == {12: 8, 25: 16, 40: 16, 60: 32}
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert filled(here, minutes=12, **large)[0].config.batch_size == 16


def test_a_dry_run_predicts_steps_that_are_too_slow_to_time(machine):
    """Two images of 256x256 take a core hours by `adm-256`; nothing is built to say so."""
    here = machine(each=0.1)
    slow = {"side": 256, "channels": 3, "preset": "adm-256", "batch_size": 2, "dry_run": True}
    for measure in (True, False):
        plan = plan_of(**slow, measure=measure)
        here.steps.clear()
        seconds, events = run(Stopwatch(plan, here.accelerator, 20).seconds(plan.config))
        assert bool(here.steps) == measure
        assert any(isinstance(e, Notice) and "--measure" in e.text for e in events) != measure
    assert 10 < seconds < 1000


def test_a_preview_is_counted_by_the_time_of_its_passes(machine, monkeypatch):
    here = machine(fixed=0.02, each=0.005)
    monkeypatch.setattr(Stopwatch, "measure_pass", giving(0.001))
    plan, budget = filled(here, minutes=2, batch_size=8)
    left = 120 - here.now[0] - 2 * 0.32
    assert plan.config.steps == pytest.approx(left / 0.06 - POINTS * 4 / 24, abs=1)
    assert budget.costs["preview"] == pytest.approx([0.32 / 0.06])


def test_a_pass_is_timed_as_a_preview_takes_it(quick):
    """On a real network: 16 images in a step of sampling, and none where no time is left."""
    found = []
    real = Stopwatch.measure_pass

    def a_pass(self, plan, step):
        self.budget = 1e3
        found.append((yield from real(self, plan, step)))
        self.budget = 0
        found.append((yield from real(self, plan, step)))
        return found[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stopwatch, "measure_pass", a_pass)
        patch.setattr(time_estimate, "BRIEFLY", 0.0)
        assert quick("--minutes", 0.01, "--stop-at", 1, "-q").code == 0
    assert 1e-6 < found[0] < 0.1
    assert found[1] is None


def test_a_pass_of_few_images_at_a_time_is_not_that_of_a_whole_preview(monkeypatch):
    """Where memory has room for 2 images, a step of sampling is timed with 2."""
    asked = []
    watch = Stopwatch(plan_of(batch_size=8), SimpleNamespace(device="cpu"), 100)
    watch._trainer = SimpleNamespace(ema_net=None, device="cpu", wait=lambda: None)
    drawings = lambda plan, net, images, device: asked.append(images) or iter(range(9))  # noqa: E731
    monkeypatch.setattr(time_estimate.previews, "generate_by_default", drawings)
    monkeypatch.setattr(time_estimate, "gather_object", lambda values: values)
    run(watch.measure_pass(dataclasses.replace(watch.plan, room=2), 0.01))
    assert asked == [2]


def test_the_part_of_a_large_image_has_a_smaller_wiener_filter(diffuse, images, monkeypatch):
    """On a real network, which was built for the whole image."""
    found = []
    real = Stopwatch._estimate_from_part

    def part(self, plan):
        found.append((yield from real(self, plan)))
        return found[0]

    monkeypatch.setattr(time_estimate, "LARGE", 0)
    monkeypatch.setattr(Stopwatch, "_estimate_from_part", part)
    large = ("--size", 64, "--preset", "tiny", "--width", 8, "--minutes", 0.01, "--stop-at", 1)
    ran = diffuse("train", images, *large, "-q")
    assert ran.code == 0, ran.err
    assert found[0] > 0


def test_the_time_of_a_step_is_a_task_that_ends(machine):
    here = machine(each=0.01)
    _, events = run(fill_minutes(plan_of(minutes=3), here.accelerator))
    assert events[-1] == Progress(time_estimate.TASK, 9, 9)
    assert all(e.done < 9 for e in events[:-1])


# -- what is hopeless -----------------------------------------------------------------------------


def config_of(**given):
    return plan_of(**{"batch_size": 8, **given}).config


@pytest.mark.parametrize(
    ("given", "seconds", "says"),
    [
        ({"steps": 14}, None, "14 steps are too few: samples will be noise. Try --steps 300."),
        ({"steps": 299}, None, "299 steps are few: samples will be rough. Try --steps 300."),
        ({"steps": 300}, None, None),
        (
            {"steps": 149, "batch_size": 64},
            None,
            "149 steps are few: samples will be rough. Try --steps 150.",
        ),
        ({"steps": 150, "batch_size": 64}, None, None),
        (
            {"steps": 74, "batch_size": 64},
            None,
            "74 steps are too few: samples will be noise. Try --steps 150.",
        ),
        ({"steps": 14, "init": "m.safetensors"}, None, None),
        # 128x128 has 4x4 patches, and costs what 32x32 costs without.
        ({"steps": 14, "side": 128}, 13.0, "noise. Try --minutes 65."),
        (
            {"steps": 166, "side": 128},
            1.7,
            "166 steps are few: samples will be rough. Try --size 16, or --min",
        ),
        ({"steps": 60, "side": 256, "channels": 3}, 13.0, "Try --size 96, or --min"),
        (
            {"steps": 14, "side": 28},
            13.0,
            "14 steps are too few: samples will be noise. Try --minutes 65.",
        ),
        ({"steps": 14, "preset": "base", "side": 128}, 13.0, "Try --preset tiny, or --minutes 65."),
        (
            {"steps": 1, "preset": "base", "side": 128},
            1300.0,
            "1 step is too few: samples will be noise. Try --preset tiny.",
        ),
    ],
)
def test_too_few_steps_to_draw_anything_are_called_so(given, seconds, says):
    init = given.pop("init", None)
    config = dataclasses.replace(config_of(**given), init=init)
    found = list(warn_of_few_steps(config, seconds))
    assert bool(found) == bool(says)
    if says:
        assert found[0].warning
        assert says in found[0].text
        assert found[0].text.endswith(says) or says.endswith("--min")


@pytest.mark.parametrize("slowness", [0.5, 1, 2, 4])
def test_the_minutes_that_are_named_draw_something(machine, slowness):
    """Whatever is typed, as many steps follow as are needed, also on a slower machine."""
    small = {"preset": "small", "precision": "fp32"}
    predicted = time_estimate.predict_step_seconds(plan_of(minutes=1, **small), 64, 1) / 64
    here = machine(each=slowness * predicted)
    few, budget = filled(here, minutes=0.25, **small)
    text = next(warn_of_few_steps(few.config, estimate_step_seconds(few, budget))).text
    minutes = float(text.partition("--minutes ")[2].rstrip("."))
    enough, budget = filled(here, minutes=minutes, **small)
    assert not list(warn_of_few_steps(enough.config, estimate_step_seconds(enough, budget)))
    assert run_length.FEWEST <= enough.config.steps < 1.1 * run_length.FEWEST


def test_processes_of_different_speeds_choose_the_same_batch_size(machine, monkeypatch):
    """The time is that of the slowest of them."""
    here, plan = machine(each=1e-4), plan_of(minutes=10)
    steps = ENOUGH[64] * time_estimate.predict_step_seconds(plan, 64, 1)
    assert filled(here, minutes=1.001 * steps / 60)[0].config.batch_size == 64
    monkeypatch.setattr(time_estimate, "gather_object", lambda own: [*own, 1.5 * own[0]])
    assert filled(here, minutes=1.001 * steps / 60)[0].config.batch_size == 32


def test_days_are_called_so():
    config = config_of(side=128)
    assert not list(warn_of_long_run(config, 17.0, 5000))
    found = list(warn_of_long_run(config, 57.0, 5000))
    assert [(n.text, n.warning) for n in found] == [
        ("5,000 steps of 57 s take 3 days. Try --size 16, or --minutes 290.", True)
    ]


def test_a_slow_run_says_early_how_long_it_will_take(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_length.time, "monotonic", lambda: now[0])

    def said(seconds, steps, start=0, **given):
        """By step, what is said of a run of such steps."""
        config = dataclasses.replace(config_of(side=128), **given)
        forecast, found = Forecast(config, start, steps), {}
        for step in range(start + 1, min(steps, start + 200) + 1):
            now[0] += seconds + 3 * (step == 1)
            for notice in forecast.report(step):
                found.setdefault(step, []).append(notice.text)
        return found

    assert said(6.0, 5000) == {3: ["6 s per step: 8.3 hours left"]}
    assert said(6.0, 5000, start=1000) == {1003: ["6 s per step: 6.7 hours left"]}
    assert said(6.0, 5000, start=1049) == {}, "the log is next"
    assert said(0.01, 5000) == {}
    assert said(6.0, 8) == {}, "it ends in a minute"
    assert said(0.15, 5000) == {}, "the log says it first"
    assert said(0.15, 5_000_000) == {
        68: ["4,999,932 steps of 0.15 s take 9 days. Try --minutes 0.75."]
    }
    assert list(said(60.0, 5000)) == [1]
    assert list(said(60.0, 5000, compile=True)) == [2]


def test_train_and_dry_run_warn_and_go_on(quick, step_takes):
    step_takes(0.01)
    warning = "warning: 4 steps are too few: samples will be noise. Try --steps 300.\n"
    ran = quick("--steps", 4)
    assert ran.code == 0
    assert warning in ran.err
    ran = quick("--steps", 4, "--dry-run")
    assert ran.code == 0
    assert warning in ran.err
    assert "too few" not in quick("--steps", 5, "--resume").err
    assert "too few" not in quick("--steps", 4, "--init", "model.safetensors", "--dry-run").err


def test_a_dry_run_of_a_resume_counts_the_steps_that_are_left(quick, step_takes):
    step_takes(1.0)
    assert quick("--steps", 4, "--stop-at", 3, "-q").code == 0
    dry = ("--dry-run", "--json")
    whole = quick("--steps", 4, *dry, "-o", "other.safetensors").json
    left = quick("--resume", *dry).json
    assert whole["seconds"] - left["seconds"] == pytest.approx(3, abs=0.11)
    assert (whole["images_seen"], left["images_seen"]) == (32, 8)
    ran = quick("--steps", 2, "--resume", "--dry-run", "-q")
    assert ran.code == 2
    assert "--steps 2 is less than the 3 steps already taken" in ran.line


def test_a_slow_run_says_so_while_it_trains(quick, monkeypatch):
    monkeypatch.setattr(run_length, "SLOW", -1)
    monkeypatch.setattr(run_length, "MINUTE", 0)
    monkeypatch.setattr(run_length, "DAY", 0)
    ran = quick("--steps", 4)
    assert ran.code == 0
    assert ran.err.count("s per step: 0.0 minutes left\n") == 1
    assert ran.err.count("warning: 3 steps of 0.") == 1


def test_minutes_that_are_too_few_are_called_so(train, step_takes):
    step_takes(100.0)
    for more in ((), ("--dry-run",)):
        ran = train("--minutes", 10, "--stop-at", 1, *more)
        assert ran.code == 0
        assert (
            "warning: 10 steps are too few: samples will be noise. Try --minutes 510.\n" in ran.err
        )


# -- images in the time ---------------------------------------------------------------------------


def test_half_of_the_size_sees_more_images_by_the_operations_of_its_network():
    def at_half(side, channels=3):
        asked = configure({"data": "x", "preset": "tiny"})
        return count_at_half_size(asked, plan_of(side, channels, steps=10, batch_size=8))

    size, seen = at_half(128)
    assert size == (64, 64)
    assert 3.5 * 80 < seen < 4.5 * 80
    assert 80 < at_half(128, channels=1)[1] < 1.5 * 80, "it has patches of a quarter of the area"
    assert at_half(64) is None
    assert at_half(72) is None, "36 is not halved often enough"


@pytest.mark.parametrize(
    ("samples", "half", "says"),
    [
        (1000, ((64, 64), 710_400), "1,000 images 153 times. At 64x64: 710,000"),
        (153_400, None, "153,400 images 1 time"),
        (1_000_000, None, "1,000,000 images 0.153 times"),
    ],
)
def test_a_dry_run_says_how_many_images_it_sees(samples, half, says):
    config = plan_of(128, steps=15_340, batch_size=10).config
    lines = TrainingEstimate(config, 1, 1, 3600.0, samples, half).to_toml().splitlines()
    assert lines[1] == f"# 128x128: 153,000 images in 60.0 minutes, each of {says}"
