"""Diffusion as a library: tensors in, tensors out; no files, printing or options.

It needs torch and numpy, and imports nothing else of this package; `examples/library.py` shows its
use. Names load their module on first use (PEP 562): listing a table does not import torch.

You can also import entries of tables by name, for example `cosine`, `min_snr` or `unipc`. A network
builds itself for a shape: `unet(channels=1, size=28)`. A name in several tables, such as `flow`, is
the entry of the first of `TABLES`.
"""

from __future__ import annotations

import re
import sys
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from inspect import getsource
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # read below, so that each name is declared once
    from diffuse_cli.core.conditions import Conditions as Conditions
    from diffuse_cli.core.conditions import MetadataTable as MetadataTable
    from diffuse_cli.core.degradations import DEGRADATIONS as DEGRADATIONS
    from diffuse_cli.core.denoiser import Denoiser as Denoiser
    from diffuse_cli.core.denoiser import Prediction as Prediction
    from diffuse_cli.core.gaussian import Gaussian as Gaussian
    from diffuse_cli.core.guidance import autoguide as autoguide
    from diffuse_cli.core.guidance import clip as clip
    from diffuse_cli.core.guidance import guide as guide
    from diffuse_cli.core.likelihood import Bits as Bits
    from diffuse_cli.core.likelihood import bits_per_dim as bits_per_dim
    from diffuse_cli.core.losses import LOSSES as LOSSES
    from diffuse_cli.core.losses import WEIGHTINGS as WEIGHTINGS
    from diffuse_cli.core.losses import loss as loss
    from diffuse_cli.core.networks import NETWORKS as NETWORKS
    from diffuse_cli.core.optimizers import OPTIMIZERS as OPTIMIZERS
    from diffuse_cli.core.process import Process as Process
    from diffuse_cli.core.registry import InvalidArgument as InvalidArgument
    from diffuse_cli.core.restoration import RESTORATIONS as RESTORATIONS
    from diffuse_cli.core.samplers import SAMPLERS as SAMPLERS
    from diffuse_cli.core.samplers import State as State
    from diffuse_cli.core.samplers import sample as sample
    from diffuse_cli.core.schedules import SCHEDULES as SCHEDULES
    from diffuse_cli.core.space import Space as Space
    from diffuse_cli.core.targets import TARGETS as TARGETS
    from diffuse_cli.core.timesteps import SPACINGS as SPACINGS
    from diffuse_cli.core.timesteps import TIMESTEP_DRAWS as TIMESTEP_DRAWS
    from diffuse_cli.core.variances import VARIANCES as VARIANCES

TABLES = (
    "SCHEDULES", "SAMPLERS", "LOSSES", "WEIGHTINGS", "TARGETS", "VARIANCES", "SPACINGS", "NETWORKS",
    "DEGRADATIONS", "RESTORATIONS",
)  # fmt: skip
"""Tables whose entries can be imported by name."""

_HOMES = {
    name: home
    for home, name in re.findall(r"from (\S+) import (\w+) as \2", getsource(sys.modules[__name__]))
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name[0] != "_" and find_spec(f"{__name__}.{name}") is None:
        entry = name.replace("_", "-")
        for table in map(__getattr__, TABLES):
            if entry in table.own:
                build = import_module(f"{__name__}.networks").build_for
                return partial(build, table[entry]) if table.group == "networks" else table[entry]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
