"""`diffuse --show-completion`, in a shell at a terminal, where Tab is typed."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import environment

from diffuse_cli.app import main

SECONDS = 60
SHELLS = {"bash": ("--norc", "--noprofile", "-i"), "zsh": ("-f", "-i")}
FIRST = {"bash": "", "zsh": "autoload -Uz compinit; compinit -u -D; "}
"""What must be loaded before anything can be completed."""


class Terminal:
    """A shell at the other end of a pseudo-terminal."""

    def __init__(self, shell: str, env: dict[str, str]) -> None:
        self.pid, self.file = pty.fork()
        if self.pid == 0:
            os.execvpe(shell, [shell, *SHELLS[shell]], env)
        self.screen = ""

    def type(self, keys: str, until: str) -> None:
        """Press keys, and read until a pattern is on the screen."""
        os.write(self.file, keys.encode())
        self.screen, end = "", time.monotonic() + SECONDS
        while not re.search(until, self.screen):
            left = end - time.monotonic()
            assert left > 0, f"{until!r} is not in {self.screen!r}"
            if select.select([self.file], [], [], left)[0]:
                self.screen += os.read(self.file, 4096).decode(errors="replace")

    def close(self) -> None:
        os.close(self.file)
        os.waitpid(self.pid, 0)


@pytest.fixture(params=SHELLS)
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    shell = request.param
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "bin" / "diffuse"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m diffuse_cli "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    env = environment(PATH=path, TERM="dumb", HOME=str(tmp_path), PS1="$ ")
    opened = Terminal(shell, env)
    opened.type(
        f'{FIRST[shell]}eval "$(diffuse --show-completion)" && echo rea""dy\n', r"\nready\r?\n"
    )
    yield opened
    opened.close()


def test_commands_and_options_complete(terminal: Terminal) -> None:
    terminal.type("diffuse noise\t", "noise-demo ")
    terminal.type("--sched\t", "ule ")


def test_choices_complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    words = {"COMP_WORDS": "diffuse noise-demo --schedule co", "COMP_CWORD": "3"}
    for name, value in {"_DIFFUSE_COMPLETE": "complete_bash", **words}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main([])
    assert capsys.readouterr().out.split() == ["constant", "cosine"]
