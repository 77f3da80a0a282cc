"""Distillation: the teacher, and the last phase, which matches the student's distribution to it.

Learning the endpoints of the teacher's trajectories blurs samples where similar noise leads to
different endpoints. The last phase therefore uses the distribution matching loss of
`core.distillation`, which needs no trajectories.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from diffuse_cli.config.sample_options import DISTILLED_STEPS, SamplerChoice
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import DataGaussian, Denoise, Denoiser, distillation
from diffuse_cli.core.guidance import guide
from diffuse_cli.core.kernels import arrange_weights
from diffuse_cli.core.losses import simple
from diffuse_cli.models import model_file
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.system import Notice, UsageError, Work, files
from diffuse_cli.system.rng import Draws, training_draws
from diffuse_cli.training.optimization import Updater

PATHS = 0.85
"""The fraction of the run that learns from trajectories."""

SLOWER = 0.05
"""The student's learning rate in the last phase, as a fraction of the run's. With a larger rate the
critic falls behind, and samples lose variety (benchmarks/README.md)."""

PARTS = ((PATHS, 1.0), (1.0, SLOWER))
"""The end of each phase, and its learning rate, as fractions."""

FASTER = 2.0
"""The critic's constant learning rate, as a multiple of the run's."""

NOISES = 2
"""Samples per position of the batch. With fewer samples, the directions are mostly noise."""

UPDATES = 2
"""Updates of the critic in each step, so that it follows the current samples."""


WEIGHTS, MOMENTS = "net.", "optimizer."
"""Prefixes of names in the file of a critic."""


StudentSamples = tuple[range, Tensor, Mapping[str, Tensor]]
"""Positions of the batch, the student's samples there, in one and in two evaluations, and their
conditions."""


class DistributionMatching:
    """Critic, a denoiser of the student's samples, and its distribution matching loss.

    Args:
        net: the network for the critic, with the teacher's weights, on its device.

    Attributes:
        net: the critic's network.
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
        critic_config = replace(config, weight_decay=0.0, compile=False)
        self._updater = Updater(critic_config, net, accelerator, rate=FASTER)
        self._critic = blueprint.denoiser(self._updater.prepared)
        self._samples: list[StudentSamples] = []

    def tensors(self) -> dict[str, Tensor]:
        """Return the critic's weights and optimizer state."""
        return {
            **{f"{WEIGHTS}{name}": t for name, t in self.net.state_dict().items()},
            **{f"{MOMENTS}{name}": t for name, t in self._updater.optimizer_state().items()},
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Restore the state that `tensors` returned."""
        for start, load in ((WEIGHTS, self.net.load_state_dict), (MOMENTS, self._updater.restore)):
            load({k.removeprefix(start): v for k, v in saved.items() if k.startswith(start)})

    def begin(self) -> None:
        """Forget the samples of a step that did not finish."""
        self._samples = []

    def losses(
        self, student: Denoiser, step: int, positions: range, cond: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the loss of each position, (B,), averaged over its samples."""
        count = len(positions)
        positions = range(NOISES * positions.start, NOISES * positions.stop)
        cond = {key: value.repeat_interleave(NOISES, 0) for key, value in cond.items()}
        noise = self._draws(step, positions, "matching noise").noise
        draws = [self._draws(step, positions, f"matching {k}") for k in range(2)]
        x0 = distillation.generate_samples(student, noise, draws[0].noise, **cond)
        self._samples.append((positions, x0.detach(), cond))
        levels = [self._draws(step, positions, f"matching level {k}") for k in range(2)]
        t = distillation.matching_timesteps(student.process, torch.cat([d.u for d in levels]))
        self._updater.prepared.eval()
        value = distillation.distribution_matching_loss(
            x0,
            t,
            torch.cat([d.noise for d in levels]),
            process=student.process,
            teacher=self._teacher,
            critic=self._critic,
            **distillation.repeat_conditions(cond),
        )
        mean: Tensor = value.unflatten(0, (2, count, NOISES)).mean((0, 2))
        return mean

    def follow(self, step: int, batch_size: int) -> None:
        """Train the critic on the samples of this step, if there are any."""
        self._updater.prepared.train()
        for update in range(UPDATES if self._samples else 0):
            for part in self._samples:
                self._learn(step, update, part, batch_size)
            self._updater.take_step(self._updater.clip_gradient())
        self._samples = []

    def _learn(self, step: int, update: int, part: StudentSamples, batch_size: int) -> None:
        """Add the gradient of the critic's loss on a part of the batch."""
        positions, x0, conditions = part
        draws = [self._draws(step, positions, f"critic {update} {k}") for k in range(2)]
        t = (torch.cat([d.u for d in draws]) * self._critic.process.num_timesteps).long()
        noise = torch.cat([d.noise for d in draws])
        cond = distillation.repeat_conditions(conditions)
        losses = simple(self._critic, x0, t, noise, **cond)
        # Accelerate divides by the accumulation, and processes are averaged.
        accelerator = self.accelerator
        parts = accelerator.gradient_accumulation_steps * accelerator.num_processes
        accelerator.backward(losses.sum() * (parts / (2 * NOISES * batch_size)))

    def _draws(self, step: int, positions: range, purpose: str) -> Draws:
        seed, shape, device = self.config.seed, self._shape, self.accelerator.device
        return training_draws(seed, step, positions, shape=shape, device=device, purpose=purpose)


# The model that a run distils, which initializes the student and guides it.

AMPLIFIED = 2.0
"""The largest allowed ratio of the error in x_0 to the error of the prediction. It is at most 1 for
v, x0 and flow."""


@dataclass(frozen=True)
class Teacher:
    """Model to distil.

    Attributes:
        sha256: the hash of the model file.
        guidance: the guidance scale. None for an unconditional model.
    """

    sha256: str
    model: model_file.StoredModel
    guidance: float | None = None

    @property
    def description(self) -> dict[str, Any]:
        """Description of the teacher for checkpoints and model files."""
        guidance = {} if self.guidance is None else {"guidance": self.guidance}
        return {"teacher": self.sha256, **guidance}

    @property
    def wiener(self) -> DataGaussian | None:
        """The Gaussian of the Wiener filter that the network corrects, if any."""
        blueprint = self.model.blueprint
        return blueprint.gaussian if blueprint.wiener else None

    def sampling(self, blueprint: Blueprint) -> SamplerChoice:
        """Return the sampling settings of the distilled model, whose weights include guidance."""
        steps = min(DISTILLED_STEPS, blueprint.diffusion.num_timesteps)
        return SamplerChoice("consistency", steps, 1.0 if blueprint.conditions else None)

    def make_denoiser(self, accelerator: Accelerator) -> Denoise:
        """Return the teacher's denoiser on the device, with guidance and without gradients."""
        net = arrange_weights(self.model.network().to(accelerator.device))

        def infer(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            with torch.no_grad(), accelerator.autocast():
                return net(x, t, **cond).float()  # type: ignore[no-any-return]

        denoiser = self.model.blueprint.denoiser(infer)
        return denoiser if self.guidance is None else guide(denoiser, self.guidance)


def check_distillation(target: str, denoiser: Denoiser) -> None:
    """Refuse to distil a model whose target determines x_0 badly at high noise.

    Raises:
        UsageError: the target amplifies errors too much.
    """
    a, b = denoiser.coefficients
    bars = denoiser.process.alpha_bars
    factor = 1 / (a - b * (bars / (1 - bars)).sqrt()).abs()
    if float(factor.max()) > AMPLIFIED:
        raise UsageError(
            f"a model with --target {target} cannot be distilled: its errors grow up to "
            f"{float(factor.max()):,.0f} times in the image",
            "Fine-tune it with another target first: diffuse train DATA --init MODEL --target v",
            code="model_mismatch",
        )


def load_teacher(config: TrainConfig) -> Work[Teacher | None]:
    """Load the model that a run distils, or None.

    Raises:
        ModelFileError: it is missing or damaged.
        UsageError: it is distilled already.
    """
    if not config.distills:
        return None
    assert config.init is not None
    file = yield from model_file.find(config.init)
    model = file.model
    if model.distilled is not None:
        text = f"{files.show(config.init)} is distilled already"
        hint = "Pass the model that it was distilled from"
        raise UsageError(text, hint, code="model_mismatch", path=config.init)
    if model.sampling and model.sampling.is_autoguided:
        yield Notice(
            "the guidance by the early EMA checkpoint, which the model file recommends, is not "
            "distilled: samples will be like the model's with --weak-guidance 1",
            warning=True,
        )
    return Teacher(file.sha256, model, config.teacher_guidance)
