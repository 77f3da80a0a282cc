"""Verdict of an evaluation: one sentence in plain words, before the metrics."""

from __future__ import annotations

from collections.abc import Sequence

from diffuse_cli.metrics import Remark, Values, Words, read_measurement
from diffuse_cli.metrics.features import KIDS
from diffuse_cli.metrics.presentation import rank_baselines, read_floor

CLOSE = 0.15
"""The largest KID that counts as close, as a fraction of the KID of blurred real images. After ten
minutes of training, garments that look real are at 0.10, and CIFAR-10, where subjects cannot be
recognized, at 0.32."""


FEWEST = 30
"""Fewer samples on a side are too few to call them close."""


def verdict(
    values: Values, remarks: Sequence[Remark], words: Words, *, count: int, model: bool
) -> str:
    """Summarize an evaluation, or return an empty string if it has no KID.

    Args:
        remarks: the sentences of the metrics, which include signs of copies.
        words: the names of the medium's samples.
        count: the number of samples on the smaller side.
        model: whether a model was measured, which can be trained longer.
    """
    many, levels = words.many, {r.level for r in remarks if r.kind == "memorization"}
    if "serious" in levels:
        return f"Copies: generated {many} repeat training {many}"
    key = next((key for key in KIDS if key in values), None)
    if key is None:
        return ""
    if f"{key}_standard_error" not in values:
        return f"Too few {many} for a verdict: at least 4 are needed on each side"
    longer = ": train longer" if model else ""
    text = f"Different from the real {many}{longer}"
    worse, level, better = rank_baselines(values)
    if worse or {"mean", "noise"} & set(level):
        text = f"Not recognizable yet{longer}" if model else "Not recognizable"
    elif level:
        text = (
            f"No better than blurred {many} yet{longer}" if model else f"As bad as blurred {many}"
        )
    elif _is_close(values, key):
        text = f"Close to the real {many}"
        if count < FEWEST:
            text = f"Too few {many} to tell how close: {count}, and {FEWEST} are needed"
    elif "blurred" in better:
        text = f"Better than blurred {many}, but different from the real {many}{longer}"
    return f"{text}. Some may be copies of training {many}" if "possible" in levels else text


def _is_close(values: Values, key: str) -> bool:
    """Whether the KID is small compared with blurred samples, or, where these were not measured or
    are like real samples, is like the KID between real samples."""
    floor = read_floor(values, key)
    if "kid_of_blurred" in values:
        blurred = read_measurement(values, "kid_of_blurred")
        if blurred.is_above(floor):
            return values[key] < CLOSE * blurred.value
    return not read_measurement(values, key).is_above(floor)
