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
from diffuse_cli.system.events import align_columns
from diffuse_cli.system.files import show, write_text
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
        found = console.follow(compare(config))
        if found is None:
            return
        if report:
            write_text(report, render_comparison(found, table_rows(found)))
    values = {**to_json(found), **({"report": str(report)} if report else {})}
    console.show(values, [*lines(found), *([show(str(report))] if report else [])])


def to_json(found: Comparison) -> dict[str, Any]:
    """Everything, with each number's error."""
    return {
        "a": found.a.to_dict(),
        "b": found.b.to_dict(),
        "settings": {k: {"a": a, "b": b} for k, (a, b) in found.settings.items()},
        "remarks": list(found.remarks),
        "evaluation": _evaluation(found.measured) if found.measured else None,
    }


def _evaluation(both: PairedComparison) -> dict[str, Any]:
    return {
        "n": {"real": both.real, "generated": both.generated},
        "part": both.part,
        "features": both.features,
        "fingerprint": both.fingerprint,
        "settings": dict(zip("ab", both.settings, strict=True)),
        "values": dict(zip("ab", both.values, strict=True)),
        "differences": {
            d.number.key: {
                "difference": d.gap.value,
                "standard_error": d.gap.error,
                "paired": d.paired,
                "better": d.better.lower() or None,
            }
            for d in both.differences
        },
        "made_with": both.made_with,
    }


def lines(found: Comparison) -> list[str]:
    """Return the two names, a table of both, and remarks on differences that prevent a
    comparison."""
    sides = found.a, found.b
    more: list[str] = []
    if measured := found.measured:
        more = ["", *align_columns([*_format_metrics(measured)]), *_describe_evaluation(measured)]
    return [
        *(f"{name}  {show(side.path)}" for name, side in zip("AB", sides, strict=True)),
        "",
        *align_columns(table_rows(found)),
        *more,
        *(brief(remark) for remark in found.remarks),
    ]


def table_rows(found: Comparison) -> list[list[str]]:
    """Return a head, and the settings and the facts of both as rows of cells."""
    rows = [["", "A", "B"]]
    rows += [[brief(name), *_setting(*pair)] for name, pair in found.settings.items()]
    a, b = (_facts(side) for side in (found.a, found.b))
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
    known = side.facts
    parameters, versions = known.get("parameters"), known.get("versions", {})
    return {
        "parameters": NONE if parameters is None else f"{parameters:,}",
        "training images": _images(known.get("data", {})),
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


def _format_lowest(found: Mapping[str, float] | None) -> str:
    if found is None:
        return NONE
    number = Measurement(found["value"], found.get("standard_error", 0.0))
    return f"{number} at step {found['step']:,.0f}"


def _format_metrics(both: PairedComparison) -> Iterator[list[str]]:
    """Yield a row for each number: both, their difference, what its error is of, which is
    better."""
    yield ["", "A", "B", "B less A", "error", "better"]
    for d in both.differences:
        yield [
            "  " * d.number.part + d.number.label,
            *(d.number.text(values) for values in both.values),
            *(_format_difference(d) if all(map(d.number.can_show, both.values)) else ("", "")),
            d.better,
        ]


def _format_difference(found: Difference) -> tuple[str, str]:
    return f"{found.gap:+}", "paired" if found.paired else "independent"


def _describe_evaluation(both: PairedComparison) -> list[str]:
    """Return lines about the samples and settings of the evaluation."""
    from diffuse_cli.metrics.features.feature_choice import describe_network, describe_part

    part = describe_part(both.part, both.words)
    drawn = [f"{s['sampler']}, {plural(s['steps'], 'step')}" for s in both.settings]
    how = drawn[0] if drawn[0] == drawn[1] else f"{drawn[0]} (A), {drawn[1]} (B)"
    return [
        f"n = {both.generated:,} generated against {both.real:,} real ({part}); sampler: {how}; "
        f"{describe_network(both.features)}",
        f"better: where the difference is more than {SIGNIFICANT} standard errors. This "
        "compares two models, not their recipes: two seeds of one recipe differed by 4.7",
    ]
