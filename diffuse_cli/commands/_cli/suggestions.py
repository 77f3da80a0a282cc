"""What to say about an option or command that does not exist: which one was meant."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from typer.exceptions import TyperException

from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.system.errors import UsageError, near, suggest

SYNONYMS: dict[str, str] = {
    # how long
    "--num-steps": "--steps",
    "--max-steps": "--steps",
    "--train-steps": "--steps",
    "--max-train-steps": "--steps",
    "--train-num-steps": "--steps",
    "--iterations": "--steps",
    "--iters": "--steps",
    "--num-inference-steps": "--steps",
    "--inference-steps": "--steps",
    "--sampling-steps": "--steps",
    "--sampling-timesteps": "--steps",
    "--ddim-steps": "--steps",
    "--nfe": "--steps",
    "--time": "--minutes",
    "--checkpointing-steps": "--save-every",
    "--save-steps": "--save-every",
    "--validation-steps": "--preview-every",
    "--logging-steps": "--log-every",
    "--resume-from-checkpoint": "--resume",
    # what is read, written and shown
    "--resolution": "--size",
    "--image-size": "--size",
    "--img-size": "--size",
    "--random-flip": "--flip",
    "--horizontal-flip": "--flip",
    "--num-workers": "--workers",
    "--dataloader-num-workers": "--workers",
    "--output": "--out",
    "--output-dir": "--out",
    "--outdir": "--out",
    "--output-path": "--out",
    "--results-folder": "--out",
    "--save-dir": "--out",
    "--force": "--overwrite",
    "--overwrite-output-dir": "--overwrite",
    "--report-to": "--log",
    "--logger": "--log",
    "--random-seed": "--seed",
    # how it is trained
    "--learning-rate": "--lr",
    "--train-lr": "--lr",
    "--lr-warmup-steps": "--warmup",
    "--warmup-steps": "--warmup",
    "--batch": "--batch-size",
    "--bs": "--batch-size",
    "--train-batch-size": "--batch-size",
    "--eval-batch-size": "--batch-size",
    "--gradient-accumulation-steps": "--accumulation",
    "--gradient-accumulate-every": "--accumulation",
    "--max-grad-norm": "--grad-clip",
    "--clip-grad": "--grad-clip",
    "--adam-weight-decay": "--weight-decay",
    "--wd": "--weight-decay",
    "--optim": "--optimizer",
    "--ema": "--ema-decay",
    "--ema-max-decay": "--ema-decay",
    "--pretrained": "--init",
    "--finetune-from": "--init",
    "--class-cond": "--classes",
    "--class-conditional": "--classes",
    "--num-classes": "--classes",
    "--dim": "--width",
    "--model-channels": "--width",
    "--arch": "--network",
    "--architecture": "--network",
    # the process
    "--beta-schedule": "--schedule",
    "--noise-schedule": "--schedule",
    "--prediction-type": "--target",
    "--parametrization": "--target",
    "--objective": "--target",
    "--noise-steps": "--num-timesteps",
    "--diffusion-steps": "--num-timesteps",
    "--num-train-timesteps": "--num-timesteps",
    "--ddpm-num-steps": "--num-timesteps",
    "--loss-type": "--loss",
    "--snr-gamma": "--weighting min-snr",
    # how it samples
    "--num-images": "-n",
    "--num-samples": "-n",
    "--n-samples": "-n",
    "--scheduler": "--sampler",
    "--solver": "--sampler",
    "--label": "--class",
    "--class-label": "--class",
    "--class-labels": "--class",
    "--cfg": "--guidance",
    "--cfg-scale": "--guidance",
    "--guidance-scale": "--guidance",
    "--autoguidance": "--guide-with",
    "--dynamic-thresholding": "--threshold",
    # the machine
    "--fp16": "--precision fp16",
    "--bf16": "--precision bf16",
    "--mixed-precision": "--precision",
    "--dtype": "--precision",
    "--amp": "--precision",
    "--gpu": "--device cuda",
    "--cpu": "--device cpu",
    "--cuda": "--device cuda",
    # commands
    "--sweep": "diffuse tune MODEL DATA",
    "--sweep-samplers": "diffuse tune MODEL DATA --samplers",
    "--sweep-steps": "diffuse tune MODEL DATA --steps",
    "--sweep-guidance": "diffuse tune MODEL DATA --guidance",
    "--ema-sweep": "diffuse ema MODEL DATA",
    "--ema-metric": "diffuse ema MODEL DATA --metric",
    "fit": "train",
    "finetune": "train DATA --init MODEL",
    "generate": "sample",
    "evaluate": "eval",
    "img2img": "vary",
    "superres": "upscale",
    "colorize": "restore MODEL IMAGE --degradation grey",
    "deblur": "restore MODEL IMAGE --degradation blur:2",
    "fid": "eval",
    "sweep": "tune",
    "inspect": "info",
    "diff": "compare",
}
"""Names of options and commands in other programs, and earlier ones here, to the names here.

A flag is suggested only for commands that have it, anything else for every command. A flag is also
found if it is typed with underscores.
"""

_EPOCHS = (
    "Set --steps: N epochs are N x images / batch size (64 by default) steps. Or set --minutes"
)
_DATA = "DATA has no flag: diffuse train DATA"
_MODEL = "MODEL has no flag: diffuse sample MODEL"
_SIZE = (
    "A model samples at the size that it was trained at. Train one with --size, or enlarge its "
    "samples with --then and a model of --given low-res:4"
)

ADVICE: dict[tuple[str, str], str] = {
    **{
        (command, flag): _EPOCHS
        for command in ("train", "distill")
        for flag in (
            "--epochs", "--epoch", "--num-epochs", "--n-epochs", "--max-epochs",
            "--num-train-epochs",
        )
    },
    **{
        ("train", flag): _DATA
        for flag in (
            "--data", "--data-dir", "--dataset", "--dataset-name", "--data-path",
            "--train-data-dir", "--images",
        )
    },
    **{
        ("sample", flag): _MODEL
        for flag in ("--model", "--model-path", "--ckpt", "--checkpoint", "--pretrained")
    },
    **{
        ("sample", flag): _SIZE
        for flag in ("--size", "--resolution", "--image-size", "--height", "--width")
    },
    ("train", "--use-ema"): "The EMA weights are always kept. Set --keep-raw to save the raw ones",
    ("sample", "--use-ema"): "The EMA weights are the default. Set --weights raw for the raw ones",
}  # fmt: skip
"""Hints for flags of other programs that have no counterpart in a command, by both."""

VALUES: dict[str, dict[str, str]] = {
    "--sampler": {
        "dpm++": "dpmpp-2m",
        "dpm++2m": "dpmpp-2m",
        "dpm++-2m": "dpmpp-2m",
        "dpm-solver": "dpmpp-2m",
        "dpm-solver++": "dpmpp-2m",
        "dpmsolver": "dpmpp-2m",
        "dpmsolver++": "dpmpp-2m",
        "dpmpp": "dpmpp-2m",
        "dpm++-sde": "dpmpp-2m-sde",
        "dpm++-2m-sde": "dpmpp-2m-sde",
        "dpm++2m-sde": "dpmpp-2m-sde",
        "sde": "dpmpp-2m-sde",
        "euler": "ddim",
        "euler-a": "ddpm",
        "euler-ancestral": "ddpm",
        "ancestral": "ddpm",
        "edm": "heun",
        "pndm": "ipndm",
        "plms": "ipndm",
        "lcm": "consistency",
    },
    "--metrics": {
        "fid": "frechet --features inception",
        "fd": "frechet",
        "fd-dinov2": "frechet --features dinov2",
        "mmd": "kid",
        "precision": "manifold",
        "recall": "manifold",
        "coverage": "manifold",
        "nll": "likelihood",
        "bpd": "likelihood",
        "bits-per-dim": "likelihood",
        "elbo": "likelihood",
        "psnr": "answers",
        "copies": "memorization",
    },
    "--features": {
        "inceptionv3": "inception",
        "inception-v3": "inception",
        "dino": "dinov2",
    },
    "--schedule": {
        "squaredcos-cap-v2": "cosine",
        "squaredcos": "cosine",
        "scaled-linear": "quadratic",
        "rectified-flow": "flow",
    },
    "--target": {
        "epsilon": "eps",
        "noise": "eps",
        "pred-noise": "eps",
        "sample": "x0",
        "x-start": "x0",
        "pred-x0": "x0",
        "v-prediction": "v",
        "pred-v": "v",
    },
    "--variance": {
        "fixed-small": "small",
        "fixed-large": "large",
        "learned-range": "learned",
    },
    "--loss": {"mse": "simple", "l2": "simple", "kl": "vlb", "elbo": "vlb"},
    "--optimizer": {"adam": "adamw"},
    "--network": {"dit": "vit", "uvit": "vit", "transformer": "vit"},
    "--precision": {
        "no": "fp32",
        "float32": "fp32",
        "32": "fp32",
        "float16": "fp16",
        "half": "fp16",
        "16": "fp16",
        "bfloat16": "bf16",
    },
    "--device": {"gpu": "cuda", "nvidia": "cuda", "metal": "mps"},
    "--fit": {"center": "crop", "centercrop": "crop", "letterbox": "pad", "resize": "stretch"},
    "--log": {"tb": "tensorboard", "weights-and-biases": "wandb"},
}
"""Values of options in other programs, to the values here and what else goes with them.

They are also found with underscores, and in capitals.
"""


def explain(error: TyperException) -> UsageError:
    """An error of Typer's as one of ours."""
    context: Any = getattr(error, "ctx", None)
    typed: str = getattr(error, "option_name", "")
    if hasattr(error, "possibilities") and context is not None:
        return UsageError(f"there is no option {typed}", _meant(typed, context))
    return UsageError(error.format_message().rstrip("."), "See --help")


def _meant(typed: str, context: Any) -> str:
    """What to type instead of a flag that the command does not have."""
    typed = typed.replace("_", "-")
    if advice := ADVICE.get((context.info_name, typed)):
        return advice
    own, known = _flags(context.command), SYNONYMS.get(typed, "")
    if known and (known.split()[0] in own or not known.startswith("-")):
        return f"Did you mean '{known}'?"
    if close := near(typed, own, cutoff=0.75):
        return f"Did you mean '{close}'?"
    every = context.parent.command.commands if context.parent else {}
    if others := [name for name in every if typed in _flags_of(every, name)]:
        return f"It is an option of {', '.join(others)}"
    return f"See {context.command_path} --help"


def _flags_of(commands: Any, name: str) -> list[str]:
    """Those of a command; none of an extension that is broken."""
    with contextlib.suppress(InvalidArgument):
        return _flags(commands[name])
    return []


def _flags(command: Any) -> list[str]:
    return [flag for parameter in command.params for flag in
            (*parameter.opts, *parameter.secondary_opts) if flag.startswith("-")]  # fmt: skip


def no_command(typed: str, names: Iterable[str]) -> UsageError:
    """The error for a command that does not exist."""
    known = SYNONYMS.get(typed)
    hint = f"Did you mean '{known}'?" if known else suggest(typed, names)
    return UsageError(f"there is no command '{typed}'", hint)


def meant_value(flag: str, value: str) -> str:
    """The hint for a value that another program takes under this name; empty for any other."""
    known = VALUES.get("--sampler" if flag == "--samplers" else flag, {})
    own = known.get(value.lower().replace("_", "-"))
    return f"Did you mean '{flag} {own}'?" if own else ""
