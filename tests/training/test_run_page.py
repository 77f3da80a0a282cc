"""The page of a run: what it shows, that it changes nothing, and that it is safe."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess
import sys
import time
from threading import Event

import numpy as np
import pytest
from browser import Browser, needs_browser
from conftest import MODEL, RUN
from lab import QUICK
from PIL import Image

from diffuse_cli.media import figures
from diffuse_cli.pages.templates import hash_script, read_script
from diffuse_cli.system import files
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Notice, finish
from diffuse_cli.training import run_page
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.run_events import Previewed, Started, Step
from diffuse_cli.training.run_page import RunPage, follow_run, read_previews
from diffuse_cli.training.trainer import Trainer

PAGE = RUN / "index.html"
LINE = ("--steps", 8, "--preview-every", 2, "--log-every", 1)
HOSTILE = "</script><img src=x onerror=alert(1)>"


def state_of(page):
    found = re.search(r'id="state"[^>]*><strong>(.*?)</strong>', page, re.DOTALL)
    assert found
    return found[1]


def test_a_run_has_a_page_of_its_data_previews_curves_and_commands(quick):
    """Also where it is stopped and resumed."""
    ran = quick(*LINE, "--stop-at", 4, plots=True).ok()
    assert "Watch the run in a browser: model.run/index.html" in ran.err
    page = PAGE.read_text()
    assert state_of(page) == "Finished after 4 of 8 steps"
    assert "To resume:" in page
    assert "--steps 16" not in page
    assert quick(*LINE, "--resume", plots=True).code == 0
    page = PAGE.read_text()
    assert state_of(page) == "Finished after 8 of 8 steps"
    assert page.count("<figcaption>Step ") == 4
    assert 'alt="samples after step 8"' in page
    for words in (
        "60 images in", "learning rate", "Samples per second", "held-out", "To train more:",
        "-o model.safetensors --steps 16", "diffuse sample model", "diffuse eval",
    ):  # fmt: skip
        assert words in page
    assert 'data-reload="0"' in page
    assert page.count("<svg viewBox=") >= 3
    assert len(page) < 3_000_000


def test_a_failed_run_says_why(quick, monkeypatch):
    def fail(self, step):
        raise UsageError("the machine is on fire", "Leave")

    monkeypatch.setattr(Trainer, "step", fail)
    assert quick(*LINE).code == 2
    assert state_of(PAGE.read_text()) == "Stopped after 0 of 8 steps: the machine is on fire"


def test_a_page_that_cannot_be_written_is_a_warning_once_and_changes_nothing(
    quick, lab, monkeypatch
):
    write = files.write_text

    def refuse(path, text):
        if path.name == "index.html":
            raise ValueError("cannot be plotted")
        write(path, text)

    monkeypatch.setattr(files, "write_text", refuse)
    ran = quick(*LINE).ok()
    assert ran.err.count("the page of the run cannot be written") == 1
    assert not PAGE.exists()
    assert MODEL.read_bytes() == lab.trained(*lab.quick, *LINE).read_bytes()


def test_hostile_names_are_text_and_few_steps_are_warned_of(diffuse, images, tmp_path):
    hostile = tmp_path / "a<b>&'\""
    shutil.copytree(images, hostile)
    assert diffuse("train", hostile, "--config", QUICK, "--steps", 2).code == 0
    page = PAGE.read_text()
    assert "a<b>" not in page
    assert "a&lt;b&gt;&amp;" in page
    assert "too few: samples will be noise" in page


def start():
    return Started(
        step=0, steps=9, data=(HOSTILE,), network=HOSTILE, sheet=b"png", lines={"resume": HOSTILE},
        page=PAGE,
    )  # fmt: skip


@pytest.fixture
def page(tmp_path, monkeypatch):
    """The page of a run that has started."""
    monkeypatch.chdir(tmp_path)
    RUN.mkdir()
    (RUN / "config.toml").write_text('data = "</script>"\n')
    found = RunPage(RunDirectory(MODEL))
    assert found.note(start())
    return found


def test_only_its_own_script_may_run(page):
    text = page.render("running")
    script = read_script("run")
    assert f"script-src '{hash_script(script)}'" in text.replace("&#39;", "'")
    assert text.count("<script>") == text.count("</script>") == 1
    assert f"<script>{script}</script>" in text
    assert HOSTILE not in text
    assert "default-src 'none'" in text.replace("&#39;", "'")
    page.note(Step(3, 9, 0.1, 0.1, 0.1, 0.4, 60.0))
    page.note(Step(5, 9))
    text = page.render("interrupted")
    assert "Stopped after 5 of 9 steps" in text
    assert "0.4 images per second" in text


def test_looks_and_steps_write_it_only_if_that_takes_little_time(page, monkeypatch):
    """It waits as long for news as pages take."""
    now = [1000.0]
    monkeypatch.setattr(run_page.time, "monotonic", lambda: now[0])
    for late, pause in ((120, 10), (120, 1000), (6000, 0)):
        finish(page.write("running"))
        assert f'data-late="{late}"' in PAGE.read_text()
        now[0] += pause
    page.took, page.written = 0.2, now[0]
    events = step, look = Step(3, 9, 0.1, 0.1, 0.1, 5.0, 60.0), Previewed(3, None, None)
    for pause, written in ((0, False), (99, False), (2, True)):
        now[0] += pause
        assert [page.note(event) for event in events] == [written, written]
    page.took, page.written = 0.005, now[0] - 3
    assert page.note(look)
    assert not page.note(step), "previews show more than a step does"
    assert not page.note(Notice("x"))
    assert "1.0 minutes left" in page.render("running")


@pytest.mark.parametrize("opened", [False, True])
def test_open_shows_it_in_a_browser(page, monkeypatch, opened):
    """Beside the run, which does not wait for it."""
    shown, begun, closed = list[str](), Event(), Event()

    def browser(url):
        shown.append(url)
        begun.set()
        return closed.wait(60)

    def work():
        yield start()
        assert PAGE.exists()
        yield Step(1, 9)

    monkeypatch.setattr(run_page, "has_display", lambda: True)
    monkeypatch.setattr("webbrowser.open", browser)
    finish(follow_run(work(), RunDirectory(MODEL), browse=opened))
    assert begun.wait(60 * opened) == opened
    closed.set()
    assert shown == [PAGE.resolve().as_uri()] * opened
    monkeypatch.setattr(run_page, "has_display", lambda: False)
    said = [e.text for e in follow_run(work(), RunDirectory(MODEL), browse=True)
            if isinstance(e, Notice)]  # fmt: skip
    assert any("there is no display" in text for text in said)


def test_an_abandoned_run_is_stopped(page):
    followed = follow_run((event for event in [start(), Step(1, 9)]), RunDirectory(MODEL))
    next(followed)
    followed.close()
    assert state_of(PAGE.read_text()) == "Stopped after 0 of 9 steps: stopped"


# -- previews -------------------------------------------------------------------------------------


def write_previews(folder, picture, steps):
    folder.mkdir()
    picture.save(folder / "first.png")
    for step in steps:
        shutil.copy(folder / "first.png", folder / f"step-{step:08}.png")


def shown_pictures(folder):
    """The step, the type and the picture of each preview on the page."""
    shown = []
    for preview in read_previews(folder):
        kind, content = preview["src"].removeprefix("data:").split(";base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert picture.size == preview["size"]
        shown.append((preview["step"], kind, picture))
    return shown


@pytest.mark.parametrize(
    ("count", "steps"),
    [(0, []), (1, [1]), (24, [*range(1, 25)]), (25, [*range(1, 26, 2)]), (50, [*range(2, 51, 3)])],
)
def test_previews_are_evenly_spaced_and_end_with_the_last(tmp_path, count, steps):
    write_previews(tmp_path / "previews", Image.new("RGB", (4, 4)), range(1, count + 1))
    assert [step for step, _, _ in shown_pictures(tmp_path / "previews")] == steps


@pytest.mark.parametrize(("size", "shown"), [((1440, 720), (720, 360)), ((500, 720), (500, 720))])
def test_large_previews_are_jpeg_of_high_quality(tmp_path, size, shown):
    """All of them take at most 2 MB unless they are noise, as in this test."""
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    write_previews(tmp_path / "previews", Image.fromarray(noise), range(1))
    [(_, kind, picture)] = shown_pictures(tmp_path / "previews")
    assert (kind, picture.size) == ("image/jpeg", shown)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    assert picture.quantization == Image.open(buffer).quantization  # type: ignore[attr-defined]


@pytest.mark.parametrize(("bytes_of_all", "kind"), [(0.99, "image/jpeg"), (1.01, "image/png")])
def test_previews_are_png_to_the_last_level_where_all_of_them_fit(
    tmp_path, monkeypatch, bytes_of_all, kind
):
    assert run_page.BYTES == 2_000_000
    levels = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    write_previews(tmp_path / "previews", Image.fromarray(levels), range(1))
    size = len(figures.encode_png(Image.fromarray(levels)))
    monkeypatch.setattr(run_page, "BYTES", int(24 * size * bytes_of_all))
    [(_, found, picture)] = shown_pictures(tmp_path / "previews")
    assert (found, bool((np.asarray(picture) == levels).all())) == (kind, kind == "image/png")


def test_the_first_twenty_warnings_are_listed(page):
    for k in range(25):
        assert not page.note(Notice(f"warning {k}.", warning=True))
        assert not page.note(Notice(f"notice {k}"))
    assert page.warnings == [f"warning {k}" for k in range(20)]
    text = page.render("running")
    assert "Warning 19" in text
    assert "otice 1" not in text


# -- in a browser ---------------------------------------------------------------------------------


@needs_browser
@pytest.mark.parametrize(
    ("width", "dark"), [(390, True), pytest.param(1440, False, marks=pytest.mark.slow)]
)
def test_a_browser_shows_a_run_while_it_goes_on_and_when_it_has_ended(
    images, tmp_path, width, dark
):
    line = ["train", images, "--config", QUICK, "--steps", 500, "--preview-every", 50, "-q"]
    shown = "document.querySelector('#state strong').textContent"
    with (
        subprocess.Popen(
            [sys.executable, "-m", "diffuse_cli", *map(str, line)], cwd=tmp_path
        ) as run,
        Browser(tmp_path / "profile", width, dark=dark) as browser,
    ):
        page = tmp_path / PAGE
        while not page.exists():
            assert run.poll() is None
            time.sleep(0.05)
        browser.open(page.as_uri())
        assert browser.evaluate(shown).startswith("Step ")
        assert browser.evaluate("Number(document.getElementById('state').dataset.reload)") > 0
        assert not browser.scrolls_sideways
        assert run.wait(120) == 0
        browser.open(page.as_uri())
        assert browser.evaluate(shown) == "Finished after 500 of 500 steps"
        assert browser.evaluate("document.querySelectorAll('.strip figure').length") == 10
        visible = "document.querySelector('.strip figure:not(.earlier)').textContent"
        assert browser.evaluate(visible) == "Step 500"
        scrub = "(() => {const s = document.getElementById('scrub'); s.value = 0;"
        browser.evaluate(f"{scrub} s.dispatchEvent(new Event('input'));}})()")
        assert browser.evaluate(visible) == "Step 50"
        assert not browser.scrolls_sideways
        assert browser.errors == []
