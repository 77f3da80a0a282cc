"""`fit`: from a configuration to a model file, as a generator of events."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffuse_cli import files, modelfile, pictures
from diffuse_cli.conditioning import Condition, default_guidance
from diffuse_cli.config import SAMPLING_STEPS, DiffusionConfig, TrainConfig
from diffuse_cli.core.unet import count_parameters
from diffuse_cli.errors import DiffuseError, DivergedError, UsageError
from diffuse_cli.events import Notice, Progress, Work, until
from diffuse_cli.options import from_dict, options, to_toml
from diffuse_cli.runtime import machine, rank, resolve_precision
from diffuse_cli.sampling import draw
from diffuse_cli.training.configuring import for_model_file
from diffuse_cli.training.preparing import (
    Plan,
    check_batch,
    check_fingerprint,
    first_weights,
    prepare,
)
from diffuse_cli.training.reports import Looked, Meter, Step, Trained
from diffuse_cli.training.rundir import Checkpoint, RunDirectory
from diffuse_cli.training.timing import fill_minutes
from diffuse_cli.training.trainer import Trainer, lr_at

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = 10
"""Steps in a row whose gradient is not finite, after which a run has diverged."""

PREVIEW_IMAGES = 16

Stop = Callable[[], DiffuseError | None]


def never() -> None:
    """The `stop` of a run that nothing interrupts."""


def fit(config: TrainConfig, stop: Stop = never) -> Work[Trained | None]:
    """Train a model and write its file.

    Yields `Progress` and `Notice` while it prepares, then a `Step` for every step, with `Looked`
    between them.

    Args:
        config: what was asked for; it is completed from the data and the machine.
        stop: asked after every step; an error it returns ends the run with a checkpoint.

    Returns:
        `Trained`, or None on every process but the first.

    Raises:
        DiffuseError: of the kind that fits; nothing that stood before is lost.
    """
    run = RunDirectory(config.out)
    main = rank() == 0
    with (
        _holding(run, config) if main else contextlib.nullcontext(),
        machine(
            resolve_precision(config.precision),
            accumulation=config.accumulation,
            log=config.log,
            folder=run.logs,
        ) as accelerator,
    ):
        check_batch(config, accelerator.num_processes)
        plan = yield from until(stop, prepare(config, accelerator, run))
        return (yield from _Run(plan, accelerator, run, stop).work())


@contextlib.contextmanager
def _holding(run: RunDirectory, config: TrainConfig) -> Iterator[None]:
    """The lock first: where another run is under way, that is the answer."""
    with run.held():
        if not config.resume:
            run.check_free(config.overwrite)
        yield


class _Run:
    """A run under way: when to log, look, save and stop."""

    def __init__(self, plan: Plan, accelerator: Accelerator, run: RunDirectory, stop: Stop) -> None:
        self.plan, self.accelerator, self.run, self.stop = plan, accelerator, run, stop
        self.main = accelerator.is_main_process
        self.held_out_loss: float | None = None
        self.loss: float | None = None
        self.saved = 0

    def work(self) -> Work[Trained | None]:
        """Start or go on, step until the end, and write the model file."""
        began = time.monotonic()
        checkpoint = yield from self._checkpoint()
        if checkpoint is None and self.plan.config.resume:
            init = first_weights(self.plan.config, self.plan.unet)
            self.plan = dataclasses.replace(self.plan, init=init)
        start = checkpoint.step if checkpoint else 0
        config = yield from self._fix_steps(start)
        self.plan = dataclasses.replace(self.plan, config=config)
        trainer = Trainer(self.plan, self.accelerator)
        if checkpoint:
            trainer.restore(checkpoint)
        self._begin(start)
        end = min(config.steps, config.stop_at or config.steps)
        if start < end:
            self._init_trackers()
            yield from self._steps(trainer, start, end)
        last = max(start, end)
        if self.main:
            model = self._model(trainer, last)
            if not modelfile.holds(self.run.model, model):
                modelfile.save(self.run.model, model)
        self.accelerator.wait_for_everyone()
        return self._result(trainer, last, time.monotonic() - began)

    # -- before ------------------------------------------------------------------------------------

    def _checkpoint(self) -> Work[Checkpoint | None]:
        """The checkpoint to go on from, or None, said either way."""
        config = self.plan.config
        if not config.resume:
            return None
        checkpoint, passed = self.run.load()
        for text in passed:
            yield Notice(text, warning=True)
        if checkpoint is None:
            yield Notice(
                f"no complete checkpoint in {files.show(self.run.path)}: starting at step 0"
            )
            return None
        yield from check_fingerprint(self.plan, checkpoint.state.get("fingerprint"))
        yield Notice(f"going on from step {checkpoint.step:,} of {files.show(self.run.path)}")
        if config.steps < checkpoint.step:
            raise UsageError(f"--steps {config.steps}: step {checkpoint.step} is done already")
        return checkpoint

    def _fix_steps(self, start: int) -> Work[TrainConfig]:
        """The configuration with its steps decided: --minutes measures, --resume may extend."""
        config = self.plan.config
        if config.minutes is not None:
            yield Notice("measuring the time of a step")
            config, seconds = fill_minutes(self.plan, self.accelerator)
            config = dataclasses.replace(config, steps=start + config.steps)
            yield Notice(
                f"{seconds:.3g} s a step of {config.batch_size} images: {config.steps:,} steps"
            )
        if start and self.run.exists():
            from diffuse_cli.options import read_toml

            before = read_toml(self.run.config).get("steps")
            if before != config.steps:
                yield Notice(
                    f"{before:,} steps become {config.steps:,}: the learning rate follows the "
                    "new schedule"
                )
        return config

    def _begin(self, start: int) -> None:
        """Make the run directory say what is under way."""
        if self.main:
            if self.plan.config.overwrite:
                self.run.clear()
            self.run.rewind_metrics(start)
            files.write_text(self.run.config, to_toml(self.plan.config))
        self.accelerator.wait_for_everyone()

    def _init_trackers(self) -> None:
        if self.plan.config.log:
            values = {
                f.name: value
                for f, _ in options(self.plan.config)
                if isinstance(value := getattr(self.plan.config, f.name), (int, float, str))
            }
            self.accelerator.init_trackers("diffuse", config=values)

    # -- the loop ----------------------------------------------------------------------------------

    def _steps(self, trainer: Trainer, start: int, end: int) -> Work[None]:
        config = self.plan.config
        meter = Meter(trainer.batch_size)
        for step in range(start, end):
            outcome = trainer.step(step)
            done = step + 1
            if trainer.bad >= PATIENCE:
                raise self._diverged(done)
            meter.add(outcome.loss)
            if done % config.log_every == 0 or done == end:
                yield self._log(done, meter, float(outcome.grad_norm), lr_at(config, step))
            else:
                yield Step(done, config.steps)
            error = self._stopping()
            if error is None and (done % config.preview_every == 0 or done == end):
                yield from self._look(trainer, done)
                meter.pause()
                error = self._stopping()
            if self.main and (error or done % config.save_every == 0 or done == end):
                self.run.save(trainer.checkpoint(done))
                self.saved = done
                meter.pause()
            if error:
                again = ["diffuse", "train", config.data, "--resume", "-o", config.out]
                raise type(error)(
                    f"{error.message} at step {done:,}: checkpoint saved",
                    f"Go on with: {shlex.join(again)}",
                )

    def _stopping(self) -> DiffuseError | None:
        """The same answer on every process: they stop after the same step."""
        error = self.stop()
        if self.accelerator.num_processes == 1:
            return error
        from accelerate.utils import gather_object

        asked = torch.tensor(float(error is not None), device=self.accelerator.device)
        if not float(self.accelerator.reduce(asked, "sum")):
            return None
        errors: list[DiffuseError | None] = gather_object([error])
        return next(e for e in errors if e is not None)

    def _diverged(self, step: int) -> DivergedError:
        kept = self.run.newest_step()
        where = f"the last good checkpoint is step {kept:,}" if kept else "there is no checkpoint"
        return DivergedError(
            f"training diverged: {PATIENCE} steps in a row up to {step:,} had a gradient that is "
            f"not finite; {where}",
            "Lower --lr",
        )

    def _log(self, done: int, meter: Meter, norm: float, lr: float) -> Step:
        self.loss, speed = meter.read()
        if self.main:
            self.run.log(step=done, loss=self.loss, lr=lr, grad_norm=norm, images_per_second=speed)
        if self.plan.config.log:
            self.accelerator.log({"loss": self.loss, "lr": lr, "grad_norm": norm}, step=done)
        left = (self.plan.config.steps - done) * meter.batch_size / speed
        return Step(done, self.plan.config.steps, self.loss, lr, norm, speed, left)

    def _look(self, trainer: Trainer, done: int) -> Work[None]:
        """Held-out loss and preview of the averaged weights; nothing of it touches the training."""
        if not self.main:
            return
        self.held_out_loss = trainer.held_out_loss()
        if self.held_out_loss is not None:
            self.run.log(step=done, held_out_loss=self.held_out_loss)
            if self.plan.config.log:
                self.accelerator.log({"held_out_loss": self.held_out_loss}, step=done)
        path = yield from self._preview(trainer, done)
        yield Looked(done, self.held_out_loss, path)

    def _preview(self, trainer: Trainer, done: int) -> Work[Path | None]:
        denoiser = modelfile.make_denoiser(trainer.ema_net, self.plan.config)
        unet = self.plan.unet
        labels = tuple(range(unet.num_classes))
        scale = default_guidance(self.plan.config.label_dropout)
        state = None
        steps = min(SAMPLING_STEPS, denoiser.process.num_timesteps)
        for part in draw(
            denoiser,
            shape=(unet.channels, *unet.size),
            indices=range(PREVIEW_IMAGES),
            seed=self.plan.config.seed,
            times=denoiser.process.times(steps),
            device=self.accelerator.device,
            condition=Condition(labels, scale) if labels else None,
        ):
            state = part.state
            yield Progress("preview", part.step, steps)
            if self.stop() is not None:
                return None
        assert state is not None
        path = self.run.previews / f"step-{done:08d}.png"
        files.write_bytes(path, pictures.png(pictures.grid(pictures.to_uint8(state.x))))
        return path

    # -- after -------------------------------------------------------------------------------------

    def _model(self, trainer: Trainer, step: int) -> modelfile.Model:
        config = self.plan.config
        diffusion = {f.name: getattr(config, f.name) for f, _ in options(DiffusionConfig)}
        return modelfile.Model(
            unet=self.plan.unet,
            diffusion=from_dict(DiffusionConfig, diffusion),
            ema=trainer.ema.net.state_dict(),
            raw=trainer.net.state_dict() if config.keep_raw else None,
            step=step,
            classes=self.plan.images.class_names,
            data=self.plan.data(),
            training=for_model_file(config),
        )

    def _result(self, trainer: Trainer, step: int, seconds: float) -> Trained | None:
        if not self.main:
            return None
        return Trained(
            model=self.run.model,
            run=self.run.path,
            step=step,
            steps=self.plan.config.steps,
            loss=self.loss,
            held_out_loss=self.held_out_loss,
            parameters=count_parameters(trainer.net),
            images=len(self.plan.images),
            processes=self.accelerator.num_processes,
            seconds=round(seconds, 3),
        )
