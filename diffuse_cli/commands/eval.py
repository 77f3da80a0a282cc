"""Evaluate a model, or a folder of images, against real images.

Prints the bits per dimension of held-out images, and the distance between generated and real
images. If DATA is the training data, it also measures overfitting and searches for copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffuse_cli.commands._cli import Console
from diffuse_cli.config.eval_options import EvalConfig
from diffuse_cli.metrics import MetricNumber, Values, class_table, select_numbers
from diffuse_cli.metrics.features import describe_network
from diffuse_cli.system import Styled, Table, files, outputs, replace_nonfinite

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

    with outputs.claim_option(config.report, ".html", config.overwrite, "--report") as report:
        scores = console.follow(evaluate(config))
        if scores is None:
            return
        values = scores.to_json(config)
        if report:
            from diffuse_cli.evaluation.report import page

            files.write_text(report, page(config, scores, replace_nonfinite(values)))
    console.show(values, list_parts(scores))


def list_parts(scores: EvaluationResult) -> list[str | Table]:
    """Return the verdict, a table of the metrics and their references, and the settings."""
    rows = [
        ["", "measured", "reference"],
        *(_row(n, scores.values) for n in select_numbers(scores.values)),
    ]
    part = scores.words.name_part(scores.part)
    features = f"; {describe_network(scores.features)}" if scores.features.get("name") else ""
    measured = "memorized_expected" in scores.values
    remarks = [
        Styled(str(r), {"serious": "bad", "poor": "bad"}.get(r.level, "doubtful" * r.warns))
        for r in scores.remarks
        if r.warns
        or r.level == "note"
        or (measured and r.kind == "memorization")
        or r.kind == "reliable"
    ]
    return [
        *([Styled(f"{scores.verdict}.", "title"), ""] if scores.verdict else []),
        Table(rows),
        f"n = {scores.generated:,} generated against {scores.real:,} real ({part}){features}",
        *remarks,
        *_class_parts(scores),
        *(files.show(path) for path in (scores.plot, scores.pairs, scores.report) if path),
    ]


def _row(number: MetricNumber, values: Values) -> list[str]:
    reference, style = number.reference(values), ""
    if number.tolerance is not None and number.can_show(values):
        style = "bad" if number.is_far(values) else "good"
    return [
        "  " * number.part + number.label,
        Styled(number.text(values), style),
        "" if reference is None else str(reference),
    ]


def _class_parts(scores: EvaluationResult) -> list[str | Table]:
    """Return a row for each class: counts, and the numbers that a few images suffice for."""
    if not scores.classes:
        return []
    head, *rows = class_table(scores.classes)
    return ["", Table([head, *([files.show(name), *cells] for name, *cells in rows)])]
