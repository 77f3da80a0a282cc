"""The contents of the section on the numbers in samples: densities by channel, and spectra."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from diffuse_cli.evaluation.evaluation_run import Evaluated
from diffuse_cli.evaluation.report import charts
from diffuse_cli.evaluation.report.charts import Line
from diffuse_cli.metrics import Measured, Words

CHANNELS = 8
"""How many channels are drawn, the first ones."""

SIDES = ("real", "generated")


def distributions(found: Evaluated) -> dict[str, Any]:
    """A plot of each channel's density, and one of the power by frequency."""
    channels = found.details.get("marginals", [])
    spectrum = found.details.get("spectrum")
    return {
        "channels": [_channel(k, own, found.words) for k, own in enumerate(channels[:CHANNELS])],
        "more": max(0, len(channels) - CHANNELS),
        "spectrum": _spectrum(spectrum) if spectrum and any(spectrum["real"]) else None,
        "points": found.words.points,
    }


def _measured(values: dict[str, Any], key: str) -> Measured:
    return Measured(values[key], values[f"{key}_standard_error"])


def _channel(k: int, channel: dict[str, Any], words: Words) -> tuple[Markup, str]:
    """The plot of a channel, and its caption."""
    density = channel["density"]
    name = words.channel(k)
    said = "; ".join(
        f"{side}: mean {_measured(channel[side], 'mean')}, "
        f"deviation {_measured(channel[side], 'deviation')}"
        for side in SIDES
    )
    series = {side: density[side] for side in SIDES}
    caption = f"{name[:1].upper()}{name[1:]}. {said[:1].upper()}{said[1:]}."
    label = f"Density of the numbers of {name}; {said}"
    return charts.outlines(f"density-{k}", density["edges"], series, label, "number"), caption


def _spectrum(spectrum: dict[str, Any]) -> Markup:
    series = []
    for name in SIDES:
        drawn = [
            (f, power, error)
            for f, power, error in zip(
                spectrum["frequencies"],
                spectrum[name],
                spectrum[f"{name}_standard_error"],
                strict=True,
            )
            if power > 0
        ]
        if drawn:
            places, powers, errors = zip(*drawn, strict=True)
            series.append(Line(name, places, powers, errors, band=True))
    said = "Power by frequency, real and generated"
    return charts.lines(
        "spectrum", series, said, "waves per point", "power", log_x=True, log_y=True
    )
