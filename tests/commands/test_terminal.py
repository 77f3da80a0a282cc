"""Results and help on a terminal: borders as wide as it, with colors if it wants some."""

from __future__ import annotations

import contextlib
import os
import pty

import pytest


@pytest.fixture
def on_terminal(fresh):
    """Run a command whose stdout is a terminal of 80 columns, and return what it shows."""

    def run(*arguments, **variables):
        ours, theirs = pty.openpty()
        env = {"TERM": "xterm-256color", "COLUMNS": "80", **variables}
        fresh(*arguments, "-q", stdout=theirs, env=env).ok()
        os.close(theirs)
        text = b""
        with contextlib.suppress(OSError):  # Linux ends a pseudo-terminal with an error
            while part := os.read(ours, 4096):
                text += part
        os.close(ours)
        return text.decode()

    return run


@pytest.mark.parametrize(("variables", "border", "styles"), [
    ({"NO_COLOR": "1"}, "╭", {"\x1b[1m"}),
    ({"TERM": "dumb"}, "╭", set()),
    ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "+", {"\x1b[1m"}),
])  # fmt: skip
def test_facts_have_a_border_that_the_terminal_can_show(
    on_terminal, images, variables, border, styles
):
    text = on_terminal("info", images, **variables)
    assert [style for style in ("\x1b[1m", "\x1b[31m") if style in text] == [*styles]
    lines = text.splitlines()
    assert border in lines[0]
    if not styles:
        assert {len(line) for line in lines} == {80}


def test_a_verdict_is_bold_and_bad_values_are_red(on_terminal, lab):
    line = ("eval", lab["unconditional"], lab["grey"], "--metrics", "kid,marginals")
    text = on_terminal(*line, "-n", 20, "--steps", 2)
    first, *rest = text.splitlines()
    assert first.startswith("\x1b[1m")
    assert any("\x1b[31m" in row for row in rest if "│" in row)
    assert any("\x1b[1mmeasured" in row for row in rest)


@pytest.mark.parametrize(("changes", "boxes", "colors"), [
    ({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, False, False),
])  # fmt: skip
def test_help_has_boxes_and_the_colors_that_a_terminal_wants(on_terminal, changes, boxes, colors):
    text = on_terminal("info", "--help", **changes)
    assert ("╭" in text) == boxes
    assert ("\x1b[36m" in text) == colors


def test_a_file_of_settings_is_shown_as_it_is(on_terminal, lab):
    assert "│" not in on_terminal("info", lab["unconditional"], "--toml")
