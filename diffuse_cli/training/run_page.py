"""Page of a training run: what it learns from, how far it is, and its previews.

The page is a file in the run directory. It is written anew during the run, and a browser that shows
it reloads it. Its contents are the run directory and the run's events. It does not change the run,
and a failure to write it is only a warning.
"""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from markupsafe import Markup
from PIL import Image

from diffuse_cli.config import options
from diffuse_cli.media import figures
from diffuse_cli.pages import has_display, open_file, templates
from diffuse_cli.system import DiffuseError, Notice, Work, files, format_duration
from diffuse_cli.system.run_reader import extend_line
from diffuse_cli.training import run_events
from diffuse_cli.training.run_directory import RunDirectory

T = TypeVar("T")

SHARE = 500
"""Between the first page and the last one, writing takes at most 1/SHARE of the time."""

PREVIEWS, SIDE, BYTES = 24, 720, 2_000_000
"""The most previews on the page, the pixels along a side, and the bytes of all of them."""

WARNINGS = 20
"""The most warnings to list."""

RELOAD, LATE = 20, 6
"""Seconds between two reloads of the page, and intervals between two pages after which it says that
there is no news."""


class RunPage:
    """Page of the run in a run directory, from the events of its training."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.start: run_events.Started | None = None
        self.last: run_events.Step | None = None
        self.warnings: list[str] = []
        self.step = self.steps = 0
        self.written = self.took = self.interval = 0.0
        self.failed = False

    def note(self, event: Any) -> bool:
        """Keep the content of an event, and return whether to write the page now."""
        if isinstance(event, Notice):
            if event.warning and len(self.warnings) < WARNINGS:
                self.warnings.append(event.text.rstrip("."))
            return False
        if isinstance(event, run_events.Started):
            self.start, self.step, self.steps = event, event.step, event.steps
            return True
        if isinstance(event, run_events.Step):
            self.step, self.steps = event.step, event.steps
            if event.loss is not None:
                self.last = event
        looked = isinstance(
            event, (run_events.Previewed, run_events.Compared, run_events.Validated)
        )
        wait = max(0 if looked else RELOAD, SHARE * self.took)
        return self.start is not None and time.monotonic() - self.written > wait

    def write(self, state: str) -> Work[None]:
        """Write the page. The first failure is a warning.

        Args:
            state: `running`, `finished`, or why the run stopped.
        """
        if self.start is None:
            return
        began = time.monotonic()
        self.interval = began - self.written if self.written else 0.0
        try:
            files.write_text(self.run.page, self.render(state))
        except Exception as error:  # whatever it is, it must not end the training
            if not self.failed:
                self.failed = True
                text = f"the page of the run cannot be written: {files.show(str(error))}"
                yield Notice(text, warning=True)
        self.written = time.monotonic()
        self.took = self.written - began

    def render(self, state: str) -> str:
        """Render the page as HTML."""
        script = templates.read_script("run")
        start, last = self.start, self.last
        assert start is not None
        config = options.read_toml(self.run.config)
        lines = dict(start.lines)
        if state == "finished" and self.step >= self.steps:
            resume = lines.pop("resume")
            lines = {"train more": extend_line(resume, self.steps, config.get("minutes")), **lines}
        plots = []
        if self.run.metrics.exists():
            from diffuse_cli.pages import curves  # importing matplotlib takes half a second

            plots = curves.plot_run(curves.read_curves(self.run.metrics))
        return templates.render_page(
            "run",
            f"Training {self.run.path.stem}",
            policy=f"{templates.POLICY}; script-src '{templates.hash_script(script)}'",
            script=Markup(script),
            state=state,
            start=start,
            lines=lines,
            step=self.step,
            steps=self.steps,
            last=last,
            left=format_duration(last.seconds_left) if last and last.seconds_left else "",
            sheet=templates.to_data_url("image/png", start.sheet),
            previews=read_previews(self.run.previews),
            plots=plots,
            settings=list(options.flatten_settings(config).items()),
            warnings=self.warnings,
            reload=RELOAD if state == "running" else 0,
            late=int(LATE * max(RELOAD, SHARE * self.took, self.interval)),
        )


def follow_run(work: Work[T], run: RunDirectory, *, browse: bool = False) -> Work[T]:
    """Pass on the events and the result of a training run, and keep its page up to date.

    Args:
        browse: whether to open the page in a browser.
    """
    page, state = RunPage(run), ""
    try:
        while True:
            try:
                event = next(work)
            except StopIteration as end:
                result: T = end.value
                state = "finished"
                yield from page.write(state)
                return result
            due = page.note(event)
            yield event
            if due:
                yield from page.write("running")
            if browse and isinstance(event, run_events.Started):
                yield from _show(run.page)
    except DiffuseError as error:
        state = error.message
        raise
    finally:
        work.close()
        if state != "finished":
            for _ in page.write(state or "stopped"):  # nobody reads its notices any more
                pass


def read_previews(folder: Path) -> list[dict[str, Any]]:
    """Return evenly spaced previews and the last one, each with its step, as small as they fit."""
    paths = sorted(folder.glob("step-*.png"))
    every = -(-len(paths) // PREVIEWS) or 1
    previews: list[dict[str, Any]] = []
    for path in paths[::-1][::every][::-1]:
        with Image.open(path) as image:
            small = figures.shrink_image(image.convert("RGB"), SIDE)
        content, kind = figures.encode_png(small), "image/png"
        if len(content) > BYTES // PREVIEWS:
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=80)
            content, kind = buffer.getvalue(), "image/jpeg"
        step = int(path.stem.removeprefix("step-"))
        previews.append(
            {"step": step, "src": templates.to_data_url(kind, content), "size": small.size}
        )
    return previews


def _show(page: Path) -> Iterator[Notice]:
    """Open the page in a thread, so that the run does not wait for the browser."""
    if not has_display():
        yield Notice("--open: there is no display to show the page on", warning=True)
        return
    Thread(target=open_file, args=(page,), daemon=True).start()
