"""Train, sample, measure and demonstrate denoising diffusion models on a folder of images.

`import diffuse_cli as diffuse` is the Python interface, which docs/python.md describes. Its names
are imported when they are first used: torch is not loaded before.
"""

import re
import sys
from importlib import import_module
from inspect import getsource
from typing import TYPE_CHECKING, Any

from diffuse_cli.system import __version__ as __version__

if TYPE_CHECKING:  # read below, so that each name is declared once
    from diffuse_cli.api import BusyError as BusyError
    from diffuse_cli.api import DataError as DataError
    from diffuse_cli.api import Denoiser as Denoiser
    from diffuse_cli.api import DiffuseError as DiffuseError
    from diffuse_cli.api import DivergedError as DivergedError
    from diffuse_cli.api import Evaluation as Evaluation
    from diffuse_cli.api import Model as Model
    from diffuse_cli.api import ModelFileError as ModelFileError
    from diffuse_cli.api import Notice as Notice
    from diffuse_cli.api import OutputError as OutputError
    from diffuse_cli.api import Previewed as Previewed
    from diffuse_cli.api import Progress as Progress
    from diffuse_cli.api import Samples as Samples
    from diffuse_cli.api import Space as Space
    from diffuse_cli.api import Step as Step
    from diffuse_cli.api import Table as Table
    from diffuse_cli.api import Trained as Trained
    from diffuse_cli.api import TrainingEvent as TrainingEvent
    from diffuse_cli.api import UsageError as UsageError
    from diffuse_cli.api import Validated as Validated
    from diffuse_cli.api import evaluate as evaluate
    from diffuse_cli.api import load as load
    from diffuse_cli.api import train as train

__all__ = sorted(re.findall(r"import (\w+) as \1\b", getsource(sys.modules[__name__])))


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("diffuse_cli.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
