"""Bits per dimension: the variational bound in its three parts, over real images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from diffuse_cli.metrics import Facts, Number, Parts, Remark, average, with_error

NEEDS = ("bits",)

_number = partial(Number, direction="lower", question="prediction")

NUMBERS = (
    _number(
        "bits_per_dim",
        "bits per dimension",
        "The bound for real images; the sum of the three parts.",
        axis="bits per dimension",
        by_class=True,
    ),
    _number(
        "bits_prior",
        "prior, L_T",
        "What is still visible of an image at the last timestep.",
        ideal=0.0,
        part=True,
    ),
    _number(
        "bits_middle",
        "steps, L_1 ... L_T-1",
        "What all denoising steps but the last cost together.",
        part=True,
    ),
    _number(
        "bits_decoder",
        "decoder, L_0",
        "What the last step, to exact pixel values, costs.",
        part=True,
    ),
)


def remarks(facts: Facts) -> Iterator[Remark]:
    """Whether a file of the pixels would be smaller."""
    if "bits_per_dim" in facts and facts.stored and facts["bits_per_dim"].above(facts.stored):
        yield Remark(
            "bits per dimension",
            "poor",
            f"{facts['bits_per_dim']} is worse than storing the pixels as they are, which takes "
            f"{facts.stored}: the model does not predict these images",
        )


def compute(evaluation: Parts) -> dict[str, float]:
    """The mean bound over images with its standard error, and the means of its parts.

    The parts are those of Ho et al. 2020, eq. 5: the prior's L_T, the sum of L_1 ... L_T-1, and
    the decoder's L_0.
    """
    parts = zip(("prior", "middle", "decoder"), evaluation.bits.mean(0), strict=True)
    return {
        **with_error("bits_per_dim", *average(evaluation.bits.sum(1))),
        **{f"bits_{name}": float(mean) for name, mean in parts},
    }
