"""Samples that a program holds are read as the same samples in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffuse_cli.data import Dataset, read_cells, read_images
from diffuse_cli.data.sources import open_source
from diffuse_cli.data.sources.in_memory import register_samples
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.system.errors import DataError, UsageError
from diffuse_cli.system.events import finish

DRAW = np.random.default_rng(3)
COLOR = [DRAW.integers(0, 256, (6, 5, 3), np.uint8) for _ in range(44)]


def read(samples: Any, **options: Any) -> Dataset:
    with register_samples(samples) as name:
        found = finish(read_images(name, **options))
        found.stored[:]  # as long as they are held
        return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for k, values in enumerate(COLOR):
        Image.fromarray(values).save(folder / f"{k:03d}.png")
    return folder


FORMS: dict[str, Any] = {
    "arrays": lambda values: values,
    "channels first": lambda values: values.transpose(2, 0, 1),
    "images": Image.fromarray,
    "16 bits": lambda values: values.astype(np.uint16) * 257,
}


@pytest.mark.parametrize("form", FORMS)
def test_they_are_the_samples_of_the_files(files: Path, form: str):
    wanted = finish(read_images(files))
    found = read([FORMS[form](values) for values in COLOR], bits=8)
    assert np.array_equal(found.stored, wanted.stored)
    if form != "16 bits":
        assert found.fingerprint == wanted.fingerprint
        assert np.array_equal(found.held_out, wanted.held_out)


def test_paths_and_another_iterable_are_taken(files: Path):
    wanted = finish(read_images(files))
    assert read(sorted(files.iterdir())).fingerprint == wanted.fingerprint
    assert read(iter(COLOR)).fingerprint == wanted.fingerprint


class Lazy:
    """A data set that notes what it is asked for, and when."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(COLOR)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.asked.append(index)
        return COLOR[index], index % 3


def test_what_is_not_kept_is_asked_for_again():
    lazy = Lazy()
    with register_samples(lazy) as name:
        found = finish(read_images(name, keep=0))
        before = len(lazy.asked)
        assert np.array_equal(found.stored[[7, 3]][1], COLOR[3].transpose(2, 0, 1))
        assert sorted(lazy.asked[before:]) == [3, 7]
    assert found.class_names == ("0", "1", "2")
    assert found.labels[:4].tolist() == [0, 1, 2, 0]


def test_labels_are_classes_and_mappings_are_columns():
    pairs = [(values, {"age": k, "label": "ab"[k % 2]}) for k, values in enumerate(COLOR)]
    with register_samples(pairs) as name:
        found = finish(read_images(name))
        cells = read_cells(name, found.names, ["age"])
    assert found.class_names == ("a", "b")
    assert [cell.number for cell in cells.columns["age"] if cell] == list(range(44))
    some = read([(COLOR[0], "a"), COLOR[1], (COLOR[2], None)])
    assert some.labels.tolist() == [0, -1, -1]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_images_of_every_mode_are_read(mode: str):
    image = Image.fromarray(COLOR[0])
    image = Image.fromarray(COLOR[0][..., 0].astype(np.uint16)) if mode[0] == "I" else image
    assert len(read([image if mode[0] == "I" else image.convert(mode)] * 2)) == 2


def test_other_arrays_are_arrays():
    found = read([values.astype(np.float32) / 255 for values in COLOR], layout="HWC")
    assert (found.medium, found.stored.shape, found.stored.dtype) == (
        "array", (44, 3, 6, 5), np.float32,
    )  # fmt: skip


FLOATS = DRAW.normal(size=(44, 16, 20, 3)).astype(np.float32)
"""With their channels last."""

FIRST = FLOATS.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("kind", ["float32", "float64", "uint8"])
def test_channels_are_where_the_only_short_axis_is(kind: str):
    last, first = ((values * 40 + 128).astype(kind) for values in (FLOATS, FIRST))
    assert np.array_equal(read(last).stored, first.astype(read(last).stored.dtype))
    assert np.array_equal(read(first).stored, read(last).stored)
    assert read(last[..., :1]).stored.shape == (44, 1, 16, 20)
    many = read(np.repeat(first, 3, 1)[:, :7])
    assert (many.medium, many.stored.shape) == ("array", (44, 7, 16, 20))


@pytest.mark.parametrize("kind", ["float32", "uint8", "uint16"])
@pytest.mark.parametrize("shape", [(3, 16, 4), (16, 4, 3), (3, 3, 3), (1, 9, 1)])
def test_arrays_whose_channels_may_be_first_or_last_are_refused(kind: str, shape: tuple[int, ...]):
    values = DRAW.integers(0, 200, (5, *shape)).astype(kind)
    with pytest.raises(UsageError, match=f"{shape[0]} x {shape[1]} x {shape[2]} .*layout='CHW'"):
        read(values)
    for layout, axis in (("CHW", 1), ("HWC", 3)):
        found = read(values, layout=layout)
        assert np.array_equal(found.stored, np.moveaxis(values, axis, 1))


def test_volumes_have_their_channels_last_too():
    with pytest.raises(UsageError, match="layout='CDHW' or 'DHWC'"):
        read(DRAW.normal(size=(4, 2, 6, 7, 2)).astype(np.float32))
    values = DRAW.normal(size=(4, 5, 6, 7, 2)).astype(np.float32)
    assert np.array_equal(read(values).stored, np.moveaxis(values, -1, 1))
    assert read(np.moveaxis(values, -1, 1)).stored.shape == (4, 2, 5, 6, 7)


# -- a .npy file -----------------------------------------------------------------------------------

STACKS: dict[str, Any] = {
    "N x C x H x W": FIRST,
    "N x H x W x C": FLOATS,
    "N x H x W": FLOATS[..., 0],
    "N x L": FLOATS[:, :, 0, 0],
    "pictures": (FLOATS * 40 + 128).clip(0, 255).astype(np.uint8),
    "pictures of 16 bits": (FIRST * 4000 + 32_768).clip(0, 65_535).astype(np.uint16),
    "columns first": np.asfortranarray(FLOATS),
}


@pytest.mark.parametrize("name", STACKS)
def test_a_npy_file_is_what_its_array_is(name: str, tmp_path: Path):
    np.save(tmp_path / "all.npy", STACKS[name])
    found, wanted = finish(read_images(tmp_path / "all.npy", workers=2)), read(STACKS[name])
    assert (found.medium, found.layout) == (wanted.medium, wanted.layout)
    assert np.array_equal(found.stored, wanted.stored)
    assert found.fingerprint == wanted.fingerprint


def test_a_npy_file_is_mapped(tmp_path: Path):
    np.save(tmp_path / "all.npy", FLOATS)
    source = open_source(tmp_path / "all.npy")
    first, *_ = source.entries()
    before = source.read(first)
    np.save(tmp_path / "all.npy", 2 * FLOATS)
    assert source.read(first) != before
    with (tmp_path / "all.npy").open("r+b") as file:
        file.truncate(4096)
    with pytest.raises(Unusable, match="changed"):
        source.read(first)


def test_a_npy_file_alone_is_a_set_but_where_one_sample_is_asked_for(tmp_path: Path):
    np.save(tmp_path / "one.npy", FIRST[0])
    assert len(finish(read_images(tmp_path / "one.npy", layout="HW"))) == 3
    one = finish(read_images(tmp_path / "one.npy", single=True))
    assert one.stored.shape == (1, 3, 16, 20)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros(5), "an array of 5, not of samples"),
        (np.zeros((0, 4, 4)), "an array of 0 x 4 x 4, not of samples"),
        (np.zeros(()), "an array of one number"),
        (np.array([{}], object), "Python objects in dtype"),
    ],
)
def test_a_npy_file_without_samples_is_refused(values: Any, said: str, tmp_path: Path):
    np.save(tmp_path / "all.npy", values)
    with pytest.raises(DataError, match=said):
        finish(read_images(tmp_path / "all.npy"))


@pytest.mark.parametrize("size", [0, 5, 100, 500])
def test_a_npy_file_that_is_cut_is_refused(size: int, tmp_path: Path):
    np.save(tmp_path / "all.npy", FLOATS)
    (tmp_path / "all.npy").write_bytes((tmp_path / "all.npy").read_bytes()[:size])
    with pytest.raises(DataError, match=r"cannot read .*all\.npy"):
        finish(read_images(tmp_path / "all.npy"))


def test_a_npz_file_under_another_name_is_refused(tmp_path: Path):
    with (tmp_path / "all.npy").open("wb") as file:
        np.savez(file, FLOATS)
    with pytest.raises(DataError, match=r"cannot read .*all\.npy: the magic string"):
        finish(read_images(tmp_path / "all.npy"))


@pytest.mark.parametrize(
    "shape", ["(True, 4, 4)", f"({2**70}, 1, 1)", f"({2**40}, {2**40}, 4)", "(("]
)
def test_a_npy_file_of_no_shape_is_refused(shape: str, tmp_path: Path):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    start = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
    (tmp_path / "all.npy").write_bytes(start + header + bytes(64))
    with pytest.raises(DataError, match=r"cannot read .*all\.npy"):
        finish(read_images(tmp_path / "all.npy"))


def test_a_model_is_trained_on_a_npy_file(diffuse: Any, recipe: Path):
    np.save("all.npy", FIRST[:, :, :8, :8])
    line = ("--config", recipe, "--steps", 2, "-q")
    assert diffuse("train", "all.npy", *line).code == 0
    assert diffuse("sample", "model.safetensors", "-n", 1, "--steps", 2, "-q").code == 0
    assert np.load("samples/00000.npy").shape == (3, 8, 8)
    told = diffuse("info", "all.npy", "--json").json
    assert (told["usable"], told["medium"], told["size"]) == (
        44,
        "array",
        {"height": 8, "width": 8},
    )


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([3], "sample 0 of 1: a int is not a Pillow image, an array or a path"),
        ([COLOR[0], "none.png"], "sample 1 of 2: .*No such file"),
        ([np.array([object()])], "sample 0 of 1"),
        ([], "no images in memory:"),
    ],
)
def test_what_is_no_sample_is_refused(samples: Any, said: str):
    with pytest.raises(DataError, match=said):
        read(samples)


def test_a_name_is_gone_with_its_block():
    with register_samples(COLOR) as name:
        open_source(Path(name)).close()
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(Path(name))
