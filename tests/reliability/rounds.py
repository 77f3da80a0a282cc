"""Train, die, resume, compare: whole rounds, each in a process of its own.

    python tests/reliability/rounds.py operations [--every]
    python tests/reliability/rounds.py signals --count 100 --seed 0

`operations` ends a run before and after operations on the disk: at two, or with --every at
each one (of the writes into one file, at the first and the last).
`signals` sends SIGKILL at random moments of runs that save after every second step. Each killed
run is resumed, and its model file, its best model and its averages of other lengths must have the
SHA-256 of those of the run that nothing stopped. Prints one JSON object, and exits with 1 where a
round failed.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: equal bytes need equal threads
os.environ["DIFFUSE_CACHE"] = ""

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from conftest import begin, environment
from lab import QUICK, write_images
from process_server import Forked, Server

from diffuse_cli.system import files
from diffuse_cli.training.run_directory import RunDirectory

MODEL = "model.safetensors"
MADE = ("model*.safetensors", "model.run/ema/*")
"""What a run leaves for whoever uses it."""

RUN = [
    "--steps", "6", "--save-every", "2", "--preview-every", "4", "--log-every", "2", "--flip",
    "--accumulation", "2", "--classes", "--label-dropout", "0.3", "--variance", "learned",
    "--timestep-draw", "importance", "--num-timesteps", "3", "--eval-every", "2", "--eval-images",
    "4", "--ema-lengths", "4", "-q",
]  # fmt: skip
"""Everything that is state, in as few steps as have three saves, a preview, losses that decide the
timesteps, evaluations of which a model is the best, and averages of other lengths."""

LONG = [
    "--steps", "16", "--save-every", "2", "--preview-every", "6", "--log-every", "1", "--flip",
    "--eval-every", "6", "--eval-images", "4", "--ema-lengths", "4", "-q",
]  # fmt: skip

FEW = 2
"""Operations at which a run is ended where not at every one."""


class World:
    """A folder with images and a recipe, where runs are made."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        write_images(folder / "images")
        (folder / "tiny.toml").write_text(QUICK.read_text() + "dropout = 0.2\n")

    def start(self, options: list[str], seam: str = "") -> Forked:
        """A process that trains in `folder`, over one of `file_operations`."""
        line = ["train", "images", "--config", "tiny.toml", *options]
        replace = f"files.operation = file_operations.{seam}"
        before = f"import file_operations; from diffuse_cli.system import files; {replace}"
        with (self.folder / "log.txt").open("a") as log:
            said = log.fileno()
            return begin(
                self.server, line, self.folder, environment(),
                before=before if seam else "", stdout=said, stderr=said,
            )  # fmt: skip

    def run(self, options: list[str], seam: str = "") -> int | None:
        """`start`, until it has ended: its exit code, or minus the signal that ended it."""
        return self.start(options, seam).wait()

    def clear(self) -> None:
        """Remove what a run left."""
        for path in self.folder.glob("model*.safetensors"):
            path.unlink()
        shutil.rmtree(self.folder / "model.run", ignore_errors=True)

    def whole(self, options: list[str], seam: str = "") -> dict[str, str]:
        """What a run makes that nothing stops."""
        self.clear()
        assert self.run(options, seam) == 0, (self.folder / "log.txt").read_text()
        return self.made()

    def made(self) -> dict[str, str]:
        """The SHA-256 of each file that a run leaves, by its name."""
        paths = [path for pattern in MADE for path in self.folder.glob(pattern)]
        return {path.name: files.sha256(path) for path in paths}

    def faults(self, options: list[str], expected: dict[str, str]) -> list[str]:
        """What is wrong after a resume: its exit code, what it made, files that were left over."""
        code = self.run([*options, "--auto-resume"])
        found = [f"resume ended with {code}"] if code else []
        differing = dict(self.made().items() ^ expected.items())
        found += [f"another {name}" for name in sorted(differing)]
        left = [p.name for p in self.folder.rglob(".*.tmp")]
        left += [p.name for p in self.folder.rglob("lock")]
        return found + [f"{name} is left" for name in left]


def moments(lines: list[str], every: bool) -> list[int]:
    """The moments of rounds, from the operations of a run."""
    if not every:
        places = [round((k + 0.5) * len(lines) / FEW) for k in range(FEW)]
        return [2 * place + k % 2 for k, place in enumerate(places)]
    inner = {
        k
        for k, (before, here, after) in enumerate(zip(lines, lines[1:], lines[2:], strict=False), 1)
        if here.startswith("write ") and before == here == after
    }
    return [2 * k + after for k in range(len(lines)) if k not in inner for after in (0, 1)]


def operations(here: World, every: bool = False) -> dict[str, Any]:
    """Rounds ended at operations on the disk."""
    noted = here.folder / "operations.txt"
    expected = here.whole(RUN, f"noting(files.Path({str(noted)!r}))")
    assert len(expected) == 5, expected
    lines = noted.read_text().splitlines()
    failed, chosen = {}, moments(lines, every)
    for moment in chosen:
        here.clear()
        code = here.run(RUN, f"ends_at({moment})")
        faults = [f"it ended with {code}"] if code != 137 else []
        if faults := faults + here.faults(RUN, expected):
            failed[moment] = faults
    return {"operations": len(lines), "rounds": len(chosen), "failed": failed}


def signals(here: World, count: int = 3, seed: int = 0) -> dict[str, Any]:
    """Rounds ended by SIGKILL, until there were `count` of them; a killed run may be killed again
    when it has been resumed."""
    draw = random.Random(seed)
    began = time.monotonic()
    expected = here.whole(LONG)
    takes = time.monotonic() - began
    killed = runs = 0
    moments, failed = [], []
    while killed < count:
        here.clear()
        runs, options = runs + 1, LONG
        while killed < count:
            process = here.start(options)
            time.sleep(draw.uniform(0, 0.7 * takes))
            process.kill()
            if process.wait() != -signal.SIGKILL:
                break
            killed += 1
            moments.append(RunDirectory(here.folder / MODEL).newest_step() or 0)
            options = [*LONG, "--auto-resume"]
        if faults := here.faults(LONG, expected):
            failed.append(faults)
    return {"killed": killed, "runs": runs, "newest_steps": moments, "failed": failed}


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("operations", "signals"))
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Server(environment()) as server:
        here = World(server, Path(folder))
        if given.kind == "operations":
            found = operations(here, given.every)
        else:
            found = signals(here, given.count, given.seed)
    print(json.dumps(found))
    return 1 if found["failed"] else 0


if __name__ == "__main__":
    sys.exit(_main())
