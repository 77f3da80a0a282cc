"""A run under way: when to log, measure, save and stop."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli.config import TrainConfig
from diffuse_cli.config.options import words_of
from diffuse_cli.core.networks import count_parameters
from diffuse_cli.media import MEDIA
from diffuse_cli.system import run_reader
from diffuse_cli.system.devices import machine, rank
from diffuse_cli.system.errors import DataError, DiffuseError, Interrupted, Terminated
from diffuse_cli.system.events import Notice, Stop, Work, until
from diffuse_cli.training.batches import Faults, feeding, low_frequencies
from diffuse_cli.training.checkpoints import (
    Pace,
    begin_trackers,
    check_room,
    checkpoint_of,
    last_checkpoint,
    restore,
    started,
    versions,
    with_first_weights,
    write_config,
)
from diffuse_cli.training.ema_weights import no_weak, rewind_snapshots, save_snapshot, snapshot_due
from diffuse_cli.training.memory_estimate import images_at_a_time
from diffuse_cli.training.monitor import SAVE, Meter, Monitor, Step, Trained, chores
from diffuse_cli.training.plan import (
    Plan,
    bring_up_to_date,
    check_batch,
    model_of,
    prepare,
    settled,
)
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.sample_command import sample_line
from diffuse_cli.training.teacher import taught_by
from diffuse_cli.training.time_budget import Budget, Laps
from diffuse_cli.training.time_estimate import Forecast
from diffuse_cli.training.trainer import PATIENCE, Outcome, Trainer, diverged

TYPED_AGAIN = (
    "gradient_checkpointing", "strict", "cache", "workers", "save_every", "log", "log_every",
)  # fmt: skip
"""Options that a run directory does not keep, and without which it would go on otherwise."""


class Run:
    """A run from its first step, or from a checkpoint's, to its model file."""

    def __init__(
        self,
        plan: Plan,
        accelerator: Accelerator,
        run: RunDirectory,
        stop: Stop,
        debug: bool,
        laps: Laps,
    ) -> None:
        self.plan, self.accelerator, self.run, self.stop = plan, accelerator, run, stop
        self.debug, self.laps = debug, laps
        self.budget: Budget | None = None
        self.main = accelerator.is_main_process
        self.loss: float | None = None
        self.faults = Faults(plan, accelerator)
        self.room = images_at_a_time(plan, accelerator)
        self.plan = dataclasses.replace(plan, room=min(plan.room, self.room))

    def work(self, spent: float) -> Work[Trained | None]:
        """Start or resume, step to the end, and write the model file; `spent` as in `fit`."""
        began = self.laps.clock()
        checkpoint = yield from last_checkpoint(self.plan, self.run)
        if checkpoint is None and self.plan.config.goes_on:
            self.plan = yield from with_first_weights(self.plan)
        teacher = yield from taught_by(self.plan.config, checkpoint)
        self.plan = dataclasses.replace(self.plan, teacher=teacher)
        if self.accelerator.is_main_process:
            low = low_frequencies(self.plan)
            self.plan = dataclasses.replace(self.plan, low_frequencies=low)
        start = checkpoint.step if checkpoint else 0
        if self.main:
            check_room(self.plan, self.run)
        # Plans that differ by a step would leave the processes waiting for each other.
        spent = float(max(gather_object([spent + self.laps()])))
        config, course, self.budget = yield from started(
            self.plan, self.accelerator, self.run, checkpoint, self.stop, self.room, spent
        )
        self.laps()  # what that took is in the budget
        made_with = yield from versions(checkpoint)
        self.plan = dataclasses.replace(self.plan, config=config, versions=made_with)
        trainer = Trainer(self.plan, self.accelerator)
        trainer.follow(course)
        monitor = Monitor(trainer, self.run, self.stop)
        if checkpoint:
            restore(trainer, checkpoint)
            yield from monitor.restore(checkpoint)
        if self.main:
            yield from monitor.begin()
        self._begin(start)
        last = start
        if self.main:
            monitor.settle()
        if start < self._end(trainer) or monitor.due(start, self._end(trainer)):
            yield from begin_trackers(trainer.config, self.accelerator, self.run)
            yield Notice(self._chosen(trainer))
            last = yield from self._steps(trainer, monitor, start)
        if self.main:
            monitor.settle()
            raw = trainer.net.state_dict() if config.keep_raw else None
            average = trainer.ema.net.state_dict()
            model = model_of(trainer.plan, last, average, raw, trainer.weak)
            bring_up_to_date(self.run.model, model)
            if self.budget and last == trainer.course.steps:
                write_config(self.run, trainer.config)
            if trainer.course.steps != course.steps:
                yield Notice(
                    f"{course.steps:,} steps became {trainer.course.steps:,}, to end in time"
                )
            if config.keep_weak and trainer.weak is None:
                yield Notice(no_weak(trainer.course.steps, last, config.weak_after))
        self.accelerator.wait_for_everyone()
        return self._result(trainer, monitor, last, self.laps.clock() - began)

    # -- before ------------------------------------------------------------------------------------

    def _begin(self, start: int) -> None:
        """Prepare the run directory for the steps from `start` on."""
        if self.main:
            if self.plan.config.overwrite:
                self.run.clear()
            self.run.rewind_metrics(start)
            rewind_snapshots(self.run.snapshots, start)
            write_config(self.run, self.plan.config, self.budget)
        self.accelerator.wait_for_everyone()

    def _chosen(self, trainer: Trainer) -> str:
        return self.plan.chosen(
            count_parameters(trainer.net),
            self.accelerator.num_processes,
            self.accelerator.device.type,
        )

    # -- the loop ----------------------------------------------------------------------------------

    def _steps(self, trainer: Trainer, monitor: Monitor, start: int) -> Work[int]:
        """Step to the end, and return what that is."""
        config, done, end = self.plan.config, start, self._end(trainer)
        if monitor.due(done, end):
            yield from self._measure(trainer, monitor, done, end)
            if self.main and done >= end:
                self.run.save(checkpoint_of(trainer, done, monitor, self.budget))
            if error := self._agreed()[0]:
                raise self._ended(error, done, "its checkpoint is complete")
        meter, pace = Meter(trainer.batch_size), Pace(config.save_every)
        forecast = Forecast(config, done, end)
        self._count()
        while done < end:
            try:
                outcome = yield from self._step(trainer, done, start)
            except DataError as gone:
                raise self._gone(gone, trainer, monitor, done) from gone
            if trainer.bad >= PATIENCE:
                raise diverged(trainer, done, self.run.newest_step(), debug=self.debug)
            done += 1
            seconds = self.laps()
            if self.budget:
                self.budget.count_step(seconds, settled=not trainer.unread)
            meter.add(outcome.loss)
            if done % config.log_every == 0 or done == end:
                yield self._log(trainer, done, meter, float(outcome.grad_norm))
                monitor.logged(self.loss)
                yield from self.faults.tell()
            else:
                yield Step(done, trainer.course.steps)
            yield from forecast.after(done)
            self._snapshot(trainer, done)
            steps = before = trainer.course.steps
            if self.main and self.budget and self.budget.due and done < steps:
                steps = self.budget.replan(done, steps, chores(trainer.plan))
            error, steps = self._agreed(steps)
            if steps != before:
                trainer.follow(trainer.course.revised(done, steps))
                if self.main:
                    write_config(self.run, trainer.config, self.budget)
                end = self._end(trainer)
            if error is None and monitor.due(done, end):
                yield from self._measure(trainer, monitor, done, end)
                meter.pause()
                error = self._agreed()[0]
            if self.main and (error or pace.due(done, monitor.previewed == done) or done == end):
                with pace.measured():
                    self.run.save(checkpoint_of(trainer, done, monitor, self.budget))
                self._count(SAVE)
                meter.pause()
            if error:
                raise self._ended(error, done, "checkpoint saved")
        return done

    def _end(self, trainer: Trainer) -> int:
        """The step after which it stops."""
        steps = trainer.course.steps
        return min(steps, trainer.config.stop_at or steps)

    def _measure(self, trainer: Trainer, monitor: Monitor, done: int, end: int) -> Work[None]:
        """Measure what is due."""
        if self.main:
            for chore, work in monitor.work(done, end):
                self._count()
                try:
                    yield from work
                except DataError as gone:
                    raise self._gone(gone, trainer, monitor, done) from gone
                cut_off = self.stop() is not None
                self._count(None if cut_off else chore)

    def _step(self, trainer: Trainer, step: int, start: int) -> Work[Outcome]:
        """A step; a signal ends the first one at once if it compiles, which takes long."""
        parts = trainer.accumulation
        if self.plan.config.compile and step == start:
            try:
                with self.stop.at_once():
                    outcome = trainer.step(step)
            except (Interrupted, Terminated) as error:
                kept = "nothing is lost" if start == 0 else "its checkpoint is complete"
                raise self._ended(error, start, kept) from error
        else:
            outcome = trainer.step(step)
        if trainer.accumulation != parts:
            yield Notice(
                f"out of memory: from step {step + 1:,} on the {trainer.batch_size} images of a "
                f"batch are computed in {trainer.accumulation} parts",
                warning=True,
            )
        return outcome

    def _snapshot(self, trainer: Trainer, done: int) -> None:
        """Save the averages of other lengths when due."""
        course, count = trainer.course, self.plan.config.ema_lengths
        if self.main and trainer.powers and count and snapshot_due(done, course, count):
            save_snapshot(self.run.snapshots, trainer.powers, done, course, count)

    def _count(self, chore: str | None = None) -> None:
        """Count the time since it was counted last: that of a chore, or of anything else."""
        seconds = self.laps()
        if self.budget:
            self.budget.count(seconds, chore)

    def _agreed(self, steps: int = 0) -> tuple[DiffuseError | None, int]:
        """The error to stop with, and the number of steps that the first process planned: the same
        on every process, so that all stop after the same step, and go on to the same one."""
        error = self.stop()
        if self.accelerator.num_processes == 1:
            return error, steps
        asked = torch.tensor([error is not None, steps * self.main], device=self.accelerator.device)
        stopping, steps = self.accelerator.reduce(asked, "sum").tolist()
        errors: list[DiffuseError | None] = gather_object([error]) if stopping else []
        return next((e for e in errors if e is not None), None), steps

    def _gone(
        self, error: DataError, trainer: Trainer, monitor: Monitor, step: int
    ) -> DiffuseError:
        """Save where nothing is left to read; what to say."""
        if self.main:
            self.run.save(checkpoint_of(trainer, step, monitor, self.budget))
        return self._ended(error, step, "checkpoint saved").of_one()

    def _ended(self, error: DiffuseError, step: int, kept: str) -> DiffuseError:
        config = self.plan.config
        again = run_reader.resume_line(config.data, config.out, words_of(config, TYPED_AGAIN))
        return type(error)(f"{error.message} at step {step:,}: {kept}", f"Go on with: {again}")

    def _log(self, trainer: Trainer, done: int, meter: Meter, norm: float) -> Step:
        lr = trainer.lr_at(done - 1)
        self.loss, speed = meter.read()
        told = {"loss": self.loss, "lr": lr, "grad_norm": norm, "images_per_second": speed}
        if self.main:
            values = {**told}
            if feed := trainer.batches.feed:
                values["waiting"] = feed.share()
            self.run.log(step=done, **values)
        if self.plan.config.log:
            self.accelerator.log(told, step=done)
        steps = trainer.course.steps
        budget = self.budget
        left = budget.left if budget else (steps - done) * meter.batch_size / speed
        many = MEDIA[trainer.plan.images.medium].MANY
        return Step(done, steps, self.loss, lr, norm, speed, max(0.0, left), many)

    # -- after -------------------------------------------------------------------------------------

    def _result(
        self, trainer: Trainer, monitor: Monitor, step: int, seconds: float
    ) -> Trained | None:
        if not self.main:
            return None
        return Trained(
            model=self.run.model,
            run=self.run.path,
            step=step,
            steps=trainer.course.steps,
            loss=self.loss,
            held_out_loss=monitor.held_out_loss,
            parameters=count_parameters(trainer.net),
            images=len(self.plan.images),
            processes=self.accelerator.num_processes,
            seconds=round(seconds, 3),
            best=monitor.found(),
            medium=self.plan.images.medium,
            sample_line=sample_line(self.plan, self.run.model),
        )


# -- training loop --------------------------------------------------------------------------------

# `fit`: from a configuration to a model file, as a generator of events.


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
        with feeding(plan), _threads():
            return (yield from Run(plan, accelerator, run, stop, debug, laps).work(spent))


@contextlib.contextmanager
def _threads() -> Iterator[None]:
    """Put the number of threads back, where a resumed run computed with its own."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


@contextlib.contextmanager
def _holding(run: RunDirectory, config: TrainConfig) -> Iterator[None]:
    """Lock first: if another run is under way, that is the error to show."""
    with run.held():
        if not config.goes_on:
            run.check_free(config.overwrite)
        if config.eval_every:
            run.check_best(config.overwrite)
        yield
