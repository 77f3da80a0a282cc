"""Small files under the names that pages use without making them."""

from __future__ import annotations

import csv
import io
import tarfile
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from conftest import ROOT, in_process
from lab import dicom, write_netcdf
from openai_oracle import checkpoint
from PIL import Image

COUNT, SIDE = 100, 16
"""Number of samples in a folder, and side of an image."""

VERY_SMALL: dict[str, Any] = {"width": 8, "multipliers": (1,), "blocks": 1, "attention": ()}
SMALLER: dict[str, dict[str, Any]] = {
    "tiny": VERY_SMALL,
    "small": VERY_SMALL,
    "adm-64": {"width": 32, "multipliers": (1, 2, 2, 2), "blocks": 1},
}
"""Settings of presets while the code of pages runs."""


def image(side: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Return an image of noise around one color."""
    draw = np.random.default_rng(seed)
    shape = (side, side, len(mode)) if len(mode) > 1 else (side, side)
    levels = draw.normal(draw.uniform(80, 170), 25, shape)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


def folder_of(side: int, mode: str = "RGB") -> Callable[[Path], None]:
    """Return a function that writes COUNT images in two class folders."""

    def write(folder: Path) -> None:
        for k in range(COUNT):
            path = folder / ("bag", "sneaker")[k % 2] / f"{k:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image(side, mode, seed=k).save(path)

    return write


def write_mask(path: Path) -> None:
    """Write a mask of the right half."""
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, SIDE // 2 :] = 255
    Image.fromarray(mask).save(path)


def write_scans(folder: Path) -> None:
    """Write COUNT images of 16 bits with the columns age and site."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    rows: list[list[Any]] = [["file_name", "age", "site"]]
    for k in range(COUNT):
        levels = draw.integers(0, 1 << 16, (SIDE, SIDE), np.uint16)
        Image.fromarray(levels).save(folder / f"{k}.png")
        rows.append([f"{k}.png", 30 + k, ("oslo", "bergen")[k % 2]])
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def write_vectors(path: Path) -> None:
    """Write a vector for each of the images of `write_scans`."""
    np.savez(path, names=[*map(str, range(COUNT))], vectors=np.random.rand(COUNT, 64))


def write_batch(path: Path) -> None:
    """Write images as guided-diffusion does."""
    np.savez(path, np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), np.uint8))


def write_phone(folder: Path) -> None:
    """Write photos of hands in several sizes, a copy, and a file that cannot be read."""
    folder.mkdir()
    with zipfile.ZipFile(ROOT / "examples" / "hands.zip") as archive:
        for k, name in enumerate(archive.namelist()[:: 1546 // COUNT][:COUNT]):
            with Image.open(io.BytesIO(archive.read(name))) as photo:
                photo.resize((48, 48 + 8 * (k % 3))).save(folder / f"IMG_{k:04d}.jpg")
    (folder / "copy.jpg").write_bytes((folder / "IMG_0000.jpg").read_bytes())
    (folder / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


def fields_of(side: int) -> Callable[[Path], None]:
    """Return a function that writes COUNT fields of two channels."""

    def write(folder: Path) -> None:
        folder.mkdir()
        for k in range(COUNT):
            np.save(folder / f"{k}.npy", np.random.default_rng(k).normal(size=(2, side, side)))

    return write


def write_map(path: Path) -> None:
    """Write a map of three labels."""
    Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 3).save(path)


def write_maps(folder: Path) -> None:
    """Write the map of each of the images of `folder_of`."""
    folder_of(SIDE, "L")(folder)
    for path in folder.rglob("*.png"):
        write_map(path)


def write_era5(path: Path) -> None:
    """Write COUNT hours of two variables."""
    fields = np.random.default_rng(0).normal(280, 5, (2, COUNT, SIDE, SIDE))
    degrees = np.arange(SIDE) * 10.0
    write_netcdf(path, fields, 80 - degrees, degrees)


def write_volumes(folder: Path) -> None:
    """Write volumes of 64 x 64 x 64."""
    folder.mkdir()
    for k in range(10):
        values = np.random.default_rng(k).normal(size=(64, 64, 64)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / f"{k}.nii.gz")


def write_slices(folder: Path) -> None:
    """Write series of 32 slices of 64 x 64."""
    folder.mkdir()
    draw = np.random.default_rng(0)
    for k in range(320):
        place = {"SeriesInstanceUID": f"1.2.{k // 32}", "InstanceNumber": k % 32}
        values = draw.integers(0, 4096, (64, 64)).astype(np.int16)
        (folder / f"{k}.dcm").write_bytes(dicom(values, **place))


def write_cells(folder: Path) -> None:
    """Write 8 files of three pages."""
    folder.mkdir()
    for k in range(8):
        first, *others = (image(64, "L", seed=3 * k + page) for page in range(3))
        first.save(folder / f"{k}.tif", save_all=True, append_images=others)


def write_words(folder: Path) -> None:
    """Write 8 sounds of a tenth of a second."""
    (folder / "six").mkdir(parents=True)
    for k in range(8):
        levels = np.random.default_rng(k).normal(0, 3000, 800).astype("<i2")
        with wave.open(str(folder / "six" / f"en-us-m{k}-150-40.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(levels.tobytes())


def write_shards(folder: Path) -> None:
    folder.mkdir()
    for k in range(100):
        image(SIDE, seed=k).save(folder / "image.png")
        with tarfile.open(folder / f"{k:03d}.tar", "w") as shard:
            shard.add(folder / "image.png", f"{k}.png")
    (folder / "image.png").unlink()


def write_zip(path: Path) -> None:
    write_named(["images"])
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(path.with_suffix("").rglob("*.png")):
            archive.write(file, file.relative_to(path.parent))


def write_openai_checkpoint(path: Path) -> None:
    """Write a checkpoint of the small adm-64."""
    attends = (False, True, True, True)
    state = checkpoint(**SMALLER["adm-64"], attends=attends, updown=True, classes=1000)
    torch.save(state, path)


def write_diffusers_folder(folder: Path) -> None:
    """Write a small `UNet2DModel` with a scheduler."""
    diffusers = pytest.importorskip("diffusers")
    net = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), attention_head_dim=8,
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    net.save_pretrained(folder / "unet")
    diffusers.DDPMScheduler().save_pretrained(folder / "scheduler")


def trained(*arguments: str) -> Callable[[Path], None]:
    """Return a function that trains a model of two steps in the current folder."""

    def train(path: Path) -> None:
        write_named([*arguments])
        line = ["train", *arguments, "--steps", 2, "-o", path.with_suffix(".safetensors"), "-q"]
        assert in_process(line) == 0

    return train


NAMED: dict[str, Callable[[Path], Any]] = {
    "images": folder_of(SIDE),
    "photos": folder_of(SIDE),
    "edges": folder_of(SIDE, "L"),
    "emoji": folder_of(SIDE, "RGBA"),
    "fashion": folder_of(SIDE, "L"),
    "small-photos": folder_of(SIDE // 4),
    "samples": folder_of(SIDE),
    "samples.npz": write_batch,
    "scans": write_scans,
    "vectors.npz": write_vectors,
    "new.npy": lambda path: np.save(path, np.ones((2, 64))),
    "maps": write_maps,
    "map.png": write_map,
    "fields": fields_of(SIDE),
    "coarse": fields_of(SIDE),
    "era5.nc": write_era5,
    "volumes": write_volumes,
    "slices": write_slices,
    "cells": write_cells,
    "words": write_words,
    "shards": write_shards,
    "images.zip": write_zip,
    "64x64_diffusion.pt": write_openai_checkpoint,
    "ddpm-cifar10-32": write_diffusers_folder,
    **dict.fromkeys(
        ("photo.png", "old.png", "a.png", "b.png", "img.png"), lambda path: image(SIDE).save(path)
    ),
    "drawing.png": lambda path: image(SIDE, "L").save(path),
    "hole.png": write_mask,
    "small.png": lambda path: image(SIDE // 4).save(path),
    "model.safetensors": trained("images"),
    "a.safetensors": trained("images"),
    "b.safetensors": trained("images"),
    "small.safetensors": trained("small-photos"),
    "grey.safetensors": trained("fashion"),
    "longer.safetensors": trained("fields", "--given", "coarse"),
    "garments.run": trained("examples/fashion-mnist.zip"),
    "tiny.safetensors": trained("examples/fashion-mnist.zip"),
}
"""Functions that write what the pages use, but do not make."""


def first_part(path: str) -> str:
    return path.removeprefix("./").partition("::")[0].split("/")[0]


def write_named(words: list[str]) -> None:
    """Write the files that a command names, unless they exist."""
    for word in words:
        name = first_part(word)
        if name in NAMED and not Path(name).exists():
            NAMED[name](Path(name))
