"""How fast are images read, and how long does training wait for them?

Four sets: many small PNGs (DATA, or made here), photos of 2000x1500 as JPEG, made here with the
spectrum, the edges and the grain of photographs, that become 64x64, and such photos of 256x256 and
of 500x400, as in ImageNet, that become 256x256. `reading` is what `train` and `eval` do once: find,
check, decode, hash, resize and keep every image, on one core and on all. `decoding alone` is the
least of it: the same files through Pillow to arrays, in as many threads, with nothing
checked, named or kept; `over_decoding_alone` is the share that the rest adds. A row of the JPEGs is
the same by torchvision. The baseline is torchvision's `ImageFolder` with resize and crop behind a
`DataLoader` with a worker per core, which training scripts run in every epoch. `training` is a step
of the `tiny` network, and the part of it that fetches the batch, from memory and from the file that
large sets are mapped from. Files are in the page cache, and contenders take turns. A resumed run
reads its images again: the cache goes when a run ends. Prints JSON.

    python benchmarks/loading.py > benchmarks/results/loading.json
    python benchmarks/loading.py FASHION_MNIST --count 400 --rounds 1
    python benchmarks/loading.py --sets squares imagenet
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import common
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from steps import say, show, significant
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from diffuse_cli.core import Conditions
from diffuse_cli.data import Dataset, open_index, read_images, save_index
from diffuse_cli.media.image.planes import fit_image as fit
from diffuse_cli.system.devices import open_accelerator, resolve_precision
from diffuse_cli.system.events import finish
from diffuse_cli.training.configuration import configure
from diffuse_cli.training.decisions import complete_config
from diffuse_cli.training.plan import Plan, measure_gaussian
from diffuse_cli.training.trainer import Trainer
from diffuse_cli.training.training_data import TrainingData

HEIGHT, WIDTH = 1500, 2000
MARGIN = 64
"""A scene is so much larger than the photos that are cut out of it."""
SCENES = 6
BATCH, FETCHES = 64, 200
SMALL_FILE = 2**15
"""Threads take files up to this average size, in bytes, by 64."""

Act = Callable[[], object]


# -- images ---------------------------------------------------------------------------------------


def scene(draw: np.random.Generator) -> np.ndarray[Any, Any]:
    """Float32 RGB whose amplitudes fall as 1/f, as those of photographs do, with edges in it."""
    height, width = HEIGHT + MARGIN, WIDTH + MARGIN
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    amplitude = 1 / np.maximum(frequency, 1 / max(height, width))
    fields = []
    for _ in range(3):
        white = draw.standard_normal((height, width), dtype=np.float32)
        field = np.fft.irfft2(np.fft.rfft2(white) * amplitude, (height, width))
        fields.append((field - field.mean()) / field.std())
    light, warm, green = fields
    light = 0.8 * light + np.where(warm > 0, 0.8, -0.8)
    colors = (light + 0.35 * warm, light - 0.1 * warm + 0.1 * green, light - 0.35 * warm)
    return (127 + 45 * np.stack(colors, -1)).astype(np.float32)


def make_photos(folder: Path, count: int, height: int = HEIGHT, width: int = WIDTH) -> None:
    """Photos that differ in scene, place, light and direction."""
    draw = np.random.default_rng(0)
    scenes = [scene(draw) for _ in range(min(SCENES, count))]
    grain = draw.normal(0, 2, scenes[0].shape).astype(np.float32)
    folder.mkdir(parents=True)

    def make(k: int) -> None:
        own = np.random.default_rng((1, k))
        free = MARGIN + HEIGHT - height, MARGIN + WIDTH - width
        (y, x), (v, u) = own.integers(0, free, (2, 2))
        cut = scenes[k % len(scenes)][y : y + height, x : x + width]
        photo = (cut + grain[v : v + height, u : u + width]) * own.uniform(0.8, 1.2)
        photo = photo.clip(0, 255).astype(np.uint8)[:, :: own.choice((1, -1))]
        Image.fromarray(np.ascontiguousarray(photo)).save(folder / f"{k:05d}.jpg", quality=90)

    with ThreadPoolExecutor(cores()) as pool:
        list(pool.map(make, range(count)))


def make_small(folder: Path, count: int, side: int = 28) -> None:
    """Grey PNGs cut out of a scene."""
    draw = np.random.default_rng(0)
    whole = scene(draw)[..., 0].clip(0, 255).astype(np.uint8)
    folder.mkdir(parents=True)
    for k in range(count):
        y, x = draw.integers(0, (HEIGHT - side, WIDTH - side))
        small = np.ascontiguousarray(whole[y : y + side, x : x + side])
        Image.fromarray(small).save(folder / f"{k:06d}.png")


SETS: dict[str, tuple[Callable[[Path, int], None], int, int | None]] = {
    "small": (make_small, 60_000, None),
    "photos": (make_photos, 2000, 64),
    "squares": (partial(make_photos, height=256, width=256), 2000, 256),
    "imagenet": (partial(make_photos, height=400, width=500), 2000, 256),
}
"""How each set is made, how many images it has, and the side that they become."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- reading --------------------------------------------------------------------------------------


def read(source: Path, side: int | None, workers: int) -> Dataset:
    """What `diffuse train` does."""
    return finish(read_images(source, size=side and (side, side), workers=workers))


def decode_alone(files: Sequence[Path], side: int | None) -> None:
    """The least that has an array of pixels: open, decode, convert what is another kind, resize."""
    for file in files:
        with Image.open(file) as image:
            image.load()
            pixels = image if image.mode in ("L", "RGB") else image.convert("RGB")
            np.asarray(fit(pixels, (side, side)) if side and max(pixels.size) > side else pixels)


def decode_by_torchvision(files: Sequence[Path], side: int) -> None:
    """The same by torchvision's decoder and resizing."""
    for file in files:
        pixels = decode_jpeg(read_file(str(file)), ImageReadMode.RGB)
        if max(pixels.shape[1:]) > side:
            smaller = functional.resize(pixels, [side], v2.InterpolationMode.BICUBIC)
            functional.center_crop(smaller, [side])


def decode_all_alone(files: Sequence[Path], side: int | None, workers: int) -> None:
    """Decode in threads."""
    if workers == 1:
        decode_alone(files, side)
        return
    small = sum(file.stat().st_size for file in files) <= SMALL_FILE * len(files)
    count = 64 if small else 1
    with ThreadPoolExecutor(workers) as executor:
        parts = [files[k : k + count] for k in range(0, len(files), count)]
        list(executor.map(partial(decode_alone, side=side), parts))


def an_epoch(source: Path, side: int | None) -> None:
    """What a training script does for each of its epochs, in batches, without training."""
    fit = [v2.Resize(side), v2.CenterCrop(side)] if side else []
    convert = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    found = datasets.ImageFolder(source, v2.Compose([*fit, *convert]))
    for _ in DataLoader(found, BATCH, shuffle=True, num_workers=cores()):
        pass


def measure_reading(source: Path, side: int | None, rounds: int) -> dict[str, Any]:
    """Seconds of each way to read `source`, in turn."""
    walked = os.walk(source, followlinks=True)
    files = sorted(Path(folder) / name for folder, _, names in walked for name in names)
    contenders: dict[str, Act] = {
        "ours, one core": lambda: read(source, side, 1),
        "decoding alone, one core": lambda: decode_all_alone(files, side, 1),
        "ours, all cores": lambda: read(source, side, cores()),
        "decoding alone, all cores": lambda: decode_all_alone(files, side, cores()),
        "torchvision, all cores, each epoch": lambda: an_epoch(source, side),
    }
    if side and files[0].suffix == ".jpg":
        alone = partial(decode_by_torchvision, files, side)
        contenders["torchvision's decoder alone, one core"] = alone
    total = sum(len(path.read_bytes()) for path in files)  # now they are in the page cache
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, act in contenders.items():
            seconds[name].append(took(act))
            say(f"{name}: {seconds[name][-1]:.2f} s")
    rows = {
        name: {
            "seconds": significant(median(taken)),
            "images_per_s": significant(len(files) / median(taken)),
        }
        for name, taken in seconds.items()
    }
    one, one_alone, ours, all_alone, peer, *_ = (row["seconds"] for row in rows.values())
    return {
        "images": len(files),
        "bytes_each": round(total / len(files)),
        "reading": rows,
        "ratio_to_peer": significant(peer / ours),
        "over_decoding_alone": {
            "one core": significant(one / one_alone - 1),
            "all cores": significant(ours / all_alone - 1),
        },
    }


def took(act: Act) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


# -- training -------------------------------------------------------------------------------------


def plan_for(images: Dataset) -> Plan:
    """A training of `tiny` on all images."""
    typed = {"data": images.summary.source, "preset": "tiny", "batch_size": BATCH}
    config, blueprint = complete_config(configure(typed), images.space, Conditions())
    data = TrainingData(images, np.arange(len(images)), np.arange(0))
    return Plan(
        config, replace(blueprint, gaussian=measure_gaussian(config, blueprint, data)), data
    )


def measure_waiting(images: Dataset, steps: int, accelerator: Accelerator) -> dict[str, Any]:
    """Seconds of a step, and of the fetching in it; the share is the worse of both stores."""
    trainer = Trainer(plan_for(images), accelerator)
    taken = [took(lambda k=k: trainer.step(k)) for k in range(steps + 2)][2:]
    with tempfile.TemporaryDirectory() as folder:
        save_index(images, Path(folder))
        mapped = Trainer(plan_for(open_index(Path(folder))), accelerator)
        memory, file = (fetching(each, len(images)) for each in (trainer, mapped))
    return {
        "size": images.space.size,
        "step_seconds": significant(median(taken)),
        "fetch_seconds": significant(memory),
        "mapped_fetch_seconds": significant(file),
        "waiting_share": significant(max(memory, file) / median(taken)),
    }


def fetching(trainer: Trainer, count: int) -> float:
    """Median seconds to have a batch of random images on the device, as float."""
    draw = np.random.default_rng(0)
    batches = [draw.integers(0, count, BATCH) for _ in range(FETCHES)]
    return median(took(lambda b=batch: trainer.batches.samples(b)) for batch in batches)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the sets."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", type=Path, help="small images in class folders")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=[*SETS])
    parser.add_argument("--count", type=int, help="how many images of a set are made at most")
    parser.add_argument("--photo-folder", type=Path, help="photos in class folders, made before")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args(arguments)
    sets: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        open_accelerator(resolve_precision("auto")) as accelerator,
    ):
        there = {"small": options.data, "photos": options.photo_folder}
        for name in options.sets:
            (make, count, side), source = SETS[name], there.get(name)
            if source is None:
                source = Path(folder) / name
                say(f"making {name}")
                make(source / "all", min(count, options.count or count))
            sets[name] = measure_reading(source, side, options.rounds)
            images = read(source, side, cores())
            sets[name]["training"] = measure_waiting(images, options.steps, accelerator)
    for name, found in sets.items():
        say(f"\n{name}: {found['images']:,} images of {found['bytes_each']:,} bytes")
        show({"": row, **values} for row, values in found["reading"].items())
        show([{"": "training", **found["training"]}])
    print(json.dumps({"machine": common.machine(), "cores": cores(), "sets": sets}, indent=1))


if __name__ == "__main__":
    main()
