"""A disk that is full, or will be: exit 5, what stood there stands, nothing half-made is left."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MODEL

from diffuse_cli.training import checkpoints
from diffuse_cli.training.run_directory import RunDirectory


def left(folder: Path) -> list[str]:
    return [p.name for p in folder.rglob(".*")]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill_up(place: Path, spare: int) -> Path:
    """Leave `spare` bytes of a file system."""
    free = shutil.disk_usage(place).free
    path = place / "filler"
    path.write_bytes(b"x" * (free - spare))
    return path


@pytest.fixture
def whole_of_3(lab) -> bytes:
    """The model file of a run of 3 steps that nothing stopped."""
    return lab.trained(*lab.quick, "--steps", 3).read_bytes()


LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))"


def test_a_disk_that_is_too_small_is_refused_before_any_step(
    quick, small_disk: Path, instead_of_networks
):
    instead_of_networks()
    filler = fill_up(small_disk, 2**20)
    ran = quick("--steps", 4, "-o", small_disk / "model.safetensors", "-q")
    ran.fails(5, "MiB of disk", "Free some space, or choose another -o")
    assert list(small_disk.iterdir()) == [filler]


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(
    quick, small_disk: Path, monkeypatch: pytest.MonkeyPatch, whole_of_3: bytes
):
    """The estimate is left out; the disk fills between the first save and the second."""
    monkeypatch.setattr(checkpoints, "SPARE", -(2**30))
    out = small_disk / "model.safetensors"
    run = RunDirectory(out)
    save = RunDirectory.save
    filled: list[Path] = []

    def save_once(self: RunDirectory, checkpoint) -> Path:
        if checkpoint.step == 2 and not filled:
            filled.append(fill_up(small_disk, 50_000))
        return save(self, checkpoint)

    monkeypatch.setattr(RunDirectory, "save", save_once)
    ran = quick("--steps", 3, "--save-every", 1, "-o", out, "-q")
    ran.fails(5, "No space left on device")
    assert left(small_disk) == []
    assert run.load()[0].step == 1
    filled[0].unlink()
    assert quick("--steps", 3, "-o", out, "--resume", "-q").code == 0
    assert out.read_bytes() == whole_of_3


def test_a_full_disk_while_sampling_leaves_no_half_made_file(diffuse, model, small_disk: Path):
    out = small_disk / "out"
    fill_up(small_disk, 20_000)
    ran = diffuse("sample", model, "-n", 64, "--steps", 2, "-o", out, "-q")
    ran.fails(5, "No space left on device. Free some space")
    assert left(small_disk) == []


def test_a_limit_on_files_is_refused_or_when_it_is_met_keeps_the_last_checkpoint(
    process, lab, tmp_path, quick, whole_of_3: bytes
):
    options = (*lab.quick, "--steps", 3, "--save-every", 1, "-q")
    process(*options, before=LIMIT).fails(5, "ulimit -f")
    assert not list(tmp_path.iterdir())
    before = f"""
from diffuse_cli.system import files
from diffuse_cli.training.run_directory import RunDirectory
save, files._file_size_limit = RunDirectory.save, lambda: None
def limited(self, checkpoint):
    if checkpoint.step > 1:
        {LIMIT}
    return save(self, checkpoint)
RunDirectory.save = limited
"""
    process(*options, before=before).fails(5, "File too large")
    assert left(tmp_path) == []
    assert RunDirectory(tmp_path / MODEL).load()[0].step == 1
    assert quick("--steps", 3, "--resume", "-q").code == 0
    assert MODEL.read_bytes() == whole_of_3


def test_saving_is_put_off_where_it_would_take_more_than_a_hundredth(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    pace = checkpoints.CheckpointSchedule(None)
    assert [step for step in range(1, 1200) if pace.is_due(step)] == [500, 1000]
    with pace.measure_save():
        now[0] += 2
    now[0] += 199
    assert not pace.is_due(1500)
    now[0] += 1
    assert pace.is_due(2000)
    typed = checkpoints.CheckpointSchedule(3)
    with typed.measure_save():
        now[0] += 1000
    assert [step for step in range(1, 10) if typed.is_due(step)] == [3, 6, 9]
