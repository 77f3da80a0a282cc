"""The process that a scheduler of diffusers describes.

Its betas are computed as diffusers does; if one of our schedules has the same, the model file names
the schedule. Networks of diffusers take t itself, whatever the number of timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffuse_cli.commands.convert.importers._assembly import Net
from diffuse_cli.commands.convert.importers._foreign_files import read_json, rejecting
from diffuse_cli.config.parsers import parse_betas
from diffuse_cli.core.schedules import SCHEDULES, cosine
from diffuse_cli.core.variances import channels_out
from diffuse_cli.system.errors import ModelFileError
from diffuse_cli.system.events import Notice
from diffuse_cli.system.files import brief, show

SCHEDULERS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        ("DDPMScheduler", "DDIMScheduler", "DDIMInverseScheduler", "PNDMScheduler",
         "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "EulerDiscreteScheduler",
         "EulerAncestralDiscreteScheduler"),
        (1e-4, 0.02),
    ),
    "HeunDiscreteScheduler": (0.00085, 0.012),
}  # fmt: skip
"""Schedulers with the same fields for betas, with their defaults of `beta_start` and `beta_end`."""

TARGETS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
VARIANCES = {
    "fixed_small": "small",
    "fixed_small_log": "small",
    "fixed_large": "large",
    "fixed_large_log": "large",
    "learned_range": "learned",
}


def _linear(count: int, start: float, end: float) -> list[float]:
    return [start + (end - start) * i / (count - 1) for i in range(count)]


def _scaled_linear(count: int, start: float, end: float) -> list[float]:
    return [root**2 for root in _linear(count, math.sqrt(start), math.sqrt(end))]


def _sigmoid(count: int, start: float, end: float) -> list[float]:
    return [start + (end - start) / (1 + math.exp(-x)) for x in _linear(count, -6, 6)]


BETAS: dict[str, Callable[[int, float, float], Sequence[float]]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": lambda count, start, end: cosine(count),
    "sigmoid": _sigmoid,
}
"""Betas by `beta_schedule`, from their number, `beta_start` and `beta_end`."""

CLOSE = 1e-6
"""Betas with a smaller relative difference are equal in float32, which schedulers use."""


def read_process(folder: Path, unet: Net) -> tuple[dict[str, Any], tuple[Notice, ...]]:
    """The fields of a process, and what to tell the user."""
    learned = unet.out_channels == channels_out("learned", unet.space.channels)
    shown = {"rescale_timesteps": False}
    there = (folder, folder / "scheduler", folder.parent / "scheduler")
    paths = [place / "scheduler_config.json" for place in there]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        text = f"network from {show(folder / 'config.json')}; there is no scheduler_config.json"
        return {**shown, "variance": "learned" if learned else "small"}, (Notice(text),)
    said = read_json(path)
    with rejecting(path):
        if (name := said.get("_class_name")) not in SCHEDULERS:
            raise _untold(path, "_class_name", name, SCHEDULERS)
        if (told := said.get("timestep_type", "discrete")) != "discrete":
            raise _untold(path, "timestep_type", told, ("discrete",))
        betas = _betas(path, said)
        target = said.get("prediction_type", "epsilon")
        if target not in TARGETS or said.get("predict_epsilon", True) is not True:
            raise _untold(path, "prediction_type", target, TARGETS)
        variance = said.get("variance_type") or ("learned_range" if learned else "fixed_small")
        if variance not in VARIANCES:
            raise _untold(path, "variance_type", variance, VARIANCES)
    found = {
        **shown,
        **betas,
        "target": TARGETS[target],
        "variance": VARIANCES[variance],
        "zero_terminal_snr": bool(said.get("rescale_betas_zero_snr")) and not _ends(betas),
    }
    return found, _notices(folder, path, said)


def _untold(path: Path, name: str, value: Any, known: Any) -> ModelFileError:
    return ModelFileError(
        f"{show(path)}: {name} is {brief(repr(value))}", f"Known are: {', '.join(known)}"
    )


def _betas(path: Path, said: Mapping[str, Any]) -> dict[str, Any]:
    """The betas of a scheduler, or our schedule with the same."""
    if said.get("trained_betas") is not None:
        betas = list(parse_betas(list(said["trained_betas"])))
    else:
        kind = said.get("beta_schedule", "linear")
        if kind not in BETAS:
            raise _untold(path, "beta_schedule", kind, BETAS)
        count = said.get("num_train_timesteps", 1000)
        if not isinstance(count, int) or not 2 <= count <= 100_000:
            raise ValueError(f"num_train_timesteps is {count!r}, not 2 to 100,000")
        first, last = SCHEDULERS[said["_class_name"]]
        start, end = float(said.get("beta_start", first)), float(said.get("beta_end", last))
        betas = list(parse_betas(list(BETAS[kind](count, start, end))))
    for name, schedule in SCHEDULES.items():
        pairs = zip(schedule(len(betas)), betas, strict=True)
        if all(math.isclose(a, b, rel_tol=CLOSE) for a, b in pairs):
            return {"schedule": name, "num_timesteps": len(betas)}
    return {"betas": tuple(betas)}


def _ends(said: Mapping[str, Any]) -> bool:
    """Whether betas end without signal, so that there is nothing to rescale."""
    betas = said.get("betas") or SCHEDULES[said["schedule"]](said["num_timesteps"])
    return bool(betas[-1] == 1)


def _notices(folder: Path, path: Path, said: Mapping[str, Any]) -> tuple[Notice, ...]:
    """The files that were read, and settings of sampling that a model file does not keep."""
    read = Notice(f"network from {show(folder / 'config.json')}, process from {show(path)}")
    if said.get("thresholding") and said.get("sample_max_value", 1.0) != 1:
        ratio = brief(said.get("dynamic_thresholding_ratio", 0.995))
        text = f"uses thresholding: sample with --threshold {ratio}"
    elif not said.get("clip_sample", True) or said.get("clip_sample_range", 1.0) != 1:
        text = "does not clip to [-1, 1]; `diffuse sample` does"
    else:
        return (read,)
    return read, Notice(f"{show(path)} {text}", warning=True)
