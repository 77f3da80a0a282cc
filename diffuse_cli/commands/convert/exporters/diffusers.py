"""A folder that pipelines of diffusers load: `UNet2DModel`, a scheduler and a model card.

Tensors have their names already. What diffusers has no word for is refused by the field's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.commands.convert import diffusers_fields
from diffuse_cli.commands.convert.exporters import export_error
from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.config.sample_options import GAUSSIAN, SAMPLING_STEPS, SamplerChoice
from diffuse_cli.config.shared_options import DiffusionConfig
from diffuse_cli.core import parameterization
from diffuse_cli.models.blueprint import make_process
from diffuse_cli.system import Notice, UsageError, Work, file_types, files

if TYPE_CHECKING:
    from diffuse_cli.models.model_file import ModelFile, StoredModel

OUT = "diffusers"
PARTS = ("README.md", "model_index.json", "scheduler", "unet")
MARK = ("README.md", "`diffuse convert --to diffusers`")
OPTIONS = ("sampler",)

WEIGHTS = file_types.WEIGHTS[0]

DEFAULT = "ddpm"
"""The sampler of a model that recommends none, or one that no pipeline runs."""

LOOP = "no pipeline of diffusers {}: README.md there has a loop that does"


def check(config: ConvertConfig) -> None:
    """Refuse a sampler that has no scheduler there."""
    if config.sampler not in (None, *SCHEDULERS):
        text = f"--sampler {config.sampler} has no scheduler in diffusers that does the same"
        hint = f"Choose one of {', '.join(SCHEDULERS)}"
        raise UsageError(text, hint, code="options_conflict")


def write(path: Path, file: ModelFile, config: ConvertConfig) -> Work[Mapping[str, Any]]:
    """Write the folder, and report which scheduler it has where that is not what one would
    expect."""
    model, weights = file.model, config.weights or "ema"
    for lack in diffusers_fields.find_unsupported(model.blueprint):
        raise export_error(file, "diffusers", *lack)
    if model.distilled is not None:
        hint = "Convert the model that it was made from"
        raise export_error(file, "diffusers", "distilled", "a consistency function", hint)
    tensors = model.tensors(weights)
    name, notices = _sampler(model, config)
    yield from notices
    if model.sampling and is_reduced(model.sampling):
        yield Notice(
            f"the model file recommends {model.sampling}. diffusers has no Gaussian start, learned "
            "times or autoguidance, so its images will differ",
            warning=True,
        )
    if model.blueprint.conditions.classes:
        yield Notice(LOOP.format("tells a U-Net its class"))
    scheduler = SCHEDULERS[name]
    unet = diffusers_fields.unet_fields(model.blueprint, model.training.get("label_dropout"))
    process = scheduler_fields(scheduler, model.blueprint.diffusion)
    index = {
        "_class_name": scheduler.pipeline or "DDPMPipeline",
        "scheduler": ["diffusers", scheduler.name],
        "unet": ["diffusers", "UNet2DModel"],
    }

    def fill(folder: Path) -> None:
        from diffuse_cli.models import tensor_file

        files.write_json(folder / "model_index.json", index)
        files.write_json(folder / "unet" / "config.json", unet)
        tensor_file.write(folder / "unet" / WEIGHTS, tensors, {"format": "pt"})
        files.write_json(folder / "scheduler" / "scheduler_config.json", process)
        files.write_text(folder / "README.md", card(path.name, file, weights, name))

    files.write_folder(path, fill)
    return {
        "pipeline": index["_class_name"],
        "scheduler": scheduler.name,
        "unet": unet,
        "sha256": files.sha256(path / "unet" / WEIGHTS),
    }


def _sampler(model: StoredModel, config: ConvertConfig) -> tuple[str, list[Notice]]:
    """Return the sampler whose scheduler is written, and what to say about it."""
    learned = model.blueprint.diffusion.variance in parameterization.LEARNED
    if config.sampler is not None:
        chosen = SCHEDULERS[config.sampler]
        if learned and not chosen.variance:
            message = f"--sampler {config.sampler}: {chosen.name} takes no learned variance"
            hint = f"Pass --sampler {DEFAULT}, or leave it out"
            raise UsageError(message, hint, code="option_unsuited")
        alone = [Notice(LOOP.format(f"runs {chosen.name}"))] if chosen.pipeline is None else []
        return config.sampler, alone
    sampler = model.sampling.sampler if model.sampling else DEFAULT
    scheduler = SCHEDULERS.get(sampler)
    if scheduler and scheduler.pipeline and (scheduler.variance or not learned):
        return sampler, []
    name = SCHEDULERS[DEFAULT].name
    text = f"no pipeline of diffusers runs {sampler}, which is recommended: {name}"
    return DEFAULT, [Notice(text)]


def is_reduced(choice: SamplerChoice) -> bool:
    """Whether diffusers lacks a part of a recommendation, so that its steps may be too few."""
    return choice.start == GAUSSIAN or choice.times is not None or choice.is_autoguided


# -- scheduler ------------------------------------------------------------------------------------

# The schedulers of UniPC and DPM-Solver++ have no switch that clips x_0. Dynamic thresholding whose
# largest value is 1 does it: s, the percentile, is kept between 1 and that (Saharia et al. 2022,
# sec. 2.3).

CLIPPED = {"clip_sample": True, "clip_sample_range": 1.0, "thresholding": False}
MULTISTEP: dict[str, Any] = {
    "thresholding": True, "sample_max_value": 1.0,
    "solver_order": 2, "lower_order_final": True, "final_sigmas_type": "zero",
}  # fmt: skip


@dataclass(frozen=True)
class Scheduler:
    """A scheduler of diffusers that does what one of our samplers does.

    Attributes:
        name: of its class.
        pipeline: the pipeline that runs it, or None: `DDPMPipeline` passes `step` what it does not
            take.
        variance: whether it has a field for the variance, and takes one that is learned.
        fields: its own.
    """

    name: str
    pipeline: str | None = "DDPMPipeline"
    variance: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)


SCHEDULERS = {
    "ddpm": Scheduler("DDPMScheduler", variance=True, fields=CLIPPED),
    "ddim": Scheduler(
        "DDIMScheduler", pipeline="DDIMPipeline", fields={**CLIPPED, "set_alpha_to_one": True}
    ),
    **{
        name: Scheduler(
            "DPMSolverMultistepScheduler",
            fields={**MULTISTEP, "algorithm_type": algorithm, "solver_type": "midpoint"},
        )
        for name, algorithm in (("dpmpp-2m", "dpmsolver++"), ("dpmpp-2m-sde", "sde-dpmsolver++"))
    },
    "unipc": Scheduler(
        "UniPCMultistepScheduler",
        pipeline=None,
        fields={**MULTISTEP, "solver_type": "bh2", "predict_x0": True},
    ),
}
"""Schedulers by the names of our samplers, with the options that these have by default."""

EXACT = 1e-12
"""Largest relative difference of betas that are written as a schedule of diffusers."""

UNTIL_ZERO = "linspace"
"""The spacing of `DDPMScheduler` with any variance but the posterior's. It adds noise at every
timestep but 0, so also at the end of a sampling run that does not visit that one."""


def scheduler_fields(scheduler: Scheduler, diffusion: DiffusionConfig) -> dict[str, Any]:
    """Return the fields of the scheduler for a process.

    The betas are those before they are rescaled to zero terminal SNR, by a name or each. Solvers of
    diffusers must know whether they are rescaled, or end without signal themselves.
    """
    betas = make_process(replace(diffusion, zero_terminal_snr=False)).betas.tolist()
    ends = betas[0], betas[-1]
    named = ((k, make(len(betas), *ends)) for k, make in diffusers_fields.BETAS.items())
    fit = (k for k, b in named if k != "sigmoid" and diffusers_fields.match_betas(b, betas, EXACT))
    kind = next(fit, None)
    spoken = {"beta_schedule": kind, "beta_start": ends[0], "beta_end": ends[1]}
    variance = {"variance_type": _word(diffusers_fields.VARIANCES, diffusion.variance)}
    own_fields = {diffusers_fields.OWN: variance} if diffusion.variance != "small" else {}
    noisy = scheduler.variance and own_fields
    return {
        "_class_name": scheduler.name,
        "num_train_timesteps": diffusion.num_timesteps,
        **(spoken if kind else {"trained_betas": betas}),
        "rescale_betas_zero_snr": diffusion.zero_terminal_snr or betas[-1] == 1,
        "prediction_type": _word(diffusers_fields.TARGETS, diffusion.target),
        **(variance if scheduler.variance else own_fields),
        "timestep_spacing": UNTIL_ZERO if noisy else "trailing",
        "steps_offset": 0,
        **scheduler.fields,
    }


def _word(words: Mapping[str, str], name: str) -> str:
    """Return the first of diffusers' words for a name."""
    return next(word for word, meaning in words.items() if meaning == name)


# -- card -----------------------------------------------------------------------------------------

# The README.md of the folder: how to sample with the model, and its facts.

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

SAMPLING_LOOP = """\
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
no_class = torch.full_like(label, {none})
"""

GUIDED = """\
        conditional = unet(x, t, class_labels=label).sample
        unconditional = unet(x, t, class_labels=no_class).sample
        y = unconditional + scale * (conditional - unconditional)"""

GUIDED_LEARNED = """\
        conditional, variance = unet(x, t, class_labels=label).sample.chunk(2, dim=1)
        unconditional, _ = unet(x, t, class_labels=no_class).sample.chunk(2, dim=1)
        y = unconditional + scale * (conditional - unconditional)
        y = torch.cat([y, variance], dim=1)"""

LEFT_OUT = ("model", "title", "file", "weights", "classes", "data")
"""Rows of `diffuse info` that are of the model file, or have their own section."""

SHOWN = 100
"""Number of class names to list."""


def card(name: str, file: ModelFile, weights: str, sampler: str) -> str:
    """Return the text, for a folder of this name with the scheduler of a sampler."""
    from diffuse_cli.commands._cli import model_facts

    model = file.model
    space, classes = model.blueprint.space, model.blueprint.conditions.classes
    kind = "grey" if space.channels == 1 else "color"
    what = f"images of {space.size_text} pixels in {kind}"
    if classes:
        what += f", conditioned on one of {len(classes):,} classes"
    task = f"{'class-conditional' if classes else 'unconditional'}-image-generation"
    head = HEAD.format(task=task, name=files.show(name), what=what)
    source = files.show(file.path.name).replace("|", "\\|")
    first = [
        ("weights", {"ema": "EMA", "raw": "last step"}[weights]),
        ("written from", f"`{source}`, SHA-256 `{file.sha256}`"),
    ]
    parts = [
        head + format_code(name, model, sampler).rstrip("\n"),
        model_facts.model_section(file, LEFT_OUT, first),
        model_facts.data_section(model.data),
        "\n".join(labels(classes)),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def format_code(name: str, model: StoredModel, sampler: str) -> str:
    """Return the Python code that generates four images: by a pipeline, or a loop if none runs the
    model."""
    from diffuse_cli.sampling.conditioning import default_guidance

    blueprint, scheduler = model.blueprint, SCHEDULERS[sampler]
    steps = total = blueprint.diffusion.num_timesteps
    choice = model.sampling
    if choice and choice.sampler == sampler and not is_reduced(choice):
        steps = choice.steps
    elif sampler != "ddpm":
        steps = min(SAMPLING_STEPS, total)
    options = ", use_clipped_model_output=True" if sampler == "ddim" else ""
    if scheduler.pipeline and not blueprint.conditions:
        text = PIPELINE.format(
            pipeline=scheduler.pipeline, name=files.show(name), steps=steps, options=options
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
    return SAMPLING_LOOP.format(name=files.show(name), shape=shape, steps=steps, **own_parts)


def labels(classes: Sequence[str]) -> Iterator[str]:
    """Yield a section that names the class of each label."""
    if classes:
        yield from ("## Labels", "", f"Label {len(classes)} stands for no class. The others:", "")
        yield from ("```", *(f"{i}: {files.show(name)}" for i, name in enumerate(classes[:SHOWN])))
        if len(classes) > SHOWN:
            yield f"and {len(classes) - SHOWN:,} more, in unet/config.json"
        yield "```"
