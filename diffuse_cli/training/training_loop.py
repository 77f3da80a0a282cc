"""`fit`: from a configuration to a model file, as a generator of events."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from diffuse_cli.config import TrainConfig
from diffuse_cli.system.devices import machine, rank
from diffuse_cli.system.events import Stop, Work, until
from diffuse_cli.training.batches import feeding
from diffuse_cli.training.deadline import Laps
from diffuse_cli.training.loop import Run
from diffuse_cli.training.plan import check_batch, prepare, settled
from diffuse_cli.training.reports import Trained
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.threads import kept


def fit(
    config: TrainConfig,
    stop: Stop | None = None,
    *,
    debug: bool = False,
    spent: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> Work[Trained | None]:
    """Train a model and write its file.

    Yields `Progress` and `Notice` while it prepares, then a `Step` for every step, with `Previewed`
    and `Validated` between them.

    Args:
        config: completed here from the data and the machine.
        stop: asked after every step; an error from it ends the run with a checkpoint.
        debug: if training diverges, find the module that was not finite.
        spent: seconds of --minutes that are over; all but the reading of images counts.
        clock: tells the seconds.

    Returns:
        `Trained`, or None on every process but the first.

    Raises:
        DiffuseError: of any kind; earlier files stay.
    """
    run = RunDirectory(config.out)
    stop = stop or Stop()
    main = rank() == 0
    laps = Laps(clock)
    with (
        _holding(run, config) if main else contextlib.nullcontext(),
        machine(
            config.precision,
            config.device,
            accumulation=config.accumulation,
            log=config.log,
            folder=run.logs,
        ) as accelerator,
    ):
        check_batch(config, accelerator.num_processes)
        spent += laps()
        plan = yield from until(stop, prepare(config, accelerator, run))
        laps()
        plan = settled(plan, accelerator)
        with feeding(plan), kept():
            return (yield from Run(plan, accelerator, run, stop, debug, laps).work(spent))


@contextlib.contextmanager
def _holding(run: RunDirectory, config: TrainConfig) -> Iterator[None]:
    """Lock first: if another run is under way, that is the error to show."""
    with run.held():
        if not config.goes_on:
            run.check_free(config.overwrite)
        if config.eval_every:
            run.check_best(config.overwrite)
        yield
