"""Parts of the scripts that try mutated files: a time limit, and the command line."""

from __future__ import annotations

import contextlib
import io
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

from conftest import Ran, environment

from diffuse_cli.app import main

SECONDS = 20
"""A case that takes longer hangs."""


class Late(BaseException):
    """The time of a case is over. No handler of exceptions catches it."""


def ring(number: int, frame: FrameType | None) -> None:
    raise Late


@contextlib.contextmanager
def in_time(seconds: int = SECONDS) -> Iterator[None]:
    """Raise `Late` after some seconds."""
    signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def run_here(line: Sequence[str]) -> Ran:
    """Run a command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([*line])
    return Ran(code, out.getvalue(), err.getvalue())


def run_there(line: Sequence[str]) -> Ran:
    """Run a command in a process of its own. One that hangs has no exit code."""
    command = [sys.executable, "-m", "diffuse_cli", *line]
    try:
        ran = subprocess.run(
            command, env=environment(), capture_output=True, timeout=80, text=True, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return Ran(-1, "", "it hung")
    return Ran(ran.returncode, ran.stdout, ran.stderr)
