"""From folders and zip files to `Dataset`: what is found, in which order, at which size."""

from __future__ import annotations

import json
import os
import pkgutil
import socket
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_operations import FULL, failing
from image_corpus import BOMB, encoded, fill, noise, read, within, zipped
from PIL import Image

from diffuse_cli.data import Dataset, open_index, read_images, save_index, store
from diffuse_cli.data.samples import HELD_OUT_MINIMUM
from diffuse_cli.data.sources import find_classes, read_subset
from diffuse_cli.data.sources.base import Entry, Source
from diffuse_cli.data.store import Store
from diffuse_cli.data.summary import describe_fit
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.media.image.planes import fit_image as fit
from diffuse_cli.media.image.planes import pixel_digest
from diffuse_cli.system import files
from diffuse_cli.system.errors import DataError, OutputError
from diffuse_cli.system.events import Notice, Progress, finish


def events(source: Path, **options: Any) -> list[Any]:
    return list(read_images(source, **options))


def many(count: int, **options: Any) -> dict[str, bytes]:
    return {f"{k:03d}.png": encoded(noise(k, **options)) for k in range(count)}


def test_pixels_labels_and_names(tmp_path: Path) -> None:
    names = ["b/two.png", "a/x/one.PNG", "b/three.JPeG", "loose.png"]
    kinds = ["PNG", "PNG", "JPEG", "PNG"]
    data = {n: encoded(noise(k), kinds[k]) for k, n in enumerate(names)}
    images = read(fill(tmp_path, {**data, "readme.txt": b"", ".hidden.png": b""}))
    assert images.names == ("a/x/one.PNG", "b/three.JPeG", "b/two.png", "loose.png")
    assert images.class_names == ("a", "b")
    assert images.labels.tolist() == [0, 1, 1, -1]
    assert images.labels.dtype == np.int64
    assert images.stored.dtype == np.uint8
    assert images.stored.shape == (4, 1, 8, 8)
    assert images.stored[2, 0].tolist() == np.asarray(noise(0)).tolist()
    assert (images.space.size, images.space.channels, len(images)) == ((8, 8), 1, 4)
    summary = images.summary
    assert (summary.found, summary.usable, summary.others, summary.unlabelled) == (4, 4, 1, 1)
    assert summary.classes == {"a": 1, "b": 2}


def test_a_subset_follows_no_pattern_of_the_names() -> None:
    class Numbers(Source):
        def read(self, entry: Entry) -> bytes:
            return entry.key.encode()

    entries = [Entry(f"{k}.wav", 1, str(k)) for k in range(600)]
    rows = [int(data) for data in read_subset(Numbers(Path("x")), entries, 256)]
    assert len(rows) == 256
    assert rows == sorted(set(rows))
    for period in (2, 3, 5):
        shares = np.bincount([row % period for row in rows]) / 256
        assert np.abs(shares - 1 / period).max() < 0.12
    assert [*read_subset(Numbers(Path("x")), entries[:9], 256)] == [b"%d" % k for k in range(9)]


def test_common_folders_are_no_classes(tmp_path: Path) -> None:
    data = {f"set/train/{c}/{k}.png": encoded(noise(k)) for k, c in enumerate("abab")}
    assert read(fill(tmp_path, data)).class_names == ("a", "b")
    one = fill(tmp_path / "one", {f"all/{k}.png": encoded(noise(k)) for k in range(3)})
    assert read(one).class_names == ()
    assert read(one).labels.tolist() == [-1] * 3


def test_a_class_without_usable_images_is_none(tmp_path: Path) -> None:
    data = {"a/1.png": encoded(noise(1)), "b/1.png": b"", "c/1.png": encoded(noise(2))}
    images = read(fill(tmp_path, data))
    assert images.class_names == ("a", "c")
    assert images.labels.tolist() == [0, 1]


@pytest.mark.parametrize("labeled", [False, True])
def test_classes_are_in_the_order_of_their_bytes(labeled: bool) -> None:
    names = ("apple", "Bee", "ant", "Zebra", "été")
    files = [f"{name}/{k}.png" for k, name in enumerate(names)]
    entries = [
        Entry(file, 1, file, label=name if labeled else None)
        for file, name in zip(files, names, strict=True)
    ]
    labels, classes = find_classes(files, entries)
    assert classes == ("Bee", "Zebra", "ant", "apple", "été")
    assert labels == [3, 0, 2, 1, 4]


def test_every_reason_is_counted_and_five_are_named(tmp_path: Path) -> None:
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
    assert lines[1].startswith("skipped 7 files, not an image: text0.jpg, text1.jpg,")
    assert lines[1].endswith(", ...")
    assert "skipped 1 file, decompression bomb: bomb.png" in lines
    json.dumps(images.summary.to_dict())


def test_strict_ends_at_the_first_bad_file(tmp_path: Path) -> None:
    fill(tmp_path, {**many(3), "001.png": b"hello", "002.png": b""})
    with pytest.raises(DataError, match=r"001\.png: not an image") as caught:
        read(tmp_path, strict=True)
    assert caught.value.exit_code == 3


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
    "where", ["data.sources.folder.Folder.read", "media.image.planes.pixel_digest"]
)
def test_whatever_is_raised_for_a_file_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: type[Exception], reason: str
) -> None:
    module, _, name = f"diffuse_cli.{where}".rpartition(".")
    owner = pkgutil.resolve_name(module)
    original, calls = getattr(owner, name), [0]

    def fail(*arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            raise error
        return original(*arguments)

    monkeypatch.setattr(owner, name, fail)
    images = read(fill(tmp_path, many(3)), workers=1)
    assert images.names == ("000.png", "002.png")
    assert images.summary.skipped == {reason: (1, ("001.png",))}


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (fill(tmp_path, many(2)) / "huge.png").open("wb") as file:
        file.truncate(reasons.LARGEST_FILE + 1)
    original, most = os.read, []
    monkeypatch.setattr(os, "read", lambda file, size: most.append(size) or original(file, size))
    assert read(tmp_path, workers=1).summary.skipped == {reasons.TOO_LARGE: (1, ("huge.png",))}
    assert max(most) < 2**20


def test_a_file_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system may give less than is asked for."""
    folder = fill(tmp_path, many(3))
    expected, original = read(folder), os.read
    monkeypatch.setattr(os, "read", lambda file, size: original(file, min(size, 7)))
    assert read(folder, workers=1).fingerprint == expected.fingerprint


def test_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images in"):
        read(tmp_path)
    fill(tmp_path, {"a.png": b"", "b.png": b"x", "c.png": b"y"})
    with pytest.raises(DataError, match="2 not an image, 1 empty file"):
        read(tmp_path)


def test_no_such_source(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": encoded(noise(1)), "bad.zip": b"PK\5\6"})
    os.mkfifo(tmp_path / "fifo")
    cases = {
        "none": "no such file or folder",
        "a.png": "neither",
        "a.png/b": "no such",
        "fifo": "neither",
    }
    cases["bad.zip"] = "neither"
    for name, words in cases.items():
        with pytest.raises(DataError, match=words) as caught:
            read(tmp_path / name)
        assert caught.value.hint


# -- sizes and channels ---------------------------------------------------------------------------


def notices(found: list[Any]) -> list[str]:
    return [event.text for event in found if isinstance(event, Notice)]


def test_one_small_size_is_kept(tmp_path: Path) -> None:
    fill(tmp_path, many(5, size=(48, 64)))
    assert read(tmp_path).space.size == (64, 48)
    assert notices(events(tmp_path)) == []


def test_one_large_size_becomes_64(tmp_path: Path) -> None:
    fill(tmp_path, many(2, size=(65, 64)))
    assert read(tmp_path).space.size == (64, 64)
    (text,) = notices(events(tmp_path))
    assert (
        "all images are 64 high x 65 wide: resized to 64x64, cropped at the center by up to 2 %; "
        "pass --size" in text
    )


@pytest.mark.parametrize(
    ("sizes", "size", "percent"),
    [
        ([(1920, 1080)], (64, 64), 44),
        ([(1080, 1920), (64, 64)], (64, 64), 44),
        ([(1920, 1080)], (36, 64), 0),
        ([(333, 333), (1000, 1000)], (48, 48), 0),
        ([(100, 50, 50)], (10, 10, 10), 50),
        ([(44,)], (16,), 0),
    ],
)
def test_what_is_cropped_is_said(
    sizes: list[tuple[int, ...]], size: tuple[int, ...], percent: int
) -> None:
    expected = f", cropped at the center by up to {percent} %" if percent else ""
    assert describe_fit(sizes, size) == expected


@pytest.mark.parametrize("last", [(30, 28), (200, 100)])
@pytest.mark.parametrize("where", ["000", "zzz"])
@pytest.mark.parametrize("cached", [False, True])
def test_several_sizes_become_64(tmp_path: Path, last: Any, where: str, cached: bool) -> None:
    data = {f"{k:03d}x.png": encoded(noise(k, (28, 28))) for k in range(200)}
    data[f"{where}.png"] = encoded(noise(999, last))
    folder = fill(tmp_path / "in", data)
    images = read(folder, cache=tmp_path / "cache" if cached else None)
    assert images.stored.shape == (201, 1, 64, 64)
    for k, name in enumerate(images.names):
        expected = fit(Image.open(folder / name), (64, 64))
        assert images.stored[k, 0].tolist() == np.asarray(expected).tolist()
    (text,) = notices(events(folder))
    assert "2 sizes from 28x28 to" in text
    assert "--size" in text


def test_a_typed_size(tmp_path: Path) -> None:
    fill(tmp_path, {"a.png": encoded(noise(1, (40, 20))), "b.png": encoded(noise(2, (16, 12)))})
    images = read(tmp_path, size=(12, 16))
    assert images.space.size == (12, 16)
    assert images.stored[1, 0].tolist() == np.asarray(noise(2, (16, 12))).tolist()
    assert notices(events(tmp_path, size=(12, 16))) == []


@pytest.mark.parametrize("where", ["000", "zzz"])
@pytest.mark.parametrize("cached", [False, True])
def test_one_colored_image_makes_three_channels(tmp_path: Path, where: str, cached: bool) -> None:
    data = {f"{k:03d}x.png": encoded(noise(k)) for k in range(200)}
    data[f"{where}.png"] = encoded(noise(999, mode="RGB"))
    folder = fill(tmp_path / "in", data)
    images = read(folder, cache=tmp_path / "cache" if cached else None)
    assert images.stored.shape == (201, 3, 8, 8)
    assert images.summary.channels == 3
    for k, name in enumerate(images.names):
        expected = np.moveaxis(np.asarray(Image.open(folder / name).convert("RGB")), -1, 0)
        assert images.stored[k].tolist() == expected.tolist()


def test_forced_channels(tmp_path: Path) -> None:
    color = noise(1, mode="RGB")
    fill(tmp_path, {"a.png": encoded(color), "b.png": encoded(noise(2))})
    grey = read(tmp_path, channels=1)
    assert grey.stored[0, 0].tolist() == np.asarray(color.convert("L")).tolist()
    assert grey.space.channels == 1
    assert grey.fingerprint == read(tmp_path).fingerprint
    (tmp_path / "a.png").unlink()
    assert read(tmp_path, channels=3).space.channels == 3


# -- fingerprint and held-out part ----------------------------------------------------------------


def held(images: Dataset) -> set[bytes]:
    return {row.tobytes() for row in images.digests[images.held_out]}


def test_the_fingerprint_ignores_names_order_size_and_format(tmp_path: Path) -> None:
    count = 300
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


def test_the_split_of_an_image_ignores_its_neighbors(tmp_path: Path) -> None:
    folder = fill(tmp_path, many(120))
    before = read(folder)
    fill(folder, {f"z{k}.png": encoded(noise(1000 + k, (20, 20), "RGB")) for k in range(60)})
    after = read(folder)
    assert held(before) == held(after) & {row.tobytes() for row in before.digests}
    assert before.fingerprint != after.fingerprint


def test_the_fingerprint_counts_copies(tmp_path: Path) -> None:
    folder = fill(tmp_path, many(2))
    before = read(folder).fingerprint
    fill(folder, {"copy.png": encoded(noise(0))})
    assert read(folder).fingerprint != before


def with_digests(tmp_path: Path, digests: np.ndarray) -> Dataset:
    images = read(fill(tmp_path, many(1)))
    names = ("x",) * len(digests)
    return Dataset(images.stored, images.labels, (), names, digests, images.summary)


def test_few_images_hold_nothing_out(tmp_path: Path) -> None:
    digests = np.zeros((HELD_OUT_MINIMUM, 16), np.uint8)
    digests[0, -1] = 1
    enough = with_digests(tmp_path, digests).held_out
    assert enough.tolist() == [False] + [True] * (HELD_OUT_MINIMUM - 1)
    few = with_digests(tmp_path, digests[:-1])
    assert len(few) == HELD_OUT_MINIMUM - 1
    assert not few.held_out.any()


def test_something_is_always_left_to_train_on(tmp_path: Path) -> None:
    copies = np.zeros((HELD_OUT_MINIMUM, 16), np.uint8)
    assert not with_digests(tmp_path, copies).held_out.any()


# -- what lies in folders -------------------------------------------------------------------------


def test_odd_names_are_found_in_byte_order(tmp_path: Path) -> None:
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


def test_same_base_names_are_different_images(tmp_path: Path) -> None:
    folder = fill(tmp_path, {f"{c}/1.png": encoded(noise(k)) for k, c in enumerate("abc")})
    assert len(read(folder)) == 3


def test_links_are_followed_once(tmp_path: Path) -> None:
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


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """In a process of its own, under a timeout: opening a FIFO would wait for ever."""
    fill(tmp_path, {"good.png": encoded(noise(1))})
    os.mkfifo(tmp_path / "fifo.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.png"))
        code = """if True:
            import sys
            from diffuse_cli.data import read_images
            from diffuse_cli.system.events import finish
            print(finish(read_images(sys.argv[1])).summary.skipped)
        """
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120
        )
    assert done.stderr == ""
    assert "(3, ('device.png', 'fifo.png', 'socket.png'))" in done.stdout


def test_a_file_that_becomes_a_fifo_or_vanishes(tmp_path: Path) -> None:
    fill(tmp_path, many(3))
    work = read_images(tmp_path, workers=1)
    next(work)  # listed, nothing read yet
    (tmp_path / "000.png").unlink()
    os.mkfifo(tmp_path / "000.png")
    (tmp_path / "001.png").unlink()
    with within(120):
        skipped = finish(work).summary.skipped
    assert skipped == {
        reasons.IRREGULAR: (1, ("000.png",)),
        reasons.VANISHED: (1, ("001.png",)),
    }


def test_a_folder_that_cannot_be_listed_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.scandir

    def scandir(path: str) -> Any:
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


def test_no_other_program_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "started"
    gs = tmp_path / "bin" / "gs"
    fill(tmp_path, {"bin/gs": f"#!/bin/sh\ntouch {mark}\n".encode()})
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{gs.parent}:{os.environ['PATH']}")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    folder = fill(tmp_path / "in", {"a.png": encoded(noise(1)), "e.png": eps})
    assert read(folder).summary.skipped == {reasons.OTHER_FORMAT: (1, ("e.png",))}
    assert not mark.exists()


def test_run_folders_and_hidden_ones_are_ignored(tmp_path: Path) -> None:
    data = encoded(noise(1))
    names = ("a.png", "m.run/previews/1.png", ".git/x.png", "__MACOSX/a.png", "b/._a.png")
    images = read(fill(tmp_path / "x", dict.fromkeys(names, data)))
    assert images.names == ("a.png",)
    assert read(zipped(tmp_path / "x.zip", dict.fromkeys(names, data))).names == ("a.png",)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_manifest_of_samples_lists_the_images(tmp_path: Path, kind: str) -> None:
    manifest = {"format": "diffuse.samples", "images": ["00000.png", "00001.png"]}
    other = {"format": "else", "files": {}}
    data = {f"out/{name}.png": encoded(noise(1)) for name in ("00000", "00001", "grid")}
    data |= {"out/manifest.json": json.dumps(manifest).encode()}
    data |= {"b/grid.png": encoded(noise(2)), "b/manifest.json": json.dumps(other).encode()}
    data |= {"c/grid.png": encoded(noise(2)), "c/manifest.json": b"[" * 100_000}
    source = fill(tmp_path / "x", data) if kind == "folder" else zipped(tmp_path / "x.zip", data)
    assert read(source).names == ("b/grid.png", "c/grid.png", "out/00000.png", "out/00001.png")


# -- zip files ------------------------------------------------------------------------------------


def test_a_zip_equals_its_folder(tmp_path: Path) -> None:
    data = {f"{'ab'[k % 2]}/{k}.png": encoded(noise(k)) for k in range(100)}
    data |= {"a/é.png": encoded(noise(200)), "a/bad.png": b"", "b/notes.txt": b""}
    folder, packed = read(fill(tmp_path / "x", data)), read(zipped(tmp_path / "x.zip", data))
    assert folder.fingerprint == packed.fingerprint
    for name in ("stored", "labels", "digests", "held_out"):
        assert getattr(folder, name).tolist() == getattr(packed, name).tolist()
    assert (folder.names, folder.class_names) == (packed.names, packed.class_names)
    left, right = folder.summary.to_dict(), packed.summary.to_dict()
    assert left | {"source": ""} == right | {"source": ""}


def test_bad_members_are_skipped(tmp_path: Path) -> None:
    names = ("good.png", "secret.png", "huge.png", "crc.png", "link.png", "../up.png")
    path = zipped(tmp_path / "x.zip", {name: encoded(noise(1)) for name in names})
    raw = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as file:
        offsets = {info.filename: info.header_offset for info in file.infolist()}
    for name in names:  # the central directory is what zipfile believes
        at = raw.rindex(name.encode()) - 46
        local = offsets[name]
        if name == "secret.png":
            raw[at + 8] |= 1
            raw[local + 6] |= 1
        elif name == "huge.png":
            raw[at + 24 : at + 28] = (2**30).to_bytes(4, "little")
        elif name == "crc.png":
            raw[local + 30 + len(name) + 60] ^= 1
        elif name == "link.png":
            raw[at + 38 : at + 42] = (0o120777 << 16).to_bytes(4, "little")
    path.write_bytes(raw)
    images = read(path)
    assert images.names == ("good.png", "up.png")
    assert {reason: names[0] for reason, (_, names) in images.summary.skipped.items()} == {
        reasons.ENCRYPTED: "secret.png",
        reasons.TOO_LARGE: "huge.png",
        reasons.CORRUPT: "crc.png",
        reasons.IRREGULAR: "link.png",
    }
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.zip"]


def lying(path: Path, method: int, size: int, claim: int) -> Path:
    """A zip with a good image, and with zeros that it says are fewer."""
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("good.png", encoded(noise(1)), zipfile.ZIP_STORED)
        with file.open("zeros.png", "w") as member:
            for _ in range(size // 2**20):
                member.write(bytes(2**20))
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"zeros.png") - 46
    raw[at + 24 : at + 28] = claim.to_bytes(4, "little")
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (zipfile.ZIP_DEFLATED, reasons.CORRUPT),
        (zipfile.ZIP_BZIP2, reasons.COMPRESSION),
        (zipfile.ZIP_LZMA, reasons.COMPRESSION),
    ],
)
def test_a_member_unpacks_to_no_more_than_it_says(tmp_path: Path, method: int, reason: str) -> None:
    path = lying(tmp_path / "x.zip", method, 2**25, claim=100)
    tracemalloc.start()
    images = read(path, workers=1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert images.names == ("good.png",)
    assert images.summary.skipped == {reason: (1, ("zeros.png",))}
    assert peak < 2**24


# -- threads, events, cache -----------------------------------------------------------------------


def test_the_result_ignores_the_number_of_threads(tmp_path: Path) -> None:
    folder = fill(tmp_path, many(300))
    one, four = read(folder, workers=1), read(folder, workers=4)
    assert one.names == four.names
    assert one.stored.tolist() == four.stored.tolist()


def test_progress_is_throttled(tmp_path: Path) -> None:
    found = events(fill(tmp_path, many(300)))
    assert found[0] == Progress("reading images", 0, 300)
    assert found[-1] == Progress("reading images", 300, 300)
    assert len(found) < 100


@pytest.mark.parametrize("bad", ["000.png", "zzz.png"])
def test_an_error_leaves_neither_threads_nor_files(tmp_path: Path, bad: str) -> None:
    before = threading.active_count()
    folder = fill(tmp_path / "in", {**many(1000), bad: b""})
    with pytest.raises(DataError):
        read(folder, cache=tmp_path / "cache", strict=True)
    assert threading.active_count() == before
    assert not list((tmp_path / "cache").glob(".*"))
    assert not list((tmp_path / "cache").glob("*"))


def test_closing_early_ends_the_threads(tmp_path: Path) -> None:
    before = threading.active_count()
    fill(tmp_path / "in", many(300))
    work = read_images(tmp_path / "in", cache=tmp_path / "cache")
    next(work)
    work.close()
    assert threading.active_count() == before
    assert not list((tmp_path / "cache").glob("*"))


def test_a_map_equals_memory(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", {**many(50), "bad.png": b""})
    memory, mapped = read(folder), read(folder, cache=tmp_path / "cache")
    assert isinstance(mapped.stored, np.memmap)
    assert not mapped.stored.flags.writeable
    assert not isinstance(memory.stored, np.memmap)
    assert mapped.stored.tolist() == memory.stored.tolist()
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["pixels.u8"]
    assert (tmp_path / "cache" / "pixels.u8").stat().st_size == 50 * 64
    small = read(folder, cache=tmp_path / "small", map_over=2**30)
    packed = tmp_path / "packed"
    packed.mkdir()
    for k in range(8):  # four times as large as its bytes
        np.save(packed / f"{k}.npy", np.full((4, 64, 64), k, np.int8))
    assert isinstance(read(packed, cache=tmp_path / "p", map_over=2**18).stored, np.memmap)
    assert not isinstance(small.stored, np.memmap)


@pytest.mark.parametrize("cached", [False, True])
def test_the_index_round_trips(tmp_path: Path, cached: bool) -> None:
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


def test_an_index_without_its_pixels_is_refused(tmp_path: Path) -> None:
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


def test_reading_again_forgets_the_index(tmp_path: Path) -> None:
    folder, cache = fill(tmp_path / "in", many(5)), tmp_path / "cache"
    save_index(read(folder, cache=cache), cache)
    read(folder, cache=cache)
    with pytest.raises(DataError):
        open_index(cache)


def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "in", many(5))
    monkeypatch.setattr(files, "operation", failing("sync", FULL))
    with pytest.raises(OutputError, match="No space left"):
        read(folder, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_disk_that_fills_up_is_an_output_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Store, pixels: object) -> None:
        raise OSError(28, "No space left on device")

    folder = fill(tmp_path / "in", many(5))
    monkeypatch.setattr(Store, "append", refuse)
    with pytest.raises(OutputError, match="No space left"):
        read(folder, cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_torch_is_not_imported() -> None:
    code = "import sys, diffuse_cli.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(("count", "said"), [(3, "1 MiB"), (2**14, "48 MiB"), (2**20, "3.0 GiB")])
def test_memory_that_is_not_there_is_said_in_units_that_are_not_0(monkeypatch, count, said):
    def empty(*_):
        raise MemoryError

    monkeypatch.setattr(store.np, "empty", empty)
    with pytest.raises(DataError, match=f"need {said} of memory"):
        Store(None, count, (3, 32, 32), np.dtype("u1"))
