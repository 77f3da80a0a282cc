"""Compare two runs or models.

Prints the settings that differ, and the losses of both runs. With DATA, it also evaluates both
models on the same real images and from the same noise, which makes the standard error of their
difference smaller than with two evaluations. The result is about these two models: other seeds of
the same settings can give the opposite result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.commands._cli import Console, brief, format_value
from diffuse_cli.config import options, train_options
from diffuse_cli.config.eval_options import CompareConfig
from diffuse_cli.config.task_options import is_degradation
from diffuse_cli.core import PAIRS
from diffuse_cli.core.settings import digits
from diffuse_cli.media import describe_space
from diffuse_cli.metrics import SIGNIFICANT, Measurement, label
from diffuse_cli.metrics.features import KIDS, describe_network
from diffuse_cli.system import (
    ModelFileError,
    Styled,
    Table,
    Work,
    files,
    outputs,
    plural,
    processes,
    run_reader,
)

if TYPE_CHECKING:
    from diffuse_cli.evaluation.paired_comparison import PairedComparison
    from diffuse_cli.models.model_file import ModelFile

CONFIG = CompareConfig
EXAMPLES = ("diffuse compare a.run b.run", "diffuse compare a.safetensors b.safetensors photos")

NONE = "–"

MEANT = (
    "size", "channels", "medium", "rate", "transform", "background", "fit", "classes",
    "condition_on", "schedule", "betas", "num_timesteps", "log_snr_shift", "zero_terminal_snr",
    "target", "variance", "loss", "weighting",
)  # fmt: skip
"""Settings without which two losses are not of the same quantity."""


@dataclass(frozen=True)
class Side:
    """A run or a model. Its settings and values are untrusted. Escape them.

    Attributes:
        settings: training settings by name, those of the network as `unet.width`.
        places: settings of the run alone, such as its data; None without a run directory.
        file: the model, or the newest of a run; None if it has none yet.
        values: the values for `--json`: `lowest_NAME` is the lowest held-out loss or KID, with its
            step, and `steps` the number of the whole training, if it is known.
    """

    settings: Mapping[str, Any]
    places: Mapping[str, Any] | None
    file: ModelFile | None
    values: dict[str, Any]


def run(config: CompareConfig, console: Console) -> None:
    """Compare, and print what differs."""
    with outputs.claim_option(config.report, ".html", config.overwrite, "--report") as report:
        sides = a, b = [console.follow(_read_side(path)) for path in (config.a, config.b)]
        differing = _differing_settings(a, b)
        remarks, measured = [*_compare_losses(a, b, differing)], None
        if config.data is not None:
            files_of_both = [_require_model(side) for side in sides]
            if remark := _compare_spaces(files_of_both):
                remarks.append(remark)
            else:
                measured = console.follow(_evaluate(config, files_of_both))
        if processes.rank() > 0:
            return
        rows = _table_rows(sides, differing)
        if report:
            files.write_text(report, _render_page(sides, rows, remarks))
    values = {
        **{name: side.values for name, side in zip("ab", sides, strict=True)},
        "settings": {name: dict(zip("ab", pair, strict=True)) for name, pair in differing.items()},
        "remarks": remarks,
        "evaluation": measured and _to_json(measured),
        **({"report": str(report)} if report else {}),
    }
    parts = [
        *(f"{name}  {files.show(path)}" for name, path in (("A", config.a), ("B", config.b))),
        "",
        Table(rows),
        *(_evaluation_parts(measured) if measured else []),
        *(Styled(brief(remark), "doubtful") for remark in remarks),
        *([files.show(str(report))] if report else []),
    ]
    console.show(values, parts)


# -- reading --------------------------------------------------------------------------------------


def _read_side(path: str) -> Work[Side]:
    """Read a model file, a run directory, or both where they lie side by side.

    Raises:
        ModelFileError: neither a model file nor a run.
    """
    from diffuse_cli.models import model_file

    given, places, file, settings = Path(path), None, None, {}
    run = run_reader.run_folder(given)
    if (
        given != run
        or run_reader.list_checkpoints(run / run_reader.CHECKPOINTS)
        or run_reader.model_path(run).exists()
    ):
        file = yield from model_file.find(given)
        settings = options.flatten_settings(file.training_config())
    config_path = run / run_reader.CONFIG
    if config_path.is_file():
        values = train_options.from_file(options.read_toml(config_path, "the run's"))
        config = train_options.TrainConfig.from_dict(values, str(config_path))
        of_run = options.flatten_settings(train_options.to_file(config, control=False))
        names = [f.name for f, spec in options.option_fields(config) if spec.place]
        places = {name: of_run.pop(name) for name in names if name in of_run}
        settings = settings or of_run
    if not settings:
        text = f"no such run or model file: {files.show(path)}"
        raise ModelFileError(text, code="model_missing", path=path)
    log = run_reader.read_log(run / run_reader.METRICS)
    rows = [row for row in log if file is None or row["step"] <= file.model.step]
    last_step = max((int(row["step"]) for row in rows), default=0)
    facts = file.facts() if file else {}
    values = {
        "path": path,
        "sha256": facts.get("sha256"),
        "step": file.model.step if file else last_step,
        "steps": settings.get("steps"),
        **{name: run_reader.last_value(rows, name) for name in ("loss", "held_out_loss")},
        **{f"lowest_{name}": _find_lowest(rows, name) for name in ("held_out_loss", *KIDS)},
        "parameters": facts.get("parameters"),
        "data": facts.get("data", {}),
        "versions": facts.get("versions"),
    }
    return Side(settings, places, file, values)


def _find_lowest(rows: list[dict[str, Any]], name: str) -> dict[str, float] | None:
    """Return the lowest number of this name with its error, if it has one, and its step."""
    hits = [(v, row) for row in rows if (v := run_reader.finite_or_none(row.get(name))) is not None]
    if not hits:
        return None
    value, row = min(hits, key=lambda hit: hit[0])
    error = run_reader.finite_or_none(row.get(f"{name}_standard_error"))
    return {"value": value, "step": row["step"]} | ({"standard_error": error} if error else {})


# -- comparing ------------------------------------------------------------------------------------


def _differing_settings(a: Side, b: Side) -> dict[str, tuple[Any, Any]]:
    """Return the settings of A and of B where they differ; None where one has none. Places are
    compared only if both sides have them."""
    old, new = a.settings, b.settings
    if a.places is not None and b.places is not None:
        old, new = {**a.places, **old}, {**b.places, **new}
    pairs = {name: (old.get(name), new.get(name)) for name in {**old, **new}}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _compare_losses(a: Side, b: Side, differing: Mapping[str, Any]) -> Iterator[str]:
    """Whether the losses of two runs are of the same quantity."""
    if a.values["loss"] is None or b.values["loss"] is None:
        return
    names = [name for name in MEANT if name in differing]
    given_a, given_b = ((side.places or {}).get("given") for side in (a, b))
    kinds = [
        given if given is None or is_degradation(given) else PAIRS for given in (given_a, given_b)
    ]
    if kinds[0] != kinds[1]:
        names.append("given")
    prints = [side.values["data"].get("fingerprint") for side in (a, b)]
    if prints[0] != prints[1] and None not in prints:
        names.append("training images")
    if names:
        yield f"the losses cannot be compared, as these differ: {', '.join(names)}"


def _require_model(side: Side) -> ModelFile:
    if side.file is None:
        path = side.values["path"]
        text = f"{files.show(path)} has no model yet"
        hint = "Leave out DATA, or wait for its first checkpoint"
        raise ModelFileError(text, hint, code="checkpoint_missing", path=path)
    return side.file


def _compare_spaces(pair: Sequence[ModelFile]) -> str:
    """Return why samples of two models cannot be measured together, or an empty string. They can
    differ in the scale of the model's numbers."""
    a, b = (file.model.blueprint.space for file in pair)
    if replace(a, mean=b.mean, std=b.std, transform=b.transform) == b:
        return ""
    kinds = [describe_space(space) for space in (a, b)]
    return f"the metrics cannot be compared: samples of A are {kinds[0]}, and of B {kinds[1]}"


def _evaluate(config: CompareConfig, pair: Sequence[ModelFile]) -> Work[PairedComparison | None]:
    """Evaluate both models on the same images.

    Raises:
        DataError, UsageError: DATA or an option cannot be used.
    """
    from diffuse_cli.evaluation.paired_comparison import compare_models
    from diffuse_cli.sampling.model_loading import load_denoiser
    from diffuse_cli.system.accelerator import open_accelerator

    with open_accelerator(config.precision, config.device) as accelerator:
        loaded = []
        for file in pair:
            names = config.weights, accelerator, config.precision
            loaded.append((yield from load_denoiser(file, *names, typed=False)))
        return (yield from compare_models(config, loaded, accelerator))


# -- rendering ------------------------------------------------------------------------------------


def _to_json(pair: PairedComparison) -> dict[str, Any]:
    """Return the evaluation as plain values, each number with its error."""
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


def _table_rows(sides: Sequence[Side], differing: Mapping[str, tuple[Any, Any]]) -> list[list[str]]:
    """Return a head, and the settings that differ and the facts of both as rows of cells."""
    rows = [["", "A", "B"]]
    rows += [[brief(name), *_setting(*pair)] for name, pair in differing.items()]
    a, b = (_facts(side.values) for side in sides)
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


def _facts(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the facts of a run or model by their labels."""
    step, steps, parameters = values["step"], values["steps"], values["parameters"]
    loss, held_out_loss = (
        NONE if values[name] is None else str(Measurement(values[name]))
        for name in ("loss", "held_out_loss")
    )
    versions = [f"{name} {format_value(v)}" for name, v in (values["versions"] or {}).items()]
    return {
        "parameters": NONE if parameters is None else f"{parameters:,}",
        "training images": _images(values["data"]),
        "step": brief(f"{step:,} of {steps:,}" if steps else f"{step:,}"),
        "loss": loss,
        "held-out loss": held_out_loss,
        "  lowest": _format_lowest(values["lowest_held_out_loss"]),
        **{f"lowest {label(key)}": _format_lowest(values[f"lowest_{key}"]) for key in KIDS},
        "written by": brief(", ".join(versions)) or NONE,
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


def _evaluation_parts(pair: PairedComparison) -> list[str | Table]:
    """Return a table of the metrics, and lines about the samples and settings. A row has the
    number of both, their difference, the kind of its error, and the better one."""
    rows = [["", "A", "B", "B less A", "error", "better"]]
    for d in pair.differences:
        gap = [f"{d.gap:+}", "paired" if d.paired else "independent"]
        rows.append([
            "  " * d.number.part + d.number.label,
            *map(d.number.text, pair.values),
            *(gap if all(map(d.number.can_show, pair.values)) else ("", "")),
            Styled(d.better, "good"),
        ])  # fmt: skip
    part = pair.words.name_part(pair.part)
    samplers = [f"{s['sampler']}, {plural(s['steps'], 'step')}" for s in pair.settings]
    how = samplers[0] if samplers[0] == samplers[1] else f"{samplers[0]} (A), {samplers[1]} (B)"
    return [
        "",
        Table(rows),
        f"n = {pair.generated:,} generated against {pair.real:,} real ({part}); sampler: {how}; "
        f"{describe_network(pair.features)}",
        f"better: where the difference is more than {SIGNIFICANT} standard errors. This "
        "compares two models, not their recipes: two seeds of one recipe differed by 4.7",
    ]


def _render_page(
    sides: Sequence[Side], rows: Sequence[Sequence[str]], remarks: Sequence[str]
) -> str:
    """Render a comparison as HTML. The first of the rows is their head."""
    from diffuse_cli.pages import curves
    from diffuse_cli.pages.templates import render_page

    paths = [side.values["path"] for side in sides]
    logs = [run_reader.run_folder(Path(path)) / run_reader.METRICS for path in paths]
    names = dict(zip("AB", map(options.place_name, paths), strict=True))
    runs = dict(zip("AB", map(curves.read_curves, logs), strict=True))
    return render_page(
        "compare",
        " and ".join(names.values()),
        sides=names,
        rows=rows,
        plots=curves.plot_runs(runs),
        remarks=remarks,
    )
