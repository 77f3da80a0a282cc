"""Folders full of rubbish: every file has its outcome, memory is bounded, training goes on."""

import contextlib
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import environment
from image_corpus import chunk, decode, encoded, fill, noise, png
from lab import QUICK, ROOT, write_images
from odd_files import odd, place, rubbish, zeros
from PIL import ImageFile

from diffuse_cli.data import decoding_threads, read_images
from diffuse_cli.media import file_errors
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.system.events import finish

MIB = 2**20
FOUND = """if True:
    import json, sys
    sys.path.insert(0, sys.argv[1])
    from image_corpus import decode
    from peak_memory import forget, peak
    from diffuse_cli.data import read_images
    from diffuse_cli.system.events import finish
    small, *folders = sys.argv[2:]
    decode(open(small, "rb").read())  # what is allocated once
    for folder in folders:
        forget()
        before = peak()
        summary = finish(read_images(folder, workers=2)).summary
        print(json.dumps([peak() - before, summary.to_dict()]))
"""


def measured(tmp_path, *folders):
    """Bytes by which a process grows as it reads each of the folders, and what it finds there."""
    small = fill(tmp_path / "small", {"a.png": encoded(noise(1))}) / "a.png"
    line = [sys.executable, "-c", FOUND, ROOT / "tests", small, *folders]
    ran = subprocess.run(line, env=environment(), capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    return [tuple(json.loads(row)) for row in ran.stdout.splitlines()]


def outcome(data: bytes) -> str:
    try:
        return "" if decode(data).size else "no pixels"
    except Unusable as error:
        return error.reason


def test_every_file_has_its_outcome():
    assert {name: outcome(data) for name, data in odd().items() if outcome(data)} == {}
    files = rubbish()
    assert {name: outcome(data) for name, (data, _) in files.items()} == {
        name: reason for name, (_, reason) in files.items()
    }


def test_reading_rubbish_takes_little_memory_and_says_nothing(tmp_path):
    expected = place(tmp_path / "in")
    [(growth, summary)] = measured(tmp_path, tmp_path / "in")
    assert growth < 48 * MIB
    assert summary["usable"] == len(odd()) + 1
    assert summary["found"] == len(odd()) + 1 + len(expected)
    found = {reason: skip["count"] for reason, skip in summary["skipped"].items()}
    assert found == Counter(expected.values())
    for reason, skip in summary["skipped"].items():
        names = sorted(name for name, why in expected.items() if why == reason)
        assert skip["first"] == names[:5]


ROWS = 4200
LARGE = {"color": (6, 8, 4), "grey": (4, 8, 2), "wide": (0, 16, 2)}
"""Color type, depth and bytes a pixel of PNGs that are over `LARGE`, but no bombs."""


def test_a_large_image_takes_few_bytes_a_pixel(tmp_path):
    folders = []
    for kind, (color, depth, size) in LARGE.items():
        whole = png(ROWS, ROWS, depth, color, b"")
        at = whole.index(b"IDAT") - 4
        image = whole[:at] + chunk(b"IDAT", zeros(ROWS * (ROWS * size + 1)))
        folders.append(fill(tmp_path / kind, {f"{k}.png": image for k in "ab"}))
    for kind, (growth, summary) in zip(LARGE, measured(tmp_path, *folders), strict=True):
        assert summary["usable"] == 2, kind
        assert growth < 10 * ROWS**2 + 16 * MIB, kind


@pytest.mark.parametrize("what", ["pixels", "bytes", "frames", "neither"])
def test_large_images_are_decoded_one_at_a_time(tmp_path, monkeypatch, what):
    inside = []
    most = []
    original = ImageFile.ImageFile.load

    def slowly(image):
        if image.tile:  # not decoded yet
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.005)
            inside.pop()
        return original(image)

    monkeypatch.setattr(ImageFile.ImageFile, "load", slowly)
    unlocked = {"pixels": decoding_threads, "bytes": file_errors}.get(what)
    if unlocked:
        monkeypatch.setattr(unlocked, "lock_large", lambda count: contextlib.nullcontext())
        monkeypatch.setattr(file_errors, "LARGE", 63)
    monkeypatch.setattr(decoding_threads, "FILES_A_CHUNK", 1)
    monkeypatch.setattr(decoding_threads, "SMALL", 0)
    kind = "AVIF" if what == "frames" else "PNG"
    folder = fill(tmp_path, {f"{k}.{kind}": encoded(noise(k), kind) for k in range(20)})
    finish(read_images(folder, workers=4))
    assert len(most) == 20
    assert (max(most) == 1) == (what != "neither")


# -- the command ----------------------------------------------------------------------------------


def test_training_goes_to_its_end_and_says_what_it_skipped(diffuse, tmp_path):
    """With --strict it ends at the first of them."""
    folder = write_images(tmp_path / "mixed", 30)
    expected = {f"dark/{name}": reason for name, reason in place(folder / "dark").items()}
    line = ("train", folder, "--config", QUICK, "--size", 8, "--steps", 2)
    diffuse(*line, "--strict", "-q").fails(3, f"{min(expected)}: {expected[min(expected)]}")
    assert not Path("model.run").exists()
    ran = diffuse(*line, "--json").ok()
    assert (ran.json["step"], ran.json["images"]) == (2, 30 + len(odd()) + 1)
    for reason, count in Counter(expected.values()).items():
        plural = "file" if count == 1 else "files"
        first = next(name for name in sorted(expected) if expected[name] == reason)
        assert f"skipped {count} {plural}, {reason}: {first}" in ran.err
    assert "Traceback" not in ran.err


def test_no_rubbish_is_an_image_to_look_at(diffuse, tmp_path):
    for name, (data, reason) in rubbish().items():
        if name != "float.tif":  # it is an array
            fill(tmp_path, {name: data})
            diffuse("noise-demo", name, "-q").fails(3, f"cannot use {name}: {reason}")
