"""Choose the EMA length after training.

Computes EMA weights of many lengths from the snapshots of train --ema-lengths, measures each, and
names the best.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from diffuse_cli.commands._cli import Console
from diffuse_cli.config.eval_options import EmaConfig
from diffuse_cli.metrics import label
from diffuse_cli.metrics.presentation import format_measurement
from diffuse_cli.system import Table, files

if TYPE_CHECKING:
    from diffuse_cli.commands.ema.ema_lengths import MeasuredLengths

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
        out = str(report.out) if report.out else None
        values = {"subject": config.subject, "data": config.data, **dataclasses.asdict(report)}
        console.show({**values, "out": out}, list_parts(report))


def list_parts(report: MeasuredLengths) -> list[str | Table]:
    """Return a row for each length, the best of them, and the file that was written."""
    rows = [["length", label(report.metric)]]
    rows += [[f"{r.length:.2f}", format_measurement(r.values, report.metric)] for r in report.rows]
    rows.append(["in the file", format_measurement(report.file, report.metric)])
    return [
        Table(rows),
        f"best: {report.best:.2f} of the {report.updates:,} updates at step {report.step:,}",
        *([files.show(report.out)] if report.out else []),
    ]
