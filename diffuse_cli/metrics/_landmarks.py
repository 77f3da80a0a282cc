"""Images that everyone knows to be bad, whose KID says how bad others are."""

from __future__ import annotations

from diffuse_cli.metrics import Values, measured

LANDMARKS = {"blurred": "blurred real images", "mean": "their mean image", "noise": "noise"}
"""What they are; the KID of each is `kid_of_NAME`."""


def lost(values: Values) -> bool:
    """Whether generated images are not clearly nearer to real ones than every landmark is."""
    if "kid" not in values:
        return False
    kid = measured(values, "kid")
    keys = [f"kid_of_{name}" for name in LANDMARKS if f"kid_of_{name}" in values]
    return any(not measured(values, key).above(kid) for key in keys)
