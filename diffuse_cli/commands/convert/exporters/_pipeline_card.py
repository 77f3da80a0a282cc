"""The README.md of a folder for diffusers: how to sample with it, and the facts of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from diffuse_cli.commands._cli.model_facts import data_section, model_section
from diffuse_cli.commands.convert.diffusers_schedulers import SCHEDULERS
from diffuse_cli.config.sample_options import SAMPLING_STEPS
from diffuse_cli.core import dimensions
from diffuse_cli.models.model_file import ModelFile, StoredModel
from diffuse_cli.sampling.conditioning import default_guidance
from diffuse_cli.system import show

HEAD = """\
---
library_name: diffusers
tags:
- {task}
---

# {name}

A denoising diffusion model of {what}, written by `diffuse convert --to diffusers`.

## Sample

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
        x = scheduler.step(y, t, x{options}).prev_sample
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

LEFT_OUT = ("model", "title", "file", "weights", "classes", "data")
"""Rows of `diffuse info` that are of the model file, or have their own section."""

SHOWN = 100
"""Number of class names to list."""


def card(name: str, model_file: ModelFile, weights: str, sampler: str) -> str:
    """Return the text, for a folder of this name with the scheduler of a sampler."""
    model = model_file.model
    space, classes = model.blueprint.space, model.blueprint.conditions.classes
    kind = "grey" if space.channels == 1 else "color"
    what = f"images of {dimensions(space.size)} pixels in {kind}"
    if classes:
        what += f", conditioned on one of {len(classes):,} classes"
    task = f"{'class-conditional' if classes else 'unconditional'}-image-generation"
    head = HEAD.format(task=task, name=show(name), what=what)
    file = show(model_file.path.name).replace("|", "\\|")
    first = [
        ("weights", {"ema": "EMA", "raw": "last step"}[weights]),
        ("written from", f"`{file}`, SHA-256 `{model_file.sha256}`"),
    ]
    parts = [
        head + format_code(name, model, sampler).rstrip("\n"),
        model_section(model_file, LEFT_OUT, first),
        data_section(model.data),
        "\n".join(labels(classes)),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def format_code(name: str, model: StoredModel, sampler: str) -> str:
    """Return the Python code that generates four images: by a pipeline, or a loop if none runs the
    model."""
    blueprint, scheduler = model.blueprint, SCHEDULERS[sampler]
    recommended = model.sampling if model.sampling and model.sampling.sampler == sampler else None
    steps = recommended.steps if recommended else SAMPLING_STEPS
    if sampler == "ddpm" and not recommended:
        steps = blueprint.diffusion.num_timesteps
    options = ", use_clipped_model_output=True" if sampler == "ddim" else ""
    if scheduler.pipeline and not blueprint.conditions:
        text = PIPELINE.format(
            pipeline=scheduler.pipeline, name=show(name), steps=steps, options=options
        )
        return text + (CLIPPING if options else "")
    setting, answer = "", "        y = unet(x, t).sample"
    if count := blueprint.conditions.num_classes:
        scale = model.sampling.guidance if model.sampling else None
        if scale is None:
            scale = default_guidance(blueprint.conditions, model.training.get("label_dropout", 0.1))
        setting = LABELS.format(scale=scale, none=count)
        answer = GUIDED_LEARNED if blueprint.out_channels > blueprint.space.channels else GUIDED
    shape = ", ".join(map(str, blueprint.space.shape))
    own_parts = {"setting": setting, "answer": answer, "options": options}
    return LOOP.format(name=show(name), shape=shape, steps=steps, **own_parts)


def labels(classes: Sequence[str]) -> Iterator[str]:
    """Yield a section that names the class of each label."""
    if classes:
        yield from ("## Labels", "", f"Label {len(classes)} stands for no class. The others:", "")
        yield from ("```", *(f"{i}: {show(name)}" for i, name in enumerate(classes[:SHOWN])))
        if len(classes) > SHOWN:
            yield f"and {len(classes) - SHOWN:,} more, in unet/config.json"
        yield "```"
