"""The model that a run distils: where it starts, and what it follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from diffuse_cli.config import DISTILLED_STEPS, SamplerChoice, TrainConfig
from diffuse_cli.core.guidance import guide
from diffuse_cli.core.kernels import lay_out
from diffuse_cli.core.losses import TAUGHT
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system import files
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Work
from diffuse_cli.training.run_directory import Checkpoint

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from diffuse_cli.core.denoiser import Denoise, Denoiser
    from diffuse_cli.models.model_file import Model

AMPLIFIED = 2.0
"""By how much an error in the target may grow in x_0: v, x0 and flow have 1 at most."""


@dataclass(frozen=True)
class Teacher:
    """The model that is distilled.

    Attributes:
        sha256: of its file.
        guidance: its scale; None for a model without conditions.
    """

    sha256: str
    model: Model
    guidance: float | None = None

    @property
    def described(self) -> dict[str, Any]:
        """What a checkpoint and a model file keep of it."""
        guidance = {} if self.guidance is None else {"guidance": self.guidance}
        return {"teacher": self.sha256, **guidance}

    def sampling(self, blueprint: Blueprint) -> SamplerChoice:
        """How to draw from what it becomes; guidance is in its weights."""
        steps = min(DISTILLED_STEPS, blueprint.diffusion.num_timesteps)
        return SamplerChoice("consistency", steps, 1.0 if blueprint.conditions else None)

    def denoise(self, accelerator: Accelerator) -> Denoise:
        """The model on the device, guided, without gradients."""
        net = lay_out(self.model.network().to(accelerator.device))

        def infer(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            with torch.no_grad(), accelerator.autocast():
                return net(x, t, **cond).float()  # type: ignore[no-any-return]

        denoiser = self.model.blueprint.denoiser(infer)
        return denoiser if self.guidance is None else guide(denoiser, self.guidance)


def check_distilled(config: TrainConfig, denoiser: Denoiser) -> None:
    """Refuse to distil a model whose target says too little of x_0 where there is much noise.

    Raises:
        UsageError
    """
    if config.loss not in TAUGHT:
        return
    a, b = denoiser.coefficients
    bars = denoiser.process.alpha_bars
    factor = 1 / (a - b * (bars / (1 - bars)).sqrt()).abs()
    if float(factor.max()) > AMPLIFIED:
        raise UsageError(
            f"a model of target {config.target} cannot be distilled: an error of its network is "
            f"up to {float(factor.max()):,.0f} times as large in the image",
            "Go on with another target first: diffuse train DATA --init MODEL --target v",
        )


def taught_by(config: TrainConfig, checkpoint: Checkpoint | None) -> Work[Teacher | None]:
    """The model that a run distils, or None.

    Raises:
        ModelFileError: it is missing or damaged.
        UsageError: it is another than the run began with.
    """
    if config.loss not in TAUGHT:
        return None
    began = checkpoint.state.get("distilled") if checkpoint else None
    assert config.init is not None
    found = yield from model_file.find(config.init)
    if began and began["teacher"] != found.sha256:
        raise UsageError(
            f"{files.show(config.init)} is not the model that this run began to distil",
            "Put that one back, or start again with --overwrite",
        )
    scale = config.teacher_guidance
    if scale not in (None, 1) and not found.model.blueprint.conditions:
        raise UsageError(
            f"--teacher-guidance {scale:g}: the model is told nothing that it could be guided by",
            "Leave it out",
        )
    return Teacher(found.sha256, found.model, scale)
