"""--minutes: the plan follows the speed of the machine, and is part of the state of a run."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import shutil
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import MODEL, do_less
from lab import QUICK

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.models import model_file
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import finish
from diffuse_cli.training import chores, loop, previews, step_cost, time_budget
from diffuse_cli.training.configuration import configure
from diffuse_cli.training.loop import fit
from diffuse_cli.training.optimization import ProgressSchedule, lr_at
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.time_budget import FIRST, Budget, Chore
from diffuse_cli.training.trainer import Trainer

FILED = tomllib.loads(QUICK.read_text())


def test_a_chore_is_counted_as_often_as_it_is_due():
    """Just after `done` steps, a chore of that step is still to be done."""
    for every, steps, at_stop in itertools.product(range(1, 9), range(1, 20), (False, True)):
        chore = Chore("look", every, 1.0, at_stop)
        due = [k for k in range(1, steps + 1) if chore.is_due(k, steps, steps)]
        assert due[-1] == steps
        for done in range(steps + 1):
            assert chore.times(done, steps) == sum(k >= done for k in due)


# -- the way --------------------------------------------------------------------------------------


def test_a_fixed_length_is_gone_in_equal_parts_to_the_last_bit():
    for steps in (1, 7, 1000, 12_345):
        course, every = ProgressSchedule.of(steps), range(steps + 1)
        assert [course.nominal_step(k) for k in every] == [*every]
        assert [course.progress_at(k) for k in every] == [k / steps for k in every]


def test_another_length_leaves_the_way_so_far_and_shares_the_rest():
    course = ProgressSchedule.of(1000).revise(400, 700)
    assert course.progress_at(400) == ProgressSchedule.of(1000).progress_at(400) == 0.4
    assert course.progress_at(550) == pytest.approx(0.7)
    assert course.progress_at(700) == course.nominal_step(700) / 700 == 1
    again = course.revise(550, 2050)
    assert again.progress_at(550) == pytest.approx(0.7)
    assert again.progress_at(1300) == pytest.approx(0.85)
    assert again.fewest == 700


def test_the_learning_rate_goes_on_where_it_was_and_ends_at_0():
    config = TrainConfig(data="x", steps=1000, warmup=50, lr=1.0)
    course = ProgressSchedule.of(1000)
    for done, steps in ((20, 400), (200, 1500), (900, 950)):
        before = lr_at(config, course, done)
        course = course.revise(done, steps)
        if done > 50:
            assert lr_at(config, course, done) == pytest.approx(before)
        rates = [lr_at(config, course, k) for k in range(max(done, 50), steps)]
        assert rates == sorted(rates, reverse=True)
    assert lr_at(config, course, 949) < 1e-3
    short = ProgressSchedule.of(1000).revise(20, 400)  # the rise is a tenth of the shortest plan
    assert lr_at(config, short, 20) == pytest.approx(21 / 40, rel=0.01)
    assert lr_at(config, short.revise(60, 4000), 60) > 0.9


def test_what_is_due_at_a_share_of_the_way_is_due_once():
    course, weak, snapshots = ProgressSchedule.of(800), [], []
    plans = {90: 700, 99: 805, 300: 500, 450: 2000}
    for done in range(1, 2001):
        if course.passes(1 / 8, done):
            weak.append(done)
        if course.crosses(-(-course.steps // 10), done):
            snapshots.append(round(course.progress_at(done), 2))
        if done in plans:
            course = course.revise(done, plans[done])
    assert len(weak) == 1
    assert snapshots == pytest.approx([k / 10 for k in range(1, 11)], abs=0.01)


# -- the time -------------------------------------------------------------------------------------


def drive(
    seconds, *, minutes=1.0, step=0.05, chores=lambda steps: (), costs=None, spent=2.0,
    extended=None,
):  # fmt: skip
    """Step as a run does, with a budget; `seconds(now)` is the time of a step, `costs(now)` that of
    a chore. `extended` is the budget of the run before."""
    if extended is None:
        budget, done = Budget(minutes, step, used=spent), 0
        course = ProgressSchedule.of(budget.fill(0, chores, FIRST))
    else:
        budget, done, spent = extended, extended.taken_steps, extended.used
        course = ProgressSchedule.of(budget.extend(minutes, done, chores))
    plans, places, now = [course.steps], [0.0], spent
    while done < course.steps:
        took = seconds(now)
        done, now = done + 1, now + took
        budget.count_step(took, course.steps)
        if (done <= 64 or done % 4 == 0) and done < course.steps:
            steps = budget.review(done, course.steps, chores)
            if steps != course.steps:
                course = course.revise(done, steps)
                plans.append(steps)
        for chore in chores(course.steps):
            if done % chore.every == 0 or done == course.steps:
                took = costs(now)
                now += took
                budget.count(took, chore.name)
        places.append(course.progress_at(done))
    assert budget.used == pytest.approx(now)
    return SimpleNamespace(course=course, plans=plans, total=now, places=places, budget=budget)


def sixteenths(steps):
    return (Chore("look", -(-steps // 8), 20.0), Chore("save", 100, 0.0))


LOADS = {
    "none": lambda now: 1.0,
    "comes": lambda now: 3.0 if now > 30 else 1.0,
    "comes early": lambda now: 3.0 if now > 4 else 1.0,
    "comes late": lambda now: 3.0 if now > 54 else 1.0,
    "comes very late": lambda now: 3.0 if now > 58.5 else 1.0,
    "goes": lambda now: 1.0 if now < 30 else 1 / 3,
    "goes late": lambda now: 1.0 if now < 54 else 0.5,
    "comes and goes": lambda now: 3.0 if 20 < now < 40 else 1.0,
    "is slower than measured": lambda now: 1.5,
    "is quicker than measured": lambda now: 0.6,
    "pauses": lambda now: 200.0 if 30 < now < 30.2 else 1.0,
    "stumbles": lambda now: 12.0 if int(now * 20) % 29 == 0 else 1.0,
    "goes altogether": lambda now: 1.0 if now < 40 else 0.05,
    "swings": lambda now: 1.0 + 2.0 * (int(now / 3) % 2),
}


@pytest.mark.parametrize("beside", [False, True])
def test_whatever_the_load_a_run_ends_in_time_with_its_rate_at_0(beside):
    for load, slow in LOADS.items():
        ran = drive(
            lambda now, slow=slow: 0.05 * slow(now),
            chores=sixteenths if beside else lambda steps: (),
            costs=lambda now, slow=slow: 0.7 * min(slow(now), 3.0),
        )
        assert ran.total == pytest.approx(60, rel=0.05), load
        assert ran.places == sorted(ran.places), load
        config = TrainConfig(data="x", steps=ran.course.steps, lr=1.0)
        assert lr_at(config, ran.course, ran.course.steps - 1) < 0.03, load
        assert ran.budget.decisions <= 3, load
        assert len(ran.plans) <= 5, "a prediction, three decisions, and the end of the time"


@pytest.mark.parametrize("spent", [150.0, 280.0])
@pytest.mark.parametrize("slow", [0.05, 0.5, 1.0, 2.0])
def test_an_extended_run_is_planned_again_from_its_steps(spent, slow):
    """A finished run of five minutes, or one that was stopped, goes on elsewhere."""
    before = drive(lambda now: 0.05, minutes=spent / 60)
    ran = drive(lambda now: 0.05 * slow, minutes=6, extended=before.budget)
    assert ran.total == pytest.approx(360, rel=0.03)
    config = TrainConfig(data="x", steps=ran.course.steps, lr=1.0)
    assert lr_at(config, ran.course, ran.course.steps - 1) < 0.03
    assert len(ran.plans) <= 5


def test_a_run_that_nothing_disturbs_keeps_its_first_plan():
    for noise in (lambda now: 0.05, lambda now: 0.05 * (1 + 0.1 * ((now * 1e4) % 2 - 1))):
        ran = drive(noise)
        assert ran.plans == [round(58 / 0.05)]
        assert ran.total == pytest.approx(60, rel=0.02)
    chores = lambda steps: (Chore("look", -(-steps // 8), 14.0),)  # noqa: E731
    ran = drive(lambda now: 0.05, chores=chores, costs=lambda now: 0.7)
    assert ran.plans == [round((58 - 8 * 0.7) / 0.05)]
    assert ran.total == pytest.approx(60, rel=0.001)
    budget = Budget(**json.loads(json.dumps(dataclasses.asdict(ran.budget))))
    assert budget.costs
    assert budget == ran.budget


def test_runs_end_in_time_whatever_their_length_and_their_steps():
    for step in (0.1, 10.0):  # steps that are far quicker than predicted are noticed at once
        ran = drive(lambda now: 0.01, step=step)
        assert ran.total == pytest.approx(60, rel=0.02)
        assert ran.places[int(0.02 * ran.course.steps)] < 0.15
    for slow in (3.0, 7.0):
        ran = drive(lambda now, slow=slow: slow if now < 150 else 2 * slow, minutes=5, step=3.0)
        assert abs(ran.total - 300) <= 2 * slow
    assert drive(lambda now: 100.0).course.steps == 2
    ran = drive(lambda now: 0.4 if now < 1800 else 1.2, minutes=60, step=0.4, spent=20)
    assert ran.total == pytest.approx(3600, rel=0.02)
    assert (ran.budget.decisions, len(ran.plans) <= 4) == (3, True)
    ran = drive(lambda now: 20.0 if now < 5 else 0.05)  # the first one does not count in the pace
    assert ran.total == pytest.approx(60, rel=0.02)
    assert ran.places[len(ran.places) // 2] == pytest.approx(0.5, abs=0.01)
    # A chore that takes longer than the run leaves half to its steps.
    assert Budget(1, 0.5).fill(0, lambda steps: (Chore("look", steps, 1000.0),)) == 60


# -- a run ----------------------------------------------------------------------------------------


STEP = 2.0
"""Seconds of a step: 30 are a minute."""


@contextlib.contextmanager
def ticking():
    """A clock that only steps move: by the seconds that `clock.seconds` gives for each."""
    here = SimpleNamespace(now=0.0, seconds=lambda step: STEP, rates={}, steps=[])
    real = Trainer.step

    def step(self, number):
        outcome = real(self, number)
        here.now += here.seconds(number)
        here.rates[number] = self.optimizer.param_groups[0]["lr"]
        here.steps.append(number)
        return outcome

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        patch.setattr(step_cost, "predict_seconds", lambda *_: STEP)
        patch.setattr(time_budget, "FIRST", 10)
        patch.setattr(previews, "passes_of_preview", lambda plan: 0)
        patch.setattr(chores, "denoising_errors", SimpleNamespace(POINTS=1e-9))  # take no time
        patch.setattr(chores, "MOST_MEASURED", 4)
        do_less(patch)
        yield here


@pytest.fixture
def clock(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with ticking() as clock:
        yield clock


def run_by(clock, images, out=MODEL, filed=FILED, **given):
    """Train in a process whose clock the steps move; what it says."""
    typed = {"data": str(images), "out": str(out), **given}
    events = []
    trained = finish(fit(configure(typed, filed), clock=lambda: clock.now), events.append)
    return SimpleNamespace(trained=trained, said=[e.text for e in events if hasattr(e, "text")])


@pytest.fixture
def by_clock(clock, images):
    return functools.partial(run_by, clock, images)


def busy(step):
    """From the 16th of 30 steps on, three times as long."""
    return STEP if step < 15 else 3 * STEP


MORE = {"minutes": 1, "ema_lengths": 4, "keep_weak": True, "save_every": 6}


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    """The folder of a run of a minute that nothing disturbs. Do not write here."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with ticking() as clock:
        run_by(clock, images, folder / MODEL, minutes=1)
    return folder


@pytest.fixture(scope="module")
def loaded(images, tmp_path_factory):
    """A run of a minute under a load: its folder, its clock and what it said."""
    folder = tmp_path_factory.mktemp("loaded")
    with ticking() as clock:
        clock.seconds = busy
        ran = run_by(clock, images, folder / MODEL, **MORE)
    return SimpleNamespace(folder=folder, clock=clock, **vars(ran))


def config_of(run="model.run"):
    return tomllib.loads((Path(run) / "config.toml").read_text())


def test_a_run_without_a_load_is_one_of_so_many_steps(by_clock, undisturbed):
    """Its configuration at the end repeats it."""
    by_clock(steps=30)
    assert MODEL.read_bytes() == (undisturbed / MODEL).read_bytes()
    assert config_of() == config_of(undisturbed / "model.run")
    assert "budget" not in RunDirectory(MODEL).load()[0].state
    by_clock(out="again.safetensors", filed=config_of(undisturbed / "model.run"))
    assert Path("again.safetensors").read_bytes() == MODEL.read_bytes()


def test_a_load_makes_it_shorter_and_its_files_say_so(loaded):
    run, clock, steps = loaded.folder / "model.run", loaded.clock, loaded.trained.steps
    assert loaded.trained.step == steps == len(clock.steps)
    assert clock.now == pytest.approx(60, rel=0.05)
    assert 19 <= steps <= 21
    assert config_of(run)["steps"] == steps
    assert "minutes" not in config_of(run)
    found = model_file.load(loaded.folder / MODEL)
    assert (found.step, found.training["steps"], found.weak_step) == (steps, steps, 4)
    said = [text for text in loaded.said if "steps" in text and "in time" in text]
    assert said == [f"{steps} steps instead of 30, to end in time"]
    assert 3 <= len([*(run / "ema").iterdir()]) <= 5
    rates = [clock.rates[k] for k in range(3, steps)]
    assert rates == sorted(rates, reverse=True)
    course = ProgressSchedule(**RunDirectory(loaded.folder / MODEL).load()[0].state["course"])
    assert (course.steps, course.progress_at(steps)) == (steps, pytest.approx(1))
    config = configure({"data": "x", "steps": steps}, FILED)
    assert rates[-1] == pytest.approx(lr_at(config, course, steps - 1))


@pytest.mark.parametrize(("stop", "killed"), [(4, None), (18, None), (None, 3), (None, 19)])
def test_killed_anywhere_and_resumed_equals_one_go(by_clock, clock, loaded, stop, killed):
    """A run that is killed before its first checkpoint begins again."""
    clock.seconds = lambda step: 1 / 0 if step == killed else busy(step)
    with pytest.raises(ZeroDivisionError) if killed else contextlib.nullcontext():
        by_clock(**MORE, **({"stop_at": stop} if stop else {}))
    assert config_of()["minutes"] == 1
    clock.seconds = busy
    by_clock(resume=True)
    if not killed:
        assert clock.now == pytest.approx(60, rel=0.05)
    assert MODEL.read_bytes() == (loaded.folder / MODEL).read_bytes()
    runs = [folder / "model.run" for folder in (Path(), loaded.folder)]
    names = [sorted(path.name for path in (run / "ema").iterdir()) for run in runs]
    assert names[0] == names[1]
    assert config_of() == config_of(runs[1])


def test_the_same_line_goes_on_and_at_the_end_does_nothing(by_clock, clock):
    more = {"minutes": 1, "auto_resume": True}
    by_clock(stop_at=10, **more)
    assert by_clock(**more).trained.step == 30
    made, clock.steps[:] = MODEL.read_bytes(), []
    for given in (more, {"resume": True}, {"resume": True, "minutes": 1}):
        ran = by_clock(**given)
        assert ran.trained.step == 30
        longer = "--minutes 2" if "minutes" in given else "--steps 60"
        (text,) = (text for text in ran.said if "the run is finished, at step 30" in text)
        assert text.endswith(f" --resume -o {MODEL} {longer}")
        assert clock.steps == []
        assert MODEL.read_bytes() == made
        assert "minutes" not in config_of()


def test_a_run_goes_on_with_the_seconds_it_had_left(by_clock, clock):
    by_clock(minutes=1, stop_at=15)
    clock.now, clock.seconds = 0.0, lambda step: STEP / 2
    ran = by_clock(resume=True)
    assert "--minutes 1 is the total of the run: 0.5 are used, 0.5 are left" in ran.said
    assert ran.trained.step == pytest.approx(45, abs=2)
    assert clock.now == pytest.approx(30, abs=2)


def test_more_minutes_and_more_steps_extend_it(by_clock, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    ran = by_clock(minutes=1.5, resume=True)
    assert ran.trained.step == 45
    assert "--minutes 1.5 is the total of the run: 1 are used, 0.5 are left" in ran.said
    assert by_clock(steps=50, resume=True).trained.step == 50
    assert "budget" not in RunDirectory(MODEL).load()[0].state
    ran = by_clock(minutes=0.5, resume=True)
    assert "--minutes 0.5 count from now, because the run used --steps before" in ran.said
    assert ran.trained.step == 65


def test_steps_that_are_typed_end_the_counting_of_time(by_clock, clock):
    by_clock(minutes=1, stop_at=10)
    said = r"--minutes 0.1 is the total .* 0.333 minutes have passed.* set --minutes 0"
    with pytest.raises(UsageError, match=said):
        by_clock(minutes=0.1, resume=True)
    clock.seconds = lambda step: 9.0
    assert by_clock(steps=15, resume=True).trained.step == 15
    assert "minutes" not in config_of()


def test_processes_plan_from_the_time_that_the_slowest_has_spent(by_clock, monkeypatch):
    def used(**options):
        by_clock(minutes=1, stop_at=1, **options)
        return RunDirectory(MODEL).load()[0].state["budget"]["used"]

    alone = used()
    monkeypatch.setattr(loop, "gather_object", lambda told: [*told, told[0] + 7])
    assert used(overwrite=True) == pytest.approx(alone + 7)


@pytest.mark.slow
def test_two_processes_end_at_the_step_that_the_first_planned(by_clock, clock, pair, images):
    """Steps took 0.3 s, and now take far less, or there is no time left for any."""
    clock.seconds = lambda step: 0.3
    by_clock(minutes=0.2, stop_at=20)
    state = RunDirectory(MODEL).load()[0].state
    assert state["budget"]["used"] == pytest.approx(6)
    ran = pair("train", images, "--resume", "--json").ok()
    assert "steps instead of" in ran.err
    assert ran.json["processes"] == 2
    assert ran.json["step"] == ran.json["steps"] == config_of()["steps"]
    assert model_file.load(MODEL).step == ran.json["steps"]
