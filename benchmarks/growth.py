"""How does the cost of training grow with the batch, the resolution and the width?

Images a second and peak memory of our training step on random pixels, the `tiny` network unless
said otherwise, each point in a process of its own. A point whose first step takes longer than
--seconds is not repeated, and larger ones of its series are left out. Prints JSON.

    python benchmarks/growth.py --plot docs/images/growth.png > benchmarks/results/growth.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common
import plots
from steps import WARM_UP, alone, gflop, ours, peak, plan, say, show, significant, speed, timed

from diffuse_cli.system.devices import open_accelerator, resolve_precision

POINT = {"batch_size": 32, "size": 32, "width": 32}
"""Around which one thing is varied at a time."""

SERIES: dict[str, tuple[int, ...]] = {
    "batch_size": (8, 16, 32, 64, 128, 256),
    "size": (32, 64),
    "width": (32, 64, 96, 128),
}
LEAST, MOST = 3, 20
"""Steps that are timed."""


def measure(point: Mapping[str, Any], precision: str, seconds: float) -> dict[str, Any]:
    """Speed and memory of a point, in this process."""
    with open_accelerator(precision) as accelerator:
        before = peak()
        chosen = plan(preset="tiny", precision=precision, **point)
        step, trainer = ours(chosen, accelerator)
        times = [timed(step)]
        began = time.monotonic()
        # The first steps find their kernels, and count only where there are no others.
        while times[0] < seconds and len(times) < WARM_UP + MOST:
            if len(times) >= WARM_UP + LEAST and time.monotonic() - began > seconds:
                break
            times.append(timed(step))
        held = peak()
        cost = 3 * gflop(trainer.net, point["size"])
    measured = speed(times[WARM_UP:] or times, point["batch_size"])
    return {
        **measured,
        "steps": max(1, len(times) - WARM_UP),
        "gflop_per_image": significant(cost),
        "gflop_per_s": significant(cost * measured["images_per_s"]),
        "peak_mib": round(held),
        "over_imports_mib": round(held - before),
    }


def sweep(precision: str, seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Every series."""
    found: dict[str, list[dict[str, Any]]] = {}
    for name, values in SERIES.items():
        found[name] = []
        for value in values:
            point = {**POINT, name: value}
            flags = ("--precision", precision, "--seconds", str(seconds))
            row = {name: value, **alone(__file__, "--point", json.dumps(point), *flags)}
            found[name].append(row)
            if row["steps"] == 1:
                say(f"{name} {value}: a step takes {row['seconds']:.1f} s; larger ones left out")
                break
        show(found[name])
    return found


def main() -> None:
    """Measure, draw where asked, and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8.0, help="for a point")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--point", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    precision = resolve_precision(options.precision)
    if options.point:
        print(json.dumps(measure(options.point, precision, options.seconds)))
        return
    series = sweep(precision, options.seconds)
    if options.plot:
        options.plot.write_bytes(plots.growth(series))
    head = {"precision": precision, "around": POINT, "machine": common.machine()}
    print(json.dumps({**head, "series": series}, indent=1))


if __name__ == "__main__":
    main()
