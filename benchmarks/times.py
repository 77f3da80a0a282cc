"""Do timesteps learned from a model's own trajectories beat the default ones in few steps?

For every number of steps: the sampler's default timesteps, the cheapest path through 40 trailing
ones (`path`), and a search from the nearer of both (`both`). `diffuse tune` tries the last two.
All samples start from the same noise. Adds rows of JSON to a file.

    python benchmarks/times.py MODEL ... --real TEST_IMAGES --data NAME --out F
    python benchmarks/times.py --show F
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np

from diffuse_cli.config.sample_options import SAMPLER
from diffuse_cli.core.learned_timesteps import improve_times
from diffuse_cli.evaluation.tune import candidates
from diffuse_cli.evaluation.tune.candidates import Learner
from diffuse_cli.metrics import frechet
from diffuse_cli.sampling.generation import load_denoiser
from diffuse_cli.sampling.sampling_settings import SamplingSettings
from diffuse_cli.system.devices import open_accelerator, resolve_precision
from diffuse_cli.system.events import finish

SHOWN = ("kid", "frechet", "precision", "recall", "detail", "means", "brightness")


def ways(learner: Learner, settings: SamplingSettings) -> Iterator[tuple[str, list[float], float]]:
    """Yield the name and the timesteps of each way, and the CPU seconds of learning them."""
    yield "default", settings.resolve_times(learner.loaded.denoiser.process), 0.0
    began = time.process_time()
    path, ends = learner.plan_times(settings)
    yield "path", path, time.process_time() - began
    *_, times = improve_times(
        learner.choose_nearer(settings, path, ends),
        learner.error(settings, ends),
        candidates.ROUNDS,
    )
    yield "both", times, time.process_time() - began


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield a row for each model, number of steps and way."""
    with open_accelerator(resolve_precision("auto")) as accelerator:
        for path in options.models:
            loaded = finish(load_denoiser(path, "ema", accelerator))
            real = common.some(common.read(options.real, size=loaded.space.size), 1000)
            wanted = common.features(real, accelerator)
            learner = Learner(loaded, options.n, accelerator.device)
            for steps in map(int, options.steps.split(",")):
                settings = SamplingSettings(sampler=SAMPLER, steps=steps)
                for way, times, seconds in ways(learner, settings):
                    pixels, _ = common.sample(
                        loaded, options.n, accelerator,
                        steps=steps, sampler=SAMPLER, times=tuple(times),
                    )  # fmt: skip
                    found = common.features(pixels, accelerator)
                    yield {
                        "data": options.data,
                        "model": Path(path).stem,
                        "steps": steps,
                        "way": way,
                        "times": [round(float(t), 2) for t in times],
                        "learning_cpu_seconds": round(seconds, 1),
                        **common.distance(wanted, found),
                        "frechet": round(frechet.estimate_frechet(wanted, found).value, 1),
                        **common.shares(wanted, found),
                        **common.looks(real, pixels),
                    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the mean of each metric by data, steps and way."""
    for key in sorted({(r["data"], r["steps"], r["way"]) for r in rows}):
        same = [r for r in rows if (r["data"], r["steps"], r["way"]) == key]
        means = (f"{name} {np.mean([r[name] for r in same]):.3f}" for name in SHOWN)
        print(*key, f"models {len(same)}", *means)


def main() -> None:
    """Measure and add to the file, or show it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--real")
    parser.add_argument("--data", default="")
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--steps", default="4,6,8")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", type=Path)
    options = parser.parse_args()
    if options.show:
        return show(json.loads(options.show.read_text())["results"])
    rows = json.loads(options.out.read_text())["results"] if options.out.exists() else []
    for row in measure(options):
        rows.append(row)
        print(json.dumps(row), flush=True)
        lines = ",\n".join(map(json.dumps, rows))
        head = json.dumps({"machine": common.machine(), "sampler": SAMPLER, "n": options.n})[:-1]
        options.out.write_text(f'{head}, "results": [\n{lines}\n]}}\n')
    return None


if __name__ == "__main__":
    main()
