"""Training loop: when to log, measure, save and stop."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core.networks import count_parameters
from diffuse_cli.media import MEDIA
from diffuse_cli.models import model_file
from diffuse_cli.system import (
    DataError,
    DiffuseError,
    DivergedError,
    Interrupted,
    Notice,
    StopRequest,
    Terminated,
    Work,
    processes,
)
from diffuse_cli.system.accelerator import open_accelerator
from diffuse_cli.training import checkpoints, chores, run_events, run_length, start_report
from diffuse_cli.training.batches import UnreadableImages
from diffuse_cli.training.ema_weights import save_snapshot, snapshot_due
from diffuse_cli.training.initial_weights import load_initial_weights
from diffuse_cli.training.monitor import Monitor
from diffuse_cli.training.plan import Plan, prepare_plan
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.run_page import follow_run
from diffuse_cli.training.time_budget import Budget, Laps
from diffuse_cli.training.trainer import StepResult, Trainer

PATIENCE = 10
"""A run has diverged after this many steps in a row whose gradient is not finite."""


class TrainingRun:
    """Training run from its first step, or from a checkpoint, to its model file.

    Attributes:
        plan: the constants of the run, complete once the number of steps is known.
        trainer: the state that steps change.
        monitor: the measurements of the trainer.
        budget: the time budget of --minutes, or None.
        loss: the mean training loss in the last line of the log.
        kept_model: the model that was written instead of that of the last step.
    """

    plan: Plan
    trainer: Trainer
    monitor: Monitor

    def __init__(
        self,
        accelerator: Accelerator,
        run: RunDirectory,
        stop: StopRequest,
        debug: bool,
        laps: Laps,
    ) -> None:
        self.accelerator, self.run, self.stop, self.debug = accelerator, run, stop, debug
        self.laps, self.main = laps, accelerator.is_main_process
        self.budget: Budget | None = None
        self.loss: float | None = None
        self.kept_model: model_file.StoredModel | None = None

    def execute(self, plan: Plan, spent: float) -> Work[run_events.Trained | None]:
        """Start or resume, step to the end, and write the model file.

        Args:
            spent: as in `fit`.
        """
        began, accelerator, run = self.laps.clock(), self.accelerator, self.run
        checkpoint = yield from checkpoints.find_last_checkpoint(plan, run)
        checkpoints.check_common_checkpoint(checkpoint, run)
        init = None
        if checkpoint:
            plan = checkpoints.restore_gaussian(plan, checkpoint)
        else:
            init = yield from self.stop.run(load_initial_weights(plan))
        if self.main:
            checkpoints.check_room(plan, run)
        # Plans that differ by a step would leave the processes waiting for each other.
        spent = float(max(gather_object([spent + self.laps()])))
        progress, self.budget = yield from run_length.start_progress(
            plan, accelerator, run, checkpoint, spent
        )
        self.versions = yield from checkpoints.record_versions(checkpoint)
        config = dataclasses.replace(plan.config, steps=progress.steps)
        self.plan = dataclasses.replace(plan, config=config)
        self.trainer = trainer = Trainer(self.plan, accelerator, init)
        trainer.progress = progress
        self.monitor = monitor = Monitor(trainer, run, self.stop)
        if checkpoint:
            checkpoints.restore_trainer(trainer, checkpoint)
            yield from monitor.restore(checkpoint)
        if self.main:
            yield from monitor.load_judges()
        start = last = checkpoint.step if checkpoint else 0
        del checkpoint, init  # as large as several networks, and copied by now
        if self.main:
            if config.overwrite:
                run.clear()
            run.rewind(start)
            run.write_config(config, progress.steps)
            monitor.write_best()
        accelerator.wait_for_everyone()
        # Only the first process knows whether it can look for copies.
        due = processes.run_on_first(accelerator, lambda: monitor.is_due(start, self.end))
        if start < self.end or due:
            yield from start_report.begin_trackers(config, accelerator, run)
            yield start_report.describe_start(trainer, self.run, start)
            yield Notice(start_report.describe_run(trainer))
            last = yield from self._steps(start, due)
        else:
            yield start_report.explain_no_steps(config, start)
        if self.main:
            monitor.write_best()
            self.kept_model = monitor.choose_earlier(last)
            run.write(run.model, self.kept_model or self._make_model(last))
            if self.budget and last == trainer.progress.steps:
                run.write_config(dataclasses.replace(config, minutes=None), last)
        accelerator.wait_for_everyone()
        return self._result(last, self.laps.clock() - began) if self.main else None

    def _make_model(self, last: int) -> model_file.StoredModel:
        """Make the model file of the weights after the last step."""
        trainer, monitor = self.trainer, self.monitor
        errors, sampling = monitor.errors_at(last), monitor.recommendation_at(last)
        average, raw = trainer.ema.net.state_dict(), trainer.raw_weights()
        return self.plan.model(
            last, trainer.progress.steps, average, raw, trainer.weak, errors, sampling
        )

    @property
    def end(self) -> int:
        """The step after which the run stops."""
        steps = self.trainer.progress.steps
        return min(steps, self.plan.config.stop_at or steps)

    def _steps(self, step: int, due: bool) -> Work[int]:
        """Train from `step` to the end, and return the last step.

        Args:
            due: whether a measurement after `step` steps is due.
        """
        config, trainer, monitor, start = self.plan.config, self.trainer, self.monitor, step
        if due:
            yield from self._measure(step)
            if self.main and step >= self.end:
                self._save(step)
            if error := self._agree()[0]:
                raise self._stop_error(error, step, "its checkpoint is complete")
        meter = run_events.Meter(trainer.batch_size)
        pace = checkpoints.CheckpointSchedule(config.save_every)
        forecast = run_length.Forecast(config, step, self.end)
        unreadable = UnreadableImages(self.plan.data, self.accelerator)
        self._count()
        while step < self.end:
            try:
                outcome = yield from self._step(step, start)
            except DataError as failure:
                raise self._fail_unreadable(failure, step) from failure
            if trainer.bad >= PATIENCE:
                raise self._divergence_error(step)
            step += 1
            seconds, before = self.laps(), trainer.progress.steps
            if self.budget:
                self.budget.count_step(seconds, before)
            meter.add(outcome.loss)
            if step % config.log_every == 0 or step == self.end:
                yield self._log(step, meter, float(outcome.grad_norm))
                monitor.add_loss(self.loss)
                yield from unreadable.warn()
            else:
                yield run_events.Step(step, before)
            if self.budget is None:
                yield from forecast.report(step)
            powers, count = trainer.powers, config.ema_lengths
            if self.main and powers and count and snapshot_due(step, trainer.progress, count):
                save_snapshot(self.run.snapshots, powers, step, trainer.progress, count)
            steps, error = before, None
            # Agreeing waits for the device, so processes do it when they have just read from it.
            if self.accelerator.num_processes == 1 or not trainer.unread:
                decisions = self.budget.decisions if self.budget else 0
                if self.main and self.budget and not trainer.unread and step < steps:
                    steps = self.budget.review(step, steps, chores.plan_chores(self.plan))
                error, steps = self._agree(steps)
                if steps != before:
                    trainer.progress = trainer.progress.revise(step, steps)
                    if self.main:
                        self.run.write_config(config, steps)
                if self.budget:
                    first = self.budget.decisions > decisions == 0
                    yield from run_length.report_decision(trainer, self.budget, before, first)
            if error is None and monitor.is_due(step, self.end):
                yield from self._measure(step)
                meter.pause()
                error = self._agree()[0]
            looked = monitor.has_finished(chores.PREVIEW, step)
            if self.main and (error or pace.is_due(step, looked) or step == self.end):
                with pace.measure_save():
                    self._save(step)
                self._count(chores.SAVE)
                meter.pause()
            if error:
                raise self._stop_error(error, step, "checkpoint saved")
        return step

    def _measure(self, step: int) -> Work[None]:
        """Make the previews and evaluations that are due."""
        if self.main:
            for chore, work in self.monitor.work(step, self.end):
                self._count()
                try:
                    with contextlib.suppress(Interrupted, Terminated):
                        yield from work
                except DataError as failure:
                    raise self._fail_unreadable(failure, step) from failure
                self._count(chore if self.stop() is None else None)

    def _step(self, step: int, start: int) -> Work[StepResult]:
        """Take a step. A signal ends the first step at once if it compiles, which takes long."""
        trainer, parts = self.trainer, self.trainer.accumulation
        try:
            compiles = self.plan.config.compile and step == start
            with self.stop.raise_at_once() if compiles else contextlib.nullcontext():
                outcome = trainer.step(step)
        except (Interrupted, Terminated) as error:
            note = "no step was taken yet" if start == 0 else "its checkpoint is complete"
            raise self._stop_error(error, start, note) from error
        if trainer.accumulation != parts:
            yield Notice(
                f"out of memory: from step {step + 1:,}, a batch of {trainer.batch_size} images is "
                f"computed in {trainer.accumulation} parts",
                warning=True,
            )
        return outcome

    def _count(self, chore: str | None = None) -> None:
        """Add the time since the last count to the budget, for a chore or for other work."""
        seconds = self.laps()
        if self.budget:
            self.budget.count(seconds, chore)

    def _agree(self, steps: int = 0) -> tuple[DiffuseError | None, int]:
        """Agree on the error to stop with and the number of steps that the first process planned.

        All processes get the same result, so that they stop after the same step.
        """
        error = self.stop()
        if self.accelerator.num_processes == 1:
            return error, steps
        votes = torch.tensor([error is not None, steps * self.main], device=self.accelerator.device)
        stopping, steps = self.accelerator.reduce(votes, "sum").tolist()
        errors: list[DiffuseError | None] = gather_object([error]) if stopping else []
        return next((e for e in errors if e is not None), None), steps

    def _save(self, step: int) -> None:
        self.run.save(checkpoints.make_checkpoint(self.monitor, step, self.versions, self.budget))

    def _fail_unreadable(self, error: DataError, step: int) -> DiffuseError:
        """Save a checkpoint when no image can be read, and return the error to raise."""
        if self.main:
            self._save(step)
        return self._stop_error(error, step, "checkpoint saved").mark_local()

    def _divergence_error(self, step: int) -> DivergedError:
        """Return the error of a run that diverged with the step after `step` steps.

        With --debug it names the module where the divergence starts.
        """
        where = "there is no checkpoint"
        if newest := self.run.newest_step():
            where = f"the last good checkpoint is step {newest:,}"
        text = (
            f"training diverged: {PATIENCE} steps in a row up to {step + 1:,} had a gradient that "
            f"is not finite; {where}"
        )
        if not self.debug:
            hint = "Lower --lr, or use --debug to find the module where it starts"
            return DivergedError(text, hint)
        module = self.trainer.find_nonfinite_module(step)
        cause = "every module's output was finite, the gradient was not"
        if module:
            cause = f"{module} was the first module whose output was not finite"
        return DivergedError(f"{text}; {cause}", "Lower --lr")

    def _stop_error(self, error: DiffuseError, step: int, note: str) -> DiffuseError:
        message = f"{error.message} at step {step:,}: {note}"
        hint = f"Resume with: {start_report.resume_line(self.plan.config)}"
        return type(error)(message, hint, code=error.code, path=error.path)

    def _log(self, step: int, meter: run_events.Meter, norm: float) -> run_events.Step:
        trainer, steps = self.trainer, self.trainer.progress.steps
        lr = trainer.lr_at(step - 1)
        self.loss, speed = meter.read()
        values = {"loss": self.loss, "lr": lr, "grad_norm": norm, "images_per_second": speed}
        if self.main:
            feed = trainer.batches.feed
            self.monitor.log(step, values, **({"waiting": feed.waiting_fraction()} if feed else {}))
        seconds_left = (self.end - step) * meter.batch_size / speed
        if self.budget and self.end == steps:
            seconds_left = self.budget.seconds_left
        many = MEDIA[self.plan.data.images.medium].many
        return run_events.Step(
            step, steps, self.loss, lr, norm, speed, max(0.0, seconds_left), many
        )

    def _result(self, step: int, seconds: float) -> run_events.Trained:
        images = self.plan.data.images
        return run_events.Trained(
            model=self.run.model,
            run=self.run.path,
            step=step,
            steps=self.trainer.progress.steps,
            loss=self.loss,
            held_out_loss=self.monitor.held_out_loss,
            parameters=count_parameters(self.trainer.ema.net),
            images=len(images),
            processes=self.accelerator.num_processes,
            seconds=round(seconds, 3),
            best=self.monitor.describe_best(),
            medium=images.medium,
            advice=start_report.advise(self.plan, self.run.model, self.monitor.flaw),
            kept=self.kept_model.step if self.kept_model else None,
            copies_from=self.monitor.first_copies(),
        )


# `fit` trains from a configuration to a model file, as a generator of events.


def fit(
    config: TrainConfig,
    stop: StopRequest | None = None,
    *,
    debug: bool = False,
    spent: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
) -> Work[run_events.Trained | None]:
    """Train a model and write its file.

    Yields `Progress` and `Notice` while it prepares, then a `Step` for every step, with `Previewed`
    and `Validated` between them.

    Args:
        config: the configuration, which is completed from the data and the machine.
        stop: called after every step. An error from it ends the run with a checkpoint.
        debug: if training diverges, find the first module whose output is not finite.
        spent: seconds of --minutes that have passed. Reading images does not count.
        clock: a function that returns the time in seconds.

    Returns:
        `Trained` on the first process, None on the others.

    Raises:
        DiffuseError: any kind of error. Earlier files stay.
    """
    work = _fit(config, stop or StopRequest(), debug, spent, clock)
    if processes.rank() == 0:
        work = follow_run(work, RunDirectory(config.out), browse=config.open)
    return (yield from work)


def _fit(
    config: TrainConfig, stop: StopRequest, debug: bool, spent: float, clock: Callable[[], float]
) -> Work[run_events.Trained | None]:
    run = RunDirectory(config.out)
    main = processes.rank() == 0
    laps = Laps(clock)
    with (
        run.hold_lock(config) if main else contextlib.nullcontext(),
        open_accelerator(
            config.precision,
            config.device,
            accumulation=config.accumulation,
            log=config.log,
            folder=run.logs,
        ) as accelerator,
        run.remove_local_cache()
        if not main and accelerator.is_local_main_process
        else contextlib.nullcontext(),
    ):
        spent += laps()
        plan = yield from stop.run(prepare_plan(config, accelerator, run, laps))
        with contextlib.closing(plan.data):
            training = TrainingRun(accelerator, run, stop, debug, laps)
            return (yield from training.execute(plan, spent))
