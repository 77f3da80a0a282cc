"""How far a run is, and the learning rate there.

What depends on the length of a run (its learning rate, its snapshots, its early average) goes by
the part of the way that is behind it. The length may be planned again as the run goes on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core.kernels import laid_out
from diffuse_cli.core.losses import LOSSES, weights
from diffuse_cli.core.optimizers import OPTIMIZERS
from diffuse_cli.system.errors import lookup
from diffuse_cli.system.rng import training_draws
from diffuse_cli.training.config_layers import default_loss

if TYPE_CHECKING:
    import numpy.typing as npt

    from diffuse_cli.core.denoiser import Denoise, Denoiser
    from diffuse_cli.models.blueprint import Blueprint
    from diffuse_cli.models.image_conditioning import Inputs

    Array = npt.NDArray[Any]
    Labels = npt.NDArray[np.int64]


WHOLE = ((1.0, 1.0),)
"""A way of one part."""

RISE = 10
"""Warm-up takes at most 1/RISE of a run."""


@dataclass(frozen=True)
class Course:
    """The way of a run to its last step.

    A run of a fixed length makes an equal part of its way with each step. Where the length is
    planned again, the way so far stays, and the steps that are left share the rest equally.

    Attributes:
        steps: after so many the run ends.
        fewest: the least of all lengths that were planned so far.
        since, passed: where it was planned last: after so many steps, such a part of the way, in
            [0, 1), was behind it.
    """

    steps: int
    fewest: int
    since: int = 0
    passed: float = 0.0

    @classmethod
    def of(cls, steps: int) -> Course:
        """The way of a run of a fixed length."""
        return cls(steps, steps)

    def revised(self, done: int, steps: int) -> Course:
        """The way from here, after `done` steps, to the end of a run of another length."""
        return Course(steps, min(self.fewest, steps), done, self.at(done))

    def at(self, done: int) -> float:
        """The part of the way after `done` steps, from 0 to 1 at the end."""
        return self.passed + (1 - self.passed) * ((done - self.since) / (self.steps - self.since))

    def place(self, done: int) -> float:
        """After how many steps a run of as many, but of a fixed length, is as far as this one is
        after `done`: exactly `done` where nothing was planned again."""
        left = self.steps / (self.steps - self.since)
        return self.passed * self.steps + (1 - self.passed) * (done - self.since) * left

    def passes(self, share: float, done: int) -> bool:
        """Whether the step that makes `done` comes to a share of the way, or goes beyond it."""
        return self.at(done - 1) < share <= self.at(done)

    def crosses(self, every: int, done: int) -> bool:
        """Whether the step that makes `done` comes to a multiple of `every` places."""
        return self.place(done) // every > self.place(done - 1) // every


def warmup_of(config: TrainConfig, fewest: int | None = None) -> int:
    """The steps over which the learning rate rises: a tenth of the run at most; of the shortest
    plan where there were several, so that the rate does not fall back into its rise."""
    return min(config.warmup, (fewest or config.steps) // RISE)


def lr_at(
    config: TrainConfig, course: Course, step: int, parts: Sequence[tuple[float, float]] = WHOLE
) -> float:
    """The learning rate of the step after `step` steps: a linear rise, and half a cosine to 0 over
    the way.

    Args:
        parts: of the way, each with a cosine of its own: where it ends, and the share of the rate.
    """
    assert config.lr is not None
    warmup = warmup_of(config, course.fewest)
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    place, begins = course.place(step), 0.0
    for share_of_way, share in parts:
        ends = share_of_way * course.steps
        if place < ends:
            angle = math.pi * (place - begins) / (ends - begins)
            return config.lr * share * rise * 0.5 * (1 + math.cos(angle))
        begins = ends
    return 0.0


# -- updating -------------------------------------------------------------------------------------

# Weights moved by a clipped gradient, or left where it is not finite.


class Updater:
    """A network with its optimizer.

    An optimizer that obeys takes divisor and verdict as from a gradient scaler: both stay on the
    device, and clipping needs no extra pass over the gradient.

    Attributes:
        net: the network itself, which has the weights.
        prepared: what to call; compiled and shared among processes as the run is.
        optimizer: of those weights, as Accelerate prepares it.
    """

    def __init__(
        self,
        config: TrainConfig,
        net: nn.Module,
        accelerator: Accelerator,
        *,
        lr: float,
        weight_decay: float,
        compiled: bool = False,
    ) -> None:
        self.net, self._accelerator, self._most = net, accelerator, config.grad_clip
        make = lookup(OPTIMIZERS, config.optimizer or "adamw", "--optimizer")
        optimizer = make(net, lr=lr, weight_decay=weight_decay)
        body: Any = _compiled(net) if compiled else net
        self.prepared, self.optimizer = accelerator.prepare(body, optimizer)
        # Without a gradient scaler of its own; Metal's kernel reads neither scale nor verdict.
        self.obeys = (
            getattr(optimizer, "_step_supports_amp_scaling", False)
            and accelerator.scaler is None
            and accelerator.device.type != "mps"
        )

    def norm(self) -> Tensor:
        """The norm of the gradient, on the device; clips it here if the optimizer will not."""
        weights = list(self.net.parameters())
        if self.obeys:
            return get_total_norm([w.grad for w in weights if w.grad is not None])
        norm = self._accelerator.clip_grad_norm_(weights, self._most)
        return torch.zeros((), device=self._accelerator.device) if norm is None else norm.detach()

    def move(self, norm: Tensor) -> None:
        """Take the optimizer's step for a gradient of that norm, if it is finite, and forget it."""
        if self.obeys:
            self.optimizer.optimizer.found_inf = (~norm.isfinite()).float()
            self.optimizer.optimizer.grad_scale = (norm / self._most).clamp(min=1)
        # A gradient scaler decides by itself, and must see what it scaled too much.
        if self.obeys or self._accelerator.scaler is not None or bool(norm.isfinite()):
            self.optimizer.step()
        self.optimizer.zero_grad()

    def moments(self) -> dict[str, Tensor]:
        """The state of the optimizer, by the names of the weights."""
        state = self.optimizer.optimizer.state
        return {
            f"{name}.{k}": value
            for name, weight in self.net.named_parameters()
            for k, value in state.get(weight, {}).items()
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Give the optimizer the state that `moments` took."""
        weights = dict(self.net.named_parameters())
        for name, value in saved.items():
            owner, k = name.rpartition(".")[::2]
            weight, own = weights[owner], value
            if value.shape == weight.shape:
                # The fused AdamW walks through memory: moments must lie as their weight does.
                own = torch.empty_like(weight, dtype=value.dtype, requires_grad=False).copy_(value)
            self.optimizer.optimizer.state[weight][k] = own.to(weight.device)


def _compiled(net: nn.Module) -> Any:
    """`net` compiled, with kernels that are not chosen by their time, which would change bytes."""
    import torch._inductor.config as inductor

    exact: dict[str, Any] = {"deterministic": True} if hasattr(inductor, "deterministic") else {}
    return torch.compile(net, options=exact)


# -- objective ------------------------------------------------------------------------------------

# The training loss of a configuration, and its value on images under fixed draws.


class Objective:
    """The loss of a configuration, weighted by timestep of a denoiser's process.

    Args:
        teacher: of a loss that follows one, or None.

    Attributes:
        weight: of each timestep's loss, (T,) on the CPU in float64; None for 1.
    """

    def __init__(
        self,
        config: TrainConfig,
        denoiser: Denoiser,
        device: torch.device,
        teacher: Denoise | None = None,
    ) -> None:
        name = config.loss or default_loss(config.variance)
        self._loss = lookup(LOSSES, name, "--loss")
        self._more: dict[str, Any] = {} if teacher is None else {"teacher": teacher}
        self.weight = weights(config.weighting or "none", denoiser)
        self._weights = None if self.weight is None else self.weight.float().to(device)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, cond: Mapping[str, Tensor]
    ) -> Tensor:
        """The loss of each image, (B,)."""
        weight = None if self._weights is None else self._weights[t]
        return self._loss(denoiser, x0, t, noise, weight, **self._more, **cond)


def losses_of(
    objective: Objective,
    denoiser: Denoiser,
    blueprint: Blueprint,
    samples: Array,
    labels: Labels,
    *,
    given: Inputs | None = None,
    rows: Array | None = None,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """The loss of each image, a batch at a time.

    Image k always gets the same timestep and noise, so the losses of two networks can be compared.

    Args:
        samples: as stored, (N, C, *size).
        labels: (N,), -1 for none.
        given: what each is given, for a model that is given anything.
        rows: the codes of its columns, for a model that is told a table.
    """
    for start in range(0, len(samples), batch_size):
        here = range(start, min(start + batch_size, len(samples)))
        shape = samples.shape[1:]
        draws = training_draws(seed, 0, here, shape=shape, device=device, purpose="held-out")
        t = (draws.u * denoiser.process.num_timesteps).long()
        part = slice(here.start, here.stop)
        own, classes = (torch.tensor(of[part], device=device) for of in (samples, labels))
        row = None if rows is None else torch.tensor(rows[part], device=device)
        x0 = laid_out(blueprint.space.to_model(own))
        told = given.at(here, device) if given else None
        cond = blueprint.conditions.told(classes, told, row)
        with torch.no_grad():
            yield objective(denoiser, x0, t, draws.noise, cond)
