"""The state of a training as a checkpoint, and back.

Everything else is drawn anew from the seed: no generator's state is ever saved.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffuse_cli.training.rundir import Checkpoint
from diffuse_cli.training.trainer import Trainer
from diffuse_cli.training.watching import Watch


def checkpoint_of(trainer: Trainer, step: int, watch: Watch) -> Checkpoint:
    """The whole state after `step` steps."""
    names = [name for name, _ in trainer.net.named_parameters()]
    state = trainer.optimizer.state_dict()["state"]
    scaler = trainer.accelerator.scaler
    return Checkpoint(
        step=step,
        model=trainer.net.state_dict(),
        ema=trainer.ema.net.state_dict(),
        optimizer={f"{names[i]}.{k}": v for i, own in state.items() for k, v in own.items()},
        history=trainer.history.tensors(),
        best=watch.tensors(),
        powers=trainer.powers.tensors() if trainer.powers else {},
        state={
            "ema_updates": trainer.ema.updates,
            "unread": [bool(norm.isfinite()) for norm in trainer.unread],
            "bad": trainer.bad,
            "accumulation": trainer.accumulation,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "fingerprint": trainer.plan.images.fingerprint,
            "classes": trainer.plan.class_fingerprints,
            "watch": watch.state(),
        },
    )


def restore(trainer: Trainer, saved: Checkpoint) -> None:
    """Go back to a checkpoint."""
    trainer.net.load_state_dict(dict(saved.model))
    trainer.ema.net.load_state_dict(dict(saved.ema))
    trainer.ema.updates = saved.state["ema_updates"]
    if trainer.powers:
        trainer.powers.restore(saved.powers, trainer.ema.updates)
    trainer.unread = [
        torch.tensor(0.0 if good else math.inf, device=trainer.device)
        for good in saved.state.get("unread", [])
    ]
    trainer.bad = saved.state.get("bad", 0)
    trainer.accumulation = max(saved.state.get("accumulation", 0), trainer.accumulation)
    trainer.history.restore(saved.history)
    own: dict[int, dict[str, Tensor]] = {}
    for i, (name, weight) in enumerate(trainer.net.named_parameters()):
        for k in ("step", "exp_avg", "exp_avg_sq"):
            if f"{name}.{k}" in saved.optimizer:
                value = saved.optimizer[f"{name}.{k}"]
                # The fused AdamW walks through memory: moments must lie as their weight does.
                own.setdefault(i, {})[k] = _laid_out_as(weight, value)
    groups = trainer.optimizer.state_dict()["param_groups"]
    trainer.optimizer.load_state_dict({"state": own, "param_groups": groups})
    if trainer.accelerator.scaler is not None and saved.state["scaler"]:
        trainer.accelerator.scaler.load_state_dict(saved.state["scaler"])


def _laid_out_as(like: Tensor, value: Tensor) -> Tensor:
    """`value` with the strides of `like`, where they have one shape."""
    if value.shape != like.shape:
        return value
    return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)
