"""Write the table of docs/performance.md from benchmarks/results/quality-*.json.

    python benchmarks/report.py

`time_to_quality.py` writes these files. Each data set and time is a row, so a new file adds rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS, PAGE = HERE / "results", HERE.parent / "docs" / "performance.md"

BEGIN, END = "<!-- python benchmarks/report.py writes this table -->", "<!-- end of the table -->"

CONTENDERS = ("diffuse", "diffusers")

TITLES = {"cifar-10": "CIFAR-10", "fashion-mnist": "Fashion-MNIST"}
"""Titles of data sets. Others are their names without the size."""

HEADINGS = ("data", "size", "minutes", *CONTENDERS, "recall", "brightness", "seeds")

Runs = Sequence[Mapping[str, Any]]


def kid(runs: Runs) -> str:
    """Return the mean KID over seeds and its standard error, for one seed that of the samples."""
    if not runs:
        return ""
    values = [run["kid_x1000"] for run in runs]
    error = runs[0]["kid_x1000_standard_error"]
    if len(values) > 1:
        error = stdev(values) / len(values) ** 0.5
    return f"{mean(values):.0f} ± {error:.0f}"


def compare(contenders: Sequence[Runs], metric: str, digits: str) -> str:
    """Return the mean of a metric for each contender."""
    values = [mean(run[metric] for run in runs) for runs in contenders if runs]
    return " vs ".join(format(value, digits) for value in values)


def cells(title: str, runs: Runs) -> list[str]:
    """Return the row of the runs of a data set that took the same time."""
    contenders = [[run for run in runs if run["contender"] == name] for name in CONTENDERS]
    seeds = dict.fromkeys(len(seeds) for seeds in contenders if seeds)
    size, minutes = runs[0]["size"], runs[0]["minutes"]
    return [
        title, f"{size}×{size}", f"{minutes:g}", *map(kid, contenders),
        compare(contenders, "recall", ".2f"), compare(contenders, "brightness", "+.1f"),
        " vs ".join(map(str, seeds)),
    ]  # fmt: skip


def rows(folder: Path) -> Iterator[list[str]]:
    """Yield the rows of all data sets, by size, name and minutes."""
    files = {path: json.loads(path.read_text()) for path in folder.glob("quality-*.json")}
    for path, runs in sorted(files.items(), key=lambda item: (item[1][0]["size"], item[0].stem)):
        name = path.stem.removeprefix("quality-")
        title = TITLES.get(name, name.removesuffix(f"-{runs[0]['size']}"))
        for minutes in sorted({run["minutes"] for run in runs}):
            yield cells(title, [run for run in runs if run["minutes"] == minutes])


def table(folder: Path) -> str:
    """Return the table of all results in a folder."""
    lines = [HEADINGS, ["---", *["--:"] * (len(HEADINGS) - 1)], *rows(folder)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Replace the table of the page."""
    pattern = f"{re.escape(BEGIN)}.*{re.escape(END)}"
    text = f"{BEGIN}\n\n{table(RESULTS)}\n\n{END}"
    PAGE.write_text(re.sub(pattern, lambda _: text, PAGE.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
