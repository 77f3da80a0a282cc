"""Train a model on a folder or zip of images.

Writes the model file and, next to it, a run directory with checkpoints, previews and metrics.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from diffuse_cli.commands._cli import Console, format_seconds, format_speed
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.metrics import Measurement, label
from diffuse_cli.metrics.features import KIDS
from diffuse_cli.system import Notice, Progress, files, processes
from diffuse_cli.training.configuration import configure as configure

if TYPE_CHECKING:
    from diffuse_cli.training import run_events

CONFIG = TrainConfig
EXAMPLES = (
    "diffuse train photos --minutes 5",
    "diffuse train photos --classes --preset small --steps 20000",
)


def run(config: TrainConfig, console: Console) -> None:
    """Train, or with --dry-run print what would be trained."""
    if config.dry_run:
        from diffuse_cli.training.cost_estimate import estimate

        cost = console.follow(estimate(config))
        if processes.rank() == 0:
            console.show(cost.to_dict(), [cost.to_toml().rstrip("\n")])
            if expectation := cost.describe_expectation():
                console.say(expectation)
        return
    began = time.monotonic()
    from diffuse_cli.training.loop import fit

    with processes.defer_signals() as stop:
        spent = time.monotonic() - began
        work = fit(config, stop, debug=console.debug, spent=spent)
        trained = console.follow(work, _EventDescriber(live=console.live))
    if trained is not None:
        from diffuse_cli.media import MEDIA

        console.say(_summary(trained))
        if trained.copies_from is not None:
            console.say(_describe_copies(trained, MEDIA[trained.medium].many))
        if trained.medium == "image":
            console.say("What longer runs give: docs/expect.md")
        if trained.advice:
            console.say(trained.advice)
        values = {**vars(trained), "model": str(trained.model), "run": str(trained.run)}
        del values["advice"]
        console.result([trained.model], {**values, "sha256": files.sha256(trained.model)})


class _EventDescriber:
    """Training's events as progress and notices."""

    def __init__(self, live: bool) -> None:
        self.live = live
        self.text = ""

    def __call__(self, event: Any) -> Progress | Notice | None:
        from diffuse_cli.training import run_events

        if isinstance(event, run_events.Started):
            return Notice(f"Watch the run in a browser: {files.show(str(event.page))}")
        if isinstance(event, run_events.Compared):
            return Notice(f"step {event.step:,}  {_describe_signs(event)}")
        if isinstance(event, run_events.Validated):
            best = f"  best so far: {files.show(event.best)}" if event.best else ""
            return Notice(f"step {event.step:,}  {_kid(event.key, event.kid, event.error)}{best}")
        if isinstance(event, run_events.Previewed):
            loss = event.held_out_loss
            held = f"  held-out {Measurement(loss)}" if loss is not None else ""
            where = f"  {event.preview}" if event.preview else ""
            return Notice(f"step {event.step:,}{held}{where}")
        assert isinstance(event, run_events.Step)
        if event.loss is not None and event.images_per_second is not None:
            speed = f"{format_speed(event.images_per_second)} {event.many}/s"
            self.text = f"loss {Measurement(event.loss)}  {speed}"
            if not self.live:
                wait = f"  {format_seconds(event.seconds_left)} left" if event.seconds_left else ""
                return Notice(f"step {event.step:,}/{event.steps:,}  {self.text}{wait}")
        return Progress("training", event.step, event.steps, self.text) if self.live else None


def _describe_signs(event: run_events.Compared) -> str:
    if event.signs.level:
        return "samples are copies" if event.signs.level == "serious" else "samples may be copies"
    if event.noticed is None:
        return "no signs of copies, of which there are too few images to be sure"
    return f"no signs of copies ({100 * event.noticed:g}% would be noticed)"


def _describe_copies(trained: run_events.Trained, many: str) -> str:
    since = f"from step {trained.copies_from:,} on, samples were copies of training {many}"
    if trained.kept is not None:
        return f"The model file has step {trained.kept:,}: {since}"
    return f"Samples of this model are copies: {since}. Add {many}, or train for fewer steps"


def _kid(key: str, kid: float, error: float | None, between: str = "") -> str:
    return f"{label(key)}{between} {Measurement(kid, error or 0.0)}"


def _summary(trained: run_events.Trained) -> str:
    minutes, seconds = divmod(round(trained.seconds), 60)
    lost = trained.held_out_loss
    held = f", held-out {Measurement(lost)}" if lost is not None else ""
    loss = f", loss {Measurement(trained.loss)}{held}" if trained.loss is not None else ""
    text = (
        f"{trained.parameters:,} parameters, step {trained.step:,} of "
        f"{trained.steps:,}{loss}, {minutes} min {seconds} s"
    )
    if (best := trained.best) is None:
        return text
    [key] = [key for key in KIDS if key in best]
    kid = _kid(key, best[key], best[f"{key}_standard_error"], f" at step {best['step']:,}:")
    return f"{text}; best by {kid}, {files.show(best['model'])}"
