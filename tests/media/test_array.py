"""Arrays: what each kind of file holds, what is refused and why, and what is written."""

import contextlib
import io
import struct
import zipfile

import numpy as np
import pytest
from image_corpus import npy

from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.space import Space
from diffuse_cli.media import ReadSettings, settings_for
from diffuse_cli.media import array as medium
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.file_errors import Unusable

DRAW = np.random.default_rng(1)


def npz(compress=False, **arrays):
    file = io.BytesIO()
    (np.savez_compressed if compress else np.savez)(file, **arrays)
    return file.getvalue()


def headed(descr, shape, body=b"", fortran=False):
    """A .npy whose header says anything."""
    text = repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text + body


def reason(data, **asked):
    with pytest.raises(Unusable) as caught:
        medium.read(data, ReadSettings(**asked))
    return caught.value.reason


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "stored", "levels"),
    [
        ("?", "bool", 2),
        ("u1", "uint8", 256),
        ("<u2", "uint16", 65_536),
        (">u2", "uint16", 65_536),
        ("i1", "float32", None),
        (">i2", "float32", None),
        ("<i8", "float32", None),
        ("<f2", "float32", None),
        (">f4", "float32", None),
        ("<f8", "float32", None),
    ],
)
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_kind_of_number_is_read_exactly(kind, stored, levels, order):
    values = np.asarray(DRAW.integers(0, 2 if kind == "?" else 100, (3, 4, 5)), kind, order=order)
    for data in (npy(values), npz(x=values), npz(True, x=values)):
        read = medium.read(data, ReadSettings())
        assert read.values.dtype == stored
        assert read.values.tolist() == values.tolist()
        assert read.values.flags.c_contiguous
        assert (read.mode, read.size, read.channels) == (values.dtype.name, (5, 4), 3)
        assert medium.space(read.values[None]).levels == levels


@pytest.mark.parametrize(
    ("wrong", "why"),
    [*((number, reasons.MISSING) for number in (np.nan, np.inf, -np.inf)), (1e300, reasons.RANGE)],
)
def test_missing_values_and_those_beyond_32_bits_are_refused(wrong, why):
    values = np.zeros((4, 4))
    values[2, 3] = wrong
    assert reason(npy(values)) == why
    assert reason(npy(values), size=(2, 2)) == why, "outside of the center, too"
    large = medium.read(npy(np.array([1e38, 1e-300])), ReadSettings())
    assert large.values.max() == np.float32(1e38)


def test_a_model_reads_numbers_that_fit_its_own():
    byte, word, real = (npy(np.ones((2, 2), kind)) for kind in ("u1", "u2", "f8"))
    for numbers, fitting, others in (
        ("float32", (byte, word, real), ()),
        ("uint16", (byte, word), (real,)),
        ("uint8", (byte,), (word, real)),
        ("bool", (), (byte, word, real)),
    ):
        for data in fitting:
            read = medium.read(data, ReadSettings(numbers=numbers))
            assert (read.values.dtype, read.values.sum()) == (numbers, 4)
        for data in others:
            assert reason(data, numbers=numbers) == reasons.OTHER_NUMBERS


# -- axes and sizes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "layout", "expected"),
    [
        ((9,), None, (1, 9)),
        ((5, 9), None, (1, 5, 9)),
        ((3, 5, 9), None, (3, 5, 9)),
        ((3, 5, 9, 7), None, (3, 5, 9, 7)),
        ((3, 9), "CL", (3, 9)),
        ((9, 3), "LC", (3, 9)),
        ((5, 9, 3), "HWC", (3, 5, 9)),
        ((4, 5, 9), "DHW", (1, 4, 5, 9)),
        ((4, 5, 9, 3), "DHWC", (3, 4, 5, 9)),
        ((5, 9), "CHW", (1, 5, 9)),
        ((1, 5, 9), "HW", (1, 5, 9)),
    ],
)
def test_axes(shape, layout, expected):
    values = DRAW.normal(size=shape).astype(np.float32)
    read = medium.read(npy(values), ReadSettings(layout=layout))
    assert read.values.shape == expected
    assert read.size == expected[:0:-1]
    space = medium.space(read.values[None])
    assert (space.channels, space.size) == (expected[0], expected[1:])
    wanted = Space(**{**vars(space), "layout": read.layout})
    medium.check(wanted)
    if len(layout or shape) == len(shape):
        written = medium.encode(read.values, wanted)
        assert np.load(io.BytesIO(written)).tolist() == values.tolist()
        again = medium.read(written, ReadSettings(**settings_for(wanted)))
        assert again.values.tolist() == read.values.tolist()


@pytest.mark.parametrize(
    ("shapes", "layout"),
    [
        ([(8, 9, 3)], "HWC"),
        ([(5, 8, 9, 1)], "DHWC"),
        ([(8, 9, 4), (20, 9, 4)], "HWC"),
        ([(3, 8, 9)], None),
        ([(8, 8, 5)], None),
        ([(9, 2)], None),
    ],
)
def test_channels_are_last_if_only_the_last_axis_is_short(shapes, layout):
    files = [npy(np.zeros(shape, np.float32)) for shape in shapes]
    asked, notice = medium.complete_settings(ReadSettings(), [b"broken", *files])
    assert asked == ReadSettings(layout=layout)
    assert ("channels last. If they are first, pass --layout" in notice) is bool(layout)
    fixed = ReadSettings(layout="DHW")
    assert medium.complete_settings(fixed, files) == (fixed, "")


@pytest.mark.parametrize("shapes", [[(3, 8, 3)], [(8, 9, 3), (3, 8, 9)], [(4, 5, 6, 2)]])
def test_channels_that_may_be_first_or_last_are_refused(shapes):
    files = [npy(np.zeros(shape, np.float32)) for shape in shapes]
    with pytest.raises(InvalidArgument, match="may be its first axis or its last"):
        medium.complete_settings(ReadSettings(), files)


@pytest.mark.parametrize(
    ("shape", "asked", "why"),
    [
        ((), {}, reasons.AXES),
        ((1,) * 5, {}, reasons.AXES),
        ((3, 0), {}, reasons.EMPTY),
        ((9,), {"layout": "CHW"}, reasons.LAYOUT),
        ((3, 4, 5), {"layout": "HW"}, reasons.LAYOUT),
        ((65, 4, 4), {}, reasons.MANY_CHANNELS),
        ((3, 4, 4), {"channels": 1}, reasons.CHANNELS),
        ((8, 8), {"size": (8, 9)}, reasons.SMALL),
        ((8, 8), {"size": (8, 8, 4)}, reasons.AXES_OF_SIZE),
    ],
)
def test_other_shapes_are_refused(shape, asked, why):
    assert reason(npy(np.zeros(shape)), **asked) == why


def test_the_center_is_cut_out_and_nothing_is_resampled():
    values = np.arange(7 * 9, dtype=np.uint16).reshape(7, 9)
    read = medium.read(npy(values), ReadSettings(size=(4, 5)))
    assert read.values[0].tolist() == values[1:5, 2:7].tolist()
    assert read.size == (9, 7)
    assert read.digest == medium.read(npy(values), ReadSettings()).digest, "of the whole array"
    cut = medium.fit(values[None], ReadSettings(size=(4, 5)))
    assert cut.tolist() == read.values.tolist()


@pytest.mark.parametrize(
    ("shape", "size", "kept"),
    [
        ((9,), (4, 4), (1, 4)),
        ((1, 9, 9, 9), (4, 4), (1, 4, 4, 4)),
        ((5000,), None, (1, 4096)),
        ((65, 10), None, (1, 64, 10)),
        ((100, 80), None, (1, 64, 64)),
    ],
)
def test_one_number_is_the_size_of_every_dimension_and_large_arrays_have_the_usual_one(
    shape, size, kept
):
    data = npy(np.zeros(shape, np.uint8))
    assert medium.read(data, ReadSettings(size=size)).values.shape == kept


def test_equal_numbers_have_one_digest_and_others_another():
    values = DRAW.normal(size=(2, 4, 6)).astype(np.float32)
    own = medium.read(npy(values), ReadSettings()).digest
    last = np.moveaxis(values, 0, -1)
    for same in (npz(x=values), npy(np.asfortranarray(values)), npy(values.astype(">f4"))):
        assert medium.read(same, ReadSettings()).digest == own
    assert medium.read(npy(last), ReadSettings(layout="HWC")).digest == own
    assert medium.read(npy(values.swapaxes(1, 2)), ReadSettings()).digest != own
    assert medium.read(npy(values.astype(np.float64)), ReadSettings()).digest != own


# -- files that hold none -------------------------------------------------------------------------

WHOLE = npy(DRAW.normal(size=(4, 8, 8)))
ZIPPED = npz(True, x=DRAW.normal(size=(4, 8, 8)))
RUBBISH = {
    "nothing": (b"", reasons.EMPTY),
    "text": (b"hello, world", reasons.NOT_AN_ARRAY),
    "magic alone": (WHOLE[:6], reasons.CORRUPT),
    "cut magic": (WHOLE[:3], reasons.CORRUPT),
    "cut header": (WHOLE[:40], reasons.CORRUPT),
    "cut numbers": (WHOLE[:-8], reasons.CORRUPT),
    "more numbers": (WHOLE + bytes(8), reasons.CORRUPT),
    "two arrays": (WHOLE + WHOLE, reasons.CORRUPT),
    "cut zip": (ZIPPED[:-30], reasons.CORRUPT),
    "changed zip": (ZIPPED[:200] + bytes(50) + ZIPPED[250:], reasons.CORRUPT),
    "objects": (npy(np.array([{}, 1], object)), reasons.OBJECTS),
    "objects in a zip": (npz(x=np.array([None])), reasons.OBJECTS),
    "complex": (npy(np.zeros(4, complex)), reasons.COMPLEX),
    "text array": (npy(np.array(["a", "b"])), reasons.NUMBERS),
    "times": (npy(np.zeros(4, "M8[s]")), reasons.NUMBERS),
    "fields": (npy(np.zeros(4, [("a", "f4")])), reasons.NUMBERS),
    "named fields": (npy(np.zeros(4, [("ä", "f4")])), reasons.NUMBERS),
    "two in a zip": (npz(x=WHOLE, y=1), "a .npz of 2 arrays (x, y), not of one array"),
    "none in a zip": (npz(), "a .npz of 0 arrays, not of one array"),
    "of exabytes": (headed("<f8", (2**40, 2**20)), reasons.CORRUPT),
    "negative": (headed("<f8", (-1, -1), bytes(8)), reasons.CORRUPT),
    "no shape": (headed("<f8", 3, bytes(24)), reasons.CORRUPT),
    "no type": (headed("<q9", (1,), bytes(8)), reasons.CORRUPT),
    "an expression": (headed("<f8", "__import__('os')"), reasons.CORRUPT),
    "a later version": (b"\x93NUMPY\7\0" + WHOLE[8:], reasons.CORRUPT),
}  # fmt: skip


@pytest.mark.parametrize("case", list(RUBBISH))
def test_what_is_no_array_of_numbers_is_refused(case):
    data, why = RUBBISH[case]
    assert reason(data) == why


def test_no_change_of_a_byte_raises_anything_else():
    for step in range(0, len(WHOLE), 37):
        for data in (WHOLE, ZIPPED[: len(WHOLE)]):
            changed = bytearray(data)
            changed[step % len(changed)] ^= 0xFF
            for damaged in (bytes(changed), data[:step]):
                with contextlib.suppress(Unusable):
                    medium.read(damaged, ReadSettings())


def test_names_in_a_zip_are_escaped_and_cut():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name in ("a\x1b[31m.npy", "b" * 99, "c.npy", "d.npy"):
            archive.writestr(name, WHOLE)
    found = reason(file.getvalue())
    assert found == f"a .npz of 4 arrays (a\\x1b[31m, {'b' * 20}, c, ...), not of one array"


def test_spaces_that_cannot_be_written_are_refused():
    floats = {"medium": "array", "levels": None, "mean": (0.0,), "std": (1.0,)}
    medium.check(Space(channels=1, size=(8, 8), layout="HW", **floats))
    for wrong in (
        {"layout": "HWD"},
        {"layout": "L"},
        {"layout": "HW", "channels": 2, "mean": (0.0, 0.0), "std": (1.0, 1.0)},
        {"levels": 16, "mean": (), "std": ()},
    ):
        with pytest.raises(InvalidArgument):
            medium.check(Space(**{"channels": 1, "size": (8, 8), **floats, **wrong}))


# -- pictures -------------------------------------------------------------------------------------


def test_fields_are_panels_of_grey_around_their_mean():
    space = Space(
        channels=2, size=(4, 6), medium="array", levels=None, mean=(10.0, -1.0), std=(2.0, 0.1)
    )
    samples = np.empty((3, 2, 4, 6), np.float32)
    samples[:, 0], samples[:, 1] = 10, -1
    samples[:, 0, 0, 0], samples[:, 0, 0, 1] = 16, 4
    samples[:, 1, 0, 0], samples[:, 1, 0, 1] = 1e9, -1e9
    seen = medium.render(samples, space)
    assert seen.shape == (3, 1, 9, 6), "one above the other, and a line between"
    assert seen.dtype == np.uint8
    upper, lower = seen[0, 0, :4], seen[0, 0, 5:]
    assert upper[0, :3].tolist() == lower[0, :3].tolist() == [255, 0, 128]
    assert set(seen[0, 0, 4].tolist()) == {0}


@pytest.mark.parametrize("levels", [2, 256, 65_536])
def test_levels_are_shown_from_black_to_white(levels):
    kind = {2: np.bool_, 256: np.uint8, 65_536: np.uint16}[levels]
    samples = np.array([0, levels - 1], kind).reshape(1, 1, 1, 2)
    assert medium.render(samples, medium.space(samples)).reshape(-1).tolist() == [0, 255]
    colors = DRAW.integers(0, 256, (2, 3, 4, 5), np.uint8)
    assert medium.render(colors, medium.space(colors)).tolist() == colors.tolist()


def test_signals_are_lines_and_volumes_three_slices():
    wave = np.sin(np.arange(1000) / 50, dtype=np.float32)[None, None]
    seen = medium.render(wave, medium.space(wave))
    assert seen.shape == (1, 1, 48, 256)
    assert (seen.min(2) < 100).all(), "ink in every column"
    volume = np.zeros((2, 3, 4, 6, 8), np.uint8)
    volume[:, :, 2, 3, 4] = 255
    seen = medium.render(volume, medium.space(volume))
    assert seen.shape == (2, 1, 3 * 6 + 2, 8 + 8 + 6 + 2)
