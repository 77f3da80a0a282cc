"""Error of a run that diverged, and the module where it started."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from diffuse_cli.system import DivergedError

if TYPE_CHECKING:
    from diffuse_cli.training.trainer import Trainer

PATIENCE = 10
"""A run has diverged after this many steps in a row whose gradient is not finite."""


def divergence_error(
    trainer: Trainer, step: int, newest: int | None, *, debug: bool
) -> DivergedError:
    """Return the error of a run that diverged with the step after `step` steps.

    Args:
        newest: the step of the newest checkpoint.
        debug: whether to name the module where the divergence starts.
    """
    where = f"the last good checkpoint is step {newest:,}" if newest else "there is no checkpoint"
    text = (
        f"training diverged: {PATIENCE} steps in a row up to {step + 1:,} had a gradient that "
        f"is not finite; {where}"
    )
    if not debug:
        return DivergedError(text, "Lower --lr, or use --debug to find the module where it starts")
    module = find_nonfinite_module(trainer, step)
    cause = "every module's output was finite, the gradient was not"
    if module:
        cause = f"{module} was the first module whose output was not finite"
    return DivergedError(f"{text}; {cause}", "Lower --lr")


def find_nonfinite_module(trainer: Trainer, step: int) -> str:
    """Return the first module whose output is not finite in the step after `step` steps, or "".

    It repeats the step. A bad step changes no weights, so the repetition fails in the same way.
    """
    nonfinite: list[str] = []
    names = {module: name for name, module in trainer.net.named_modules() if name}

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if not nonfinite and isinstance(output, Tensor) and not bool(output.isfinite().all()):
            nonfinite.append(names[module])

    hooks = [module.register_forward_hook(look) for module in names]
    try:
        with torch.no_grad():
            denoiser = trainer.plan.blueprint.denoiser(partial(trainer.infer, trainer.net))
            chances = trainer.timestep_chances()
            for positions in trainer.parts(step):
                trainer.losses(denoiser, step, positions, chances)
    finally:
        for hook in hooks:
            hook.remove()
    return nonfinite[0] if nonfinite else ""
