"""Distill a model into one that samples in one to four steps.

Trains the model further by consistency distillation: from any point of its sampling path, it
learns to predict the end of the path. In the last part of the run, a critic brings samples of one
and two steps closer to the model's distribution. You can resume the run, as with train.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffuse_cli.commands.train import run as run
from diffuse_cli.config import train_options
from diffuse_cli.config.exchange_options import DISTILL_STEPS, DistillConfig
from diffuse_cli.config.sample_options import DrawConfig
from diffuse_cli.system import UsageError, finish, outputs

CONFIG = DistillConfig
EXAMPLES = (
    "diffuse distill model.safetensors photos --minutes 10",
    "diffuse distill model.safetensors photos --guidance 2 --steps 2000",
)

SHARE = 4
"""A step takes 1/SHARE of the model's batch: each of its samples costs as much as several."""


def configure(typed: Mapping[str, Any], filed: Mapping[str, Any] | None = None) -> Any:
    """Return the training that it is.

    Raises:
        UsageError, ModelFileError: as `train` with these options, or the model does not support
            --given or --guidance.
    """
    from diffuse_cli.config.presets import BATCH
    from diffuse_cli.models import image_conditioning, model_file
    from diffuse_cli.sampling.conditioning import guidance_scale
    from diffuse_cli.training.configuration import configure as complete

    given = {**(filed or {}), **typed}
    if "steps" in typed or "minutes" in typed:  # either replaces both of the file
        given = {k: v for k, v in given.items() if k in typed or k not in ("steps", "minutes")}
    config = DistillConfig.from_dict(given)
    values = {k: v for k, v in config.to_dict().items() if k in given or k == "out"}
    model, guidance = values.pop("model"), values.pop("guidance", None)
    if config.resume:
        resumed = complete({**values, "init": model})
        run_guidance = 1.0 if resumed.teacher_guidance is None else resumed.teacher_guidance
        if guidance not in (None, run_guidance):
            text = f"--guidance {guidance:g} differs from the run's {run_guidance:g}"
            hint = "Leave it out to continue, or start again with --overwrite"
            raise UsageError(text, hint, code="run_differs")
        return resumed
    values |= {"init": model, "loss": train_options.CONSISTENCY, "keep_weak": False, "augment": ()}
    values["timestep_draw"] = "uniform"  # a path has times of its own
    outputs.check_other_than(config.out, model)
    file = finish(model_file.find(model, weights=False))
    teacher, training = file.model, model_file.training_options(file)
    image_conditioning.check_pairs_option(config.given, teacher.blueprint.conditions.given)
    values.setdefault("batch_size", max(1, training.get("batch_size", BATCH) // SHARE))
    if "lr" in training:
        values.setdefault("lr", training["lr"] / 2)
    if teacher.blueprint.conditions:
        guidance = guidance_scale(DrawConfig(guidance=guidance), teacher)
    elif guidance not in (None, 1):
        text = f"--guidance {guidance:g}: the model is unconditional, so it cannot be guided"
        raise UsageError(text, "Leave it out", code="option_unsuited")
    if guidance is not None:
        values["teacher_guidance"] = guidance
    if config.steps is None and config.minutes is None:
        values["steps"] = DISTILL_STEPS
    return complete(values)
