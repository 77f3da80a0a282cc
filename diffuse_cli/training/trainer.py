"""One optimizer step: draw t and noise, loss, backward, update, average."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.utils import get_total_norm

from diffuse_cli.config import TrainConfig
from diffuse_cli.core.denoiser import Denoiser
from diffuse_cli.core.losses import LOSSES, weights
from diffuse_cli.core.timesteps import TIMESTEP_DRAWS, History, choose
from diffuse_cli.core.unet import UNet, checkpointed
from diffuse_cli.errors import lookup
from diffuse_cli.modelfile import make_denoiser
from diffuse_cli.runtime import (
    key,
    permutation,
    seed_modules,
    share,
    training_draws,
)
from diffuse_cli.training.ema import Average, due
from diffuse_cli.training.preparing import Plan
from diffuse_cli.training.rundir import Checkpoint

HELD_OUT_IMAGES = 512
"""At most so many held-out images are measured while training."""


RISE = 10
"""The learning rate rises during one part in so many of a run, at most."""


@dataclass(frozen=True)
class Outcome:
    """What a step did: its mean loss and the gradient's norm, both still on the device, where
    reading them would wait for the step."""

    loss: Tensor
    grad_norm: Tensor


def lr_at(config: TrainConfig, step: int) -> float:
    """The learning rate of the step after `step` steps: a linear rise, over a tenth of the run at
    most, and half a cosine to 0."""
    assert config.lr is not None
    warmup = min(config.warmup, config.steps // RISE)
    rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return config.lr * rise * 0.5 * (1 + math.cos(math.pi * step / config.steps))


class Trainer:
    """Network, optimizer and average of a run, and the images it learns from.

    Attributes:
        bad: the last so many steps, of those that have been looked at, had a gradient that is not
            finite.
    """

    def __init__(self, plan: Plan, accelerator: Accelerator) -> None:
        self.plan, self.config, self.accelerator = plan, plan.config, accelerator
        self.device = accelerator.device
        assert self.config.batch_size is not None
        self.batch_size = self.config.batch_size
        torch.manual_seed(key(self.config.seed, "weights") & 0xFFFF_FFFF)
        net = UNet(plan.unet)
        if plan.init is not None:
            net.load_state_dict(plan.init)
        if self.config.gradient_checkpointing:
            net.run_block = checkpointed
        self.net = net.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema = Average(self.net, self.config.ema_decay)
        self._unread: list[Tensor] = []
        self.bad = 0
        optimizer = torch.optim.AdamW(
            self.net.parameters(),
            lr=self.config.lr or 0.0,
            betas=(0.9, 0.99),
            weight_decay=self.config.weight_decay,
            fused=True,
        )
        body: Any = torch.compile(self.net) if self.config.compile else self.net
        self._prepared, self.optimizer = accelerator.prepare(body, optimizer)
        # Without a gradient scaler of its own; Metal's kernel reads neither scale nor verdict.
        self._obeys = accelerator.scaler is None and self.device.type != "mps"
        self.denoiser = make_denoiser(self._prepared, self.config)
        assert self.config.loss is not None
        self._loss = lookup(LOSSES, self.config.loss, "--loss")
        self._weights = self._weigh()
        self._draw = lookup(TIMESTEP_DRAWS, self.config.timestep_draw, "--timestep-draw")
        self.history = History(self.config.num_timesteps, self._draw.keep)
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def _weigh(self) -> Tensor | None:
        table = weights(self.config.weighting or "none", self.denoiser)
        return None if table is None else table.float().to(self.device)

    # -- a step ------------------------------------------------------------------------------------

    def step(self, step: int) -> Outcome:
        """Take the step after `step` steps; where the gradient is not finite, change nothing."""
        config, accelerator = self.config, self.accelerator
        self._prepared.train()
        for group in self.optimizer.param_groups:
            group["lr"] = lr_at(config, step)
        mine = share(self.batch_size, accelerator.num_processes, accelerator.process_index)
        chances = self._draw.probabilities(self.history)
        total = torch.zeros((), device=self.device)
        seen: list[tuple[Tensor, Tensor]] = []
        norm = torch.zeros((), device=self.device)
        for micro in range(config.accumulation):
            part = share(len(mine), config.accumulation, micro)
            positions = range(mine.start + part.start, mine.start + part.stop)
            seed_modules(config.seed, step, micro, accelerator.process_index)
            with accelerator.accumulate(self._prepared):
                t, plain = self._losses(step, positions, chances)
                # However they are drawn, the timesteps count alike.
                losses = plain / (len(chances) * chances).to(plain).take(t)
                seen.append((t, plain.detach()))
                total += losses.detach().sum()
                # Accelerate divides by the accumulation, and processes are averaged.
                scale = config.accumulation * accelerator.num_processes / self.batch_size
                accelerator.backward(losses.sum() * scale)
                if accelerator.sync_gradients:
                    norm = self._norm()
        self._update(norm)
        if self._draw.keep and bool(norm.isfinite()):
            self._remember(seen)
        self._unread.append(norm)
        if due(step + 1, config.steps):
            self._average()
        loss = accelerator.reduce(total, "sum") / self.batch_size
        return Outcome(loss, norm)

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def _remember(self, seen: list[tuple[Tensor, Tensor]]) -> None:
        """Note the losses of the whole batch, in the order of its positions."""
        own = [(t.tolist(), losses.tolist()) for t, losses in seen]
        for times, losses in gather_object(own):
            self.history.add(times, losses)

    def _norm(self) -> Tensor:
        """The norm of the gradient, which is clipped here where the optimizer does not do it."""
        weights = list(self.net.parameters())
        if self._obeys:
            return get_total_norm([w.grad for w in weights if w.grad is not None])
        norm = self.accelerator.clip_grad_norm_(weights, self.config.grad_clip)
        return torch.zeros((), device=self.device) if norm is None else norm.detach()

    def _update(self, norm: Tensor) -> None:
        """Move the weights by the clipped gradient, unless it is not finite.

        The optimizer itself is told what to divide by and whether to go, as a gradient scaler tells
        it: the answers stay on the device, and clipping takes no pass of its own over the gradient.
        """
        if self._obeys:
            self.optimizer.optimizer.found_inf = (~norm.isfinite()).float()
            self.optimizer.optimizer.grad_scale = (norm / self.config.grad_clip).clamp(min=1)
        if self._obeys or self.accelerator.scaler is not None or bool(norm.isfinite()):
            self.optimizer.step()
        self.optimizer.zero_grad()

    def _average(self) -> None:
        """Look at the steps since the last time, and let the average follow those that counted."""
        norms = torch.stack(self._unread).tolist()
        self._unread = []
        for norm in norms:
            self.bad = 0 if math.isfinite(norm) else self.bad + 1
        self.ema.follow(self.net, sum(map(math.isfinite, norms)))

    def _losses(self, step: int, positions: range, chances: Tensor) -> tuple[Tensor, Tensor]:
        """The timesteps and losses of positions of the global batch, (B,) each."""
        draws = training_draws(
            self.config.seed, step, positions, shape=self._shape, device=self.device
        )
        indices = self._at(step, positions)
        x0 = self.pixels(indices)
        if self.config.flip:
            x0 = torch.where(draws.flip[:, None, None, None], x0.flip(3), x0)
        cond = self.condition(indices)
        if cond:
            none = torch.full_like(cond["label"], self.plan.unet.num_classes)
            dropped = draws.drop < self.config.label_dropout
            cond = {"label": torch.where(dropped, none, cond["label"])}
        t = choose(chances, draws.u)
        return t, self._loss_of(self.denoiser, x0, t, draws.noise, cond)

    def _loss_of(
        self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, cond: dict[str, Tensor]
    ) -> Tensor:
        weight = None if self._weights is None else self._weights[t]
        return self._loss(denoiser, x0, t, noise, weight, **cond)

    def condition(self, indices: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """The labels of images where the model is conditional; K for an image without one."""
        classes = self.plan.unet.num_classes
        if not classes:
            return {}
        labels = self.plan.images.labels[indices]
        labels = np.where(labels < 0, classes, labels)
        return {"label": self._moved(labels)}

    def _moved(self, values: npt.NDArray[Any]) -> Tensor:
        """On the device, without waiting for it."""
        tensor = torch.from_numpy(values)
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (self.plan.unet.channels, *self.plan.unet.size)

    def _at(self, step: int, positions: range) -> npt.NDArray[np.int64]:
        """The images at positions of the global batch: epochs are shuffled, one after another."""
        n = len(self.plan.train)
        places = np.arange(positions.start, positions.stop) + step * self.batch_size
        epochs, offsets = places // n, places % n
        chosen = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            chosen[here] = self._order(int(epoch), n)[offsets[here]]
        return self.plan.train[chosen]

    def _order(self, epoch: int, n: int) -> npt.NDArray[np.int64]:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = permutation(self.config.seed, epoch, n)
        return self._orders[epoch]

    def pixels(self, indices: npt.NDArray[np.int64]) -> Tensor:
        """Images as float32 in [-1, 1], on the device, channels last."""
        x0 = self._moved(self.plan.images.pixels[indices]).float() / 127.5 - 1
        return x0.contiguous(memory_format=torch.channels_last)

    # -- the average -------------------------------------------------------------------------------

    def ema_net(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """The averaged network in the precision of the run, without gradients."""
        with torch.no_grad(), self.accelerator.autocast():
            return self.ema.net(x, t, **cond).float()  # type: ignore[no-any-return]

    def held_out_loss(self) -> float | None:
        """The training loss of the averaged weights on held-out images, with the same draws
        every time; None where nothing is held out."""
        chosen = self.plan.held_out[:HELD_OUT_IMAGES]
        if len(chosen) == 0:
            return None
        denoiser = make_denoiser(self.ema_net, self.config)
        total = 0.0
        for start in range(0, len(chosen), 64):
            positions = range(start, min(start + 64, len(chosen)))
            draws = training_draws(
                self.config.seed,
                0,
                positions,
                shape=self._shape,
                device=self.device,
                purpose="held-out",
            )
            indices = chosen[positions.start : positions.stop]
            t = (draws.u * self.config.num_timesteps).long()
            x0, cond = self.pixels(indices), self.condition(indices)
            total += float(self._loss_of(denoiser, x0, t, draws.noise, cond).sum())
        return total / len(chosen)

    # -- state -------------------------------------------------------------------------------------

    def checkpoint(self, step: int) -> Checkpoint:
        """The whole state after `step` steps."""
        names = [name for name, _ in self.net.named_parameters()]
        state = self.optimizer.state_dict()["state"]
        scaler = self.accelerator.scaler
        return Checkpoint(
            step=step,
            model=self.net.state_dict(),
            ema=self.ema.net.state_dict(),
            optimizer={f"{names[i]}.{k}": v for i, own in state.items() for k, v in own.items()},
            history=self.history.tensors(),
            state={
                "ema_updates": self.ema.updates,
                "unread": [bool(norm.isfinite()) for norm in self._unread],
                "bad": self.bad,
                "scaler": scaler.state_dict() if scaler is not None else None,
                "fingerprint": self.plan.images.fingerprint,
            },
        )

    def restore(self, saved: Checkpoint) -> None:
        """Go back to a checkpoint."""
        self.net.load_state_dict(dict(saved.model))
        self.ema.net.load_state_dict(dict(saved.ema))
        self.ema.updates = saved.state["ema_updates"]
        self._unread = [
            torch.tensor(0.0 if good else math.inf, device=self.device)
            for good in saved.state.get("unread", [])
        ]
        self.bad = saved.state.get("bad", 0)
        self.history.restore(saved.history)
        own: dict[int, dict[str, Tensor]] = {}
        for i, (name, weight) in enumerate(self.net.named_parameters()):
            for k in ("step", "exp_avg", "exp_avg_sq"):
                if f"{name}.{k}" in saved.optimizer:
                    value = saved.optimizer[f"{name}.{k}"]
                    # The fused AdamW walks through memory: moments must lie as their weight does.
                    own.setdefault(i, {})[k] = _laid_out_as(weight, value)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": own, "param_groups": groups})
        if self.accelerator.scaler is not None and saved.state["scaler"]:
            self.accelerator.scaler.load_state_dict(saved.state["scaler"])


def _laid_out_as(like: Tensor, value: Tensor) -> Tensor:
    """`value` with the strides of `like`, where they have one shape."""
    if value.shape != like.shape:
        return value
    return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)
