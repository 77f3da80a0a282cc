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
import json
import os
import resource
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from image_corpus import decode
from mutated_images import mutated
from odd_files import rubbish
from trials import Late, Ran, in_time, run_here, run_there

from diffuse_cli.data import read_images
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.system.events import finish

IN_A_FOLDER = 100
DEMO = ["noise-demo", "image.png", "-o", "out.png", "--overwrite", "--steps", "2", "--size", "8"]
DEMO += ["--num-timesteps", "10", "--schedule", "cosine", "-q"]
"""A picture that is drawn in no time."""

Found = list[tuple[str, bytes, str]]
"""Names of files, their bytes, and the reasons why they are skipped: empty for images."""


class Fuzz:
    """Outcomes by round, and failures with the files behind them."""

    def __init__(self, keep: Path) -> None:
        self.keep = keep
        self.outcomes: dict[str, Counter[str]] = {}
        self.failures: list[str] = []

    def count(self, trial: str, outcome: str) -> None:
        self.outcomes.setdefault(trial, Counter())[outcome] += 1

    def fail(self, name: str, what: str, data: bytes) -> None:
        """Note a failure and keep the file behind it."""
        self.keep.mkdir(parents=True, exist_ok=True)
        path = self.keep / f"{name}.png"
        path.write_bytes(data)
        self.failures.append(f"{path}: {what}")

    @contextlib.contextmanager
    def case(self, name: str, data: bytes) -> Iterator[None]:
        """Seconds for a case, and its failures."""
        try:
            with in_time():
                yield
        except Late:
            self.fail(name, "no end", data)
        except Exception:
            self.fail(name, traceback.format_exc(), data)


def try_reader(fuzz: Fuzz, files: Iterator[tuple[str, bytes]]) -> Found:
    """Decode files, and return them with their outcomes."""
    found = []
    for name, data in files:
        with fuzz.case(name, data):
            try:
                decode(data)
                reason = ""
            except Unusable as error:
                reason = error.reason
            found.append((name, data, reason))
            fuzz.count("decode", reason or "an image")
    return found


def try_folders(fuzz: Fuzz, found: Found) -> None:
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


def check(ran: Ran, reason: str) -> str:
    """Return what is wrong with how a command ended, or an empty string."""
    if "Traceback" in ran.out + ran.err or ran.code != (3 if reason else 0):
        return f"exit code {ran.code}: {ran.err}"
    if reason and (ran.out or ran.err.count("\n") != 1 or not ran.err.startswith("diffuse: ")):
        return f"not one line: {ran}"
    return "" if reason or (not ran.err and ran.out.endswith(".png\n")) else str(ran)


def try_commands(fuzz: Fuzz, found: Found, run: Any) -> None:
    """Run `noise-demo` in this process, or in one of its own."""
    for name, data, reason in found:
        with fuzz.case(name, data):
            Path("image.png").write_bytes(data)
            ran = run(DEMO)
            fuzz.count(run.__name__, f"exit {ran.code}: {reason or 'an image'}")
            if wrong := check(ran, reason):
                fuzz.fail(name, wrong, data)


@contextlib.contextmanager
def stderr_of_libraries(fuzz: Fuzz) -> Iterator[None]:
    """Take what C libraries write past Python for a failure."""
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


def largest() -> float:
    """Return the most memory that this process ever had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def files(seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield the files of a seed, by name; first those that are rubbish by design."""
    for name, (data, _) in rubbish().items():
        yield f"rubbish-{name}", data
    for k in range(count):
        yield f"seed-{seed}-{k:06d}", mutated(Random(f"{seed}/{k}"))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Try all rounds."""
    fuzz, before = Fuzz(options.keep.resolve()), largest()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        with stderr_of_libraries(fuzz):
            found = try_reader(fuzz, files(options.seed, options.count))
            try_folders(fuzz, found)
            try_commands(fuzz, found, run_here)
        growth = largest() - before
        some = Random(options.seed).sample(found, min(options.processes, len(found)))
        try_commands(fuzz, some, run_there)
    if growth > options.memory:
        fuzz.failures.append(f"grew by {growth:.0f} MiB, over {options.memory} MiB")
    return {
        "seed": options.seed,
        "files": len(found),
        "growth_mib": round(growth),
        "outcomes": {name: dict(counts.most_common()) for name, counts in fuzz.outcomes.items()},
        "failures": fuzz.failures,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=100)
    parser.add_argument("--memory", type=int, default=1500, help="MiB that reading may take")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    found = run(parser.parse_args())
    print(json.dumps(found, indent=1))
    sys.exit(1 if found["failures"] else 0)
