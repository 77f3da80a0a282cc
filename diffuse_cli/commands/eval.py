"""Evaluate a model, or a folder of images, against real images.

Prints the bits per dimension of held-out images, and the distance between generated and real
images. If DATA is the training data, it also measures overfitting and searches for copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffuse_cli.commands._cli.console import Console
from diffuse_cli.config.eval_options import EvalConfig
from diffuse_cli.metrics import MetricNumber, Values, class_table, select_numbers
from diffuse_cli.system import files
from diffuse_cli.system.events import align_columns, replace_nonfinite
from diffuse_cli.system.outputs import claim_option

if TYPE_CHECKING:
    from diffuse_cli.evaluation.results import EvaluationResult

CONFIG = EvalConfig
EXAMPLES = (
    "diffuse eval model.safetensors photos",
    "diffuse eval model.safetensors photos -n 5000 --report report.html",
)


def run(config: EvalConfig, console: Console) -> None:
    """Evaluate, and print the numbers."""
    from diffuse_cli.evaluation.evaluation_run import evaluate

    with claim_option(config, "report", ".html") as report:
        found = console.follow(evaluate(config))
        if found is None:
            return
        values = found.to_json(config)
        if report:
            from diffuse_cli.evaluation.report import page

            files.write_text(report, page(config, found, replace_nonfinite(values)))
    console.show(values, lines(found))


def lines(found: EvaluationResult) -> list[str]:
    """Return the verdict, a table of the metrics and their references, and the settings."""
    rows = [
        ["", "measured", "reference"],
        *(_row(n, found.values) for n in select_numbers(found.values)),
    ]
    from diffuse_cli.metrics.features.feature_choice import describe_network, describe_part

    part = describe_part(found.part, found.words)
    features = f"; {describe_network(found.features)}" if found.features.get("name") else ""
    measured = "memorized_expected" in found.values
    said = [
        str(r)
        for r in found.remarks
        if r.warns or r.level == "note" or (measured and r.kind == "memorization")
    ]
    return [
        *([f"{found.verdict}.", ""] if found.verdict else []),
        *align_columns(rows),
        f"n = {found.generated:,} generated against {found.real:,} real ({part}){features}",
        *said,
        *_class_lines(found),
        *(files.show(path) for path in (found.plot, found.pairs, found.report) if path),
    ]


def _row(number: MetricNumber, values: Values) -> list[str]:
    reference = number.reference(values)
    return [
        "  " * number.part + number.label,
        number.text(values),
        "" if reference is None else str(reference),
    ]


def _class_lines(found: EvaluationResult) -> list[str]:
    """Return a row for each class: counts, and the numbers that a few images suffice for."""
    if not found.classes:
        return []
    head, *rows = class_table(found.classes)
    return ["", *align_columns([head, *([files.show(name), *cells] for name, *cells in rows)])]
