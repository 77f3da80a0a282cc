"""`sample -o FILE`: a zip, or the array that other programs evaluate, read back as a folder is."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffuse_cli.data import read_images
from diffuse_cli.sampling.journal import SamplingRecord
from diffuse_cli.system import files
from diffuse_cli.system.errors import Terminated
from diffuse_cli.system.events import finish

QUICK = ("--steps", 2, "--precision", "fp32", "--sampler", "ddim", "--batch-size", 4, "-n", 6)


@pytest.fixture
def sample(diffuse, conditional):
    return lambda *arguments: diffuse("sample", conditional, *QUICK, *arguments)


def stopping(self, name, contents, add=SamplingRecord.add):
    if name == "4-6":
        raise Terminated("terminated")
    add(self, name, contents)


@pytest.fixture
def made(sample, monkeypatch):
    """The same images in a folder and in both files, each of which was stopped once."""
    assert sample("-o", "folder").code == 0
    for name in ("x.zip", "x.npz"):
        with monkeypatch.context() as patch:
            patch.setattr(SamplingRecord, "add", stopping)
            assert sample("-o", name).code == 143
        assert not Path(name).exists()
        ran = sample("-o", name)
        assert "resuming with 4 images of" in ran.err
        assert ran.out.split() == [name]
    assert sorted(p.name for p in Path().iterdir()) == ["folder", "x.npz", "x.zip"]


def test_a_zip_has_the_files_of_the_folder_and_an_npz_the_arrays_of_guided_diffusion(
    made, sample, diffuse, images
):
    folder = {p.name: p.read_bytes() for p in Path("folder").iterdir()}
    with zipfile.ZipFile("x.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == folder
    with np.load("x.npz") as arrays:
        assert arrays["arr_0"].dtype == np.uint8
        assert arrays["arr_0"].shape == (6, 8, 8, 1)
        for k, image in enumerate(arrays["arr_0"]):
            assert np.array_equal(image[..., 0], np.asarray(Image.open(f"folder/{k:05d}.png")))
        assert arrays["arr_1"].tolist() == [0, 1, 0, 1, 0, 1]
        manifest = json.loads(arrays["manifest.json"])
    assert manifest["settings"] == json.loads(folder["manifest.json"])["settings"]
    measured = []
    for name in ("folder", "x.zip", "x.npz"):
        ran = diffuse("eval", name, images, "--json", "-q").ok()
        numbers = {k: v for k, v in ran.json.items() if isinstance(v, float) and k != "seconds"}
        assert "kid" in numbers
        measured.append({**numbers, "hash": ran.json.get("fingerprints")})
    assert measured[0] == measured[1] == measured[2]
    for name in ("x.zip", "x.npz"):
        before = Path(name).read_bytes()
        assert "is complete" in sample("-o", name).err
        assert sample("-o", name, "--overwrite").code == 0
        assert Path(name).read_bytes() == before
        ran = sample("-o", name, "--seed", 1, "-q")
        ran.fails(5, f"{name} exists already, with other settings")
        sample("-o", name, "-n", 7, "-q").fails(5, "with 6 images")
        said = "without denoising.gif" if name == "x.zip" else "cannot be animated"
        sample("-o", name, "--gif", "-q").fails(5 if name == "x.zip" else 2, said)
        assert Path(name).read_bytes() == before


@pytest.mark.parametrize("name", ["x.zip", "x.npz"])
def test_a_kill_after_packing_changes_nothing_and_another_file_is_not_replaced(
    sample, monkeypatch, name
):
    def stop(path):
        if path.name == f".{name}.parts":
            raise Terminated("terminated")
        remove(path)

    remove = files.remove
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove", stop)
        assert sample("-o", name).code == 143
    before = Path(name).read_bytes()
    assert "is complete" in sample("-o", name).err
    assert Path(name).read_bytes() == before
    assert [path.name for path in Path().iterdir()] == [name]
    Path(name).write_bytes(b"mine")
    sample("-o", name, "-q").fails(5, f"{name} exists already")
    assert Path(name).read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["x.zip", "x.npz"])
def test_a_file_holds_the_images_of_one_command(sample, monkeypatch, name):
    """A stopped command may have generated more of them."""

    def stop(*_):
        raise Terminated("terminated")

    sample("-o", "fresh" + name, "-n", 3).ok()
    with monkeypatch.context() as patch:
        patch.setattr(SamplingRecord, "end", stop)
        assert sample("-o", name).code == 143
    sample("-o", name, "-n", 3).ok()
    assert Path(name).read_bytes() == Path("fresh" + name).read_bytes()


def test_arrays_of_others_are_read_too(diffuse, tmp_path):
    """Compressed, in color, with or without labels. Two arrays are two samples."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), np.uint8)
    np.savez_compressed("packed.npz", pixels, np.arange(5))
    np.savez("bare.npz", pixels)
    for name in ("packed.npz", "bare.npz"):
        samples = finish(read_images(name))
        assert samples.medium == "image"
        assert np.array_equal(samples.stored, np.moveaxis(pixels, 3, 1))
    for name, arrays, medium, count in (
        ("other.npz", {"x": pixels}, "image", 5),
        ("floats.npz", {"arr_0": pixels / 255}, "array", 5),
        ("more.npz", {"arr_0": pixels, "arr_2": pixels}, "array", 2),
    ):
        np.savez(name, **arrays)
        info = diffuse("info", name, "--json").json
        assert (info.get("medium", "image"), info["usable"]) == (medium, count), name
    half = Path("bare.npz").read_bytes()[:400]
    (tmp_path / "cut.npz").write_bytes(half)
    assert diffuse("info", "cut.npz", "-q").code == 3
