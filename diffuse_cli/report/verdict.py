"""The page's first paragraph: what the numbers come to, each claim with the numbers behind it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from diffuse_cli.evaluation import Evaluated
from diffuse_cli.evaluation.remarks import SIGNIFICANT
from diffuse_cli.report.wording import error_of, measured

FEW = 0.1
"""Where the nearest reference alone is more than this share of them, they are too few."""


def verdict(found: Evaluated) -> list[str]:
    """Sentences, the most important first; the evaluation's own remarks are among them."""
    return [line for rule in RULES for line in rule(found)]


def _likeness(found: Evaluated) -> Iterator[str]:
    values = found.values
    if "kid" not in values:
        return
    kid = measured(values, "kid")
    if "kid_floor" not in values:
        yield f"Likeness: the distance (KID) of generated from real images is {kid}; 0 is none."
        return
    floor = measured(values, "kid_floor")
    error = math.hypot(error_of(values, "kid"), error_of(values, "kid_floor"))
    known = "kid_standard_error" in values  # of three images or fewer it is not
    if known and values["kid"] - values["kid_floor"] > SIGNIFICANT * error:
        yield (
            f"Likeness: as a set, the generated images differ measurably from real ones. Their "
            f"distance from them (KID) is {kid}; that of real images from other real ones is "
            f"{floor}."
        )
    else:
        yield (
            f"Likeness: {min(found.real, found.generated):,} images on each side do not tell "
            f"generated images from real ones. Their distance (KID) is {kid}; that of real images "
            f"from other real ones is {floor}. More images would find smaller differences."
        )


def _variety(found: Evaluated) -> Iterator[str]:
    values = found.values
    if not {"precision", "recall"} <= {*values}:
        return
    precision, recall = values["precision"], values["recall"]
    error = math.hypot(error_of(values, "precision"), error_of(values, "recall"))
    line = (
        f"Plausibility and variety: {precision:.0%} of the generated images lie among the real "
        f"ones, and {recall:.0%} of the real ones lie among the generated ones"
    )
    if precision - recall > SIGNIFICANT * error:
        yield f"{line}: what is drawn is more plausible than it is varied."
    elif recall - precision > SIGNIFICANT * error:
        yield f"{line}: there is variety, at the cost of implausible images."
    else:
        yield f"{line}."


def _copies(found: Evaluated) -> Iterator[str]:
    values = found.values
    if not {"memorized_features", "memorized_pixels"} <= {*values}:
        yield (
            "Copies: whether images are copies of training images was not measured. "
            + why_no_training(found)
        )
        return
    expected = values["memorized_expected"]
    measured = (
        f"{values['memorized_features']:.0%} of the generated images in features and "
        f"{values['memorized_pixels']:.0%} in pixels are as near to a training image as the "
        f"nearest {expected:.0%} of real images that are no copies"
    )
    copied = copies(found)
    if copied == "yes":
        yield f"Copies: training images were memorised. {measured}."
    elif copied == "perhaps":
        yield (
            f"Copies: training images may have been memorised. {measured}. Blurred images can be "
            "as near: look at the pairs below."
        )
    else:
        few = " There are so few of these that only much copying would be seen."
        more = any(values[f"memorized_{space}"] > 2 * expected for space in ("features", "pixels"))
        sign = "no sign that is clear" if more else "no sign"
        chance = " So many can be chance, among so few: look at the pairs below." if more else ""
        yield (
            f"Copies: {sign} that training images were memorised. {measured}; of a model that "
            f"copies nothing, about {expected:.0%} would be.{few if expected > FEW else ''}{chance}"
        )


def copies(found: Evaluated) -> str:
    """Whether training images were memorised, by the remarks: `yes`, `perhaps` or `no`."""
    if any(line.startswith("memorisation") for line in found.remarks):
        return "yes"
    return "perhaps" if any("memorisation" in line for line in found.remarks) else "no"


def why_no_training(found: Evaluated) -> str:
    """Why generated images were not compared with training images."""
    if found.model:
        return "That needs the model's own training data as DATA, with a part that was held out."
    return "That needs DATA of 40 images or more, of which training would hold out a part."


def _overfitting(found: Evaluated) -> Iterator[str]:
    values = found.values
    if "bits_per_dim_gap" not in values:
        return
    gap = measured(values, "bits_per_dim_gap")
    if any(line.startswith("overfitting") for line in found.remarks):
        yield (
            f"Overfitting: real images the model was not trained on cost {gap} bits per dimension "
            "more than training images: it has learned these by heart in part."
        )
    else:
        yield (
            "Overfitting: no sign of it. Real images the model was not trained on cost "
            f"{gap} bits per dimension more than training images, which is not clearly above 0."
        )


def _cautions(found: Evaluated) -> Iterator[str]:
    """Remarks that no rule above has said."""
    for line in found.remarks:
        if "memorisation" not in line and not line.startswith("overfitting"):
            yield f"Caution: {line}."


RULES: tuple[Callable[[Evaluated], Iterator[str]], ...] = (
    _likeness, _variety, _copies, _overfitting, _cautions,
)  # fmt: skip
