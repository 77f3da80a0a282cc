"""Guidance model of autoguidance: read it, check that it fits, and put it on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffuse_cli.config.sample_options import OWN, DrawConfig
from diffuse_cli.core import dimensions
from diffuse_cli.data.metadata_columns import describe_column
from diffuse_cli.sampling.conditioning_inputs import describe_channels
from diffuse_cli.sampling.generation import LoadedModel, load_denoiser, make_denoiser
from diffuse_cli.sampling.sampling_settings import Guide, choose_guide
from diffuse_cli.system import ModelFileError, UsageError, Work, files

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffuse_cli.models.blueprint import Blueprint


def load_guide(
    config: DrawConfig, loaded: LoadedModel, accelerator: Accelerator, *, alone: bool = False
) -> Work[Guide | None]:
    """Read the guidance model that is named or recommended, if there is one.

    Args:
        loaded: the model to guide.
        alone: whether only this process reads it.

    Raises:
        ModelFileError: it is not a model file, or MODEL's file has no early EMA checkpoint.
        UsageError: it cannot guide this model, or `--weak-guidance` is set without it.
    """
    chosen = choose_guide(config, loaded.model)
    if chosen is None:
        return None
    path, scale = chosen
    precision = loaded.precision
    if path == OWN:
        if loaded.model.weak is None:
            hint = "Train with --keep-weak, or pass the file of a weaker model"
            if loaded.model.training.get("keep_weak"):
                hint = "Training has not reached the step that saves it. Continue with --resume"
            text = f"--guide-with {OWN}: the model file has no early EMA checkpoint"
            raise ModelFileError(text, hint)
        denoiser = make_denoiser(loaded.model, "weak", accelerator, precision)
        return Guide(path, scale, denoiser, loaded.sha256)
    weaker = yield from load_denoiser(path, "ema", accelerator, precision, alone=alone, typed=False)
    check_fits(loaded, weaker, path)
    return Guide(path, scale, weaker.denoiser, weaker.sha256)


def check_fits(loaded: LoadedModel, weaker: LoadedModel, path: str) -> None:
    """Refuse a guidance model with other samples, another process or other conditions.

    Targets, variances and networks may differ, because guidance combines x_0 and eps.

    Raises:
        UsageError: names the first difference.
    """
    name = f"--guide-with {files.show(path)}"
    if loaded.sha256 == weaker.sha256:
        raise UsageError(f"{name} is the model itself", "Pass the file of a weaker model")
    traits, weaker_traits = map(_traits, (loaded.model.blueprint, weaker.model.blueprint))
    for form, (value, text) in weaker_traits.items():
        if value != traits[form][0]:
            hint = "Pass a model of the same data and schedule that is smaller or trained for less"
            raise UsageError(f"{name} does not fit: {form.format(text, traits[form][1])}", hint)


def _traits(blueprint: Blueprint) -> dict[str, tuple[object, str]]:
    """Return the traits that must be equal, a value and its text by a sentence on both models."""
    space, diffusion, conditions = blueprint.space, blueprint.diffusion, blueprint.conditions
    betas = "custom betas" if diffusion.betas else str(diffusion.schedule)
    if shift := diffusion.log_snr_shift:
        betas += f" with log-SNR shifted by {shift:+g}"
    zero = " at zero terminal SNR" if diffusion.zero_terminal_snr else ""
    classes, given, table = conditions.classes, conditions.given, conditions.table
    named = ", ".join(map(files.shorten, classes[:3])) or "none"
    named += f", ... ({len(classes):,})" if len(classes) > 3 else ""
    inputs = f"{given.what} of {given.channels} channels" if given else "none"
    columns = table.columns[:3] if table else ()
    column_texts = (f"{files.shorten(c.name)}, {describe_column(c)}" for c in columns)
    return {
        "its samples are {}, the model's {}": (
            space,
            f"{dimensions(space.size)} in {describe_channels(space)}",
        ),
        "its process is {}, the model's {}": (
            blueprint.process.betas.tolist(),
            f"{betas}{zero} of {blueprint.process.num_timesteps:,} timesteps",
        ),
        "its classes are {}, the model's {}": (classes, named),
        "its input is {}, the model's {}": (inputs, inputs),
        "its columns are {}, the model's {}": (table, "; ".join(column_texts) or "none"),
    }
