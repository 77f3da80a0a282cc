"""The second part of distilling: what the student draws is moved to the teacher's distribution.

The ends of paths make samples that are blurred where noise alike leads to different ends. So the
last part of the way goes by another loss, `core.distillation`, that asks for no path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffuse_cli.config.sample_options import DISTILLED_STEPS, SamplerChoice
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import distillation
from diffuse_cli.core.guidance import guide
from diffuse_cli.core.kernels import laid_out, lay_out
from diffuse_cli.core.losses import TAUGHT, simple
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Work
from diffuse_cli.system.rng import Draws, training_draws
from diffuse_cli.training.optimization import Updater

if TYPE_CHECKING:
    from diffuse_cli.core.denoiser import Denoise, Denoiser
    from diffuse_cli.models.model_file import StoredModel


PATHS = 0.85
"""The part of the way that is done by paths."""

SLOWER = 0.05
"""The student's learning rate in the other part, as a share of the run's. Where it is faster, the
critic falls behind, and samples become alike (benchmarks/README.md)."""

PARTS = ((PATHS, 1.0), (1.0, SLOWER))
"""Where each part ends, and its learning rate."""

FASTER = 2.0
"""The critic's learning rate, constant, over the run's."""

NOISES = 2
"""Noises to draw from at each position: directions from few samples are mostly noise."""

UPDATES = 2
"""Of the critic, in each step: it must know the samples of now."""


WEIGHTS, MOMENTS = "net.", "optimizer."
"""How names begin in the file of a critic."""


@dataclass(frozen=True)
class Drawn:
    """What the student has drawn at positions of the batch, once by one evaluation and once by two,
    and what it was told."""

    positions: range
    x0: Tensor
    cond: Mapping[str, Tensor]


class Matching:
    """A critic, which is a denoiser of what the student draws, and the loss that it gives.

    Args:
        net: for the critic, with the teacher's weights, on its device.

    Attributes:
        net: the critic.
    """

    def __init__(
        self,
        config: TrainConfig,
        blueprint: Blueprint,
        net: nn.Module,
        teacher: Denoise,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.accelerator, self.net, self._teacher = config, accelerator, net, teacher
        self._shape = blueprint.space.shape
        self._updater = Updater(
            config, net, accelerator, lr=FASTER * (config.lr or 0.0), weight_decay=0.0
        )
        self._critic = blueprint.denoiser(self._updater.prepared)
        self._drawn: list[Drawn] = []

    def tensors(self) -> dict[str, Tensor]:
        """The state of the critic: its weights, and its optimizer's."""
        return {
            **{f"{WEIGHTS}{name}": value for name, value in self.net.state_dict().items()},
            **{f"{MOMENTS}{name}": value for name, value in self._updater.moments().items()},
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go back to what `tensors` returned."""
        for start, load in ((WEIGHTS, self.net.load_state_dict), (MOMENTS, self._updater.restore)):
            load({k.removeprefix(start): v for k, v in saved.items() if k.startswith(start)})

    def begin(self) -> None:
        """Forget what was drawn in a step that did not come to its end."""
        self._drawn = []

    def losses(
        self,
        student: Denoiser,
        step: int,
        positions: range,
        cond: Mapping[str, Tensor],
    ) -> Tensor:
        """The loss of each position, (B,): the mean over its samples."""
        count = len(positions)
        positions = range(NOISES * positions.start, NOISES * positions.stop)
        cond = {key: value.repeat_interleave(NOISES, 0) for key, value in cond.items()}
        noise = self._draws(step, positions, "matching noise").noise
        draws = [self._draws(step, positions, f"matching {k}") for k in range(2)]
        x0 = distillation.draw(student, laid_out(noise), draws[0].noise, **cond)
        self._drawn.append(Drawn(positions, x0.detach(), cond))
        levels = [self._draws(step, positions, f"matching level {k}") for k in range(2)]
        t = distillation.level(student.process, torch.cat([d.u for d in levels]))
        self._updater.prepared.eval()
        value = distillation.distribution_matching_loss(
            x0,
            t,
            torch.cat([d.noise for d in levels]),
            process=student.process,
            teacher=self._teacher,
            critic=self._critic,
            **distillation.twice(cond),
        )
        mean: Tensor = value.unflatten(0, (2, count, NOISES)).mean((0, 2))
        return mean

    def follow(self, step: int, batch_size: int) -> None:
        """Train the critic on what was drawn in this step, if anything was."""
        self._updater.prepared.train()
        for update in range(UPDATES if self._drawn else 0):
            for drawn in self._drawn:
                self._learn(step, update, drawn, batch_size)
            self._updater.move(self._updater.norm())
        self._drawn = []

    def _learn(self, step: int, update: int, drawn: Drawn, batch_size: int) -> None:
        """Add the gradient of the critic's loss on a part of the batch."""
        draws = [self._draws(step, drawn.positions, f"critic {update} {k}") for k in range(2)]
        t = (torch.cat([d.u for d in draws]) * self._critic.process.num_timesteps).long()
        noise = torch.cat([d.noise for d in draws])
        losses = simple(self._critic, drawn.x0, t, noise, **distillation.twice(drawn.cond))
        # Accelerate divides by the accumulation, and processes are averaged.
        accelerator = self.accelerator
        parts = accelerator.gradient_accumulation_steps * accelerator.num_processes
        accelerator.backward(losses.sum() * (parts / (2 * NOISES * batch_size)))

    def _draws(self, step: int, positions: range, purpose: str) -> Draws:
        seed, shape, device = self.config.seed, self._shape, self.accelerator.device
        return training_draws(seed, step, positions, shape=shape, device=device, purpose=purpose)


# -- teaching -------------------------------------------------------------------------------------

# The model that a run distils: where it starts, and what it follows.

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
    model: StoredModel
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


def taught_by(config: TrainConfig) -> Work[Teacher | None]:
    """Load the model that a run distils, or None.

    Raises:
        ModelFileError: it is missing or damaged.
        UsageError: guidance of a model that is conditioned on nothing.
    """
    if config.loss not in TAUGHT:
        return None
    assert config.init is not None
    found = yield from model_file.find(config.init)
    scale = config.teacher_guidance
    if scale not in (None, 1) and not found.model.blueprint.conditions:
        raise UsageError(
            f"--teacher-guidance {scale:g}: the model is told nothing that it could be guided by",
            "Leave it out",
        )
    return Teacher(found.sha256, found.model, scale)
