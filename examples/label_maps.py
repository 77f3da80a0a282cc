"""Write label maps of the photos of hands: 0 is background, 1 light skin, 2 shaded skin.

python examples/label_maps.py examples/hands.zip photos maps
"""

from __future__ import annotations

import argparse
import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

NAMES, COLORS = ("background", "light", "shade"), (210, 210, 215, 235, 180, 140, 140, 90, 60)
"""The name and the color of each label."""


def split(values: np.ndarray) -> float:
    """Return the threshold that splits values best into two groups (Otsu 1979)."""
    counts, edges = np.histogram(values, 256)
    centers, below = (edges[1:] + edges[:-1]) / 2, counts.cumsum()
    sums = (counts * centers).cumsum()
    above = np.maximum(below[-1] - below, 1)
    between = below * above * (sums / np.maximum(below, 1) - (sums[-1] - sums) / above) ** 2
    return float(centers[between.argmax()])


def label(photo: Image.Image) -> Image.Image:
    """Return the label map of a photo: skin has more red than blue, and shade is dark."""
    rgb = np.asarray(photo.convert("RGB")).astype(float)
    redness, brightness = rgb[..., 0] - rgb[..., 2], rgb.mean(2)
    skin = redness > split(redness)
    shade = skin & (brightness < split(brightness[skin]))
    labels = Image.fromarray((skin + shade.astype(int)).astype(np.uint8), "P")
    labels.putpalette(COLORS)
    return labels


def main() -> None:
    """Write the photos of a zip file to one folder, and their label maps to another."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("maps", type=Path)
    options = parser.parse_args()
    for folder in (options.photos, options.maps):
        folder.mkdir(parents=True)
    rows = "".join(f"{value},{name}\n" for value, name in enumerate(NAMES))
    (options.maps / "labels.csv").write_text(f"value,name\n{rows}", encoding="utf-8")
    with zipfile.ZipFile(options.archive) as archive:
        for member in archive.namelist():
            name = f"{member.removesuffix('.webp').replace('/', '-')}.png"
            with Image.open(io.BytesIO(archive.read(member))) as photo:
                photo.save(options.photos / name)
                label(photo).save(options.maps / name)


if __name__ == "__main__":
    main()
