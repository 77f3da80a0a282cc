"""A sampling that was stopped goes on, to the same bytes as in one go."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import free_port
from file_operations import Copies, ends_at, killed_at_each, killed_while

from diffuse_cli.sampling.journal import (
    WORK,
    SamplingRecord,
    lock_folder,
    read_manifest,
    split_parts,
)
from diffuse_cli.system import files, outputs
from diffuse_cli.system.errors import OutputError, Terminated

OUT = Path("samples")
QUICK = ("--steps", 2, "--precision", "fp32", "--sampler", "ddim", "--batch-size", 4)


def tree(folder: Path | str) -> dict[str, bytes]:
    """All files of a folder, hidden ones too."""
    folder = Path(folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("wanted", "size", "parts"),
    [
        (range(10), 4, [range(4), range(4, 8), range(8, 10)]),
        (range(6, 9), 4, [range(6, 8), range(8, 9)]),
        (range(8, 12), 4, [range(8, 12)]),
        (range(5, 6), 4, [range(5, 6)]),
        (range(3), 4, [range(3)]),
    ],
)
def test_parts_end_at_multiples_of_the_batch(wanted, size, parts):
    assert split_parts(wanted, size) == parts


# -- the record alone -----------------------------------------------------------------------------

SETTINGS = {"seed": 0, "model": {"sha256": "a"}}


def draw(folder: Path, wanted: range = range(5), *, settings=SETTINGS, before=None, **options):
    """Write images of one byte, in parts of two; how many were drawn, None if all were there."""
    with lock_folder(folder):
        return _draw(folder, wanted, settings, before, options)


def _draw(folder, wanted, settings, before, options):
    book = SamplingRecord(folder, settings, ".bin")
    options = {"overwrite": False, "pictures": (), "sides": range(2), **options}
    left = book.begin(split_parts(wanted, 2), **options)
    if left is None:
        return None
    for part in left:
        if before:
            before(part)
        side = {"of": np.array(part)} if part.start == 0 else {}
        book.add(part.start // 2 % 2, part, (bytes([i]) for i in part), side)
    book.collect()
    names = {book.path(i).name: book.hashes[i] for i in sorted(book.hashes)}
    for path in {book.sides[i] for i in options["sides"]}:
        with np.load(path) as kept:
            assert kept["of"].tolist() == [0, 1]
    book.end({"format": "diffuse.samples", "settings": book.key, "files": names})
    return sum(map(len, left))


def stop_in_third_part(folder: Path) -> None:
    """Write images until a signal comes after the fourth."""

    def stop(part):
        if part.start == 4:
            raise Terminated("terminated")

    with pytest.raises(Terminated):
        draw(folder, before=stop)


def test_a_sampling_that_is_killed_at_any_operation_goes_on(tmp_path):
    """Twice, as a repeated one may be killed too."""
    assert draw(tmp_path / "whole") == 5
    expected, drawn = tree(tmp_path / "whole"), set[int | None]()
    (tmp_path / "live").mkdir()
    copies = Copies(tmp_path / "live", tmp_path / "killed")
    made = killed_at_each(lambda: draw(tmp_path / "live" / "samples"), copies)
    assert len(made) > 80
    for moment, copy in enumerate(made):
        folder = copy / "samples"
        if moment % 3 == 0:
            killed_while(lambda folder=folder: draw(folder), ends_at(moment // 2))
        drawn.add(draw(folder))
        assert tree(folder) == expected, moment
        assert not [p for p in folder.iterdir() if p.name.startswith(".")], moment
    assert drawn >= {5, 3, 1, 0, None}


def test_files_that_no_line_speaks_of_or_that_differ_are_drawn_again(tmp_path):
    stop_in_third_part(tmp_path)
    (tmp_path / "00004.bin").write_bytes(b"half")
    (tmp_path / "00001.bin").write_bytes(b"")
    assert draw(tmp_path) == 3
    assert draw(tmp_path) is None
    (tmp_path / "00002.bin").unlink()
    assert draw(tmp_path) == 4  # what goes with the first is needed again, too
    assert [p.read_bytes() for p in sorted(tmp_path.glob("*.bin"))] == [
        bytes([i]) for i in range(5)
    ]


def test_a_line_that_a_kill_has_cut_is_no_line(tmp_path):
    stop_in_third_part(tmp_path)
    log = tmp_path / WORK / "0.jsonl"
    log.write_text(log.read_text()[:-20])
    assert draw(tmp_path) == 3
    assert sorted(read_manifest(tmp_path)["files"]) == [f"0000{i}.bin" for i in range(5)]


def test_a_part_that_is_begun_after_a_line_was_cut_is_on_record(tmp_path):
    """An overwrite removes what a second kill left of it."""
    stop_in_third_part(tmp_path)
    log = tmp_path / WORK / "0.jsonl"
    log.write_text(log.read_text()[:-20])
    book = SamplingRecord(tmp_path, SETTINGS, ".bin")
    data = (bytes([1 // (5 - i)]) for i in range(4, 6))
    with lock_folder(tmp_path), pytest.raises(ZeroDivisionError):
        book.add(0, range(4, 6), data, {})
    assert (tmp_path / "00004.bin").exists()
    assert draw(tmp_path, range(2), settings={**SETTINGS, "seed": 1}, overwrite=True) == 2
    assert sorted(tree(tmp_path)) == ["00000.bin", "00001.bin", "manifest.json"]


def test_more_may_be_added_and_a_part_that_was_cut_is_drawn_whole(tmp_path):
    assert draw(tmp_path, range(3)) == 3
    assert draw(tmp_path, range(6), sides=()) == 4  # 2 with 3, and 4 with 5
    assert draw(tmp_path, range(4), sides=()) is None
    assert len(read_manifest(tmp_path)["files"]) == 6


def test_an_overwrite_removes_what_a_stopped_sampling_wrote_and_nothing_else(tmp_path):
    def stop(part):
        if part.start == 4:
            (tmp_path / "00005.bin").write_bytes(b"mine")
            raise Terminated("terminated")

    with pytest.raises(Terminated):
        draw(tmp_path, before=stop)
    with pytest.raises(OutputError, match="already holds samples with other settings: seed"):
        draw(tmp_path, settings={**SETTINGS, "seed": 1})
    other = {**SETTINGS, "seed": 1}
    assert draw(tmp_path, range(2), settings=other, overwrite=True) == 2
    assert sorted(tree(tmp_path)) == ["00000.bin", "00001.bin", "00005.bin", "manifest.json"]


def test_an_overwrite_that_is_killed_at_any_operation_leaves_nothing_of_the_earlier(tmp_path):
    folder, copies, other = tmp_path / "out", tmp_path / "copies", {**SETTINGS, "seed": 1}
    again = {"settings": other, "overwrite": True}
    copies.mkdir()
    draw(folder)
    for copy in killed_at_each(lambda: draw(folder, range(2), **again), Copies(folder, copies)):
        draw(copy, range(2), **again)
        assert tree(copy) == tree(folder), copy


def test_only_files_that_are_there_are_listed(tmp_path):
    stop_in_third_part(tmp_path)
    (tmp_path / "00003.bin").unlink()
    draw(tmp_path, range(2))
    listed = read_manifest(tmp_path)["files"]
    assert {*listed} == {"00000.bin", "00001.bin", "00002.bin"}


def test_a_sampling_that_drew_nothing_holds_nothing(tmp_path):
    """Such as one that ran out of memory, and is tried again with smaller batches."""

    def stop(part):
        raise Terminated("terminated")

    with pytest.raises(Terminated):
        draw(tmp_path, before=stop)
    assert draw(tmp_path, settings={**SETTINGS, "seed": 1}) == 5


def test_a_process_that_still_writes_is_waited_for(tmp_path):
    """One of several may outlive the first."""
    (tmp_path / WORK).mkdir()
    child = os.fork()
    if not child:
        with outputs.hold_lock(tmp_path / WORK / "1.lock"):
            (tmp_path / "held").touch()
            signal.pause()
    try:
        while not (tmp_path / "held").exists():
            time.sleep(0.01)
        with pytest.raises(outputs.BusyError, match=f"process {child} is writing"):
            draw(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert draw(tmp_path) == 5


# -- the command ----------------------------------------------------------------------------------


@pytest.fixture
def sample(diffuse, conditional):
    return lambda *arguments: diffuse("sample", conditional, *QUICK, *arguments)


def test_the_same_command_again_says_that_it_is_finished(sample, instead_of_networks):
    first = sample("-n", 5, "--gif")
    before = tree(OUT)
    instead_of_networks()
    again = sample("-n", 5, "--gif")
    assert again.code == 0
    assert again.out == first.out
    assert "samples is complete" in again.err
    assert tree(OUT) == before
    assert sample("-n", 3, "--no-grid").out.split() == first.out.split()[:3]
    assert tree(OUT) == before


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_sampling_that_was_stopped_equals_one_in_one_go(sample, monkeypatch, kept):
    line = ("-n", 10, "--gif")
    sample(*line, "-o", "whole")
    add = SamplingRecord.add

    def stopping(self, rank, part, *arguments):
        if part.start == 4 * kept:
            raise Terminated("terminated")
        add(self, rank, part, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(SamplingRecord, "add", stopping)
        assert sample(*line).code == 143
    ran = sample(*line)
    assert ran.code == 0
    assert (f"resuming with {4 * kept} images of 10" in ran.err) == (kept > 0)
    assert tree(OUT) == tree("whole")


def test_more_images_are_as_if_all_had_been_asked_for(sample):
    sample("-n", 10, "-o", "whole")
    for n in (3, 8, 10):
        assert sample("-n", n).code == 0
    assert tree(OUT) == tree("whole")


def test_ranges_in_any_order_are_as_if_all_had_been_asked_for(sample):
    sample("-n", 10, "--gif", "-o", "whole")
    for part in ("4:8", "0:4", "8:10"):
        assert sample("--range", part).code == 0
        if part == "4:8":
            found = json.loads((OUT / "manifest.json").read_text())
            assert found["ranges"] == [[4, 8]]
            assert found["n"] == 8
            assert found["classes"] == ["dark", "light", "dark", "light"]
            assert found["images"] == [f"{i:05d}.png" for i in range(4, 8)]
    assert sample("-n", 10, "--gif").code == 0
    assert tree(OUT) == tree("whole")


def test_a_range_that_cuts_a_batch_has_the_images_of_the_seed(sample):
    from PIL import Image

    sample("-n", 10, "-o", "whole")
    sample("--range", "3:7")
    for i in range(3, 7):
        own, theirs = (np.asarray(Image.open(f"{at}/{i:05d}.png"), int) for at in (OUT, "whole"))
        assert np.abs(own - theirs).max() <= 2


@pytest.mark.parametrize("text", ["5:5", "7:3", "4", "a:b", "-1:3", "0:1:2", "0:99999999"])
def test_what_is_no_range_is_a_usage_error(sample, text):
    ran = sample(f"--range={text}", "-q")
    assert ran.code == 2
    assert "--range" in ran.line
    assert sample("-n", 16, "--range", "0:16").code == 2


def test_a_full_disk_loses_nothing_that_was_drawn(sample, monkeypatch):
    from file_operations import FULL, failing

    sample("-n", 10, "-o", "whole")
    real = files.write_bytes

    def write(path, data):
        if path.name == "00006.png":
            monkeypatch.setattr(files, "operation", failing("write", FULL))
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", write)
        patch.setattr(files, "operation", files.operation)
        ran = sample("-n", 10, "-q")
    assert ran.code == 5
    assert "00006.png: No space left on device. Free some space" in ran.line
    ran = sample("-n", 10)
    assert "resuming with 4 images of 10" in ran.err
    assert tree(OUT) == tree("whole")


def test_two_processes_killed_at_random_equal_one_go(spawn, pair, conditional, tmp_path):
    """Killed together, or one alone, which the other says."""
    line = ("sample", conditional, *QUICK, "-n", 64, "-o")
    assert pair(*line, "whole").code == 0
    draw, said = random.Random(5), ""

    def there():
        return len([*(tmp_path / "out").glob("0*.png")])

    for round in range(3):
        job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        job["MASTER_PORT"] = str(free_port())
        ranks = [
            spawn(*line, "out", env={**job, "RANK": str(k), "LOCAL_RANK": str(k)}) for k in range(2)
        ]
        count = there() + draw.randrange(1, 12)
        while there() < count:
            assert ranks[0].poll() is None
            time.sleep(0.005)
        for rank in ranks[: 1 + round % 2]:
            rank.send_signal(signal.SIGKILL)
        said += "".join(rank.communicate(timeout=60)[1] for rank in ranks)
    assert "process 0 of 2 has ended" in said
    assert pair(*line, "out").code == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")
