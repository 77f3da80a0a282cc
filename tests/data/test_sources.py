"""Every source gives the same samples of the same files, and names what it cannot give."""

import contextlib
import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_corpus import encoded, fill, noise, read, zipped

from diffuse_cli.data import decoding_threads, is_images, read_cells, read_images
from diffuse_cli.data.sources import SOURCES, base, find_source_kind, open_source, parquet, tar
from diffuse_cli.data.sources.base import plain_name
from diffuse_cli.media import file_errors as reasons
from diffuse_cli.system.errors import INSTALL, DataError
from diffuse_cli.system.events import finish

Files = Mapping[str, bytes]


def tarred(path, files, form=tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sharded(folder, files, count=3):
    """Shards that the files are dealt to in turn."""
    folder.mkdir(parents=True)
    for k in range(count):
        tarred(folder / f"part-{k:03d}.tar", dict([*files.items()][k::count]))
    return folder


def corpus(count: int = 60) -> dict[str, bytes]:
    names = [f"{'ab'[k % 2]}/{k:03d}.png" for k in range(count)]
    return {name: encoded(noise(k)) for k, name in enumerate(sorted(names))}


def parquet_file(path, files, rows=25, **columns):
    """A table as Hugging Face's image folders become one; a class is the first folder."""
    names = sorted({name.partition("/")[0] for name in files})
    label = {"_type": "ClassLabel", "names": names}
    features = {"image": {"_type": "Image"}, "label": label}
    image = [{"bytes": data, "path": name} for name, data in files.items()]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    labels = [names.index(name.partition("/")[0]) for name in files]
    found = pa.table({"label": pa.array(labels), "image": pa.array(image, kind), **columns})
    said = json.dumps({"info": {"features": features}})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(found.replace_schema_metadata({"huggingface": said}), path, row_group_size=rows)
    return path


def parquet_files(folder, files, count=3):
    """Shards in the order of the files."""
    each = -(-len(files) // count)
    for k in range(count):
        part = dict([*files.items()][k * each : (k + 1) * each])
        parquet_file(folder / f"train-{k:05d}-of-{count:05d}.parquet", part, 7)
    return folder


MAKERS = {
    "folder": lambda path, files: fill(path / "folder", dict(files)),
    "zip": lambda path, files: zipped(path / "files.zip", dict(files)),
    "tar": lambda path, files: tarred(path / "files.tar", files),
    "shards": lambda path, files: sharded(path / "shards", files),
    "a pattern": lambda path, files: sharded(path / "some", files) / "part-{000..002}.tar",
    "parquet": lambda path, files: parquet_file(path / "files.parquet", files),
    "parquets": lambda path, files: parquet_files(path / "data", files),
}
"""The same files, as each source has them."""


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "folder"])
def test_every_source_gives_what_a_folder_gives(tmp_path, name):
    files = corpus()
    expected, found = (read(MAKERS[kind](tmp_path, files)) for kind in ("folder", name))
    assert found.fingerprint == expected.fingerprint
    assert found.class_names == expected.class_names == ("a", "b")
    assert found.class_fingerprints == expected.class_fingerprints
    for each in ("stored", "labels", "digests", "held_out"):
        assert np.array_equal(getattr(found, each), getattr(expected, each)), each
    assert found.summary.skipped == {}
    if name == "parquets":
        assert found.names[0] == "train-00000-of-00003/00000000.png"
        assert found.names[-1] == "train-00002-of-00003/00000019.png"


@pytest.mark.parametrize("name", ["folder", "zip", "tar", "shards"])
def test_files_of_another_medium_do_not_change_the_classes(tmp_path, name):
    files = {f"set/{name}": data for name, data in corpus(4).items()} | {"mean.npy": b""}
    found = read(MAKERS[name](tmp_path, files))
    assert (found.class_names, found.labels.tolist()) == (("a", "b"), [0, 0, 1, 1])


def test_every_source_is_made_here():
    """A new one has to be among `MAKERS`; the hub is served in test_hub.py, batches are written
    in test_packing.py, arrays, in memory or in a .npy file, in test_in_memory.py, and files of
    science in test_netcdf.py and test_scanners.py."""
    elsewhere = {"hub-dataset", "in-memory", "npy", "npz-batch", "netcdf", "series", "slices"}
    assert {*SOURCES} - elsewhere <= {*MAKERS}


@pytest.mark.parametrize(
    ("package", "extra", "name", "start"),
    [
        ("netCDF4", "science", "x.nc", b""),
        ("nibabel", "science", "x/x.nii", bytes(4) + b"n+2\0"),
        ("pydicom", "science", "x/x.dcm", bytes(128) + b"DICM"),
        ("pyarrow.parquet", "parquet", "x.parquet", b""),
    ],
)
def test_the_extra_of_a_format_is_named(tmp_path, monkeypatch, package, extra, name, start):
    fill(tmp_path, {name: start})
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name.partition("/")[0])
    assert caught.value.hint == f"Install it: {INSTALL.format(extra=extra)}"
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", list(MAKERS))
def test_threads_read_the_same(tmp_path, name, monkeypatch):
    path = MAKERS[name](tmp_path, {**corpus(), "a/bad.png": b"no"})
    one = read(path, workers=1)
    assert {reason: count for reason, (count, _) in one.summary.skipped.items()} == {
        reasons.NOT_AN_IMAGE: 1
    }
    monkeypatch.setattr(decoding_threads, "FILES_A_CHUNK", 8)
    many = read(path, workers=3)
    assert np.array_equal(many.stored, one.stored)
    assert (many.names, many.summary) == (one.names, one.summary)


# -- tar ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_are_read_as_tarfile_reads_them(tmp_path, form):
    long = "deep/" * 30 + "é" * 40 + ".png"
    names = ["a.png", "b/c.png", "../up.png", "/root.png", "empty.png"]
    files = {name: os.urandom(k * 300) for k, name in enumerate(reversed(names))}
    if form != tarfile.USTAR_FORMAT:
        files |= {long: b"12345", "x" * 300 + ".png": b"1", "caf\udce9.png": b"raw"}
    path = tarred(tmp_path / "x.tar", files, form)
    members = {}
    assert tar.list_members(path, members) == ""
    with tarfile.open(path) as archive:
        keys = {plain_name(m.name): f"{m.offset_data}:{m.size}:{path}" for m in archive}
    assert [(name, member.key) for name, member in members.items()] == [*keys.items()]
    with contextlib.closing(open_source(path)) as source:
        found = {e.name: source.read(e) for e in source.entries()}
    assert found == {plain_name(name): data for name, data in files.items()}


def test_the_last_of_a_name_counts_and_hidden_members_do_not(tmp_path):
    names = ("a.png", ".a.png", "__MACOSX/b.png", "m.run/c.png", "./a.png")
    found = read(tarred(tmp_path / "x.tar", {n: encoded(noise(k)) for k, n in enumerate(names)}))
    assert found.names == ("a.png",)
    assert found.stored[0, 0].tolist() == np.asarray(noise(4)).tolist()


def test_members_that_are_no_files_or_too_large_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(reasons, "LARGEST_FILE", 1000)
    kinds = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE}
    kinds |= {"device": tarfile.CHRTYPE, "sparse": tarfile.GNUTYPE_SPARSE}
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        for name, kind in kinds.items():
            info = tarfile.TarInfo(f"{name}.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name, data in (("good.png", encoded(noise(1))), ("large.png", bytes(2000))):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    found = read(tmp_path / "x.tar")
    assert found.names == ("good.png",)
    names = tuple(sorted(f"{name}.png" for name in kinds))
    skipped = {reasons.IRREGULAR: (5, names), reasons.TOO_LARGE: (1, ("large.png",))}
    assert found.summary.skipped == skipped


def sized(data, size):
    """A header that claims another size, with the right checksum."""
    head = data[:124] + size + data[136:148] + b" " * 8 + data[156:512]
    return head[:148] + b"%06o\0 " % sum(head) + head[156:] + data[512:]


DAMAGE = {
    "cut in a member": lambda data: data[:600],
    "cut in a header": lambda data: data[:300],
    "a wrong checksum": lambda data: data[:5] + b"?" + data[6:],
    "a negative size": lambda data: sized(data, b"\xff" * 12),
    "a huge size": lambda data: sized(data, b"\x80" + b"\x7f" * 11),
    "a size that is no number": lambda data: sized(data, b"size size si"),
    "a name of 8 GiB": lambda data: sized(data[:156] + b"L" + data[157:], b"77777777777\0"),
    "no tar at all": lambda data: os.urandom(2000),
}


@pytest.mark.parametrize("name", list(DAMAGE))
def test_a_damaged_shard_is_named_and_the_others_are_read(tmp_path, name):
    folder = sharded(tmp_path / "x", corpus(12))
    path = folder / "part-001.tar"
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    found = read(folder)
    assert len(found) == 8
    assert found.class_names == ("a", "b")
    assert found.summary.skipped == {reasons.CORRUPT: (1, ("part-001.tar/",))}
    with pytest.raises(DataError, match=r"part-001\.tar/: truncated or corrupt"):
        read(folder, strict=True)


def test_an_empty_shard_and_one_that_is_lost(tmp_path):
    folder = sharded(tmp_path / "x", corpus(12))
    (folder / "part-001.tar").write_bytes(b"")
    assert read(folder).summary.skipped == {reasons.EMPTY: (1, ("part-001.tar/",))}
    work = read_images(folder, workers=1)
    next(work)  # listed
    (folder / "part-000.tar").unlink()
    data = (folder / "part-002.tar").read_bytes()
    (folder / "part-002.tar").write_bytes(data[:800])
    skipped = {reason: count for reason, (count, _) in finish(work).summary.skipped.items()}
    assert skipped == {reasons.VANISHED: 4, reasons.CORRUPT: 3, reasons.EMPTY: 1}


def test_a_shard_that_is_written_out_must_be_there(tmp_path):
    sharded(tmp_path / "x", corpus(6), 2)
    assert len(read(tmp_path / "x" / "part-00*.tar")) == 6
    assert len(read(tmp_path / "x" / "part-{000,001}.tar")) == 6
    for missing in ("x/part-{000..002}.tar", "x/part-002.tar", "{0..9}.tar", "none/"):
        with pytest.raises(DataError, match="no such file"):
            open_source(tmp_path / missing)


@pytest.mark.parametrize(
    ("folders", "pattern", "shards"),
    [(("x/s0.tar", "x/s1.tar"), "x", ("s0", "s1")),
     (("x/0.tar", "y/z/0.tar"), "{x,y/z}/0.tar", ("x_0", "y_z_0"))],
)  # fmt: skip
def test_shards_with_equal_names_are_told_apart(tmp_path, folders, pattern, shards):
    for k, path in enumerate(folders):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        tarred(tmp_path / path, {f"{c}/0.png": encoded(noise(10 * k + ord(c))) for c in "ab"})
    found = read(f"{tmp_path}/{pattern}")
    assert found.names == tuple(f"{shard}/{c}/0.png" for shard in shards for c in "ab")
    assert found.class_names == ("a", "b")
    assert found.labels.tolist() == [0, 1, 0, 1]


def test_rows_of_shards_of_equal_names_keep_their_own_classes(tmp_path):
    for k, folder in enumerate("xy"):
        files = {f"{folder}/{n}.png": encoded(noise(10 * k + n)) for n in range(3)}
        parquet_file(tmp_path / folder / "0.parquet", files)
    found = read(f"{tmp_path}/{{x,y}}/0.parquet")
    assert found.names[::3] == ("x_0/00000000.png", "y_0/00000000.png")
    assert found.class_names == ("x", "y")
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_more_shards_than_stay_open(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "MOST_OPEN", 2)
    before = len([*Path("/proc/self/fd").iterdir()])
    assert len(read(sharded(tmp_path / "x", corpus(), 7), workers=3)) == 60
    assert len([*Path("/proc/self/fd").iterdir()]) == before


@pytest.mark.parametrize("other", ["a.png", "more/b.tar", "c.NPY"])
def test_a_folder_of_other_things_is_no_folder_of_shards(tmp_path, other):
    sharded(tmp_path / "x", corpus(6))
    fill(tmp_path / "x", {"readme.md": b"", ".hidden/a.png": b""})
    assert find_source_kind(tmp_path / "x") == "tar"
    fill(tmp_path / "x", {other: b""})
    assert find_source_kind(tmp_path / "x") == "folder"


def web(columns: bool = True) -> dict[str, bytes]:
    """Samples as WebDataset has them."""
    files = {}
    for k in range(6):
        files[f"d/{k}.jpg"] = encoded(noise(k), "JPEG")
        files[f"d/{k}.mask.png"] = encoded(noise(90 + k))
        files[f"d/{k}.cls"] = b"%d\n" % (k % 3)
        if columns:
            files[f"d/{k}.json"] = json.dumps({"age": k / 2, "site": "xy"[k % 2]}).encode()
    return files


def test_a_class_and_columns_beside_a_sample(tmp_path):
    folder = sharded(tmp_path / "x", web(), 2)
    found = read(folder)
    assert found.names == tuple(f"d/{k}.jpg" for k in range(6))
    assert (found.class_names, found.labels.tolist()) == (("0", "1", "2"), [0, 1, 2] * 2)
    assert (found.summary.others, found.summary.tables) == (0, ("*.json",))
    cells = read_cells(folder, found.names)
    assert [cell and cell.number for cell in cells.columns["age"]] == [k / 2 for k in range(6)]
    assert [cell and cell.text for cell in cells.columns["site"]] == list("xyxyxy")
    bare = tarred(tmp_path / "bare.tar", web(columns=False))
    with pytest.raises(DataError, match=r"no metadata\.csv"):
        read_cells(bare, read(bare).names)


def test_a_label_in_json_is_the_class(tmp_path):
    labels = ["cat", 3, None, True, ["x"], "dog", False]
    files = {f"{k}.png": encoded(noise(k)) for k in range(8)}
    files |= {f"{k}.json": json.dumps({"label": label}).encode() for k, label in enumerate(labels)}
    found = read(tarred(tmp_path / "x.tar", files | {"7.json": b"{", "alone.json": b"{}"}))
    assert found.class_names == ("3", "cat", "dog")
    assert found.labels.tolist() == [1, 0, -1, -1, -1, 2, -1, -1]
    assert found.summary.others == 1


@pytest.mark.parametrize("data", [b"{", b"[1]", b"\xff", b"[" * 100_000, bytes(2**20 + 1)])
def test_broken_columns_are_one_line_with_their_place(tmp_path, data):
    path = tarred(tmp_path / "x.tar", {"a.png": encoded(noise(1)), "a.json": data})
    with pytest.raises(DataError, match=r"a\.json") as caught:
        read_cells(path, ["a.png"])
    assert "\n" not in str(caught.value)
    assert read(path).class_names == ()


def test_a_table_in_a_tar(tmp_path):
    files = {**corpus(4), "a/metadata.csv": b"file_name,age\n000.png,7\n"}
    path = tarred(tmp_path / "x.tar", files)
    found = read(path)
    assert found.summary.tables == ("a/metadata.csv",)
    assert [c and c.number for c in read_cells(path, found.names).columns["age"]][:2] == [7, None]


def test_a_compressed_tar_says_what_to_do(tmp_path):
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("a.png"))
    assert not is_images(tmp_path / "x.tar.gz")
    with pytest.raises(DataError, match=r"is a gzip archive, not images\. Unpack it"):
        open_source(tmp_path / "x.tar.gz")
    shutil.copy(tmp_path / "x.tar.gz", tmp_path / "y.tar")
    with pytest.raises(DataError, match=r"y\.tar is a gzip archive"):
        open_source(tmp_path / "y.tar")


# -- parquet and saved datasets -------------------------------------------------------------------


def table(**columns):
    """Four plain images, without anything of Hugging Face's."""
    return pa.table({"jpg": pa.array([encoded(noise(k), "JPEG") for k in range(4)]), **columns})


@pytest.mark.parametrize(
    ("label", "names", "labels"),
    [
        (pa.array([3, 10, None, 3]), ("10", "3"), [1, 0, -1, 1]),
        (pa.array(["x", None, "y", "x"]), ("x", "y"), [0, -1, 1, 0]),
        (pa.array(["x", "y", "y", "x"]).dictionary_encode(), ("x", "y"), [0, 1, 1, 0]),
        (pa.array([0.5, 1, 2, 3]), (), [-1] * 4),
    ],
)
def test_plain_columns_are_classes_too(tmp_path, label, names, labels):
    pq.write_table(table(label=label), tmp_path / "x.parquet")
    found = read(tmp_path / "x.parquet")
    assert (found.class_names, found.labels.tolist()) == (names, labels)
    assert found.names[1] == "00000001.jpg"


def test_other_columns_are_told(tmp_path):
    files = corpus(4)
    when = pa.array([1, 2, 3, 4], pa.timestamp("s"))
    path = parquet_file(tmp_path / "x.parquet", files, age=[1, 2.5, None, 4], when=when,
                        nested=[{"x": 1}] * 4,
                        style=[[1, 2], [3, 4.5], None, [5, None]])  # fmt: skip
    found = read(path)
    assert found.summary.tables == ("x.parquet",)
    cells = read_cells(path, found.names, ["age", "label"])
    assert [*cells.columns] == ["label", "age", "when", "style"]
    assert [c and c.number for c in cells.columns["age"]] == [1, 2.5, None, 4]
    assert [c and c.text for c in cells.columns["label"]] == ["a", "a", "b", "b"]
    assert cells.columns["age"][1].place == "x.parquet, line 2"
    every = read_cells(path, found.names).columns
    assert every["when"][0].text == "1970-01-01 00:00:01"
    assert [c and [c.text, *c.vector[:1]] for c in every["style"]] == [
        ["[1.0, 2.0]", 1], ["[3.0, 4.5]", 3], None, ["[5.0, NaN]", 5]
    ]  # fmt: skip


def test_a_group_is_decoded_once_in_any_order(tmp_path, monkeypatch):
    files, begun, original = corpus(), [], pq.ParquetFile.iter_batches
    data = [*files.values()]
    path = parquet_file(tmp_path / "x.parquet", files, 20)
    monkeypatch.setattr(parquet, "MOST_ROWS", 6)

    def counted(self, *args, row_groups, **options):
        begun.extend(row_groups)
        return original(self, *args, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    for kept, order, groups in (
        (base.KEPT_BYTES, [*range(60), *range(0, 60, 7), 59, 3, 41], [0, 1, 2]),
        (1, [59, 0, 30, 31, 29, 5], [2, 0, 1, 0]),
    ):
        monkeypatch.setattr(base, "KEPT_BYTES", kept)
        begun.clear()
        source = open_source(path)
        entries = [*source.entries()]
        assert [source.read(entries[k]) for k in order] == [data[k] for k in order]
        assert begun == groups


def test_a_block_that_is_decoded_again_is_counted_once(monkeypatch):
    monkeypatch.setattr(base, "KEPT_BYTES", 3 * 8)
    blocks = base.Blocks()
    for place in (0, 1, 2, 0, 1, 2, 0):
        blocks.add(place, np.zeros(1))
    assert [blocks.get(place) is not None for place in range(3)] == [True] * 3


@pytest.mark.parametrize("damage", ["cut", "no footer", "empty", "text", "no column"])
def test_a_damaged_parquet_is_named_and_the_others_are_read(tmp_path, damage):
    folder = parquet_files(tmp_path / "x", corpus(12))
    path = folder / "train-00001-of-00003.parquet"
    data = path.read_bytes()
    pq.write_table(pa.table({"text": ["a"]}), path)
    made = {"cut": data[:-100], "no footer": data[:-8] + bytes(8), "empty": b"", "text": b"hello"}
    path.write_bytes(made.get(damage, path.read_bytes()))
    reason = {"empty": reasons.EMPTY, "no column": reasons.NO_SAMPLES}.get(damage, reasons.CORRUPT)
    found = read(folder)
    assert len(found) == 8
    assert found.class_names == ("a", "b")
    assert found.summary.skipped == {reason: (1, (f"{path.name}/",))}
    assert [*read_cells(folder, found.names).columns]
    with pytest.raises(DataError) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_a_damaged_group_is_skipped_row_by_row(tmp_path):
    path = parquet_file(tmp_path / "x.parquet", corpus(), 20)
    group = pq.ParquetFile(path).metadata.row_group(1)
    chunk = next(group.column(k) for k in range(3) if "bytes" in group.column(k).path_in_schema)
    data = bytearray(path.read_bytes())
    data[chunk.data_page_offset : chunk.data_page_offset + 40] = b"\xff" * 40
    path.write_bytes(data)
    found = read(path)
    assert len(found) == 40
    assert found.summary.skipped[reasons.CORRUPT][0] == 20


def test_a_parquet_without_images_lists_what_it_has(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), path)
    with pytest.raises(DataError, match=r"no column of .* files of images: text \(string\), n"):
        read(path)


def test_rows_without_bytes_and_too_many(tmp_path, monkeypatch):
    images = pa.array([encoded(noise(1)), None, b"", bytes(3000), b"hello"])
    pq.write_table(pa.table({"image": images}), tmp_path / "x.parquet")
    monkeypatch.setattr(reasons, "LARGEST_FILE", 2000)
    found = read(tmp_path / "x.parquet").summary.skipped
    assert {reason: count for reason, (count, _) in found.items()} == {
        reasons.EMPTY: 2, reasons.TOO_LARGE: 1, reasons.NOT_AN_IMAGE: 1,
    }  # fmt: skip


def test_a_saved_dataset_says_how_to_save_it_as_parquet(tmp_path, monkeypatch):
    fill(tmp_path / "saved", {"data-00000-of-00001.arrow": b"", "state.json": b"{}"})
    with pytest.raises(DataError) as caught:
        read(tmp_path / "saved")
    command = "datasets.load_from_disk('FOLDER').to_parquet('images.parquet')"
    assert caught.value.hint == f"Save them as parquet, for example with {command}"
    datasets = pytest.importorskip("datasets")
    files = corpus(10)
    label, age = datasets.ClassLabel(names=["a", "b"]), datasets.Value("int32")
    features = datasets.Features(image=datasets.Image(), label=label, age=age)
    rows = {
        "image": [{"bytes": data, "path": name} for name, data in files.items()],
        "label": [name[0] for name in files],
        "age": [*range(10)],
    }
    datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / "FOLDER")
    monkeypatch.chdir(tmp_path)
    eval(command, {"datasets": datasets})
    expected, found = read(fill(tmp_path / "folder", files)), read("images.parquet")
    assert (found.fingerprint, found.class_names) == (expected.fingerprint, ("a", "b"))
    assert found.labels.tolist() == expected.labels.tolist()
    ages = read_cells("images.parquet", found.names).columns["age"]
    assert [cell and cell.number for cell in ages] == [*range(10)]
