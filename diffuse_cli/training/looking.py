"""A look at the averaged weights while training: held-out loss and preview picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli import files, pictures
from diffuse_cli.conditioning import Condition, default_guidance
from diffuse_cli.config import SAMPLING_STEPS
from diffuse_cli.events import Notice, Progress, Work
from diffuse_cli.resolving import DrawSettings
from diffuse_cli.runtime import out_of_memory
from diffuse_cli.sampling import Drawing, draw, looks, stored
from diffuse_cli.training.preparing import Plan
from diffuse_cli.training.reports import Looked
from diffuse_cli.training.rundir import RunDirectory
from diffuse_cli.training.trainer import HELD_OUT_BATCH, Trainer

if TYPE_CHECKING:
    import torch

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


def drawn(plan: Plan, net: Any, count: int, device: torch.device) -> Iterator[Drawing]:
    """Images of a network of the plan's kind, drawn as `sample` draws them by default: of every
    class in turn where there are classes."""
    labels = tuple(range(plan.blueprint.conditions.num_classes))
    guidance = default_guidance(plan.config.label_dropout)
    denoiser, space = plan.blueprint.denoiser(net), plan.blueprint.space
    settings = DrawSettings(
        steps=min(SAMPLING_STEPS, denoiser.process.num_timesteps),
        condition=Condition(labels, guidance) if labels else None,
        seed=plan.config.seed,
        batch_size=plan.room,
    )
    return draw(denoiser, settings, range(count), space=space, device=device)


def _preview(trainer: Trainer, path: Path) -> Work[Path]:
    space = trainer.plan.blueprint.space
    state = None
    for part in drawn(trainer.plan, trainer.ema_net, PREVIEW_IMAGES, trainer.device):
        state = part.state
        yield Progress("preview", part.step, part.steps)
    assert state is not None
    files.write_bytes(path, pictures.png(pictures.grid(looks(space, stored(space, state.x)))))
    return path
