"""Fields of netCDF files: the same values however they are stored, and samples with their names."""

import contextlib
import json
from pathlib import Path
from random import Random

import netCDF4
import numpy as np
import peak_memory
import pytest
from conftest import mostly_slow
from image_corpus import read
from lab import write_netcdf

from diffuse_cli.core import Space
from diffuse_cli.data.sources.netcdf import order_longitudes
from diffuse_cli.models import model_file
from diffuse_cli.sampling import packing
from diffuse_cli.system.errors import DataError, UsageError

LATITUDES, LONGITUDES = np.linspace(70, -70, 8), np.arange(-180, 180, 45.0)
FIELDS = np.round(np.random.default_rng(1).normal(280, 5, (2, 50, 8, 8)), 2)
"""Two variables at 50 times, with rows from north to south and columns from the date line."""

STORED = {
    "as it is": {},
    "longitudes from 0": {
        "longitudes": np.sort(LONGITUDES % 360),
        "columns": np.argsort(LONGITUDES % 360),
    },
    "a meridian twice": {
        "longitudes": np.append(np.sort(LONGITUDES % 360), 360.0),
        "columns": np.append(np.argsort(LONGITUDES % 360), 4),
    },
    "latitudes upside down": {"rows": np.arange(8)[::-1]},
    "big endian": {"kind": ">f4"},
    "netCDF 3": {"format": "NETCDF3_64BIT_OFFSET"},
    "time last": {"axes": (1, 2, 0)},
    "columns first": {"axes": (0, 2, 1)},
    "times and members": {"members": 5},
    "names of WRF only": {
        "names": ("Time", "south_north", "west_east"),
        "units": False,
        "rows": np.arange(8)[::-1],
    },
}


@pytest.mark.parametrize("how", STORED)
def test_a_field_is_the_same_however_it_is_stored(tmp_path, how):
    write_netcdf(tmp_path / "x.nc", FIELDS, LATITUDES, **{"longitudes": LONGITUDES, **STORED[how]})
    fields = read(f"{tmp_path / 'x.nc'}::t2m,pr")
    np.testing.assert_array_equal(fields.stored, np.moveaxis(FIELDS, 0, 1).astype(np.float32))
    assert fields.space.quantities == ("t2m [K]", "pr [mm day-1]")
    assert fields.medium == "array"
    assert not fields.class_names


def test_coordinates_of_unknown_names_do_not_mirror(tmp_path):
    """Rows are from north to south, and columns from west to east, as with known names."""
    path = tmp_path / "x.nc"
    write_netcdf(path, FIELDS, LATITUDES, LONGITUDES, names=("time", "j", "i"), units=False)
    with netCDF4.Dataset(path, "a") as dataset:
        for name, places in (("j", np.arange(8)), ("i", 10.0 * np.arange(8))):
            dataset.createVariable(name, "f4", (name,))[:] = places
    fields = np.float32(FIELDS[1][:, ::-1])
    np.testing.assert_array_equal(read(f"{path}::pr").stored[:, 0], fields)


def test_the_largest_byte_is_a_value_unless_the_file_says_otherwise(tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    for name, fill in (("plain.nc", None), ("masked.nc", 255)):
        with netCDF4.Dataset(tmp_path / name, "w", format="NETCDF3_64BIT_DATA") as dataset:
            for axis, length in zip("tyx", values.shape, strict=True):
                dataset.createDimension(axis, length)
            dataset.createVariable("v", "u1", ("t", "y", "x"), fill_value=fill)[:] = values
    np.testing.assert_array_equal(read(tmp_path / "plain.nc").stored[0], values)
    with pytest.raises(DataError, match="1 of 256 values"):
        read(tmp_path / "masked.nc")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_samples_of_every_level_are_read_back(tmp_path, dtype):
    levels = np.linspace(0, np.iinfo(dtype).max, 64).round().astype(dtype).reshape(1, 8, 8)
    space = Space(channels=1, size=(8, 8), medium="array", levels=int(np.iinfo(dtype).max) + 1)
    data = packing._encode_netcdf([levels], space, {"images": ["0"]})
    (tmp_path / "x.nc").write_bytes(data)
    np.testing.assert_array_equal(read(tmp_path / "x.nc").stored[0], levels)


def test_volumes_and_masks_are_not_written_into_netcdf():
    for size, levels in (((4, 8, 8), 256), ((8, 8), 2)):
        space = Space(channels=1, size=size, medium="array", levels=levels)
        with pytest.raises(UsageError, match="fields of numbers"):
            packing.check_kind(Path("x.nc"), space, gif=False, members=False)


def test_short_sides_are_not_channels_and_one_side_is_a_signal(tmp_path):
    path = tmp_path / "x.nc"
    write_netcdf(path, FIELDS[..., :3], LATITUDES, LONGITUDES[:3])
    np.testing.assert_array_equal(read(f"{path}::pr").stored[:, 0], np.float32(FIELDS[1, ..., :3]))
    with netCDF4.Dataset(path, "a") as dataset:
        for k, name in enumerate("ab"):
            dataset.createVariable(name, "f4", ("time", "lat"))[:] = FIELDS[k, ..., 0]
    signals = read(f"{path}::a,b")
    np.testing.assert_array_equal(signals.stored, np.moveaxis(np.float32(FIELDS[..., 0]), 0, 1))
    assert signals.layout == "CL"


def test_masked_integers_are_unpacked_and_filled_or_left_out(tmp_path):
    """Values that were never written are missing, too."""
    path = tmp_path / "x.nc"
    write_netcdf(path, FIELDS[:1], LATITUDES, LONGITUDES, scale=0.01)
    with netCDF4.Dataset(path, "a") as dataset:
        dataset["t2m"][3, 2, 1] = np.ma.masked
        dataset["time"][50] = 50
    expected = np.append(FIELDS[0], np.zeros((1, 8, 8)), 0)
    expected[3, 2, 1] = 0
    filled = read(f"{path}::t2m=0")
    np.testing.assert_allclose(filled.stored[:, 0], expected, atol=1e-4)
    some = read(path)
    assert [*some.summary.skipped.values()] == [(2, ("000000003.npy", "000000050.npy"))]


@pytest.mark.parametrize(
    ("degrees", "order"),
    [
        ([350, 355, 0, 5], [0, 1, 2, 3]),
        ([0, 5, 350, 355], [2, 3, 0, 1]),
        ([170, 175, -180, -175], [0, 1, 2, 3]),
        ([30, 20, 10], [2, 1, 0]),
    ],
)
def test_regions_have_no_seam(degrees, order):
    assert order_longitudes(np.array(degrees, np.float32)).tolist() == order


def test_samples_are_written_with_names_and_units(diffuse, lab):
    model = lab.trained(
        "train", f"{lab['fields.nc']}::t2m,pr", "--config", lab["kind-unet"], "--steps", 2
    )
    assert model_file.load(model).blueprint.space.quantities == ("t2m [K]", "pr [mm day-1]")
    assert "t2m [K], pr [mm day-1]" in diffuse("info", model).ok().out
    other = f"{lab['fields.nc']}::pr,t2m"
    order = "pr [mm day-1], t2m [K] instead of t2m [K], pr [mm day-1]"
    for refused in (
        ("train", other, "--init", model, "--steps", 1, "-o", "other.safetensors"),
        ("eval", model, other, "-n", 4, "--steps", 2),
        ("eval", other, f"{lab['fields.nc']}::t2m,pr", "-n", 4),
    ):
        assert order in diffuse(*refused).fails(3).err
    line = ("sample", model, "-n", 5, "--steps", 2, "--batch-size", 2)
    for out in ("a.nc", "b.nc", "folder"):
        diffuse(*line, "-o", out).ok()
    diffuse(*line, "-o", "a.nc").ok()  # it is complete
    with open("a.nc", "rb") as a, open("b.nc", "rb") as b:  # noqa: PTH123
        assert a.read() == b.read()
    files = [np.load(f"folder/{k:05d}.npy") for k in range(5)]
    with netCDF4.Dataset("a.nc") as dataset:
        for channel, (name, units) in enumerate((("t2m", "K"), ("pr", "mm day-1"))):
            assert dataset[name].units == units
            np.testing.assert_array_equal(dataset[name][:], [file[channel] for file in files])
        assert json.loads(dataset.getncattr("diffuse.samples"))["n"] == 5
    np.testing.assert_array_equal(read("a.nc::t2m,pr").stored, files)


@pytest.mark.parametrize(
    ("form", "seeds"),
    mostly_slow(
        [
            ("NETCDF4", range(40)),
            ("NETCDF3_64BIT_OFFSET", range(8)),
            ("NETCDF3_64BIT_OFFSET", range(8, 40)),
        ]
    ),
)
def test_a_changed_file_has_samples_or_a_reason(tmp_path, form, seeds):
    path = write_netcdf(tmp_path / "x.nc", FIELDS[:1], LATITUDES, LONGITUDES, format=form)
    whole = path.read_bytes()
    for seed in seeds:
        rng, data = Random(seed), bytearray(whole)
        for _ in range(rng.choice([1, 2, 9])):
            data[rng.randrange(3000)] = rng.choice([0, 255, rng.randrange(256)])
        path.write_bytes(data[: rng.choice([len(data), rng.randrange(len(data))])])
        with contextlib.suppress(DataError):
            read(path)


@pytest.mark.parametrize(
    ("shape", "chunks", "message"),
    [
        ((10**9, 4, 4), (1, 4, 4), "decompression bomb"),
        ((4, 100_000, 100_000), (1, 4, 4), "over 512 MiB"),
        ((4, 4, 10**10), (1, 4, 4), "over 512 MiB"),
        ((4, 20_000, 20_000), (4, 20_000, 20_000), "over 512 MiB"),
    ],
)
def test_small_files_of_large_fields_take_no_memory(tmp_path, shape, chunks, message):
    with netCDF4.Dataset(tmp_path / "x.nc", "w") as dataset:
        for name, length in zip("tyx", shape, strict=True):
            dataset.createDimension(name, length)
        dataset.createVariable("v", "u1", tuple("tyx"), zlib=True, chunksizes=chunks)
    peak_memory.forget()
    before = peak_memory.peak()
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.nc")
    assert peak_memory.peak() - before < 2**26
