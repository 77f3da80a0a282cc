"""Learning rate schedule, optimizer updates and training objective.

The learning rate, the snapshots and the early EMA checkpoint depend on the fraction of the run that
is done. The length of a run may change during the run.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import LOSSES, OPTIMIZERS, Denoise, Denoiser
from diffuse_cli.core.distillation import consistency_loss
from diffuse_cli.core.losses import Loss, weights
from diffuse_cli.media import Array, Indices
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.models.image_conditioning import ConditioningInputs
from diffuse_cli.system import UsageError, is_out_of_memory, lookup, rng
from diffuse_cli.training.configuration import default_loss

WHOLE = ((1.0, 1.0),)
"""Schedule with one part."""

RISE = 10
"""Warm-up takes at most 1/RISE of a run."""


@dataclass(frozen=True)
class ProgressSchedule:
    """Progress schedule of a run.

    In a run of a fixed length, every step makes equal progress. When the length changes, the
    progress so far stays, and the remaining steps share the rest equally.

    Attributes:
        steps: the number of steps of the run.
        fewest: the smallest number of steps that was planned so far.
        since, passed: the step of the last change, and the progress there in [0, 1).
    """

    steps: int
    fewest: int
    since: int = 0
    passed: float = 0.0

    @classmethod
    def of(cls, steps: int) -> ProgressSchedule:
        """Make the schedule of a run of a fixed length."""
        return cls(steps, steps)

    def revise(self, step: int, steps: int) -> ProgressSchedule:
        """Return the schedule after `step` steps with another number of steps in total."""
        return ProgressSchedule(steps, min(self.fewest, steps), step, self.progress_at(step))

    def progress_at(self, step: int) -> float:
        """Return the progress after `step` steps, from 0 to 1 at the end."""
        return self.passed + (1 - self.passed) * ((step - self.since) / (self.steps - self.since))

    def nominal_step(self, step: int) -> float:
        """Return the step of a run of fixed length at the same progress.

        It is exactly `step` if the length never changed.
        """
        ratio = self.steps / (self.steps - self.since)
        return self.passed * self.steps + (1 - self.passed) * (step - self.since) * ratio

    def passes(self, share: float, step: int) -> bool:
        """Whether step number `step` reaches or passes a fraction of the run."""
        return self.progress_at(step - 1) < share <= self.progress_at(step)

    def crosses(self, every: int, step: int) -> bool:
        """Whether step number `step` reaches or passes a multiple of `every`."""
        return self.nominal_step(step) // every > self.nominal_step(step - 1) // every


def warmup_of(config: TrainConfig, fewest: int | None = None) -> int:
    """Return the steps over which the learning rate rises: at most a tenth of the run.

    If the length changed, the shortest plan counts, so that the rate does not return to its rise.
    """
    return min(config.warmup, (fewest or config.num_steps) // RISE)


def lr_at(
    config: TrainConfig,
    progress: ProgressSchedule,
    step: int,
    parts: Sequence[tuple[float, float]] = WHOLE,
) -> float:
    """Return the learning rate of the step after `step` steps: a linear rise, then half a cosine.

    Args:
        parts: the end of each part of the run, as a fraction, and its fraction of the rate. Each
            part has its own cosine to 0.
    """
    assert config.lr is not None
    warmup = warmup_of(config, progress.fewest)
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    place, begins = progress.nominal_step(step), 0.0
    for share_of_way, share in parts:
        ends = share_of_way * progress.steps
        if place < ends:
            angle = math.pi * (place - begins) / (ends - begins)
            return config.lr * share * rise * 0.5 * (1 + math.cos(angle))
        begins = ends
    return 0.0


# Weights move by a clipped gradient. A gradient that is not finite changes nothing.


class Updater:
    """Network with its optimizer, of the configured learning rate times `rate`.

    A fused optimizer takes the gradient's divisor and whether to skip the step as from a gradient
    scaler: both stay on the device, and clipping needs no extra pass over the gradient.

    Attributes:
        net: the network with the weights.
        prepared: the network to call, compiled and distributed as the run is.
        optimizer: the optimizer of the weights, prepared by Accelerate.
    """

    def __init__(
        self, config: TrainConfig, net: nn.Module, accelerator: Accelerator, rate: float = 1.0
    ) -> None:
        self.net, self._accelerator, self._most = net, accelerator, config.grad_clip
        make = lookup(OPTIMIZERS, config.optimizer or "adamw", "--optimizer")
        optimizer = make(net, lr=rate * (config.lr or 0.0), weight_decay=config.weight_decay)
        body: Any = _compile_network(net) if config.compile else net
        self.prepared, self.optimizer = accelerator.prepare(body, optimizer)
        # Not with a gradient scaler. Metal's kernel reads neither the scale nor `found_inf`.
        self.obeys = (
            getattr(optimizer, "_step_supports_amp_scaling", False)
            and accelerator.scaler is None
            and accelerator.device.type != "mps"
        )

    def clip_gradient(self) -> Tensor:
        """Return the norm of the gradient, on the device. Clip it unless the optimizer does."""
        weights = list(self.net.parameters())
        if self.obeys:
            return get_total_norm([w.grad for w in weights if w.grad is not None])
        norm = self._accelerator.clip_grad_norm_(weights, self._most)
        return torch.zeros((), device=self._accelerator.device) if norm is None else norm.detach()

    def take_step(self, norm: Tensor) -> None:
        """Take the optimizer's step if the gradient's norm is finite, and clear the gradient."""
        if self.obeys:
            self.optimizer.optimizer.found_inf = (~norm.isfinite()).float()
            self.optimizer.optimizer.grad_scale = (norm / self._most).clamp(min=1)
        # A gradient scaler decides by itself, and must see what it scaled too much.
        if self.obeys or self._accelerator.scaler is not None or bool(norm.isfinite()):
            self.optimizer.step()
        self.optimizer.zero_grad()

    def optimizer_state(self) -> dict[str, Tensor]:
        """Return the optimizer state by the names of the weights."""
        state = self.optimizer.optimizer.state
        return {
            f"{name}.{k}": value
            for name, weight in self.net.named_parameters()
            for k, value in state.get(weight, {}).items()
        }

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Restore the optimizer state that `optimizer_state` returned."""
        weights = dict(self.net.named_parameters())
        for name, value in saved.items():
            owner, k = name.rpartition(".")[::2]
            weight, moment = weights[owner], value
            if value.shape == weight.shape:
                # The fused AdamW walks through memory: moments must lie as their weight does.
                moment = torch.empty_like(weight, dtype=value.dtype, requires_grad=False)
                moment.copy_(value)
            self.optimizer.optimizer.state[weight][k] = moment.to(weight.device)


def _compile_network(net: nn.Module) -> Any:
    """Compile `net` for each shape, without timing-based choice of kernels.

    Both would change the bytes: a resumed run sees fewer shapes than one that measured its steps.

    Raises:
        UsageError: PyTorch cannot compile here.
    """
    import torch._inductor.config as inductor

    exact: dict[str, Any] = {"deterministic": True} if hasattr(inductor, "deterministic") else {}
    try:
        return torch.compile(net, dynamic=False, options=exact)
    except RuntimeError as error:  # for example on a version of Python that is too new
        raise _compile_error(error) from error


@contextlib.contextmanager
def translate_compile_errors() -> Iterator[None]:
    """Turn an error of the compiler inside the block into a `UsageError`."""
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import TorchDynamoException

        if is_out_of_memory(error) or not isinstance(error, TorchDynamoException):
            raise
        raise _compile_error(getattr(error, "inner_exception", error)) from error


def _compile_error(cause: BaseException) -> UsageError:
    reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    hint = "Try --no-compile, and --auto-resume if the run has started"
    text = f"the network cannot be compiled: {reason}"
    return UsageError(text, hint, option="--compile").mark_local()


# The training loss of a configuration, and its value on images with fixed timesteps and noise.


class Objective:
    """Loss of a configuration, weighted by the timestep of a denoiser's process.

    Args:
        teacher: the teacher's denoiser for a distillation loss, or None.

    Attributes:
        weight: the weight of each timestep, (T,) on the CPU in float64. None for weights of 1.
    """

    def __init__(
        self,
        config: TrainConfig,
        denoiser: Denoiser,
        device: torch.device,
        teacher: Denoise | None = None,
    ) -> None:
        if config.distills:
            self._loss: Loss = partial(consistency_loss, teacher=teacher)
        else:
            self._loss = lookup(LOSSES, config.loss or default_loss(config.variance), "--loss")
        self.weight = weights(config.weighting or "none", denoiser)
        self._copy_weights = None if self.weight is None else self.weight.float().to(device)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, cond: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the loss of each image, (B,)."""
        weight = None if self._copy_weights is None else self._copy_weights[t]
        return self._loss(denoiser, x0, t, noise, weight, **cond)


def measure_losses(
    objective: Callable[..., Tensor],
    denoiser: Denoiser,
    blueprint: Blueprint,
    samples: Array,
    labels: Indices,
    *,
    given: ConditioningInputs | None = None,
    rows: Array | None = None,
    at: int | None = None,
    seed: int,
    batch_size: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Yield the loss of each image, a batch at a time.

    Image k always gets the same timestep and noise, so the losses of two networks can be compared.

    Args:
        objective: an `Objective`, or a function of the same arguments.
        samples: stored samples, (N, C, *size).
        labels: class labels (N,), -1 for none.
        given: the conditioning inputs, for a model that is conditioned on images.
        rows: the codes of the metadata columns, for a model that is conditioned on them.
        at: the timestep of all images, by default uniform.
    """
    for start in range(0, len(samples), batch_size):
        positions = range(start, min(start + batch_size, len(samples)))
        shape = samples.shape[1:]
        draws = rng.training_draws(
            seed, 0, positions, shape=shape, device=device, purpose="held-out"
        )
        t = (draws.u * denoiser.process.num_timesteps).long()
        t = t if at is None else torch.full_like(t, at)
        part = slice(positions.start, positions.stop)
        classes = torch.tensor(labels[part], device=device)
        row = None if rows is None else torch.tensor(rows[part], device=device)
        x0 = blueprint.space.to_model(torch.tensor(samples[part], device=device))
        conditioning = given.encode(positions, device) if given else None
        cond = blueprint.conditions.make_keywords(classes, conditioning, row)
        with torch.no_grad():
            yield objective(denoiser, x0, t, draws.noise, cond)
