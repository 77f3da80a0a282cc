"""Train, sample, measure and demonstrate denoising diffusion models on a folder of images.

`import diffuse_cli as diffuse` is the Python interface, which docs/python.md describes. Its names
are imported when they are first used: torch is not loaded before.
"""

# ruff: noqa: F405

from importlib import import_module
from typing import TYPE_CHECKING, Any

from diffuse_cli.system import __version__

if TYPE_CHECKING:
    from diffuse_cli.api import *  # noqa: F403

__all__ = [
    "BusyError", "Compared", "DataError", "Denoiser", "DiffuseError", "DivergedError",
    "Evaluation", "Model", "ModelFileError", "Notice", "OutputError", "Previewed", "Progress",
    "Samples", "Space", "Started", "Step", "Table", "Trained", "TrainingEvent", "UsageError",
    "Validated",
    "__version__", "evaluate", "load", "train",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("diffuse_cli.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
