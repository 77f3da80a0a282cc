"""How fast is an evaluation of folders, beside torch-fidelity's on the same network?

Both take the Inception network of 2015 with the same random weights (nothing is downloaded, and the
weights change no speed), the same images in memory, and a batch size of their own default. Features
are timed over `--timed` images in turns, and go on at that rate; metrics are timed over features of
`-n` images on each side. torch-fidelity computes FID, KID, precision and recall; `diffuse` these
with their standard errors, the distance at infinite n, density and coverage. Prints JSON.

    python benchmarks/fidelity.py FASHION_MNIST_TEST > benchmarks/results/fidelity.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch_fidelity.feature_extractor_inceptionv3 as peer_network
from common import machine, read
from ordering import OF_FEATURES, log
from steps import significant
from torch.utils.data import Dataset
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric
from torch_fidelity.utils import get_featuresdict_from_dataset

from diffuse_cli.metrics import METRICS
from diffuse_cli.metrics.features import extract_features, inception, load_network, usual_batch
from diffuse_cli.system import files
from diffuse_cli.system.events import finish

Array = np.ndarray[Any, Any]

LAYER = "2048"
PEER_BATCH = 64
"""torch-fidelity's default."""


class Random(peer_network.FeatureExtractorInceptionV3):  # type: ignore[misc]
    """The baseline's network with random weights, and statistics that keep features apart."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """In place of what would be downloaded."""
        torch.manual_seed(0)
        for part in self.modules():
            if isinstance(part, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(part.weight)
            elif isinstance(part, torch.nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 2)


class Pixels(Dataset[torch.Tensor]):
    """Images in memory, as the baseline takes them."""

    def __init__(self, pixels: Array) -> None:
        self.pixels = torch.from_numpy(pixels)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self.pixels[i]


def took(act: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of them."""
    began = time.perf_counter()
    found = act()
    return time.perf_counter() - began, found


def networks() -> tuple[Any, Any]:
    """Ours and the baseline's, of the same weights."""
    peer_network.load_state_dict_from_url = lambda *_, **__: {}
    theirs = Random("inception-v3-compat", [LAYER]).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.pth"
        torch.save(theirs.state_dict(), file)
        own = replace(inception.PUBLISHED, sha256=files.sha256(file), size=file.stat().st_size)
        inception.PUBLISHED = own
        return load_network("inception", "cpu", file), theirs


def rates(pixels: Array, rounds: int) -> dict[str, Any]:
    """Images a second of both networks, and how far their features are apart."""
    ours, theirs = networks()
    color = np.repeat(pixels, 3, 1) if pixels.shape[1] == 1 else pixels
    data = Pixels(color)

    def peer() -> Array:
        found = get_featuresdict_from_dataset(data, theirs, PEER_BATCH, False, True, False)
        features: Array = found[LAYER].numpy()
        return features

    acts = {"diffuse": lambda: finish(extract_features(ours, pixels)), "torch-fidelity": peer}
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    features: dict[str, Array] = {}
    for _ in range(rounds):
        for name, act in acts.items():
            spent, features[name] = took(act)
            seconds[name].append(spent)
            log(f"{name}: {len(pixels) / spent:.1f} images/s")
    ours_found, theirs_found = features.values()
    apart = np.linalg.norm(ours_found - theirs_found) / np.linalg.norm(theirs_found)
    return {
        "images": len(pixels),
        "batch_sizes": {"diffuse": usual_batch(ours), "torch-fidelity": PEER_BATCH},
        "images_per_s": {n: significant(len(pixels) / median(s)) for n, s in seconds.items()},
        "features_apart": float(f"{apart:.2g}"),
    }


def features_of(n: int) -> tuple[Array, Array]:
    """Two sets of features with the correlations that networks have."""
    draw = np.random.default_rng(0)
    mix = draw.normal(size=(256, 2048)) / 16
    sets = []
    for shift in (0.0, 0.1):
        own = draw.normal(shift, 1, (n, 256)) @ mix + 0.1 * draw.normal(size=(n, 2048))
        sets.append(np.maximum(own, 0).astype(np.float32))
    return sets[0], sets[1]


def metrics(n: int) -> dict[str, Any]:
    """Seconds of all metrics over features of n images on each side, and both distances."""
    real, fake = features_of(n)

    def ours() -> dict[str, float]:
        sides = SimpleNamespace(real_features=real, fake_features=fake, more_features=real[:0])
        return {k: v for name in OF_FEATURES for k, v in METRICS[name].compute(sides).items()}

    def theirs() -> dict[str, float]:
        one, two = torch.from_numpy(fake), torch.from_numpy(real)
        stats = (fid_features_to_statistics(one), fid_features_to_statistics(two))
        found = dict(fid_statistics_to_metric(*stats, False))
        found |= kid_features_to_metric(one, two, verbose=False)
        return found | prc_features_to_metric(two, one, verbose=False)

    spent, found = took(ours)
    log(f"diffuse: metrics in {spent:.1f} s")
    peer_spent, peer_found = took(theirs)
    log(f"torch-fidelity: metrics in {peer_spent:.1f} s")
    return {
        "n": n,
        "seconds": {"diffuse": significant(spent), "torch-fidelity": significant(peer_spent)},
        "frechet_distance": {
            "diffuse": found["frechet_distance"],
            "torch-fidelity": float(peer_found["frechet_inception_distance"]),
        },
    }


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("-n", type=int, default=10_000)
    parser.add_argument("--timed", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    rate = rates(np.asarray(read(options.data).stored[: options.timed]), options.rounds)
    found = metrics(options.n)
    total = {
        name: significant(2 * options.n / rate["images_per_s"][name] + found["seconds"][name])
        for name in found["seconds"]
    }
    ratio = significant(total["torch-fidelity"] / total["diffuse"])
    result = {"machine": machine(), "features": rate, "metrics": found, "total_s": total}
    print(json.dumps({**result, "ratio": ratio}, indent=1))


if __name__ == "__main__":
    main()
