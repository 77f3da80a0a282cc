"""The console: lines without a terminal, results as paths or JSON, readers that go away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffuse_cli.commands import _cli
from diffuse_cli.commands._cli import Console
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Notice, Progress, Table

READING = "reading"


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes where the test says."""
    now = [100.0]
    monkeypatch.setattr(_cli.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def said(clock, capfd):
    """The lines that are said of progress; a number is the seconds that pass."""

    def follow(*events):
        def work():
            for event in events:
                if isinstance(event, Progress):
                    yield event
                else:
                    clock[0] += event

        Console().follow(work())
        return capfd.readouterr().err.splitlines()

    return follow


def test_a_line_of_progress_comes_after_a_while(said):
    events = [event for k in range(1, 100) for event in (1, Progress(READING, k, 1000))]
    assert said(*events) == [f"reading {k}/1,000" for k in range(11, 100, 10)]


def test_the_end_of_a_task_is_always_said_unless_it_ends_as_it_begins(said):
    begun, done = Progress(READING, 1, 2), Progress(READING, 2, 2, "done")
    assert said(begun, done) == ["reading 2/2  done"]
    assert said(Progress(READING, 1, 1)) == []
    assert len(said(begun, done, begun, done, Progress(READING, 1, 1))) == 2


def test_tasks_do_not_hold_each_other_up(said):
    a, b = ([Progress(name, k, 9) for k in (1, 2)] for name in "ab")
    assert said(a[0], 6, b[0], 6, a[1], b[1]) == ["a 2/9"]


# -- results --------------------------------------------------------------------------------------


def test_results_are_paths_or_one_json_object(capfd):
    """A path is one line, and numbers that JSON lacks are null."""
    Console().result([Path("a"), "b", Path("a\nb\x1b[31m")], {"x": 1})
    assert capfd.readouterr().out == "a\nb\na\\nb\\x1b[31m\n"
    found = {"x": 1, "y": [None, "z"], "a": float("nan"), "b": {"c": [float("inf"), 1.5]}}
    Console(as_json=True).result([Path("a")], found)
    expected = {"x": 1, "y": [None, "z"], "a": None, "b": {"c": [None, 1.5]}}
    assert json.loads(capfd.readouterr().out) == expected


def test_quiet_leaves_errors_and_results(capfd):
    quiet = Console(quiet=True)
    quiet.say("hello")
    quiet.warn("careful")
    quiet.fail(UsageError("wrong", "Do right"))
    quiet.result(["path"], {})
    assert capfd.readouterr() == ("path\n", "diffuse: wrong. Do right\n")


@pytest.mark.parametrize(
    ("paths", "terminal", "lines"),
    [
        ([f"out/{k}.png" for k in range(5)], False, [f"out/{k}.png" for k in range(5)]),
        ([f"out/{k}.png" for k in range(5)], True, ["5 files in out"]),
        ([f"out/{k}/0.png" for k in range(5)] + ["out/c.json"], True, ["6 files in out"]),
        ([f"{k}/0.png" for k in range(5)], True, ["5 files in ."]),
        ([f"out/{k}.png" for k in range(4)], True, [f"out/{k}.png" for k in range(4)]),
    ],
)
def test_a_terminal_shows_where_many_files_are(capfd, monkeypatch, paths, terminal, lines):
    monkeypatch.setattr(_cli, "is_terminal", lambda stream: terminal)
    Console().result(map(Path, paths), {"out": "out"})
    assert capfd.readouterr().out.splitlines() == lines
    Console(as_json=True).result(map(Path, paths), {"out": "out"})
    assert json.loads(capfd.readouterr().out) == {"out": "out"}


def test_an_error_is_one_line_without_markup(capfd):
    Console().fail(UsageError("a [red]name[/red]\nof two lines :smile:"))
    assert capfd.readouterr().err == "diffuse: a [red]name[/red] of two lines :smile:\n"


TABLE = (("part", "what"), ("size", "levels, patches and attention stay"))


def test_a_table_is_lines_in_columns(capfd):
    for quiet in (True, False):
        Console(quiet=quiet).follow(iter([Table(TABLE)]))
    assert capfd.readouterr().err == "part  what\nsize  levels, patches and attention stay\n"


def test_a_terminal_breaks_a_cell_within_its_column(monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "24")
    monkeypatch.setattr(_cli, "is_terminal", lambda stream: True)
    shown = Console()
    shown.live = True
    shown.follow(iter([Table(TABLE)]))
    lines = [line for line in capfd.readouterr().err.splitlines() if line]
    assert {len(line) for line in lines} == {24}
    cells = [line.split("│")[2].strip() for line in lines if "│" in line]
    assert cells == ["what", "levels,", "patches and", "attention", "stay"]


def test_a_terminal_wraps_between_words(monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", "40")
    words = "a sentence of several words which does not fit into forty columns"
    Console().say(words)
    assert capfd.readouterr().err == f"{words}\n"
    monkeypatch.setattr(_cli, "is_terminal", lambda stream: True)
    Console().say(words)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2
    assert " ".join(line.strip() for line in lines) == words


def test_follow_shows_events_and_hands_on_the_result(capfd):
    def work():
        yield Notice("one")
        yield Notice("two", warning=True)
        yield "other"
        yield Progress(READING, 1, 2)
        yield Progress(READING, 2, 2)
        return 42

    describe = {"other": Notice("three")}.get
    assert Console().follow(work(), describe) == 42
    assert capfd.readouterr().err.splitlines() == ["one", "warning: two", "three", "reading 2/2"]
