"""With how many threads a run computes that an earlier version chose fewer for."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from diffuse_cli.training import checkpoints, run_length
from diffuse_cli.training.time_budget import Budget


def test_a_budget_keeps_its_threads_and_one_of_before_has_none():
    budget = Budget(10, 0.5, threads=3)
    values = dataclasses.asdict(budget)
    assert Budget(**values) == budget
    del values["threads"]
    assert Budget(**values).threads is None


@pytest.mark.parametrize(("own", "used"), [({}, [4, 3, 4]), ({"OMP_NUM_THREADS": "2"}, [4])])
def test_a_run_that_recorded_its_threads_goes_on_with_them_and_puts_them_back(
    train, monkeypatch, own, used
):
    for name in run_length.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert train("--minutes", 0.02, "--stop-at", 3, "-q").code == 0
    real, now = checkpoints.Budget, [4]
    monkeypatch.setattr(checkpoints, "Budget", lambda **v: real(**{**v, "threads": 3}))
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[-1])
    monkeypatch.setattr(torch, "set_num_threads", now.append)
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert train("--resume", "--minutes", 0.02, "-q").code == 0
    assert now == used
