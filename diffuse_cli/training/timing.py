"""What a run will cost: seconds a step, measured on a network that is thrown away."""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

from diffuse_cli.training.preparing import Plan
from diffuse_cli.training.trainer import Trainer

if TYPE_CHECKING:
    from accelerate import Accelerator

WARM_UP, SECONDS, LEAST = 3, 5.0, 5


def seconds_a_step(plan: Plan, accelerator: Accelerator) -> float:
    """The median time of a training step on this machine, the slowest process counting."""
    trainer = Trainer(plan, accelerator)
    for step in range(WARM_UP):
        trainer.step(step)
    began = time.monotonic()
    times: list[float] = []
    # Several processes must agree on the number of steps: they take the least.
    while len(times) < LEAST or (
        accelerator.num_processes == 1 and time.monotonic() - began < SECONDS
    ):
        start = time.monotonic()
        trainer.step(WARM_UP + len(times))
        trainer.wait()
        times.append(time.monotonic() - start)
    taken = median(times)
    accelerator.free_memory()
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        taken = max(gather_object([taken]))
    return taken


def steps_for(minutes: float, seconds: float) -> int:
    """Steps that fit into `minutes`, at least one."""
    return max(1, round(minutes * 60 / seconds))
