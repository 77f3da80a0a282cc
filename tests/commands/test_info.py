"""info: exact numbers of images and models, copies found and none made up, nothing trusted."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import mostly_slow
from edited_models import altered, change_description, join_file, split_file
from image_corpus import encoded, fill
from lab import ROOT
from PIL import Image
from xxhash import xxh3_128_digest

from diffuse_cli.commands.info import duplicates, reports
from diffuse_cli.commands.info.inspection import inspect
from diffuse_cli.config.shared_options import InfoConfig
from diffuse_cli.data import read_images
from diffuse_cli.media import figures
from diffuse_cli.models import model_file, tensor_file
from diffuse_cli.system import files
from diffuse_cli.system.descriptors import open_regular_file
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.events import Notice, finish


def png(pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    """Pixels (H, W) or (H, W, 3) as a file."""
    return encoded(Image.fromarray(np.asarray(pixels, np.uint8)), kind, **options)


def noise(seed: int, side: int = 16, channels: int = 1) -> Any:
    shape = (side, side) if channels == 1 else (side, side, channels)
    return np.random.default_rng(seed).integers(0, 256, shape)


def scene(seed: int, side: int = 32) -> Any:
    """What photographs are like: waves, the finer the weaker, of little color."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    picture = np.zeros((side, side, 3))
    for _ in range(40):
        down, right = draw.uniform(-6, 6, 2)
        wave = np.sin(2 * np.pi * (y * down + x * right + draw.uniform()))
        color = draw.normal() + 0.1 * draw.normal(size=3)
        picture += wave[..., None] * color / (1 + np.hypot(down, right))
    return (127.5 + 50 * picture / picture.std()).clip(0, 255).astype(np.uint8)


def held_out(pixels: Any) -> bool:
    """The rule, written down again: a hash of mode, size and pixels."""
    values = np.ascontiguousarray(pixels, np.uint8)
    mode = "L" if values.ndim == 2 else "RGB"
    text = f"{mode} {values.shape[1]}x{values.shape[0]}\n".encode()
    digest = xxh3_128_digest(text + values.tobytes())
    return int.from_bytes(digest, "big") % 20 == 0


def look(folder: Path, **options: Any) -> Any:
    """The JSON of a set of images, without the command line."""
    values, _ = finish(inspect(InfoConfig(path=str(folder), **options)))
    return json.loads(json.dumps(values))


# -- images ---------------------------------------------------------------------------------------


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """Three sizes, three modes, two classes, an image outside them, and what is no image."""
    return fill(
        tmp_path / "messy",
        {
            "cat/1.png": png(noise(1)),
            "cat/2.png": png(noise(2)),
            "dog/3.png": encoded(Image.fromarray(noise(3, 12).astype(np.uint8)).convert("LA")),
            "dog/4.PNG": png(noise(4, 20, 3)),
            "5.png": png(noise(5)),
            "dog/bad.png": b"not an image",
            "dog/empty.jpg": b"",
            "cat/empty.png": b"",
            "notes.txt": b"cats and dogs",
        },
    )


def test_one_file_with_a_palette_has_a_table_of_labels(tmp_path, diffuse):
    path = tmp_path / "map.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 4).save(path)
    assert diffuse("info", path, "--json").ok().json["labels"] == dict.fromkeys("0123", 0.25)


def test_every_number_of_a_messy_set(messy, diffuse):
    ran = diffuse("info", messy, "--json", "--size", 8)
    found = ran.json
    images = finish(read_images(messy, size=(8, 8)))
    values = images.stored.astype(float)
    assert ran.code == 0
    assert found == {
        "kind": "data",
        "path": str(messy),
        "source": str(messy),
        "found": 8,
        "usable": 5,
        "channels": 3,
        "sizes": {"16x16": 3, "12x12": 1, "20x20": 1},
        "modes": {"L": 3, "LA": 1, "RGB": 1},
        "classes": {"cat": 2, "dog": 2},
        "unlabelled": 1,
        "skipped": {
            "not an image": {"count": 1, "first": ["dog/bad.png"]},
            "empty file": {"count": 2, "first": ["cat/empty.png", "dog/empty.jpg"]},
        },
        "others": 1,
        "size": {"height": 8, "width": 8},
        "held_out": 0,
        "pixels": {
            "mean": pytest.approx(values.mean((0, 2, 3)), rel=1e-12),
            "std": pytest.approx(values.std((0, 2, 3)), rel=1e-12),
        },
        "pixels_scaled": {
            "mean": pytest.approx((values / 127.5 - 1).mean((0, 2, 3)), rel=1e-12),
            "std": pytest.approx((values / 127.5 - 1).std((0, 2, 3)), rel=1e-12),
        },
        "duplicates": NO_COPIES,
        "near_duplicates": NO_COPIES,
        "blank": 0,
        "fingerprint": images.fingerprint,
        "contact_sheet": None,
    }


NO_COPIES = {"groups": 0, "surplus": 0, "across_classes": 0, "across_split": 0, "first": []}


def test_the_same_for_people(messy, diffuse):
    ran = diffuse("info", messy, "--size", 8)
    assert "reading images" in ran.err
    lines = [line[17:] for line in ran.out.splitlines()]
    assert lines[:10] == [
        str(messy),
        "5 usable of 8; 1 file not named as images",
        "2 files, empty file: cat/empty.png, dog/empty.jpg",
        "1 file, not an image: dog/bad.png",
        "3 sizes from 12x12 to 20x20; 3 of 16x16, 1 of 12x12, 1 of 20x20",
        "L 3, LA 1, RGB 1",
        "at 8x8, color; none held out",
        "2 classes of 2 images",
        "1 image outside the class folders",
        "cat 2, dog 2",
    ]
    images = finish(read_images(messy, size=(8, 8)))
    r, g, b = images.stored.astype(float).mean((0, 2, 3))
    assert lines[10].startswith(f"mean {r:.2f} {g:.2f} {b:.2f}, deviation ")
    assert lines[11].startswith(f"mean {r / 127.5 - 1:.4f} {g / 127.5 - 1:.4f} ")
    assert lines[12:] == ["none", "none", images.fingerprint]


def test_sizes_are_those_that_train_makes(tmp_path, diffuse):
    ran = diffuse("info", fill(tmp_path / "d", {"a.png": png(noise(1, 100)), "b.png": png([[1]])}))
    assert "at 64x64, grey" in ran.out
    assert "pass --size 128" in ran.err
    folder = fill(tmp_path / "cut", {"a.png": png(noise(1, 48)[:27])})
    text = diffuse("info", folder, "--size", 8).out
    assert "at 8x8, cropped at the center by up to 44 %, grey;" in text


def test_bad_files_are_named_five_a_reason(tmp_path, diffuse):
    bad = {f"{i}.png": b"no" for i in range(7)}
    data = fill(tmp_path / "d", {**bad, "good.png": png(noise(1))})
    first = [f"{i}.png" for i in range(5)]
    skipped = diffuse("info", data, "--json").json["skipped"]
    assert skipped == {"not an image": {"count": 7, "first": first}}
    assert f"7 files, not an image: {', '.join(first)}, ..." in diffuse("info", data).out


def test_a_zip_is_read_like_its_folder(messy, diffuse):
    shutil.make_archive("set", "zip", messy)
    folder, packed = (diffuse("info", path, "--json").json for path in (messy, "set.zip"))
    for found in (folder, packed):
        del found["path"], found["source"]
        found["sizes"] = dict(sorted(found["sizes"].items()))
    assert packed == folder


def test_one_image(tmp_path, diffuse):
    ran = diffuse("info", fill(tmp_path / "d", {"a.png": png([[0, 255]])}), "-o", "one.png").ok()
    assert "1 usable of 1" in ran.out
    assert "mean 127.50, deviation 127.50 of 255" in ran.out
    assert "not searched: the images are too small" in ran.out
    assert ran.out.splitlines()[-1].split() == ["contact", "sheet", "one.png"]
    shown = np.asarray(Image.open("one.png"))
    assert shown.shape == (32, 64)  # large enough to be seen
    assert shown[::32, ::32].tolist() == [[0, 255]]


@pytest.mark.parametrize(
    ("kind", "name", "mode"),
    [
        (np.uint8, "one.png", "L"),
        (np.uint16, "one.png", "I;16"),
        (np.float32, "one.tif", "float32"),
    ],
)
def test_one_file_is_described(tmp_path, diffuse, kind, name, mode):
    Image.fromarray(np.arange(12, dtype=kind).reshape(3, 4) * 20).save(tmp_path / name)
    ran = diffuse("info", name, "--json").ok()
    assert (ran.json["kind"], ran.json["usable"]) == ("data", 1)
    assert (ran.json["sizes"], ran.json["modes"]) == ({"4x3": 1}, {mode: 1})
    if name == "one.png":
        assert f"of {np.iinfo(kind).max}" in diffuse("info", name).out
    else:
        assert ran.json["medium"] == "array"


def test_transparency_is_laid_on_the_background(tmp_path, diffuse):
    Image.new("LA", (9, 9), (100, 0)).save(tmp_path / "a.png")
    for options, expected in (([], 255), (["--background", "#010101"], 1)):
        assert diffuse("info", "a.png", "--json", *options).json["pixels"]["mean"] == [expected]


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (reports, "MAP_OVER", 0),
        (reports, "kept_bytes", lambda folder: 0),
        (duplicates, "BLOCK", 1),
    ],
    ids=["mapped", "not kept", "in blocks"],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_where_images_are_kept_and_read_changes_nothing(
    messy, tmp_path, monkeypatch, temporary, module, name, value, workers
):
    sheets = [tmp_path / "before.png", tmp_path / "after.png"]
    expected = look(messy, out=str(sheets[0]))
    monkeypatch.setattr(module, name, value)
    found = look(messy, workers=workers, out=str(sheets[1]))
    assert {**found, "contact_sheet": ""} == {**expected, "contact_sheet": ""}
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    assert not [*temporary.iterdir()]


def test_images_on_the_disk_are_removed_where_a_command_ends(messy, monkeypatch, temporary):
    monkeypatch.setattr(reports, "MAP_OVER", 0)
    with pytest.raises(DataError, match="empty file"):
        look(messy, strict=True)
    work = inspect(InfoConfig(path=str(messy)))
    next(work)
    assert [*temporary.iterdir()]
    work.close()
    assert not [*temporary.iterdir()]


# -- names ----------------------------------------------------------------------------------------


def test_hostile_names_are_escaped(tmp_path, diffuse):
    names = [
        b"line\nbreak",
        b"\x1b[31mred",
        b"[bold]markup",
        b"bytes\xff",
        "\u202ertl".encode(),
    ]
    data = tmp_path / "d"
    for name in names:
        fill(data / os.fsdecode(name), {"a.png": png(noise(1)), "b.png": b"no"})
    ran = diffuse("info", data).ok()
    assert len(ran.out.splitlines()) == 15
    assert not set("\x1b\u202e") & {*ran.out}
    for shown in (r"line\nbreak", r"\x1b[31mred", "[bold]markup", r"bytes\udcff", r"\u202e"):
        assert f"{shown} 1" in ran.out or f"{shown}rtl 1" in ran.out
        assert ran.out.count(shown) == 3, "a class, a bad file, a copy"
    found = diffuse("info", data, "--json").json
    assert sorted(found["classes"]) == sorted(map(os.fsdecode, names))


# -- copies ---------------------------------------------------------------------------------------


def test_exact_copies_are_found_whatever_the_file(tmp_path, diffuse):
    data = fill(
        tmp_path / "d",
        {
            "cat/a.png": png(noise(1)),
            "cat/b.bmp": png(noise(1), kind="BMP"),
            "dog/c.png": png(noise(1), compress_level=0),
            "cat/d.png": png(noise(2)),
            "cat/e.png": png(noise(2)),
            "dog/f.png": png(noise(3)),
        },
    )
    ran = diffuse("info", data, "--json").json
    assert ran["duplicates"] == {
        "groups": 2,
        "surplus": 3,
        "across_classes": 1,
        "across_split": 0,
        "first": [
            {"count": 3, "names": ["cat/a.png", "cat/b.bmp", "dog/c.png"]},
            {"count": 2, "names": ["cat/d.png", "cat/e.png"]},
        ],
    }
    assert ran["near_duplicates"] == NO_COPIES
    text = diffuse("info", data).out
    assert "2 groups, 3 surplus images" in text
    assert "1 group in more than one class" in text
    assert "cat/a.png = cat/b.bmp = dog/c.png\n" in text


def test_large_groups_and_many_are_cut_short(tmp_path, diffuse):
    copies = {f"{k}/{i}.png": png(noise(k)) for k in range(7) for i in range(2 + 5 * (k == 6))}
    text = diffuse("info", fill(tmp_path / "d", copies)).out.splitlines()
    first = next(i for i, line in enumerate(text) if line.startswith("duplicates"))
    assert [line[17:] for line in text[first : first + 7]] == [
        "7 groups, 12 surplus images",
        "6/0.png = 6/1.png = 6/2.png = 6/3.png = 6/4.png, ... (7)",
        *(f"{k}/0.png = {k}/1.png" for k in range(4)),
        "...",
    ]


def resized(pixels: Any, side: int) -> Any:
    small = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(small.resize(pixels.shape[1::-1], Image.Resampling.BICUBIC))


COPIES: dict[str, Callable[[Any], bytes]] = {
    "JPEG": lambda p: png(p, kind="JPEG", quality=75),
    "resized": lambda p: png(resized(p, 24)),
    "smaller": lambda p: png(np.asarray(Image.fromarray(p).resize((24, 24)))),
    "brighter": lambda p: png((p * 0.9 + 20).clip(0, 255)),
    "noisy": lambda p: png((p + np.random.default_rng(0).normal(0, 3, p.shape)).clip(0, 255)),
}


@pytest.mark.parametrize("how", COPIES)
def test_near_copies_are_found(tmp_path, how):
    contents = {f"{i:02}.png": png(scene(i)) for i in range(30)}
    contents |= {f"{i:02}x.img.png": COPIES[how](scene(i)) for i in range(0, 30, 3)}
    found = look(fill(tmp_path, contents), size=(32, 32))
    assert found["duplicates"] == NO_COPIES
    assert found["near_duplicates"]["groups"] == found["near_duplicates"]["surplus"] == 10
    assert found["near_duplicates"]["first"][1]["names"] == ["03.png", "03x.img.png"]


def test_a_grey_picture_saved_in_color_is_a_near_copy(tmp_path, diffuse):
    grey = scene(1)[..., 0]
    color = np.repeat(grey[..., None], 3, axis=2)
    data = fill(tmp_path / "d", {"a.png": png(grey), "b.png": png(color), "c.png": png(scene(2))})
    assert look(data)["near_duplicates"]["surplus"] == 1
    assert "a.png ~ b.png" in diffuse("info", data).out


def test_nothing_alike_is_made_up(tmp_path):
    y, x = np.mgrid[:32, :32]
    disc = np.hypot(y - 15.5, x - 15.5) < 10
    white = np.full((32, 32, 3), 255)
    contents = {f"noise{i}.png": png(noise(i, 32, 3)) for i in range(300)}
    contents |= {f"scene{i}.png": png(scene(i)) for i in range(300)}
    contents |= {f"flat{i}.png": png(np.full((32, 32, 3), i)) for i in range(0, 256, 5)}
    draw = np.random.default_rng(1)
    contents |= {f"faint{i}.png": png(100 + draw.integers(0, 3, (32, 32, 3))) for i in range(50)}
    for i, color in enumerate(((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))):
        contents[f"disc{i}.png"] = png(np.where(disc[..., None], color, white))
    found = look(fill(tmp_path, contents))
    assert found["near_duplicates"] == NO_COPIES
    assert found["blank"] == 52 + 50


def test_likenesses_across_the_split_are_counted(tmp_path, diffuse):
    contents, expected, seen = {}, 0, 0
    for i in range(60):
        contents[f"{i:02}.png"], copy = png(scene(i)), COPIES["resized"](scene(i))
        contents[f"{i:02}x.png"] = copy
        sides = held_out(scene(i)), held_out(np.asarray(Image.open(io.BytesIO(copy))))
        expected += sides[0] != sides[1]
        seen += sum(sides)
    found = look(fill(tmp_path / "d", contents))
    assert found["held_out"] == seen
    assert found["near_duplicates"]["groups"] == 60
    assert found["near_duplicates"]["across_split"] == expected > 1
    text = diffuse("info", "d").out
    assert f"{expected} held-out images with a copy among the training images" in text


def test_symmetric_pictures_are_recognized(tmp_path):
    contents = {}
    for i in range(20):
        half = scene(i)[:, :16]
        whole = np.concatenate([half, half[:, ::-1]], axis=1)
        contents |= {f"{i:02}.png": png(whole), f"{i:02}x.png": COPIES["noisy"](whole)}
    assert look(fill(tmp_path, contents))["near_duplicates"]["groups"] == 20


def everyone_with_everyone(pixels: Any, hashed: Any) -> Any:
    """Groups as `near.groups` means them, by comparing all pairs."""
    vectors = duplicates.frequencies(pixels).reshape(len(pixels), -1)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    roots = list(range(len(pixels)))
    for i in range(len(pixels)):
        for j in range(i):
            apart = (int(hashed[i]) ^ int(hashed[j])).bit_count()
            if apart <= duplicates.DISTANCE and vectors[i] @ vectors[j] >= duplicates.ALIKE:
                low, high = sorted((roots[i], roots[j]))
                roots = [low if root == high else root for root in roots]
    return roots


@pytest.mark.parametrize("seed", mostly_slow(range(3), always=1))
def test_bands_find_what_comparing_all_pairs_finds(seed, monkeypatch):
    monkeypatch.setattr(duplicates, "PAIRS", 7)
    draw = np.random.default_rng(seed)
    bases = [scene(100 * seed + k)[..., 0].astype(float) for k in range(30)]
    strengths = draw.uniform(0, 12, 150)
    pixels = np.stack(
        [bases[k % 30] + draw.normal(0, s, (32, 32)) for k, s in enumerate(strengths)]
    )
    pixels = pixels.clip(0, 255).astype(np.uint8)[draw.permutation(150), None]
    hashed = duplicates.hashes(duplicates.frequencies(pixels))
    expected = everyone_with_everyone(pixels, hashed)
    assert 30 < len(set(expected)) < 100
    chosen = np.arange(150)
    assert finish(duplicates.group_similar(pixels, hashed, chosen)).tolist() == expected
    some = np.flatnonzero(np.arange(150) % 4 != 0)
    expected = everyone_with_everyone(pixels[some], hashed[some])
    assert finish(duplicates.group_similar(pixels, hashed, some)).tolist() == expected


def test_the_search_is_bounded_where_all_hashes_are_one(monkeypatch):
    compared = []

    def frequencies(pixels):
        compared.append(len(pixels) / 2)
        return np.zeros((len(pixels), 1, 1, 1))

    monkeypatch.setattr(duplicates, "PAIRS", 1)
    monkeypatch.setattr(duplicates, "frequencies", frequencies)
    pixels = np.zeros((500, 1, 8, 8), np.uint8)
    roots = finish(duplicates.group_similar(pixels, np.zeros(500, np.uint64), np.arange(500)))
    assert roots.tolist() == list(range(500))
    assert duplicates.CANDIDATES * 500 <= sum(compared) < (duplicates.CANDIDATES + 1) * 500


# -- the contact sheet ----------------------------------------------------------------------------


def test_a_sheet_without_classes_is_spread_over_the_set(tmp_path, diffuse):
    shades = {f"{i:03}.png": png(np.full((4, 4), i)) for i in range(100)}
    ran = diffuse("info", fill(tmp_path / "d", shades), "-o", "sheet.png", "--json")
    assert ran.json["contact_sheet"] == "sheet.png"
    page = np.asarray(Image.open("sheet.png"))
    assert page.shape == (8 * 66 - 2, 8 * 66 - 2)
    assert page[::66, ::66].ravel().tolist() == [round(i * 99 / 63) for i in range(64)]
    assert (page[64::66] == 255).all()


def test_a_sheet_has_a_row_for_each_class(tmp_path, diffuse):
    contents = {f"a/{i:02}.png": png(np.full((4, 4), i)) for i in range(19)}
    contents |= {f"b/{i}.png": png(np.full((4, 4), 100 + i)) for i in range(3)}
    contents |= {"c.png": png(np.full((4, 4), 200)), "d/bad.png": b"no"}
    assert diffuse("info", fill(tmp_path / "d", contents), "-o", "sheet.png").code == 0
    page = np.asarray(Image.open("sheet.png"))
    names, page = page[:, : -10 * 66], page[:, 2 - 10 * 66 :]
    assert [(row < 128).any() for row in np.split(names[: 3 * 65], 3)] == [True] * 3
    assert page[::66, ::66].tolist() == [
        list(range(0, 19, 2)),
        [100, 101, 102, *[255] * 7],
        [200, *[255] * 9],
    ]


def test_a_sheet_of_many_classes_says_what_it_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setattr(reports, "ROWS", 3)
    data = fill(tmp_path, {f"{k}/1.png": png(np.full((4, 4), k)) for k in range(5)})
    events = []
    sheet = finish(reports.make_sheet(finish(read_images(data))), events.append)
    assert events == [Notice("the contact sheet shows 3 of 5 classes")]
    assert np.asarray(sheet)[::66, -1].tolist() == [0, 2, 4]


@pytest.mark.parametrize("channels", [1, 3])
def test_large_images_are_small_on_the_sheet(tmp_path, channels):
    data = fill(tmp_path, {"a.png": png(noise(1, 300, channels)), "b.png": png(noise(2, 300))})
    images = finish(read_images(data, size=(150, 300)))
    page = finish(reports.make_sheet(images))
    assert page.size == (128 + 2 + 128, 64)
    expected = figures.shrink_image(figures.to_image(images.stored[1]), 128)
    assert page.crop((130, 0, 258, 64)).tobytes() == expected.tobytes()


def test_a_sheet_is_refused_before_anything_is_read(images, diffuse, monkeypatch):
    monkeypatch.setattr(reports, "read_images", Mock(side_effect=AssertionError))
    Path("link.png").symlink_to(images)
    ran = diffuse("info", images, "-o", "link.png", "--json", "--overwrite")
    assert ran.json["error"]["code"] == "output_is_input"


# -- what is there --------------------------------------------------------------------------------


def test_nothing_usable_is_one_line(tmp_path, diffuse):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "picture.png").write_bytes(png(noise(1))[:20])
    for path, says in (
        ("fifo", "fifo"),
        ("x" * 5000, "cannot read"),
        ("picture.png", "no usable images in picture.png: 1 truncated or corrupt"),
    ):
        assert diffuse("info", path, "-q").fails(3, says).out == ""


# -- model files ----------------------------------------------------------------------------------


def test_what_a_model_file_says(conditional, images, diffuse):
    ran = diffuse("info", conditional, "--json")
    loaded = model_file.load(conditional)
    found = ran.json
    assert ran.code == 0
    assert {k: found[k] for k in ("kind", "path", "size_bytes", "sha256", "title", "step")} == {
        "kind": "model",
        "path": str(conditional),
        "size_bytes": conditional.stat().st_size,
        "sha256": hashlib.sha256(conditional.read_bytes()).hexdigest(),
        "title": "diffuse model, 60 steps",
        "step": 60,
    }
    assert found["parameters"] == sum(p.numel() for p in loaded.network().parameters())
    assert found["raw"] is True
    assert found["classes"] == ["dark", "light"]
    assert found["network"]["width"] == 8
    assert found["diffusion"]["variance"] == "learned"
    assert found["data"]["fingerprint"] == finish(read_images(images)).fingerprint
    assert found["training"] == loaded.training
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]


def test_what_a_model_file_says_for_people(conditional, diffuse):
    ran = diffuse("info", conditional)
    assert ran.out.splitlines()[1:10] == [
        "title       diffuse model, 60 steps",
        f"file        {conditional.stat().st_size:,} bytes, SHA-256 {files.sha256(conditional)}",
        "weights     averaged and raw",
        "parameters  12,994",
        "network     unet, 8x8, grey, conditional on 2 classes",
        "            levels of 8 (attention) channels; blocks per level: 1 (resnet)",
        "process     schedule cosine, 100 timesteps, target v, variance learned",
        "classes     dark, light",
        "step        60",
    ]
    assert re.search(r"^ +optimization: .*lr=0.002", ran.out, re.MULTILINE)
    held_out = model_file.load(conditional).data["held_out"]["images"]
    assert f"            held_out: images={held_out}, minimum=40" in ran.out
    assert ran.err == "reading model 1/1\n"


def titled(data: bytes, title: str | None) -> bytes:
    """The file with another title, or without one."""
    header, body = split_file(data)
    del header["__metadata__"]["modelspec.title"]
    header["__metadata__"] |= {"modelspec.title": title} if title is not None else {}
    return join_file(header, body)


def test_what_a_hostile_model_file_says_is_escaped_and_cut(conditional, diffuse):
    hostile = "\x1b[31m[red]x[/red]\n\ud800\u202e"

    def change(config: dict[str, Any]) -> None:
        config["conditions"]["classes"] = [hostile, "[bold]b"]
        config["training"] = {hostile: hostile, **{f"k{i}": "v" * 10_000 for i in range(300)}}
        config["data"] = {str(i): {hostile: [hostile]} for i in range(300)}
        config["versions"] = {"list": list(range(1000)), "none": None}
        config["step"] = -(10**4000)

    described = change_description(conditional.read_bytes(), change)
    title = hostile.replace("\ud800", "") + "t" * 10_000
    Path("hostile.safetensors").write_bytes(titled(described, title))
    ran = diffuse("info", "hostile.safetensors").ok()
    assert not set("\x1b\ud800\u202e") & {*ran.out}
    assert r"classes     \x1b[31m[red]x[/red]\n\ud800\u202e, [bold]b" in ran.out
    assert "list=1,000 values, none=None" in ran.out
    assert "and 201 more" in ran.out
    assert len(ran.out.splitlines()) < 130
    assert len(ran.out) < 40_000
    found = diffuse("info", "hostile.safetensors", "--json").json
    assert found["classes"][0] == hostile
    assert found["versions"]["none"] is None


@pytest.mark.parametrize("where", ["data", "training", "versions"])
def test_a_model_file_nested_too_deeply_is_rejected(conditional, diffuse, where):
    def change(config: dict[str, Any]) -> None:
        value: Any = 1
        for _ in range(400):
            value = {"a": [value]}
        config[where]["deep"] = value

    Path("deep.safetensors").write_bytes(change_description(conditional.read_bytes(), change))
    ran = diffuse("info", "deep.safetensors", "--json", "-q")
    assert (ran.code, ran.json["error"]["code"]) == (4, "model_damaged")
    assert "deep.safetensors" in ran.line


def test_a_model_file_whose_weights_end_like_a_zip(conditional, diffuse):
    record = b"PK\x05\x06" + bytes(16) + b"\x02\x00" + bytes(2)
    Path("m.safetensors").write_bytes(conditional.read_bytes()[: -len(record)] + record)
    assert zipfile.is_zipfile("m.safetensors")
    assert diffuse("info", "m.safetensors", "--json").json["kind"] == "model"


def test_a_model_lists_the_classes_that_it_draws(model, diffuse):
    """An unconditional one keeps the names in its data, and draws none of them."""
    assert diffuse("info", model, "--json").json["classes"] == []
    told = diffuse("info", model).out
    assert "classes     none: trained without --classes\n" in told
    assert " classes=[" not in told


def test_a_model_without_a_title_or_raw_weights(conditional, diffuse):
    model = model_file.load(conditional)
    model_file.save(Path("m.safetensors"), model_file.StoredModel(**{**vars(model), "raw": None}))
    Path("m.safetensors").write_bytes(titled(Path("m.safetensors").read_bytes(), None))
    found = diffuse("info", "m.safetensors", "--json").json
    assert (found["title"], found["raw"]) == ("", False)
    assert "title       none\n" in diffuse("info", "m.safetensors").out
    with open_regular_file(Path("m.safetensors")) as file:
        assert tensor_file.read_header(file).metadata["format"] == "pt"


def test_numbers_have_four_digits_for_people_and_all_in_json(conditional, diffuse):
    training = {"lr": 0.00019999999, "ratios": [1 / 3, 2]}
    altered(conditional, Path("m.safetensors"), training=training)
    text = diffuse("info", "m.safetensors").out
    assert "lr=0.0002," in text
    assert "ratios=[0.3333, 2]" in text
    assert training.items() <= diffuse("info", "m.safetensors", "--json").json["training"].items()


# -- the configuration of a training --------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ["--classes", "--variance", "learned", "--label-dropout", 0.3, "--flip", "--seed", 3],
        ["--given", "mask:half", "--given-noise", 0.2],
        ["--betas", "betas.txt", "--size", "8x4", "--accumulation", 2, "--lr", 1 / 700],
    ],
)
def test_the_toml_of_a_model_trains_it_again(train, diffuse, images, options):
    Path("betas.txt").write_text(" ".join(str(k / 50) for k in range(1, 21)))
    options = [*options, *(["--num-timesteps", 20] if "--betas" in options else [])]
    assert train("--steps", 3, "--stop-at", 2, "-o", "a.safetensors", *options).code == 0
    ran = diffuse("info", "a.safetensors", "--toml", "-o", "a.toml", "-q")
    assert (ran.code, ran.out, ran.err) == (0, "a.toml\n", "")
    Path("betas.txt").unlink()
    line = ["train", images, "--config", "a.toml", "--stop-at", 2, "-o", "b.safetensors"]
    assert diffuse(*line).code == 0
    assert Path("b.safetensors").read_bytes() == Path("a.safetensors").read_bytes()
    of_run = tomllib.loads(Path("a.run/config.toml").read_text())
    assert tomllib.loads(Path("a.toml").read_text()) == {
        name: value
        for name, value in of_run.items()
        if name not in ("data", "preview_every", "device")
    }


def test_the_toml_is_printed_written_and_part_of_the_json(conditional, diffuse):
    text = diffuse("info", conditional, "--toml").out
    assert tomllib.loads(text)["unet"]["width"] == 8
    ran = diffuse("info", conditional, "--toml", "-o", "a.toml", "--json")
    assert Path("a.toml").read_text() == text
    assert (ran.json["config"], ran.json["toml"]) == (tomllib.loads(text), "a.toml")
    assert "config" not in diffuse("info", conditional, "--json").json


def test_the_toml_of_a_column_with_an_odd_space_can_be_read(conditional, diffuse):
    training = {"classes": False, "condition_on": ["Alter\u00a0\u2028(Jahre)"]}
    altered(conditional, Path("odd.safetensors"), training=training)
    text = diffuse("info", "odd.safetensors", "--toml").out
    assert tomllib.loads(text)["condition_on"] == training["condition_on"]


@pytest.mark.parametrize(("loss", "code"), [("\x9b31m\u202e", 0), (3, 4)])
def test_the_toml_of_a_hostile_model_file_is_escaped_or_refused(conditional, diffuse, loss, code):
    altered(conditional, Path("m.safetensors"), training={"loss": loss})
    ran = diffuse("info", "m.safetensors", "--toml", "-q")
    assert ran.code == code
    assert not set("\x9b\u202e") & {*ran.out}


# -- its page ----------------------------------------------------------------------------------


def test_its_page_shows_what_is_said(diffuse):
    page = (ROOT / "docs" / "commands" / "info.md").read_text(encoding="utf-8")
    shown = page.split("diffuse info examples/fashion-mnist.zip -o sheet.png\n```\n\n```text\n")[1]
    said = diffuse("info", ROOT / "examples" / "fashion-mnist.zip", "-o", "sheet.png").out
    assert shown.split("```")[0] == said.replace(f"{ROOT}/", "")


# -- as a process ---------------------------------------------------------------------------------


def test_images_are_looked_at_without_torch(fresh, images, tmp_path):
    (tmp_path / "program.py").write_text(
        "import sys; from diffuse_cli.app import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "LC_ALL": "C"}
    ran = fresh("info", images, "-o", "sheet.png", module="program", env=env).ok()
    assert ran.out.startswith("data             ")
    assert "reading images 60/60" in ran.err
    assert (tmp_path / "sheet.png").exists()
