"""Does a change of the recipe make better pictures? Paired runs of `diffuse train`.

Each row is a set of options; every row trains with the same seeds, steps and images, draws with the
same noise, and is compared with the first one, seed by seed. A run is written to `--out` as soon as
it is done, and not repeated. `candidates.py` holds what the tables do not.

    python benchmarks/recipe.py PHOTOS --real OTHERS --name photos --size 32 --steps 1500 \\
        --row base --row muon=--optimizer,muon --out benchmarks/results/recipe.json
    python benchmarks/recipe.py --show benchmarks/results/recipe.json
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

KEYS = ("kid_x1000", "frechet", "precision", "recall", "means", "within", "brightness")
"""The last three: the deviation of the images' means and the mean deviation within them, as shares
of those of real images, and the brightness less theirs."""


def offer(folder: Path) -> dict[str, str]:
    """The environment in which `candidates` are entry points, with their metadata in `folder`."""
    import candidates

    about = folder / "candidates-0.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: candidates\nVersion: 0\n")
    (about / "entry_points.txt").write_text(candidates.entry_points())
    here = Path(__file__).parent
    path = os.pathsep.join([str(folder), str(here), str(here.parent)])
    return {**os.environ, "PYTHONPATH": path}


def diffuse(environment: dict[str, str], *arguments: str) -> Any:
    """Run a command with --json and return its result."""
    command = [sys.executable, "-m", "diffuse_cli", *arguments, "--json", "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)


def run(row: list[str], seed: int, o: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Train, draw and measure one row."""
    environment = offer(folder)
    model, out = str(folder / "model.safetensors"), str(folder / "samples")
    began = time.monotonic()
    trained = diffuse(
        environment, "train", o.data, "-o", model, "--overwrite", "--size", str(o.size),
        "--steps", str(o.steps), "--batch-size", str(o.batch), "--seed", str(seed),
        "--preview-every", str(o.steps), *row,
    )  # fmt: skip
    made = diffuse(
        environment, "sample", model, "-o", out, "--overwrite", "-n", str(o.n),
        "--steps", str(o.draw), "--seed", str(seed), *o.sample,
    )  # fmt: skip
    found = measure(made["images"], o) | compare_classes(made["images"], o)
    if o.keep:
        o.keep.mkdir(parents=True, exist_ok=True)
        grid = Path(made["images"][0]).parent / "grid.png"
        grid.rename(o.keep / f"{o.name}-{o.label}-{seed}.png")
    return {
        "training_seconds": trained["seconds"],
        "held_out_loss": trained["held_out_loss"],
        "seconds": round(time.monotonic() - began, 1),
        **found,
    }


def measure(paths: list[str], o: argparse.Namespace) -> dict[str, float]:
    """Distances of drawn images to real ones, and what the eye sees first."""
    import common

    from diffuse_cli.metrics import frechet
    from diffuse_cli.system.devices import open_accelerator

    fake = common.pictures(paths)
    real = common.some(common.read(o.real or o.data, (o.size, o.size)), o.reference)
    with open_accelerator("fp32", "cpu") as accelerator:
        a, b = common.features(real, accelerator), common.features(fake, accelerator)
    kid = common.distance(a, b)
    return {
        "kid_x1000": round(1000 * kid["kid"], 2),
        "kid_x1000_standard_error": round(1000 * kid["kid_standard_error"], 2),
        "frechet": round(frechet.estimate_frechet(a, b).value, 2),
        **common.shares(a, b),
        **common.looks(real, fake),
    }


def compare_classes(paths: list[str], o: argparse.Namespace) -> dict[str, float]:
    """The root mean square error of the brightness of classes, in levels, if there are any."""
    import common
    import numpy as np

    classes = json.loads((Path(paths[0]).parent / "manifest.json").read_text()).get("classes")
    if not classes:
        return {}
    fake, errors = common.pictures(paths), []
    for name in sorted(set(classes)):
        own = [c == name for c in classes]
        real = common.read(str(Path(o.real) / name), (o.size, o.size))
        errors.append(fake[own].mean() - common.some(real, o.reference).mean())
    return {"class_brightness": round(float(np.square(errors).mean() ** 0.5), 2)}


def show(runs: list[dict[str, Any]]) -> str:
    """Each row less the first one, by data set and length, with the error of the difference."""
    lines = []
    for group in sorted({(r["name"], r["steps"], r["batch"]) for r in runs}):
        own = [r for r in runs if (r["name"], r["steps"], r["batch"]) == group]
        first = {r["seed"]: r for r in own if r["row"] == own[0]["row"]}
        lines.append("{}, {:,} steps of {}".format(*group))
        head = f"  {'row':26}{'seeds':>6}{'KID':>8}{'less the first':>20}"
        lines.append(head + "".join(f"{key:>11}" for key in KEYS[1:]) + f"{'s':>7}")
        for row in dict.fromkeys(r["row"] for r in own):
            these = [r for r in own if r["row"] == row]
            mean = {k: statistics.mean(r[k] for r in these) for k in (*KEYS, "training_seconds")}
            pairs = [
                r["kid_x1000"] - first[r["seed"]]["kid_x1000"]
                for r in these
                if r["seed"] in first and r not in first.values()
            ]
            less = f"{statistics.mean(pairs):+.1f}" if pairs else ""
            if len(pairs) > 1:
                less += f" ± {statistics.stdev(pairs) / len(pairs) ** 0.5:.1f}"
            line = f"  {row:26}{len(these):6}{mean['kid_x1000']:8.1f}{less:>20}"
            line += "".join(f"{mean[key]:11.3f}" for key in KEYS[1:])
            lines.append(line + f"{mean['training_seconds']:7.0f}")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and show everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?")
    parser.add_argument("--real", help="images to measure against")
    parser.add_argument("--reference", type=int, default=1000, help="how many of them at most")
    parser.add_argument("--name", help="of the data")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--row", action="append", default=[], help="NAME=OPTION,VALUE,...")
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--draw", type=int, default=12, help="sampling steps")
    parser.add_argument("--sample", nargs="*", default=[], help="more options of sampling")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--keep", type=Path, help="a folder for grids")
    parser.add_argument("--show", type=Path)
    o = parser.parse_args()
    if o.show:
        print(show(json.loads(o.show.read_text())))
        return
    with tempfile.TemporaryDirectory() as folder:
        for seed in o.seeds:
            for text in o.row:
                o.label, _, options = text.partition("=")
                row = [part for part in options.split(",") if part]
                head = {"name": o.name, "size": o.size, "steps": o.steps, "batch": o.batch}
                head |= {"row": o.label, "options": row, "seed": seed, "n": o.n, "draw": o.draw}
                before = json.loads(o.out.read_text()) if o.out.exists() else []
                if any(head.items() <= r.items() for r in before):
                    continue
                found = {**head, **run(row, seed, o, Path(folder))}
                before = json.loads(o.out.read_text()) if o.out.exists() else []
                o.out.write_text(json.dumps([*before, found], indent=1) + "\n")
                print(json.dumps(found), flush=True)
    print(show(json.loads(o.out.read_text())))


if __name__ == "__main__":
    main()
