"""Does a model of float fields draw their spectrum, and does `eval` find the one that is known?

Gaussian random fields of four channels, periodic, with power (1 + (k / k0)^2)^-slope for k waves
over a side, each channel with a k0 of its own, at a scale of its own. `known` is that spectrum in
the shells of `eval`, `real` and `drawn` what `eval` measures of held-out and of drawn fields, with
standard errors; `off` is each less `known`, in its errors (root mean square over shells), and in
decibels. Prints JSON; with --plot, draws it.

    python benchmarks/fields.py --plot PICTURE > benchmarks/results/fields.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from diffuse_cli.metrics.spectrum import shells

SIDE, COUNT = 32, 3000
SCALES = ((2.0, 1.0), (3.0, 10.0), (5.0, 0.1), (8.0, 300.0))
"""k0 in waves over a side, and the deviation, of each channel."""
SLOPE = 1.5


def powers() -> np.ndarray:
    """The power of each channel at each frequency, (4, SIDE, SIDE), 0 for the mean."""
    k = np.fft.fftfreq(SIDE) * SIDE
    radius = np.hypot(k[:, None], k)
    found = np.stack([(1 + (radius / k0) ** 2) ** -SLOPE for k0, _ in SCALES])
    found[:, 0, 0] = 0
    return found * (SIDE**2 / found.sum((1, 2), keepdims=True))


def make(folder: Path, count: int) -> None:
    """Fields of unit variance on average, times their channel's scale."""
    draw = np.random.default_rng(0)
    root, scale = np.sqrt(powers()), np.array([s for _, s in SCALES])[:, None, None]
    folder.mkdir()
    for n in range(count):
        white = np.fft.fft2(draw.standard_normal((len(SCALES), SIDE, SIDE)))
        field = np.fft.ifft2(white * root).real * scale
        np.save(folder / f"{n:05d}.npy", field.astype(np.float32))


def known() -> np.ndarray:
    """The mean over channels of the power in each shell."""
    where, half = shells((SIDE, SIDE)), powers().mean(0)[:, : SIDE // 2 + 1].ravel()
    return np.add.reduceat(half[where.order] * where.weights, where.starts) / where.counts


def off(values: np.ndarray, errors: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """How far a spectrum is from the known one."""
    decibels = 10 * np.log10(values / truth)
    return {
        "in_errors": round(float(np.sqrt(np.square((values - truth) / errors).mean())), 2),
        "decibels": round(float(np.sqrt(np.square(decibels).mean())), 3),
        "worst_decibels": round(float(decibels[np.abs(decibels).argmax()]), 3),
    }


def draw_plot(path: Path, found: dict[str, Any], truth: np.ndarray) -> None:
    """The three spectra over the frequency, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(found["frequencies"], truth, color="black", label="known")
    for name, text in (("real", "real, by eval"), ("generated", "drawn, by eval")):
        values, errors = np.array(found[name]), np.array(found[f"{name}_standard_error"])
        (line,) = axes.plot(found["frequencies"], values, ".--", label=text)
        axes.fill_between(
            found["frequencies"],
            values - errors,
            values + errors,
            color=line.get_color(),
            alpha=0.3,
        )
    axes.set(xscale="log", yscale="log", xlabel="waves per point", ylabel="power")
    axes.legend()
    figure.savefig(path, dpi=100)


def run(*arguments: Any) -> str:
    line = [sys.executable, "-m", "diffuse_cli", *map(str, arguments)]
    return subprocess.run(line, check=True, text=True, stdout=subprocess.PIPE).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("-n", type=int, default=256)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder / "fields", COUNT)
        model = folder / "fields.safetensors"
        trained = json.loads(
            run("train", folder / "fields", "--minutes", asked.minutes, "-o", model, "--json")
        )
        values = json.loads(
            run("eval", model, folder / "fields", "-n", asked.n, "--timesteps", 16, "--json")
        )
    found, truth = values["details"]["spectrum"], known()
    if asked.plot:
        draw_plot(asked.plot, found, truth)
    sides = {"real": "real", "drawn": "generated"}
    result = {
        "fields": COUNT,
        "steps": trained["steps"],
        "seconds": trained["seconds"],
        "n": asked.n,
        **{
            side: off(np.array(found[key]), np.array(found[f"{key}_standard_error"]), truth)
            for side, key in sides.items()
        },
        "known": [round(float(v), 6) for v in truth],
        "eval": {k: v for k, v in values.items() if isinstance(v, float)},
        "spectrum": found,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
