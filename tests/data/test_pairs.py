"""Pairs: which file belongs to which, and what is said of those alone."""

import zipfile

import numpy as np
import pytest
from image_corpus import read
from PIL import Image

from diffuse_cli.data import match_pairs
from diffuse_cli.system.errors import DataError


def write(folder, names, side=8):
    for k, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((side, side), 10 * k, np.uint8)).save(path)
    return folder


def pairs_of(tmp_path, own, theirs):
    return match_pairs(read(write(tmp_path / "own", own)), read(write(tmp_path / "theirs", theirs)))


def named(pairs):
    """Each sample's name and that of what lies beside it."""
    return {
        name: pairs.given.names[row] if row >= 0 else None
        for name, row in zip(pairs.samples.names, pairs.rows, strict=True)
    }


@pytest.mark.parametrize(
    ("own", "theirs", "found"),
    [
        (["a.png", "b.png"], ["b.png", "a.png"], {"a.png": "a.png", "b.png": "b.png"}),
        (["a.png", "b.jpg"], ["a.webp", "b.png"], {"a.png": "a.webp", "b.jpg": "b.png"}),
        (["a.b.png"], ["a.b.bmp", "a.png"], {"a.b.png": "a.b.bmp"}),
        (["a.png", "a.jpg"], ["a.jpg"], {"a.png": "a.jpg", "a.jpg": "a.jpg"}),
        (["a.png"], ["a.bmp", "a.webp"], {"a.png": "a.bmp"}),
        (["x/a.png", "y/a.png"], ["y/a.jpg"], {"x/a.png": None, "y/a.png": "y/a.jpg"}),
        (["a.png", "b.png"], ["a.png"], {"a.png": "a.png", "b.png": None}),
        (["photo/a.png"], ["edges/new/a.png"], {"photo/a.png": "edges/new/a.png"}),
        (["photo/a.png"], ["a.png"], {"photo/a.png": "a.png"}),
    ],
)  # fmt: skip
def test_what_belongs_together_by_name(tmp_path, own, theirs, found):
    assert named(pairs_of(tmp_path, own, theirs)) == found


def test_a_folder_and_a_zip_file_make_pairs(tmp_path):
    own = write(tmp_path / "own", ["x/a.png", "x/b.png"])
    write(tmp_path / "theirs", ["top/a.png", "top/b.png"])
    with zipfile.ZipFile(tmp_path / "theirs.zip", "w") as archive:
        for name in ("top/a.png", "top/b.png"):
            archive.write(tmp_path / "theirs" / name, name)
    found = match_pairs(read(own), read(tmp_path / "theirs.zip"))
    assert named(found) == {"x/a.png": "top/a.png", "x/b.png": "top/b.png"}
    assert found[np.array([1])][0, 0, 0, 0] == 10


def test_what_has_no_pair_is_named(tmp_path):
    found = pairs_of(tmp_path, [f"{k}.png" for k in range(9)], ["8.png", "more.png"])
    first, second = found.describe_unpaired()
    assert "8 images of" in first
    assert "left out: 0.png, 1.png, 2.png, 3.png, 4.png, ..." in first
    assert "1 image of" in second
    assert second.endswith("more.png")
    assert list(pairs_of(tmp_path / "all", ["a.png"], ["a.png"]).describe_unpaired()) == []


def test_no_pair_at_all_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"in .*: for example a\.png, b\.png") as error:
        pairs_of(tmp_path, ["a.png"], ["b.png"])
    assert error.value.exit_code == 3


def test_the_fingerprint_is_of_what_lies_beside_what(tmp_path):
    one = pairs_of(tmp_path / "1", ["a.png", "b.png"], ["a.png", "b.png"])
    names = pairs_of(tmp_path / "2", ["x.png", "y.png"], ["x.png", "y.png"])
    swapped = pairs_of(tmp_path / "3", ["a.png", "b.png"], ["b.png", "a.png"])
    lone = pairs_of(tmp_path / "4", ["a.png", "b.png"], ["a.png", "b.png", "c.png"])
    assert one.fingerprint == names.fingerprint == lone.fingerprint
    assert one.fingerprint != swapped.fingerprint
    assert one.given.fingerprint == swapped.given.fingerprint
