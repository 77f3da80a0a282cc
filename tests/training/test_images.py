"""Images that go or change before a run, while they are read, during the run and before resume."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
from conftest import MODEL, RUN, logged
from PIL import Image

import diffuse_cli
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.data import decoding_pass
from diffuse_cli.training import training_data
from diffuse_cli.training.trainer import Trainer

FIRST, SECOND = Path("dark/000.png"), Path("dark/002.png")


@pytest.fixture
def whole(lab):
    """The model file of a run of 8 steps that nothing disturbed."""
    return lab.trained(*lab.quick, "--steps", 8).read_bytes()


def instead(make):
    """Remove the file and make something else in its place."""
    return lambda path: (path.unlink(), make(path))


SPOILT = {
    "gone": (Path.unlink, "vanished"),
    "text": (lambda path: path.write_text("not an image any more"), "not an image"),
    "cut": (lambda path: os.truncate(path, path.stat().st_size // 2), "truncated or corrupt"),
    "empty": (lambda path: path.write_bytes(b""), "empty file"),
    "fifo": (instead(os.mkfifo), "not a regular file"),
    "folder": (instead(Path.mkdir), "not a regular file"),
    "loop": (instead(lambda path: path.symlink_to(path)), "unreadable"),
}


def another(path):
    Image.new("L", (8, 8), 7).save(path)


# -- before the first step ------------------------------------------------------------------------


@pytest.fixture
def while_reading(monkeypatch):
    """Have something done when the files are listed and none is read yet, and wait for no FIFO."""
    original = decoding_pass.decode_all

    def wait(number, frame):
        raise TimeoutError

    def arrange(act):
        def decode_all(plan, entries, workers):
            act()
            signal.alarm(20)
            yield from original(plan, entries, 1)  # in this thread, where the alarm is heard
            signal.alarm(0)

        monkeypatch.setattr(decoding_pass, "decode_all", decode_all)

    before = signal.signal(signal.SIGALRM, wait)
    yield arrange
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(("spoil", "reason"), SPOILT.values(), ids=SPOILT)
def test_an_image_that_changes_as_it_is_read_is_skipped(
    run, folder, images, while_reading, spoil, reason
):
    """With --strict it ends the run before it begins."""
    while_reading(lambda: spoil(folder / FIRST))
    run("--steps", 1, "--strict", "-q").fails(3, f"{FIRST}: {reason}")
    assert not MODEL.exists()
    assert not RUN.exists()
    shutil.rmtree(folder)
    shutil.copytree(images, folder)
    ran = run("--steps", 1, "--json").ok()
    assert f"skipped 1 file, {reason}: {FIRST}" in ran.err
    assert ran.json["images"] == 59


def test_a_folder_that_goes_as_it_is_read_is_no_data(run, folder, while_reading):
    while_reading(lambda: shutil.rmtree(folder))
    run("--steps", 2, "-q").fails(3, "60 vanished")


# -- during the run -------------------------------------------------------------------------------


@pytest.mark.parametrize("mapped", [False, True])
def test_a_run_goes_on_without_its_images(run, folder, whole, monkeypatch, each_step, mapped):
    """From memory, and from the file that large sets are mapped from: the same bytes."""
    seen = []

    def lose_once(trainer, step):
        if not seen:
            seen.append((RUN / "cache/pixels.u8").exists())
            another(folder / FIRST)
            shutil.rmtree(folder / "light")

    each_step(lose_once)
    if mapped:
        monkeypatch.setattr(training_data, "free_memory", lambda device: 0)
    run("--steps", 8, "--preview-every", 4).ok()
    assert seen == [mapped]
    assert MODEL.read_bytes() == whole
    assert not (RUN / "cache").exists()


def test_decoded_images_are_kept_in_memory_or_on_the_disk(monkeypatch, tmp_path):
    """Several processes have no memory for them, and a dry run has no folder."""

    def kept(cache, folder, held):
        return training_data.choose_kept_bytes(TrainConfig(data="x", cache=cache), folder, held)

    monkeypatch.setattr(training_data.files, "free_space", lambda folder: 800)
    assert [kept(None, tmp_path, held) for held in (0, 500)] == [400, 500]
    assert [kept(1000, folder, 300) for folder in (tmp_path, None)] == [1000, 300]
    assert [kept(cache, None, 300) for cache in (None, 20)] == [300, 20]


# -- before resume --------------------------------------------------------------------------------

DIFFERENT = {
    "gone": Path.unlink,
    "text": SPOILT["text"][0],
    "another": another,
    "copied": lambda path: shutil.copy(path, path.with_name("copy.png")),
}


@pytest.mark.parametrize("change", DIFFERENT.values(), ids=DIFFERENT)
def test_resume_warns_of_images_that_are_not_those_of_the_run(run, folder, stopped, change):
    before = MODEL.read_bytes()
    change(folder / FIRST)
    ran = run("--resume", "--strict", "-q")
    assert ran.code == 3
    assert "have changed since this run started" in ran.line or f"{FIRST}: " in ran.line
    assert MODEL.read_bytes() == before
    ran = run("--resume").ok()
    assert "warning: the images in" in ran.err
    assert "have changed since this run started" in ran.err
    assert MODEL.read_bytes() != before


def test_resume_takes_no_notice_of_names_folders_dates_and_formats(run, folder, stopped):
    for path in sorted(folder.rglob("*.png"))[::3]:
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    for path in folder.rglob("*.png"):
        os.utime(path, (4e9, 4e9))  # in the future
    os.utime(folder / SECOND, (0, 0))
    (folder / "dark").rename(folder / "z_dark")
    assert "warning" not in run("--resume", "--strict").ok().err


# -- clocks that jump -----------------------------------------------------------------------------


@pytest.fixture
def stopped(lab, copy_run):
    """A run of 4 steps that stopped after 2, on equal images elsewhere."""
    copy_run(*lab.quick, "--steps", 4, "--stop-at", 2)


def test_a_clock_that_jumps_changes_neither_times_nor_weights(run, whole, monkeypatch):
    """The times are of steps that take a tenth of a second longer, between those of the test. The
    time of day goes back and forth by years."""
    jumps, step = iter(range(10**9)), Trainer.step
    monkeypatch.setattr(time, "time", lambda: 1e9 * (next(jumps) % 3))
    monkeypatch.setattr(time, "time_ns", lambda: 10**18 * (next(jumps) % 3))
    monkeypatch.setattr(Trainer, "step", lambda *a: time.sleep(0.1) or step(*a))
    began = time.monotonic()
    ran = run("--steps", 8, "--log-every", 1, "--json")
    elapsed = time.monotonic() - began
    assert ran.code == 0, ran.err
    assert 0.8 <= ran.json["seconds"] <= elapsed
    speeds = logged("images_per_second")
    assert len(speeds) == 8
    assert max(speeds) <= 8 / 0.1
    assert sum(8 / speed for speed in speeds) <= elapsed
    assert re.findall(r"(\S+) images/s", ran.err) == [f"{speed:,.0f}" for speed in speeds]
    hours = [f"0:{k:02}" for k in range(60)]
    assert [left in hours for left in re.findall(r"(\S+) left", ran.err)] == [True] * 7
    assert MODEL.read_bytes() == whole


def test_nothing_reads_the_time_of_day():
    """Durations are those of a clock that never jumps, and no file says when it was made."""
    clock = r"\btime\.(time|time_ns|localtime|gmtime|ctime|strftime)\b"
    day = re.compile(clock + r"|\bdatetime\b(?! import timedelta)")
    modules = sorted(Path(diffuse_cli.__file__).parent.rglob("*.py"))
    assert len(modules) > 50
    found = {path.name: day.findall(path.read_text(encoding="utf-8")) for path in modules}
    assert {name: uses for name, uses in found.items() if uses} == {}


def test_resume_takes_the_newest_step_whatever_its_date(run, lab, copy_run):
    copy_run(*lab.quick, "--steps", 4, "--save-every", 2)
    for path in RUN.glob("checkpoints/**"):
        date = 2e9 if "step-00000002" in str(path) else 1e9
        os.utime(path, (date, date))
    assert "resuming from step 4" in run("--resume", "--steps", 6).err
