"""Which fraction of images shows its kind, by the first of ImageNet's 1,000 classes?

The network is EfficientNet-Lite0 with the classifier in its weights file. Images are cropped to a
square and resized to --size. Classes 281 to 285 are cats, and 151 to 268 are dogs. Prints JSON.

    python benchmarks/recognizing.py cat=CATS dog=DOGS --size 128 -n 500
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from PIL import Image, ImageOps

from diffuse_cli.metrics.features import efficientnet_lite0
from diffuse_cli.system.events import finish

KINDS = {"cat": range(281, 286), "dog": range(151, 269)}

BATCH = 50


def find_first_classes(files: list[Path], size: int) -> list[int]:
    """Return the first class of each image."""
    path = finish(efficientnet_lite0.PUBLISHED.find())
    network = efficientnet_lite0.build(path).eval()
    weights: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    classes: list[int] = []
    for start in range(0, len(files), BATCH):
        pixels = [
            np.asarray(ImageOps.fit(Image.open(file).convert("RGB"), (size, size)))
            for file in files[start : start + BATCH]
        ]
        batch = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        with torch.inference_mode():
            features = network(efficientnet_lite0.preprocess(batch))
        logits = features @ weights["_fc.weight"].T + weights["_fc.bias"]
        classes += logits.argmax(1).tolist()
    return classes


def main() -> None:
    """Print the fraction of each folder that shows its kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="KIND=FOLDER")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("-n", type=int, default=500)
    options = parser.parse_args()
    rows = []
    for folder in options.folders:
        kind, _, path = folder.partition("=")
        files = sorted(f for f in Path(path).iterdir() if f.suffix in (".png", ".jpg"))
        files = [file for file in files if file.stem != "grid"][: options.n]
        first = find_first_classes(files, options.size)
        right = sum(c in KINDS[kind] for c in first) / len(first)
        rows.append({"kind": kind, "size": options.size, "n": len(first), "right": round(right, 4)})
    print(json.dumps({"machine": common.machine(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
