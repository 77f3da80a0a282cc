"""Choose the EMA length after training.

Computes EMA weights of many lengths from the snapshots of train --ema-lengths, measures each, and
names the best.
"""

from __future__ import annotations

from diffuse_cli.commands._cli import Console
from diffuse_cli.config.eval_options import EmaConfig

CONFIG = EmaConfig
EXAMPLES = (
    "diffuse ema model.safetensors photos",
    "diffuse ema model.safetensors photos --metric held-out -o best.safetensors",
)


def run(config: EmaConfig, console: Console) -> None:
    """Measure the lengths, and print them and the best."""
    from diffuse_cli.commands.ema.ema_lengths import measure_lengths

    report = console.follow(measure_lengths(config))
    if report is not None:
        console.show(*report)
