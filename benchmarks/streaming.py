"""Does training wait for images that it decodes as it goes, and does its memory grow?

`tiny` at 32x32 learns 100,000 grey images (made here, or SOURCE) on two cores: one for the step,
and one for the thread that decodes, with `--cache 0` and, with --kept, all of them in memory.
`waiting` is the share of the time in which steps wait for images, as metrics.jsonl has
it; memory is that of the process, every second, of which the private part counts.
`index` is the pass that names every image by its content: on all cores, before the first step, and
again from the index. Files are in the page cache. Prints JSON; with --plot, draws it.

    python benchmarks/streaming.py --plot PICTURE > benchmarks/results/streaming.json
    python benchmarks/streaming.py SHARDS --seconds 60
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import common
import numpy as np
from PIL import Image

from diffuse_cli.data import read_images
from diffuse_cli.system.events import finish

SIDE, FOLDERS = 32, 100
BATCH, LOG_EVERY = 64, 5
SETTLED = 2
"""Lines of metrics that do not count: the queue fills, and pages are touched the first time."""


def make(folder: Path, count: int) -> None:
    """Grey blobs with grain, in as many folders as keep each small."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    for k in range(count):
        place, width = draw.uniform(0.2, 0.8, 2), draw.uniform(0.05, 0.3)
        blob = 200 * np.exp(-((x - place[0]) ** 2 + (y - place[1]) ** 2) / width**2)
        pixels = (blob + draw.integers(0, 30, (SIDE, SIDE))).clip(0, 255).astype(np.uint8)
        path = folder / f"{k % FOLDERS:02d}" / f"{k:06d}.png"
        if k < FOLDERS:
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=1)


def indexing(source: str, folder: Path) -> dict[str, Any]:
    """The pass over all images, and what it takes when it is made already."""
    found = {}
    for name in ("pass", "again"):
        began = time.monotonic()
        images = finish(read_images(source, keep=0, index=folder / "index.jsonl"))
        seconds = time.monotonic() - began
        found[name] = {
            "seconds": round(seconds, 1),
            "images_per_second": round(len(images) / seconds),
        }
    size = (folder / "index.jsonl").stat().st_size
    return {"images": len(images), **found, "bytes_an_image": round(size / len(images))}


def private(process: int) -> int:
    """Bytes that a process shares with no file."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    own = [int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Swap:"))]
    return 1024 * sum(own)


def trained(source: str, folder: Path, cache: str, seconds: float) -> dict[str, Any]:
    """A run of so many seconds."""
    out = folder / f"cache-{cache}.safetensors"
    line = [sys.executable, "-m", "diffuse_cli", "train", source, "--preset", "tiny", "-o", out]
    line += ["--size", SIDE, "--cache", cache, "--workers", 1, "--batch-size", BATCH, "-q"]
    line += ["--steps", 10**6, "--preview-every", 10**6, "--save-every", 10**6]
    line += ["--log-every", LOG_EVERY, "--precision", "fp32"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen([str(word) for word in line], env=env)
    metrics, memory = out.with_suffix(".run") / "metrics.jsonl", []
    began: float | None = None
    while running.poll() is None and (began is None or time.monotonic() < began + seconds):
        time.sleep(1)
        if began is None and metrics.exists():
            began = time.monotonic()
        if began is not None:
            took = round(time.monotonic() - began, 1)
            memory.append([took, private(running.pid) / 2**20])
    running.send_signal(signal.SIGINT)
    running.wait()
    rows = [json.loads(text) for text in metrics.read_text().splitlines()][SETTLED:]
    held = [mib for took, mib in memory if took > min(20, seconds / 4)]
    return {
        "steps": rows[-1]["step"],
        "images_per_second": round(median(row["images_per_second"] for row in rows), 1),
        "waiting": round(sum(row.get("waiting", 0.0) for row in rows) / len(rows), 5),
        "memory_mib": [[took, round(mib, 1)] for took, mib in memory],
        "growth_mib": round(median(held[-10:]) - median(held[:10]), 1),
    }


def plot(found: dict[str, Any], path: str) -> None:
    """Memory over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    names = {"streamed": "decoded as they are used", "kept": "all in memory"}
    for name, label in ((n, text) for n, text in names.items() if n in found):
        took, mib = zip(*found[name]["memory_mib"], strict=True)
        axes.plot(took, mib, label=label)
    axes.set(xlabel="seconds", ylabel="memory of the process (MiB)", ylim=(0, None))
    axes.set_title(f"{found['index']['images']:,} images of {SIDE}x{SIDE}", fontsize=10)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("source", nargs="?", metavar="SOURCE")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--kept", action="store_true", help="also train from memory")
    parser.add_argument("--plot", metavar="FILE")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if given.source is None:
            make(folder / "images", given.images)
        source = given.source or str(folder / "images")
        found = {
            "machine": {**common.machine(), "cores": len(os.sched_getaffinity(0))},
            "index": indexing(source, folder),
            "streamed": trained(source, folder, "0", given.seconds),
        }
        if given.kept:
            found["kept"] = trained(source, folder, "4GiB", given.seconds)
        found["load"] = round(os.getloadavg()[1], 1)
    print(json.dumps(found, indent=1))
    if given.plot:
        plot(found, given.plot)


if __name__ == "__main__":
    main()
