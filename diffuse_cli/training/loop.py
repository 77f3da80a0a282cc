"""`fit`: from a configuration to a model file, as a generator of events."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli import files, runs
from diffuse_cli.config import TrainConfig
from diffuse_cli.config.training import to_file
from diffuse_cli.core.networks import count_parameters
from diffuse_cli.errors import DiffuseError, Interrupted, OutputError, Terminated, UsageError
from diffuse_cli.events import Notice, Stop, Work, until
from diffuse_cli.options import options, read_toml, to_toml
from diffuse_cli.runtime import machine, rank
from diffuse_cli.training.checkpoints import (
    Pace,
    bring_up_to_date,
    check_room,
    checkpoint_of,
    model_of,
    restore,
    versions,
)
from diffuse_cli.training.diagnosing import PATIENCE, diverged
from diffuse_cli.training.ema import no_weak
from diffuse_cli.training.memory import images_at_a_time
from diffuse_cli.training.monitor import Monitor
from diffuse_cli.training.plan import (
    Plan,
    check_batch,
    check_fingerprint,
    first_weights,
    prepare,
    settled,
)
from diffuse_cli.training.power import rewind_snapshots, save_snapshot, snapshot_due
from diffuse_cli.training.reports import Meter, Step, Trained
from diffuse_cli.training.rundir import Checkpoint, RunDirectory
from diffuse_cli.training.timing import Forecast, cut_short, fill_minutes, parted, too_few
from diffuse_cli.training.trainer import Outcome, Trainer, lr_at


def fit(
    config: TrainConfig, stop: Stop | None = None, *, debug: bool = False
) -> Work[Trained | None]:
    """Train a model and write its file.

    Yields `Progress` and `Notice` while it prepares, then a `Step` for every step, with `Previewed`
    and `Validated` between them.

    Args:
        config: completed here from the data and the machine.
        stop: asked after every step; an error from it ends the run with a checkpoint.
        debug: if training diverges, find the module that was not finite.

    Returns:
        `Trained`, or None on every process but the first.

    Raises:
        DiffuseError: of any kind; earlier files stay.
    """
    run = RunDirectory(config.out)
    stop = stop or Stop()
    main = rank() == 0
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
        plan = yield from until(stop, prepare(config, accelerator, run))
        plan = settled(plan, accelerator)
        return (yield from _Run(plan, accelerator, run, stop, debug).work())


@contextlib.contextmanager
def _holding(run: RunDirectory, config: TrainConfig) -> Iterator[None]:
    """Lock first: if another run is under way, that is the error to show."""
    with run.held():
        if not config.goes_on:
            run.check_free(config.overwrite)
        if config.eval_every:
            run.check_best(config.overwrite)
        yield


class _Run:
    """A run under way: when to log, measure, save and stop."""

    def __init__(
        self, plan: Plan, accelerator: Accelerator, run: RunDirectory, stop: Stop, debug: bool
    ) -> None:
        self.plan, self.accelerator, self.run, self.stop = plan, accelerator, run, stop
        self.debug = debug
        self.main = accelerator.is_main_process
        self.loss: float | None = None
        self.room = images_at_a_time(plan, accelerator)
        self.plan = dataclasses.replace(plan, room=min(plan.room, self.room))

    def work(self) -> Work[Trained | None]:
        """Start or resume, step to the end, and write the model file."""
        began = time.monotonic()
        checkpoint = yield from self._checkpoint()
        if checkpoint is None and self.plan.config.goes_on:
            init = yield from first_weights(self.plan.config, self.plan.blueprint)
            self.plan = dataclasses.replace(self.plan, init=init)
        start = checkpoint.step if checkpoint else 0
        if self.main:
            check_room(self.plan, self.run)
        config = yield from self._fix_steps(start)
        made_with = yield from versions(checkpoint)
        self.plan = dataclasses.replace(self.plan, config=config, versions=made_with)
        trainer = Trainer(self.plan, self.accelerator)
        monitor = Monitor(trainer, self.run, self.stop)
        if checkpoint:
            restore(trainer, checkpoint)
            yield from monitor.restore(checkpoint)
        if self.main:
            yield from monitor.begin()
        self._begin(start)
        if self.main:
            monitor.settle()
        end = min(config.steps, config.stop_at or config.steps)
        if start < end or monitor.due(start, end):
            self._init_trackers()
            yield Notice(self._chosen(trainer))
            yield from self._steps(trainer, monitor, start, end)
        last = max(start, end)
        if self.main:
            monitor.settle()
            raw = trainer.net.state_dict() if config.keep_raw else None
            average = trainer.ema.net.state_dict()
            model = model_of(self.plan, last, average, raw, trainer.weak)
            bring_up_to_date(self.run.model, model)
            if config.keep_weak and trainer.weak is None:
                yield Notice(no_weak(config.steps, last))
        self.accelerator.wait_for_everyone()
        return self._result(trainer, monitor, last, time.monotonic() - began)

    # -- before ------------------------------------------------------------------------------------

    def _checkpoint(self) -> Work[Checkpoint | None]:
        """The checkpoint to go on from, or None; tells the user which."""
        config = self.plan.config
        if not config.goes_on:
            return None
        checkpoint, passed = self.run.load()
        for text in passed:
            yield Notice(text, warning=True)
        if checkpoint is None:
            if self.run.model.exists():
                raise OutputError(
                    f"{files.show(self.run.model)} exists, but {files.show(self.run.path)} has no "
                    "complete checkpoint",
                    f"Start from its weights: --init {files.show(self.run.model)} -o "
                    "another.safetensors",
                )
            yield Notice(
                f"no complete checkpoint in {files.show(self.run.path)}: starting at step 0"
            )
            return None
        yield from check_fingerprint(self.plan, checkpoint.state)
        yield Notice(f"resuming from step {checkpoint.step:,} of {files.show(self.run.path)}")
        if config.steps < checkpoint.step:
            raise UsageError(f"--steps {config.steps}: step {checkpoint.step} is done already")
        return checkpoint

    def _fix_steps(self, start: int) -> Work[TrainConfig]:
        """The configuration with its steps fixed: --minutes measures, --resume may extend."""
        config, seconds = self.plan.config, None
        if config.minutes is not None:
            measuring = fill_minutes(self.plan, self.accelerator, self.room)
            config, seconds = yield from until(self.stop, measuring)
            config = dataclasses.replace(config, steps=start + config.steps)
            yield Notice(
                f"{seconds:.3g} s a step of {config.batch_size} images: {config.steps:,} steps"
            )
        config = yield from parted(config, self.room, self.accelerator.num_processes)
        if start and self.run.exists():
            before = read_toml(self.run.config).get("steps")
            if before != config.steps:
                yield Notice(
                    f"{before:,} steps become {config.steps:,}: the learning rate follows the "
                    "new schedule"
                )
        yield from cut_short(config)
        if not start:
            yield from too_few(config, seconds)
        return config

    def _begin(self, start: int) -> None:
        """Prepare the run directory for the steps from `start` on."""
        if self.main:
            if self.plan.config.overwrite:
                self.run.clear()
            self.run.rewind_metrics(start)
            rewind_snapshots(self.run.snapshots, start)
            files.write_text(self.run.config, to_toml(to_file(self.plan.config, control=False)))
        self.accelerator.wait_for_everyone()

    def _chosen(self, trainer: Trainer) -> str:
        return self.plan.chosen(
            count_parameters(trainer.net),
            self.accelerator.num_processes,
            self.accelerator.device.type,
        )

    def _init_trackers(self) -> None:
        if self.plan.config.log:
            values = {
                f.name: value
                for f, _ in options(self.plan.config)
                if isinstance(value := getattr(self.plan.config, f.name), (int, float, str))
            }
            self.accelerator.init_trackers("diffuse", config=values)

    # -- the loop ----------------------------------------------------------------------------------

    def _steps(self, trainer: Trainer, monitor: Monitor, start: int, end: int) -> Work[None]:
        config = self.plan.config
        if monitor.due(start, end):
            if self.main:
                yield from monitor.work(start, end)
                if start >= end:
                    self.run.save(checkpoint_of(trainer, start, monitor))
            if error := self._stopping():
                raise self._ended(error, start, "its checkpoint is complete")
        meter, pace = Meter(trainer.batch_size), Pace(config.save_every)
        forecast = Forecast(config, start, end)
        for step in range(start, end):
            outcome = yield from self._step(trainer, step, start)
            done = step + 1
            if trainer.bad >= PATIENCE:
                raise diverged(trainer, step, self.run.newest_step(), debug=self.debug)
            meter.add(outcome.loss)
            if done % config.log_every == 0 or done == end:
                yield self._log(done, meter, float(outcome.grad_norm), lr_at(config, step))
                monitor.logged(self.loss)
            else:
                yield Step(done, config.steps)
            yield from forecast.after(done)
            self._snapshot(trainer, done)
            error = self._stopping()
            if error is None and monitor.due(done, end):
                if self.main:
                    yield from monitor.work(done, end)
                meter.pause()
                error = self._stopping()
            if self.main and (error or pace.due(done, monitor.previewed == done) or done == end):
                with pace.measured():
                    self.run.save(checkpoint_of(trainer, done, monitor))
                meter.pause()
            if error:
                raise self._ended(error, done, "checkpoint saved")

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
        steps, count = self.plan.config.steps, self.plan.config.ema_lengths
        if self.main and trainer.powers and count and snapshot_due(done, steps, count):
            save_snapshot(self.run.snapshots, trainer.powers, done, steps, count)

    def _ended(self, error: DiffuseError, step: int, kept: str) -> DiffuseError:
        again = runs.resume_line(self.plan.config.data, self.plan.config.out)
        return type(error)(f"{error.message} at step {step:,}: {kept}", f"Go on with: {again}")

    def _stopping(self) -> DiffuseError | None:
        """The error to stop with, the same on every process: all stop after the same step."""
        error = self.stop()
        if self.accelerator.num_processes == 1:
            return error
        asked = torch.tensor(float(error is not None), device=self.accelerator.device)
        if not float(self.accelerator.reduce(asked, "sum")):
            return None
        errors: list[DiffuseError | None] = gather_object([error])
        return next(e for e in errors if e is not None)

    def _log(self, done: int, meter: Meter, norm: float, lr: float) -> Step:
        self.loss, speed = meter.read()
        if self.main:
            self.run.log(step=done, loss=self.loss, lr=lr, grad_norm=norm, images_per_second=speed)
        if self.plan.config.log:
            self.accelerator.log({"loss": self.loss, "lr": lr, "grad_norm": norm}, step=done)
        left = (self.plan.config.steps - done) * meter.batch_size / speed
        return Step(done, self.plan.config.steps, self.loss, lr, norm, speed, left)

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
            steps=self.plan.config.steps,
            loss=self.loss,
            held_out_loss=monitor.held_out_loss,
            parameters=count_parameters(trainer.net),
            images=len(self.plan.images),
            processes=self.accelerator.num_processes,
            seconds=round(seconds, 3),
            best=monitor.found(),
        )
