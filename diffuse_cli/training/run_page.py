"""Page of a training run: what it learns from, how far it is, and its previews.

The page is a file in the run directory. It is written anew during the run, and a browser that shows
it reloads it. Its contents are the run directory and the run's events. It does not change the run,
and a failure to write it is only a warning.
"""

from __future__ import annotations

import base64
import hashlib
import io
import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup
from PIL import Image

from diffuse_cli.config.options import read_toml
from diffuse_cli.media import figures
from diffuse_cli.metrics import Measurement, label
from diffuse_cli.metrics.features import KIDS
from diffuse_cli.pages import charts
from diffuse_cli.pages.charts import Line
from diffuse_cli.pages.curves import CAPTIONS, COPIES, Curve, read_curves
from diffuse_cli.pages.templates import POLICY, render_page, to_data_url
from diffuse_cli.system import files
from diffuse_cli.system.errors import DiffuseError
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.run_events import Compared, Previewed, Started, Step, Validated

T = TypeVar("T")

SHARE = 200
"""Writing the page takes at most 1/SHARE of the time, except at the start and at the end."""

PREVIEWS, SIDE, BYTES = 24, 720, 2_000_000
"""The most previews on the page, the pixels along a side, and the bytes of all of them."""

WARNINGS = 20
"""The most warnings to list."""

RELOAD, LATE = 20, 6
"""Seconds between two reloads of the page, and times the usual interval between two writes after
which it says that there is no news."""


class RunPage:
    """Page of the run in a run directory, from the events of its training."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.start: Started | None = None
        self.last: Step | None = None
        self.warnings: list[str] = []
        self.written = 0.0
        self.took = 0.0
        self.failed = False

    def note(self, event: Any) -> bool:
        """Keep the content of an event, and return whether to write the page now."""
        if isinstance(event, Notice):
            if event.warning and len(self.warnings) < WARNINGS:
                self.warnings.append(event.text.rstrip("."))
            return False
        if isinstance(event, Started):
            self.start = event
            return True
        if isinstance(event, Step) and event.loss is not None:
            self.last = event
        looked = isinstance(event, (Previewed, Compared, Validated))
        return self.start is not None and (looked or self._is_cheap())

    def _is_cheap(self) -> bool:
        return time.monotonic() - self.written > max(RELOAD, SHARE * self.took)

    def write(self, state: str) -> Work[None]:
        """Write the page. The first failure is a warning.

        Args:
            state: `running`, `finished`, or why the run stopped.
        """
        if self.start is None:
            return
        began = time.monotonic()
        try:
            files.write_text(self.run.page, self.render(state))
        except (OSError, DiffuseError) as error:
            if not self.failed:
                self.failed = True
                text = f"the page of the run cannot be written: {files.show(str(error))}"
                yield Notice(text, warning=True)
        self.written = time.monotonic()
        self.took = self.written - began

    def render(self, state: str) -> str:
        """Render the page as HTML."""
        curves = read_curves(self.run.metrics)
        script = read_script()
        start, last = self.start, self.last
        assert start is not None
        config = read_toml(self.run.config)
        interval = max(RELOAD, LATE * SHARE * self.took)
        return render_page(
            "run",
            f"Training {self.run.path.stem}",
            policy=f"{POLICY}; script-src '{hash_script(script)}'",
            script=Markup(script),
            state=state,
            start=start,
            step=last.step if last else start.step,
            steps=last.steps if last else start.steps,
            last=last,
            left=format_duration(last.seconds_left) if last and last.seconds_left else "",
            sheet=to_data_url("image/png", start.sheet),
            previews=read_previews(self.run.previews),
            plots=list(plot_curves(curves).items()),
            settings=list(_flatten(config).items()),
            warnings=self.warnings,
            reload=RELOAD if state == "running" else 0,
            late=int(interval),
        )


def follow_run(work: Work[T], run: RunDirectory) -> Work[T]:
    """Pass on the events and the result of a training run, and keep its page up to date."""
    page, state = RunPage(run), ""
    try:
        while True:
            try:
                event = next(work)
            except StopIteration as ended:
                result: T = ended.value
                state = "finished"
                yield from page.write(state)
                return result
            due = page.note(event)
            yield event
            if due:
                yield from page.write("running")
    except DiffuseError as error:
        state = error.message
        raise
    finally:
        work.close()
        if state != "finished":
            for _ in page.write(state or "stopped"):  # nobody can be told any more
                pass


# -- parts ----------------------------------------------------------------------------------------


def read_script() -> str:
    """Return the script of the page."""
    folder = resources.files("diffuse_cli.pages") / "templates"
    return (folder / "run.js").read_text("utf-8")


def hash_script(script: str) -> str:
    """Return the hash by which a content security policy allows a script."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def read_previews(folder: Path) -> list[dict[str, Any]]:
    """Return evenly spaced previews and the last one, each with its step, as small as they fit."""
    found = sorted(folder.glob("step-*.png"))
    every = -(-len(found) // PREVIEWS) or 1
    shown: list[dict[str, Any]] = []
    for path in found[::-1][::every][::-1]:
        with Image.open(path) as image:
            small = figures.shrink_image(image.convert("RGB"), SIDE)
        content, kind = figures.encode_png(small), "image/png"
        if len(content) > BYTES // PREVIEWS:
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=80)
            content, kind = buffer.getvalue(), "image/jpeg"
        step = int(path.stem.removeprefix("step-"))
        shown.append({"step": step, "src": to_data_url(kind, content), "size": small.size})
    return shown


def plot_curves(curves: Mapping[str, Curve]) -> dict[str, Markup]:
    """Plot the curves of a run, each with its caption."""
    plots = {}
    losses = [*_lines(curves, {"held_out_loss": "held-out"})]
    if "loss" in curves:
        own = curves["loss"]
        if own.reach:
            losses.insert(0, Line("training, smoothed", own.steps, own.smooth()))
        losses.append(Line("training", own.steps, own.values))
    if losses:
        said = "; ".join(f"{line.label}: last {Measurement(line.y[-1])}" for line in losses)
        caption = "Loss, lower is better. If only the held-out loss rises, the model memorizes."
        plots[caption] = _plot("loss", losses, said, "loss", log=True)
    for key in KIDS:
        if key in curves:
            lines = [*_lines(curves, {key: label(key)})]
            caption = f"{label(key)}, lower is better, with its standard error."
            plots[caption] = _plot(key, lines, caption, label(key))
    copies = {key: key.removeprefix("memorized_").replace("_", " ") for key in COPIES}
    if lines := [*_lines(curves, copies)]:
        caption = "Memorization rate: samples as close to training samples as copies are."
        plots[caption] = _plot("copies", lines, caption, "fraction")
    for key in ("lr", "images_per_second"):
        words, caption = CAPTIONS[key]
        if lines := [*_lines(curves, {key: words})]:
            plots[caption] = _plot(key, lines, caption, words)
    return plots


def _lines(curves: Mapping[str, Curve], names: Mapping[str, str]) -> Any:
    for key, words in names.items():
        if key in curves:
            own = curves[key]
            few = len(own.steps) < charts.FEW
            errors = own.errors if any(own.errors) else None
            yield Line(words, own.steps, own.values, errors, marks=few)


def _plot(name: str, lines: list[Line], said: str, ylabel: str, *, log: bool = False) -> Markup:
    positive = all(value > 0 for line in lines for value in line.y)
    return charts.lines(name, lines, said, "step", ylabel, log_y=log and positive)


def format_duration(seconds: float) -> str:
    """Return a time in hours, minutes and seconds, such as `1 h 20 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return settings by their names, with tables as `table.name`, as text."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{key}.")
        else:
            listed = isinstance(value, (list, tuple))
            flat[prefix + key] = ", ".join(map(str, value)) if listed else str(value)
    return flat
