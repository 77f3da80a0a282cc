"""A look at the averaged weights while training: held-out loss and preview picture."""

from __future__ import annotations

from pathlib import Path

from diffuse_cli import files, pictures
from diffuse_cli.conditioning import Condition, default_guidance
from diffuse_cli.config import SAMPLING_STEPS
from diffuse_cli.events import Notice, Progress, Work
from diffuse_cli.runtime import out_of_memory
from diffuse_cli.sampling import draw, looks, stored
from diffuse_cli.training.preparing import Plan
from diffuse_cli.training.reports import Looked
from diffuse_cli.training.rundir import RunDirectory
from diffuse_cli.training.trainer import HELD_OUT_BATCH, Trainer

PREVIEW_IMAGES = 16


def look(trainer: Trainer, run: RunDirectory, done: int) -> Work[tuple[Looked, tuple[float, ...]]]:
    """Measure and draw after `done` steps; nothing of it touches the training.

    Returns:
        What was seen, and the loss of each held-out image.
    """
    losses = trainer.held_out_losses()
    held_out_loss = None
    if losses is not None:
        held_out_loss = sum(float(p.sum()) for p in losses.split(HELD_OUT_BATCH)) / len(losses)
        run.log(step=done, held_out_loss=held_out_loss)
        if trainer.config.log:
            trainer.accelerator.log({"held_out_loss": held_out_loss}, step=done)
    path: Path | None = None
    try:
        path = yield from _preview(trainer, run.previews / f"step-{done:08d}.png")
    except Exception as error:
        if not out_of_memory(error):
            raise
        yield Notice("out of memory while drawing the preview: it is left out", warning=True)
    looked = Looked(done, held_out_loss, path)
    yield looked
    return looked, () if losses is None else tuple(losses.tolist())


def condition_of(plan: Plan) -> Condition | None:
    """Every class in turn with the default guidance, as `sample` draws; None without classes."""
    labels = tuple(range(plan.blueprint.conditions.num_classes))
    scale = default_guidance(plan.config.label_dropout)
    return Condition(labels, scale) if labels else None


def _preview(trainer: Trainer, path: Path) -> Work[Path]:
    space = trainer.plan.blueprint.space
    denoiser = trainer.plan.blueprint.denoiser(trainer.ema_net)
    state = None
    steps = min(SAMPLING_STEPS, denoiser.process.num_timesteps)
    for part in draw(
        denoiser,
        space=space,
        indices=range(PREVIEW_IMAGES),
        seed=trainer.config.seed,
        times=denoiser.process.times(steps),
        device=trainer.device,
        condition=condition_of(trainer.plan),
        batch_size=trainer.plan.room,
    ):
        state = part.state
        yield Progress("preview", part.step, steps)
    assert state is not None
    files.write_bytes(path, pictures.png(pictures.grid(looks(space, stored(space, state.x)))))
    return path
