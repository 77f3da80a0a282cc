"""Samples that a program holds are read as the same samples in files."""

import io
from pathlib import Path

import numpy as np
import pytest
from image_corpus import npy
from PIL import Image

from diffuse_cli.data import read_cells, read_images
from diffuse_cli.data.sources import open_source
from diffuse_cli.data.sources.in_memory import register_samples
from diffuse_cli.media.file_errors import Unusable
from diffuse_cli.system.errors import DataError, UsageError
from diffuse_cli.system.events import finish

DRAW = np.random.default_rng(3)
COLOR = [DRAW.integers(0, 256, (6, 5, 3), np.uint8) for _ in range(44)]


def read(samples, **options):
    with register_samples(samples) as name:
        found = finish(read_images(name, **options))
        found.stored[:]  # as long as they are held
        return found


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for k, values in enumerate(COLOR):
        Image.fromarray(values).save(folder / f"{k:03d}.png")
    return folder


FORMS = {
    "arrays": lambda values: values,
    "channels first": lambda values: values.transpose(2, 0, 1),
    "images": Image.fromarray,
    "16 bits": lambda values: values.astype(np.uint16) * 257,
}


@pytest.mark.parametrize("form", FORMS)
def test_they_are_the_samples_of_the_files(files, form):
    wanted = finish(read_images(files))
    found = read([FORMS[form](values) for values in COLOR], bits=8)
    assert np.array_equal(found.stored, wanted.stored)
    if form != "16 bits":
        assert found.fingerprint == wanted.fingerprint
        assert np.array_equal(found.held_out, wanted.held_out)
    for samples in (sorted(files.iterdir()), iter(COLOR)):
        assert read(samples).fingerprint == wanted.fingerprint


class Lazy:
    """A data set that notes what it is asked for, and when."""

    def __init__(self):
        self.asked = []

    def __len__(self) -> int:
        return len(COLOR)

    def __getitem__(self, index):
        self.asked.append(index)
        return COLOR[index], index % 3


def test_what_is_not_kept_is_asked_for_again_within_its_block():
    lazy = Lazy()
    with register_samples(lazy) as name:
        found = finish(read_images(name, keep=0))
        before = len(lazy.asked)
        assert np.array_equal(found.stored[[7, 3]][1], COLOR[3].transpose(2, 0, 1))
        assert sorted(lazy.asked[before:]) == [3, 7]
    assert found.class_names == ("0", "1", "2")
    assert found.labels[:4].tolist() == [0, 1, 2, 0]
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(Path(name))


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
def test_images_of_every_mode_are_read(mode):
    image = Image.fromarray(COLOR[0])
    image = Image.fromarray(COLOR[0][..., 0].astype(np.uint16)) if mode[0] == "I" else image
    assert len(read([image if mode[0] == "I" else image.convert(mode)] * 2)) == 2


FLOATS = DRAW.normal(size=(44, 16, 20, 3)).astype(np.float32)
"""With their channels last."""

FIRST = FLOATS.transpose(0, 3, 1, 2)


@pytest.mark.parametrize("kind", ["float32", "float64", "uint8"])
def test_channels_are_where_the_only_short_axis_is(kind):
    last, first = ((values * 40 + 128).astype(kind) for values in (FLOATS, FIRST))
    assert np.array_equal(read(last).stored, first.astype(read(last).stored.dtype))
    assert np.array_equal(read(first).stored, read(last).stored)
    assert read(last[..., :1]).stored.shape == (44, 1, 16, 20)
    many = read(np.repeat(first, 3, 1)[:, :7])
    assert (many.medium, many.stored.shape) == ("array", (44, 7, 16, 20))
    volumes = np.moveaxis(np.stack([last] * 5, 1)[:4, :, :6, :7], 1, 2)
    assert np.array_equal(read(volumes[..., :2]).stored, np.moveaxis(volumes[..., :2], -1, 1))


@pytest.mark.parametrize("kind", ["float32", "uint8", "uint16"])
@pytest.mark.parametrize("shape", [(3, 16, 4), (16, 4, 3), (3, 3, 3), (1, 9, 1), (2, 6, 7, 2)])
def test_arrays_whose_channels_may_be_first_or_last_are_refused(kind, shape):
    values = DRAW.integers(0, 200, (5, *shape)).astype(kind)
    axes = "DHW"[-len(shape) + 1 :]
    shown = " x ".join(map(str, shape))
    with pytest.raises(UsageError, match=f"{shown} .*layout='C{axes}' or '{axes}C'"):
        read(values)
    for layout, axis in ((f"C{axes}", 1), (f"{axes}C", len(shape))):
        found = read(values, layout=layout)
        assert np.array_equal(found.stored, np.moveaxis(values, axis, 1))


# -- a .npy file -----------------------------------------------------------------------------------

STACKS = {
    "N x C x H x W": FIRST,
    "N x H x W x C": FLOATS,
    "N x H x W": FLOATS[..., 0],
    "N x L": FLOATS[:, :, 0, 0],
    "pictures": (FLOATS * 40 + 128).clip(0, 255).astype(np.uint8),
    "pictures of 16 bits": (FIRST * 4000 + 32_768).clip(0, 65_535).astype(np.uint16),
    "columns first": np.asfortranarray(FLOATS),
}


@pytest.mark.parametrize("name", STACKS)
def test_a_npy_file_is_what_its_array_is(name, tmp_path):
    np.save(tmp_path / "all.npy", STACKS[name])
    found, wanted = finish(read_images(tmp_path / "all.npy", workers=2)), read(STACKS[name])
    assert (found.medium, found.layout) == (wanted.medium, wanted.layout)
    assert np.array_equal(found.stored, wanted.stored)
    assert found.fingerprint == wanted.fingerprint


def test_a_npy_file_is_mapped(tmp_path):
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


def test_a_npy_file_alone_is_a_set_but_where_one_sample_is_asked_for(tmp_path):
    np.save(tmp_path / "one.npy", FIRST[0])
    assert len(finish(read_images(tmp_path / "one.npy", layout="HW"))) == 3
    one = finish(read_images(tmp_path / "one.npy", single=True))
    assert one.stored.shape == (1, 3, 16, 20)


np.savez(NPZ := io.BytesIO(), FLOATS)


def headed(shape: str) -> bytes:
    """A .npy file that says it has a shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(64)


SHAPES = ("(True, 4, 4)", f"({2**70}, 1, 1)", f"({2**40}, {2**40}, 4)", "((")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (npy(np.zeros(5)), "an array of 5, not of samples"),
        (npy(np.zeros((0, 4, 4))), "an array of 0 x 4 x 4, not of samples"),
        (npy(np.zeros(())), "an array of one number"),
        (npy(np.array([{}], object)), "Python objects in dtype"),
        (NPZ.getvalue(), r"cannot read .*all\.npy: the magic string"),
        *((npy(FLOATS)[:size], r"cannot read .*all\.npy") for size in (0, 5, 100, 500)),
        *((headed(shape), r"cannot read .*all\.npy") for shape in SHAPES),
    ],
    ids=range(13),
)
def test_a_npy_file_that_is_cut_is_refused(data, said, tmp_path):
    """Also one without samples, or that claims another shape."""
    (tmp_path / "all.npy").write_bytes(data)
    with pytest.raises(DataError, match=said):
        finish(read_images(tmp_path / "all.npy"))


def test_a_model_is_trained_on_a_npy_file(diffuse, recipe):
    np.save("all.npy", FIRST[:, :, :8, :8])
    assert diffuse("train", "all.npy", "--config", recipe, "--steps", 2, "-q").code == 0
    assert diffuse("sample", "model.safetensors", "-n", 1, "--steps", 2, "-q").code == 0
    assert np.load("samples/00000.npy").shape == (3, 8, 8)
    told = diffuse("info", "all.npy", "--json").json
    assert (told["usable"], told["medium"]) == (44, "array")
    assert told["size"] == {"height": 8, "width": 8}


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([3], "sample 0 of 1: a int is not a Pillow image, an array or a path"),
        ([COLOR[0], "none.png"], "sample 1 of 2: .*No such file"),
        ([np.array([object()])], "sample 0 of 1"),
        ([], "no images in memory:"),
        ([np.ma.masked_equal(np.eye(4, dtype=np.uint8), 0)], "sample 0 of 1: it has masked values"),
        ([np.ma.masked_equal(np.eye(4), 0)], "1 NaN or infinite"),
    ],
)
def test_what_is_no_sample_is_refused(samples, said):
    with pytest.raises(DataError, match=said):
        read(samples)
