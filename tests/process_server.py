"""Processes that begin with everything imported, as they are forked from one that did it once.

To the system each is a process like any other, with its id, folder, environment, streams, terminal,
signals and exit code. Tests of how Python starts and ends it run `python -m diffuse_cli`.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

# Nothing that tests write need survive a power cut: what would be synced is told by
# `files.operation`. Disks take milliseconds for each.
os.fsync = os.fstat

# -- in the process of the test -------------------------------------------------------------------


class Server:
    """The process that the others are forked from."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._requests, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def fork(self, request: dict[str, Any], streams: Sequence[int]) -> IO[str]:
        """Begin a process; its id comes from the pipe in one line, and its exit code in another."""
        reading, writing = os.pipe()
        body = json.dumps(request).encode()
        socket.send_fds(self._requests, [len(body).to_bytes(8, "big")], [writing, *streams])
        self._requests.sendall(body)
        os.close(writing)
        return os.fdopen(reading)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._requests.close()
        self._process.wait()


class Forked:
    """A process, with those parts of `subprocess.Popen` that tests use.

    Args:
        arguments: after `diffuse`.
        before: Python that runs in it first.
        terminal: whether stdin is a terminal that shall be its own.
    """

    def __init__(
        self,
        server: Server,
        arguments: Sequence[str],
        cwd: Path,
        env: Mapping[str, str],
        *,
        before: str = "",
        stdin: int = subprocess.DEVNULL,
        stdout: int = subprocess.PIPE,
        stderr: int = subprocess.PIPE,
        terminal: bool = False,
    ) -> None:
        self.returncode: int | None = None
        self.stdout = self.stderr = None
        streams = [
            os.open(os.devnull, os.O_RDONLY) if stdin == subprocess.DEVNULL else os.dup(stdin)
        ]
        for name, given in (("stdout", stdout), ("stderr", stderr)):
            if given == subprocess.PIPE:
                reading, given = os.pipe()
                setattr(self, name, os.fdopen(reading))
                streams.append(given)
            else:
                streams.append(os.dup(given))
        request = {"arguments": arguments, "cwd": str(cwd), "env": dict(env), "before": before,
                   "terminal": terminal}  # fmt: skip
        self._status = server.fork(request, streams)
        for stream in streams:
            os.close(stream)
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        return self.wait(0) if self.returncode is None else self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """The exit code, or minus the signal that ended it; None if it still runs."""
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = int(self._status.readline())
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Read both streams to their ends."""
        read = {}
        threads = [
            threading.Thread(target=lambda s=stream: read.update({s: s.read()}))
            for stream in (self.stdout, self.stderr)
            if stream
        ]
        for thread in threads:
            thread.start()
        if self.wait(timeout) is None:
            self.kill()
            raise subprocess.TimeoutExpired("diffuse", timeout or 0)
        for thread in threads:
            thread.join()
        return read.get(self.stdout, ""), read.get(self.stderr, "")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# -- in the server --------------------------------------------------------------------------------


def serve(requests: socket.socket) -> None:
    """Fork a process for each request, until there are no more."""
    prepare()
    while True:
        size, given, *_ = socket.recv_fds(requests, 8, 4)
        reap(0 if not size else os.WNOHANG)
        if not size:
            return
        request = json.loads(requests.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
        if os.fork() == 0:
            requests.close()
            watch(request, *given)
        for file in given:
            os.close(file)


def reap(how: int) -> None:
    """Wait for watchers: those that have ended, or all."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, how)[0]:
            pass


def prepare() -> None:
    """Evaluate and sample once: what that imports, counts and looks up is there for all. A training
    comes before, in another process: with PyTorch for GPUs its backward pass starts threads, which
    forked processes would lack."""
    from conftest import in_process
    from lab import RECIPES, write_images

    with tempfile.TemporaryDirectory() as name, Path(os.devnull).open("w") as nowhere:
        folder = Path(name)  # no path is relative: what is kept of one would be another's
        images, recipe = write_images(folder / "i", 16), folder / "r"
        model, imported = folder / "m.safetensors", folder / "imported"
        recipe.write_text(RECIPES["tiny"])
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            line = ["train", images, "--config", recipe, "--steps", 2, "-o", model]
            if (trains := os.fork()) == 0:
                code = in_process(line)
                imported.write_text("\n".join(sys.modules))
                os._exit(code)
            assert os.waitpid(trains, 0)[1] == 0, line
            count_memory(model, imported.read_text().split())
            for line in (
                ["eval", model, images, "-n", 2, "--steps", 2, "--timesteps", 2],
                ["sample", model, "-n", 1, "--steps", 2, "-o", folder / "s"],
            ):
                assert in_process(line) == 0, line
    forget()


def count_memory(model: Path, imported: Sequence[str]) -> None:
    """Import what a training does, and count the memory of its network."""
    for name in imported:
        with contextlib.suppress(Exception):  # made by other modules as they are imported
            importlib.import_module(name)
    from diffuse_cli.models import model_file
    from diffuse_cli.models.activation_memory import count_kept_bytes

    count_kept_bytes(model_file.load(model).blueprint, False, False)


def forget() -> None:
    """Leave nothing of the device and of the other processes that a command has found."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    assert len([*Path("/proc/self/task").iterdir()]) == 1, "processes would lack the other threads"


def watch(request: dict[str, Any], status: int, *streams: int) -> NoReturn:
    """Fork the process, and say its id and how it ended."""
    process = os.fork()
    if process == 0:
        os.close(status)
        begin(request, streams)
    for stream in streams:
        os.close(stream)
    os.write(status, b"%d\n" % process)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.write(status, b"%d\n" % code)
    os._exit(0)


def begin(request: dict[str, Any], streams: Sequence[int]) -> NoReturn:
    """Be the process that was asked for, to its end."""
    code = 1
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        if request["terminal"]:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["cwd"])
        sys.argv = ["diffuse", *request["arguments"]]
        paths = request["env"].get("PYTHONPATH", "").split(os.pathsep)
        if not {*paths} <= {*sys.path}:
            sys.path[:0] = paths
            importlib.import_module("diffuse_cli.core.registry").extension_points.cache_clear()
        sys.stdout = os.fdopen(1, "w", 1 if os.isatty(1) else -1, "utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
        code = run(request["before"])
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run(before: str) -> int:
    """`python -m diffuse_cli`; its exit code."""
    from conftest import JUDGE, builder
    from unplotted_pages import Undrawn

    importlib.import_module(JUDGE).build = builder()
    importlib.import_module("diffuse_cli.pages.charts").Plot = Undrawn
    try:
        exec(before, {})
        runpy.run_module("diffuse_cli", run_name="__main__", alter_sys=True)
    except SystemExit as error:
        return error.code
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
