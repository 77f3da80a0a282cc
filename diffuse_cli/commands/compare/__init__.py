"""Compare two runs or models.

Prints the settings that differ, and the losses of both runs. With DATA, it also evaluates both
models on the same real images and from the same noise, which makes the standard error of their
difference smaller than with two evaluations. The result is about these two models: other seeds of
the same settings can give the opposite result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from diffuse_cli.commands._cli.console import Console, brief, format_value
from diffuse_cli.config.eval_options import CompareConfig
from diffuse_cli.core.settings import digits
from diffuse_cli.data.summary import plural
from diffuse_cli.metrics import SIGNIFICANT, Measurement, label
from diffuse_cli.metrics.features import KIDS
from diffuse_cli.system import align_columns, show
from diffuse_cli.system.files import write_text
from diffuse_cli.system.outputs import claim_option

if TYPE_CHECKING:
    from diffuse_cli.commands.compare.run_comparison import Comparison, Side
    from diffuse_cli.evaluation.paired_comparison import Difference, PairedComparison

CONFIG = CompareConfig
EXAMPLES = ("diffuse compare a.run b.run", "diffuse compare a.safetensors b.safetensors photos")

NONE = "–"


def run(config: CompareConfig, console: Console) -> None:
    """Compare, and print what differs."""
    from diffuse_cli.commands.compare.run_comparison import compare, render_comparison

    with claim_option(config, "report", ".html") as report:
        comparison = console.follow(compare(config))
        if comparison is None:
            return
        if report:
            write_text(report, render_comparison(comparison, table_rows(comparison)))
    values = {**to_json(comparison), **({"report": str(report)} if report else {})}
    console.show(values, [*lines(comparison), *([show(str(report))] if report else [])])


def to_json(comparison: Comparison) -> dict[str, Any]:
    """Everything, with each number's error."""
    return {
        "a": comparison.a.to_dict(),
        "b": comparison.b.to_dict(),
        "settings": {k: {"a": a, "b": b} for k, (a, b) in comparison.settings.items()},
        "remarks": list(comparison.remarks),
        "evaluation": _evaluation(comparison.measured) if comparison.measured else None,
    }


def _evaluation(pair: PairedComparison) -> dict[str, Any]:
    return {
        "n": {"real": pair.real, "generated": pair.generated},
        "part": pair.part,
        "features": pair.features,
        "fingerprint": pair.fingerprint,
        "settings": dict(zip("ab", pair.settings, strict=True)),
        "values": dict(zip("ab", pair.values, strict=True)),
        "differences": {
            d.number.key: {
                "difference": d.gap.value,
                "standard_error": d.gap.error,
                "paired": d.paired,
                "better": d.better.lower() or None,
            }
            for d in pair.differences
        },
        "made_with": pair.made_with,
    }


def lines(comparison: Comparison) -> list[str]:
    """Return the two names, a table of both, and remarks on differences that prevent a
    comparison."""
    sides = comparison.a, comparison.b
    more: list[str] = []
    if measured := comparison.measured:
        more = ["", *align_columns([*_format_metrics(measured)]), *_describe_evaluation(measured)]
    return [
        *(f"{name}  {show(side.path)}" for name, side in zip("AB", sides, strict=True)),
        "",
        *align_columns(table_rows(comparison)),
        *more,
        *(brief(remark) for remark in comparison.remarks),
    ]


def table_rows(comparison: Comparison) -> list[list[str]]:
    """Return a head, and the settings and the facts of both as rows of cells."""
    rows = [["", "A", "B"]]
    rows += [[brief(name), *_setting(*pair)] for name, pair in comparison.settings.items()]
    a, b = (_facts(side) for side in (comparison.a, comparison.b))
    rows += [
        [name, a[name], b[name]]
        for name in a
        if {a[name], b[name]} != {NONE} and (name != "written by" or a[name] != b[name])
    ]
    return rows


def _setting(*pair: Any) -> list[str]:
    """Return the values of a setting, with as many digits as tell them apart."""
    short, long = (
        [NONE if value is None else brief(format_value(value, *kind)) for value in pair]
        for kind in ((), (digits,))
    )
    return short if short[0] != short[1] else long


def _facts(side: Side) -> dict[str, str]:
    """Return the facts of a run or model by their labels."""
    facts = side.facts
    parameters, versions = facts.get("parameters"), facts.get("versions", {})
    return {
        "parameters": NONE if parameters is None else f"{parameters:,}",
        "training images": _images(facts.get("data", {})),
        "step": brief(f"{side.step:,} of {side.steps:,}" if side.steps else f"{side.step:,}"),
        "loss": NONE if side.loss is None else str(Measurement(side.loss)),
        "held-out loss": NONE
        if side.held_out_loss is None
        else str(Measurement(side.held_out_loss)),
        "  lowest": _format_lowest(side.lowest["held_out_loss"]),
        **{f"lowest {label(key)}": _format_lowest(side.lowest[key]) for key in KIDS},
        "written by": brief(", ".join(f"{k} {format_value(v)}" for k, v in versions.items()))
        or NONE,
    }


def _images(data: Mapping[str, Any]) -> str:
    rule = data.get("held_out")
    counts = [data.get("images"), rule.get("images") if isinstance(rule, Mapping) else 0]
    if not all(isinstance(count, int) for count in counts):  # a converted model has none
        return NONE
    return brief(f"{counts[0]:,}, {counts[1]:,} held out")


def _format_lowest(lowest: Mapping[str, float] | None) -> str:
    if lowest is None:
        return NONE
    number = Measurement(lowest["value"], lowest.get("standard_error", 0.0))
    return f"{number} at step {lowest['step']:,.0f}"


def _format_metrics(pair: PairedComparison) -> Iterator[list[str]]:
    """Yield a row for each number: both, their difference, what its error is of, which is
    better."""
    yield ["", "A", "B", "B less A", "error", "better"]
    for d in pair.differences:
        yield [
            "  " * d.number.part + d.number.label,
            *(d.number.text(values) for values in pair.values),
            *(_format_difference(d) if all(map(d.number.can_show, pair.values)) else ("", "")),
            d.better,
        ]


def _format_difference(difference: Difference) -> tuple[str, str]:
    return f"{difference.gap:+}", "paired" if difference.paired else "independent"


def _describe_evaluation(pair: PairedComparison) -> list[str]:
    """Return lines about the samples and settings of the evaluation."""
    from diffuse_cli.metrics.features.feature_choice import describe_network, describe_part

    part = describe_part(pair.part, pair.words)
    samplers = [f"{s['sampler']}, {plural(s['steps'], 'step')}" for s in pair.settings]
    how = samplers[0] if samplers[0] == samplers[1] else f"{samplers[0]} (A), {samplers[1]} (B)"
    return [
        f"n = {pair.generated:,} generated against {pair.real:,} real ({part}); sampler: {how}; "
        f"{describe_network(pair.features)}",
        f"better: where the difference is more than {SIGNIFICANT} standard errors. This "
        "compares two models, not their recipes: two seeds of one recipe differed by 4.7",
    ]
