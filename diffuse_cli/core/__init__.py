"""Diffusion as a library: tensors in, tensors out; no files, printing or options.

It needs torch and numpy, and imports nothing else of this package; `examples/library.py` shows its
use. Names load their module on first use (PEP 562): listing a table does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffuse_cli.core.conditions import Conditions as Conditions
    from diffuse_cli.core.conditions import Table as Table
    from diffuse_cli.core.degradations import DEGRADATIONS as DEGRADATIONS
    from diffuse_cli.core.denoiser import Denoiser as Denoiser
    from diffuse_cli.core.denoiser import Prediction as Prediction
    from diffuse_cli.core.gaussian import Gaussian as Gaussian
    from diffuse_cli.core.likelihood import Bits as Bits
    from diffuse_cli.core.likelihood import bits_per_dim as bits_per_dim
    from diffuse_cli.core.losses import LOSSES as LOSSES
    from diffuse_cli.core.losses import WEIGHTINGS as WEIGHTINGS
    from diffuse_cli.core.networks import NETWORKS as NETWORKS
    from diffuse_cli.core.optimizers import OPTIMIZERS as OPTIMIZERS
    from diffuse_cli.core.process import Process as Process
    from diffuse_cli.core.registry import InvalidArgument as InvalidArgument
    from diffuse_cli.core.restoration import RESTORATIONS as RESTORATIONS
    from diffuse_cli.core.samplers import SAMPLERS as SAMPLERS
    from diffuse_cli.core.samplers import State as State
    from diffuse_cli.core.schedules import SCHEDULES as SCHEDULES
    from diffuse_cli.core.space import Space as Space
    from diffuse_cli.core.targets import TARGETS as TARGETS
    from diffuse_cli.core.timesteps import SPACINGS as SPACINGS
    from diffuse_cli.core.timesteps import TIMESTEP_DRAWS as TIMESTEP_DRAWS
    from diffuse_cli.core.variances import VARIANCES as VARIANCES

_HOMES = {
    "SCHEDULES": "schedules",
    "SPACINGS": "timesteps",
    "TIMESTEP_DRAWS": "timesteps",
    "TARGETS": "targets",
    "VARIANCES": "variances",
    "InvalidArgument": "registry",
    "Space": "space",
    "Conditions": "conditions",
    "Table": "conditions",
    "Gaussian": "gaussian",
    "Process": "process",
    "NETWORKS": "networks",
    "DEGRADATIONS": "degradations",
    "Denoiser": "denoiser",
    "Prediction": "denoiser",
    "LOSSES": "losses",
    "WEIGHTINGS": "losses",
    "OPTIMIZERS": "optimizers",
    "RESTORATIONS": "restoration",
    "SAMPLERS": "samplers",
    "State": "samplers",
    "Bits": "likelihood",
    "bits_per_dim": "likelihood",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
