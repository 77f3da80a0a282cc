"""Images known to be bad, whose KID shows how bad generated ones are."""

from __future__ import annotations

from diffuse_cli.metrics.presentation import Measured, Values, measured

LANDMARKS = {"blurred": "blurred real images", "mean": "their mean image", "noise": "noise"}
"""The KID of each is `kid_of_NAME`."""


def standing(values: Values) -> tuple[list[str], list[str], list[str]]:
    """The landmarks that are nearer to real images than generated ones are, as near, and farther.

    Landmarks not clearly unlike real images (blurred images of smooth things) are left out. If the
    generated images are not clearly unlike real ones, no landmark is nearer or as near.
    """
    found: tuple[list[str], list[str], list[str]] = ([], [], [])
    if "kid" not in values:
        return found
    kid = measured(values, "kid")
    floor = measured(values, "kid_floor") if "kid_floor" in values else Measured(0.0)
    told = "kid_standard_error" in values and kid.above(floor)
    for name in LANDMARKS:
        if f"kid_of_{name}" in values:
            landmark = measured(values, f"kid_of_{name}")
            place = 0 if told and kid.above(landmark) else 2 if landmark.above(kid) else 1
            if landmark.above(floor) and (told or place == 2):
                found[place].append(name)
    return found


def lost(values: Values) -> bool:
    """Whether generated images are no nearer to real ones than images known to be bad."""
    return any(standing(values)[:2])
