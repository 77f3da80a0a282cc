"""Which guidance by a model's early average pays, and do few samples find it?

Each setting takes the same number of evaluations: a guided step takes two. Settings are a scale (1
for no guidance), the noise levels (sigma / alpha) to guide in, and `noise` for the start that is
not a Gaussian, for example 1, 1,noise, 2 and 3@0.3:3. Prints the KID of each against test images as
JSON, and `choices`: how often trials as at the end of a run choose each of its candidates, with n
samples against 256 training images, and the mean ratio of the KID of the choice to the lowest among
the candidates that look like the data. `--rank` ranks all settings by other statistics of 64
samples: the ratio of the KID of the first to the lowest, and the correlation of ranks with KID.

    diffuse train DATA --size 64 --steps 2170 -o model.safetensors
    python benchmarks/autoguidance.py model.safetensors --train DATA --real TEST
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import common
import numpy as np

from diffuse_cli.config.sample_options import OWN, SAMPLER
from diffuse_cli.metrics.kid import kernel
from diffuse_cli.metrics.precision_recall import measure_fractions
from diffuse_cli.sampling.model_loading import LoadedModel, load_denoiser, make_denoiser
from diffuse_cli.sampling.sampling_settings import Guide, SamplingSettings
from diffuse_cli.sampling.setting_search import FAR
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.system.devices import resolve_precision
from diffuse_cli.system.events import finish
from diffuse_cli.training.validation import measure_contrast_and_detail

Array = np.ndarray[Any, Any]

SETTINGS = ("1", "1,noise", "1.5", "2", "3", "2@0.3:3", "3@0.3:3")
CANDIDATES = ("2", "2@0.3:3", "1.5", "3@0.3:3")
TRIALS = (16, 32, 64, 128)
REPEATS, REFERENCES = 200, 256


@dataclass(frozen=True)
class Setting:
    """A scale, the noise levels to guide in or None, and whether to start from pure noise."""

    scale: float
    levels: tuple[float, float] | None
    noise: bool

    @classmethod
    def parse(cls, text: str) -> Setting:
        """Read a setting such as 3@0.3:3,noise."""
        guided, _, start = text.partition(",")
        scale, _, levels = guided.partition("@")
        low, _, high = levels.partition(":")
        return cls(float(scale), (float(low), float(high)) if levels else None, start == "noise")


@dataclass(frozen=True)
class Drawn:
    """Samples of a setting: their features (N, d), pixels (N, C, H, W), and steps."""

    features: Array
    pixels: Array
    steps: int


def choose_steps(setting: Setting, loaded: LoadedModel, evaluations: int) -> int:
    """The most steps whose evaluations, two for each guided step, are affordable."""
    process, start = loaded.denoiser.process, loaded.model.blueprint.gaussian
    low, high = setting.levels or (0.0, math.inf)
    for steps in range(evaluations, 0, -1):
        settings = SamplingSettings(steps=steps, start=None if setting.noise else start)
        levels = [math.exp(-process.log_snr(t) / 2) for t in settings.resolve_times(process)]
        guided = sum(low < level <= high for level in levels) if setting.scale != 1 else 0
        if steps + guided <= evaluations:
            return steps
    raise SystemExit("too few --evaluations")


def split_mmd(within: Array, references: Array, between: Array) -> float:
    """The unbiased MMD^2 of kernel matrices."""
    means = [(k.sum() - np.trace(k)) / len(k) / (len(k) - 1) for k in (within, references)]
    return float(sum(means) - 2 * between.mean())


def distances(x: Array, y: Array) -> Array:
    """Euclidean distances of rows, negative, as the kernel of the energy distance."""
    squares = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T
    return -np.sqrt(np.maximum(squares, 0))


def frechet(x: Array, y: Array) -> float:
    """The Frechet distance of two clouds of few dimensions."""
    values, vectors = np.linalg.eigh(np.cov(y.T))
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    both = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ np.cov(x.T) @ root), 0)).sum()
    apart = ((x.mean(0) - y.mean(0)) ** 2).sum()
    return float(apart + np.trace(np.cov(x.T) + np.cov(y.T)) - 2 * both)


def spectrum(pixels: Array, bands: int = 16) -> Array:
    """The mean power of each image by bands of frequency, (N, bands)."""
    side = pixels.shape[-1]
    power = (np.abs(np.fft.rfft2(pixels / 127.5 - 1, norm="ortho")) ** 2).mean(1)
    radius = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    band = np.minimum((radius / 0.5 * bands).astype(int), bands - 1)
    return np.stack([power[:, band == k].mean(1) for k in range(bands)], 1)


Kernels = tuple[Array, dict[str, tuple[Array, Array]]]


def compare(
    of: Callable[[Array, Array], Array], fakes: Mapping[str, Array], real: Array
) -> Kernels:
    """The kernel matrix of references, and by setting those of samples and of both."""
    return of(real, real), {name: (of(x, x), of(x, real)) for name, x in fakes.items()}


class Statistics:
    """Statistics of samples against references, by name, from all settings' samples."""

    def __init__(
        self,
        drawn: Mapping[str, Drawn],
        pixels: Array,
        train: Array,
        random: Callable[[Array], Array] | None,
    ) -> None:
        features = {name: each.features for name, each in drawn.items()}
        base = np.linalg.svd(train - train.mean(0), full_matrices=False)[2][:32].T
        self.low = {name: x @ base for name, x in features.items()}
        self.low_real = train @ base
        self.power = {name: spectrum(each.pixels) for name, each in drawn.items()}
        self.power_real = spectrum(pixels)
        self.kernels = {
            "KID": compare(kernel, features, train),
            "energy distance": compare(distances, features, train),
        }
        if random:
            fakes = {name: random(each.pixels) for name, each in drawn.items()}
            self.kernels["KID, random features"] = compare(kernel, fakes, random(pixels))

    def kernel_distance(self, kind: str, name: str, i: Array, j: Array) -> float:
        """A kernel distance of the samples i of a setting and the references j."""
        references, fakes = self.kernels[kind]
        within, between = fakes[name]
        return split_mmd(within[np.ix_(i, i)], references[np.ix_(j, j)], between[np.ix_(i, j)])

    def of(self, name: str, i: Array, j: Array) -> dict[str, float]:
        """All statistics of the samples i of a setting and the references j."""
        power = np.log(self.power[name][i].mean(0) / self.power_real[j].mean(0))
        return {
            **{kind: self.kernel_distance(kind, name, i, j) for kind in self.kernels},
            "Frechet, 32 dimensions": frechet(self.low[name][i], self.low_real[j]),
            "spectrum": float((power**2).mean()),
        }


def simulate(
    names: list[str], kids: Mapping[str, float], statistics: Statistics, looks: Mapping[str, Array]
) -> dict[str, Any]:
    """Choose settings by few samples, as `setting_search.choose_best` does. The first is default.

    Args:
        looks: the contrast and detail of each sample, and of the references under "".
    """
    rng, count, references = np.random.default_rng(0), len(looks[names[0]]), len(looks[""])

    def is_alike(i: Array, j: Array) -> Array:
        real = np.log(looks[""][j].mean(0))
        look = np.abs([np.log(looks[name][i].mean(0)) - real for name in names])
        alike: Array = (look <= np.maximum([*FAR.values()], look[0])).all(1)
        return alike

    values = np.array([kids[name] for name in names])
    lowest = values[is_alike(np.arange(count), np.arange(references))].min()
    trials: dict[str, Any] = {}
    for n in (n for n in TRIALS if n <= count // 2):
        chosen = []
        for _ in range(REPEATS):
            i = rng.permutation(count)[:n]
            j = rng.permutation(references)[:REFERENCES]
            measured = [statistics.kernel_distance("KID", name, i, j) for name in names]
            chosen.append(int(np.argmin(np.where(is_alike(i, j), measured, math.inf))))
        shares = np.bincount(chosen, minlength=len(names)) / REPEATS
        trials[str(n)] = {
            "ratio": round(float((values[chosen] / lowest).mean()), 4),
            "chosen": {name: float(share) for name, share in zip(names, shares, strict=True)},
        }
    return trials


def rank(kid_of: Mapping[str, float], statistics: Statistics, n: int = 64) -> dict[str, Any]:
    """The mean ratio of KID and the mean rank correlation by each statistic of n samples."""
    rng, names, kids = np.random.default_rng(1), list(kid_of), np.array([*kid_of.values()])
    count, references = len(statistics.low[names[0]]), len(statistics.low_real)
    order = np.argsort(np.argsort(kids))
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(REPEATS // 4):
        i, j = rng.permutation(count)[:n], rng.permutation(references)[:REFERENCES]
        rows = [statistics.of(name, i, j) for name in names]
        for kind in rows[0]:
            values = np.array([row[kind] for row in rows])
            agreement = np.corrcoef(np.argsort(np.argsort(values)), order)[0, 1]
            found.setdefault(kind, []).append((kids[values.argmin()] / kids.min(), agreement))
    means = {kind: np.mean(pairs, 0) for kind, pairs in found.items()}
    return {
        kind: {"ratio": round(float(ratio), 4), "agreement": round(float(agreement), 3)}
        for kind, (ratio, agreement) in means.items()
    }


def main() -> None:
    """Measure every setting, and what few samples choose."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--train", required=True)
    parser.add_argument("--real", required=True)
    parser.add_argument("-n", type=int, default=512)
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS))
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rank", action="store_true")
    options = parser.parse_args()
    drawn: dict[str, Drawn] = {}
    results: list[dict[str, Any]] = []
    with open_accelerator(resolve_precision("auto")) as accelerator:
        loaded = finish(load_denoiser(options.model, "ema", accelerator))
        weak = make_denoiser(loaded.model, "weak", accelerator, loaded.precision)
        height, width = loaded.space.size
        real, train = (
            common.some(common.read(path, size=(height, width)), most)
            for path, most in ((options.real, 2000), (options.train, 1000))
        )
        real_features, train_features = (common.features(x, accelerator) for x in (real, train))
        gaussian = loaded.model.blueprint.gaussian
        for text in options.settings:
            setting = Setting.parse(text)
            steps = choose_steps(setting, loaded, options.evaluations)
            pixels, seconds = common.sample(
                loaded,
                options.n,
                accelerator,
                steps=steps,
                sampler=SAMPLER,
                guide=None if setting.scale == 1 else Guide(OWN, setting.scale, weak, ""),
                noise_levels=setting.levels,
                start=None if setting.noise else gaussian,
                seed=options.seed,
            )
            drawn[text] = Drawn(common.features(pixels, accelerator), pixels, steps)
            shares = measure_fractions(real_features, drawn[text].features)
            results.append(
                {
                    "setting": text,
                    "steps": steps,
                    "seconds": round(seconds, 1),
                    **common.distance(real_features, drawn[text].features),
                    **{key: round(share.value(), 4) for key, share in shares.items()},
                    **common.looks(real, pixels),
                }
            )
            print(json.dumps(results[-1]), file=sys.stderr, flush=True)

        def random(pixels: Array) -> Array:
            return common.random_features(real, pixels, accelerator)

        statistics = Statistics(drawn, train, train_features, random if options.rank else None)
    looks = {
        name: np.exp([measure_contrast_and_detail(sample[None]) for sample in pixels])
        for name, pixels in {"": train, **{n: d.pixels for n, d in drawn.items()}}.items()
    }
    kids = {row["setting"]: row["kid"] for row in results}
    default = "1" if loaded.model.blueprint.wiener else "1,noise"
    model = loaded.model
    print(
        json.dumps(
            {
                "steps": model.step,
                "size": height,
                "batch_size": model.training.get("batch_size"),
                "weak_step": model.weak_step,
                "n": options.n,
                "real": len(real),
                "results": results,
                "choices": simulate([default, *CANDIDATES], kids, statistics, looks),
                **({"rank": rank(kids, statistics)} if options.rank else {}),
                "machine": common.machine(),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
