"""Do times learned from a model's own trajectories save evaluations? How should they be learned?

For every number of steps: trailing times; the cheapest path through 40 trailing ones (`path`);
those of a search from trailing times (`search`); and of one from the nearer of these (`both`).
`diffuse tune` tries `path` and `both`. `error` is the root mean square between where samples and 40
steps of `unipc` end, from noise that nothing was learned from, at levels from -1 to 1. Prints JSON.

    python benchmarks/times.py MODEL --real TEST_IMAGES
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import common
import numpy as np

from diffuse_cli.config.sample_options import SAMPLER
from diffuse_cli.core.learned_timesteps import improved
from diffuse_cli.evaluation.tune import candidates
from diffuse_cli.evaluation.tune.candidates import Learner
from diffuse_cli.sampling.generation import load_denoiser
from diffuse_cli.sampling.sampling_settings import DrawSettings
from diffuse_cli.system.devices import machine, resolve_precision
from diffuse_cli.system.events import finish

REFERENCE = 40
"""The steps whose ends are aimed at."""


def ways(learner: Learner, settings: DrawSettings, wanted: list[str]) -> Iterator[tuple[Any, ...]]:
    """The times of each way, and the seconds of learning them."""
    process = learner.loaded.denoiser.process
    trailing = [float(t) for t in process.times(settings.steps)]
    if "trailing" in wanted:
        yield "trailing", trailing, 0.0
    if settings.steps == REFERENCE or not {"path", "search", "both"} & set(wanted):
        return
    began = time.monotonic()
    path, ends = learner.planned(settings)
    took = time.monotonic() - began
    if "path" in wanted:
        yield "path", path, took
    error = learner.error(settings, ends)
    for way in ("search", "both"):
        if way in wanted:
            began = time.monotonic()
            start = trailing if way == "search" else learner.nearer(settings, path, ends)
            *_, times = improved(start, error, candidates.ROUNDS)
            yield way, times, took + time.monotonic() - began


def main() -> None:
    """Measure every way at every number of steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--real", required=True)
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--steps", default=f"4,5,6,8,{REFERENCE}")
    parser.add_argument("--ways", default="trailing,path,search,both")
    parser.add_argument("--sampler", default=SAMPLER)
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    with machine(resolve_precision("auto")) as accelerator:
        loaded = finish(load_denoiser(options.model, "ema", accelerator))
        real = np.ascontiguousarray(common.read(options.real, size=loaded.space.size).stored)
        wanted = common.features(real[:1000], accelerator)
        learner = Learner(loaded, options.n, accelerator.device)
        others = replace(learner, first=options.n + candidates.SAMPLES)
        _, ends = others.planned(DrawSettings(steps=2))
        for steps in map(int, options.steps.split(",")):
            settings = DrawSettings(sampler=options.sampler, steps=steps)
            for way, times, seconds in ways(learner, settings, options.ways.split(",")):
                error = others.error(settings, ends)(times)
                pixels, _ = common.sample(
                    loaded, options.n, accelerator, steps=steps, sampler=options.sampler,
                    times=tuple(times),
                )  # fmt: skip
                results.append(
                    {
                        "steps": steps,
                        "way": way,
                        "times": times if steps < REFERENCE else [],
                        "learning_seconds": round(seconds, 1),
                        "error": round(error, 4),
                        **common.distance(wanted, common.features(pixels, accelerator)),
                    }
                )
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
    model = loaded.model
    settings = {
        "training_steps": model.step,
        "batch_size": model.training.get("batch_size"),
        "schedule": model.blueprint.diffusion.schedule,
        "sampler": options.sampler,
        "n": options.n,
        "real": len(wanted),
        "samples": candidates.SAMPLES,
        "rounds": candidates.ROUNDS,
    }
    print(json.dumps({**settings, "machine": common.machine(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
