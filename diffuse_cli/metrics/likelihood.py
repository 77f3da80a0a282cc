"""Bits per dimension: the variational bound in its three parts, over real images."""

from __future__ import annotations

import math
from collections.abc import Iterator

from diffuse_cli.metrics.inputs import MetricInputs
from diffuse_cli.metrics.presentation import Facts, MetricNumber, Remark, with_error
from diffuse_cli.metrics.sample_statistics import average

NEEDS = ("bits",)

PARTS = {
    "prior": ("prior, L_T", "What is still to be seen of a sample at the last timestep."),
    "middle": ("steps, L_1 ... L_T-1", "What all denoising steps but the last cost together."),
    "decoder": ("decoder, L_0", "What the last step, to exact pixel values, costs."),
}
IDEAL = {"prior": 0.0}

NUMBERS = (
    MetricNumber(
        "bits_per_dim",
        "bits per dimension",
        "The bound for real samples; the sum of the three parts.",
        "lower",
        question="prediction",
        axis="bits per dimension",
        by_class=True,
    ),
    MetricNumber(
        "nats_per_dim",
        "nats per dimension",
        "The same of a density, in natural logarithms: of the numbers in the files, in their "
        "units. It may be negative.",
        "lower",
        question="prediction",
        part=True,
    ),
    *(
        MetricNumber(f"bits_{part}", label, says, "lower", IDEAL.get(part), "prediction", part=True)
        for part, (label, says) in PARTS.items()
    ),
)


def remarks(facts: Facts) -> Iterator[Remark]:
    """Whether a file of the pixels would be smaller."""
    if "bits_per_dim" in facts and facts.stored and facts["bits_per_dim"].above(facts.stored):
        yield Remark(
            "bits per dimension",
            "poor",
            f"{facts['bits_per_dim']} is worse than storing the {facts.words.points} as they are, "
            f"which takes {facts.stored}: the model does not predict these {facts.words.many}",
        )


def compute(evaluation: MetricInputs) -> dict[str, float]:
    """The mean bound over images with its standard error, and the means of its parts.

    The parts are those of Ho et al. 2020, eq. 5: the prior's L_T, the sum of L_1 ... L_T-1, and
    the decoder's L_0. Of floats also in nats.
    """
    total = evaluation.bits.sum(1)
    nats = average(total * math.log(2)) if evaluation.floats else None
    parts = zip(PARTS, evaluation.bits.mean(0), strict=True)
    return {
        **with_error("bits_per_dim", *average(total)),
        **(with_error("nats_per_dim", *nats) if nats else {}),
        **{f"bits_{name}": float(mean) for name, mean in parts},
    }


def difference_errors(a: MetricInputs, b: MetricInputs) -> dict[str, float]:
    """Those of the bound and of its parts, by the differences of each image's bits."""
    apart = b.bits - a.bits
    names = ("bits_per_dim", *(f"bits_{name}" for name in PARTS))
    columns = (apart.sum(1), *apart.T)
    errors = {name: average(own)[1] for name, own in zip(names, columns, strict=True)}
    if a.floats:
        errors["nats_per_dim"] = errors["bits_per_dim"] * math.log(2)
    return errors
