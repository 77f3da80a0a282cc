"""The time of a step is measured in bounded time, and a hopeless run is called so."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from diffuse_cli.config.presets import PRESETS
from diffuse_cli.config.train_options import STEP_LIMIT
from diffuse_cli.core import Conditions, Space
from diffuse_cli.system.events import Progress, finish
from diffuse_cli.training import cost_estimate, decisions, run_length, step_cost
from diffuse_cli.training.chores import plan_chores
from diffuse_cli.training.configuration import configure
from diffuse_cli.training.cost_estimate import TrainingEstimate, count_at_half_size
from diffuse_cli.training.decisions import complete_config
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.run_length import warn_of_few_minutes, warn_of_few_steps
from diffuse_cli.training.time_budget import ENOUGH, FIRST, Budget
from diffuse_cli.training.training_data import TrainingData


def plan_of(side=32, channels=1, **given):
    config = configure({"data": "x", "preset": "tiny", **given})
    return plan_of_space(config, Space(channels=channels, size=(side, side)))


def plan_of_space(config, space):
    config, blueprint = complete_config(config, space, Conditions())
    images = SimpleNamespace(stored=np.zeros((4, space.channels, *space.size), np.uint8))
    return Plan(config, blueprint, TrainingData(images, np.arange(4), np.arange(0)))


@pytest.fixture
def machine(monkeypatch):
    """Steps take `each` seconds for every image; the first one is `cold`."""
    now, steps = [0.0], []

    def make(each=0.01, cold=0.0):
        class Trainer:
            batches = SimpleNamespace(close=lambda: None)

            def __init__(self, plan, accelerator):
                self.images = plan.config.batch_size

            def step(self, number):
                now[0] += each * self.images + (0 if steps else cold)
                steps.append(number)

            def wait(self):
                pass

        monkeypatch.setattr(cost_estimate, "Trainer", Trainer)
        monkeypatch.setattr(cost_estimate.time, "monotonic", lambda: now[0])
        monkeypatch.setattr(cost_estimate, "gather_object", lambda values: values)
        device = SimpleNamespace(type="cpu")
        accelerator = SimpleNamespace(num_processes=1, device=device, free_memory=lambda: None)
        return SimpleNamespace(accelerator=accelerator, now=now, steps=steps)

    return make


def measure(machine, **given):
    """Measure the time of a step, and return the events."""
    events = []
    work = cost_estimate.measure_step_seconds(plan_of(**given), machine.accelerator)
    return finish(work, events.append), events


# -- measuring ------------------------------------------------------------------------------------


def test_steps_are_measured_in_seconds_without_the_first(machine):
    fake = machine(each=0.001, cold=30)
    seconds, events = measure(fake, batch_size=64)
    assert seconds == pytest.approx(0.064)
    count = cost_estimate.WARM_UP + cost_estimate.ENOUGH
    assert len(fake.steps) == count
    assert events[-1] == Progress(cost_estimate.TASK, count, count)
    before = fake.now[0]
    fake = machine(each=0.5)
    seconds, _ = measure(fake, batch_size=4)
    assert seconds == pytest.approx(2.0)
    assert fake.now[0] - before <= cost_estimate.QUICK + 2 * 2.0


def test_a_dry_run_predicts_steps_that_are_too_slow_to_time(machine):
    """Two images of 256x256 take a core hours by `adm-256`; nothing is built to say so."""
    fake = machine(each=0.1)
    seconds, events = measure(fake, side=256, channels=3, preset="adm-256", batch_size=2)
    assert (fake.steps, events) == ([], [])
    assert 10 < seconds < 1000


# -- batch size and first steps of --minutes ------------------------------------------------------


def filled(minutes, processes=1, **given):
    """The configuration that --minutes decide."""
    plan = plan_of(minutes=minutes, **given)
    return decisions.fill_minutes(plan.config, plan.blueprint, processes)


def test_minutes_are_filled_with_steps_of_the_predicted_time():
    config = filled(10, batch_size=8)
    seconds = step_cost.predict_seconds(config, plan_of(minutes=10).blueprint, 8, 1)
    assert (config.steps, config.batch_size, config.minutes) == (round(600 / seconds), 8, 10)
    assert filled(0.01, batch_size=8, side=64, preset="base").steps == FIRST


def test_minutes_hold_at_most_the_steps_that_can_be_asked_for(monkeypatch):
    monkeypatch.setattr(step_cost, "predict_seconds", lambda *_: 1e-4)
    assert filled(1_000_000, batch_size=8).steps == STEP_LIMIT


def test_the_batch_does_not_depend_on_the_speed_of_a_busy_machine(monkeypatch):
    """1,536 steps of 16 images at 128x128 take about 21 minutes of a thread in float32."""
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    large = {"side": 128, "channels": 3, "precision": "fp32"}
    batches = {m: filled(m, **large).batch_size for m in (12, 25, 60)}
    assert batches == {12: 8, 25: 16, 60: 32}
    rate = PRESETS["tiny"].train["lr"]
    assert filled(60, **large).lr == pytest.approx(rate * (32 / 64) ** 0.5)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert filled(12, **large).batch_size == 16


def test_processes_of_different_speeds_choose_the_same_batch_size(monkeypatch):
    """The time is that of the slowest of them."""
    plan = plan_of(minutes=10)
    steps = ENOUGH[64] * step_cost.predict_seconds(plan.config, plan.blueprint, 64, 1)
    assert filled(1.001 * steps / 60).batch_size == 64
    monkeypatch.setattr(step_cost, "gather_object", lambda own: [*own, own[0] / 1.5])
    assert filled(1.001 * steps / 60).batch_size == 32


def test_a_network_is_wider_if_minutes_leave_time_for_it(monkeypatch):
    monkeypatch.setattr(step_cost, "predict_speed", lambda *_: 1e11)
    enough = decisions.WIDE_OPERATIONS / 1e11 / 60

    def width(minutes, size=(64, 64), processes=1, **chosen):
        config = configure({"data": "x", "device": "cpu", "minutes": minutes, **chosen})
        return decisions.choose_width(config, Space(channels=1, size=size), processes).width

    assert (width(enough), width(0.99 * enough), width(enough / 2, processes=2)) == (64, None, 64)
    assert (width(enough, (65, 32)), width(enough, (64,))) == (None, None)
    for chosen in ({"preset": "slim"}, {"width": 16}, {"architecture": {"blocks": 2}}):
        assert width(enough, **chosen) == chosen.get("width")


def test_a_command_decides_on_the_width_and_later_ones_keep_it(diffuse, images, monkeypatch):
    monkeypatch.setattr(decisions, "WIDE_OPERATIONS", 0)

    def width(*more):
        line = ("train", images, "--minutes", 10, "--device", "cpu", "--dry-run", "--json")
        ran = diffuse(*line, *more)
        width = ran.json["config"]["width"]
        assert ("64 channels, because" in ran.err) == (width == 64)
        return width

    narrow = ("--preset", "tiny")
    assert (width(), width(*narrow), width("--width", 16)) == (64, 32, 16)
    assert diffuse("train", images, *narrow, "--minutes", 10, "--stop-at", 1).code == 0
    assert (width("--resume"), width("--init", "model.safetensors")) == (32, 32)


# -- what is hopeless -----------------------------------------------------------------------------


def config_of(**given):
    return plan_of(**{"batch_size": 8, **given}).config


@pytest.mark.parametrize(
    ("given", "seconds", "says"),
    [
        ({"steps": 14}, None, "14 steps are too few: samples will be noise. Try --steps 300."),
        ({"steps": 299}, None, "299 steps are few: samples will be rough. Try --steps 300."),
        ({"steps": 300}, None, None),
        ({"steps": 149, "batch_size": 64}, None, "149 steps are few: samples will be rough. Try "),
        ({"steps": 150, "batch_size": 64}, None, None),
        ({"steps": 74, "batch_size": 64}, None, "74 steps are too few: samples will be noise."),
        ({"steps": 14, "init": "m.safetensors"}, None, None),
        # 64x64 has 2x2 patches, and costs what 32x32 costs without.
        ({"steps": 14, "side": 64}, 13.0, "noise. Try --minutes 65."),
        ({"steps": 14, "side": 128}, 13.0, "noise. Try --minutes 65."),
        ({"steps": 166, "side": 64}, 1.7, "samples will be rough. Try --size 16, or --min"),
        ({"steps": 60, "side": 256, "channels": 3}, 13.0, "Try --size 96, or --min"),
        ({"steps": 14, "side": 28}, 13.0, "too few: samples will be noise. Try --minutes 65."),
        ({"steps": 14, "preset": "base", "side": 128}, 13.0, "Try --preset tiny, or --minutes 65."),
        ({"steps": 1, "preset": "base", "side": 128}, 1300.0, "1 step is too few: samples will be"),
    ],
)
def test_too_few_steps_to_draw_anything_are_called_so(given, seconds, says):
    init = given.pop("init", None)
    config = dataclasses.replace(config_of(**given), init=init)
    found = [n.warning and (says or "") in n.text for n in warn_of_few_steps(config, seconds)]
    assert found == [True] * bool(says)


def test_the_minutes_that_are_named_draw_something():
    """Whatever is typed, as many steps follow as are needed."""

    def fill(minutes):
        plan = plan_of(minutes=minutes, batch_size=8)
        budget = Budget(minutes, 0.1)
        steps = budget.fill(0, plan_chores(plan))
        return steps, [notice.text for notice in warn_of_few_minutes(plan, budget, steps)]

    _, texts = fill(0.2)
    minutes = float(texts[0].partition("--minutes ")[2].rstrip("."))
    steps, texts = fill(minutes)
    assert texts == []
    assert run_length.FEWEST <= steps < 1.1 * run_length.FEWEST


def test_days_are_called_so():
    config = config_of(side=128)
    assert not list(run_length.warn_of_long_run(config, 17.0, 5000))
    found = list(run_length.warn_of_long_run(config, 57.0, 5000))
    assert [(n.text, n.warning) for n in found] == [
        ("5,000 steps of 57 s take 3 days. Try --size 64, or --minutes 290.", True)
    ]


def test_a_slow_run_says_early_how_long_it_will_take(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(run_length.time, "monotonic", lambda: now[0])

    def said(seconds, steps, start=0, **given):
        """By step, what is said of a run of such steps."""
        config = dataclasses.replace(config_of(side=64), **given)
        forecast, found = run_length.Forecast(config, start, steps), {}
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


def test_train_and_dry_run_warn_and_go_on(train, step_takes):
    warning = "warning: 4 steps are too few: samples will be noise. Try --"
    for more in ((), ("--dry-run",)):
        step_takes(100.0)
        ran = train("--minutes", 10, "--stop-at", 1, *more, "--overwrite")
        assert (ran.code, f"{warning}minutes 510.\n" in ran.err) == (0, True)
        step_takes(0.01)
        assert f"{warning}steps 300.\n" in train("--steps", 4, *more, "--overwrite").ok().err
    assert "too few" not in train("--steps", 5, "--resume").err
    assert "too few" not in train("--steps", 4, "--init", "model.safetensors", "--dry-run").err


def test_a_dry_run_of_a_resume_counts_the_steps_that_are_left(quick, step_takes):
    step_takes(1.0)
    assert quick("--steps", 4, "--stop-at", 3, "-q").code == 0
    dry = ("--dry-run", "--json")
    whole = quick("--steps", 4, *dry, "-o", "other.safetensors").json
    left = quick("--resume", *dry).json
    assert whole["seconds"] - left["seconds"] == pytest.approx(3, abs=0.11)
    assert (whole["images_seen"], left["images_seen"]) == (32, 8)
    said = "--steps 2 is less than the 3 steps already taken"
    quick("--steps", 2, "--resume", "--dry-run", "-q").fails(2, said)


def test_a_slow_run_says_so_while_it_trains(quick, monkeypatch):
    for name, seconds in (("SLOW", -1), ("MINUTE", 0), ("DAY", 0)):
        monkeypatch.setattr(run_length, name, seconds)
    ran = quick("--steps", 4).ok()
    assert ran.err.count("s per step: 0.0 minutes left\n") == 1
    assert ran.err.count("warning: 3 steps of 0.") == 1
    ran = quick("--minutes", 0.05, "--overwrite").ok()
    assert "s per step: 0.0 minutes left" not in ran.err, "--minutes end in time"
    assert " s take " not in ran.err


def test_a_dry_run_of_minutes_takes_these_minutes(quick, step_takes, monkeypatch):
    """They may be days. The number of steps follows."""
    step_takes(1.0)
    assert "seconds" in quick("--minutes", 3000, "--dry-run", "--json").ok().json
    assert "Try --" not in quick("--minutes", 3000, "--dry-run").ok().err
    assert "Try --" in quick("--steps", 200_000, "--dry-run").ok().err


# -- images in the time ---------------------------------------------------------------------------


def test_half_of_the_size_sees_more_images_by_the_operations_of_its_network():
    def at_half(side, channels=3, preset="tiny"):
        asked = configure({"data": "x", "preset": preset})
        plan = plan_of(side, channels, steps=10, batch_size=8, preset=preset)
        return count_at_half_size(asked, plan)

    size, seen = at_half(128)
    assert size == (64, 64)
    assert 3.5 * 80 < seen < 4.5 * 80
    assert at_half(128, channels=1) == (size, seen)
    patches_of_a_quarter = at_half(256, preset="small")[1]
    assert 80 < patches_of_a_quarter < 1.5 * 80
    assert at_half(64) is None
    assert at_half(72) is None, "36 is not halved often enough"


def test_half_of_the_size_has_the_same_width_or_is_not_compared(monkeypatch):
    """On a GPU, small samples have a narrower preset."""
    monkeypatch.setattr(decisions.devices, "device_type", lambda wanted: "cuda")
    monkeypatch.setattr(decisions.devices, "resolve_precision", lambda *_: "bf16")
    config = configure({"data": "x", "steps": 10})
    for size, compared in (((64, 128), None), ((128, 128), (64, 64))):
        plan = plan_of_space(config, Space(channels=3, size=size))
        half = count_at_half_size(config, plan)
        assert (half and half[0]) == compared


@pytest.mark.parametrize(
    ("side", "width", "images", "run"),
    [
        (64, 32, 165_440, "150,368 images (10 minutes on one core)"),
        (64, 64, 165_440, "165,440 images (1 hour on one core)"),
        (250, 32, 31_000, "of 256x256"),
    ],
)
def test_a_dry_run_names_the_run_of_the_most_similar_cost(side, width, images, run):
    config = plan_of(side, 3, steps=1, batch_size=images, width=width).config
    estimate = TrainingEstimate(config, 1, 1, 1.0, 1, None)
    assert run in estimate.describe_expectation()


@pytest.mark.parametrize(
    ("samples", "half", "says"),
    [
        (1000, ((64, 64), 710_400), "1,000 images 153 times. At 64x64 with this width: 710,000"),
        (153_400, None, "153,400 images 1 time"),
        (1_000_000, None, "1,000,000 images 0.153 times"),
    ],
)
def test_a_dry_run_says_how_many_images_it_sees(samples, half, says):
    config = plan_of(128, steps=15_340, batch_size=10).config
    lines = TrainingEstimate(config, 1, 1, 3600.0, samples, half).to_toml().splitlines()
    assert lines[1] == f"# 128x128: 153,000 images in 60.0 minutes, each of {says}"
