"""Transforms of stored floats, before they are standardised.

Each has a forward function f, its inverse, and log f', all elementwise on tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from diffuse_cli.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Transform:
    """An increasing function of a number.

    Attributes:
        forward, inverse: f, and back.
        log_slope: log f', in nats; a density of f(x) times f' is one of x.
        takes: the numbers that it is defined for, in words.
    """

    forward: Function
    inverse: Function
    log_slope: Function
    takes: str = "finite numbers"


TRANSFORMS: Registry[Transform] = Registry(
    "transforms",
    {
        "none": Transform(lambda x: x, lambda y: y, lambda x: x.new_zeros(x.shape)),
        "log": Transform(
            lambda x: x.log(), lambda y: y.exp(), lambda x: -x.log(), "numbers above 0"
        ),
        "asinh": Transform(
            lambda x: x.asinh(), lambda y: y.sinh(), lambda x: -x.hypot(x.new_ones(())).log()
        ),
    },
)
"""`log` for what spans decades and is never 0, such as a density; `asinh`, which is the number
itself near 0 and its logarithm far from it, for both signs."""
