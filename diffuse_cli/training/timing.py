"""What a run will cost: seconds a step, measured on a network that is thrown away."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from diffuse_cli.training.preparing import Plan
from diffuse_cli.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

WARM_UP, SECONDS, LEAST = 2, 3.0, 3


def seconds_a_step(plan: Plan, accelerator: Accelerator) -> float:
    """The mean time of a training step on this machine, the slowest process counting."""
    trainer = Trainer(plan, accelerator)
    for step in range(WARM_UP):
        trainer.step(step)
    began, steps = time.monotonic(), 0
    while steps < LEAST or time.monotonic() - began < SECONDS:
        trainer.step(WARM_UP + steps)
        steps += 1
        if accelerator.num_processes > 1 and steps >= LEAST:
            break
    taken = (time.monotonic() - began) / steps
    accelerator.free_memory()
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        taken = max(gather_object([taken]))
    return taken


def steps_for(minutes: float, seconds: float) -> int:
    """Steps that fit into `minutes`, at least one."""
    return max(1, round(minutes * 60 / seconds))
