"""Bits per dimension: the variational bound and its three parts, for real images."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

from diffuse_cli.metrics import Facts, MetricInputs, MetricNumber, Remark
from diffuse_cli.metrics.estimates import average

NEEDS = ("bits",)

PARTS = {
    "prior": ("prior, L_T", "The information about a sample that is left at the last timestep."),
    "middle": ("steps, L_1 ... L_T-1", "The cost of all denoising steps except the last."),
    "decoder": ("decoder, L_0", "The cost of the last step, to exact pixel values."),
}

_number = partial(MetricNumber, direction="lower", question="prediction")

NUMBERS = (
    _number(
        "bits_per_dim",
        "bits per dimension",
        "Variational bound for real samples, the sum of three parts.",
        axis="bits per dimension",
        by_class=True,
    ),
    _number(
        "nats_per_dim",
        "nats per dimension",
        "Variational bound on the density of the values in the files, in natural logarithms. It "
        "depends on their units and can be negative.",
        part=True,
    ),
    *(
        _number(f"bits_{part}", label, says, ideal=0.0 if part == "prior" else None, part=True)
        for part, (label, says) in PARTS.items()
    ),
)


def remarks(facts: Facts) -> Iterator[Remark]:
    """Warn if storing the pixels would take fewer bits."""
    if "bits_per_dim" in facts and facts["bits_per_dim"].is_above(facts.raw_bits):
        yield Remark(
            "bits per dimension",
            "poor",
            f"{facts['bits_per_dim']} is worse than storing the {facts.words.points} without a "
            f"model, which takes {facts.raw_bits}: the model cannot predict these "
            f"{facts.words.many}",
        )


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """Return the mean bound over images with its standard error, and the means of its parts.

    The parts are from Ho et al. 2020, eq. 5: the prior's L_T, the sum of L_1 ... L_T-1, and the
    decoder's L_0. For floats the bound is also in nats.
    """
    total = evaluation.bits.sum(1)
    parts = zip(PARTS, evaluation.bits.mean(0), strict=True)
    return {
        **average(total).to_entries("bits_per_dim"),
        **(average(total * math.log(2)).to_entries("nats_per_dim") if evaluation.floats else {}),
        **{f"bits_{name}": float(mean) for name, mean in parts},
    }


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Return the standard errors of the bound and its parts, from differences per image."""
    differences = b.bits - a.bits
    names = ("bits_per_dim", *(f"bits_{name}" for name in PARTS))
    columns = (differences.sum(1), *differences.T)
    errors = {name: average(column)[1] for name, column in zip(names, columns, strict=True)}
    if a.floats:
        errors["nats_per_dim"] = errors["bits_per_dim"] * math.log(2)
    return errors
