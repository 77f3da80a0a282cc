"""From folders and zip files to `Dataset`: what is found, in which order, at which size."""

import itertools
import json
import os
import threading
import tracemalloc
import zipfile
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from file_operations import FULL, failing
from image_corpus import BOMB, encoded, fill, noise, read, within, zipped
from PIL import Image

from diffuse_cli.data import Dataset, open_index, read_images, save_index, store
from diffuse_cli.data.samples import HELD_OUT_MINIMUM
from diffuse_cli.data.sources import find_classes, read_subset
from diffuse_cli.data.sources.base import Entry, Source
from diffuse_cli.data.sources.folder import Folder
from diffuse_cli.data.store import Store
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.image import planes
from diffuse_cli.media.image.planes import fit_image as fit
from diffuse_cli.media.image.planes import pixel_digest
from diffuse_cli.system import files
from diffuse_cli.system.errors import DataError, OutputError
from diffuse_cli.system.events import Notice, Progress, finish


def many(count, **options):
    return {f"{k:03d}.png": encoded(noise(k, **options)) for k in range(count)}


def test_pixels_labels_and_names(tmp_path):
    names = ["b/two.png", "a/x/one.PNG", "b/three.JPeG", "loose.png"]
    kinds = ["PNG", "PNG", "JPEG", "PNG"]
    data = {n: encoded(noise(k), kinds[k]) for k, n in enumerate(names)}
    images = read(fill(tmp_path, {**data, "readme.txt": b"", ".hidden.png": b""}))
    assert images.names == ("a/x/one.PNG", "b/three.JPeG", "b/two.png", "loose.png")
    assert images.class_names == ("a", "b")
    assert images.labels.tolist() == [0, 1, 1, -1]
    assert (images.labels.dtype, images.stored.dtype) == (np.int64, np.uint8)
    assert images.stored[2, 0].tolist() == np.asarray(noise(0)).tolist()
    assert (images.space.size, images.space.channels, len(images)) == ((8, 8), 1, 4)
    summary = images.summary
    assert (summary.found, summary.usable, summary.others, summary.unlabelled) == (4, 4, 1, 1)
    assert summary.classes == {"a": 1, "b": 2}


def test_a_subset_follows_no_pattern_of_the_names():
    class Numbers(Source):
        def read(self, entry):
            return entry.key.encode()

    entries = [Entry(f"{k}.wav", 1, str(k)) for k in range(600)]
    rows = [int(data) for data in read_subset(Numbers(Path("x")), entries, 256)]
    assert len(rows) == 256
    assert rows == sorted(set(rows))
    for period in (2, 3, 5):
        shares = np.bincount([row % period for row in rows]) / 256
        assert np.abs(shares - 1 / period).max() < 0.12
    assert [*read_subset(Numbers(Path("x")), entries[:9], 256)] == [b"%d" % k for k in range(9)]


def test_common_folders_and_those_without_usable_images_are_no_classes(tmp_path):
    data = {f"set/train/{c}/{k}.png": encoded(noise(k)) for k, c in enumerate("abab")}
    images = read(fill(tmp_path / "two", {**data, "set/train/aa/bad.png": b""}))
    assert images.class_names == ("a", "b")
    assert images.labels.tolist() == [0, 0, 1, 1]
    one = read(fill(tmp_path / "one", {f"all/{k}.png": encoded(noise(k)) for k in range(3)}))
    assert one.class_names == ()
    assert one.labels.tolist() == [-1] * 3


def test_classes_are_in_the_order_of_their_bytes():
    names = ("apple", "Bee", "ant", "Zebra", "été")
    files = [f"{name}/{k}.png" for k, name in enumerate(names)]
    for labels in (names, [None] * 5):
        entries = [Entry(f, 1, f, label=label) for f, label in zip(files, labels, strict=True)]
        expected = ([3, 0, 2, 1, 4], ("Bee", "Zebra", "ant", "apple", "été"))
        assert find_classes(files, entries) == expected


def test_every_reason_is_counted_and_five_are_named(tmp_path):
    data = {"good.png": encoded(noise(1)), "bomb.png": BOMB, "cut.png": encoded(noise(1))[:-30]}
    data |= {f"text{k}.jpg": b"hello" for k in range(7)}
    images = read(fill(tmp_path, data))
    assert images.names == ("good.png",)
    assert images.summary.skipped == {
        reasons.BOMB: (1, ("bomb.png",)),
        reasons.CORRUPT: (1, ("cut.png",)),
        reasons.NOT_AN_IMAGE: (7, tuple(f"text{k}.jpg" for k in range(5))),
    }
    lines = images.summary.lines()
    names = ", ".join(f"text{k}.jpg" for k in range(5))
    assert lines[1] == f"skipped 7 files, not an image: {names}, ..."
    assert "skipped 1 file, decompression bomb: bomb.png" in lines


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError, reasons.MEMORY),
        (FileNotFoundError, reasons.VANISHED),
        (PermissionError, reasons.UNREADABLE),
        (SystemError, reasons.UNREADABLE),
    ],
)
@pytest.mark.parametrize(
    ("owner", "name"), [(Folder, "read"), (planes, "pixel_digest")], ids=["read", "decoded"]
)
def test_whatever_is_raised_for_a_file_is_a_reason(
    tmp_path, monkeypatch, owner, name, error, reason
):
    original, calls = getattr(owner, name), itertools.count()

    def fail(*arguments):
        if next(calls) == 1:
            raise error
        return original(*arguments)

    monkeypatch.setattr(owner, name, fail)
    images = read(fill(tmp_path, many(3)), workers=1)
    assert images.names == ("000.png", "002.png")
    assert images.summary.skipped == {reason: (1, ("001.png",))}


def test_a_huge_file_is_not_read_and_others_may_come_in_pieces(tmp_path, monkeypatch):
    """A system may give less than is asked for."""
    folder = fill(tmp_path, many(2))
    expected, original, most = read(folder).fingerprint, os.read, []
    with (folder / "huge.png").open("wb") as file:
        file.truncate(reasons.LARGEST_FILE + 1)
    monkeypatch.setattr(
        os, "read", lambda file, size: most.append(size) or original(file, min(size, 7))
    )
    images = read(folder, workers=1)
    assert images.summary.skipped == {reasons.TOO_LARGE: (1, ("huge.png",))}
    assert images.fingerprint == expected
    assert max(most) <= 2**20


def test_nothing_usable(tmp_path):
    fill(tmp_path, {"a.png": b"", "b.png": b"x", "c.png": b"y", "bad.zip": b"PK\5\6"})
    with pytest.raises(DataError, match="2 not an image, 1 empty file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    cases = {"none": "no such file or folder", "a.png/b": "no such"}
    cases |= dict.fromkeys(("a.png", "fifo", "bad.zip"), "neither")
    for name, words in cases.items():
        with pytest.raises(DataError, match=words) as caught:
            read(tmp_path / name)
        assert caught.value.hint


# -- sizes and channels ---------------------------------------------------------------------------


def notices(source, **options):
    found = read_images(source, **options)
    return [event.text for event in found if isinstance(event, Notice)]


def test_a_small_size_is_kept_and_a_large_one_becomes_64(tmp_path):
    small = fill(tmp_path / "small", many(5, size=(48, 64)))
    assert read(small).space.size == (64, 48)
    assert notices(small) == []
    large = fill(tmp_path / "large", many(2, size=(65, 64)))
    assert read(large).space.size == (64, 64)
    (text,) = notices(large)
    assert "all images are 64 high x 65 wide: resized to 64x64, cropped at the center by" in text
    assert "up to 2 %; pass --size" in text


def test_a_size_and_channels_that_are_asked_for(tmp_path):
    color, grey = noise(1, (40, 20), mode="RGB"), noise(2, (16, 12))
    folder = fill(tmp_path, {"a.png": encoded(color), "b.png": encoded(grey)})
    images = read(folder, size=(12, 16), channels=1)
    assert (images.space.size, images.space.channels) == ((12, 16), 1)
    assert images.stored[0, 0].tolist() == np.asarray(fit(color.convert("L"), (12, 16))).tolist()
    assert images.stored[1, 0].tolist() == np.asarray(grey).tolist()
    assert images.fingerprint == read(folder).fingerprint
    assert notices(folder, size=(12, 16)) == []
    (folder / "a.png").unlink()
    assert read(folder, channels=3).space.channels == 3


@pytest.mark.parametrize("where", ["000", "zzz"])
@pytest.mark.parametrize("cached", [False, True])
def test_one_colored_image_makes_three_channels(tmp_path, where, cached):
    data = {f"{k:03d}x.png": encoded(noise(k)) for k in range(60)}
    data[f"{where}.png"] = encoded(noise(999, mode="RGB"))
    folder = fill(tmp_path / "in", data)
    images = read(folder, cache=tmp_path / "cache" if cached else None)
    assert images.stored.shape == (61, 3, 8, 8)
    assert images.summary.channels == 3
    for k, name in enumerate(images.names):
        expected = np.moveaxis(np.asarray(Image.open(folder / name).convert("RGB")), -1, 0)
        assert images.stored[k].tolist() == expected.tolist()


# -- fingerprint and held-out part ----------------------------------------------------------------


def held(images: Dataset) -> set[bytes]:
    return {row.tobytes() for row in images.digests[images.held_out]}


def test_the_fingerprint_ignores_names_order_size_and_format(tmp_path):
    count = 200
    pictures = [noise(k, (20, 20)) for k in range(count)]
    one = {f"{k:04d}.png": encoded(p) for k, p in enumerate(pictures)}
    two = {f"{count - k:04d}/x.bmp": encoded(p, "BMP") for k, p in enumerate(pictures)}
    first, second = read(fill(tmp_path / "1", one)), read(fill(tmp_path / "2", two))
    resized = read(tmp_path / "1", size=(5, 5))
    assert first.digests.tobytes() == b"".join(pixel_digest(np.asarray(p)) for p in pictures)
    assert first.fingerprint == second.fingerprint == resized.fingerprint
    assert held(first) == held(second) == held(resized)
    assert 3 <= first.held_out.sum() <= 40
    numbers = [int.from_bytes(row.tobytes(), "big") for row in first.digests]
    assert first.held_out.tolist() == [n % 20 == 0 for n in numbers]
    # Other images and copies change the fingerprint, but not on which side an image is.
    fill(tmp_path / "1", {f"z{k}.png": encoded(noise(1000 + k, (9, 9), "RGB")) for k in range(60)})
    more = read(tmp_path / "1")
    assert held(first) == held(more) & {row.tobytes() for row in first.digests}
    fill(tmp_path / "2", {"copy.png": encoded(pictures[0])})
    assert len({first.fingerprint, more.fingerprint, read(tmp_path / "2").fingerprint}) == 3


def test_few_images_hold_nothing_out_and_some_are_always_left_to_train_on(tmp_path):
    images = read(fill(tmp_path, many(1)))
    digests = np.zeros((HELD_OUT_MINIMUM, 16), np.uint8)
    several = digests.copy()
    several[0, -1] = 1
    for rows, expected in (
        (several, [False] + [True] * (HELD_OUT_MINIMUM - 1)),
        (several[:-1], [False] * (HELD_OUT_MINIMUM - 1)),
        (digests, [False] * HELD_OUT_MINIMUM),
    ):
        names = ("x",) * len(rows)
        found = Dataset(images.stored, images.labels, (), names, rows, images.summary)
        assert found.held_out.tolist() == expected


# -- what lies in folders -------------------------------------------------------------------------


def test_odd_names_are_found_in_byte_order(tmp_path):
    names = [b"a.PNG", b"a b.Jpg", b"new\nline.png", b"\xff\xfe.png", "é.png".encode(), b"Z.tiff"]
    for k, name in enumerate(names):
        kind = {b"jpg": "JPEG", b"iff": "TIFF"}.get(name[-3:].lower(), "PNG")
        (tmp_path / os.fsdecode(name)).write_bytes(encoded(noise(k), kind))
    (tmp_path / "bad\n.png").write_bytes(b"")
    images = read(tmp_path)
    assert [os.fsencode(name) for name in images.names] == sorted(names)
    (line,) = images.summary.lines()[1:]
    assert "bad\\n.png" in line
    with pytest.raises(DataError, match=r"^bad\\n\.png: empty file"):
        read(tmp_path, strict=True)


def test_links_are_followed_once(tmp_path):
    folder = fill(tmp_path / "in", {"b/1.png": encoded(noise(1)), "c/1.png": encoded(noise(2))})
    away = fill(tmp_path / "away", {"3.png": encoded(noise(3))})
    (folder / "b" / "loop").symlink_to(folder)
    (folder / "a").symlink_to(folder / "b")  # b keeps its real name, whichever comes first
    (folder / "e").symlink_to(folder / "b")
    (folder / "d").symlink_to(away)
    (folder / "c" / "link.png").symlink_to(folder / "b" / "1.png")
    (folder / "c" / "self.png").symlink_to("self.png")
    (folder / "c" / "gone.png").symlink_to("nowhere.png")
    with within(120):
        images = read(folder)
    assert images.names == ("b/1.png", "c/1.png", "c/link.png", "d/3.png")
    assert images.summary.skipped[reasons.VANISHED] == (1, ("c/gone.png",))
    assert images.summary.skipped[reasons.UNREADABLE] == (1, ("c/self.png",))


def test_a_file_that_becomes_a_fifo_or_vanishes(tmp_path):
    fill(tmp_path, many(3))
    work = read_images(tmp_path, workers=1)
    next(work)  # listed, nothing read yet
    (tmp_path / "000.png").unlink()
    os.mkfifo(tmp_path / "000.png")
    (tmp_path / "001.png").unlink()
    with within(120):
        skipped = finish(work).summary.skipped
    assert skipped == {reasons.IRREGULAR: (1, ("000.png",)), reasons.VANISHED: (1, ("001.png",))}


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path, monkeypatch):
    original = os.scandir

    def scandir(path):
        if path.endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return original(path)

    folder = fill(tmp_path, {"a/1.png": encoded(noise(1)), "a/secret/2.png": encoded(noise(2))})
    monkeypatch.setattr(os, "scandir", scandir)
    images = read(folder)
    assert images.names == ("a/1.png",)
    assert images.summary.skipped == {reasons.UNREADABLE: (1, ("a/secret/",))}
    with pytest.raises(DataError, match="a/secret/: unreadable"):
        read(folder, strict=True)


def test_no_other_program_is_started(tmp_path, monkeypatch):
    mark = tmp_path / "started"
    gs = tmp_path / "bin" / "gs"
    fill(tmp_path, {"bin/gs": f"#!/bin/sh\ntouch {mark}\n".encode()})
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    folder = fill(tmp_path / "in", {"a.png": encoded(noise(1)), "e.png": eps})
    assert read(folder).summary.skipped == {reasons.OTHER_FORMAT: (1, ("e.png",))}
    assert not mark.exists()


def test_run_folders_and_hidden_ones_are_ignored(tmp_path):
    data = encoded(noise(1))
    names = ("a.png", "m.run/previews/1.png", ".git/x.png", "__MACOSX/a.png", "b/._a.png")
    images = read(fill(tmp_path / "x", dict.fromkeys(names, data)))
    assert images.names == ("a.png",)
    assert read(zipped(tmp_path / "x.zip", dict.fromkeys(names, data))).names == ("a.png",)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_manifest_of_samples_lists_the_images(tmp_path, kind):
    manifest = {"format": "diffuse.samples", "images": ["00000.png", "00001.png"]}
    other = {"format": "else", "files": {}}
    data = {f"out/{name}.png": encoded(noise(1)) for name in ("00000", "00001", "grid")}
    data |= {"out/manifest.json": json.dumps(manifest).encode()}
    data |= {"b/grid.png": encoded(noise(2)), "b/manifest.json": json.dumps(other).encode()}
    data |= {"c/grid.png": encoded(noise(2)), "c/manifest.json": b"[" * 100_000}
    source = fill(tmp_path / "x", data) if kind == "folder" else zipped(tmp_path / "x.zip", data)
    assert read(source).names == ("b/grid.png", "c/grid.png", "out/00000.png", "out/00001.png")


# -- zip files ------------------------------------------------------------------------------------


def test_bad_members_are_skipped(tmp_path):
    names = ("good.png", "secret.png", "huge.png", "crc.png", "link.png", "../up.png", "é.png")
    path = zipped(tmp_path / "x.zip", {name: encoded(noise(1)) for name in names})
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        offsets = {info.filename: info.header_offset for info in file.infolist()}
    # The central directory is what zipfile believes.
    secret, huge, link = (raw.rindex(name) - 46 for name in (b"secret", b"huge", b"link"))
    raw[secret + 8] |= 1
    raw[offsets["secret.png"] + 6] |= 1
    raw[huge + 24 : huge + 28] = (2**30).to_bytes(4, "little")
    raw[offsets["crc.png"] + 30 + len("crc.png") + 60] ^= 1
    raw[link + 38 : link + 42] = (0o120777 << 16).to_bytes(4, "little")
    path.write_bytes(raw)
    images = read(path)
    assert images.names == ("good.png", "up.png", "é.png")
    assert {reason: names[0] for reason, (_, names) in images.summary.skipped.items()} == {
        reasons.ENCRYPTED: "secret.png",
        reasons.TOO_LARGE: "huge.png",
        reasons.CORRUPT: "crc.png",
        reasons.IRREGULAR: "link.png",
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.zip"]
    path.write_bytes(raw.replace("é".encode(), b"\xff\xff"))  # said to be UTF-8
    with pytest.raises(DataError, match=r"cannot read the zip file .*x\.zip"):
        read(path)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (zipfile.ZIP_DEFLATED, reasons.CORRUPT),
        (zipfile.ZIP_BZIP2, reasons.COMPRESSION),
        (zipfile.ZIP_LZMA, reasons.COMPRESSION),
    ],
)
def test_a_member_unpacks_to_no_more_than_it_says(tmp_path, method, reason):
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("good.png", encoded(noise(1)), zipfile.ZIP_STORED)
        file.writestr("zeros.png", bytes(2**25))
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"zeros.png") - 46
    raw[at + 24 : at + 28] = (100).to_bytes(4, "little")  # so few, it says
    path.write_bytes(raw)
    tracemalloc.start()
    images = read(path, workers=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert images.names == ("good.png",)
    assert images.summary.skipped == {reason: (1, ("zeros.png",))}
    assert peak < 2**24


# -- threads, events, cache -----------------------------------------------------------------------


def test_progress_is_throttled(tmp_path):
    found = list(read_images(fill(tmp_path, many(300))))
    assert found[0] == Progress("reading images", 0, 300)
    assert found[-1] == Progress("reading images", 300, 300)
    assert len(found) < 100


@pytest.mark.parametrize("how", ["first", "last", "closed", "sync", "full"])
def test_an_error_leaves_neither_threads_nor_files(tmp_path, monkeypatch, how):
    """A bad file, a reader that is closed, or a full disk."""
    before, cache = threading.active_count(), tmp_path / "cache"
    bad = {"first": {"000.png": b""}, "last": {"zzz.png": b""}}.get(how, {})
    work = read_images(fill(tmp_path / "in", {**many(300), **bad}), cache=cache, strict=True)
    if how == "closed":
        next(work)
        work.close()
    elif bad:
        with pytest.raises(DataError, match="empty file"):
            finish(work)
    else:
        full = Mock(side_effect=OSError(28, "No space left on device"))
        seam = (files, "operation", failing("sync", FULL)) if how == "sync" else ()
        monkeypatch.setattr(*(seam or (Store, "append", full)))
        with pytest.raises(OutputError, match="No space left"):
            finish(work)
    assert threading.active_count() == before
    assert not [*cache.rglob("*")]


def test_a_map_equals_memory(tmp_path):
    folder = fill(tmp_path / "in", {**many(50), "bad.png": b""})
    memory, mapped = read(folder), read(folder, cache=tmp_path / "cache")
    assert [isinstance(each.stored, np.memmap) for each in (memory, mapped)] == [False, True]
    assert not mapped.stored.flags.writeable
    assert mapped.stored.tolist() == memory.stored.tolist()
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["pixels.u8"]
    assert (tmp_path / "cache" / "pixels.u8").stat().st_size == 50 * 64
    small = read(folder, cache=tmp_path / "small", map_over=2**30)
    assert not isinstance(small.stored, np.memmap)
    (tmp_path / "packed").mkdir()
    for k in range(8):  # four times as large as its bytes
        np.save(tmp_path / f"packed/{k}.npy", np.full((4, 64, 64), k, np.int8))
    packed = read(tmp_path / "packed", cache=tmp_path / "p", map_over=2**18)
    assert isinstance(packed.stored, np.memmap)


@pytest.mark.parametrize("cached", [False, True])
def test_the_index_round_trips(tmp_path, cached):
    data = {f"{'ab'[k % 2]}/{k}.png": encoded(noise(k)) for k in range(50)}
    folder = fill(tmp_path / "in", data | {"a/bad\n.png": b"", "n.txt": b""})
    (folder / os.fsdecode(b"\xff.png")).write_bytes(encoded(noise(99, (9, 9))))
    cache = tmp_path / "cache"
    images = read(folder, cache=cache if cached else None)
    save_index(images, cache)
    again = open_index(cache)
    assert isinstance(again.stored, np.memmap)
    for name in ("stored", "labels", "digests", "held_out"):
        left, right = getattr(images, name), getattr(again, name)
        assert left.dtype == right.dtype
        assert left.tolist() == right.tolist()
    for name in ("names", "class_names", "summary", "fingerprint", "space"):
        assert getattr(images, name) == getattr(again, name)


def test_an_index_without_its_pixels_is_refused(tmp_path):
    folder, cache = fill(tmp_path / "in", many(5)), tmp_path / "cache"

    with pytest.raises(DataError):
        open_index(cache)
    save_index(read(folder, cache=cache), cache)
    with (cache / "pixels.u8").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="do not match the index"):
        open_index(cache)
    (cache / "index.npz").write_bytes(b"hello")
    with pytest.raises(DataError):
        open_index(cache)
    save_index(read(folder, cache=cache), cache)
    read(folder, cache=cache)  # forgets the index
    with pytest.raises(DataError):
        open_index(cache)


@pytest.mark.parametrize(("count", "said"), [(3, "1 MiB"), (2**14, "48 MiB"), (2**20, "3.0 GiB")])
def test_memory_that_is_not_there_is_said_in_units_that_are_not_0(monkeypatch, count, said):
    monkeypatch.setattr(store.np, "empty", Mock(side_effect=MemoryError))
    with pytest.raises(DataError, match=f"need {said} of memory"):
        Store(None, count, None, 0).start((3, 32, 32), np.dtype("u1"))
