"""Which share of `--minutes` trains, and what takes the rest?

Each run is a process on one core. Its minutes are CPU time, user and system, because other programs
may share the machine. A part is the time within its functions, without other parts within them. If
you name the folder of another version with `--package`, both versions take turns. Prints JSON.

    python benchmarks/minutes.py hands-64=HANDS:64 pets-128=PETS:128 --minutes 10 \\
        --package before=OTHER_CHECKOUT > benchmarks/results/minutes.json
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

TRAINING = "diffuse_cli.training."
STEPS, START, REST = "steps", "imports", "rest"

PARTS: tuple[tuple[str, str], ...] = (
    ("training_data.read_data", "reading"),
    ("plan.measure_gaussian", "Gaussian of the data"),
    ("plan.prepare_plan", "plan"),
    ("trainer.Trainer.__init__", "network"),
    ("trainer.Trainer.step", STEPS),
    ("monitor.Monitor.load_judges", "feature network"),
    ("monitor.Monitor._measure_losses", "held-out losses"),
    ("monitor.Monitor._make_preview", "previews"),
    ("monitor.Monitor._compare", "looks for copies"),
    ("monitor.Monitor._measure_errors", "errors of x_0"),
    ("monitor.Monitor._choose_settings", "trials"),
    ("loop.TrainingRun._save", "checkpoints"),
    ("run_page.RunPage.write", "page"),
    ("start_report.describe_start", "contact sheet"),
    ("run_directory.RunDirectory.write", "model file"),
)
"""Functions of `diffuse_cli.training`, and the part of a run that they are."""


class Spans:
    """CPU seconds of the parts of a process, each without the parts within it."""

    def __init__(self) -> None:
        self.seconds, self.times = Counter[str](), Counter[str]()
        self._parts, self._since = [START], 0.0

    def switch(self) -> None:
        """Count the time since the last change for the current part."""
        now = time.process_time()
        self.seconds[self._parts[-1]] += now - self._since
        self._since = now

    def enter(self, part: str) -> None:
        """Begin a part."""
        self.switch()
        self._parts.append(part)

    def leave(self) -> None:
        """Return to the part around it."""
        self.switch()
        self._parts.pop()

    def wrap(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """Count the time in a function, or within a generator."""

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            self.times[part] += 1
            self.enter(part)
            try:
                return function(*args, **options)
            finally:
                self.leave()

        @functools.wraps(function)
        def work(*args: Any, **options: Any) -> Generator[Any, Any, Any]:
            self.times[part] += 1
            events = function(*args, **options)
            while True:
                self.enter(part)
                try:
                    event = next(events)
                except StopIteration as ended:
                    return ended.value
                finally:
                    self.leave()
                yield event

        return work if inspect.isgeneratorfunction(function) else call

    def start(self, part: str) -> None:
        """End the imports: the rest of the process is `part` where it is no other."""
        self.switch()
        self._parts = [part]


def patch(spans: Spans) -> None:
    """Count the time of all `PARTS`, also where modules have imported them by name."""
    for path, part in PARTS:
        module, *names = path.split(".")
        owner: Any = importlib.import_module(TRAINING + module)
        for name in names[:-1]:
            owner = getattr(owner, name)
        function = getattr(owner, names[-1])
        replacement = spans.wrap(function, part)
        setattr(owner, names[-1], replacement)
        for other in [m for n, m in sys.modules.items() if n.startswith(TRAINING)]:
            for name, value in list(vars(other).items()):
                if value is function:
                    setattr(other, name, replacement)
                if isinstance(value, dict):  # the monitor's table of work
                    value.update({k: replacement for k, v in value.items() if v is function})


def run_child(arguments: list[str], result: Path) -> None:
    """Train in this process, and write the seconds of its parts."""
    spans = Spans()
    time.monotonic = time.process_time  # the run's minutes are those of its core
    importlib.import_module(TRAINING + "loop")
    patch(spans)
    spans.start(REST)
    code = importlib.import_module("diffuse_cli.app").main(arguments)
    spans.switch()
    result.write_text(json.dumps({"seconds": spans.seconds, "times": spans.times}))
    sys.exit(code)


def measure(package: str, core: int, options: list[str], folder: Path) -> dict[str, Any]:
    """Train once, and return the CPU seconds of each part."""
    result = folder / "parts.json"
    command = [sys.executable, __file__, "--child", str(result), "--", "train", *options]
    command += ["-o", str(folder / "model.safetensors"), "--overwrite", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": package}
    subprocess.run(["taskset", "-c", str(core), *command], env=environment, check=True, cwd=folder)
    values: dict[str, Any] = json.loads(result.read_text())
    return values


def describe(values: dict[str, Any]) -> dict[str, Any]:
    """Return the CPU seconds and the share of each part of a run, the longest first."""
    total = sum(values["seconds"].values())
    parts = {
        part: {
            "times": values["times"].get(part, 1),
            "seconds": round(seconds, 2),
            "share": round(seconds / total, 4),
        }
        for part, seconds in sorted(values["seconds"].items(), key=lambda item: -item[1])
    }
    return {"seconds": round(total, 1), "parts": parts}


def main() -> None:
    """Measure runs on each data set, with each version."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="*", help="NAME=FOLDER:SIZE")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--package", action="append", default=[], help="NAME=FOLDER")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return run_child(options.data, options.child)
    import common  # not in the processes that are measured

    here = str(Path(__file__).resolve().parents[1])
    packages = {**dict(item.split("=", 1) for item in options.package), "now": here}
    rows = []
    for item in options.data:
        name, _, source = item.partition("=")
        folder, _, size = source.rpartition(":")
        arguments = [folder, "--size", size, "--minutes", str(options.minutes)]
        for version, package in packages.items():
            with tempfile.TemporaryDirectory() as out:
                values = measure(package, options.core, arguments, Path(out))
            row = {"data": name, "version": version, "minutes": options.minutes}
            rows.append({**row, **describe(values)})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    print(json.dumps({"machine": common.machine(), "rows": rows}, indent=1))
    return None


if __name__ == "__main__":
    main()
