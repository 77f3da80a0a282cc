"""With how many threads a run by --minutes computes, and that it goes on with as many."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

from diffuse_cli.system.events import Notice
from diffuse_cli.training import step_timer
from diffuse_cli.training.time_budget import Budget


@pytest.fixture
def computer(monkeypatch):
    """A machine of so many threads, on which a step takes as long as said for each number."""

    def make(every, seconds, stops=True, own=None, processes=1, device="cpu"):
        now = [every]
        for name in step_timer.OWN:
            monkeypatch.delenv(name, raising=False)
        if own:
            monkeypatch.setenv(own, str(every))
        monkeypatch.setattr(step_timer.torch, "get_num_threads", lambda: now[0])
        monkeypatch.setattr(step_timer.torch, "set_num_threads", lambda n: now.__setitem__(0, n))
        tried, learned = [], []

        def a_few(config):
            yield from ()
            tried.append(now[0])
            return seconds[now[0]]

        watch = SimpleNamespace(a_few=a_few, relearn=lambda config, s: learned.append(s))
        accelerator = SimpleNamespace(num_processes=processes, device=SimpleNamespace(type=device))
        found = step_timer.fastest(watch, None, SimpleNamespace(busy=stops), accelerator)
        said = []
        while True:
            try:
                said.append(next(found))
            except StopIteration as stop:
                return SimpleNamespace(
                    chosen=stop.value, now=now[0], tried=tried, learned=learned, said=said
                )

    return make


def test_one_of_two_threads_is_taken_where_it_is_faster_and_that_is_said(computer):
    found = computer(2, {2: 0.6, 1: 0.2})
    assert (found.chosen, found.now, found.tried) == (1, 1, [2, 1])
    assert found.learned == [0.2]
    [notice] = found.said
    assert isinstance(notice, Notice)
    assert "busy: 1 of 2 threads are faster (OMP_NUM_THREADS=2 keeps all)" in notice.text


@pytest.mark.parametrize("one", [0.55, 0.6, 0.7])
def test_all_stay_where_fewer_gain_little(computer, one: float):
    found = computer(2, {2: 0.6, 1: one})
    assert (found.chosen, found.now, found.learned, found.said) == (None, 2, [], [])


def test_of_many_threads_the_fastest_number_is_taken(computer):
    found = computer(8, {8: 1.0, 7: 1.1, 6: 0.4, 4: 0.5, 1: 3.0})
    assert (found.chosen, found.now, found.tried) == (6, 6, [8, 7, 6, 4, 1])
    assert found.learned == [0.4]


@pytest.mark.parametrize(
    "how",
    [
        {"stops": False},
        {"own": "OMP_NUM_THREADS"},
        {"own": "MKL_NUM_THREADS"},
        {"processes": 2},
        {"device": "cuda"},
        {"every": 1},
    ],
    ids=str,
)
def test_nothing_is_tried_where_nothing_else_runs_or_another_has_decided(computer, how):
    every = how.pop("every", 2)
    found = computer(every, {2: 0.6, 1: 0.2}, **how)
    assert (found.chosen, found.now, found.tried, found.said) == (None, every, [], [])


def test_what_is_tried_are_fewer_threads():
    for every in range(2, 70):
        found = step_timer.fewer(every)
        assert found == sorted(set(found), reverse=True)
        assert 1 <= found[-1] <= found[0] == every - 1


def test_the_number_is_put_back_and_a_resumed_run_goes_on_with_its_own(monkeypatch):
    for name in step_timer.OWN:
        monkeypatch.delenv(name, raising=False)
    now = [4]
    monkeypatch.setattr(step_timer.torch, "get_num_threads", lambda: now[0])
    monkeypatch.setattr(step_timer.torch, "set_num_threads", lambda n: now.__setitem__(0, n))
    here = SimpleNamespace(num_processes=1, device=torch.device("cpu"))
    with step_timer.kept():
        step_timer.go_on_with(None, here)
        assert now == [4]
        step_timer.go_on_with(3, here)
        assert now == [3]
    assert now == [4]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    step_timer.go_on_with(3, here)
    assert now == [4]


def test_a_budget_keeps_it_and_one_of_before_has_none():
    budget = Budget(10, 0.5, threads=3)
    values = dataclasses.asdict(budget)
    assert Budget.read(values) == budget
    del values["threads"]
    assert Budget.read(values).threads is None
    assert budget.spent(3).stepped(0.5, True).threads == 3


def test_stops_are_counted_by_the_second(monkeypatch):
    counts, clock = [100, 160], [0.0]
    monkeypatch.setattr(step_timer, "_stopped", lambda: counts[0])
    monkeypatch.setattr(step_timer.time, "monotonic", lambda: clock[0])
    stops = step_timer.Stops()
    assert stops.a_second() == 0
    counts[0], clock[0] = 160, 2.0
    assert stops.a_second() == 30
    monkeypatch.setattr(step_timer.torch, "get_num_threads", lambda: 2)
    assert not stops.busy
    counts[0] = 220
    assert stops.busy
    monkeypatch.undo()
    assert step_timer.Stops().a_second() >= 0


def test_a_run_by_minutes_chooses_keeps_and_goes_on(train, monkeypatch):
    """On a machine that is called busy, where one thread is taken for the faster."""
    asked = []

    def fastest(watch, config, stops, accelerator):
        yield from ()
        asked.append(config.batch_size)
        return 1

    went_on = []
    monkeypatch.setattr("diffuse_cli.training.time_estimate.fastest", fastest)
    monkeypatch.setattr(
        "diffuse_cli.training.checkpoints.go_on_with", lambda n, accelerator: went_on.append(n)
    )
    ran = train("--minutes", 0.02, "--stop-at", 3, "-q")
    assert ran.code == 0, ran.err
    assert (asked, went_on) == ([8], [])
    assert train("--resume", "--minutes", 0.02, "-q").code == 0
    assert (asked, went_on) == ([8], [1])
