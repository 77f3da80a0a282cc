"""Page of two runs or models: their settings, and their curves in the same plots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffuse_cli.config.options import place_name
from diffuse_cli.pages.curves import read_curves
from diffuse_cli.pages.plots import plot_runs
from diffuse_cli.pages.templates import render_page
from diffuse_cli.system.run_reader import METRICS, run_folder

if TYPE_CHECKING:
    from diffuse_cli.commands.compare.run_comparison import Comparison


def render_comparison(found: Comparison, rows: Sequence[Sequence[str]]) -> str:
    """Render a comparison as HTML.

    Args:
        rows: the head and the rows of the table of both.
    """
    paths = {"A": Path(found.a.path), "B": Path(found.b.path)}
    names = {"A": place_name(found.a.path), "B": place_name(found.b.path)}
    return render_page(
        "compare",
        " and ".join(names.values()),
        sides=names,
        rows=rows,
        plots=plot_runs({k: read_curves(run_folder(path) / METRICS) for k, path in paths.items()}),
        remarks=found.remarks,
    )
