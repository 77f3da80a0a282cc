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
from diffuse_cli.api.calls import convert_errors, use_torch_defaults
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
    """Train a model, as `diffuse train` does, with the same bytes. Nothing happens until the result
    is iterated; `*_, trained = train(...)` runs to the end. Several may be iterated in turn, or by
    threads, which take turns: it does not change a model.

    `Step` comes after every step, and has the loss after each `log_every`-th. If the iteration is
    given up (`break`, an error, Ctrl-C, `close()`), the run saves a checkpoint as after a signal,
    and `resume=True` continues from there, to the model file of a run that nothing stopped.

    Args:
        data: a path, or samples in memory: a sequence of images, arrays, tensors, paths, or pairs
            of one and its class, such as a `TensorDataset`. It is asked for its samples again as
            they are used, by one thread at a time, and must not call `diffuse` for them.
        out: the model file to write, by default that of `config`, else `model.safetensors`. Its
            run directory is created next to it.
        config: the options of a file, or its path.
        options: those of `diffuse train`, such as `steps=1000`, `classes=True` or
            `unet={"width": 32}`. They win over `config`. `given` may be samples in memory, the k-th
            for the k-th of such data.

    Raises:
        UsageError: an option that is unknown, or does not suit the others, at once.
        DiffuseError: while it is iterated, all that would end the command.
        KeyboardInterrupt: on Ctrl-C, once the checkpoint is saved.
    """
    typed: dict[str, Any] = {**options}
    if out is not OUT:  # `config` may name another
        typed["out"] = calls.path_of("out", out)
    typed |= {name: True for name, on in (("resume", resume), ("overwrite", overwrite)) if on}
    # They are opened twice, and a generator ends.
    typed |= {name: [*typed[name]] for name in calls.HELD if isinstance(typed.get(name), Iterator)}
    with (
        contextlib.ExitStack() as stack,
        convert_errors(),
        use_torch_defaults(),
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
    with contextlib.ExitStack() as stack, convert_errors():
        options = {
            **from_file(calls.convert_keywords(typed, stack)),
            "data": stack.enter_context(calls.open_data(data)),
        }
        with use_torch_defaults():
            config = configure(options, filed)
        yield from _run_training(config)


def _run_training(config: TrainConfig) -> Iterator[TrainingEvent]:
    """Yield the events of a training run. When it is closed between two, it ends with a
    checkpoint."""
    stop, process_state = PendingSignal(), RunProcessState()
    work = fit(config, stop)
    while True:
        try:
            with note_interrupts(stop), process_state.take_turn(), use_torch_defaults():
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
                use_torch_defaults(),
            ):
                finish(work)
            raise
