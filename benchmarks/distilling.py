"""How good are one to eight steps of a distilled model, for minutes of distilling?

Distils a model anew for each row (`NAME=options of diffuse distill`, with KEY=VALUE among them for
a constant of `core.distillation`), all with the same seed, steps and images, and draws with the
same noise; beside them the model itself with `unipc`. KID x 1000 is of EfficientNet-Lite0's
features. What is done is in --out and not repeated.

    python benchmarks/distilling.py MODEL TRAIN --real TEST --name fashion --out F \\
        --row "five minutes=--minutes,5" --row slow=--lr,0.0005 --row first=FIRST=4
    python benchmarks/distilling.py --show F
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common

from diffuse_cli.sampling.generation import load_denoiser
from diffuse_cli.system.devices import open_accelerator
from diffuse_cli.system.events import finish

TEACHER = "the model itself"


def distil(row: list[str], o: argparse.Namespace, out: Path) -> float:
    """Distil in a process of its own; the seconds it took."""
    constants = [word for word in row if not word.startswith("-") and "=" in word]
    options = [word for word in row if word not in constants]
    patch = "; ".join(f"consistency.{word}" for word in constants) or "pass"
    code = (
        "import sys; from diffuse_cli.core import consistency; "
        f"{patch}; from diffuse_cli.app import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [
        "distill", o.model, o.data, "--overwrite", "-o", str(out), "-q", "--preview-every",
        "1000000", "--seed", str(o.seed), *options,
    ]  # fmt: skip
    if "--steps" not in options and "--minutes" not in options:
        command += ["--steps", str(o.steps)]
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", code, *command], check=True, stdout=subprocess.DEVNULL)
    return round(time.monotonic() - began, 1)


def measure(path: str, sampler: str, o: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """KID of a model at each number of steps, and the seconds of drawing."""
    with open_accelerator("fp32", "cpu") as accelerator:
        loaded = finish(load_denoiser(path, "ema", accelerator))
        images = common.read(o.real, loaded.space.size)
        real = common.features(common.some(images, o.reference), accelerator)
        for steps in o.draw if sampler == "consistency" else [*o.draw, 20]:
            pixels, seconds = common.sample(
                loaded, o.n, accelerator, steps=steps, sampler=sampler, seed=o.seed
            )
            fake = common.features(pixels, accelerator)
            kid = {key: round(1000 * v, 1) for key, v in common.distance(real, fake).items()}
            yield {
                "sampler": sampler,
                "evaluations": steps,
                **kid,
                "recall": round(common.shares(real, fake)["recall"], 3),
                "seconds": round(seconds, 2),
                "ms_an_image": round(1000 * seconds / o.n, 2),
            }


def run(o: argparse.Namespace, row: str, results: list[dict[str, Any]]) -> None:
    """One row: the model itself, or one distilled from it."""
    name, _, words = row.partition("=")
    about = {"name": o.name, "row": name, "seed": o.seed, "n": o.n, "steps": o.steps}
    keys = ("name", "row", "seed", "n")
    if any(all(r[k] == about[k] for k in keys) for r in results):
        return
    path, sampler = o.model, "unipc"
    if name != TEACHER:
        path, sampler = str(Path(o.keep) / f"{o.name}-{name}-{o.seed}.safetensors"), "consistency"
        about["options"] = words
        about["distilling_seconds"] = distil(words.split(",") if words else [], o, Path(path))
    results.append({**about, "results": list(measure(path, sampler, o))})
    results[-1]["machine"] = common.machine()
    Path(o.out).write_text(json.dumps(results, indent=1) + "\n")
    print(show(results[-1:]), flush=True)


def show(results: list[dict[str, Any]]) -> str:
    """A line a row: KID x 1000 by evaluations."""
    lines = []
    for r in results:
        found = "  ".join(f"{x['evaluations']}: {x['kid']:6.0f}" for x in r["results"])
        took = f"{r.get('distilling_seconds', 0):6.0f} s"
        lines.append(f"{r['name']:9}{r['row']:20} seed {r['seed']} {took}   {found}")
    return "\n".join(lines)


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def main() -> None:
    """Run what is missing, and show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("data", nargs="?")
    parser.add_argument("--show")
    parser.add_argument("--real")
    parser.add_argument("--name", default="images")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--row", action="append", default=[])
    parser.add_argument("--draw", type=_numbers, default="1,2,4,8")
    parser.add_argument("-n", type=int, default=1000)
    parser.add_argument("--reference", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", default=".")
    parser.add_argument("--out", default="distilling.json")
    o = parser.parse_args()
    if o.show:
        print(show(json.loads(Path(o.show).read_text())))
        return
    results = json.loads(Path(o.out).read_text()) if Path(o.out).exists() else []
    for row in [TEACHER, *o.row]:
        run(o, row, results)


if __name__ == "__main__":
    main()
