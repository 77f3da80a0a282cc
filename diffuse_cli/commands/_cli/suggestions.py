"""Suggestions for an option or a command that does not exist."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from typer.exceptions import TyperException

from diffuse_cli.core import InvalidArgument
from diffuse_cli.core.registry import closest_name, suggest
from diffuse_cli.system import UsageError


def _invert_words(words: Mapping[str, str]) -> dict[str, str]:
    """Return our name by each of the words that mean it."""
    return {word: name for name, synonyms in words.items() for word in synonyms.split()}


SYNONYMS = _invert_words({
    "--steps": (
        "--num-steps --max-steps --train-steps --max-train-steps --train-num-steps --iterations "
        "--iters --num-inference-steps --inference-steps --sampling-steps --sampling-timesteps "
        "--ddim-steps --nfe"
    ),
    "--minutes": "--time",
    "--save-every": "--checkpointing-steps --save-steps",
    "--preview-every": "--validation-steps",
    "--log-every": "--logging-steps",
    "--resume": "--resume-from-checkpoint",
    "--size": "--resolution --image-size --img-size",
    "--flip": "--random-flip --horizontal-flip",
    "--workers": "--num-workers --dataloader-num-workers",
    "--out": "--output --output-dir --outdir --output-path --results-folder --save-dir",
    "--overwrite": "--force --overwrite-output-dir",
    "--log": "--report-to --logger",
    "--seed": "--random-seed",
    "--lr": "--learning-rate --train-lr",
    "--warmup": "--lr-warmup-steps --warmup-steps",
    "--batch-size": "--batch --bs --train-batch-size --eval-batch-size",
    "--accumulation": "--gradient-accumulation-steps --gradient-accumulate-every",
    "--grad-clip": "--max-grad-norm --clip-grad",
    "--weight-decay": "--adam-weight-decay --wd",
    "--optimizer": "--optim",
    "--ema-decay": "--ema --ema-max-decay",
    "--init": "--pretrained --finetune-from",
    "--classes": "--class-cond --class-conditional --num-classes",
    "--width": "--dim --model-channels",
    "--network": "--arch --architecture",
    "--schedule": "--beta-schedule --noise-schedule",
    "--target": "--prediction-type --parametrization --objective",
    "--num-timesteps": "--noise-steps --diffusion-steps --num-train-timesteps --ddpm-num-steps",
    "--loss": "--loss-type",
    "--weighting min-snr": "--snr-gamma",
    "-n": "--num-images --num-samples --n-samples",
    "--sampler": "--scheduler --solver",
    "--class": "--label --class-label --class-labels",
    "--guidance": "--cfg --cfg-scale --guidance-scale",
    "--guide-with": "--autoguidance",
    "--threshold": "--dynamic-thresholding",
    "--precision fp16": "--fp16",
    "--precision bf16": "--bf16",
    "--precision": "--mixed-precision --dtype --amp",
    "--device cuda": "--gpu --cuda",
    "--device cpu": "--cpu",
    "--metrics frechet --features inception": "--fid",
    "--metrics kid": "--kid",
    "--metrics precision-recall": "--prc --precision-recall",
    "train": "fit",
    "train DATA --init MODEL": "finetune",
    "sample": "generate",
    "eval": "evaluate fid",
    "vary": "img2img",
    "upscale": "superres",
    "restore MODEL IMAGE --degradation grey": "colorize",
    "restore MODEL IMAGE --degradation blur:2": "deblur",
    "tune": "sweep",
    "info": "inspect",
    "compare": "diff",
})  # fmt: skip
"""Names of options and commands in other programs, to the names here.

A flag is suggested only for commands that have it. It is also found with underscores.
"""

_HINTS = {
    ("train distill", "--epochs --epoch --num-epochs --n-epochs --max-epochs --num-train-epochs"):
        "Set --steps: N epochs are N x images / batch size (64 by default) steps. Or set --minutes",
    ("train", "--data --data-dir --dataset --dataset-name --data-path --train-data-dir --images"):
        "DATA has no flag: diffuse train DATA",
    ("sample", "--model --model-path --ckpt --checkpoint --pretrained"):
        "MODEL has no flag: diffuse sample MODEL",
    ("sample", "--size --resolution --image-size --height --width"):
        "A model samples at the size that it was trained at. Train one with --size, or enlarge its "
        "samples with --then and a model of --given low-res:4",
    ("train", "--use-ema"):
        "The EMA weights are always kept. Set --keep-raw to save the raw ones",
    ("sample", "--use-ema"):
        "The EMA weights are the default. Set --weights raw for the raw ones",
}  # fmt: skip

ADVICE = {
    (command, flag): hint
    for (commands, flags), hint in _HINTS.items()
    for command in commands.split()
    for flag in flags.split()
}
"""Hints for flags of other programs that have no counterpart in a command, by both."""

_VALUES = {
    "--sampler": {
        "dpmpp-2m": "dpm++ dpm++2m dpm++-2m dpm-solver dpm-solver++ dpmsolver dpmsolver++ dpmpp",
        "dpmpp-2m-sde": "dpm++-sde dpm++-2m-sde dpm++2m-sde sde",
        "ddim": "euler",
        "ddpm": "euler-a euler-ancestral ancestral",
        "heun": "edm",
        "ipndm": "pndm plms",
        "consistency": "lcm",
    },
    "--metrics": {
        "frechet --features inception": "fid",
        "frechet": "fd",
        "frechet --features dinov2": "fd-dinov2",
        "kid": "mmd",
        "precision-recall": "precision recall coverage prdc",
        "likelihood": "nll bpd bits-per-dim elbo",
        "likelihood-ode": "ode flow-likelihood probability-flow",
        "paired": "psnr ssim",
        "memorization": "copies",
    },
    "--features": {"inception": "inceptionv3 inception-v3", "dinov2": "dino"},
    "--schedule": {
        "cosine": "squaredcos-cap-v2 squaredcos",
        "quadratic": "scaled-linear",
        "flow": "rectified-flow",
    },
    "--target": {
        "eps": "epsilon noise pred-noise",
        "x0": "sample x-start pred-x0",
        "v": "v-prediction pred-v",
    },
    "--variance": {"small": "fixed-small", "large": "fixed-large", "learned": "learned-range"},
    "--loss": {"simple": "mse l2", "vlb": "kl elbo"},
    "--optimizer": {"adamw": "adam"},
    "--network": {"vit": "dit uvit transformer"},
    "--precision": {"fp32": "no float32 32", "fp16": "float16 half 16", "bf16": "bfloat16"},
    "--device": {"cuda": "gpu nvidia", "mps": "metal"},
    "--fit": {"crop": "center centercrop", "pad": "letterbox", "stretch": "resize"},
    "--log": {"tensorboard": "tb", "wandb": "weights-and-biases"},
}

VALUES = {flag: _invert_words(words) for flag, words in _VALUES.items()}
"""Values of options in other programs, to the values here and what else goes with them.

They are also found with underscores, and in capitals.
"""


def explain(error: TyperException) -> UsageError:
    """Return an error of Typer's as a `UsageError`."""
    context: Any = getattr(error, "ctx", None)
    typed: str = getattr(error, "option_name", "")
    if hasattr(error, "possibilities") and context is not None:
        hint = _suggest_flag(typed, context)
        return UsageError(f"there is no option {typed}", hint, code="unknown_option", option=typed)
    codes = {"MissingParameter": "missing_argument", "UsageError": "invalid_option"}
    code = codes.get(type(error).__name__, "invalid_value")
    return UsageError(error.format_message().rstrip("."), "See --help", code=code)


def _suggest_flag(typed: str, context: Any) -> str:
    """Return a hint for a flag that the command does not have."""
    typed = typed.replace("_", "-")
    if advice := ADVICE.get((context.info_name, typed)):
        return advice
    flags = _flags(context.command)
    synonym = SYNONYMS.get(typed, "")
    if synonym and synonym.split()[0] in flags:
        return f"Did you mean '{synonym}'?"
    if close := closest_name(typed, flags, cutoff=0.75):
        return f"Did you mean '{close}'?"
    every = context.parent.command.commands if context.parent else {}
    if commands := [name for name in every if typed in _flags_of(every, name)]:
        return f"It is an option of {', '.join(commands)}"
    return f"See {context.command_path} --help"


def _flags_of(commands: Any, name: str) -> list[str]:
    """Return the flags of a command. None of an extension that is broken."""
    with contextlib.suppress(InvalidArgument):
        return _flags(commands[name])
    return []


def _flags(command: Any) -> list[str]:
    return [flag for parameter in command.params for flag in
            (*parameter.opts, *parameter.secondary_opts) if flag.startswith("-")]  # fmt: skip


def unknown_command_error(typed: str, names: Iterable[str]) -> UsageError:
    """Return the error for a command that does not exist."""
    synonym = SYNONYMS.get(typed)
    hint = f"Did you mean '{synonym}'?" if synonym else suggest(typed, names)
    return UsageError(f"there is no command '{typed}'", hint, code="unknown_command")


def suggest_value(flag: str, value: str) -> str:
    """Return the hint for a value that another program takes under this name. Empty for any
    other."""
    synonyms = VALUES.get("--sampler" if flag == "--samplers" else flag, {})
    our_value = synonyms.get(value.lower().replace("_", "-"))
    return f"Did you mean '{flag} {our_value}'?" if our_value else ""
