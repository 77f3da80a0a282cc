"""Training: from a configuration to a model file, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffuse_cli.training.loop import fit as fit

__all__ = ["fit"]


def __getattr__(name: str) -> Any:
    if name == "fit":
        from diffuse_cli.training.loop import fit

        return fit
    raise AttributeError(name)
