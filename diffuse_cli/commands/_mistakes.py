"""What to say about an option or command that does not exist: which one was meant."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from typer.exceptions import TyperException

from diffuse_cli.core.errors import InvalidArgument
from diffuse_cli.errors import UsageError, near, suggest

SYNONYMS: dict[str, str] = {
    "--learning-rate": "--lr",
    "--resolution": "--size",
    "--image-size": "--size",
    "--fp16": "--precision fp16",
    "--bf16": "--precision bf16",
    "--mixed-precision": "--precision",
    "--amp": "--precision",
    "--cfg": "--guidance",
    "--cfg-scale": "--guidance",
    "--guidance-scale": "--guidance",
    "--autoguidance": "--guide-with",
    "--num-inference-steps": "--steps",
    "--num-steps": "--steps",
    "--max-steps": "--steps",
    "--train-steps": "--steps",
    "--iterations": "--steps",
    "--output": "--out",
    "--output-dir": "--out",
    "--train-batch-size": "--batch-size",
    "--gradient-accumulation-steps": "--accumulation",
    "--max-grad-norm": "--grad-clip",
    "--beta-schedule": "--schedule",
    "--noise-schedule": "--schedule",
    "--prediction-type": "--target",
    "--parametrization": "--target",
    "--noise-steps": "--num-timesteps",
    "--num-train-timesteps": "--num-timesteps",
    "--num-images": "-n",
    "--num-samples": "-n",
    "--scheduler": "--sampler",
    "--dynamic-thresholding": "--threshold",
    "--force": "--overwrite",
    "--ema": "--ema-decay",
    "--num-workers": "--workers",
    "--random-flip": "--flip",
    "--sweep": "diffuse tune MODEL DATA",
    "--sweep-samplers": "diffuse tune MODEL DATA --samplers",
    "--sweep-steps": "diffuse tune MODEL DATA --steps",
    "--sweep-guidance": "diffuse tune MODEL DATA --guidance",
    "--ema-sweep": "diffuse ema MODEL DATA",
    "--ema-metric": "diffuse ema MODEL DATA --metric",
    "--gpu": "--device cuda",
    "--cpu": "--device cpu",
    "--cuda": "--device cuda",
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

A flag is suggested only for commands that have it, anything else for every command.
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
