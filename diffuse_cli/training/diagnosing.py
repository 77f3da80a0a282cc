"""The error of a training that diverged, and the module where it began."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffuse_cli.system.errors import DivergedError
from diffuse_cli.training.trainer import Trainer

PATIENCE = 10
"""A run has diverged after this many steps in a row whose gradient is not finite."""


def diverged(trainer: Trainer, step: int, kept: int | None, *, debug: bool) -> DivergedError:
    """The error of a run that diverged with the step after `step` steps.

    Args:
        kept: the step of the newest checkpoint.
        debug: name the module where it begins.
    """
    where = f"the last good checkpoint is step {kept:,}" if kept else "there is no checkpoint"
    text = (
        f"training diverged: {PATIENCE} steps in a row up to {step + 1:,} had a gradient that "
        f"is not finite; {where}"
    )
    if not debug:
        return DivergedError(text, "Lower --lr; --debug names the module where it begins")
    module = first_not_finite(trainer, step)
    found = (
        f"{module} was the first module whose output was not finite"
        if module
        else "every module's output was finite, the gradient was not"
    )
    return DivergedError(f"{text}; {found}", "Lower --lr")


def first_not_finite(trainer: Trainer, step: int) -> str:
    """The first module with an output that is not finite, in a repetition of the step after `step`
    steps; empty if all are finite.

    A bad step changes no weights, so the same happens again.
    """
    found: list[str] = []
    names = {module: name for name, module in trainer.net.named_modules() if name}

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
            found.append(names[module])

    hooks = [module.register_forward_hook(look) for module in names]
    try:
        with torch.no_grad(), trainer.accelerator.autocast():
            denoiser = trainer.plan.blueprint.denoiser(trainer.net)
            chances = trainer.chances()
            for positions in trainer.parts(step):
                trainer.losses(denoiser, step, positions, chances)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""
