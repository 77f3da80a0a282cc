"""What is said of files that are not read, and of what is wrong with images that are used."""

import contextlib
import dataclasses
import re
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import Mock

import numpy as np
import pytest
from image_corpus import encoded, fill, noise, read, zipped
from PIL import Image

from diffuse_cli.data import open_index, read_images, save_index, summary
from diffuse_cli.media import FITS, advice, advice_for, image, media_by_extension
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.events import Notice, finish


def warnings(source, **options):
    found = read_images(source, **options)
    return [event.text for event in found if isinstance(event, Notice) and event.warning]


PHONE = {f"IMG_{k}.HEIC": b"\0\0\0\x18ftypheic" for k in range(12)} | {"clip.MOV": b""}


@pytest.mark.parametrize("packed", [False, True])
def test_kinds_that_are_not_read_are_counted_with_what_to_do(tmp_path, packed):
    data = {**PHONE, "a.png": encoded(noise(1)), "notes.txt": b"", "b.heic": b"", "none": b""}
    source = zipped(tmp_path / "x.zip", data) if packed else fill(tmp_path / "x", data)
    found = read(source).summary
    assert (found.others, found.unread) == (16, {".heic": 13, ".mov": 1})
    assert found.lines()[1:] == [
        "ignored 13 .heic (convert them to JPEG or PNG, for example with magick mogrify -format "
        "jpg *.heic)",
        "ignored 1 .mov (extract frames, for example with ffmpeg -i NAME.mov -vf fps=1 "
        "NAME-%05d.png)",
        "ignored 2 files not named as images",
    ]
    assert found.to_dict()["unread"] == {".heic": 13, ".mov": 1}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("more", "said"),
    [({"x.aae": b""}, " (12 .heic, 1 .mov, 1 file of another kind)"),
     ({"a.png": b""}, "1 empty file (12 .heic, 1 .mov)")],
)  # fmt: skip
def test_a_folder_of_nothing_else_ends_with_the_advice(tmp_path, packed, more, said):
    data = {**PHONE, **more}
    source = zipped(tmp_path / "x.zip", data) if packed else fill(tmp_path / "x", data)
    with pytest.raises(DataError) as caught:
        read(source)
    assert caught.value.message.endswith(said)
    assert caught.value.hint.startswith("Convert them to JPEG or PNG")


def test_there_is_advice(tmp_path):
    names = ["CR2", "dng", "psd", "svg", "pdf", "jxl", "webm", "tar", "eps"]
    data = {"a.png": encoded(noise(1)), **{f"b.{name}": b"" for name in names}}
    lines = read(fill(tmp_path, data)).summary.lines()[1:]
    said = sorted(f"ignored 1 .{name.lower()} (" for name in names)
    assert sorted(line.partition("(")[0] + "(" for line in lines) == said
    assert not any("{" in text for text in advice().values())


# -- files of other programs -----------------------------------------------------------------------

FOREIGN = {
    ".h5": b"\x89HDF",
    ".hdf5": b"\x89HDF", ".zarr": b"", ".mat": b"x", ".fits": b"x",
}  # fmt: skip
"""The first bytes of files of arrays, by extension. A .zarr is a folder."""

CONVERSION = re.compile(r"Convert them to \.npy, for example with python -c \"(import .*)\"")


def write_foreign(path: Path) -> Path:
    """A file of another program, or a .zarr with a chunk and a description."""
    suffix = "".join(path.suffixes)
    if suffix == ".zarr":
        fill(path, {"0/c/0": b"x", "0/zarr.json": b"{}"})
    else:
        path.write_bytes(FOREIGN[suffix])
    return path


@pytest.mark.parametrize("suffix", FOREIGN)
def test_a_file_of_another_program_has_the_conversion_as_a_hint(diffuse, lab, suffix):
    path, model = write_foreign(Path(f"NAME{suffix}")), lab["unconditional"]
    for line in (
        ("train", path),
        ("train", lab["images"], "--given", path),
        ("info", path),
        ("eval", model, path),
        ("noise-demo", path),
        ("vary", model, path),
    ):
        ran = diffuse(*line, "-q").fails(3)
        assert (found := CONVERSION.search(ran.line)), ran.line
        assert f"NAME{suffix}'" in found[1]
    Path("data").mkdir()
    for name in "ab":
        write_foreign(Path(f"data/{name}{suffix}"))
    with pytest.raises(DataError) as caught:
        read("data")
    assert caught.value.message.endswith(f"(2 {suffix})")
    assert CONVERSION.fullmatch(caught.value.hint)


class Package(ModuleType):
    """A package whose every function returns the array of a file, under any name."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *arguments):
        assert arguments in ((), (self.path,))
        return self

    def __getitem__(self, key):
        return self

    def __array__(self, *arguments, **options):
        return np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize("suffix", FOREIGN)
def test_the_conversion_runs(tmp_path, monkeypatch, suffix):
    """With stubs: the packages are not needed by `diffuse`."""
    monkeypatch.chdir(tmp_path)
    found = CONVERSION.fullmatch(advice_for(f"x{suffix}"))
    assert found
    names = found[1].partition(";")[0].rpartition(" ")[2].split(".")
    for k in range(len(names)):
        package = Package(names[k])
        vars(package).update(path=f"NAME{suffix}", __path__=[])
        monkeypatch.setitem(sys.modules, ".".join(names[: k + 1]), package)
    exec(found[1])
    one = finish(read_images(tmp_path / "NAME.npy", single=True))
    assert np.array_equal(one.stored[0, 0], np.arange(12).reshape(3, 4))


# -- AVIF -----------------------------------------------------------------------------------------


def test_avif_is_read(tmp_path):
    flat = Image.new("RGB", (20, 10), (200, 30, 90))
    data = {"a.AVIF": encoded(flat, "AVIF", quality=100), "cut.avif": encoded(flat, "AVIF")[:-20]}
    images = read(fill(tmp_path, data))
    assert images.names == ("a.AVIF",)
    assert np.abs(images.stored[0, :, 5, 5].astype(int) - (200, 30, 90)).max() <= 4
    assert images.summary.skipped == {reasons.CORRUPT: (1, ("cut.avif",))}


def test_avif_that_pillow_cannot_read_has_advice(tmp_path, monkeypatch):
    without = dataclasses.replace(image.MEDIUM, extensions=image.MEDIUM.extensions - {".avif"})
    monkeypatch.setattr(image, "MEDIUM", without)
    assert ".avif" not in media_by_extension()
    found = read(fill(tmp_path, {"a.png": encoded(noise(1)), "b.avif": b""})).summary
    assert found.unread == {".avif": 1}


# -- remarks --------------------------------------------------------------------------------------


def remarkable() -> dict[str, bytes]:
    """Seven blank ones, two with broken profiles, three others."""
    alpha = Image.fromarray((np.indices((8, 8)).sum(0) % 3 * 127).astype(np.uint8))
    white, black = (Image.merge("LA", (Image.new("L", (8, 8), v), alpha)) for v in (255, 0))
    data = {f"white{k}.png": encoded(white) for k in range(7)}
    data |= {f"odd{k}.png": encoded(noise(k), icc_profile=b"x" * 200) for k in range(2)}
    return data | {"black.png": encoded(black), "x.png": encoded(noise(3)), "y.png": b""}


def test_what_is_wrong_with_images_that_are_used_is_a_warning(tmp_path):
    folder = fill(tmp_path, remarkable())
    blank = "white0.png, white1.png, white2.png, white3.png, white4.png, ..."
    assert sorted(warnings(folder)) == [
        "2 of 11 images, broken color profile, which is ignored: odd0.png, odd1.png",
        f"7 of 11 images, blank on the background: {blank}; try --background black",
    ]
    found = read(folder, strict=False).summary
    assert found.to_dict()["remarks"][reasons.BLANK]["count"] == 7
    (text,) = [w for w in warnings(folder, background="#050505") if "blank" in w]
    assert text == ("1 of 11 images, blank on the background: black.png; try --background white")
    (folder / "y.png").unlink()
    assert len(read(folder, strict=True)) == 11
    for path in folder.iterdir():
        if path.name != "x.png":
            path.unlink()
    assert warnings(folder) == []
    assert not {"remarks", "unread"} & set(read(folder).summary.to_dict())


def test_floats_among_images_are_left_out_and_arrays_by_themselves(tmp_path):
    values = np.random.default_rng(0).normal(size=(4, 5, 6)).astype(np.float32)
    first, *rest = map(Image.fromarray, values)
    first.save(tmp_path / "all.tiff", save_all=True, append_images=rest)
    assert np.array_equal(read(tmp_path).stored, values[None])
    (tmp_path / "all.tiff").unlink()
    for k, each in enumerate(values):
        Image.fromarray(each).save(tmp_path / f"{k}.tif")
    found = read(tmp_path)
    assert (found.medium, found.stored.dtype) == ("array", np.float32)
    assert np.array_equal(found.stored[:, 0], values)
    Image.new("L", (6, 5)).save(tmp_path / "z.tif")
    found = read(tmp_path)
    assert (found.medium, found.names) == ("image", ("z.tif",))
    assert found.summary.skipped == {reasons.FLOATS: (4, ("0.tif", "1.tif", "2.tif", "3.tif"))}
    assert read(tmp_path, medium="image").names == ("z.tif",)


@pytest.mark.parametrize("kinds", ["FF", "FL"])
def test_pages_of_floats_are_of_one_size_and_kind_and_large_together(tmp_path, monkeypatch, kinds):
    """Each page alone is within the limit of pixels that are unpacked beside others."""
    first, other = (Image.new(kind, (6 + (kinds == "FF") * k, 5)) for k, kind in enumerate(kinds))
    first.save(tmp_path / "all.tif", save_all=True, append_images=[other])
    with pytest.raises(DataError, match=reasons.PAGES):
        read(tmp_path)
    first.save(tmp_path / "all.tif", save_all=True, append_images=[first] * 2)
    lock = Mock(return_value=contextlib.nullcontext())
    monkeypatch.setattr(reasons, "lock_large", lock)
    assert read(tmp_path).stored.shape == (1, 3, 5, 6)
    lock.assert_called_with(3 * 6 * 5)


def test_the_index_keeps_what_was_found(tmp_path):
    images = read(fill(tmp_path / "in", {**remarkable(), **PHONE}))
    save_index(images, tmp_path / "cache")
    assert open_index(tmp_path / "cache").summary == images.summary
    plain = {k: v for k, v in images.summary.to_dict().items() if k not in ("remarks", "unread")}
    assert summary.from_dict(plain).remarks == {}


def test_info_shows_them(diffuse):
    wide = {"wide.png": encoded(noise(4, (16, 9)))}
    folder = fill(Path("in"), {**remarkable(), **PHONE, **wide})
    ran = diffuse("info", folder, "--fit", "stretch", "--size", 8)
    assert "ignored          12 .heic (convert them" in ran.out
    assert "remarks          7 of 12 images, blank on the background: white0.png" in ran.out
    assert "at 8x8, stretched by up to 78 %, grey" in ran.out
    assert "warning: 2 of 12 images, broken color profile" in ran.err
    told = {fit: diffuse("info", folder, "--json", "-q", "--fit", fit).json for fit in FITS}
    assert told["crop"]["unread"] == {".heic": 12, ".mov": 1}
    means = {fit: found["pixels"]["mean"] for fit, found in told.items()}
    assert means["pad"] > means["stretch"] != means["crop"]
