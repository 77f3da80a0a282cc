"""`train`: a training run as an iterator of its events."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias, Unpack

from diffuse_cli.api import calls
from diffuse_cli.api.keywords import TrainOptions
from diffuse_cli.config.options import read_toml
from diffuse_cli.config.parsers import to_plain
from diffuse_cli.config.train_options import TrainConfig, from_file
from diffuse_cli.core.settings import shorten_repr
from diffuse_cli.system import Interrupted, Notice, Progress, Table, Terminated, UsageError, finish
from diffuse_cli.system.accelerator import RunProcessState
from diffuse_cli.system.processes import PendingSignal, note_interrupts
from diffuse_cli.training import run_events as events
from diffuse_cli.training.configuration import configure
from diffuse_cli.training.loop import fit

TrainingEvent: TypeAlias = (
    Progress
    | Notice
    | Table
    | events.Started
    | events.Step
    | events.Previewed
    | events.Compared
    | events.Validated
    | events.Trained
)
"""Events of a training run. `Trained` is the last one."""

OUT = Path(TrainConfig.out)
"""Default of `out`, compared by identity, because the same path can be passed."""


def train(
    data: calls.Data,
    *,
    out: str | os.PathLike[str] = OUT,
    resume: bool = False,
    overwrite: bool = False,
    config: str | Path | Mapping[str, Any] | None = None,
    **options: Unpack[TrainOptions],
) -> Iterator[TrainingEvent]:
    """Train a model, as `diffuse train` does, and yield the events of the run.

    The run starts with the first event: `*_, trained = train(...)` runs it to the end. Several runs
    can take turns, also in threads, and give the same models as one after another.

    A `Step` follows every step, with the loss after each `log_every` steps. If you stop iterating
    (`break`, an error, Ctrl-C, `close()`), the run saves a checkpoint. `resume=True` continues from
    there, and writes the model file of a run without interruption.

    Args:
        data: a path, or samples in memory: a sequence of images, arrays, tensors, paths, or pairs
            of one of these and its class, for example a `TensorDataset`. One thread at a time
            reads samples when they are needed, and more than once. They must not call `diffuse`.
        out: the model file to write, by default as in `config`, or `model.safetensors`. The run
            directory is next to it.
        config: the options of a configuration file, or its path.
        options: options of `diffuse train`, such as `steps=1000`, `classes=True` or
            `unet={"width": 32}`. They override `config`. `given` may be samples in memory, in the
            order of the data.

    Raises:
        UsageError: at once, if an option is unknown or does not suit the others.
        DiffuseError: while you iterate, for every error of the command.
        KeyboardInterrupt: on Ctrl-C, after the checkpoint is saved.
    """
    typed: dict[str, Any] = {**options}
    if out is not OUT:  # `config` may name another
        typed["out"] = calls.path_of("out", out)
    typed |= {name: True for name, on in (("resume", resume), ("overwrite", overwrite)) if on}
    # They are opened twice, and a generator ends.
    typed |= {name: [*typed[name]] for name in calls.HELD if isinstance(typed.get(name), Iterator)}
    with (
        contextlib.ExitStack() as stack,
        calls.convert_errors(),
        calls.use_torch_defaults(),
    ):  # what can be refused now is
        if config is not None and not isinstance(config, (str, Path, Mapping)):
            text = f"config: {shorten_repr(config)} is not a path, and not a mapping of options"
            hint = "Pass a file, a dict or None"
            raise UsageError(text, hint, code="invalid_value", option="config")
        filed = read_toml(config) if isinstance(config, (str, Path)) else to_plain(config)
        if typed.get("dry_run") or (filed or {}).get("dry_run"):
            text = "dry_run: only the command prints a plan"
            raise UsageError(text, "Leave it out", option="dry_run")
        calls.check_data("data", data)
        configure({"data": "", **from_file(calls.convert_keywords(typed, stack))}, filed)
    return _events(data, typed, filed)


def _events(
    data: calls.Data, typed: Mapping[str, Any], filed: Mapping[str, Any] | None
) -> Iterator[TrainingEvent]:
    with contextlib.ExitStack() as stack, calls.convert_errors():
        options = {
            **from_file(calls.convert_keywords(typed, stack)),
            "data": stack.enter_context(calls.open_data(data)),
        }
        with calls.use_torch_defaults():
            config = configure(options, filed)
        yield from _run_training(config)


def _run_training(config: TrainConfig) -> Iterator[TrainingEvent]:
    """Yield the events of a training run. It saves a checkpoint when it is closed."""
    stop, process_state = PendingSignal(), RunProcessState()
    work = fit(config, stop)
    while True:
        try:
            with note_interrupts(stop), process_state.take_turn(), calls.use_torch_defaults():
                event = next(work)
        except StopIteration as end:
            if end.value is not None:  # on the first of several processes
                yield end.value
            return
        except Interrupted as error:
            raise KeyboardInterrupt(str(error)) from error
        if isinstance(event, Notice):
            event = replace(event, text=calls.replace_flags(event.text))
        try:
            yield event
        except GeneratorExit:
            if stop() is None:  # Ctrl-C may have come in the last step
                stop.handle(signal.SIGTERM, None)
            with (
                contextlib.suppress(Interrupted, Terminated),
                process_state.take_turn(),
                calls.use_torch_defaults(),
            ):
                finish(work)
            raise
