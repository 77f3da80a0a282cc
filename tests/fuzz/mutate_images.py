"""Changed image files by the thousand, through the reader and through the command line.

Three rounds: `decode` of COUNT files; folders of them through `read_images` and single ones through
`noise-demo`, all in this process; and PROCESSES real ones. What ends each file is counted. It fails
on an exception, a hang, more memory than a bound, an exit code or a line on stderr that should not
be; such files are kept. Equal seeds try equal files. Prints JSON.

    python tests/fuzz/mutate_images.py --count 10000 --seed 0 --processes 100
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from image_corpus import decode
from mutated_images import mutated
from odd_files import rubbish

from diffuse_cli.app import main as diffuse
from diffuse_cli.data import read_images
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.system.events import finish

IN_A_FOLDER = 100
DEMO = ("--steps", "2", "--size", "8", "--num-timesteps", "10", "--schedule", "cosine", "-q")
"""A picture that is drawn in no time."""


class Hang(BaseException):
    """A case took longer than its seconds; no handler of exceptions swallows it."""


class Fuzz:
    """What is tried, and what came of it."""

    def __init__(self, seconds: int, keep: Path) -> None:
        self.seconds, self.keep = seconds, keep
        self.outcomes: dict[str, Counter[str]] = {}
        self.failures: list[str] = []

    def count(self, round_: str, outcome: str) -> None:
        self.outcomes.setdefault(round_, Counter())[outcome] += 1

    def fail(self, name: str, what: str, data: bytes) -> None:
        """Note a failure and keep the file behind it."""
        self.keep.mkdir(parents=True, exist_ok=True)
        path = self.keep / f"{name}.png"
        path.write_bytes(data)
        self.failures.append(f"{path}: {what}")

    @contextlib.contextmanager
    def case(self, name: str, data: bytes) -> Iterator[None]:
        """Seconds for a case, and its failures."""
        signal.alarm(self.seconds)
        try:
            yield
        except Hang:
            self.fail(name, f"no end after {self.seconds} s", data)
        except Exception:
            self.fail(name, traceback.format_exc(), data)
        finally:
            signal.alarm(0)


def hang(number: int, frame: FrameType | None) -> None:
    raise Hang


def outcome(data: bytes) -> str:
    """The reason why a file is skipped, empty where it is an image."""
    try:
        decode(data)
    except Unusable as error:
        return error.reason
    return ""


def try_reader(fuzz: Fuzz, files: Iterator[tuple[str, bytes]]) -> list[tuple[str, bytes, str]]:
    """`decode`; the files with their outcomes."""
    found = []
    for name, data in files:
        with fuzz.case(name, data):
            found.append((name, data, outcome(data)))
            fuzz.count("decode", found[-1][2] or "an image")
    return found


def try_folders(fuzz: Fuzz, found: list[tuple[str, bytes, str]]) -> None:
    """`read_images` finds in folders what `decode` found in files, and nothing is missing."""
    for start in range(0, len(found), IN_A_FOLDER):
        part = found[start : start + IN_A_FOLDER]
        with tempfile.TemporaryDirectory() as folder, fuzz.case(f"folder-{start}", b""):
            for name, data, _ in part:
                (Path(folder) / f"{name}.png").write_bytes(data)
            images = finish(read_images(folder, size=(16, 16), workers=3))
            skipped = {r: count for r, (count, _) in images.summary.skipped.items()}
            assert skipped == Counter(reason for _, _, reason in part if reason), folder
            assert len(images) + sum(skipped.values()) == len(part)
            fuzz.count("read_images", "a folder")


def check_ending(code: int, out: str, err: str, reason: str) -> str:
    """What is wrong with how a command ended; empty where nothing is."""
    if "Traceback" in out + err:
        return err
    expected = 3 if reason else 0
    if code != expected:
        return f"exit code {code}, not {expected}: {err}"
    if reason and (out or err.count("\n") != 1 or not err.startswith("diffuse: ")):
        return f"not one line: {out!r} {err!r}"
    return "" if reason or (not err and out.endswith(".png\n")) else f"{out!r} {err!r}"


def try_commands(fuzz: Fuzz, found: list[tuple[str, bytes, str]]) -> None:
    """`noise-demo` in this process."""
    for name, data, reason in found:
        with fuzz.case(name, data):
            Path("image.png").write_bytes(data)
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = diffuse(["noise-demo", "image.png", "-o", "out.png", "--overwrite", *DEMO])
            fuzz.count("noise-demo", f"exit {code}: {reason or 'an image'}")
            if wrong := check_ending(code, out.getvalue(), err.getvalue(), reason):
                fuzz.fail(name, wrong, data)


def try_processes(fuzz: Fuzz, found: list[tuple[str, bytes, str]]) -> None:
    """`noise-demo` as a process of its own."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    for name, data, reason in found:
        Path("image.png").write_bytes(data)
        line = [sys.executable, "-m", "diffuse_cli", "noise-demo", "image.png", "--overwrite"]
        try:
            ran = subprocess.run(
                [*line, *DEMO], capture_output=True, text=True, timeout=60 + fuzz.seconds,
                env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            fuzz.fail(name, "no end", data)
            continue
        fuzz.count("processes", f"exit {ran.returncode}: {reason or 'an image'}")
        if wrong := check_ending(ran.returncode, ran.stdout, ran.stderr, reason):
            fuzz.fail(name, wrong, data)


@contextlib.contextmanager
def stderr_of_libraries(fuzz: Fuzz) -> Iterator[None]:
    """What C libraries write past Python is a failure."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            if said := file.read(2000):
                fuzz.failures.append(f"on stderr: {said!r}")


def grown() -> float:
    """The most memory this process ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def files(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """The files of a seed, by name; first those that are rubbish by design."""
    for name, (data, _) in rubbish().items():
        yield f"rubbish-{name}", data
    for k in range(count):
        yield f"seed-{seed}-{k:06d}", mutated(Random(f"{seed}/{k}"))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds."""
    fuzz = Fuzz(options.seconds, options.keep.resolve())
    signal.signal(signal.SIGALRM, hang)
    began = time.monotonic()
    before = grown()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        with stderr_of_libraries(fuzz):
            found = try_reader(fuzz, files(options.seed, options.count))
            try_folders(fuzz, found)
            try_commands(fuzz, found[: options.commands or None])
        growth = grown() - before
        try_processes(fuzz, Random(options.seed).sample(found, min(options.processes, len(found))))
    if growth > options.memory:
        fuzz.failures.append(f"grew by {growth:.0f} MiB, over {options.memory} MiB")
    return {
        "seed": options.seed,
        "files": len(found),
        "seconds": round(time.monotonic() - began, 1),
        "growth_mib": round(growth),
        "outcomes": {name: dict(counts.most_common()) for name, counts in fuzz.outcomes.items()},
        "failures": fuzz.failures,
    }


def main() -> int:
    """Try, print, and 1 where something failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", type=int, default=0, help="noise-demo of so many; 0: of all")
    parser.add_argument("--processes", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=20, help="more for one file is a hang")
    parser.add_argument("--memory", type=int, default=1500, help="MiB that reading may take")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    found = run(parser.parse_args())
    print(json.dumps(found, indent=1))
    return 1 if found["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
