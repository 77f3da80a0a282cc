"""Measuring a model, or a folder of images, against real images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffuse_cli.evaluation.evaluating import Evaluated as Evaluated
    from diffuse_cli.evaluation.evaluating import evaluate as evaluate

__all__ = ["Evaluated", "evaluate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from diffuse_cli.evaluation import evaluating

        return getattr(evaluating, name)
    raise AttributeError(name)
