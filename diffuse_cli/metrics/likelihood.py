"""Bits per dimension: the variational bound in its three parts, over real images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from diffuse_cli.metrics import Facts, Number, Remark
from diffuse_cli.metrics._pairing import mean_error

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

NEEDS = ("bits",)

NUMBERS = (
    Number(
        "bits_per_dim",
        "bits per dimension",
        "The bound for real images; the sum of the three parts.",
        "lower",
        question="prediction",
        axis="bits per dimension",
        by_class=True,
    ),
    Number(
        "bits_prior",
        "prior, L_T",
        "What is still visible of an image at the last timestep.",
        "lower",
        0.0,
        "prediction",
        part=True,
    ),
    Number(
        "bits_middle",
        "steps, L_1 ... L_T-1",
        "What all denoising steps but the last cost together.",
        "lower",
        question="prediction",
        part=True,
    ),
    Number(
        "bits_decoder",
        "decoder, L_0",
        "What the last step, to exact pixel values, costs.",
        "lower",
        question="prediction",
        part=True,
    ),
)


def remarks(facts: Facts) -> Iterator[Remark]:
    """Whether a file of the pixels would be smaller."""
    if "bits_per_dim" in facts and facts.stored and facts["bits_per_dim"].above(facts.stored):
        yield Remark(
            "bits per dimension",
            "poor",
            "{bits} is worse than storing the pixels as they are, which takes {stored}: the model "
            "does not predict these images",
            {"bits": facts["bits_per_dim"], "stored": facts.stored},
        )


class Parts(Protocol):
    """What this metric reads: bits per dimension of each image, (N, 3): L_T, L_1...T-1, L_0."""

    bits: Array


def compute(evaluation: Parts) -> dict[str, float]:
    """The mean bound over images with its standard error, and the means of its parts.

    The parts are those of Ho et al. 2020, eq. 5: the prior's L_T, the sum of L_1 ... L_T-1, and
    the decoder's L_0.
    """
    bits = evaluation.bits
    total = bits.sum(1)
    prior, middle, decoder = (float(v) for v in bits.mean(0))
    return {
        "bits_per_dim": float(total.mean()),
        "bits_per_dim_standard_error": mean_error(total),
        "bits_prior": prior,
        "bits_middle": middle,
        "bits_decoder": decoder,
    }


def difference_errors(a: Parts, b: Parts) -> dict[str, float]:
    """Those of the bound and of its parts, by the differences of each image's bits."""
    apart = b.bits - a.bits
    columns = (apart.sum(1), *apart.T)
    names = ("bits_per_dim", "bits_prior", "bits_middle", "bits_decoder")
    return {name: mean_error(own) for name, own in zip(names, columns, strict=True)}
