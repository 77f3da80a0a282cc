"""Train, sample and measure the runs of docs/expect.md, and render its table.

    python docs/expect.py hands-300-64 --train hands/train --test hands/test --work W
    python docs/expect.py

A run takes CPU minutes on one core, so that other programs do not shorten it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffuse_cli.media.figures import arrange_grid
from diffuse_cli.media.image.planes import to_pixels
from diffuse_cli.system.rng import permutation

DOCS = Path(__file__).parent
PAGE, PICTURES = DOCS / "expect.md", DOCS / "images" / "expect"
RESULTS = DOCS.parent / "benchmarks" / "results" / "expect.json"
START, END = "<!-- python docs/expect.py writes these runs -->\n", "<!-- end of the runs -->\n"
STRIP = 12
"""The first samples, which are shown."""


@dataclass(frozen=True)
class Run:
    """A run of the page.

    Attributes:
        data: the training images.
        images: the number of training images.
        size: the side of the samples.
        minutes: the CPU minutes on one core.
        says: what the samples look like.
        options: further options of `train`.
        picture: the path of its picture, if another page has it.
    """

    data: str
    images: int
    size: int
    minutes: int
    says: str = ""
    options: tuple[str, ...] = ()
    picture: str = ""

    @property
    def time(self) -> str:
        """The time that it takes."""
        return TIMES[self.minutes]

    @property
    def file_type(self) -> str:
        """The type of its picture. A PNG of large samples would have a megabyte."""
        return "png" if self.size <= 128 else "jpg"


TIMES = {10: "10 minutes on one core", 60: "1 hour on one core", 108: "1 hour on two cores"}
HANDS, PETS, KAGGLE, FLOWERS = "hands", "dogs and cats", "Kaggle's dogs and cats", "flowers"

RUNS = {
    "hands-300-32": Run(HANDS, 300, 32, 10, "Hands with clear fingers, in fewer poses."),
    "hands-300-32-1h": Run(HANDS, 300, 32, 60, "Hands as in photos, few deformed."),
    "hands-300-64": Run(HANDS, 300, 64, 10, "Most are hands, some blurred, with fewer poses."),
    "hands-300-64-1h": Run(HANDS, 300, 64, 60, "Hands as in photos, one in four deformed."),
    "hands-300-128": Run(HANDS, 300, 128, 10, "Sharp hands, half of them with wrong fingers."),
    "hands-300-128-1h": Run(HANDS, 300, 128, 60, "Sharp hands, a third with wrong fingers."),
    "hands-32": Run(HANDS, 1546, 32, 10, "Hands with clear fingers."),
    "hands-32-1h": Run(HANDS, 1546, 32, 60, "Hands as in photos."),
    "hands-64": Run(HANDS, 1546, 64, 10, "Sharp hands, some with a wrong finger."),
    "hands-64-1h": Run(HANDS, 1546, 64, 60, "Hands as in photos, few with a wrong finger."),
    "hands-128": Run(HANDS, 1546, 128, 10, "Sharp hands, most of them with wrong fingers."),
    "hands-128-1h": Run(HANDS, 1546, 128, 60, "Hands as in photos, few with a wrong finger."),
    "pets-64": Run(PETS, 1119, 64, 10, "Fur and colors, and no animal that you would name."),
    "pets-128": Run(PETS, 1119, 128, 10, "Colors and textures, no animals."),
    "flowers-256": Run(
        FLOWERS, 1976, 256, 60, "Petals and leaves as in a painting, no whole flower."
    ),
    "cats-dogs-32-10m": Run(
        KAGGLE, 20000, 32, 10, "Colors and shapes, few animals that you would name."
    ),
    "cats-dogs-32": Run(KAGGLE, 20000, 32, 60, "You recognize half of the animals."),
    "cats-dogs-64-10m": Run(
        KAGGLE, 20000, 64, 10, "Fur and shapes, and no animal that you would name."
    ),
    "cats-dogs-64": Run(KAGGLE, 20000, 64, 60, "You recognize a third of the animals."),
    "cats-dogs-128": Run(
        KAGGLE,
        20000,
        128,
        108,
        "You recognize half of the animals. "
        "[Two models](conditions.md#images-from-images), and 24 samples of both classes in turn.",
        picture="images/cats-dogs-128.png",
    ),
}
"""Runs by name, with the seed 0."""

PROGRAM = "import time, sys; time.monotonic = time.process_time; from diffuse_cli.app import main; "


def diffuse(*arguments: object) -> Any:
    """Run a command whose clock is the CPU time of its process, and return its JSON object."""
    command = [sys.executable, "-c", f"{PROGRAM}sys.exit(main(sys.argv[1:]))"]
    words = [*command, *map(str, arguments), "--json", "-q"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(ran.stdout)


def measure(name: str, train: Path, test: Path, work: Path) -> dict[str, Any]:
    """Train and sample a run, and return its numbers. A model that exists is not trained again."""
    run, model = RUNS[name], work / f"{name}.safetensors"
    files = sorted(path for path in train.rglob("*") if path.is_file())
    images = work / f"{name}-images"
    for k in permutation(0, 0, len(files))[: run.images]:
        images.mkdir(parents=True, exist_ok=True)
        link = images / "-".join(files[k].relative_to(train).parts)
        if not link.exists():
            link.symlink_to(files[k].resolve())
    if not model.exists():
        line = ("train", images, "--size", run.size, "--minutes", run.minutes, *run.options)
        diffuse(*line, "-o", model, "--overwrite")
    made = diffuse("sample", model, "-n", STRIP, "-o", work / f"{name}-samples", "--overwrite")
    samples = np.stack([to_pixels(Image.open(path)) for path in made["images"]])
    PICTURES.mkdir(exist_ok=True)
    picture = arrange_grid(samples, columns=STRIP if run.size <= 64 else STRIP // 2)
    picture.save(PICTURES / f"{name}.{run.file_type}", quality=90)
    metrics, n = "kid,baselines,precision-recall", 500 if run.size <= 128 else 200
    scores = diffuse("eval", model, test, "-n", n, "--metrics", metrics)
    copies = diffuse("eval", model, images, "-n", n, "--metrics", "memorization")
    info = diffuse("info", model)
    keys = ("kid", "kid_standard_error", "kid_of_blurred", "kid_of_noise", "precision", "recall")
    return {
        "run": name,
        "width": info["training"]["width"],
        "images_seen": info["step"] * info["training"]["batch_size"],
        **{key: round(scores[key], 4) for key in keys},
        "copies": copies["memorized_copies"],
        "memorized_features": copies["memorized_features"],
        "memorized_expected": round(copies["memorized_expected"], 4),
        "n": scores["n"]["generated"],
        "made_with": scores["made_with"],
    }


def render(rows: list[dict[str, Any]]) -> str:
    """Return the runs as sections of the page."""
    parts = []
    for row in sorted(rows, key=lambda row: list(RUNS).index(row["run"])):
        run = RUNS[row["run"]]
        picture = run.picture or f"images/expect/{row['run']}.{run.file_type}"
        kid, error = 1000 * row["kid"], 1000 * row["kid_standard_error"]
        blurred, noise = 1000 * row["kid_of_blurred"], 1000 * row["kid_of_noise"]
        words = (
            f"{run.says} {row['images_seen']:,} images seen. KID × 1000: **{kid:,.0f} ± "
            f"{error:.0f}** (blurred photos {blurred:,.0f}, noise {noise:,.0f}). Recall "
            f"{row['recall']:.2f}, copies {row['copies']:.0%}."
        ).strip()
        title = f"### {run.images:,} photos of {run.data}, {run.size}×{run.size}, {run.time}"
        width = 700 if run.size > 32 else 400
        image = f'<img src="{picture}" width="{width}" alt="samples of {run.data}">'
        wrapped = textwrap.fill(words, 120, break_long_words=False, break_on_hyphens=False)
        parts.append(f"{title}\n\n{image}\n\n{wrapped}\n")
    return "\n".join(parts)


def main() -> None:
    """Measure a run, if one is named, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", choices=RUNS)
    for name in ("train", "test", "work"):
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args()
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    if options.run:
        row = measure(options.run, options.train, options.test, options.work)
        rows = [*(old for old in rows if old["run"] != options.run), row]
        RESULTS.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(START)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{START}\n{render(rows)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
