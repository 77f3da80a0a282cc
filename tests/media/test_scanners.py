"""NIfTI and DICOM files: values and directions as their own packages read them, and no patients."""

from __future__ import annotations

import contextlib
import gzip
import os
from pathlib import Path
from random import Random

import nibabel
import numpy as np
import peak_memory
import pydicom
import pytest
from image_corpus import fill, read, within
from lab import PATIENT, dicom
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_rescale
from pydicom.uid import DeflatedExplicitVRLittleEndian

from diffuse_cli.media import array
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.array import nifti as scanner_files

VOLUME = np.random.default_rng(2).normal(size=(5, 6, 7))


def nifti(values, turn="RAS", version=nibabel.Nifti1Image, order="<", **scale) -> bytes:
    """A file with values (x, y, z, ...) stored along other directions, and a patient's name."""
    header = version.header_class(endianness=order)
    header["descrip"] = header["intent_name"] = PATIENT.encode()
    plain = nibabel.Nifti1Image(values, np.eye(4))
    start, end = (nibabel.orientations.axcodes2ornt(axes) for axes in ("RAS", turn))
    turned = plain.as_reoriented(nibabel.orientations.ornt_transform(start, end))
    image = version(np.asanyarray(turned.dataobj), turned.affine, header)
    image.set_data_dtype(scale.get("dtype", values.dtype))
    return image.to_bytes()


def shown(values):
    """(x, y, z) as slices of rows from anterior to posterior."""
    return values[:, ::-1].T


def decode(data: bytes):
    return array.read(data, array.ReadSettings())


@pytest.mark.parametrize("turn", ["RAS", "LPS", "SAL", "PIR"])
@pytest.mark.parametrize("version", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_volumes_have_one_direction(turn, version, pack):
    sample = decode(pack(nifti(VOLUME.astype(np.float32), turn, version)))
    np.testing.assert_array_equal(sample.values[0], shown(VOLUME.astype(np.float32)))
    assert sample.layout == "DHW"


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "f4", "f8"])
def test_volumes_of_all_types(kind, order):
    values = (VOLUME * 20 + 100).astype(kind)
    sample = decode(nifti(values, order=order))
    np.testing.assert_array_equal(sample.values[0], shown(values).astype(np.float32))
    assert sample.values.dtype == (kind if kind[0] == "u" else np.float32)


def test_scaled_integers_and_other_dimensions():
    packed = nifti(VOLUME, dtype=np.int16)
    np.testing.assert_allclose(decode(packed).values[0], shown(VOLUME), atol=1e-3)
    assert decode(nifti(VOLUME[:, :, :1])).layout == "HW"
    several = decode(nifti(np.stack([VOLUME, 2 * VOLUME], -1)))
    np.testing.assert_allclose(several.values[1], 2 * several.values[0])
    assert several.layout == "CDHW"


SLICE = np.random.default_rng(3).integers(0, 4096, (6, 8)).astype(np.int16)


def test_slices_are_rescaled():
    hounsfield = decode(dicom(SLICE, RescaleSlope=2.5, RescaleIntercept=-1024))
    np.testing.assert_array_equal(hounsfield.values[0], SLICE * np.float32(2.5) - 1024)
    assert hounsfield.layout == "HW"
    raw = decode(dicom(SLICE.astype(np.uint16), BitsStored=12, HighBit=11))
    np.testing.assert_array_equal(raw.values[0], SLICE)
    assert raw.values.dtype == np.uint16
    white = {"BitsStored": 12, "HighBit": 11, "PhotometricInterpretation": "MONOCHROME1"}
    inverted = decode(dicom(SLICE.astype(np.uint16), **white))
    np.testing.assert_array_equal(inverted.values[0], 4095 - SLICE)
    empty = decode(dicom(SLICE, RescaleSlope=None, RescaleIntercept=None))
    np.testing.assert_array_equal(empty.values[0], SLICE)
    with pytest.raises(reasons.Unusable, match="color palette"):
        decode(dicom(SLICE.astype(np.uint16), PhotometricInterpretation="PALETTE COLOR"))
    frames = decode(dicom(np.stack([SLICE, SLICE + 1]), NumberOfFrames=2))
    np.testing.assert_array_equal(frames.values[0], [SLICE, SLICE + 1])
    assert frames.layout == "DHW"


def large_nifti() -> bytes:
    """A header of 600 MiB, and a mebibyte of zeros."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((1024, 1024, 600))
    return gzip.compress(header.binaryblock + bytes(2**20))


@pytest.mark.parametrize("name", ["CT_small", "MR_small_bigendian", "MR_small_RLE"])
def test_files_of_scanners_are_as_pydicom_rescales_them(name):
    file = pydicom.dcmread(path := get_testdata_file(f"{name}.dcm", read=False))
    expected = apply_rescale(file.pixel_array, file)
    values = array.read(Path(path).read_bytes(), array.ReadSettings(size=expected.shape)).values
    np.testing.assert_array_equal(values[0], expected)


@pytest.mark.parametrize("by_position", [True, False])
def test_a_series_is_a_stack_of_slices(tmp_path, by_position):
    scans = np.random.default_rng(5).integers(0, 99, (2, 5, 6, 8)).astype(np.uint8)
    files = {}
    for series, slices in enumerate(scans):
        for k, values in enumerate(slices):
            place = {"InstanceNumber": k}
            if by_position:  # along x, in another order than the numbers
                plane = {"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}
                place = {"InstanceNumber": 9 - k, "ImagePositionPatient": [-k, 7, 7], **plane}
            name = f"{PATIENT}/{(3 * k) % 5}-{series}.dcm"
            files[name] = dicom(values, SeriesInstanceUID=f"1.2.{series}", **place)
    fill(tmp_path, {**files, "cut.dcm": b""})
    os.mkfifo(tmp_path / "pipe.dcm")
    with within(60):
        volumes = read(f"{tmp_path}::series")
    np.testing.assert_array_equal(volumes.stored[:, 0], scans)
    assert volumes.names == ("000000.dcm", "000001.dcm")
    assert {*volumes.summary.skipped} == {reasons.CORRUPT, reasons.IRREGULAR}


RAS = np.random.default_rng(6).normal(size=(2, 5, 6, 7)).astype(np.float32)
SLICES = {
    "::slices": lambda v: v[:, ::-1].T,
    "::slices=coronal": lambda v: v[:, ::-1, ::-1].transpose(1, 2, 0),
    "::slices=sagittal": lambda v: v[:, ::-1, ::-1].transpose(0, 2, 1),
}
"""Slices of a volume (x, y, z): rows from anterior or superior, columns from left or anterior."""


@pytest.fixture
def decoded_volumes(monkeypatch) -> list[bytes]:
    """The volumes that are decoded."""
    decoded, decode_volume = [], scanner_files.read_volume
    monkeypatch.setattr(
        scanner_files, "read_volume", lambda data: (decoded.append(data), decode_volume(data))[1]
    )
    return decoded


@pytest.mark.parametrize("selection", SLICES)
def test_slices_of_volumes_are_samples(tmp_path, decoded_volumes, selection):
    volumes = {"a/1.nii.gz": gzip.compress(nifti(RAS[0], "LPS")), "b/2.nii": nifti(RAS[1], "SAL")}
    fill(tmp_path, {**volumes, "other.npy": b"no", "b/x.txt": b""})
    first, second = (SLICES[selection](values) for values in RAS)
    slices = read(f"{tmp_path}{selection}", workers=3)
    np.testing.assert_array_equal(slices.stored[:, 0], [*first, *second])
    files = {"a/1.nii.gz": first, "b/2.nii": second}
    names = [f"{name}-{k:04d}.npy" for name, values in files.items() for k in range(len(values))]
    assert ([*slices.names], slices.layout, slices.class_names) == (names, "HW", ("a", "b"))
    assert len(decoded_volumes) == 2
    alone = read(f"{tmp_path}/b/2.nii{selection}")
    np.testing.assert_array_equal(alone.stored[:, 0], second)
    assert alone.names[0] == "2.nii-0000.npy"
    streamed = read(f"{tmp_path}{selection}", keep=0, index=tmp_path / "index")
    np.testing.assert_array_equal(
        np.stack([*streamed.stored[[9, 2]]])[:, 0], [[*first, *second][9], first[2]]
    )


def test_slices_of_volumes_of_channels_and_of_damaged_ones(tmp_path, decoded_volumes):
    hostile = nibabel.Nifti2Header()
    hostile.set_data_shape((1, 1, 2**20))
    hostile.set_data_dtype(np.uint8)
    bombs = {"bomb.nii": hostile.binaryblock, "no.nii.gz": b"no", "large.nii.gz": large_nifti()}
    cut = {"cut.nii": nifti(RAS[0])[:-9], "cut.nii.gz": gzip.compress(nifti(RAS[0]))[:-99]}
    fill(tmp_path, {**bombs, **cut, "f.nii": nifti(RAS.transpose(1, 2, 3, 0)), "g.nii": b""})
    slices = read(f"{tmp_path}::slices", workers=2)
    np.testing.assert_array_equal(slices.stored, np.stack([*map(shown, RAS)], 1))
    assert slices.layout == "CHW"
    counts = {reason: count for reason, (count, _) in slices.summary.skipped.items()}
    assert counts == {reasons.BOMB: 1, reasons.CORRUPT: 16, reasons.TOO_LARGE: 600}
    assert len(decoded_volumes) == 4


BOMBS = {
    "large nifti": (large_nifti(), reasons.TOO_LARGE),
    "rows": (dicom(SLICE, Rows=60_000, Columns=60_000), reasons.TOO_LARGE),
    "deflated": (dicom(SLICE, syntax=DeflatedExplicitVRLittleEndian), reasons.COMPRESSION),
    "cut": (dicom(SLICE)[:-9], reasons.CORRUPT),
    "cut nifti": (gzip.compress(nifti(VOLUME)[:-9]), reasons.CORRUPT),
    "not gzip": (b"\x1f\x8b" + bytes(99), reasons.CORRUPT),
    "complex": (nifti(VOLUME.astype(np.complex64)), reasons.COMPLEX),
}


@pytest.mark.parametrize("name", BOMBS)
def test_damaged_and_hostile_files_have_a_reason_and_take_no_memory(name):
    data, reason = BOMBS[name]
    peak_memory.forget()
    before = peak_memory.peak()
    with pytest.raises(reasons.Unusable) as caught:
        decode(data)
    assert caught.value.reason == reason
    assert peak_memory.peak() - before < 2**26


SEEDS = {
    "nifti": nifti(VOLUME.astype(np.int16)),
    "gzip": gzip.compress(nifti(VOLUME)),
    "dicom": dicom(SLICE, RescaleSlope=2)[-400:],
}


@pytest.mark.parametrize("name", SEEDS)
def test_a_changed_file_is_an_array_or_has_a_reason(name):
    start = dicom(SLICE, RescaleSlope=2)[:-400] if name == "dicom" else b""
    for seed in range(200):
        rng, data = Random(seed), bytearray(SEEDS[name])
        for _ in range(rng.choice([1, 2, 9])):
            data[rng.randrange(min(len(data), 400))] = rng.choice([0, 255, rng.randrange(256)])
        with contextlib.suppress(reasons.Unusable):
            decode(start + data[: rng.choice([len(data), rng.randrange(len(data))])])


def test_nothing_of_a_patient_is_written(diffuse, lab, tmp_path):
    """No text of a header, and no name of a file or of its folder."""
    scans = np.random.default_rng(4).normal(1000, 100, (8, 8, 8)).astype(np.int16)
    names = [f"{PATIENT}-{k % 2}/{PATIENT}-{k}.dcm" for k in range(len(scans))]
    data = fill(tmp_path / "scans", dict(zip(names, map(dicom, scans), strict=True)))
    given = fill(tmp_path / "given", dict(zip(names[1:], map(dicom, scans[1:] // 2), strict=True)))
    (data / f"{PATIENT}-cut.dcm").write_bytes(b"")
    scan, out = data / names[0], tmp_path / "out"
    model, pairs = out / "m.safetensors", out / "pairs.safetensors"
    train = ("train", data, "--config", lab["kind-unet"], "--cache", "1k", "--steps", 2)
    lines = [
        (*train, "-o", model),
        ("sample", model, "--steps", 2, "-n", 2, "-o", out / "samples"),
        ("vary", model, scan, "--steps", 2, "-n", 1, "-o", out / "varied"),
        ("eval", model, data, "--steps", 2, "-n", 4, "--report", out / "report.html"),
        ("convert", model, "--to", "page", "-o", out / "page"),
        (*train, "--given", given, "-o", pairs),
        ("sample", pairs, "--given", scan, "--steps", 2, "-n", 2, "-o", out / "given"),
    ]
    for line in lines:
        assert PATIENT not in diffuse(*line).ok().err
    assert [path for path in out.rglob("*") if PATIENT in path.name] == []
    files = [path for path in out.rglob("*") if path.is_file()]
    assert [path for path in files if PATIENT.encode() in path.read_bytes()] == []
