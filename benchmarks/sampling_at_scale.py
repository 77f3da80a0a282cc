"""Does a sampling of many images that is killed again and again make the files of one in one go?

Two processes draw N small images in two steps: once in one go, and once killed (SIGKILL, both at
once) at random moments and started again. All files must have the same SHA-256. A third time one
process draws N/10 of them: peak memory (the largest resident set of a process) must not grow with
N but for the names and hashes of the manifest. Prints JSON.

    python benchmarks/sampling_at_scale.py -n 50000 > benchmarks/results/sampling_at_scale.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from startup import make_model

from diffuse_cli.system import files


class Job:
    """`diffuse sample` by some processes."""

    def __init__(self, line: list[str], folder: Path, processes: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        launch = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.began = time.monotonic()
        self.ranks = [
            subprocess.Popen(
                [sys.executable, "-m", "diffuse_cli", *line, "-q"],
                cwd=folder,
                env={
                    **os.environ,
                    **(launch if processes > 1 else {}),
                    "RANK": str(k),
                    "LOCAL_RANK": str(k),
                    "OMP_NUM_THREADS": "1",
                },
                stdout=subprocess.DEVNULL,
            )
            for k in range(processes)
        ]

    def wait(self) -> dict[str, Any]:
        """Until the end: seconds, and the peak memory of each process in MiB."""
        peaks = []
        for rank in self.ranks:
            _, status, usage = os.wait4(rank.pid, 0)
            rank.returncode = os.waitstatus_to_exitcode(status)
            assert rank.returncode == 0, rank.returncode
            peaks.append(round(usage.ru_maxrss / 1024, 1))
        return {"seconds": round(time.monotonic() - self.began, 1), "peak_mib": peaks}

    def kill(self) -> None:
        """End all of them at once."""
        for rank in self.ranks:
            rank.send_signal(signal.SIGKILL)
        for rank in self.ranks:
            rank.wait()


def count(folder: Path) -> int:
    """How many images are there."""
    if not folder.is_dir():
        return 0
    with os.scandir(folder) as found:
        return sum(entry.name.endswith(".png") for entry in found)


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file, hidden ones too."""
    return {p.name: files.sha256(p) for p in sorted(folder.iterdir())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    draw = random.Random(asked.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = str(make_model(folder / "model.safetensors"))
        line = ["sample", model, "--steps", "2", "--precision", "fp32", "-o"]
        whole = Job([*line, "whole", "-n", str(asked.n)], folder, 2).wait()
        at = sorted(draw.sample(range(1, asked.n), asked.kills))
        left = []
        for least in at:
            job = Job([*line, "killed", "-n", str(asked.n)], folder, 2)
            while count(folder / "killed") < least:
                time.sleep(0.02)
            job.kill()
            left.append(count(folder / "killed"))
        last = Job([*line, "killed", "-n", str(asked.n)], folder, 2).wait()
        few = Job([*line, "few", "-n", str(max(1, asked.n // 10))], folder, 2).wait()
        same = hashes(folder / "whole") == hashes(folder / "killed")
        result = {
            "images": asked.n,
            "files": len(hashes(folder / "whole")),
            "same": same,
            "images_at_kills": left,
            "whole": whole,
            "last": last,
            "a_tenth": few,
        }
    print(json.dumps(result, indent=2))
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    main()
