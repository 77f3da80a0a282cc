"""Save and restore the state of a training run, decide when, and check that the disk has room.

All random numbers come from the seed, so a checkpoint has no generator state.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather_object

from diffuse_cli.core.data_gaussian import read
from diffuse_cli.models import model_file
from diffuse_cli.system import Notice, OutputError, UsageError, Work, files
from diffuse_cli.training import ema_weights
from diffuse_cli.training.chores import can_look
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.run_directory import KEPT, Checkpoint, RunDirectory
from diffuse_cli.training.time_budget import Budget
from diffuse_cli.training.trainer import Trainer

if TYPE_CHECKING:
    from diffuse_cli.training.monitor import Monitor


EVERY = 500
"""Default steps between checkpoints."""

SHARE = 100
"""Saving takes at most 1/SHARE of the time by default."""

Versions = tuple[Mapping[str, Any], ...]
"""Versions of the programs that made a run, each with its first step."""

SPARE = 2**23
"""Bytes for metrics, previews, headers and the loss history of the timesteps."""


class CheckpointSchedule:
    """Schedule of checkpoints: every `every` steps.

    Without `every`, a checkpoint follows every `EVERY` steps and every preview, so that both show
    the same model. It is skipped if less than `SHARE` times the duration of the last save has
    passed since.
    """

    def __init__(self, every: int | None) -> None:
        self.every = every
        self._ended, self._took = time.monotonic(), 0.0

    def is_due(self, step: int, previewed: bool = False) -> bool:
        """Whether to save after `step` steps."""
        if self.every is not None:
            return step % self.every == 0
        due = previewed or step % EVERY == 0
        return due and time.monotonic() - self._ended >= SHARE * self._took

    @contextlib.contextmanager
    def measure_save(self) -> Iterator[None]:
        """Measure how long a save takes."""
        began = time.monotonic()
        yield
        self._ended = time.monotonic()
        self._took = self._ended - began


def check_room(plan: Plan, run: RunDirectory) -> None:
    """Refuse a run whose files do not fit on the disk, next to the files that it will replace.

    Raises:
        OutputError: the disk is too small.
    """
    weights = 4 * sum(map(math.prod, plan.blueprint.shapes.values()))
    moments = 2 * weights
    weak = weights if plan.config.keep_weak else 0
    model = weights * (2 if plan.config.keep_raw else 1) + weak
    best = model if plan.config.eval_every else 0
    kept_weights = model if best or (plan.config.keep != "last" and can_look(plan)) else 0
    powers = len(ema_weights.KEPT_LENGTHS) * weights if plan.config.ema_lengths else 0
    snapshots = powers * ((plan.config.ema_lengths or 0) + 2)
    critic = weights + moments if plan.config.distills else 0
    checkpoints = (KEPT + 1) * (2 * weights + weak + moments + kept_weights + powers + critic)
    replaced_paths = (run.checkpoints, run.model, run.snapshots)
    replaced_bytes = sum(map(files.measure_size, replaced_paths))
    if best:
        replaced_bytes += files.measure_size(run.best)
    total = checkpoints + snapshots + 2 * (model + best) + SPARE
    files.check_room(run.path, total - replaced_bytes, max(moments, model, powers))


def make_checkpoint(
    monitor: Monitor, step: int, versions: Versions, budget: Budget | None
) -> Checkpoint:
    """Make a checkpoint of the state after `step` steps, with the time budget of --minutes."""
    trainer, plan = monitor.trainer, monitor.trainer.plan
    average, weak = trainer.ema.net.state_dict(), trainer.weak
    errors = monitor.errors_at(step)
    scaler = trainer.accelerator.scaler
    return Checkpoint(
        step=step,
        model=trainer.net.state_dict(),
        ema=model_file.merge_weights(average, weak=weak.weights if weak else None),
        about=model_file.metadata(
            plan.model(step, trainer.progress.steps, average, None, weak, errors)
        ),
        optimizer=trainer.updater.optimizer_state(),
        history=trainer.history.tensors(),
        best=monitor.best.tensors if monitor.best else {},
        powers=trainer.powers.tensors() if trainer.powers else {},
        critic=trainer.matching.tensors() if trainer.matching else {},
        state={
            "ema_updates": trainer.ema.updates,
            "ema_forgotten": trainer.ema.forgotten,
            **({"weak_step": weak.step} if weak else {}),
            "unread": [bool(norm.isfinite()) for norm in trainer.unread],
            "bad": trainer.bad,
            "accumulation": trainer.accumulation,
            "scaler": scaler.state_dict() if scaler is not None else None,
            **plan.data.state(bool(plan.config.classes)),
            "gaussian": plan.blueprint.gaussian.plain if plan.blueprint.gaussian else None,
            **({"distilled": plan.teacher.description} if plan.teacher else {}),
            "versions": list(versions),
            "watch": monitor.state(),
            **({"budget": asdict(budget), "course": asdict(trainer.progress)} if budget else {}),
        },
    )


def record_versions(checkpoint: Checkpoint | None) -> Work[Versions]:
    """Return the versions that a run was made with, including the current ones.

    Warns if the checkpoint was written by other versions.
    """
    past = tuple(checkpoint.state["versions"]) if checkpoint else ()
    now, last = model_file.versions(), past[-1] if past else {}
    if changed := [name for name in now if last.get(name, now[name]) != now[name]]:
        before = ", ".join(f"{name} {last[name]}" for name in changed)
        after = ", ".join(f"{name} {now[name]}" for name in changed)
        yield Notice(
            f"the checkpoint was written by {before}, and this is {after}: rounding may make "
            "results differ from an uninterrupted run's",
            warning=True,
        )
    if {**last, **now} == last:
        return past
    return (*past, {**now, "step": checkpoint.step if checkpoint else 0})


def restore_gaussian(plan: Plan, saved: Checkpoint) -> Plan:
    """Return the plan with the Gaussian of the checkpoint, even if the data have changed."""
    blueprint, values = plan.blueprint, saved.state["gaussian"]
    if values is None:
        return plan
    gaussian = read(values, blueprint.space.channels, blueprint.space.size)
    return replace(plan, blueprint=replace(blueprint, gaussian=gaussian))


def restore_trainer(trainer: Trainer, saved: Checkpoint) -> None:
    """Restore the trainer's state from a checkpoint."""
    trainer.net.load_state_dict(dict(saved.model))
    average, _, weak = model_file.split_weights(saved.ema)
    trainer.ema.net.load_state_dict(dict(average))
    if weak:
        trainer.weak = ema_weights.EarlyWeights(saved.state["weak_step"], weak)
    trainer.ema.updates = saved.state["ema_updates"]
    trainer.ema.forgotten = saved.state["ema_forgotten"]
    if trainer.powers:
        trainer.powers.restore(saved.powers, trainer.ema.updates)
    norms = (0.0 if good else math.inf for good in saved.state["unread"])
    trainer.unread = [torch.tensor(norm, device=trainer.device) for norm in norms]
    trainer.bad = saved.state["bad"]
    parts = min(saved.state["accumulation"], trainer.most_parts)
    trainer.accumulation = max(parts, trainer.accumulation)
    trainer.history.restore(saved.history)
    trainer.updater.restore(saved.optimizer)
    if trainer.matching and saved.critic:
        trainer.matching.restore(saved.critic)
    if trainer.accelerator.scaler is not None and saved.state["scaler"]:
        trainer.accelerator.scaler.load_state_dict(saved.state["scaler"])


# The checkpoint that a run resumes from.


def find_last_checkpoint(plan: Plan, run: RunDirectory) -> Work[Checkpoint | None]:
    """Find the checkpoint to resume from, or None, and report it.

    Raises:
        OutputError: a model file exists without a complete checkpoint.
        UsageError: the run distils another model.
    """
    config = plan.config
    if not config.resumes:
        return None
    checkpoint, passed = run.load()
    for text in passed:
        yield Notice(text, warning=True)
    if checkpoint is None:
        if run.model.exists():
            raise OutputError(
                f"{files.show(run.model)} exists, but {files.show(run.path)} has no "
                "complete checkpoint",
                f"Start from its weights: --init {files.show(run.model)} -o another.safetensors",
                code="checkpoint_missing",
                path=run.path,
            )
        yield Notice(f"no complete checkpoint in {files.show(run.path)}: starting at step 0")
        return None
    yield from plan.data.check_fingerprint(config, checkpoint.state)
    began = checkpoint.state.get("distilled")
    if began and plan.teacher and began["teacher"] != plan.teacher.sha256:
        message = f"{files.show(str(config.init))} is not the model that this run distils"
        hint = "Restore the file, or replace the run with --overwrite"
        raise UsageError(message, hint, code="run_differs", path=config.init)
    yield Notice(f"resuming from step {checkpoint.step:,} of {files.show(run.path)}")
    return checkpoint


def check_common_checkpoint(checkpoint: Checkpoint | None, run: RunDirectory) -> None:
    """Refuse to train from different checkpoints, if -o is on another disk of each machine.

    Every process must call this. Processes at different steps would wait for each other.

    Raises:
        UsageError: the processes found different checkpoints.
    """
    starts = {*gather_object([checkpoint.step if checkpoint else None])}
    if len(starts) > 1:
        steps = sorted(step for step in starts if step is not None)
        texts = ["no checkpoint"] * (None in starts) + [f"step {step:,}" for step in steps]
        raise UsageError(
            f"the processes found different checkpoints in {files.show(run.path)}: "
            f"{' and '.join(texts)}",
            "Set -o to a folder on a disk that all machines share",
            code="checkpoint_missing",
            path=run.path,
        )
