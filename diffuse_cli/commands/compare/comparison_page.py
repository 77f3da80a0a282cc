"""Page of two runs or models: their settings, and their curves in the same plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffuse_cli.pages import charts
from diffuse_cli.pages.charts import Line
from diffuse_cli.pages.curves import CAPTIONS, read_curves
from diffuse_cli.pages.templates import render_page
from diffuse_cli.system.run_reader import METRICS, run_folder

if TYPE_CHECKING:
    from markupsafe import Markup

    from diffuse_cli.commands.compare.run_comparison import Comparison


def render_comparison(found: Comparison, rows: Sequence[Sequence[str]]) -> str:
    """Render a comparison as HTML.

    Args:
        rows: the head and the rows of the table of both.
    """
    names = [Path(side.path).name for side in (found.a, found.b)]
    return render_page(
        "compare",
        " and ".join(names),
        sides=dict(zip("AB", names, strict=True)),
        rows=rows,
        plots=plot_both(found),
        remarks=found.remarks,
    )


def plot_both(found: Comparison) -> list[tuple[str, Markup]]:
    """Plot each curve that a run has, with a line for each run, under its caption."""
    sides = {"A": found.a, "B": found.b}
    curves = {
        name: read_curves(run_folder(Path(side.path)) / METRICS) for name, side in sides.items()
    }
    plots = []
    for key, (words, caption) in CAPTIONS.items():
        lines = [
            Line(name, own[key].steps, own[key].smooth(), marks=len(own[key].steps) < charts.FEW)
            for name, own in curves.items()
            if key in own
        ]
        if lines:
            positive = words.endswith("loss") and all(y > 0 for line in lines for y in line.y)
            plot = charts.lines(f"both-{key}", lines, caption, "step", words, log_y=positive)
            plots.append((caption, plot))
    return plots
