"""A picture of what settings give against what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffuse_cli import pictures
from diffuse_cli.pictures import FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

    from diffuse_cli.evaluation.settings import SettingRow, SweptSettings


def draw(found: SweptSettings, name: str) -> Image.Image:
    """KID against seconds, a line for each sampler, its points labelled by steps."""
    sheet = pictures.Sheet(8.4, 5.2, 150)
    axes = sheet.axes(0.85, 0.95, 5.8, 3.6)
    title = f"{name}: recommended {found.recommended}"
    sheet.text(0.85, 0.38, title, 7.2, fontsize=11, fontweight="bold", parse_math=False)
    return sheet.render()
