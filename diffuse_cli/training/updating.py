"""Weights moved by a clipped gradient, or left where it is not finite."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from diffuse_cli.config import TrainConfig
from diffuse_cli.core.optimizers import OPTIMIZERS
from diffuse_cli.system.errors import lookup


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


def _compiled(net: nn.Module) -> Any:
    """`net` compiled, with kernels that are not chosen by their time, which would change bytes."""
    import torch._inductor.config as inductor

    exact: dict[str, Any] = {"deterministic": True} if hasattr(inductor, "deterministic") else {}
    return torch.compile(net, options=exact)
