"""Where a step that went bad first went bad."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diffuse_cli.modelfile import make_denoiser
from diffuse_cli.training.trainer import Trainer


def first_not_finite(trainer: Trainer, step: int) -> str:
    """The module whose output is the first not to be finite when the losses of the step after
    `step` steps are computed again; an empty string where all are finite.

    A step that went bad changes no weights, so that the same happens again.
    """
    found: list[str] = []
    names = {module: name for name, module in trainer.net.named_modules() if name}

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        if not found and isinstance(output, Tensor) and not bool(output.isfinite().all()):
            found.append(names[module])

    hooks = [module.register_forward_hook(look) for module in names]
    try:
        with torch.no_grad(), trainer.accelerator.autocast():
            denoiser = make_denoiser(trainer.net, trainer.config)
            chances = trainer.chances()
            for positions in trainer.parts(step):
                trainer.losses(denoiser, step, positions, chances)
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""
