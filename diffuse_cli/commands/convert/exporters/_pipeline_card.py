"""The README.md of a folder for diffusers: how to draw with it, and what is known of the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from diffuse_cli.commands.convert.diffusers_schedulers import SCHEDULERS
from diffuse_cli.config.sample_options import SAMPLING_STEPS
from diffuse_cli.core.settings import dimensions
from diffuse_cli.sampling.conditioning import default_guidance
from diffuse_cli.system.files import brief, show

if TYPE_CHECKING:
    from diffuse_cli.models.model_file import Found, Model

HEAD = """\
---
library_name: diffusers
tags:
- {task}
---

# {name}

A denoising diffusion model of {what}, written by `diffuse convert --to diffusers`.

## Draw

"""

PIPELINE = """\
```python
from diffusers import {pipeline}

pipe = {pipeline}.from_pretrained("{name}")
pictures = pipe(batch_size=4, num_inference_steps={steps}{options}).images
pictures[0].save("picture.png")
```
"""

CLIPPING = """
`use_clipped_model_output=True` computes the noise from the clipped picture, as `diffuse` does.
"""

LOOP = """\
```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("{name}")
unet, scheduler = pipe.unet, pipe.scheduler
{setting}x = torch.randn(4, {shape})
scheduler.set_timesteps({steps})
with torch.no_grad():
    for t in scheduler.timesteps:
{answer}
        x = scheduler.step(y, t, x).prev_sample
pictures = (x / 2 + 0.5).clamp(0, 1)  # (4, {shape})
```
"""

LABELS = """\
label, scale = torch.tensor([0, 0, 0, 0]), {scale:g}
nothing = torch.full_like(label, {none})
"""

GUIDED = """\
        told = unet(x, t, class_labels=label).sample
        free = unet(x, t, class_labels=nothing).sample
        y = free + scale * (told - free)"""

GUIDED_LEARNED = """\
        told, variance = unet(x, t, class_labels=label).sample.chunk(2, dim=1)
        free, _ = unet(x, t, class_labels=nothing).sample.chunk(2, dim=1)
        y = torch.cat([free + scale * (told - free), variance], dim=1)"""

SHOWN = 100
"""How many class names are listed."""


def card(name: str, found: Found, weights: str, sampler: str) -> str:
    """The text, for a folder of this name with the scheduler of a sampler."""
    model = found.model
    space, classes = model.blueprint.space, model.blueprint.conditions.classes
    kind = "grey" if space.channels == 1 else "colour"
    what = f"pictures of {dimensions(space.size)} pixels in {kind}"
    if classes:
        what += f", told one of {len(classes):,} classes"
    task = f"{'class-conditional' if classes else 'unconditional'}-image-generation"
    head = HEAD.format(task=task, name=show(name), what=what)
    return head + draw(name, model, sampler) + "\n".join(("", *facts(found, weights)))


def draw(name: str, model: Model, sampler: str) -> str:
    """The Python that draws four pictures: by a pipeline, or a loop if none runs the model."""
    own, scheduler = model.blueprint, SCHEDULERS[sampler]
    recommended = model.sampling if model.sampling and model.sampling.sampler == sampler else None
    steps = recommended.steps if recommended else SAMPLING_STEPS
    if sampler == "ddpm" and not recommended:
        steps = own.diffusion.num_timesteps
    if scheduler.pipeline and not own.conditions:
        options = ", use_clipped_model_output=True" if sampler == "ddim" else ""
        text = PIPELINE.format(
            pipeline=scheduler.pipeline, name=show(name), steps=steps, options=options
        )
        return text + (CLIPPING if options else "")
    setting, answer = "", "        y = unet(x, t).sample"
    if count := own.conditions.num_classes:
        scale = model.sampling.guidance if model.sampling else None
        if scale is None:
            scale = default_guidance(own.conditions, model.training.get("label_dropout", 0.1))
        setting = LABELS.format(scale=scale, none=count)
        answer = GUIDED_LEARNED if own.out_channels > own.space.channels else GUIDED
    shape = ", ".join(map(str, own.space.shape))
    return LOOP.format(name=show(name), setting=setting, shape=shape, steps=steps, answer=answer)


def facts(found: Found, weights: str) -> Iterator[str]:
    """What the model file says of the model."""
    model = found.model
    own = model.blueprint
    yield from ("## What it is", "", "| | |", "|---|---|")
    diffusion = own.diffusion
    schedule = diffusion.schedule or "betas of its own"
    rows = {
        "parameters": f"{sum(t.numel() for t in model.ema.values()):,}",
        "weights": {"ema": "averaged over the training", "raw": "of the last step"}[weights],
        "training steps": f"{model.step:,}" if model.step else "",
        "training samples": _count(model),
        "fingerprint of the data": f"`{brief(model.data['fingerprint'])}`"
        if "fingerprint" in model.data
        else "",
        "noise schedule": f"{schedule}, {diffusion.num_timesteps:,} timesteps",
        "shift of its log-SNR": f"{diffusion.log_snr_shift:g}" if diffusion.log_snr_shift else "",
        "rescaled to zero terminal SNR": "yes" if diffusion.zero_terminal_snr else "",
        "target": diffusion.target,
        "variance": diffusion.variance,
        "recommended setting": str(model.sampling) if model.sampling else "",
        "written from": f"`{show(Path(found.path).name)}`, SHA-256 `{found.sha256}`",
        "trained with": f"diffuse {brief(model.versions.get('diffuse', '?'), 50)}",
    }
    yield from (f"| {name} | {_cell(text)} |" for name, text in rows.items() if text)
    yield ""
    if classes := own.conditions.classes:
        yield from (f"Label {len(classes)} stands for no class. The others:", "", "```")
        yield from (f"{i}: {show(name)}" for i, name in enumerate(classes[:SHOWN]))
        if len(classes) > SHOWN:
            yield f"and {len(classes) - SHOWN:,} more, in unet/config.json"
        yield from ("```", "")


def _count(model: Model) -> str:
    count = model.data.get("images")
    return f"{count:,}" if isinstance(count, int) else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
