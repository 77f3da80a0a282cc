"""Read the model of a command and its guidance model, and put them on the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from diffuse_cli.config.sample_options import OWN, WEAK_GUIDANCE, DrawConfig
from diffuse_cli.core import Denoiser, Space, kernels
from diffuse_cli.core.tiling import WINDOWS, Tiling
from diffuse_cli.data.metadata_columns import describe_column
from diffuse_cli.media import Size
from diffuse_cli.models import activation_memory, model_file
from diffuse_cli.models.blueprint import Blueprint
from diffuse_cli.models.image_conditioning import Conditioner
from diffuse_cli.sampling.sampling_settings import Guide
from diffuse_cli.system import (
    ModelFileError,
    Notice,
    UsageError,
    Work,
    devices,
    files,
    translate_errors,
)
from diffuse_cli.system.memory import free_memory_of_process


@dataclass(frozen=True)
class LoadedModel:
    """A model file's content and hash, and its denoiser on the device.

    Attributes:
        precision: the precision of the denoiser.
        size: the size of the samples, if it differs from the model's. Larger samples are computed
            in windows of the model's size.
    """

    model: model_file.StoredModel
    denoiser: Denoiser
    sha256: str
    precision: str
    size: Size | None = None

    @property
    def space(self) -> Space:
        """Space of the samples."""
        space = self.model.blueprint.space
        return space if self.size is None else replace(space, size=self.size)

    def enlarge(self, size: Size | None) -> LoadedModel:
        """Return the model for samples of another size, itself for None.

        Raises:
            UsageError: the model's window does not fit in the size.
        """
        if size is None:
            return self
        dims = self.model.blueprint.space.dims
        if len(size) != dims and len(set(size)) == 1:  # one number, for any number of dimensions
            size = size[:1] * dims
        with translate_errors(lambda _: "--size"):
            Tiling(size, self.model.blueprint.space.size)
        return replace(self, size=size)

    @cached_property
    def encoder(self) -> Conditioner | None:
        """Encoder of conditioning images, None for a model without them."""
        return Conditioner.from_blueprint(self.model.blueprint)

    @property
    def windows(self) -> int:
        """Number of windows of a sample."""
        return len(Tiling(self.space.size, self.model.blueprint.space.size).windows)

    @property
    def background(self) -> str:
        """Color behind transparent images in training."""
        return str(self.model.data.get("background", "white"))

    @property
    def fit(self) -> str:
        """Method that fitted images of another shape in training."""
        return str(self.model.data.get("fit", "crop"))


def load_denoiser(
    path: str | Path | model_file.ModelFile,
    weights: str,
    accelerator: Accelerator,
    precision: str | None = None,
    *,
    alone: bool = False,
    typed: bool = True,
    earlier: Any = None,
) -> Work[LoadedModel]:
    """Read a model and put its network on the device.

    Args:
        path: the path of the model, or the model that was found there.
        precision: a name in PRECISIONS. The model decides about `auto`. None is the accelerator's.
        alone: whether only this process reads the model.
        typed: whether the user passed `precision`, so that a slow one is worth a warning.
        earlier: the manifest of the samples to add to, whose precision replaces `auto`.

    Raises:
        ModelFileError: it is not a model (see `model_file.find`), or it has no such weights.
    """
    earlier_precision = earlier.get("precision") if isinstance(earlier, dict) else None
    if precision == "auto" and earlier_precision in ("fp32", "bf16"):
        precision, typed = earlier_precision, False
    file = path if isinstance(path, model_file.ModelFile) else (yield from _find_model(path, alone))
    exact = choose_precision(file.model, precision, accelerator)
    if not alone:  # processes may be on different machines
        exact = gather_object([exact])[0]
    if typed and precision is not None:
        for line in devices.slow_precision(precision, accelerator.device.type):
            yield Notice(line, warning=True)
    denoiser = make_denoiser(file.model, weights, accelerator, exact)
    return LoadedModel(file.model, denoiser, file.sha256, exact)


def _find_model(path: str | Path, alone: bool) -> Work[model_file.ModelFile]:
    """Find the model at a path, the same on all processes."""
    file = yield from model_file.find(path)
    # A training run may save a checkpoint while these processes look for the newest one.
    while not alone and len(set(gather_object([file.sha256]))) > 1:
        file = yield from model_file.find(path)
    return file


def choose_precision(
    model: model_file.StoredModel, precision: str | None, accelerator: Accelerator
) -> str:
    """Return the exact precision of a model's network.

    `auto` is the precision of its training, if the device supports it. None is the accelerator's.
    """
    if precision is None:
        return {mode: name for name, mode in devices.PRECISIONS.items()}[
            accelerator.mixed_precision
        ]
    device, blueprint = accelerator.device.type, model.blueprint
    width = blueprint.architecture.widest(blueprint.config)
    model_precision = model.training.get("precision")
    return devices.resolve_precision(precision, device, width, model_precision=model_precision)


def make_denoiser(
    model: model_file.StoredModel, weights: str, accelerator: Accelerator, precision: str
) -> Denoiser:
    """Return the denoiser of a model on the device, in an exact precision.

    Inputs may be on another device, which the output is on, too. The input can have a gradient, but
    the weights cannot.

    Raises:
        ModelFileError: the model has no such weights.
    """
    device = accelerator.device
    net = kernels.arrange_weights(model.network(weights).to(device))
    net.requires_grad_(False)
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if half is not None:
        kernels.cast_weights(net, half)

    def infer(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        cast = torch.autocast(device.type, half, enabled=half is not None)
        conditions = {k: v.to(device) if torch.is_tensor(v) else v for k, v in cond.items()}
        settings = devices.hold_cuda_settings(device.type, precision)
        with settings, torch.inference_mode(not x.requires_grad), cast:
            y: Tensor = net(x.to(device, torch.float32), t.to(device), **conditions)
            return y.to(x)

    part = partial(fit_windows, model.blueprint, precision, device.type)
    return model.blueprint.denoiser(infer, room=lambda: part()[0])


def fit_windows(blueprint: Blueprint, precision: str, device: str) -> tuple[int, int]:
    """Return the number of windows to predict at a time, and the bytes that they take.

    The number is `WINDOWS`, halved until half of the free memory holds them with their gradient. So
    all machines with enough memory compute the same bytes.
    """
    image_bytes = activation_memory.count_kept_bytes(
        blueprint, precision != "fp32", False, device
    ).image
    count, size = WINDOWS, int(image_bytes * activation_memory.SLACK.get(device, 1.0))
    while count > 1 and count * size > free_memory_of_process(device) // 2:
        count //= 2
    return count, count * size


def choose_guide(config: DrawConfig, model: model_file.StoredModel) -> tuple[str, float] | None:
    """Return the path and scale of the guidance model that is named or recommended, if any.

    Raises:
        UsageError: `--weak-guidance` without a guidance model.
    """
    path, scale = config.guide_with or OWN, config.weak_guidance
    recommended = model.sampling.weak_guidance if model.sampling and path == OWN else None
    if config.guide_with is None:
        if scale is None and recommended is None:
            return None
        if scale is not None and model.weak is None:
            if scale == 1:
                return None
            hint = "Pass a weaker model with --guide-with, or use a model trained with --keep-weak"
            raise UsageError("--weak-guidance needs --guide-with", hint, code="option_needs")
    if scale is None:
        scale = WEAK_GUIDANCE if recommended is None else recommended
    return path, scale


def load_guide(
    config: DrawConfig,
    loaded: LoadedModel,
    accelerator: Accelerator,
    *,
    alone: bool = False,
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
            raise ModelFileError(text, hint, code="model_lacks")
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
        text, hint = f"{name} is the model itself", "Pass the file of a weaker model"
        raise UsageError(text, hint, code="model_mismatch", path=path)
    traits = _traits(loaded.model.blueprint)
    for trait, (value, text) in _traits(weaker.model.blueprint).items():
        if value != traits[trait][0]:
            hint = "Pass a model of the same data and schedule that is smaller or trained for less"
            text = f"{name} does not fit: its {trait} {text}, the model's {traits[trait][1]}"
            raise UsageError(text, hint, code="model_mismatch", path=path)


def _traits(blueprint: Blueprint) -> dict[str, tuple[object, str]]:
    """Return the traits that must be equal, a value and its text by subject and verb."""
    space, diffusion, conditions = blueprint.space, blueprint.diffusion, blueprint.conditions
    betas = "custom betas" if diffusion.betas else str(diffusion.schedule)
    if shift := diffusion.log_snr_shift:
        betas += f" with log-SNR shifted by {shift:+g}"
    if diffusion.zero_terminal_snr:
        betas += " at zero terminal SNR"
    betas += f" of {blueprint.process.num_timesteps:,} timesteps"
    classes, given, table = conditions.classes, conditions.given, conditions.table
    names = ", ".join(map(files.shorten, classes[:3])) or "none"
    names += f", ... ({len(classes):,})" if len(classes) > 3 else ""
    inputs = f"{given.what} of {given.channels} channels" if given else "none"
    columns = table.columns[:3] if table else ()
    column_texts = (f"{files.shorten(c.name)}, {describe_column(c)}" for c in columns)
    return {
        "samples are": (space, f"{space.size_text} in {describe_channels(space)}"),
        "process is": (blueprint.process.betas.tolist(), betas),
        "classes are": (classes, names),
        "input is": (inputs, inputs),
        "columns are": (table, "; ".join(column_texts) or "none"),
    }


def describe_channels(space: Space) -> str:
    """Return the channels and levels of samples, in words."""
    numbers = "floats" if space.levels is None else f"{space.levels:,} levels"
    return f"{space.channels} channel{'s' * (space.channels != 1)} of {numbers}"
