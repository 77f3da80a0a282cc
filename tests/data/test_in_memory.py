"""Samples that a program holds are read as the same samples in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffuse_cli.data import Samples, held, read_cells, read_images
from diffuse_cli.data.sources import open_source
from diffuse_cli.errors import DataError
from diffuse_cli.events import finish

DRAW = np.random.default_rng(3)
COLOUR = [DRAW.integers(0, 256, (6, 5, 3), np.uint8) for _ in range(44)]


def read(samples: Any, **options: Any) -> Samples:
    with held(samples) as name:
        found = finish(read_images(name, **options))
        found.stored[:]  # as long as they are held
        return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for k, values in enumerate(COLOUR):
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
    found = read([FORMS[form](values) for values in COLOUR], bits=8)
    assert np.array_equal(found.stored, wanted.stored)
    if form != "16 bits":
        assert found.fingerprint == wanted.fingerprint
        assert np.array_equal(found.held_out, wanted.held_out)


def test_paths_and_another_iterable_are_taken(files: Path):
    wanted = finish(read_images(files))
    assert read(sorted(files.iterdir())).fingerprint == wanted.fingerprint
    assert read(iter(COLOUR)).fingerprint == wanted.fingerprint


class Lazy:
    """A data set that notes what it is asked for, and when."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(COLOUR)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        self.asked.append(index)
        return COLOUR[index], index % 3


def test_what_is_not_kept_is_asked_for_again():
    lazy = Lazy()
    with held(lazy) as name:
        found = finish(read_images(name, keep=0))
        before = len(lazy.asked)
        assert np.array_equal(found.stored[[7, 3]][1], COLOUR[3].transpose(2, 0, 1))
        assert sorted(lazy.asked[before:]) == [3, 7]
    assert found.class_names == ("0", "1", "2")
    assert found.labels[:4].tolist() == [0, 1, 2, 0]


def test_labels_are_classes_and_mappings_are_columns():
    pairs = [(values, {"age": k, "label": "ab"[k % 2]}) for k, values in enumerate(COLOUR)]
    with held(pairs) as name:
        found = finish(read_images(name))
        cells = read_cells(name, found.names, ["age"])
    assert found.class_names == ("a", "b")
    assert [cell.number for cell in cells.columns["age"] if cell] == list(range(44))
    some = read([(COLOUR[0], "a"), COLOUR[1], (COLOUR[2], None)])
    assert some.labels.tolist() == [0, -1, -1]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_images_of_every_mode_are_read(mode: str):
    image = Image.fromarray(COLOUR[0])
    image = Image.fromarray(COLOUR[0][..., 0].astype(np.uint16)) if mode[0] == "I" else image
    assert len(read([image if mode[0] == "I" else image.convert(mode)] * 2)) == 2


def test_other_arrays_are_arrays():
    found = read([values.astype(np.float32) / 255 for values in COLOUR], layout="HWC")
    assert (found.medium, found.stored.shape, found.stored.dtype) == (
        "array", (44, 3, 6, 5), np.float32,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([3], "sample 0 of 1: a int is no image of Pillow, no array and no path"),
        ([COLOUR[0], "none.png"], "sample 1 of 2: .*No such file"),
        ([np.array([object()])], "sample 0 of 1"),
        ([], "no images in memory:"),
    ],
)
def test_what_is_no_sample_is_refused(samples: Any, said: str):
    with pytest.raises(DataError, match=said):
        read(samples)


def test_a_name_is_gone_with_its_block():
    with held(COLOUR) as name:
        open_source(Path(name)).close()
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(Path(name))
