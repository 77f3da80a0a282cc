"""Samples that are decoded as they are looked up are those that memory would hold."""

import json
import os
from pathlib import Path

import numpy as np
import PIL
import pytest
from image_corpus import encoded, fill, noise, npy, zipped

from diffuse_cli import system
from diffuse_cli.data import Dataset, decoding_pass, open_index, read_images, save_index
from diffuse_cli.data import stream as streaming
from diffuse_cli.data.stream import find_stream
from diffuse_cli.media import file_errors
from diffuse_cli.system.errors import DataError
from diffuse_cli.system.events import Notice, finish


def read(source, **options):
    return finish(read_images(source, workers=2, **options))


def streamed(source, keep=0, **options):
    images = read(source, keep=keep, **options)
    stream = find_stream(images.stored)
    assert stream is not None
    return images, stream


def corpus() -> dict[str, bytes]:
    """Every kind of result: sizes, modes and faults, with samples enough to hold some out."""
    data = {f"{'ab'[k % 2]}/{k:02d}.png": encoded(noise(k)) for k in range(60)}
    data |= {"a/cut.png": encoded(noise(1))[:-30], "b/empty.png": b""}
    data |= {"a/10.png": encoded(noise(7, (12, 9), "RGB")), "b/jpeg.jpg": encoded(noise(9), "JPEG")}
    data |= {"a/clear.png": encoded(noise(7, mode="RGBA"))}
    return data | {"b/wide.png": encoded(noise(8, (90, 30)))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder that no test changes."""
    return fill(tmp_path_factory.mktemp("streaming"), corpus())


@pytest.fixture
def own(tmp_path):
    """60 images of one size, to be changed."""
    files = {f"{k:02d}.png": encoded(noise(k)) for k in range(60)}
    return fill(tmp_path / "own", files)


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that are decoded as a set is read."""
    names = []
    original = decoding_pass.decode_all

    def decode_all(plan, entries, workers):
        for result in original(plan, entries, workers):
            names.append(result.entry.name)
            yield result

    monkeypatch.setattr(decoding_pass, "decode_all", decode_all)
    return names


def same(one: Dataset, two: Dataset) -> bool:
    facts = ("names", "class_names", "medium", "fingerprint", "class_fingerprints", "space")
    every = np.arange(len(one))
    left, right = ((x.labels, x.held_out, x.digests, x.stored[every]) for x in (one, two))
    return (
        all(getattr(one, name) == getattr(two, name) for name in (*facts, "summary"))
        and [own.dtype for own in left] == [own.dtype for own in right]
        and all(map(np.array_equal, left, right))
    )


# -- the same samples -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"size": (16, 24)}, {"channels": 1}, {"fit": "pad"}], ids=str
)
@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("kept", [0, 5])
def test_a_streamed_set_is_the_set(folder, tmp_path, kept, mapped, options):
    cache = {"cache": tmp_path, "map_over": 0} if mapped else {}
    whole = read(folder, **options)
    images, stream = streamed(folder, kept * whole.stored[0].nbytes, **cache, **options)
    assert same(images, whole)
    assert len(stream.kept_samples) == kept
    assert isinstance(stream.kept_samples, np.memmap) == bool(kept and mapped)
    assert set(images.held_out) == {False, True}


@pytest.mark.parametrize("last", [40, 50])
@pytest.mark.parametrize(
    "options", [{"bits": 16}, {"bits": 16, "cache": "c"}, {"layout": "alpha"}, {"layout": "pages"}]
)
def test_a_size_found_late_gives_the_samples_of_a_resumed_run(tmp_path, options, last):
    if "cache" in options:
        options = {**options, "cache": tmp_path / options["cache"]}
    sides = [32] * last + [40] * (60 - last)
    files = {f"{k:02d}.png": encoded(noise(k, (side, side))) for k, side in enumerate(sides)}
    folder = fill(tmp_path / "in", files)
    first = read(folder, **options)
    assert first.stored.shape[2:] == (64, 64)
    again = read(folder, **options, size=(64, 64))
    assert np.array_equal(first.stored, again.stored)
    assert first.fingerprint == again.fingerprint
    assert same(streamed(folder, **options)[0], first)


def test_a_zip_and_floats(folder, tmp_path):
    packed = zipped(tmp_path / "set.zip", corpus())
    images, _ = streamed(packed)
    assert np.array_equal(images.stored[:], read(packed).stored)
    values = np.random.default_rng(0).normal(3, 2, (50, 2, 6, 6)).astype(np.float32)
    fields = fill(tmp_path / "fields", {f"{k}.npy": npy(own) for k, own in enumerate(values)})
    one, two = streamed(fields, transform="asinh")[0], read(fields, transform="asinh")
    assert same(one, two)
    assert one.space.mean


def test_it_is_indexed_as_an_array_is(folder):
    images, _ = streamed(folder)
    whole, part = read(folder).stored, images.stored
    mask = np.arange(len(whole)) % 3 == 0
    for key in (3, -1, slice(2, 9, 3), slice(None), [5, 1, 1], np.array([-1, 4]), mask):
        assert np.array_equal(part[key], whole[key])
    assert (part.shape, len(part), part.ndim) == (whole.shape, len(whole), 4)
    with pytest.raises(IndexError):
        part[99]
    with pytest.raises(TypeError, match="too large"):
        np.asarray(part)


def test_another_process_opens_it_with_what_is_kept(folder, tmp_path):
    images, _ = streamed(folder, 5 * 3 * 64 * 64, cache=tmp_path, map_over=0)
    save_index(images, tmp_path)
    other = open_index(tmp_path)
    assert same(other, images)
    assert isinstance(other.stored.kept_samples, np.memmap)
    alone = streamed(folder)[0]
    save_index(alone, tmp_path / "none")
    assert same(open_index(tmp_path / "none"), alone)


def test_what_was_looked_up_is_remembered_within_its_bound(own, monkeypatch):
    images, _ = streamed(own)
    monkeypatch.setattr(streaming, "REMEMBERED", 10 * 64)
    whole, seen = read(own).stored, []
    original = streaming.decode_all

    def decode_all(reading, entries, workers):
        seen.extend(int(entry.name[:2]) for entry in entries)
        return original(reading, entries, workers)

    monkeypatch.setattr(streaming, "decode_all", decode_all)
    for rows in ([1, 2, 3], [2, 3], range(60), [59, 50], [49], [50]):
        assert np.array_equal(images.stored[list(rows)], whole[list(rows)])
    assert seen == [1, 2, 3, *(k for k in range(60) if k not in (1, 2, 3)), 49]


# -- samples that go or change --------------------------------------------------------------------


SPOILT = {
    file_errors.VANISHED: Path.unlink,
    file_errors.CORRUPT: lambda path: os.truncate(path, 40),
    file_errors.CHANGED: lambda path: path.write_bytes(encoded(noise(1000))),
}


@pytest.mark.parametrize("fault", SPOILT)
def test_a_successor_of_its_part_takes_the_place_of_a_sample(own, fault):
    images, stream = streamed(own)
    before = read(own).stored
    for part in (images.held_out, ~images.held_out):
        lost, heir = np.flatnonzero(part)[[0, 1]]
        SPOILT[fault](own / images.names[lost])
        assert np.array_equal(images.stored[[lost, heir, lost]], before[[heir, heir, heir]])
        assert stream.faults() == [(images.names[lost], fault)]
        assert stream.faults() == []
    assert np.array_equal(images.stored[[lost]], before[[heir]])
    assert stream.faults() == []  # named once


def test_with_strict_it_is_an_error_and_so_is_a_set_that_is_gone(own):
    images, _ = streamed(own, strict=True)
    (own / "07.png").unlink()
    with pytest.raises(DataError, match=r"07\.png: vanished"):
        images.stored[[7]]
    images, _ = streamed(own)
    for path in own.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="no longer holds its images"):
        images.stored[[7]]


# -- the index ------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["header", "middle", "torn", "unended", "last", "garbage"])
def test_a_pass_that_was_cut_off_goes_on(folder, tmp_path, decoded, end):
    index = tmp_path / "index.jsonl"
    whole = streamed(folder, index=index)[0]
    total, lines = len(decoded), index.read_bytes().splitlines(keepends=True)
    assert len(lines) == total + 2
    kept = {"header": 1, "last": len(lines) - 1}.get(end, 20)
    torn = {"torn": lines[20][:9], "unended": lines[20][:-1], "garbage": b"\xff{]\n"}
    index.write_bytes(b"".join(lines[:kept]) + torn.get(end, b""))
    decoded.clear()
    assert same(streamed(folder, index=index)[0], whole)
    assert len(decoded) == total - (kept - 1)
    again = index.read_bytes().splitlines()
    found = [[json.loads(line)[:2] for line in each[1:-1]] for each in (lines, again)]
    assert found[0] == found[1]  # name and hash of each
    assert (again[0], again[-1]) == (lines[0].strip(), lines[-1].strip())
    decoded.clear()
    assert same(streamed(folder, index=index)[0], whole)
    assert decoded == []


def test_an_index_says_what_was_found_and_it_is_said_again(folder, tmp_path):
    index, said = tmp_path / "index.jsonl", []
    for _ in range(2):
        events = list(read_images(folder, keep=0, index=index))
        said.append([event.text for event in events if isinstance(event, Notice)])
    assert said[0] == said[1]
    assert said[0]
    header, *lines, last = map(json.loads, index.read_text().splitlines())
    assert header["source"] == str(folder)
    assert [line[0][0] for line in lines if len(line) > 2] == list(read(folder).names)
    assert {line[0][0]: line[1] for line in lines if len(line) == 2} == {
        "a/cut.png": file_errors.CORRUPT, "b/empty.png": file_errors.EMPTY,
    }  # fmt: skip
    assert last["medium"] == "image"


def test_an_index_of_something_else_does_not_count(own, tmp_path, decoded):
    index = tmp_path / "index.jsonl"
    streamed(own, index=index)
    decoded.clear()
    streamed(own, index=index, size=(4, 4))
    assert len(decoded) == 60
    decoded.clear()
    (own / "30.png").unlink()
    images, _ = streamed(own, index=index, size=(4, 4))
    assert len(images) == 59
    assert len(decoded) == 29  # the files after it
    assert len(index.read_bytes().splitlines()) == 1 + 59 + 1
    read(own, keep=10**9, index=index)
    assert not index.exists()


def test_a_file_of_the_same_size_that_was_mended_is_decoded(tmp_path, decoded):
    folder = fill(tmp_path / "in", {f"{k}.npy": npy(np.ones((4, 4))) for k in range(9)})
    index, broken = tmp_path / "index.jsonl", folder / "3.npy"
    broken.write_bytes(npy(np.full((4, 4), np.nan)))
    assert len(read(folder, keep=100, index=index)) == 8
    broken.write_bytes(npy(np.zeros((4, 4))))
    os.utime(broken, ns=(0, 10**18))  # at another time, however coarse the clock
    decoded.clear()
    assert len(read(folder, keep=100, index=index)) == 9
    assert decoded[0] == "3.npy"


@pytest.mark.parametrize("module", [PIL, system], ids=["Pillow", "diffuse"])
@pytest.mark.parametrize("goes_on", [False, True])
def test_an_index_of_another_version_does_not_count(
    own, tmp_path, decoded, monkeypatch, module, goes_on
):
    index = tmp_path / "index.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(module, "__version__", "0.0.1")
        streamed(own, index=index)
    for count in (60, 0):
        decoded.clear()
        streamed(own, index=index, goes_on=goes_on)
        assert len(decoded) == count


def test_a_run_that_goes_on_has_the_set_of_its_index(own, tmp_path, decoded, monkeypatch):
    """Also from another folder than that from which its path was relative."""
    index = tmp_path / "index.jsonl"
    monkeypatch.chdir(own.parent)
    whole = streamed(Path(own.name), index=index)[0]
    samples = whole.stored[:]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (own / "30.png").unlink()
    (own / "new.png").write_bytes(encoded(noise(77)))
    decoded.clear()
    for keep in (0, 40 * 64):
        images, stream = streamed(own, keep, index=index, goes_on=True)
        assert images.names == whole.names
        assert images.fingerprint == whole.fingerprint
        heir = images.stored[[31 if not images.held_out[31] else 32]]
        assert np.array_equal(images.stored[[30]], heir)
        assert np.array_equal(images.stored[:30], samples[:30])
        assert len(stream.kept_samples) == keep // 64
    assert decoded == []  # but for those that are kept


def test_a_number_is_the_size_of_any_number_of_sides(tmp_path, decoded):
    files = {f"{k}.npy": npy(np.full((8, 8, 8), k, np.float32)) for k in range(4)}
    folder = fill(tmp_path / "volumes", files)
    options = {"index": tmp_path / "index.jsonl", "medium": "array", "layout": "DHW"}
    names = streamed(folder, size=(8, 8), **options)[0].names
    (folder / "3.npy").unlink()
    assert streamed(folder, size=(8, 8, 8), goes_on=True, **options)[0].names == names
