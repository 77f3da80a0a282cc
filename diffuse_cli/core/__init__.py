"""Diffusion as a library: tensors in, tensors out, without files, printing or options.

It needs only torch and numpy, and imports no other package of `diffuse_cli`. For an example see
`examples/library.py`. A name loads its module on first use (PEP 562), so listing a table does not
import torch.

You can also import entries of tables by name, for example `cosine`, `min_snr` or `unipc`. A network
builds itself for a shape: `unet(channels=1, size=28)`. If several tables have a name, such as
`flow`, you get the entry of the first table in `TABLES`.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffuse_cli.core.conditions import (
        LABELS,
        PAIRS,
        ConditioningArray,
        Conditions,
        LabelColumn,
        MetadataTable,
        NumberColumn,
        VectorColumn,
    )
    from diffuse_cli.core.data_gaussian import DataGaussian
    from diffuse_cli.core.degradations import DEGRADATIONS, Degradation
    from diffuse_cli.core.denoiser import Denoise, Denoiser, Prediction, Reference
    from diffuse_cli.core.gaussian import Gaussian
    from diffuse_cli.core.guidance import autoguide, clip, guide
    from diffuse_cli.core.likelihood import Bits, bits_per_dim, log_densities
    from diffuse_cli.core.losses import LOSSES, TIMESTEP_DRAWS, WEIGHTINGS, loss
    from diffuse_cli.core.networks import NETWORKS, Ends
    from diffuse_cli.core.optimizers import OPTIMIZERS
    from diffuse_cli.core.parameterization import TARGETS, VARIANCES, output_channels
    from diffuse_cli.core.process import Process
    from diffuse_cli.core.registry import InvalidArgument, Modules, Registry
    from diffuse_cli.core.restoration import RESTORATIONS
    from diffuse_cli.core.samplers import SAMPLERS, State, sample
    from diffuse_cli.core.schedules import SCHEDULES, SPACINGS
    from diffuse_cli.core.settings import Settings, dimensions
    from diffuse_cli.core.space import TRANSFORMS, Space

__all__ = [
    "DEGRADATIONS", "LABELS", "LOSSES", "NETWORKS", "OPTIMIZERS", "PAIRS", "RESTORATIONS",
    "SAMPLERS", "SCHEDULES", "SPACINGS", "TARGETS", "TIMESTEP_DRAWS", "TRANSFORMS", "VARIANCES",
    "WEIGHTINGS", "Bits", "ConditioningArray", "Conditions", "DataGaussian", "Degradation",
    "Denoise", "Denoiser", "Ends", "Gaussian", "InvalidArgument", "LabelColumn",
    "MetadataTable", "Modules", "NumberColumn", "Prediction", "Process", "Reference",
    "Registry", "Settings", "Space", "State", "VectorColumn", "autoguide", "bits_per_dim",
    "clip", "dimensions", "guide", "log_densities", "loss", "output_channels", "sample",
]  # fmt: skip

MODULES = (
    "registry", "settings", "conditions", "space", "schedules", "parameterization", "gaussian",
    "losses", "samplers", "degradations", "restoration", "optimizers", "networks", "process",
    "data_gaussian", "denoiser", "guidance", "likelihood",
)  # fmt: skip
"""Modules in which names are looked up, in this order. Modules that import torch come last."""

TABLES = (
    "SCHEDULES", "SAMPLERS", "LOSSES", "WEIGHTINGS", "TARGETS", "VARIANCES", "SPACINGS", "NETWORKS",
    "DEGRADATIONS", "RESTORATIONS",
)  # fmt: skip
"""Tables whose entries can be imported by name."""


def __getattr__(name: str) -> Any:
    if name in __all__:
        modules = (import_module(f"{__name__}.{module}") for module in MODULES)
        return next(getattr(module, name) for module in modules if hasattr(module, name))
    if name[0] != "_" and find_spec(f"{__name__}.{name}") is None:
        entry = name.replace("_", "-")
        for table in map(__getattr__, TABLES):
            if entry in table.entries:
                build = import_module(f"{__name__}.networks").build_for
                return partial(build, table[entry]) if table.group == "networks" else table[entry]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
