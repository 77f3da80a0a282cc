"""A sampling that was stopped goes on, to the same bytes as in one go."""

import json
import os
import random
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from conftest import free_port, manifest, pixels
from file_operations import FULL, Copies, ends_at, failing, killed_at_each, killed_while
from image_corpus import contents

from diffuse_cli.sampling.job import split_parts
from diffuse_cli.sampling.journal import (
    WORK,
    SamplingRecord,
    lock_folder,
    read_earlier,
)
from diffuse_cli.system import files, outputs
from diffuse_cli.system.errors import OutputError, Terminated

OUT = Path("samples")
QUICK = ("--steps", 2, "--precision", "fp32", "--sampler", "ddim", "--batch-size", 4)


def test_parts_end_at_multiples_of_the_batch():
    assert split_parts(range(10), 4) == [range(4), range(4, 8), range(8, 10)]
    assert split_parts(range(6, 9), 4) == [range(6, 8), range(8, 9)]


SETTINGS = {"format": "diffuse.samples", "seed": 0, "model": {"sha256": "a"}}


def generate(folder, indices=range(5), *, before=None, overwrite=False, **settings):
    """Write images of one byte, in parts of two. Returns their number, None if all existed."""
    with lock_folder(folder):
        record = SamplingRecord(folder, {**SETTINGS, **settings}, {}, ".bin")
        parts = {p: [record.path(i).name for i in p] for p in split_parts(indices, 2)}
        parts[range(2)] = ["00000.bin", "00001.bin", f"{WORK}/0-2.frames.npy"]
        remaining = record.begin(parts, ["grid.png"], overwrite=overwrite)
        if remaining is None:
            return None
        for part in remaining:
            if before:
                before(part)
            written = [bytes([i]) for i in part] + [b"frames"] * (part.start == 0)
            record.add(f"{part.start}-{part.stop}", dict(zip(parts[part], written, strict=True)))
        record.collect()
        assert (folder / WORK / "0-2.frames.npy").read_bytes() == b"frames"
        record.add("figures", {"grid.png": bytes(record.indices)})
        record.end({"n": len(record.indices)})
        return sum(map(len, remaining))


def stop_in_third_part(folder):
    """Write the first four images."""

    def stop(part):
        if part.start == 4:
            raise Terminated("terminated")

    with pytest.raises(Terminated):
        generate(folder, before=stop)


@pytest.mark.slow
def test_a_sampling_that_is_killed_at_any_operation_goes_on(tmp_path):
    """Twice, as a repeated one may be killed too."""
    assert generate(tmp_path / "whole") == 5
    expected, counts = contents(tmp_path / "whole"), set[int | None]()
    (tmp_path / "live").mkdir()
    copies = Copies(tmp_path / "live", tmp_path / "killed")
    moments = killed_at_each(lambda: generate(tmp_path / "live" / "samples"), copies)
    assert len(moments) > 80
    for moment, copy in enumerate(moments):
        folder = copy / "samples"
        if moment % 3 == 0:
            killed_while(lambda folder=folder: generate(folder), ends_at(moment // 2))
        counts.add(generate(folder))
        assert contents(folder) == expected, moment
        assert not [p for p in folder.iterdir() if p.name.startswith(".")], moment
    assert counts >= {5, 3, 1, 0, None}


def test_files_that_are_missing_or_changed_are_generated_again(tmp_path):
    stop_in_third_part(tmp_path)
    (tmp_path / "00001.bin").write_bytes(b"")
    assert generate(tmp_path) == 3
    assert generate(tmp_path) is None
    (tmp_path / "00002.bin").unlink()
    (tmp_path / "grid.png").write_bytes(b"")
    assert generate(tmp_path) == 4  # The grid needs the frames of the first part again.
    assert read_earlier(tmp_path)["n"] == 5
    assert generate(tmp_path, range(6)) == 4  # Image 4 is generated together with 5.
    assert b"".join(p.read_bytes() for p in sorted(tmp_path.glob("*.bin"))) == bytes(range(6))
    assert {*read_earlier(tmp_path)["files"], "manifest.json"} == {*contents(tmp_path)}


def test_an_overwrite_removes_the_samples_of_a_stopped_run_and_no_other_file(tmp_path):
    folder = tmp_path / "samples"
    stop_in_third_part(folder)
    for path in (folder / "00005.bin", tmp_path / "mine.txt"):
        path.write_bytes(b"mine")
    record = {"format": "diffuse.samples", "files": {"../mine.txt": ""}}
    (folder / WORK / "hostile.json").write_text(json.dumps(record))
    with pytest.raises(OutputError, match="already holds samples with other settings: seed"):
        generate(folder, seed=1)
    assert generate(folder, range(2), seed=1, overwrite=True) == 2
    assert contents(tmp_path).keys() == {"mine.txt", *(f"samples/{name}" for name in (
        "00000.bin", "00001.bin", "00005.bin", "grid.png", "manifest.json"))}  # fmt: skip


def test_a_file_with_the_name_of_a_sample_is_not_replaced(tmp_path):
    stop_in_third_part(tmp_path)
    (tmp_path / "00005.bin").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"00005\.bin is not a sample of this run"):
        generate(tmp_path, range(6))
    assert (tmp_path / "00005.bin").read_bytes() == b"mine"
    assert generate(tmp_path) == 1
    assert "00005.bin" not in read_earlier(tmp_path)["files"]


def test_an_overwrite_that_is_killed_at_any_operation_leaves_nothing_of_the_earlier(tmp_path):
    folder, copies, options = tmp_path / "out", tmp_path / "copies", {"seed": 1, "overwrite": True}
    copies.mkdir()
    generate(folder)
    replace = partial(generate, folder, range(2), **options)
    for copy in killed_at_each(replace, Copies(folder, copies)):
        generate(copy, range(2), **options)
        assert contents(copy) == contents(folder), copy


def test_a_run_that_stops_in_its_first_part_leaves_nothing(tmp_path, monkeypatch):
    """Then it can be repeated with other settings, such as smaller batches."""
    record, real = SamplingRecord(tmp_path, SETTINGS, {}, ".bin"), files.write_bytes

    def write(path, data):
        if path.name == "00001.bin":
            raise FULL
        real(path, data)

    monkeypatch.setattr(files, "write_bytes", write)
    record.begin({range(2): ["00000.bin", "00001.bin"]}, [], overwrite=False)
    with pytest.raises(OSError, match="No space left"):
        record.add("0-2", {"00000.bin": b"0", "00001.bin": b"1"})
    assert sorted(path.name for path in tmp_path.iterdir()) == [WORK, "00000.bin"]
    record.abandon()
    assert not contents(tmp_path)


def test_a_resumed_run_that_stops_at_once_keeps_what_was_written(tmp_path):
    stop_in_third_part(tmp_path)
    (tmp_path / WORK / "2-4.json").unlink()
    (tmp_path / "00001.bin").unlink()
    before = contents(tmp_path)
    record = SamplingRecord(tmp_path, SETTINGS, {}, ".bin")
    assert record.begin({range(2): ["00000.bin", "00001.bin"]}, [], overwrite=False)
    record.abandon()
    assert contents(tmp_path) == before


def test_a_process_that_still_writes_is_waited_for(tmp_path):
    """One of several may outlive the first."""
    with outputs.hold_lock(tmp_path / WORK / "1.lock"):
        assert killed_while(lambda: _end_if_busy(tmp_path), files.operation)
    assert generate(tmp_path) == 5


def _end_if_busy(folder):
    with pytest.raises(outputs.BusyError, match=f"process {os.getppid()} is writing"):
        generate(folder)
    os._exit(137)


@pytest.fixture
def sample(diffuse, conditional):
    return lambda *arguments: diffuse("sample", conditional, *QUICK, *arguments)


def test_the_same_command_again_says_that_it_is_finished(sample, instead_of_networks):
    first = sample("-n", 5, "--gif")
    before = contents(OUT)
    instead_of_networks()
    again = sample("-n", 5, "--gif").ok()
    assert again.out == first.out
    assert "samples is complete" in again.err
    assert contents(OUT) == before
    assert sample("-n", 3, "--no-grid").out.split() == first.out.split()[:3]
    assert contents(OUT) == before


def test_ranges_in_any_order_are_as_if_all_had_been_asked_for(sample):
    sample("-n", 10, "--gif", "-o", "whole")
    for part in ("4:8", "0:4", "8:10"):
        assert sample("--range", part).code == 0
        if part == "4:8":
            found = manifest()
            assert found["ranges"] == [[4, 8]]
            assert found["n"] == 8
            assert found["classes"] == ["dark", "light", "dark", "light"]
            assert found["images"] == [f"{i:05d}.png" for i in range(4, 8)]
    assert sample("-n", 10, "--gif").code == 0
    assert contents(OUT) == contents("whole")
    sample("--range", "3:7", "-o", "cut")  # through batches
    for i in range(3, 7):
        assert np.abs(pixels("cut", i) - pixels("whole", i)).max() <= 2


def test_a_full_disk_loses_nothing_that_was_drawn(sample, monkeypatch):
    sample("-n", 10, "--gif", "-o", "whole")
    real = files.write_bytes

    def write(path, data):
        if path.name == "00006.png":
            monkeypatch.setattr(files, "operation", failing("write", FULL))
        real(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_bytes", write)
        patch.setattr(files, "operation", files.operation)
        ran = sample("-n", 10, "--gif", "-q")
    assert ran.code == 5
    assert "00006.png: No space left on device. Free some space" in ran.line
    assert "resuming with 4 images of 10" in sample("-n", 10, "--gif").err
    assert contents(OUT) == contents("whole")


@pytest.mark.slow
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
        own = ({**job, "RANK": k, "LOCAL_RANK": k} for k in "01")
        ranks = [spawn(*line, "out", env=env) for env in own]
        count = there() + draw.randrange(1, 12)
        while there() < count:
            assert ranks[0].poll() is None
            time.sleep(0.005)
        for rank in ranks[: 1 + round % 2]:
            rank.send_signal(signal.SIGKILL)
        said += "".join(rank.communicate(timeout=60)[1] for rank in ranks)
    assert "process 0 of 2 has ended" in said
    assert pair(*line, "out").code == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
