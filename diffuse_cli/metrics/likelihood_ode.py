"""Bits per dimension by the probability-flow equation, for real images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from diffuse_cli.metrics import Facts, MetricInputs, MetricNumber, Remark
from diffuse_cli.metrics.estimates import average

NEEDS = ("ode_bits",)
OPTION = "ode_steps"

_number = partial(MetricNumber, direction="lower", question="prediction", place=1)

NUMBERS = (
    _number(
        "bits_per_dim_ode",
        "bits per dimension, ODE",
        "Likelihood of real samples by the probability-flow equation, for levels with uniform "
        "noise as wide as a level. It is not the variational bound of the same model, and can be "
        "above it.",
        axis="bits per dimension",
        by_class=True,
    ),
    _number(
        "nats_per_dim_ode",
        "nats per dimension, ODE",
        "The same for the density of the values in the files, in natural logarithms.",
        part=True,
    ),
    _number(
        "bits_per_dim_ode_solver",
        "error of the solver",
        "Estimated size of the solver's error, from half the steps.",
        ideal=0.0,
        part=True,
    ),
)


def remarks(facts: Facts) -> Iterator[Remark]:
    """Warn if the solver's error is larger than the standard error."""
    if "bits_per_dim_ode" not in facts:
        return
    value, solver_error = facts["bits_per_dim_ode"], facts["bits_per_dim_ode_solver"].value
    if solver_error > value.error:
        yield Remark(
            "bits per dimension, ODE",
            "caution",
            f"the error of the solver, {solver_error:.2g}, is larger than the standard error of "
            f"{value}. Use more --ode-steps",
        )


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """Return the mean over images and the size of the solver's mean error.

    The standard error covers images, the noise of levels and Hutchinson's estimate. For floats the
    mean is also in nats.
    """
    bits, solver_errors = evaluation.ode_bits.T
    return {
        **average(bits).to_entries("bits_per_dim_ode"),
        **(average(bits * math.log(2)).to_entries("nats_per_dim_ode") if evaluation.floats else {}),
        "bits_per_dim_ode_solver": abs(float(solver_errors.mean())),
    }
